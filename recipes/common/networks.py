"""Classifiers for the recipes: timm and torchvision by name, weights from files that are not executed."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.options import ModelOptions


def create_classifier(
    name: str, num_classes: int | None = None, *, pretrained: bool = False, weights: Path | None = None, **options: Any
) -> nn.Module:
    """A classifier of timm, of torchvision, or of anybody's function.

    Args:
        name: Name in timm's list, else in torchvision's; ``timm:NAME`` or ``torchvision:NAME`` to insist on one;
            ``package.module:function`` for any other function that makes a network.
        num_classes: Number of classes; None for the architecture's own.
        pretrained: Whether to download the library's weights.
        weights: File with weights, loaded by `load_weights`.
        options: Further arguments of the constructor.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: If neither library knows the name, or the weights do not fit.
        FileNotFoundError: If the weights file does not exist.
    """
    source, _, bare = name.rpartition(":")
    if num_classes is not None:
        options["num_classes"] = num_classes
    if source in ("", "timm") and timm.is_model(bare):
        model = timm.create_model(bare, pretrained=pretrained, **options)
    elif source in ("", "torchvision") and bare in torchvision.models.list_models():
        model = _torchvision_model(bare, pretrained, options)
    elif "." in source:
        model = getattr(importlib.import_module(source), bare)(**options)
    else:
        near = timm.list_models(f"*{bare}*")[:5] or ["resnet18", "resnet50"]
        raise ValueError(
            f"`--model` expected a classifier of timm or torchvision, or package.module:function, got {name!r}. "
            f"Near names: {', '.join(near)}."
        )
    if weights is not None:
        load_weights(model, weights)
    return model


def classifier_of(options: ModelOptions, num_classes: int | None = None) -> nn.Module:
    """The classifier that a command line asks for."""
    if options.model is None:
        raise ValueError("`--model` expected the name of a classifier, got none.")
    arguments = model_options(options.model_options)
    given = {"pretrained": options.pretrained, "weights": options.weights}
    return create_classifier(options.model, num_classes, **given, **arguments)  # type: ignore[arg-type]


def _torchvision_model(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if not pretrained or "num_classes" not in options:
        return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    # torchvision refuses another number of classes beside its weights: all but the last layer is taken from them
    model = torchvision.models.get_model(name, **options)
    theirs = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    ours = model.state_dict()
    fitting = {key: value for key, value in theirs.items() if value.shape == ours[key].shape}
    model.load_state_dict(fitting, strict=False)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file or a torch or Lightning checkpoint, without executing pickled code.

    A ``state_dict`` inside a checkpoint is found; a prefix that all its keys share (``model.``, ``module.``) is
    stripped.

    Args:
        model: The model; its dtypes are kept.
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If keys or shapes do not fit; they are listed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`--weights` expected a file, got {str(path)!r}.")
    loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    found = _without_prefix(loaded.get("state_dict", loaded), set(model.state_dict()))
    own = model.state_dict()
    troubles = {
        "missing": sorted(set(own) - set(found)),
        "unexpected": sorted(set(found) - set(own)),
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in found and found[key].shape != own[key].shape
        ],
    }
    if any(troubles.values()):
        told = "; ".join(f"{len(keys)} {kind}: {_shortened(keys)}" for kind, keys in troubles.items() if keys)
        raise ValueError(f"`--weights` {path.name} does not fit the model. Keys {told}.")
    model.load_state_dict(found)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a safetensors file at once: a process that is killed leaves the earlier one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, partial)
    partial.replace(path)


def _without_prefix(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    prefixes = {""} | {key.removesuffix(one) for key in state for one in wanted if key.endswith(f".{one}")}

    def stripped(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    return max(map(stripped, sorted(prefixes)), key=lambda found: len(wanted & set(found)))


def _shortened(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f", ... ({len(keys) - most} more)" if len(keys) > most else "")


def model_options(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a constructor from the command line.

    Args:
        texts: ``name=value`` each; values are Python literals, anything else is a string.

    Returns:
        The arguments.

    Raises:
        ValueError: If one has no ``=``.

    Example:
        >>> model_options(["channel_multiplier=0.75", "act_layer=relu"])
        {'channel_multiplier': 0.75, 'act_layer': 'relu'}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"`--model-options` expected name=value, got {text!r}.")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options
