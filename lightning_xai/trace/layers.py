"""Finding modules by name."""

from __future__ import annotations

import difflib

from torch import nn

from lightning_xai.types import OneLayer, Tokens


def find_layer(model: nn.Module, layer: OneLayer, *, argument: str = "layer") -> nn.Module:
    """The module meant by a dotted name, by itself or as tokens.

    Args:
        model: The model that contains it.
        layer: Dotted name, module or tokens.
        argument: What the caller's argument is called, for errors.

    Returns:
        The module.

    Raises:
        ValueError: If the model has no such module; near names are listed.
        TypeError: If it is neither a name nor a module.

    Example:
        >>> find_layer(nn.Sequential(nn.ReLU()), "0")
        ReLU()
    """
    layer = layer.layer if isinstance(layer, Tokens) else layer
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    if isinstance(layer, nn.Module):
        if any(module is layer for module in modules.values()):
            return layer
        raise ValueError(
            f"`{argument}` expected a module of the model, got a {type(layer).__name__} that is not part of it."
        )
    if not isinstance(layer, str):
        raise TypeError(f"`{argument}` expected a dotted name or a module, got {type(layer).__name__}.")
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, n=5, cutoff=0.4) or list(modules)[-5:]
        raise ValueError(f"`{argument}` expected the name of a module, got {layer!r}. Near names: {', '.join(near)}.")
    return modules[layer]


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of a module in a model, or its class if it has none.

    Args:
        model: The model.
        module: A module.

    Returns:
        The name.
    """
    return next((name for name, one in model.named_modules() if one is module), type(module).__name__)
