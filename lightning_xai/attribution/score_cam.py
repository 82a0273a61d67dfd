"""Score-CAM: channels weighted by what the score makes of the image seen through each of them.

Weights (N,D) are made of ``increases`` (N,D), by how much each channel's image raises the score, and of ``varied``,
which channels count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.attribution.base import LayerMaps, ScoredAttribution, upsample
from lightning_xai.attribution.cam import weighted_sum
from lightning_xai.attribution.paths import baseline_images, require_standardization
from lightning_xai.attribution.sampling import require_batch_size
from lightning_xai.baselines import Baseline
from lightning_xai.scores import at_least_float32
from lightning_xai.standard import Standard
from lightning_xai.trace import Trace
from lightning_xai.types import OneLayer


def softmax_weights(increases: Tensor, varied: Tensor) -> Tensor:
    """Channel weights of Score-CAM's algorithm 1: the softmax of the increases over the channels.

    For logits; what all increases have in common, such as the score of the baseline, cancels. Increases of
    probabilities lie within [-1, 1], so that their weights can hardly differ: on SqueezeNet the map is then that of the
    mean activation, whatever the class.

    Example:
        >>> softmax_weights(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    return increases.masked_fill(~varied, -torch.inf).softmax(1).masked_fill(~varied, 0.0)


def increase_weights(increases: Tensor, varied: Tensor) -> Tensor:
    """Channel weights of Score-CAM's definition, Torres Figueroa et al. 2024 eq. 6: the increases themselves.

    For probabilities. Most channels alone lower a logit, and then count against the map.

    Example:
        >>> increase_weights(torch.tensor([[0.5, -1.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[ 0.5000, -1.0000,  0.0000]])
    """
    return increases.masked_fill(~varied, 0.0)


def channel_masks(channels: Tensor, images: Tensor) -> Tensor:
    """Channels (M,h,w) as masks (M,H,W) in [0, 1]: brought to image size, then min-max of each; 0 for a constant one.

    Example:
        >>> channel_masks(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 3, 1, 2))
        tensor([[[0., 1.]]])
    """
    large = upsample(channels, images)
    low = large.amin((1, 2), keepdim=True)
    spread = large.amax((1, 2), keepdim=True) - low
    return (large - low) / torch.where(spread > 0, spread, 1)


@dataclass(frozen=True)
class ScoreCAM(ScoredAttribution, LayerMaps):
    """Score-CAM: channels weighted by how much the image, seen through the channel, raises the score over a baseline.

    ``C_k = S(x * m_k + x_b * (1 - m_k)) - S(x_b)`` with ``m_k`` from `channel_masks`, Wang et al., "Score-CAM",
    2020, https://arxiv.org/abs/1910.01279, Torres Figueroa et al. 2024 eq. 6. With the default baseline of zeros the
    image is multiplied by the mask as the network gets it, as the published code does: what is hidden has the mean
    colour. No gradient is taken. One forward pass for each channel that is not constant; constant ones mask nothing and
    get no weight.

    Attributes:
        layer: As for `GradCAM`; each layer's channels are passed by themselves.
        score: The number that is explained. A logit, `centered` or
            `pre_softmax`, goes with ``weights=softmax_weights``, the probability
            `post_softmax` with ``weights=increase_weights``.
        weights: What the increases become: `softmax_weights`, as in the paper's algorithm, or
            `increase_weights`, as in its definition and in the published code.
        baseline: What stands where the mask is 0: a tensor in the images' space that broadcasts to (N,C,H,W), None for
            zeros, or a function such as `black`.
        mean: Mean by which the images were standardised, or what says both (`Standard`); for a function only.
        std: Standard deviation by which they were standardised.
        batch_size: How many masked images run at once; None for as many as there are images. On a GPU larger is
            faster. Images given in ``torch.channels_last`` are passed so, in which CPUs run many networks faster.
        relu: Whether to keep the positive part only, as the paper does.

    Raises:
        ValueError: If ``batch_size`` is less than 1, a baseline function lacks ``mean`` and ``std``, or ``layer`` is an
            empty sequence.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=ScoreCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    needs_reruns = True

    weights: Callable[[Tensor, Tensor], Tensor] = softmax_weights
    baseline: Baseline | Tensor | None = None
    mean: Standard | None = None
    std: Sequence[float] | None = None
    batch_size: int | None = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_batch_size(self.batch_size)
        require_standardization(self._baseline, self.mean, self.std)

    @property
    def _baseline(self) -> Baseline | Tensor:
        return torch.zeros(()) if self.baseline is None else self.baseline

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        baseline = at_least_float32(baseline_images(trace.images, self._baseline, self.mean, self.std))
        hidden = self._scores(trace, baseline.clone(), targets, torch.arange(len(targets)))
        return [self._map(trace, targets, layer, baseline, hidden) for layer in self.layers()]

    def _map(self, trace: Trace, targets: Tensor, layer: OneLayer, baseline: Tensor, hidden: Tensor) -> Tensor:
        activations, images = at_least_float32(trace.activation(layer)), at_least_float32(trace.images)
        varied = activations.amax((2, 3)) > activations.amin((2, 3))
        increases = hidden.new_zeros(varied.shape)
        pairs, at_once = varied.nonzero(), self.batch_size or len(targets)
        for start in range(0, len(pairs), at_once):
            of, channel = pairs[start : start + at_once].unbind(1)
            masks = channel_masks(activations[of, channel], images)[:, None]
            own = of if len(images) > 1 else slice(None)  # a single image needs no copies
            scores = self._scores(trace, torch.lerp(baseline[own], images[own], masks), targets[of], of)
            increases = increases.index_put((of, channel), scores - hidden[of])
        return weighted_sum(activations, self.weights(increases, varied))

    def _scores(self, trace: Trace, images: Tensor, targets: Tensor, of: Tensor) -> Tensor:
        images = images.to(trace.images.dtype).contiguous(memory_format=_memory_format(trace.images))
        if trace.create_graph:  # which costs more, and is needed only for maps that are to be differentiated through it
            return self.score(trace.rerun(images, rows=of).logits, targets)
        return self.score(trace.predict(images, rows=of, ours=True), targets)


def _memory_format(images: Tensor) -> torch.memory_format:
    # that of the caller, who knows whether the network can take it: a `view` inside may refuse channels_last
    channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
