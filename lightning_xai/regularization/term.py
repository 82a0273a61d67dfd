"""The guided-gradient training term: the loss's gradient at the image is taught to resemble its guided gradient.

"A Learning Paradigm for Interpretable Gradients", 2024 (eq. 9-10): ``L = L_C + lambda * L_R`` with
``L_R = mean_i E(dL_C/dx_i, stop(guided gradient_i))``, differentiated exactly by double backpropagation. Gradients are
those of the *summed* loss, so that the error function of an image does not see the batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Literal

from torch import Tensor, nn

from lightning_xai.kinds import fits, require_count, require_kinds, require_number
from lightning_xai.regularization.adaptive import AdaptiveWeight, GradientProducts
from lightning_xai.regularization.alignment import Alignment, Criterion, alignment, mean_and_sum
from lightning_xai.regularization.errors import CosineLoss
from lightning_xai.regularization.refusals import (
    checkpointing_named,
    require_double_backward,
    require_finite,
    require_recomputed_once,
)
from lightning_xai.regularization.schedules import ConstantWeight, Schedule
from lightning_xai.regularization.teachers import ImageWeights, Teacher, mask_saturated, negative_loss_teacher
from lightning_xai.scores import plain
from lightning_xai.trace import (
    PROBABILITIES,
    Calling,
    DoubleBackward,
    Rectifiers,
    are_probabilities,
    batch_norm_evaluation,
    differentiable_attention,
    find_layer,
    kind_of,
    logits_of,
    name_of,
    naming_images,
    pass_from_image,
    pass_from_layer,
    require_differentiable_backward,
    require_model,
    require_rectifiers_after,
    running_statistics_kept,
)
from lightning_xai.types import LogitsOf


@dataclass(frozen=True)
class GuidedGradientTerms:
    """The loss and its parts, for one batch.

    Attributes:
        loss: ``L_C + lambda * L_R``, (), to be differentiated.
        logits: Logits (N,K) of the classification loss.
        classification: ``L_C``, (), detached.
        regularization: ``L_R``, (), detached; None, as all that follow, in a step without the term.
        weight: The factor of ``L_R`` in the loss, 0 without it.
        cosine: Mean cosine between the gradient and the guided gradient, (), in [-1, 1].
        norm_ratio: Mean ratio of their L2 norms, gradient over guided gradient, ().
        saturated: Share of images with ``1 - p < SATURATION``, (), in [0, 1].
        products: What `AdaptiveWeight` measured at the parameters; None where it did not.
    """

    loss: Tensor
    logits: Tensor
    classification: Tensor
    regularization: Tensor | None = None
    weight: float = 0.0
    cosine: Tensor | None = None
    norm_ratio: Tensor | None = None
    saturated: Tensor | None = None
    products: GradientProducts | None = None


class GuidedGradientLoss(nn.Module):
    """Classification loss plus the guided-gradient term.

    Cost in convolutions, with a plain step = 3: one forward, a guided and a standard backward pass to the image, and
    the final backward pass through both, 7/3 of a plain step; ``recipes/benchmark.py --training`` has times.
    In fp16 the gradients at the image need no loss scale of their own, because the loss is summed over images.
    Where the term has a forward pass of its own (``batch_norm="evaluation"``, ``fraction``) the running statistics of
    batch normalisation still move once per step. For rectifier networks.

    A step in which the term is not finite falls back to the classification loss. Such steps are counted in
    ``nonfinite_steps``, over the life of the object; checkpoints do not keep the count.

    Args:
        error: Error function of gradients and guided gradients (N,C,H,W) -> (N,), a module or a function. The cosine
            (default) is the paper's choice and does not see scales.
        weight: lambda: a number, a function of the optimizer step, or `AdaptiveWeight`. The default, 7.5e-3, is the
            value the paper is reported to have used.
        teacher: What is compared: `negative_loss_teacher` (default, see there why), `loss_teacher`
            (literal) or `class_score_teacher`.
        image_weights: How much each image counts: `mask_saturated` (default), `keep_saturated`
            (literal) or `weight_by_error`.
        rectifiers: Where the guided rule clamps: ``"relu"``, as in the papers, or ``"all"``, GELU, SiLU and their like
            as well, which goes beyond them (`GuidedGradient`).
        batch_norm: Statistics of batch normalisation under the term. ``"training"`` (literal, default) shares the
            forward pass of the classification loss, but couples the images of a batch; ``"evaluation"`` takes the
            running statistics, as explanations later do, in a pass of its own, 10/3 of a plain step in all. Early in
            training these are far off: warm lambda up. SyncBatchNorm has no double backward and needs the latter.
        every_n_steps: The term is computed in every n-th step only, with n times the weight, at ``1 + 4 / (3 n)`` of a
            plain step. The mean gradient over n steps is the same for small steps; adaptive optimizers see a different
            update, because they divide by the size of gradients that now vary from step to step.
        fraction: The term sees this share of the batch only, the first ``ceil(fraction * N)`` images, in a forward pass
            of its own, at ``1 + 7 fraction / 3``. Its gradient is that of the whole batch in expectation, where the
            loader shuffles, every image counts alike (`keep_saturated`) and nothing couples images; batch
            normalisation in training mode does, because statistics of fewer images are other ones. Adaptive
            optimizers see more noise, hence a different update. The criterion gets as many targets as images.
        layer: Where the gradients are taken: None for the image, or an inner layer, by dotted name in the model that
            is called or as a module. Cheaper, and what CAM methods look at, but another objective. It needs rectifiers
            between the layer and the logits: of a ResNet ``"layer3"``, not ``"layer4"``.
        max_nonfinite: Training stops when the term was not finite so many times in a row.
        logits_of: Finds the logits in what the classifier gives; outputs with ``logits``, and the first (N,K) tensor of
            a tuple or dict, are understood by default. The criterion gets these alone, no auxiliary outputs.

    Raises:
        TypeError: If ``error`` or ``weight`` is no function.
        ValueError: If ``batch_norm`` or ``rectifiers`` is unknown, or a number is out of its range.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> terms = GuidedGradientLoss()(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), F.cross_entropy, step=0)
        >>> bool(terms.loss == terms.classification + 7.5e-3 * terms.regularization)
        True
    """

    layer: str | nn.Module | None

    def __init__(
        self,
        error: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        weight: Schedule | float | None = None,
        *,
        teacher: Teacher = negative_loss_teacher,
        image_weights: ImageWeights = mask_saturated,
        rectifiers: Rectifiers = "relu",
        batch_norm: Literal["training", "evaluation"] = "training",
        every_n_steps: int = 1,
        fraction: float = 1.0,
        layer: str | nn.Module | None = None,
        max_nonfinite: int = 20,
        logits_of: LogitsOf = logits_of,
    ) -> None:
        super().__init__()
        self.error = CosineLoss() if error is None else error
        weight = 7.5e-3 if weight is None else weight
        self.weight = ConstantWeight(weight) if isinstance(weight, (int, float)) else weight
        if not fits(self.error, Callable):
            raise TypeError(f"`error` expected an error function such as CosineLoss(), got {error!r}.")
        if not fits(self.weight, Callable):
            raise TypeError(f"`weight` expected a number or a schedule such as LinearWarmup(0.1, 500), got {weight!r}.")
        texts: dict[str, object] = {"rectifiers": rectifiers, "batch_norm": batch_norm, "layer": layer}
        functions: dict[str, object] = {"teacher": teacher, "image_weights": image_weights, "logits_of": logits_of}
        require_kinds(GuidedGradientLoss.__init__, **texts, **functions)
        for name, value in (("every_n_steps", every_n_steps), ("max_nonfinite", max_nonfinite)):
            require_count(name, value)
        require_number("fraction", fraction)
        if not 0 < fraction <= 1:
            raise ValueError(f"`fraction` expected a number in (0, 1], got {fraction}.")
        self.teacher = teacher
        self.image_weights = image_weights
        self.rectifiers = rectifiers
        self.batch_norm = batch_norm
        self.every_n_steps = every_n_steps
        self.fraction = fraction
        self.max_nonfinite = max_nonfinite
        self.logits_of = logits_of
        self.nonfinite_steps = 0
        self._nonfinite_in_a_row = 0
        object.__setattr__(self, "layer", layer)  # past nn.Module: the model's module is no submodule of its loss
        self._supported = False

    def forward(
        self, model: nn.Module, images: Tensor, targets: Tensor, criterion: Criterion, step: int
    ) -> GuidedGradientTerms:
        """Compute the loss of one batch.

        Args:
            model: The classifier, images (N,C,H,W) -> logits (N,K).
            images: Images (N,C,H,W).
            targets: Targets of the criterion.
            criterion: The classification loss, a mean over images or one value for each.
            step: Optimizer step, for ``weight`` and ``every_n_steps``.

        Returns:
            The loss and its parts.

        Raises:
            RuntimeError: If exact double backpropagation is impossible for the model, or the term was not finite
                ``max_nonfinite`` times in a row.
            ValueError: If the criterion gives something else or takes no such targets, images are not finite, the model
                or what follows the layer has too few rectifiers, or the layer is not there.
        """
        require_model(model)
        if not fits(images, Tensor) or not images.is_floating_point() or not images.numel():
            raise TypeError(f"`images` expected a batch (N, C, H, W) of a floating dtype, got {kind_of(images)}.")
        if not fits(step, int) or step < 0:
            raise TypeError(f"`step` expected the number of the optimizer step, 0 or more, got {step!r}.")
        images, targets = plain(images), plain(targets) if isinstance(targets, Tensor) else targets
        if step % self.every_n_steps or self.weight(step) == 0:
            logits = self._logits(model, images)
            classification, _ = mean_and_sum(criterion, logits, targets)
            return GuidedGradientTerms(classification, logits, classification.detach())
        self._require_support(model, images)
        passes = self._passes(model, images, targets, criterion)
        aligned, products = self._aligned(model, passes, step)
        without = GuidedGradientTerms(
            passes.classification, passes.logits, passes.classification.detach(), products=products
        )
        if not self._is_finite(aligned.error, images):
            return without
        weight = self.weight(step) * self.every_n_steps
        return replace(
            without,
            loss=passes.classification + weight * aligned.error,
            regularization=aligned.error.detach(),
            weight=weight,
            cosine=aligned.cosine,
            norm_ratio=aligned.norm_ratio,
            saturated=1 - mask_saturated(passes.taught.detach(), passes.targets).mean(),
        )

    def name(self, model: nn.Module) -> str:
        """What the term is called in logs: ``guided_gradient``, and the layer where it is one."""
        if self.layer is None:
            return "guided_gradient"
        return f"guided_gradient/{name_of(model, find_layer(model, self.layer))}"

    def _passes(self, model: nn.Module, images: Tensor, targets: Tensor, criterion: Criterion) -> _Passes:
        if self.batch_norm == "training" and self.fraction == 1:
            logits, point = self._recorded_pass(model, images)
            classification, total = mean_and_sum(criterion, logits, targets)
            return _Passes(logits, classification, logits, targets, total, point)
        logits = self._logits(model, images)
        classification, _ = mean_and_sum(criterion, logits, targets)
        n = ceil(self.fraction * len(images))
        with batch_norm_evaluation(model) if self.batch_norm == "evaluation" else running_statistics_kept(model):
            taught, point = self._recorded_pass(model, images[:n])
        _, total = mean_and_sum(criterion, taught, targets[:n])
        return _Passes(logits, classification, taught, targets[:n], total, point)

    def _recorded_pass(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        call = partial(self._logits, model)
        with DoubleBackward(), differentiable_attention():
            if self.layer is None:
                logits, point = pass_from_image(call, images)
            else:
                logits, point = pass_from_layer(call, images, find_layer(model, self.layer))
        if not self._supported:
            require_differentiable_backward(logits)
            if are_probabilities(logits, logits.grad_fn):
                raise ValueError(PROBABILITIES)
            self._supported = True
        return logits, point

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        with naming_images(model, images):
            output = model(images)
        logits = self.logits_of(output)
        return logits if isinstance(logits, Tensor) else Calling().found(output, len(images))

    def _aligned(self, model: nn.Module, passes: _Passes, step: int) -> tuple[Alignment, GradientProducts | None]:
        """The term, and what an adaptive weight measures of it: all backward passes but the last."""
        counts = self.image_weights(passes.taught.detach(), passes.targets)
        # checkpointed parts are recomputed in each backward pass; those of the term are to leave no trace
        with checkpointing_named(), running_statistics_kept(model) as moved:
            student, teacher = self.teacher(passes.total, passes.taught, passes.targets)
            aligned = alignment(student, teacher, passes.point, counts, self.error, self.rectifiers)
            products = self._measured(step, passes.classification, aligned.error, model)
            require_recomputed_once(moved() and passes.taught is not passes.logits)
        return aligned, products

    def _measured(
        self, step: int, classification: Tensor, regularization: Tensor, model: nn.Module
    ) -> GradientProducts | None:
        if not isinstance(self.weight, AdaptiveWeight):
            return None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self.weight.measure(step, classification, regularization, trained)

    def _is_finite(self, regularization: Tensor, images: Tensor) -> bool:
        """Counts where it is not, and ends training when that goes on."""
        if regularization.isfinite():
            self._nonfinite_in_a_row = 0
            return True
        require_finite(images)
        self.nonfinite_steps += 1
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row >= self.max_nonfinite:
            raise RuntimeError(
                f"The guided-gradient term was not finite in {self._nonfinite_in_a_row} steps in a row. Lower or warm "
                "up its weight, clip gradients, or train in bf16 or fp32; `max_nonfinite` is how many are borne."
            )
        return False

    def _require_support(self, model: nn.Module, images: Tensor) -> None:
        if not self._supported:
            require_double_backward(model, self.batch_norm)
            if self.layer is not None:
                layer, call = find_layer(model, self.layer), partial(self._logits, model)
                require_rectifiers_after(model, images, layer, self.rectifiers, call)


@dataclass(frozen=True)
class _Passes:
    """The pass of the classification loss, and that of the term: the same, or one of its own."""

    logits: Tensor
    classification: Tensor
    taught: Tensor
    targets: Tensor
    total: Tensor
    point: Tensor
