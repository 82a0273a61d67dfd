"""``explain()``: one forward pass, many attributions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import overload

import torch
from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.kinds import require_kinds
from lightning_xai.scores import plain, require_classes, resolve_targets
from lightning_xai.trace import (
    Calling,
    Capture,
    Postponed,
    Trace,
    current_autocast,
    find_layer,
    last_spatial_layer,
    not_finite,
    plain_tensors,
    require_images,
    require_logits,
    require_model,
    run,
)
from lightning_xai.types import Score, Targets


@overload
def explain(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    attributions: Attribution,
    score: Score | None = None,
    calling: Calling | None = None,
    create_graph: bool = False,
) -> Tensor: ...


@overload
def explain(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    attributions: Mapping[str, Attribution],
    score: Score | None = None,
    calling: Calling | None = None,
    create_graph: bool = False,
) -> dict[str, Tensor]: ...


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    attributions: Attribution | Mapping[str, Attribution],
    score: Score | None = None,
    calling: Calling | None = None,
    create_graph: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Maps that show what a classifier looked at, from one forward pass for all methods.

    The model runs in evaluation mode and is exactly as before afterwards, also after an error. Works inside
    ``torch.no_grad()`` and ``torch.inference_mode()``, with frozen parameters, and under autocast. ``layer=None`` costs
    one more forward and backward pass of one image. Where tokens lie is found with that image, too, once for a model:
    by a gradient-free pass for each row and each column of patches.

    Several threads may explain one model: their passes wait for each other. Another thread may use it for inference
    meanwhile, in evaluation mode; training it meanwhile is not safe.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K).
        images: Images (N,C,H,W), N >= 1, finite, preprocessed as the model expects them. Volumes are refused: maps,
            how they are resized, mask and are drawn, and the places of tokens would all need a third dimension.
        targets: Which class to explain: None (predicted), a class for all images, one class per image, or a function
            such as `second_best`.
        attributions: One method, or a dict of named methods.
        score: The number that is explained, for every method; None leaves each method its own.
        calling: What else the model is given, and where the logits are in what it gives:
            ``Calling((meta_data,), logits_of=lambda output: output["main"])``, say. Outputs with ``logits``, and the
            first (N,K) tensor of a tuple or dict, are understood without it. Its context takes the place of the
            autocast that is on.
        create_graph: Whether the maps can be differentiated, with respect to the parameters and to images that
            require gradients, so that one can be put in a loss. The model is in evaluation mode here too. Not for the
            LRP family and DeepLIFT, which refuse.

    Returns:
        Maps (N,H,W) for one method, a dict of them for a dict: at image size, signed where the method is, not
        normalised, float32 or better.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If images or logits have the wrong shape or are not finite, if the model gives probabilities, if
            targets are no classes, if a layer does not exist or has no spatial output, if a guided method meets a model
            without rectifiers.

    Example:
        >>> import torch
        >>> from lightning_xai import GradCAM, InputGradient
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> maps = explain(model, torch.rand(2, 3, 8, 8), attributions={"cam": GradCAM("1"), "grad": InputGradient()})
        >>> {name: tuple(values.shape) for name, values in maps.items()}
        {'cam': (2, 8, 8), 'grad': (2, 8, 8)}
    """
    methods = named_attributions({"map": attributions} if isinstance(attributions, Attribution) else attributions)
    if score is not None:
        methods = {name: method.with_score(score) for name, method in methods.items()}
    trace = trace_of(model, images, methods, targets, calling=calling, create_graph=create_graph)
    with plain_tensors():
        logits = trace.images.new_empty(len(images), 0) if isinstance(trace, Postponed) else trace.logits.detach()
        classes = resolve_targets(targets, logits)
    maps = attribute(trace, classes, methods)
    return maps["map"] if isinstance(attributions, Attribution) else maps


def trace_of(
    model: nn.Module,
    images: Tensor,
    attributions: Mapping[str, Attribution],
    targets: Targets = None,
    *,
    calling: Calling | None = None,
    create_graph: bool = False,
) -> Trace:
    """The forward pass from which `attribute` computes the maps of several methods.

    Arguments and errors are those of `explain`.

    Returns:
        The trace, for any classes; its logits are finite. It is not made before it is needed (`Postponed`) where it may
        not be: with classes that are known, of methods that look at other images alone.
    """
    require_model(model, calling)
    require_images(images)
    require_kinds(explain, create_graph=create_graph)
    images = plain(images)
    calling = replace(Calling() if calling is None else calling, context=current_autocast(images.device))
    automatic = None
    if any(layer is None for method in attributions.values() for layer in method.layers()):
        automatic = last_spatial_layer(model, images, calling)
    capture = capture_for(model, attributions.values(), automatic)
    capture = replace(capture, create_graph=create_graph)
    known = isinstance(targets, Tensor) or not (targets is None or callable(targets))
    if known and not create_graph and not any(method.needs_pass for method in attributions.values()):
        return Postponed(model, images, capture, calling, partial(_require_sound, targets=targets))
    trace = run(model, images, capture, calling)
    _require_sound(trace)
    return trace


def _require_sound(trace: Trace, rows: Tensor | None = None, targets: Targets = None) -> None:
    if not trace.logits.isfinite().all():
        wrong = not_finite(trace.logits)
        raise ValueError(f"`model` expected to give finite logits, got NaN or infinity for images {wrong}.")
    require_logits(trace)
    if targets is not None:
        require_classes(torch.as_tensor(targets), trace.logits.shape[1])


def attribute(trace: Trace, targets: Tensor, attributions: Mapping[str, Attribution]) -> dict[str, Tensor]:
    """The maps of several methods from one trace.

    Raises:
        ValueError: If a method gives maps of another shape.

    Example:
        >>> import torch
        >>> from lightning_xai.attribution import FakeCAM
        >>> from lightning_xai.trace import Capture, run
        >>> trace = run(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(1, 1, 2, 2), Capture())
        >>> attribute(trace, torch.tensor([0]), {"fake": FakeCAM()})["fake"]
        tensor([[[0., 1.],
                 [1., 1.]]])
    """
    n, _, height, width = trace.images.shape
    maps = {}
    with trace.computing():
        for name, method in attributions.items():
            values = method(trace, targets)
            maps[name] = values if trace.create_graph else values.detach()
            if maps[name].shape != (n, height, width):
                raise ValueError(
                    f"Attribution {name!r} expected to give maps (N, H, W) = {(n, height, width)}, "
                    f"got {tuple(maps[name].shape)}."
                )
    return maps


def named_attributions(attributions: Mapping[str, Attribution] | Attribution) -> dict[str, Attribution]:
    """A copy of the named methods, each checked to be one.

    Raises:
        TypeError: If it is not a mapping of names to attributions.
        ValueError: If it is empty.
    """
    if isinstance(attributions, Attribution):
        return {type(attributions).__name__: attributions}
    if not isinstance(attributions, Mapping):
        kind = type(attributions).__name__
        raise TypeError(f"`attributions` expected an Attribution or a dict of them, got {kind}.{_remedy(attributions)}")
    if not attributions:
        raise ValueError("`attributions` expected at least one method, got an empty dict.")
    for name, method in attributions.items():
        if not isinstance(method, Attribution):
            raise TypeError(f"`attributions[{name!r}]` expected an Attribution, got {method!r}.{_remedy(method)}")
    return dict(attributions)


def _remedy(value: object) -> str:
    if isinstance(value, type):
        return f" Create it: `{value.__name__}()` instead of `{value.__name__}`."
    if isinstance(value, (list, tuple)):
        return ' Give them names: `{"gradcam": GradCAM()}`.'
    return " Wrap a function of model, images and targets: `FromCallable(function)`." if callable(value) else ""


def capture_for(model: nn.Module, attributions: Iterable[Attribution], automatic: nn.Module | None = None) -> Capture:
    """What a forward pass must keep so that all attributions can be computed from it.

    Args:
        model: The model that will run.
        attributions: The methods.
        automatic: The module to take where a method has ``layer=None``.

    Returns:
        The capture.

    Raises:
        ValueError: If a layer does not exist in the model.
        TypeError: If a layer is neither a name nor a module.
    """
    methods = list(attributions)
    wanted = [layer for method in methods for layer in method.layers()]
    modules = {
        layer: automatic if layer is None and automatic is not None else find_layer(model, layer) for layer in wanted
    }
    interceptions = [method.interception for method in methods if method.interception is not None]
    return Capture(modules, any(method.needs_image_gradient for method in methods), next(iter(interceptions), None))
