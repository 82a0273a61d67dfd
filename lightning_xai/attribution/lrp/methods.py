"""Layer-wise relevance propagation: LRP, CLRP and SGLRP, which differ in the relevance they give the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.attribution.base import Attribution
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.attribution.lrp.operations import Mark, Operations
from lightning_xai.attribution.lrp.rules import InputRule, Rule, ZBox, negated_z_plus, z_plus
from lightning_xai.scores import at_least_float32, centered, pre_softmax
from lightning_xai.trace import Interception, Trace, intercepted
from lightning_xai.types import Score

Seed: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The relevance of the logits that is propagated: ``(logits (N,K), targets (N,)) -> relevance (N,K)``."""


@dataclass(frozen=True)
class Rules(Interception):
    """Which rule hands relevance on where; everything else has one rule (`.operations`).

    Attributes:
        first: Rule of the layers that see pixels.
        convolution: Rule of the other convolutions, and of normalisations that follow none.
        linear: Rule of the other linear layers.
        last: Rule of the last layer called; None leaves it the one of its kind.

    Example:
        >>> Rules().convolution is z_plus
        True
    """

    first: Rule | InputRule = field(default_factory=ZBox)
    convolution: Rule = z_plus
    linear: Rule = z_plus
    last: Rule | None = None

    @contextmanager
    def __call__(self, model: nn.Module, images: Tensor) -> Iterator[None]:
        """The context in which a pass of the model runs."""
        operations = Operations(self.first, self.convolution, self.linear, [])
        with intercepted(model, images, operations.handlers(), Mark(pixels=True)):
            yield
        if self.last is not None and operations.applications:
            operations.applications[-1].rule = self.last


def target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = z_t``, nothing elsewhere (Iwana et al. 2019 eq. 3).

    Args:
        logits: Logits (N,K). With K = 1, target 0 means the negative of the logit.
        targets: Class for each image, (N,).

    Returns:
        Relevance (N,K).

    Example:
        >>> target_logit(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([[0., 3.]])
    """
    if logits.shape[1] == 1:
        return pre_softmax(logits, targets)[:, None]
    return logits * F.one_hot(targets, logits.shape[1])


def contrastive(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = z_t``, ``R_n = -z_t / (K - 1)`` (CLRP, Iwana et al. 2019 eq. 7); the sum is zero.

    Where ``z_t < 0`` all signs are reversed, and the map shows what speaks for the other classes (`is_reversed`
    finds such images; of the labels of CIFAR-10 1 % were seen).

    Args:
        logits: Logits (N,K), K >= 2.
        targets: Class for each image, (N,).

    Returns:
        Relevance (N,K).

    Example:
        >>> contrastive(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([[-1.5000,  3.0000, -1.5000]])
    """
    hot = _one_hot(logits, targets)
    return (logits * hot).sum(1, keepdim=True) * (hot - (1 - hot) / (logits.shape[1] - 1))


def softmax_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = 1``, ``R_n = -y_n / (1 - y_t)``: the gradient of ``y_t`` divided by ``y_t (1 - y_t)``.

    Iwana et al. 2019 eq. 10 has ``R_t = y_t (1 - y_t)``, ``R_n = -y_t y_n``, which vanishes where the softmax
    saturates. The
    factor is constant for an image, so that the map is the same up to its scale; here it comes from the softmax over
    the other classes, which does not saturate. The sum is zero.

    Args:
        logits: Logits (N,K), K >= 2.
        targets: Class for each image, (N,).

    Returns:
        Relevance (N,K).

    Example:
        >>> softmax_gradient(torch.tensor([[0.0, 90.0, 0.0]]), torch.tensor([1]))
        tensor([[-0.5000,  1.0000, -0.5000]])
    """
    hot = _one_hot(logits, targets)
    return hot - logits.masked_fill(hot.bool(), -torch.inf).softmax(1)


def absolute_target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = |z_t|``, nothing elsewhere, as in the reference code of Gu et al. 2018.

    Args:
        logits: Logits (N,K).
        targets: Class for each image, (N,).

    Returns:
        Relevance (N,K), non-negative.

    Example:
        >>> absolute_target_logit(torch.tensor([[1.0, -3.0]]), torch.tensor([1]))
        tensor([[0., 3.]])
    """
    return target_logit(logits, targets).abs()


def absolute_other_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_n = |z_n|`` for all classes but the target, as in the reference code of Gu et al. 2018.

    Args:
        logits: Logits (N,K), K >= 2.
        targets: Class for each image, (N,).

    Returns:
        Relevance (N,K), non-negative.

    Example:
        >>> absolute_other_logits(torch.tensor([[1.0, -3.0]]), torch.tensor([0]))
        tensor([[0., 3.]])
    """
    return logits.abs() * (1 - _one_hot(logits, targets))


@dataclass(frozen=True)
class ScoreGradient:
    """``R_n = z_n dS/dz_n``: the logits share relevance as the gradient of a score weighs them.

    With a zero-sum score (`centered`, `log_softmax`) the
    *multipliers* of the logits sum to zero. Then a ``t(x)`` that is added to all logits gets no relevance, and the map
    does not see it. The seeds of `CLRP` and `SGLRP`, whose *relevance* sums to zero, do see it: what
    each logit gets is shared between it and ``t(x)``.

    Attributes:
        score: The score S.

    Example:
        >>> ScoreGradient()(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([[-0.5000,  1.5000]])
    """

    score: Score = centered

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The relevance (N,K) of logits (N,K)."""
        gradient = torch.func.grad(lambda values: self.score(values, targets).sum())(logits.detach())
        return logits * gradient


def is_reversed(logits: Tensor, targets: Tensor) -> Tensor:
    """Where the logit of the target is negative, so that `contrastive` reverses the map.

    Args:
        logits: Logits (N,K).
        targets: Class for each image, (N,).

    Returns:
        One bool for each image, (N,).

    Example:
        >>> is_reversed(torch.tensor([[1.0, -3.0], [1.0, 3.0]]), torch.tensor([1, 1])).float().mean()
        tensor(0.5000)
    """
    return pre_softmax(logits, targets) < 0


def conservation_error(relevance: Tensor, seeds: Tensor) -> Tensor:
    """What was lost or added on the way, ``(sum_i R_i - sum_n R_n) / sum_n |R_n|``.

    Not zero where biases take a share (epsilon, gamma), where nothing contributes to an output under the rule, so that
    its bias alone made it (z+; half of the depthwise outputs of a random MobileNet), or where a logit is exactly zero.
    Zero proves little: relevance can be conserved and wrong.

    Args:
        relevance: Relevance (N,C,H,W), or signed maps (N,H,W) of a method with ``relu=False``.
        seeds: Relevance of the logits, (N,K): ``method.seed(logits, targets)``.

    Returns:
        Errors (N,), 0 where all was conserved, -1 where all was lost; NaN where the seeds are all zero.

    Example:
        >>> conservation_error(torch.full((1, 2, 2), 0.5), torch.tensor([[0.0, 4.0]]))
        tensor([-0.5000])
    """
    return (relevance.flatten(1).sum(1) - seeds.sum(1)) / seeds.abs().sum(1)


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
        """The relevance of each colour of each pixel, before any ReLU.

        Args:
            trace: One forward pass of N images.
            targets: Class to explain for each image, (N,).

        Returns:
            Signed relevance (N,C,H,W).
        """
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
    as for `LRP`.

    Attributes:
        rules: Which rule hands relevance on where.
        seed: The relevance of the logits.
        relu: Whether to keep the positive part only, as the paper does.

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
    is that of ``R_t = 1`` (`softmax_gradient`). Cost as for `LRP`.

    Attributes:
        rules: Which rule hands relevance on where.
        seed: The relevance of the logits.
        relu: Whether to keep the positive part only, as the paper does.

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
    """The relevance of the pixels that rules make of a seed.

    Args:
        trace: One forward pass of N images.
        rules: Which rule hands relevance on where.
        seed: The relevance of the logits.
        targets: Class to explain for each image, (N,).

    Returns:
        Signed relevance (N,C,H,W). A logit that is exactly zero has nothing to share its relevance among.
    """
    trace = trace.intercepted(rules)
    logits = at_least_float32(trace.logits.detach())
    return trace.propagate(torch.where(logits == 0, 0, seed(logits, targets) / logits))


def _unit_sum(maps: Tensor) -> Tensor:
    total = maps.sum((1, 2), keepdim=True)
    return maps / torch.where(total == 0, 1, total)


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise ValueError(
            f"`seed` expected logits of at least 2 classes, got shape {tuple(logits.shape)}: there is no other class "
            "to contrast with. Use `LRP()`."
        )
    return F.one_hot(targets, logits.shape[1]).to(logits)
