"""Layer-wise relevance propagation: LRP, CLRP and SGLRP, which differ in the relevance they give the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_xai.attribution.base import Attribution
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.attribution.lrp.conservation import to_be_checked, warn_of_loss
from lightning_xai.attribution.lrp.operations import Operations
from lightning_xai.attribution.lrp.rules import InputRule, Rule, ZBox, negated_z_plus, z_plus
from lightning_xai.attribution.lrp.seeds import (
    Seed,
    absolute_other_logits,
    absolute_target_logit,
    contrastive,
    softmax_gradient,
    target_logit,
)
from lightning_xai.attribution.lrp.steps import Mark
from lightning_xai.attribution.lrp.sums import SumRule, by_sign
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Interception, Trace, intercepted


@dataclass(frozen=True)
class Rules(Interception):
    """Which rule hands relevance on where; everything else has one rule (`.operations`).

    Which for which architecture, with the share of the predicted logit that arrives at the pixels (median of 4
    photographs; MobileNetV1 with trained weights, the others with random ones and statistics of photographs):

    - VGG, ResNet, RegNet, DenseNet, RepVGG: ``Rules()``, the z+ of Iwana et al. 2019: 100 %;
    - depthwise convolutions and linear bottlenecks: ``Rules()`` keeps 1 % (MobileNetV1), 33 % (MobileNetV2), 42 %
      (EfficientNet-Lite0), 57 % (GhostNet), 80 % (MobileNetV3 small), and `LRP` says so;
      ``Rules(convolution=lossless, linear=lossless)`` keeps more than 99 % in all of them. That is no promise of better
      maps: of MobileNetV1's relevance .82 lies in the object's box with z+ and .72 with `lossless` (60 photographs,
      chance .50);
    - transformers: ``Rules(linear=Epsilon(), signed_sums=in_proportion)``, after Achtibat et al. 2024 (AttnLRP); biases
      and embeddings of positions keep their share. Those with batch normalisation (LeViT): ``Rules()``, because a
      normalisation hands on all, and sums that cancel before it would blow that up.

    Attributes:
        first: Rule of the layers that see pixels.
        convolution: Rule of the other convolutions.
        linear: Rule of the other linear layers.
        last: Rule of the last layer called; None leaves it the one of its kind.
        signed_sums: Rule of additions and averages of signed terms, as in the residual streams of ResNet V2,
            MobileNetV2 and transformers; others share in proportion.

    Example:
        >>> Rules().convolution is z_plus
        True
    """

    first: Rule | InputRule = field(default_factory=ZBox)
    convolution: Rule = z_plus
    linear: Rule = z_plus
    last: Rule | None = None
    signed_sums: SumRule = by_sign

    @contextmanager
    def __call__(self, model: nn.Module, images: Tensor) -> Iterator[None]:
        """The context in which a pass of the model runs."""
        operations = Operations(self.first, self.convolution, self.linear, self.signed_sums, [])
        with intercepted(model, images, operations.handlers(), Mark(pixels=True)):
            yield
        if self.last is not None and operations.applications:
            operations.applications[-1].rule = self.last


@dataclass(frozen=True)
class LRP(Attribution):
    """Layer-wise relevance propagation with the rules of Iwana et al. 2019: z+ everywhere, zB where layers see pixels.

    Bach et al. 2015; Montavon et al. 2017; Iwana et al., "Explaining Convolutional Neural Networks using Softmax
    Gradient Layer-wise Relevance Propagation", 2019, section 3.1, https://arxiv.org/abs/1908.04351. On ResNet-18 one
    map takes as long as 3.3 forward passes, three maps with the same rules 5.6. There is no score: what the logits are
    given is the seed.

    Works for functional calls, re-used modules and residual connections; an operation without a rule is an error that
    names it. Other rules: `lightning_xai.attribution.lrp.rules`; how operations without weights hand relevance on:
    `lightning_xai.attribution.lrp.operations`. Maps cannot be differentiated.

    Attributes:
        rules: Which rule hands relevance on where.
        seed: The relevance of the logits.
        relu: Whether to keep the positive part only.

    Example:
        >>> from lightning_xai import explain
        >>> from lightning_xai.attribution.lrp import conservation_error
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> maps = explain(model, images, 1, attributions=LRP())
        >>> seeds = target_logit(model(images).detach(), torch.tensor([1, 1]))
        >>> conservation_error(maps, seeds).abs() < 1e-5
        tensor([True, True])
    """

    rules: Rules = Rules()
    seed: Seed = target_logit
    relu: bool = False

    @property
    def interception(self) -> Interception:
        """The rules."""
        return self.rules

    def relevance(self, trace: Trace, targets: Tensor) -> Tensor:
        """The signed relevance (N,C,H,W) of each colour of each pixel, before any ReLU."""
        return propagated(trace, self.rules, self.seed, targets)

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed unless ``relu`` is on."""
        maps = channel_sum(self.relevance(trace, targets))
        return maps.relu() if self.relu else maps


@dataclass(frozen=True)
class CLRP(LRP):
    """Contrastive LRP in the form of Iwana et al. 2019 eq. 6-7: the other classes get what the target gets, negated.

    One signed pass, then the positive part. Gu et al., "Understanding Individual Decisions of CNNs via Contrastive
    Backpropagation", 2018, https://arxiv.org/abs/1812.02100, whose code does otherwise: `NormalizedCLRP`. Cost
    and fields as of `LRP`; the positive part only, as in the paper.

    Example:
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=CLRP()).shape
        torch.Size([2, 8, 8])
    """

    seed: Seed = contrastive
    relu: bool = True


@dataclass(frozen=True)
class SGLRP(LRP):
    """Softmax-gradient LRP: the logits get the gradient of the softmax probability (Iwana et al. 2019 eq. 9-10).

    Iwana et al. 2019, https://arxiv.org/abs/1908.04351. One signed pass, then the positive part. The scale of each map
    is that of ``R_t = 1`` (`softmax_gradient`). Cost and fields as of `LRP`.

    Example:
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=SGLRP()).shape
        torch.Size([2, 8, 8])
    """

    seed: Seed = softmax_gradient
    relu: bool = True


@dataclass(frozen=True)
class NormalizedCLRP(Attribution):
    """Contrastive LRP as in the code of Gu et al. 2018: two maps, each divided by its sum, subtracted.

    The map of the target (`absolute_target_logit`) minus that of the contrast, which is either

    - all other classes (their CLRP1, the default), or
    - one neuron with the target's weights negated (their CLRP2, `against_negated_target`).

    https://github.com/Jindong-Explainable-AI/Contrastive-LRP. The cost of two maps of `LRP`, and of one more
    pass for the negated target.

    Attributes:
        rules: Which rule hands relevance on where.
        contrast: The relevance of the logits for the map that is subtracted.
        contrast_rules: The rules for it.
        relu: Whether to keep the positive part only.

    Example:
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> methods = {"others": NormalizedCLRP(), "negated": NormalizedCLRP.against_negated_target()}
        >>> {name: maps.shape for name, maps in explain(model, torch.rand(1, 3, 8, 8), attributions=methods).items()}
        {'others': torch.Size([1, 8, 8]), 'negated': torch.Size([1, 8, 8])}
    """

    rules: Rules = Rules()
    contrast: Seed = absolute_other_logits
    contrast_rules: Rules = Rules()
    relu: bool = True

    @classmethod
    def against_negated_target(cls) -> NormalizedCLRP:
        """The form that contrasts with the target's own weights, negated."""
        return cls(contrast=absolute_target_logit, contrast_rules=Rules(last=negated_z_plus))

    @property
    def interception(self) -> Interception:
        """The rules."""
        return self.rules

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed unless ``relu`` is on."""
        target = channel_sum(propagated(trace, self.rules, absolute_target_logit, targets))
        contrast = channel_sum(propagated(trace, self.contrast_rules, self.contrast, targets))
        maps = _unit_sum(target) - _unit_sum(contrast)
        return maps.relu() if self.relu else maps


def propagated(trace: Trace, rules: Rules, seed: Seed, targets: Tensor) -> Tensor:
    """The signed relevance (N,C,H,W) that rules make of a seed; a logit of zero has nothing to share it among."""
    trace = trace.intercepted(rules)
    logits = at_least_float32(trace.logits.detach())
    seeds = seed(logits, targets)
    relevance = trace.propagate(torch.where(logits == 0, 0, seeds / logits))
    if rules.last is None and to_be_checked(trace.model, rules):  # a last rule of its own is there to contrast
        _check(trace, rules, relevance, seeds)
    return relevance


def _check(trace: Trace, rules: Rules, relevance: Tensor, seeds: Tensor) -> None:
    """Warn of what the rules lose; of seeds of both signs the losses cancel, so that one logit is looked at instead."""
    if (seeds.amin(1) < 0).logical_and(seeds.amax(1) > 0).any():
        logits = at_least_float32(trace.logits.detach())
        most = logits.argmax(1, keepdim=True)
        seeds = torch.zeros_like(logits).scatter(1, most, logits.gather(1, most))
        relevance = trace.propagate((seeds != 0).to(logits.dtype))
    warn_of_loss(trace.model, rules, relevance, seeds)


def _unit_sum(maps: Tensor) -> Tensor:
    total = maps.sum((1, 2), keepdim=True)
    return maps / torch.where(total == 0, 1, total)
