"""The layers of a classifier that say where things are, and the last of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_xai.trace.calling import Calling
from lightning_xai.trace.layers import name_of
from lightning_xai.trace.places import Places, Watched
from lightning_xai.trace.recording import require_python_forward
from lightning_xai.trace.tokens import arranged


def last_spatial_layer(model: nn.Module, images: Tensor, calling: Calling | None = None) -> nn.Module:
    """The last layer with a spatial output on which the logits depend, found by one forward and backward pass.

    Tokens count if they lie on the image and the logits depend on them, not on the class token alone. A
    layer that is called more than once is passed over.

    Args:
        model: The classifier.
        images: Images (N,C,H,W), of which the first is passed.
        calling: What else the model is given, where the logits are, and the context to run in; None for images alone.

    Returns:
        The module; a container counts when it is the last to finish, so that a ResNet gives ``layer4``.

    Raises:
        ValueError: If there is none.
        TypeError: If the model is scripted or traced.
        RuntimeError: If its parameters are inference tensors.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> last_spatial_layer(model, torch.zeros(1, 1, 8, 8))
        ReLU()
    """
    watched, found = _spatial(model, images, calling or Calling())
    for module in found:
        return _trunk_before(watched, module) or module
    again = ", ".join(
        f"{name_of(model, module)!r} was called {n} times" for module, n in watched.calls.items() if n > 1
    )
    raise ValueError(
        "`layer=None` expected a layer, called once, with several places on the image that the logits depend on, found "
        f"none{again and f'; {again}'}. Name a layer, explain the network inside, or use larger images."
    )


def spatial_layers(model: nn.Module, images: Tensor, calling: Calling | None = None) -> list[str]:
    """The layers with a spatial output on which the logits depend, in the order in which they finish.

    Args:
        model: The classifier.
        images: Images (N,C,H,W), of which the first is passed.
        calling: As for `last_spatial_layer`.

    Returns:
        Dotted names.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> spatial_layers(model, torch.zeros(1, 1, 8, 8))
        ['0', '1']
    """
    _, found = _spatial(model, images, calling or Calling(), strict=False)
    return [name_of(model, module) for module in found][::-1]


def _telling(images: Tensor) -> Tensor:
    """The images; noise where the first is all of one value, as a black one, which may turn every rectifier off."""
    if not images.is_floating_point() or not bool((images[:1] == images[:1].flatten()[:1]).all()):
        return images
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images.shape, generator=generator).to(images)


def _spatial(
    model: nn.Module, images: Tensor, calling: Calling, *, strict: bool = True
) -> tuple[Watched, Iterator[nn.Module]]:
    """A pass, and its layers, the last first; if strict, tokens with no clear places are refused, not passed over."""
    require_python_forward(model)
    images = _telling(images)
    watched = Watched(model, images, calling, graph=True)
    # Queries, keys and values are projections: each takes but a part of what attention gets from its input.
    outputs = {
        module: output
        for module, output in watched.outputs.items()
        if output.ndim in (3, 4) and output.requires_grad and not isinstance(module, nn.Linear)
    }
    places = Places(model, images, calling, outputs, watched)
    return watched, (one for one in reversed(outputs) if _is_spatial(one, watched, places, strict))


def _is_spatial(module: nn.Module, watched: Watched, places: Places, strict: bool) -> bool:
    output = watched.outputs[module]
    is_map = watched.layouts.is_map(module, output.shape)
    if is_map and output.shape[2:].numel() == 1:
        return False
    dependence = _dependence(watched.logits, output)
    return bool(dependence.any()) and (is_map or _depends_on_patches(places, module, dependence, strict))


def _trunk_before(watched: Watched, found: nn.Module) -> nn.Module | None:
    """The last map before that of a branch which all of the image goes through, if it is no finer; None for others.

    Where images are so small that a network's last maps have one place, one branch of a block may still have several.
    """
    outputs = watched.outputs
    modules = list(outputs)
    maps = [one for one in modules[modules.index(found) :: -1] if watched.layouts.is_map(one, outputs[one].shape)]
    if found not in maps or _all_goes_through(watched, found):
        return None
    places = outputs[found].shape[2:].numel()
    coarse = [one for one in maps if 1 < outputs[one].shape[2:].numel() <= places]
    return next((one for one in coarse if _all_goes_through(watched, one)), None)


def _all_goes_through(watched: Watched, module: nn.Module) -> bool:
    """Whether there is no way from the image to the logits beside the output of a module."""
    seen, ways = {watched.outputs[module].grad_fn}, [watched.logits.grad_fn]
    while ways:
        node = ways.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is watched.image:
            return False
        seen.add(node)
        ways += [one for one, _ in node.next_functions]
    return True


def _depends_on_patches(places: Places, module: nn.Module, dependence: Tensor, strict: bool) -> bool:
    try:
        return bool(arranged(dependence, places.of(module, dependence), 1).any())
    except ValueError:
        # An earlier layer would be a guess, unless the logits depend on a class token alone.
        if strict and places.are_likely(module) and dependence.float().mean() > 0.5:
            raise
        return False


def _dependence(logits: Tensor, output: Tensor) -> Tensor:
    """On which entries of an output logits depend: there is a way from one to the other."""
    if not logits.requires_grad:
        return torch.zeros_like(output, dtype=torch.bool)
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
        # NaN passes weights of 0, too, with which many heads begin.
        seeds = torch.full_like(logits, torch.nan)
        (found,) = torch.autograd.grad(
            logits, output, seeds, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    return found.detach() != 0
