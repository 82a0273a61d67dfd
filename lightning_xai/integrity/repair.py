"""Repair: a model whose logits sum to zero, so that raw-logit maps are those of the centred score."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_xai.integrity.final_layer import centered_logits, with_edited_rows
from lightning_xai.trace import predict


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

    Where the probe images show that nothing non-linear follows the final linear or convolutional layer, its mean row
    and mean bias are folded out, ``W_j - mean_i W_i``, as DeepLIFT recommends (Shrikumar et al., 2017): same modules,
    same cost, same names. Otherwise, and for a shift that is added in the graph, the model is wrapped
    (`CenteredLogits`), and its layers are found under the prefix ``model.``. Folding the rows of a network in
    which a ReLU follows would change its softmax.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K); it is left as it is.
        images: A few images (N,C,H,W) to verify the folding with; None always wraps. Takes four passes.

    Returns:
        A new model that shares nothing with the old one.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[5.0, 1.0], [3.0, 1.0]])
        >>> repaired = center_logits(model, torch.ones(1, 1, 1, 2))
        >>> repaired[1].weight.tolist()
        [[1.0, 0.0], [-1.0, 0.0]]
    """
    if images is not None:
        folded = with_edited_rows(model, images, lambda rows: rows - rows.mean(0))
        if folded is not None and _sums_to_zero(folded, images):
            return folded
    return CenteredLogits(copy.deepcopy(model))


def _sums_to_zero(model: nn.Module, images: Tensor) -> bool:
    """Whether no shift is left, in the graph or where the probabilities were normalised before."""
    logits = predict(model, images)
    return bool(logits.mean(1).abs().max() <= 16 * torch.finfo(logits.dtype).eps * logits.abs().max())
