"""The classifier that a command line asks for, and files of weights that are written whole."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from common.options import ModelOptions
from lightning_xai.files import write_whole
from lightning_xai.networks import create_classifier


def classifier_of(options: ModelOptions, num_classes: int | None = None) -> nn.Module:
    """The classifier that a command line asks for."""
    if options.model is None:
        raise ValueError("`--model` expected the name of a classifier, got none.")
    arguments = model_options(options.model_options)
    given = {"pretrained": options.pretrained, "weights": options.weights}
    return create_classifier(options.model, num_classes, **given, **arguments)  # type: ignore[arg-type]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a safetensors file at once: a process that is killed leaves the earlier one or none."""
    write_whole(path, save({key: value.contiguous() for key, value in model.state_dict().items()}))


def model_options(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a constructor from ``name=value`` texts; values are Python literals, anything else is a string.

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
