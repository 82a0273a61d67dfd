"""The numbers on which judgements rest, as pure functions of gradients, maps and weights."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from lightning_xai.ranks import correlation_of_ranks, unit_ranks
from lightning_xai.scores import at_least_float32


def common_mode_share(common: Tensor, centered: Tensor) -> Tensor:
    """Share of the gradient that is common to all classes, ``|g_cm|^2 / (|g_cm|^2 + |g_c|^2)``.

    ``g_cm`` is the gradient of the mean logit, ``g_c`` that of the class's logit minus the mean logit: the gradient of
    the raw logit is their sum. A shift ``t(x)`` of all logits adds its gradient to ``g_cm`` alone, and training with
    softmax and cross-entropy hardly moves the mean logit, so that the share of a trained network is near 0.

    Args:
        common: Gradient of the mean logit (N,...), at the image, at a layer, or averaged over a layer's positions.
        centered: Gradient of ``z_c - mean_j z_j`` there, of the same shape.

    Returns:
        Shares (N,) in [0, 1], float32 or better; 0 where both gradients are 0, NaN where one of them is.

    Example:
        >>> common_mode_share(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([0.3600])
    """
    common, centered = at_least_float32(common).flatten(1), at_least_float32(centered).flatten(1)
    largest = torch.maximum(common.abs().amax(1), centered.abs().amax(1))[:, None]
    scale = torch.where(largest == 0, 1, largest)  # squares neither overflow nor underflow
    first, second = (common / scale).square().sum(1), (centered / scale).square().sum(1)
    total = first + second
    return first / torch.where(total == 0, 1, total)


def mean_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the classes, ``mean_j z_j``: what a common shift moves, and no softmax sees.

    Example:
        >>> mean_logit(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
        tensor([2.])
    """
    return at_least_float32(logits).mean(1)


def mean_row_share(weight: Tensor) -> float:
    """Share of a final layer's weights that is common to all classes, ``|m|^2 / (|m|^2 + mean_j |W_j - m|^2)``.

    ``m`` is the mean row. A vector added to every row shifts all logits alike and shows here alone: no class's
    probability changes, nor any shape. Random rows have about ``1/K``; training with softmax and cross-entropy leaves
    the mean row where it was (weight decay shrinks it) while the others grow. Of use only where nothing non-linear
    follows the layer.

    Args:
        weight: Weight (K,...), one row for each class.

    Returns:
        The share, in [0, 1]; 0 for weights that are all 0.

    Example:
        >>> mean_row_share(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        0.5
    """
    rows = weight.detach().double().flatten(1)
    mean = rows.mean(0)
    common, rest = mean.square().sum(), (rows - mean).square().sum(1).mean()
    return float(common / (common + rest)) if common > 0 else 0.0


def median(values: Tensor) -> float:
    """The median of the values that are defined, NaN without any; of an even number the mean of the middle two.

    So the median of one minus the values is one minus the median, which does not hold for torch's lower median.

    Example:
        >>> median(torch.tensor([1.0, 2.0, float("nan")]))
        1.5
    """
    return float(values.double().nanquantile(0.5))


def agreements(*maps: Tensor) -> list[Tensor]:
    """Rank correlation (N,) of maps (N,h,w) for each pair; 1 where both are flat, 0 where one is flat or holds NaN.

    Example:
        >>> agreements(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[2.0, 3.0]]]))
        [tensor([0.], dtype=torch.float64), tensor([0.], dtype=torch.float64), tensor([1.0000], dtype=torch.float64)]
    """
    ranked = [(one.flatten(1).amax(1) == one.flatten(1).amin(1), unit_ranks(one)) for one in maps]
    return [
        torch.where(flat & too, 1.0, correlation_of_ranks(ranks, others).nan_to_num(0.0))
        for (flat, ranks), (too, others) in combinations(ranked, 2)
    ]


def class_weighted_maps(activations: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """Grad-CAM and HiResCAM before their ReLU, at the layer's resolution.

    ``sum_k mean(g_k) A_k`` (Selvaraju et al. 2017) and ``sum_k g_k A_k`` (Draelos and Carin 2020). Both are linear in
    the gradient: the maps of the raw logit are those of the mean logit plus those of the centred one.

    Example:
        >>> maps = class_weighted_maps(torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, -1.0]]]]))
        >>> maps["Grad-CAM"].tolist(), maps["HiResCAM"].tolist()
        ([[[1.0, 1.0]]], [[[3.0, -1.0]]])
    """
    activations, gradients = at_least_float32(activations), at_least_float32(gradients)
    pooled = torch.einsum("ndhw,nd->nhw", activations, gradients.mean((2, 3)))
    return {"Grad-CAM": pooled, "HiResCAM": (activations * gradients).sum(1)}
