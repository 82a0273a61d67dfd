"""The check without a reference: does one number that all classes share dominate what the raw logits say?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_xai.attribution import channel_sum
from lightning_xai.integrity.final_layer import gives_logits
from lightning_xai.integrity.heads import UNDECIDED, UNTRAINED, check_logits, head_caveats, looks_untrained
from lightning_xai.integrity.measures import class_weighted_maps, common_mode_share, mean_row_share, median
from lightning_xai.integrity.verdict import Threshold, Verdict
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import at_least_float32, centered, predicted, second_best
from lightning_xai.trace import (
    Calling,
    Capture,
    Trace,
    find_layer,
    is_image_batch,
    last_affine_call,
    last_spatial_layer,
    name_of,
    run,
)
from lightning_xai.types import OneLayer, Score


def mean_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the classes, ``mean_j z_j``: what a common shift moves, and no softmax sees.

    Args:
        logits: Logits (N,K).
        targets: Not used.

    Returns:
        Scores (N,), float32 or better.

    Example:
        >>> mean_logit(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
        tensor([2.])
    """
    return at_least_float32(logits).mean(1)


@dataclass(frozen=True, eq=False)
class Inspection:
    """What the check without a reference found.

    Attributes:
        layer: Name of the explained layer.
        shares: Share of the common-mode gradient at the layer, (N,) in [0, 1].
        pooled_shares: The same of the gradients averaged over positions, with which Grad-CAM weighs, (N,).
        disagreement: One minus the rank correlation of the raw logit's and the centred score's map, before any ReLU,
            (N,) in [0, 2] by name of the method: what a user would see.
        class_similarity: Rank correlation of the raw Grad-CAM maps of the two best classes, (N,) in [-1, 1]: near 1
            where every class gets the same map. Told, not judged: related classes resemble one another.
        image_shares: Share of the common-mode gradient at the image, (N,), if asked for.
        mean_row: Share of the final layer's weights that is common to all classes; None where that layer's output is
            not the logits, or it is not known.
        position: Row and column of the layer at which the common-mode gradient is largest.
        concentration: Share of its square that lies at that position.
        caveats: Reasons for which clean models of this kind may share a lot, in words.
        threshold: From which suspicion on a logit shift is reported.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[3].weight.data = torch.tensor([[40.0, -20.0], [-20.0, 40.0]])
        >>> inspection = inspect_model(model, torch.rand(8, 2, 4, 4))
        >>> inspection.figures["mean row"]
        0.1
    """

    layer: str
    shares: Tensor
    pooled_shares: Tensor
    disagreement: dict[str, Tensor]
    class_similarity: Tensor
    image_shares: Tensor | None
    mean_row: float | None
    position: tuple[int, int]
    concentration: float
    caveats: tuple[str, ...] = ()
    threshold: Threshold = field(default_factory=Threshold)

    @property
    def figures(self) -> dict[str, float]:
        """The numbers that are judged: medians over the images, where they are defined, and the mean row."""
        judged = {"share": self.shares, "pooled share": self.pooled_shares}
        if self.image_shares is not None:
            judged["image share"] = self.image_shares
        judged |= {f"{name} disagreement": values for name, values in self.disagreement.items()}
        numbers = {name: median(values) for name, values in judged.items()}
        return numbers if self.mean_row is None else numbers | {"mean row": self.mean_row}

    @property
    def suspicion(self) -> float:
        """The largest of the figures; those that are not defined are left out."""
        return max((value for value in self.figures.values() if not math.isnan(value)), default=math.nan)

    @property
    def verdict(self) -> Verdict:
        """Clean, logit shift, or cannot tell."""
        if self.suspicion <= self.threshold.value:
            return Verdict.CLEAN
        knows_no_better = math.isnan(self.suspicion) or (self.caveats and not self.threshold.clean_models)
        return Verdict.CANNOT_TELL if knows_no_better else Verdict.LOGIT_SHIFT

    def __str__(self) -> str:
        spread = {"share": self.shares, "pooled share": self.pooled_shares, "image share": self.image_shares}
        lines = [f"{self.verdict} at {self.layer!r}, {len(self.shares)} images"]
        for name, value in self.figures.items():
            values = spread.get(name)
            p95 = "" if values is None else f"  (p95 {_quantile(values, 0.95):.4f})"
            lines.append(f"  {name:<24}{value:9.4f}{p95}")
        lines.append(f"  {'class similarity':<24}{median(self.class_similarity):9.4f}  (not judged)")
        lines.append(f"  {'threshold':<24}{self.threshold.value:9.4f}  ({str(self.threshold).partition(' (')[2]}")
        if self.verdict is not Verdict.CLEAN:
            lines.append(f"  largest at position {self.position}, {self.concentration:.0%} of the common gradient")
            lines += [f"  {caveat}" for caveat in self.caveats]
        return "\n".join(lines)


def inspect_model(
    model: nn.Module,
    images: Tensor,
    *,
    layer: OneLayer = None,
    image_level: bool = False,
    threshold: Threshold | None = None,
    calling: Calling | None = None,
) -> Inspection:
    """Look for a logit shift in a classifier alone, without a reference.

    Raw-logit maps can be trusted as far as the gradient of the mean logit is small beside that of the centred score.
    The loss of a softmax does not depend on the mean logit, so that training hardly moves it, and what is added to all
    logits moves nothing else. A shift is seen at the layer it is computed from and at those before: inspect every layer
    at which maps are made, and the image for maps made there. Edits that act on triggers, away from the probes, or on
    the differences between classes are not seen.

    Clean models can share a lot too: untrained or frozen heads, and those trained with another loss (sigmoids,
    regression or distillation of logits, terms on the energy). Where logits or weights show it
    (`head_caveats`, `looks_untrained`), the
    verdict is that a reference is needed; calibrate the threshold for others (`calibrated_threshold`).

    One pass with three sweeps from the logits to the layer; with ``image_level`` two sweeps to the image more; without
    a layer one pass of one image more. Measured on ResNet-20: 1.2 forward passes of the probes, 3.5 with the image. The
    model runs in evaluation mode and is as before afterwards.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K), K >= 2, for a softmax.
        images: Probe images (N,C,H,W); some 32 of different classes.
        layer: Where maps are made: dotted name, module, or None for the last layer with a spatial output.
        image_level: Whether to measure the share at the image too.
        threshold: From which suspicion on to report; None for the uncalibrated default.
        calling: What else the model is given, where its logits are, and the context it runs in.

    Returns:
        The result, with a ``verdict``; it prints as a table.

    Raises:
        ValueError: If images or logits have the wrong shape or are not finite, there is one logit only, all probes are
            of one predicted class, or the layer does not exist.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[3].weight.data = torch.tensor([[40.0, -30.0], [-30.0, 40.0]])
        >>> images = torch.rand(8, 2, 4, 4)
        >>> print(inspect_model(model, images).verdict)
        no sign of a logit shift
        >>> model[3].weight.data += 100  # to all rows alike: no softmax sees it
        >>> print(inspect_model(model, images).verdict)
        logit shift
    """
    _check_images(images)
    module = last_spatial_layer(model, images, calling) if layer is None else find_layer(model, layer)
    with last_affine_call(model) as call:
        trace = run(model, images, Capture({layer: module}, image_gradient=image_level), calling)
    mean_row = None
    if call.module is not None and gives_logits(call, trace.logits):
        mean_row = mean_row_share(call.module.weight)
    name = name_of(model, module)
    return inspect_trace(trace, layer, name=name, image_level=image_level, mean_row=mean_row, threshold=threshold)


def inspect_trace(
    trace: Trace,
    layer: OneLayer,
    *,
    name: str | None = None,
    image_level: bool = False,
    mean_row: float | None = None,
    threshold: Threshold | None = None,
) -> Inspection:
    """The check of `inspect_model` on a pass that was made already, such as one heard during validation.

    Args:
        trace: One forward pass that captured the layer, and for ``image_level`` the image's gradient.
        layer: The layer, as it was named in the capture.
        name: What the layer is called in the result.
        image_level: Whether to measure the share at the image too.
        mean_row: Common share of the final layer's weights, where known (`mean_row_share`).
        threshold: From which suspicion on to report; None for the uncalibrated default.

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
    caveats = head_caveats(trace.logits)
    if UNDECIDED not in caveats:  # an untrained network may well prefer one class
        _check_probes(trace.logits)
    with trace.computing():
        targets = predicted(trace.logits)
        common = _gradient(trace, mean_logit, targets, layer)
        rest = _gradient(trace, centered, targets, layer)
        runner_up = _gradient(trace, centered, second_best(trace.logits), layer)
        activations = trace.activation(layer)
        raw, zero_sum, raw_of_runner_up = (
            class_weighted_maps(activations, gradients) for gradients in (common + rest, rest, common + runner_up)
        )
        disagreement = {method: 1 - rank_correlation(raw[method], zero_sum[method]) for method in raw}
        image_shares = None
        if image_level:
            image_shares, disagreement["input gradient"] = _at_image(trace, targets)
        position, concentration = _largest(common)
        shares, pooled_shares = (
            common_mode_share(common, rest),
            common_mode_share(common.mean((2, 3)), rest.mean((2, 3))),
        )
        if looks_untrained([median(shares), median(pooled_shares)], mean_row, trace.logits.shape[1]):
            caveats = (*caveats, UNTRAINED)
        return Inspection(
            layer=str(layer) if name is None else name,
            shares=shares,
            pooled_shares=pooled_shares,
            disagreement=disagreement,
            class_similarity=rank_correlation(raw["Grad-CAM"], raw_of_runner_up["Grad-CAM"]),
            image_shares=image_shares,
            mean_row=mean_row,
            position=position,
            concentration=concentration,
            caveats=caveats,
            threshold=threshold or Threshold(),
        )


class OneClassError(ValueError):
    """All probes are predicted as one class: they are badly chosen, or the network has only begun to learn."""


def _gradient(trace: Trace, score: Score, targets: Tensor, layer: OneLayer) -> Tensor:
    return at_least_float32(trace.gradient(score, targets, of=layer))


def _at_image(trace: Trace, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Shares at the image, and one minus the rank correlation of the raw and the centred input gradient, (N,) each."""
    common, rest = (at_least_float32(trace.image_gradient(score, targets)) for score in (mean_logit, centered))
    return common_mode_share(common, rest), 1 - rank_correlation(channel_sum(common + rest), channel_sum(rest))


def _largest(gradients: Tensor) -> tuple[tuple[int, int], float]:
    """Where the gradients (N,D,h,w) are largest, and how much of their square lies there; each image counts alike."""
    energy = gradients.square().sum(1)
    total = energy.sum((1, 2), keepdim=True)
    energy = (energy / torch.where(total == 0, 1, total)).mean(0)
    row, column = divmod(int(energy.argmax()), energy.shape[1])
    return (row, column), float(energy.max())


def _quantile(values: Tensor, q: float) -> float:
    return float(values.double().nanquantile(q))


def _check_images(images: Tensor) -> None:
    if not is_image_batch(images) or 0 in images.shape or not images.isfinite().all():
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"`images` expected finite probe images (N, C, H, W) of a floating dtype, got {found}.")


def _check_probes(logits: Tensor) -> None:
    classes = predicted(logits).unique()
    if len(logits) > 1 and len(classes) == 1:
        raise OneClassError(
            f"`images` expected probes of several classes, got {len(logits)} that are all predicted as class "
            f"{int(classes)}. Shuffle the images they are taken from."
        )
