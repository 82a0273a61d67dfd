"""Any two of our callbacks, in either order and with any method, give what each gives alone."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from callbacks.trainers import MEAN, STD, classifier, loader, trainer
from pytorch_lightning.loggers.logger import DummyLogger

from lightning_xai import (
    LRP,
    SGLRP,
    AverageDrop,
    DeepLIFT,
    Faithfulness,
    GradCAM,
    GuidedGradient,
    IntegratedGradients,
    ModelIntegrity,
    SaliencyMaps,
)
from lightning_xai.callbacks import saliency_maps as drawing
from lightning_xai.integrity import Threshold

METHODS = {
    "GradCAM": GradCAM(),
    "LRP": LRP(),
    "SGLRP": SGLRP(),
    "DeepLIFT": DeepLIFT(mean=MEAN, std=STD),
    "IntegratedGradients": IntegratedGradients(n_steps=2, mean=MEAN, std=STD),
    "GuidedGradient": GuidedGradient(),
}
KINDS = ("SaliencyMaps", "Faithfulness", "ModelIntegrity")


def callback(kind: str, method: str, named: bool) -> Any:
    """One of ours, with one method."""
    name, options = {"method": METHODS[method]}, {"mean": MEAN, "std": STD, "classifier": "model" if named else None}
    if kind == "SaliencyMaps":
        return SaliencyMaps(name, **options)
    if kind == "Faithfulness":
        return Faithfulness(name, [AverageDrop()], controls={}, **options)
    return ModelIntegrity(threshold=Threshold(2.0, 1), **options)


def given_by(callbacks: list[Any]) -> dict[str, Any]:
    """What callbacks log in a fit, pictures among it."""
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "log_panel", lambda loggers, key, panel, step: given.update({key: panel.overlays}))
        running = trainer(callbacks=callbacks, logger=DummyLogger())
        running.fit(classifier(), loader(shuffle=False), loader())
    return given | running.callback_metrics


@cache
def alone(kind: str, method: str, named: bool) -> dict[str, Any]:
    """What one gives."""
    return given_by([callback(kind, method, named)])


@pytest.mark.filterwarnings("ignore:ModelIntegrity")  # what is found is not the point
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kinds", list(itertools.permutations(KINDS, 2)), ids=" then ".join)
@pytest.mark.parametrize("named", [(False, False), (True, False), (False, True)], ids=["found", "first", "second"])
def test_two_callbacks_give_what_each_gives_alone(
    kinds: tuple[str, str], method: str, named: tuple[bool, bool]
) -> None:
    """Neither sees the passes of the other, nor what these run under; one may listen while the other still looks."""
    expected: dict[str, Any] = {}
    for kind, name in zip(kinds, named, strict=True):
        expected |= alone(kind, method, name)
    assert len(expected) > 1
    together = given_by([callback(kind, method, name) for kind, name in zip(kinds, named, strict=True)])
    if "ModelIntegrity" in kinds:  # which also looks where the other callback does
        expected, together = (
            {key: value for key, value in one.items() if "/integrity/" not in key or key.endswith("/flagged")}
            for one in (expected, together)
        )
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
