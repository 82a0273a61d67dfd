"""Whatever is given to a public name, it is a result or an error of ours, and the model is as before."""

from __future__ import annotations

import errno
import inspect
import linecache
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

import lightning_xai as xai
from lightning_xai import attribution as methods
from lightning_xai.kinds import fits
from lightning_xai.metrics import compare

IMAGES, LABELS = random_images(), torch.arange(4) % 3
MEAN = (0.5,) * 3
OPTIONS: dict[str, dict[str, Any]] = {
    "FromCallable": {"function": lambda model, images, targets: images.sum(1)},
    "Shuffled": {"attribution": xai.GradCAM()},
    "IntegratedGradients": {"mean": MEAN, "std": MEAN},
}
"""Of methods, where they need any."""


def term(model: Any, images: Any, targets: Any, criterion: Any, step: Any) -> Any:
    """One step of the training term."""
    return xai.GuidedGradientLoss()(model, images, targets, criterion, step=step)


def trained(**options: Any) -> Any:
    """The same with options of the term."""
    return xai.GuidedGradientLoss(**options)(small_net(), IMAGES, LABELS, F.cross_entropy, step=0)


def explained(kind: type[xai.Attribution]) -> Callable[..., Any]:
    """An explanation by a method with options, whose signature is that of the method and of `explain`."""

    def explain(**given: Any) -> Any:
        asked = {name: value for name, value in given.items() if name in ASKED}
        return xai.explain(attributions=kind(**{name: given[name] for name in given if name not in ASKED}), **asked)

    asked = [one for one in inspect.signature(xai.explain).parameters.values() if one.name in ASKED]
    own = [one for one in inspect.signature(kind).parameters.values() if one.name not in ASKED]
    named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*asked, *own]]
    explain.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return explain


ASKED = ("model", "images", "targets", "score", "calling", "create_graph")
KNOWN = Path(tempfile.mkdtemp()) / "known.safetensors"
FINGERPRINT = xai.Fingerprint.of(small_net(), IMAGES)
FINGERPRINT.save(KNOWN)

VALID: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "explain": (xai.explain, {"model": small_net, "images": IMAGES, "attributions": xai.GradCAM()}),
    "inspect_model": (xai.inspect_model, {"model": small_net, "images": IMAGES}),
    "compare_models": (xai.compare_models, {"model": small_net, "reference": small_net, "images": IMAGES}),
    "center_logits": (xai.center_logits, {"model": small_net, "images": IMAGES}),
    "Fingerprint": (xai.Fingerprint.of, {"model": small_net, "images": IMAGES}),
    "Fingerprint.compare": (FINGERPRINT.compare, {"model": small_net, "images": IMAGES}),
    "Fingerprint.load": (xai.Fingerprint.load, {"path": KNOWN}),
    "Faithfulness": (
        xai.Faithfulness,
        {"attributions": xai.GradCAM(), "metrics": [xai.AverageDrop()], "mean": MEAN, "std": MEAN},
    ),
    "SaliencyMaps": (xai.SaliencyMaps, {"attributions": xai.GradCAM(), "mean": MEAN, "std": MEAN}),
    "LinearWarmup": (xai.LinearWarmup, {"value": 0.1, "steps": 5}),
    "Tokens": (xai.Tokens, {"layer": "conv2", "grid": (2, 2)}),
    "show": (xai.show, {"model": small_net, "image": IMAGES[0]}),
    "compare": (compare, {"a": torch.rand(4), "b": torch.rand(4)}),
    "GuidedGradientLoss": (trained, {}),
    "a step of the term": (
        term,
        {"model": small_net, "images": IMAGES, "targets": LABELS, "criterion": F.cross_entropy, "step": 0},
    ),
}
"""Arguments that are right, by name; models are made anew for each call. Other names need none."""
trained.__signature__ = inspect.signature(xai.GuidedGradientLoss)  # type: ignore[attr-defined]

METHODS = {name: kind for name, kind in vars(methods).items() if isinstance(kind, type) and name in methods.__all__}
for name, kind in METHODS.items():
    if issubclass(kind, xai.Attribution) and not inspect.isabstract(kind):
        VALID[name] = explained(kind), {"model": small_net, "images": IMAGES} | OPTIONS.get(name, {})

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


def check(name: str, data: st.DataObject) -> None:
    """One or two arguments of a name are replaced by something else."""
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
        own = any(fits(value, Callable) for value in wrong.values())  # what such a function raises is its own
        if not own and not is_ours(error) and not isinstance(error, OSError):
            raise AssertionError(f"{name}({wrong}): {type(error).__name__}: {error}") from error
    assert_same_state(before, state_of(model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_result_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    """Whatever stands in the place of one or two arguments of each name; the model is as before."""
    check(name, data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_many_more_inputs_give_a_result_or_an_error_of_ours(name: str, data: st.DataObject) -> None:
    """The same, at greater length."""
    check(name, data)


@pytest.mark.parametrize(
    ("name", "given", "error", "words"),
    [
        ("compare", {"level": "x"}, TypeError, "`level` expected a number, got 'x'; the default is 0.95."),
        ("compare", {"n_resamples": 1.5}, TypeError, "`n_resamples` expected a whole number, 1 or more, got 1.5."),
        ("compare", {"seed": 10**30}, TypeError, "`seed` expected a whole number, got 1000"),
        ("compare", {"a": "x"}, TypeError, "`a` expected a Tensor, got 'x'."),
        ("compare", {"b": torch.ones(4).to_sparse()}, TypeError, "`b` expected a Tensor, got a tensor of .*sparse_coo"),
        ("GradCAM", {"relu": "yes"}, TypeError, "`relu` expected True or False, got 'yes'; the default is True."),
        ("GradCAM", {"layer": 3}, TypeError, "`layer` expected a name, a Module, a Tokens, a sequence or None, got 3"),
        ("GradCAM", {"score": 3}, TypeError, "`score` expected a function, got 3; the default is centered."),
        ("GuidedGradCAM", {"rectifiers": "all "}, ValueError, "`rectifiers` expected 'relu' or 'all', got 'all '"),
        ("GuidedGradientLoss", {"teacher": int}, TypeError, r"`teacher` .* got the class int; .* Create it: `int\(\)`"),
        ("Faithfulness", {"classifier": 3}, TypeError, "`classifier` expected a name or None, got 3; the default is N"),
        (
            "SaliencyMaps",
            {"class_names": "cat"},
            TypeError,
            "`class_names` expected a sequence of names or None, got 'c",
        ),
        (
            "ModelIntegrity",
            {"attributions": {"a": 3}},
            TypeError,
            "`attributions` expected a dict, an Attribution or No",
        ),
        ("ModelIntegrity", {"images": IMAGES * float("nan")}, ValueError, "`images` expected finite values, got NaN"),
        ("ROAD", {"percentages": []}, ValueError, r"`percentages` expected numbers in \(0, 100\), got \(\)."),
        ("LinearWarmup", {"steps": float("nan")}, ValueError, "`steps` expected 1 or more, got nan. .* ConstantWeight"),
        (
            "a step of the term",
            {"step": None},
            TypeError,
            "`step` expected the number of the optimizer step.* got None",
        ),
        (
            "a step of the term",
            {"targets": LABELS.to_sparse()},
            ValueError,
            "`targets` expected .* got torch.sparse_coo",
        ),
        ("explain", {"targets": b"x"}, TypeError, "`targets` expected None, an int, .* got bytes."),
        ("Fingerprint.load", {"path": 3}, TypeError, "`path` expected a name or a Path, got 3."),
        ("Fingerprint.compare", {"model": 3}, TypeError, "`model` expected a torch.nn.Module, got int."),
        (
            "Fingerprint.compare",
            {"images": IMAGES.to("meta")},
            ValueError,
            "`images` expected a batch .* on the meta d",
        ),
        (
            "show",
            {"image": LABELS},
            ValueError,
            r"`image` expected bytes, \(C, H, W\) or .* got torch.int64 of shape \(4",
        ),
        (
            "show",
            {"transform": {"x": 1}},
            TypeError,
            "`transform` expected timm's data configuration, got a dict with others: .*'x'",
        ),
    ],
)
def test_each_kind_of_error_names_argument_value_and_remedy(
    name: str, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Where the check belongs, it stands once."""
    function, valid = VALID.get(name, (getattr(xai, name, None), {}))
    assert function is not None
    right = {one: value() if value is small_net else value for one, value in valid.items()}
    with pytest.raises(error, match=words):
        function(**{**right, **given})


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint is written under another name and moved; a folder in its place is told."""
    path = tmp_path / "known.safetensors"
    FINGERPRINT.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        FINGERPRINT.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(IsADirectoryError, match="expected to be a file, got a folder"):
        FINGERPRINT.save(tmp_path)
