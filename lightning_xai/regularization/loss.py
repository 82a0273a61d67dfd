"""The guided-gradient training term: the loss's gradient at the image is taught to resemble its guided gradient.

"A Learning Paradigm for Interpretable Gradients", 2024 (eq. 9-10): ``L = L_C + lambda * L_R`` with
``L_R = mean_i E(dL_C/dx_i, stop(guided gradient_i))``, differentiated exactly by double backpropagation. Gradients are
those of the *summed* loss, so that the error function of an image does not see the batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_xai.regularization.losses import CosineLoss, cosine_error
from lightning_xai.regularization.schedules import ConstantWeight, Schedule
from lightning_xai.scores import log_softmax, pre_softmax
from lightning_xai.trace import DoubleBackward, batch_norm_evaluation, guided

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A classification loss: ``(logits (N,K), targets) -> ()``, the mean over images, or ``(N,)``, one for each image."""

Teacher: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""What is compared: ``(summed loss (), logits (N,K), targets) -> (student (), teacher ())``.

The gradient of the student is taught to resemble the guided gradient of the teacher.
"""

ImageWeights: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""How much each image counts in the term: ``(logits (N,K), targets) -> (N,)``, non-negative."""

SATURATION = 100 * torch.finfo(torch.float32).eps
"""Below this ``1 - p`` the loss's gradient in float32 has lost all but two digits."""


def loss_teacher(loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The literal form (eq. 9): gradient and guided gradient of the loss.

    The guided rule is not odd. Clamping the gradient of the *loss* keeps evidence against the label, so that this form
    pulls the class's gradient away from its own guided map.

    Args:
        loss: The summed loss, ().
        logits: Logits (N,K).
        targets: Targets of the loss.

    Returns:
        The loss, twice.

    Example:
        >>> loss_teacher(torch.tensor(2.0), torch.zeros(1, 2), torch.tensor([0]))
        (tensor(2.), tensor(2.))
    """
    return loss, loss


def negative_loss_teacher(loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and guided gradient of minus the loss, that is of the log-probability: evidence *for* the label.

    Args:
        loss: The summed loss, ().
        logits: Logits (N,K).
        targets: Targets of the loss.

    Returns:
        Minus the loss, twice.

    Example:
        >>> negative_loss_teacher(torch.tensor(2.0), torch.zeros(1, 2), torch.tensor([0]))
        (tensor(-2.), tensor(-2.))
    """
    return -loss, -loss


def class_score_teacher(loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of minus the loss, taught by the guided gradient of the label's logit.

    Args:
        loss: The summed loss, ().
        logits: Logits (N,K).
        targets: Labels (N,), or weights of the classes (N,K).

    Returns:
        Minus the loss, and the summed logits of the labels.

    Example:
        >>> class_score_teacher(torch.tensor(2.0), torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        (tensor(-2.), tensor(3.))
    """
    scores = pre_softmax(logits, targets) if targets.ndim == 1 else (logits * targets).sum(1)
    return -loss, scores.sum()


def keep_saturated(logits: Tensor, targets: Tensor) -> Tensor:
    """Every image counts alike (literal).

    Args:
        logits: Logits (N,K).
        targets: Targets of the loss.

    Returns:
        Ones (N,).

    Example:
        >>> keep_saturated(torch.tensor([[0.0, 99.0]]), torch.tensor([1]))
        tensor([1.])
    """
    return logits.new_ones(len(logits), dtype=torch.float32)


def mask_saturated(logits: Tensor, targets: Tensor) -> Tensor:
    """Images whose gradient is rounding noise, ``1 - p < SATURATION``, do not count.

    Args:
        logits: Logits (N,K).
        targets: Labels (N,); with other targets (soft, multi-hot) every image counts.

    Returns:
        Zeros and ones (N,).

    Example:
        >>> mask_saturated(torch.tensor([[0.0, 99.0], [0.0, 1.0]]), torch.tensor([1, 1]))
        tensor([0., 1.])
    """
    return (weight_by_error(logits, targets) >= SATURATION).float()


def weight_by_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Images count by ``1 - p``, the size of the loss's gradient at the logit of the label.

    Args:
        logits: Logits (N,K), K >= 2.
        targets: Labels (N,); with other targets (soft, multi-hot) every image counts 1.

    Returns:
        Weights (N,) in [0, 1].

    Example:
        >>> weight_by_error(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.5000])
    """
    if targets.ndim != 1 or targets.is_floating_point() or logits.shape[1] < 2:
        return keep_saturated(logits, targets)
    return -torch.expm1(log_softmax(logits.detach(), targets))


@dataclass(frozen=True)
class GuidedGradientTerms:
    """The loss and its parts, for one batch.

    Attributes:
        loss: ``L_C + lambda * L_R``, (), to be differentiated.
        logits: Logits (N,K) of the classification loss.
        classification: ``L_C``, (), detached.
        regularization: ``L_R``, (), detached; None in a step without the term.
        weight: The factor of ``L_R`` in the loss.
        cosine: Mean cosine between the gradient and the guided gradient, (), in [-1, 1]; None without the term.
        norm_ratio: Mean ratio of their L2 norms, gradient over guided gradient, (); None without the term.
        saturated: Share of images with ``1 - p < SATURATION``, (), in [0, 1]; None without the term.
    """

    loss: Tensor
    logits: Tensor
    classification: Tensor
    regularization: Tensor | None = None
    weight: float = 0.0
    cosine: Tensor | None = None
    norm_ratio: Tensor | None = None
    saturated: Tensor | None = None


class GuidedGradientLoss(nn.Module):
    """Classification loss plus the guided-gradient term.

    Cost in convolutions, with a plain step = 3: one forward, a guided and a standard backward pass to the image, and
    the final backward pass through both, 7/3 of a plain step; the evaluation mode of batch normalisation adds a
    forward pass. For rectifier networks.

    Args:
        error: Error function of gradients and guided gradients (N,C,H,W) -> (N,), a module or a function. The cosine
            (default) is the paper's choice and does not see scales.
        weight: lambda, as a function of the optimizer step. The default, 7.5e-3, is the value the paper is reported
            to have used.
        teacher: What is compared: :func:`negative_loss_teacher` (default, see there why), :func:`loss_teacher`
            (literal) or :func:`class_score_teacher`.
        image_weights: How much each image counts: :func:`mask_saturated` (default), :func:`keep_saturated`
            (literal) or :func:`weight_by_error`.
        batch_norm: Statistics of batch normalisation under the term. ``"training"`` (literal, default) shares the
            forward pass of the classification loss, but couples the images of a batch; ``"evaluation"`` takes the
            running statistics, as explanations later do, for one more forward pass. Early in training these are
            far off: warm lambda up.
        every_n_steps: The term is computed in every n-th step only, with n times the weight. The mean gradient over n
            steps is the same for small steps; adaptive optimizers see a different update.

    Raises:
        TypeError: If ``error`` or ``weight`` is no function.
        ValueError: If ``batch_norm`` is unknown or ``every_n_steps`` is less than 1.

    Example:
        >>> import torch.nn.functional as F
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> terms = GuidedGradientLoss()(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), F.cross_entropy, step=0)
        >>> bool(terms.loss == terms.classification + 7.5e-3 * terms.regularization)
        True
    """

    def __init__(
        self,
        error: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        weight: Schedule | None = None,
        *,
        teacher: Teacher = negative_loss_teacher,
        image_weights: ImageWeights = mask_saturated,
        batch_norm: Literal["training", "evaluation"] = "training",
        every_n_steps: int = 1,
    ) -> None:
        super().__init__()
        self.error = CosineLoss() if error is None else error
        self.weight = ConstantWeight(7.5e-3) if weight is None else weight
        if not callable(self.error):
            raise TypeError(f"`error` expected an error function such as CosineLoss(), got {error!r}.")
        if not callable(self.weight):
            raise TypeError(f"`weight` expected a schedule such as ConstantWeight(0.1), got {weight!r}.")
        if batch_norm not in ("training", "evaluation"):
            raise ValueError(f"`batch_norm` expected 'training' or 'evaluation', got {batch_norm!r}.")
        if every_n_steps < 1:
            raise ValueError(f"`every_n_steps` expected 1 or more, got {every_n_steps}.")
        self.teacher = teacher
        self.image_weights = image_weights
        self.batch_norm = batch_norm
        self.every_n_steps = every_n_steps
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
            RuntimeError: If exact double backpropagation is impossible for the model.
            ValueError: If the criterion gives something else, or the model has too few rectifiers.
        """
        weight = self.weight(step) * self.every_n_steps
        if weight == 0 or step % self.every_n_steps:
            logits = model(images)
            classification, _ = mean_and_sum(criterion, logits, targets)
            return GuidedGradientTerms(classification, logits, classification.detach())
        self._require_support(model)
        leaf = images.detach().requires_grad_()
        with DoubleBackward() as recorded:
            logits = model(leaf.clone())  # a copy, so that operations in place find no leaf
        classification, total = mean_and_sum(criterion, logits, targets)
        term_logits = logits
        if self.batch_norm == "evaluation":
            with batch_norm_evaluation(model), recorded:
                term_logits = model(leaf.clone())
            _, total = mean_and_sum(criterion, term_logits, targets)
        with recorded.no_parameters():
            gradients, guided_gradients = gradient_pair(*self.teacher(total, term_logits, targets), leaf)
        term_logits = term_logits.detach()
        regularization = _weighted_mean(
            self.error(gradients, guided_gradients), self.image_weights(term_logits, targets)
        )
        return GuidedGradientTerms(
            loss=classification + weight * regularization,
            logits=logits,
            classification=classification.detach(),
            regularization=regularization.detach(),
            weight=weight,
            cosine=-cosine_error(gradients.detach(), guided_gradients).mean(),
            norm_ratio=_norm_ratio(gradients.detach(), guided_gradients),
            saturated=1 - mask_saturated(term_logits, targets).mean(),
        )

    def _require_support(self, model: nn.Module) -> None:
        if not self._supported:
            require_double_backward(model)
            self._supported = True


def gradient_pair(student: Tensor, teacher: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the student, to be differentiated again, and the guided gradient of the teacher, a constant.

    Args:
        student: A scalar that depends on the images.
        teacher: A scalar that depends on the images through rectifiers.
        images: Images (N,C,H,W), a leaf of the graph.

    Returns:
        Gradients and guided gradients, (N,C,H,W) each.

    Raises:
        ValueError: If the teacher's graph has too few rectifiers.

    Example:
        >>> images = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
        >>> y = (torch.relu(images) * torch.tensor([-1.0, 1.0])).sum()
        >>> gradients, guided_gradients = gradient_pair(y, y, images)
        >>> gradients.tolist(), guided_gradients.tolist()
        ([[[[-1.0, 1.0]]]], [[[[0.0, 1.0]]]])
    """
    with guided(teacher):
        (guided_gradients,) = torch.autograd.grad(teacher, images, retain_graph=True)
    (gradients,) = torch.autograd.grad(student, images, create_graph=True)
    return gradients, guided_gradients.detach()


def mean_and_sum(criterion: Criterion, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The classification loss as the mean and as the sum over images.

    Args:
        criterion: A mean over images (), or one value for each (N,). Of a mean that weights images unequally, as
            class weights do, the sum is N times it.
        logits: Logits (N,K).
        targets: Targets of the criterion.

    Returns:
        Mean and sum, () each.

    Raises:
        ValueError: If the criterion gives something else.

    Example:
        >>> import torch.nn.functional as F
        >>> mean_and_sum(F.cross_entropy, torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        (tensor(0.6931), tensor(2.0794))
    """
    loss = criterion(logits, targets)
    if loss.shape == (len(logits),):
        return loss.mean(), loss.sum()
    if loss.ndim != 0:
        raise ValueError(f"`criterion` expected to give () or ({len(logits)},), got {tuple(loss.shape)}.")
    return loss, loss * len(logits)


def require_double_backward(model: nn.Module) -> None:
    """Refuse models of which exact double backpropagation is impossible or silently wrong.

    Args:
        model: The classifier.

    Raises:
        RuntimeError: For compiled modules, SyncBatchNorm and FSDP, with what to do instead.

    Example:
        >>> require_double_backward(nn.ReLU())
    """
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        compiled = module._compiled_call_impl is not None or getattr(module, "_compiler_ctx", None) is not None
        for found, remedy in (
            (compiled or "OptimizedModule" in kinds, "torch.compile has no double backward: train without it"),
            (
                "SyncBatchNorm" in kinds,
                "its double backward is missing: use BatchNorm with Trainer(sync_batchnorm=False)",
            ),
            (kinds & {"FullyShardedDataParallel", "FSDPModule"}, "FSDP has no double backward: use DDP"),
        ):
            if found:
                raise RuntimeError(
                    f"The guided-gradient term cannot be trained with {type(module).__name__} {name!r}: {remedy}."
                )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Zero where every weight is."""
    return (weights * values).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _norm_ratio(gradients: Tensor, guided_gradients: Tensor) -> Tensor:
    student, teacher = (one.flatten(1).float().norm(dim=1) for one in (gradients, guided_gradients))
    some = teacher > 0
    return (student[some] / teacher[some]).mean() if some.any() else teacher.new_zeros(())
