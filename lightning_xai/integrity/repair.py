"""Repair: a model whose logits sum to zero, so that raw-logit maps are those of the centred score."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_xai.integrity.final_layer import centered_logits, with_edited_rows
from lightning_xai.integrity.inspection import VISIBLE
from lightning_xai.integrity.measures import agreements
from lightning_xai.scores import at_least_float32, centered, log_odds, pre_softmax, predicted
from lightning_xai.trace import Capture, Trace, copied, require_images, require_model, run
from lightning_xai.types import Score


class CenteredLogits(nn.Module):
    """A classifier that subtracts the mean over the classes from the logits of another.

    Whatever was added to all logits alike, in the weights or in the graph, cancels.

    Args:
        model: The classifier, images -> logits (N,K).

    Example:
        >>> CenteredLogits(nn.Flatten())(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N,K), summing to 0 for each image, in the dtype in which the model gives them."""
        logits = self.model(images)
        return centered_logits(logits).to(logits.dtype)


def center_logits(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """A model with the same softmax whose logits sum to zero, so that no common shift moves its raw-logit maps.

    Without images the model is wrapped (`CenteredLogits`), and its layers are found under the prefix ``model.``: exact
    for every image, whatever is added to all logits, in the weights or in the graph. With images the mean row and the
    mean bias of the final linear or convolutional layer are folded out, ``W_j - mean_i W_i``, as DeepLIFT recommends
    (Shrikumar et al., 2017: same modules, same cost, same names), where that is verified: logits sum to zero, and the
    raw logit's gradient at the image is the centred score's, on these images, on noisy, mixed and blank ones. Else it
    is wrapped too: where a ReLU follows the rows, where a shift is added in the graph, or on some of these images.

    What only a trigger pulls that none of these images shows stays in a folded model: wrap those that are not trusted.
    Where it is the centred score that was altered, through classes without probability, centring would make raw maps
    false: if its maps look different from the raw logit's and are the farther ones from the log-odds', on images that
    were given, a warning says so. The softmax cannot tell: explain such a model with `log_odds` instead.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K); it is left as it is.
        images: A few images (N,C,H,W) to verify the folding with; None always wraps, and verifies nothing. Takes two
            passes and eight with gradients, twelve where it is wrapped.

    Returns:
        A new model that shares nothing with the old one.

    Raises:
        ValueError: If even the wrapped model's raw and centred gradients differ on these images: its backward pass is
            not that of its forward, and no shift of logits repairs it.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[5.0, 1.0], [3.0, 1.0]])
        >>> repaired = center_logits(model, torch.ones(1, 1, 1, 2))
        >>> repaired[1].weight.tolist()
        [[1.0, 0.0], [-1.0, 0.0]]
    """
    require_model(model)
    wrapped = CenteredLogits(copied(model))
    if images is None:
        return wrapped
    require_images(images)
    looked_at = [(one, _before(model, one)) for one in (images, *_perturbed(images))]
    if steered := looked_at[0][1].steered:
        warnings.warn(
            f"Maps of the centred score look different from the raw logit's on {steered} of {len(images)} images, and "
            "are the farther ones from the log-odds': something acts on classes without probability, or the logits are "
            "log-probabilities. In the centred model the raw logit's maps become those of the centred score. If nobody "
            "vouches for the model, explain it as it is, with `score=log_odds`.",
            stacklevel=2,
        )
    folded = with_edited_rows(model, images, lambda rows: rows - rows.mean(0))
    if folded is not None and all(_is_centered(folded, *one) for one in looked_at):
        return folded
    if not all(_is_centered(wrapped, *one) for one in looked_at):
        raise ValueError(
            "`model` expected a backward pass that is that of its forward, got one that answers to the gradient of one "
            "logit otherwise than to those of zero-sum scores. Look at its hooks and autograd functions "
            "(`inspect_model`)."
        )
    return wrapped


def _perturbed(images: Tensor) -> list[Tensor]:
    """Noisy, mixed and blank ones: what is off on some images may be on near by."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    spread = at_least_float32(images).std(correction=0).to(images)
    return [images + 0.3 * spread * noise, (images + images.flip(0)) / 2, torch.zeros_like(images)]


class _Before(NamedTuple):
    """Of a model as it is given: the largest logit, the largest raw gradient, and images with an odd centred score.

    A shift costs precision in proportion to the first two.
    """

    logit: float
    gradient: float
    steered: int


def _gradients(trace: Trace, *scores: Score) -> list[Tensor]:
    targets = predicted(trace.logits)
    with trace.computing():
        return [at_least_float32(trace.image_gradient(score, targets)) for score in scores]


def _before(model: nn.Module, images: Tensor) -> _Before:
    trace = run(model, images, Capture(image_gradient=True))
    raw, rest, odds = _gradients(trace, pre_softmax, centered, log_odds)
    apart, of_raw, of_rest = (1 - one for one in agreements(*(one.sum(1) for one in (raw, rest, odds))))
    steered = (apart > VISIBLE) & (of_rest > of_raw)
    return _Before(float(trace.logits.abs().max()), float(raw.flatten(1).norm(dim=1).max()), int(steered.sum()))


def _is_centered(model: nn.Module, images: Tensor, before: _Before) -> bool:
    """Whether logits sum to zero, and the raw logit moves with the image as the centred score does."""
    trace = run(model, images, Capture(image_gradient=True))
    eps, logits = torch.finfo(trace.logits.dtype).eps, at_least_float32(trace.logits)
    if logits.mean(1).abs().max() > 16 * eps * max(float(logits.abs().max()), before.logit):
        return False
    raw, rest = _gradients(trace, pre_softmax, centered)
    apart, size = (one.flatten(1).norm(dim=1) for one in (raw - rest, rest))
    return bool((apart <= eps**0.5 * size.max() + 64 * eps * before.gradient).all())
