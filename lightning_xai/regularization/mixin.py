"""The LightningModule mixin that puts the guided-gradient term into a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import Number
from lightning_xai.regularization.alignment import Criterion
from lightning_xai.regularization.refusals import require_strategy
from lightning_xai.regularization.term import GuidedGradientLoss, GuidedGradientTerms

if TYPE_CHECKING:  # it is mixed into a LightningModule, of either package
    _LightningModule = pl.LightningModule
else:
    _LightningModule = object


TERM_NUMBERS = {
    "classification_loss": Number("Classification loss"),
    "regularization_loss": Number("Guided-gradient loss"),
    "weight": Number("Weight of the term, λ"),
    "cosine": Number("Alignment: cosine of gradient and guided gradient", "", True),
    "norm_ratio": Number("Norm of the gradient relative to the guided one"),
    "saturated": Number("Share of saturated images", meaning="Images that the term does not see: their loss is zero."),
    "nonfinite_steps": Number("Steps whose term was not finite"),
    "parameter_cosine": Number("Cosine of the two losses' gradients at the parameters"),
    "parameter_norm_ratio": Number("Norm of the term's gradient relative to the loss's, at the parameters"),
}
"""What the training term logs, by the last part of its keys, in the order in which it is read."""


class GuidedGradientMixin(_LightningModule):
    """Gives a LightningModule the method ``guided_gradient_loss`` and overrides nothing.

    Set ``self.interpretability`` in ``__init__`` and call the method in ``training_step``::

        class Classifier(GuidedGradientMixin, L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = torchvision.models.resnet18(num_classes=10)
                self.interpretability = GuidedGradientLoss(weight=LinearWarmup(0.1, steps=500))

            def training_step(self, batch, batch_idx):
                loss, logits = self.guided_gradient_loss(*batch)
                return loss

    Logged in each step under ``train/guided_gradient/``: ``classification_loss`` (L_C), and in steps with the term
    ``regularization_loss`` (L_R), ``weight`` (lambda, times ``every_n_steps``), ``cosine`` and ``norm_ratio`` between
    the gradient and the guided gradient, and the share of ``saturated`` images;
    ``nonfinite_steps`` once there are any; ``parameter_cosine`` and ``parameter_norm_ratio`` (of L_R to L_C) between
    the gradients of the two losses when `AdaptiveWeight` measures them. In steps without the term Lightning logs
    the last values of the epoch again. A term at an inner layer is logged under ``train/guided_gradient/<layer>/``.

    A run that is resumed goes on bit by bit as it would have; in the middle of an epoch with a loader that has
    ``state_dict`` and ``load_state_dict``, and random states that were saved. Lightning's ``CSVLogger`` deletes the log
    of a version that is used again, and writes every 100 steps: leave ``version`` to it, and give
    ``flush_logs_every_n_steps=1``, so that a killed process loses no more than a row.

    Example:
        >>> import pytorch_lightning as pl
        >>> class Classifier(GuidedGradientMixin, pl.LightningModule):
        ...     pass
        >>> hasattr(Classifier(), "guided_gradient_loss")
        True
    """

    interpretability: GuidedGradientLoss

    def guided_gradient_loss(
        self,
        images: Tensor,
        targets: Tensor,
        criterion: Criterion = F.cross_entropy,
        *,
        model: nn.Module | None = None,
        step: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the forward pass, log the parts, and give the total loss and the logits.

        Args:
            images: Images (N,C,H,W).
            targets: Targets of the criterion.
            criterion: The classification loss ``(logits, targets)``, a mean over images or one value for each.
            model: The classifier; None for the LightningModule's own ``forward``.
            step: What the weight and ``every_n_steps`` count in; None for ``global_step``. With several optimizers that
                is the number of steps of all of them together: count your own.

        Returns:
            The loss ``L_C + lambda * L_R``, (), and the logits (N,K).

        Raises:
            RuntimeError: If ``self.interpretability`` is not set, or the model cannot be differentiated twice.
            ValueError: If the criterion gives something else, or the model has too few rectifiers.
        """
        term = getattr(self, "interpretability", None)
        if not isinstance(term, GuidedGradientLoss):
            raise RuntimeError(
                f"`self.interpretability` expected a GuidedGradientLoss, got {term!r}. "
                "Set it in __init__: self.interpretability = GuidedGradientLoss(...)."
            )
        require_strategy(getattr(self, "_trainer", None))
        classifier = self if model is None else model
        terms = term(classifier, images, targets, criterion, self.global_step if step is None else step)
        name = term.name(classifier)
        logged = {str(LogKey("train", name, key)): value for key, value in _logged(term, terms).items()}
        self.log_dict(logged, batch_size=len(images))
        return terms.loss, terms.logits


def _logged(term: GuidedGradientLoss, terms: GuidedGradientTerms) -> dict[str, Tensor]:
    products = terms.products if terms.products and terms.products.usable else None
    parts: dict[str, Tensor | float | None] = {
        "classification_loss": terms.classification,
        "regularization_loss": terms.regularization,
        "weight": terms.weight if terms.regularization is not None else None,
        "cosine": terms.cosine,
        "norm_ratio": terms.norm_ratio,
        "saturated": terms.saturated,
        "nonfinite_steps": float(term.nonfinite_steps) or None,
        "parameter_cosine": products.cosine if products else None,
        "parameter_norm_ratio": products.norm_ratio if products else None,
    }
    known = {name: value for name, value in parts.items() if value is not None}
    # Lightning would bring numbers from the CPU, and wait for a GPU in each step
    device = terms.loss.device
    return {name: one if isinstance(one, Tensor) else torch.full((), one, device=device) for name, one in known.items()}
