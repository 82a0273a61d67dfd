"""Methods that look at the gradient of the score with respect to the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_xai.attribution.base import ScoredAttribution
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Rectifiers, Trace


def channel_sum(gradients: Tensor) -> Tensor:
    """The signed sum over colour channels, (N,H,W): how the score answers to a change of brightness.

    Example:
        >>> import torch
        >>> channel_sum(torch.tensor([[[[1.0]], [[-3.0]]]]))
        tensor([[[-2.]]])
    """
    return at_least_float32(gradients).sum(1)


def channel_max(gradients: Tensor) -> Tensor:
    """The largest magnitude over colour channels, (N,H,W) (Simonyan et al. 2014).

    Example:
        >>> import torch
        >>> channel_max(torch.tensor([[[[1.0]], [[-3.0]]]]))
        tensor([[[3.]]])
    """
    return at_least_float32(gradients).abs().amax(1)


@dataclass(frozen=True)
class InputGradient(ScoredAttribution):
    """The gradient of the score with respect to the image.

    Simonyan et al., "Deep Inside Convolutional Networks", 2014, https://arxiv.org/abs/1312.6034. One backward pass
    through the whole network.

    Attributes:
        score: The number that is explained.
        reduce: How colour channels become one map: `channel_sum` (signed) or `channel_max`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> from lightning_xai.scores import pre_softmax
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = nn.init.constant_(model[1].weight, 0.5)
        >>> explain(model, torch.ones(1, 1, 2, 2), 0, attributions=InputGradient(score=pre_softmax))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """

    reduce: Callable[[Tensor], Tensor] = channel_sum
    needs_image_gradient = True

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed where ``reduce`` is."""
        return self.reduce(trace.image_gradient(self.score, targets))


@dataclass(frozen=True)
class InputXGradient(ScoredAttribution):
    """The image times the gradient of the score with respect to it.

    Shrikumar et al., "Not Just a Black Box", 2016, https://arxiv.org/abs/1605.01713. The first-order estimate of what
    the score loses when a pixel becomes 0 (the mean colour of standardised images); in rectifier networks without
    biases the map of a logit sums to the logit. One backward pass through the whole network. Fields as of
    `InputGradient`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> from lightning_xai.scores import pre_softmax
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, -1.0]])
        >>> explain(model, torch.tensor([[[[2.0, 3.0]]]]), 1, attributions=InputXGradient(score=pre_softmax))
        tensor([[[ 2., -3.]]])
    """

    reduce: Callable[[Tensor], Tensor] = channel_sum
    needs_image_gradient = True

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed where ``reduce`` is."""
        return self.reduce(at_least_float32(trace.images) * trace.image_gradient(self.score, targets))


@dataclass(frozen=True)
class GuidedGradient(ScoredAttribution):
    """The gradient with respect to the image by guided backpropagation: no negative gradient enters a rectifier.

    Springenberg et al., "Striving for Simplicity", 2015, https://arxiv.org/abs/1412.6806. For rectifier networks. It
    draws edges well and depends little on the class (Adebayo et al., "Sanity Checks for Saliency Maps", 2018). One
    backward pass through the whole network.

    ``rectifiers="all"`` goes beyond the papers, which know ReLU alone: the same rule at every unbounded one-sided
    activation, as EfficientNet, ConvNeXt, MobileNetV3 and transformers have them. It behaves as at ReLU where small
    networks had their ReLU swapped and were trained on (``recipes/smooth_rectifiers.py``, 3 seeds, 280 images): with
    GELU and SiLU the maps rank pixels as with ReLU (correlation 0.96 and 0.93), point at the object on 78 and 77 % of
    the images (ReLU 75 %, seeds from 67 to 86; plain gradients 69 to 74 %), and stay more alike under random weights
    (0.72 and 0.71, ReLU 0.62; plain gradients 0.40 to 0.52), the weakness of the rule.

    Attributes:
        score: The number that is explained. The rule is not linear in the score: its maps for a score and for
            another scale of it agree, those for a score and its negative are unrelated.
        reduce: How colour channels become one map: `channel_sum` (signed) or `channel_max`.
        rectifiers: Where the gradient is clamped: ``"relu"``, the papers' (ReLU, ReLU6, clamps at zero), or ``"all"``,
            GELU, SiLU, ELU, LeakyReLU and their like as well. Gates are none.

    Raises:
        ValueError: If ``rectifiers`` is something else.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> from lightning_xai.scores import pre_softmax
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> model[2].weight.data = torch.tensor([[1.0, -1.0]])
        >>> explain(model, torch.ones(1, 1, 1, 2), 1, attributions=GuidedGradient(score=pre_softmax))
        tensor([[[1., 0.]]])
    """

    reduce: Callable[[Tensor], Tensor] = channel_sum
    rectifiers: Rectifiers = "relu"
    needs_image_gradient = True

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed where ``reduce`` is."""
        return self.reduce(trace.image_gradient(self.score, targets, rectifiers=self.rectifiers))
