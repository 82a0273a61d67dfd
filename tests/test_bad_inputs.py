"""Whatever is given to a public name, it is a result or an error of ours, and the model is as before."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

import lightning_xai as xai
from lightning_xai.metrics import compare

IMAGES, LABELS = random_images(), torch.arange(4) % 3
MEAN = (0.5,) * 3


def term(model: Any, images: Any, targets: Any, criterion: Any) -> Any:
    """One step of the training term."""
    return xai.GuidedGradientLoss()(model, images, targets, criterion, step=0)


VALID: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "explain": (xai.explain, {"model": small_net, "images": IMAGES, "attributions": xai.GradCAM()}),
    "inspect_model": (xai.inspect_model, {"model": small_net, "images": IMAGES}),
    "compare_models": (xai.compare_models, {"model": small_net, "reference": small_net, "images": IMAGES}),
    "center_logits": (xai.center_logits, {"model": small_net, "images": IMAGES}),
    "Fingerprint": (xai.Fingerprint.of, {"model": small_net, "images": IMAGES}),
    "Faithfulness": (
        xai.Faithfulness,
        {"attributions": xai.GradCAM(), "metrics": [xai.AverageDrop()], "mean": MEAN, "std": MEAN},
    ),
    "SaliencyMaps": (xai.SaliencyMaps, {"attributions": xai.GradCAM(), "mean": MEAN, "std": MEAN}),
    "LinearWarmup": (xai.LinearWarmup, {"value": 0.1, "steps": 5}),
    "Tokens": (xai.Tokens, {"layer": "conv2", "grid": (2, 2)}),
    "FromCallable": (xai.FromCallable, {"function": lambda model, images, targets: images}),
    "show": (xai.show, {"model": small_net, "image": IMAGES[0]}),
    "compare": (compare, {"a": torch.rand(4), "b": torch.rand(4)}),
    "a step of the term": (
        term,
        {"model": small_net, "images": IMAGES, "targets": LABELS, "criterion": F.cross_entropy},
    ),
}
"""Arguments that are right, by name; models are made anew for each call. Other names need none."""

NAMES = sorted({*VALID, *(name for name in xai.__all__ if name not in ("Attribution", "GuidedGradientMixin"))})

BAD: list[Any] = [
    *(None, True, 0, -1, 3, 1.5, float("nan"), float("inf"), "", "conv1", "x", b"x", (), set(), object(), int),
    *([], [1], ["x"], {}, {"x": 1}, {"a": 3}, [xai.GradCAM()], xai.GradCAM, xai.GradCAM(), xai.GradCAM("nowhere")),
    *(nn.ReLU(), nn.Linear(2, 2), lambda: None, lambda *args: None, lambda *args: "x"),
    *(torch.zeros(()), torch.zeros(0), torch.ones(4), torch.ones(4).long(), LABELS + 9, LABELS - 9, IMAGES[0]),
    *(IMAGES[:0], IMAGES.double(), IMAGES.half(), IMAGES.byte(), IMAGES[:, :1], IMAGES[:, :, :1, :1], IMAGES[None]),
    *(IMAGES * float("nan"), IMAGES.to("meta"), IMAGES.to_sparse(), IMAGES + 0j),
]


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """The names of what it takes."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds]


def is_ours(error: BaseException) -> bool:
    """Whether it was raised on purpose, in the package."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return Path(xai.__file__).parent in Path(last.filename).parents and line.startswith("raise ")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_result_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    """One or two arguments of each name are replaced by something else."""
    function, valid = VALID.get(name, (getattr(xai, name, None), {}))
    assert function is not None
    chosen = data.draw(st.lists(st.sampled_from(parameters_of(function) or ["x"]), min_size=1, max_size=2, unique=True))
    wrong = {one: BAD[data.draw(st.integers(0, len(BAD) - 1))] for one in chosen if one != "x"}
    right = {one: value() if value is small_net else value for one, value in valid.items()}
    model = right.get("model", small_net())
    before = state_of(model)
    try:
        function(**{**right, **wrong})
    except Exception as error:
        own = any(callable(value) for value in wrong.values())  # what such a function raises is its own
        if not own and not is_ours(error):
            raise AssertionError(f"{name}({wrong}): {type(error).__name__}: {error}") from error
    assert_same_state(before, state_of(model))
