"""The check without a reference: do the raw logit's maps show what the centred score's do?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai.attribution import Attribution, InputGradient
from lightning_xai.explain import capture_for
from lightning_xai.integrity.code import autograd_functions, hooks_of
from lightning_xai.integrity.evidence import methods_of
from lightning_xai.integrity.final_layer import gives_logits
from lightning_xai.integrity.heads import UNDECIDED, UNTRAINED, check_logits, innocent_reasons, looks_untrained
from lightning_xai.integrity.inspection import Inspection
from lightning_xai.integrity.maps import signed_maps
from lightning_xai.integrity.measures import agreements, common_mode_share, mean_logit, mean_row_share, median
from lightning_xai.integrity.verdict import Threshold
from lightning_xai.kinds import require_kinds
from lightning_xai.scores import at_least_float32, centered, log_odds, pre_softmax, predicted, resolve_targets
from lightning_xai.trace import (
    Calling,
    Capture,
    Trace,
    find_layer,
    last_affine_call,
    last_spatial_layer,
    name_of,
    require_images,
    require_logits,
    require_model,
    run,
)
from lightning_xai.types import OneLayer, Score, Targets


def inspect_model(
    model: nn.Module,
    images: Tensor,
    *,
    layer: OneLayer = None,
    targets: Targets = None,
    image_level: bool = False,
    attributions: Mapping[str, Attribution] | None = None,
    threshold: Threshold | None = None,
    calling: Calling | None = None,
) -> Inspection:
    """Compare the maps of a classifier's raw logit with those of the centred score, without a reference.

    Both are made as `explain` makes them, each by a sweep of its own, for the predicted class (or ``targets``). The
    verdict says:

    * clean: on every probe the rank correlation of the two is at least 0.975 for each method. That is all that is
      promised of the model as it stands; and no edit of a model that was clean before has then moved a raw map of these
      probes to a correlation under 0.9 with what it was.
    * raw and centred maps differ: they do, and training may be why: a head that is new, has two or three classes, was
      trained for sigmoids, gives distances or log-probabilities, or is a part of a larger one. No accusation; what in
      the logits could be the reason is named, and which score stands apart.
    * logit shift: moreover nearly all of the gradient is common to all classes, as no unaltered network was found to
      have it on maps that look different (``recipes/integrity_roc.py`` measures how often one has).
    * false gradient: the raw logit's gradient is not that of the mean logit and the centred score together, as the
      gradients of any function are: a hook or an autograd function tells explanations apart.

    A shift is seen at the layer it is computed from and at those before: pass the methods with which maps are made, so
    that their layers are looked at too, and ask for the image for maps made there. The table in
    `lightning_xai.integrity` says which edits are not seen.

    One pass with four sweeps from the logits to the layer, as many to each further one, and what the methods cost; with
    ``image_level`` four to the image more; without a layer one pass of one image more. The model runs in evaluation
    mode and is as before afterwards.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K), K >= 2, for a softmax.
        images: Probe images (N,C,H,W); some 32 of different classes.
        layer: Where maps are made: dotted name, module, or None for the last layer with a spatial output.
        targets: Classes whose maps are compared, as in `explain`; None for the predicted ones.
        image_level: Whether to look at the gradient of the image too.
        attributions: Methods whose maps are compared, with Grad-CAM and HiResCAM at the layer, such as those that a
            run makes; each needs a score.
        threshold: From which suspicion on to report a shift; None for the default.
        calling: What else the model is given, where its logits are, and the context it runs in.

    Returns:
        The result, with a ``verdict``; it prints as a table.

    Raises:
        ValueError: If images or logits have the wrong shape or are not finite, there is one logit only, all probes are
            of one predicted class, the layer does not exist, or a method explains no score.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[3].weight.data = torch.tensor([[40.0, -40.0], [-40.0, 40.0]])
        >>> images = torch.rand(8, 2, 4, 4)
        >>> print(inspect_model(model, images).verdict)
        raw and centred maps agree
        >>> model[3].weight.data += 500  # to all rows alike: no softmax sees it
        >>> print(inspect_model(model, images).verdict)
        logit shift
    """
    require_model(model, calling)
    require_images(images)
    require_kinds(inspect_model, image_level=image_level, threshold=threshold)
    methods = _methods(attributions, image_level)
    module = last_spatial_layer(model, images, calling) if layer is None else find_layer(model, layer)
    automatic = module
    if layer is not None and any(one is None for method in methods.values() for one in method.layers()):
        automatic = last_spatial_layer(model, images, calling)
    capture = Capture({layer: module}) | capture_for(model, methods.values(), automatic)
    with last_affine_call(model) as call:
        trace = run(model, images, capture, calling)
    mean_row = None
    if call.module is not None and gives_logits(call, trace.logits):
        mean_row = mean_row_share(call.module.weight)
    return inspect_trace(
        trace,
        layer,
        name=name_of(model, module),
        targets=targets,
        image_level=image_level,
        attributions=attributions,
        mean_row=mean_row,
        threshold=threshold,
    )


def inspect_trace(
    trace: Trace,
    layer: OneLayer,
    *,
    name: str | None = None,
    targets: Targets = None,
    image_level: bool = False,
    attributions: Mapping[str, Attribution] | None = None,
    mean_row: float | None = None,
    threshold: Threshold | None = None,
) -> Inspection:
    """The check of `inspect_model` on a pass that was made already, such as one heard during validation.

    A model cannot tell such a check from the explanations that are made of the same pass.

    Args:
        trace: One forward pass that captured the layer, what the methods need, and for ``image_level`` the image's
            gradient.
        layer: The layer, as it was named in the capture.
        name: What the layer is called in the result.
        targets: Classes whose maps are compared; None for the predicted ones.
        image_level: Whether to look at the gradient of the image too.
        attributions: Methods whose maps are compared too.
        mean_row: Common share of the final layer's weights, where known (`mean_row_share`).
        threshold: From which suspicion on to report a shift; None for the default.

    Returns:
        The result.

    Raises:
        ValueError: If the logits are not finite, there is one only, or all probes are of one predicted class.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> trace = run(model, torch.rand(8, 2, 4, 4), Capture({"0": model[0]}))
        >>> inspect_trace(trace, "0").shares.shape
        torch.Size([8])
    """
    check_logits(trace.logits)
    require_logits(trace)
    reasons = innocent_reasons(trace.logits)
    if UNDECIDED not in reasons:  # an untrained network may well prefer one class
        _check_probes(trace.logits)
    methods = _methods(attributions, image_level)
    with trace.computing():
        classes = resolve_targets(targets, trace.logits)
        raw, rest, odds = (
            signed_maps(trace, layer, classes, score, methods) for score in (pre_softmax, centered, log_odds)
        )
        agree = {method: agreements(raw[method], rest[method], odds[method]) for method in raw}
        here = _place(trace, classes, layer)
        others = _other_layers(trace, layer, methods)
        elsewhere = {other: _place(trace, classes, one) for other, one in others.items()}
        if image_level:
            elsewhere["image"] = _place(trace, classes, None, image=True)
        position, concentration = _largest(here.common)
        if looks_untrained([median(here.shares), median(here.pooled)], mean_row, trace.logits.shape[1]):
            reasons = (*reasons, UNTRAINED)
        functions = tuple(f"autograd function {one}" for one in autograd_functions(trace.nodes))
        return Inspection(
            layer=str(layer) if name is None else name,
            disagreement={method: 1 - one[0] for method, one in agree.items()},
            raw_against_log_odds={method: 1 - one[1] for method, one in agree.items()},
            centered_against_log_odds={method: 1 - one[2] for method, one in agree.items()},
            shares=here.shares,
            pooled_shares=here.pooled,
            elsewhere={other: one.largest for other, one in elsewhere.items()},
            nonlinearity=torch.stack([one.nonlinearity for one in (here, *elsewhere.values())]).amax(0),
            tolerance=2 * torch.finfo(trace.activation(layer).dtype).eps ** 0.5,
            mean_row=mean_row,
            position=position,
            concentration=concentration,
            hooks=(*(place for place, _ in hooks_of(trace.model)), *functions),
            reasons=reasons,
            threshold=threshold or Threshold(),
        )


class OneClassError(ValueError):
    """All probes are predicted as one class: they are badly chosen, or the network has only begun to learn."""


def _methods(attributions: Mapping[str, Attribution] | None, image_level: bool) -> dict[str, Attribution]:
    return methods_of(attributions) | ({"input gradient": InputGradient()} if image_level else {})


class _Place(NamedTuple):
    """What all classes share of the gradients at a layer, or at the image."""

    common: Tensor
    shares: Tensor
    pooled: Tensor
    nonlinearity: Tensor

    @property
    def largest(self) -> Tensor:
        """Of both shares, (N,)."""
        return torch.maximum(self.shares, self.pooled)


def _place(trace: Trace, targets: Tensor, of: OneLayer, *, image: bool = False) -> _Place:
    """The sweeps of raw logit and centred score were made for the maps already."""

    def gradient(score: Score) -> Tensor:
        return trace.image_gradient(score, targets) if image else trace.gradient(score, targets, of=of)

    raw, rest, mean = (at_least_float32(gradient(score)) for score in (pre_softmax, centered, mean_logit))
    common = raw - rest
    shares = common_mode_share(common, rest)
    pooled = shares if image else common_mode_share(common.mean((2, 3)), rest.mean((2, 3)))
    sizes = (_norms(raw) + _norms(rest)).clamp(min=torch.finfo(raw.dtype).tiny)
    return _Place(common, shares, pooled, _norms(common - mean) / sizes)


def _other_layers(trace: Trace, layer: OneLayer, methods: Mapping[str, Attribution]) -> dict[str, OneLayer]:
    """The layers of the methods by name, without the one that is looked at anyway."""
    wanted = [one for method in methods.values() for one in method.layers() if one != layer]
    modules = {one: trace.module(one) for one in wanted}
    return {name_of(trace.model, module): one for one, module in modules.items() if module is not trace.module(layer)}


def _norms(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1)


def _largest(gradients: Tensor) -> tuple[tuple[int, int], float]:
    """Where the gradients (N,D,h,w) are largest, and how much of their square lies there; each image counts alike."""
    energy = gradients.square().sum(1)
    total = energy.sum((1, 2), keepdim=True)
    energy = (energy / torch.where(total == 0, 1, total)).mean(0)
    row, column = divmod(int(energy.argmax()), energy.shape[1])
    return (row, column), float(energy.max())


def _check_probes(logits: Tensor) -> None:
    classes = predicted(logits).unique()
    if len(logits) > 1 and len(classes) == 1:
        raise OneClassError(
            f"`images` expected probes of several classes, got {len(logits)} that are all predicted as class "
            f"{int(classes)}. Shuffle the images they are taken from."
        )
