"""Consistency of maps under mirroring, a term that goes beyond guided gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.attribution import Attribution, GradCAM
from lightning_xai.explain import explain
from lightning_xai.scores import resolve_targets
from lightning_xai.types import Targets


def mirror_consistency(
    model: nn.Module, images: Tensor, targets: Targets = None, *, attribution: Attribution | None = None
) -> Tensor:
    """How far the map of a mirrored image is from the mirrored map: ``1 - cos(M(flip(x)), flip(M(x)))``.

    A loss to add to the classification loss, where classes do not depend on left and right::

        loss = F.cross_entropy(self.model(images), labels) + mirror_consistency(self.model, images, labels)

    After Guo et al., "Visual Attention Consistency under Image Transforms for Multi-Label Image Classification" (2019),
    who compare CAMs by their squared distance; the cosine does not see the size of a map. In the experiment
    ``recipes/term_effect.py`` it moved Grad-CAM onto the object of drawn images, at an accuracy that fell by less than
    0.3 points; on CIFAR-10, where the object is not known, masking by its maps took more of the probability. That was
    from converged networks: from scratch one of five did not learn (``recipes/results/from_scratch.json``).

    Costs a forward and a backward pass to the layer of twice the batch, in evaluation mode, and their derivative: with
    the classification loss some 3.3 plain steps.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K).
        images: Images (N,C,H,W).
        targets: Whose maps are compared, as in `explain`: the labels, as a rule.
        attribution: The method, one that can be differentiated; None for signed Grad-CAM of the last spatial layer.

    Returns:
        The mean over images, (), in [0, 2], to be differentiated.

    Raises:
        RuntimeError: If the method cannot be differentiated, as those of the LRP family.
        ValueError: As `explain`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> loss = mirror_consistency(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
        >>> loss.backward()
        >>> bool(0 < loss < 2)
        True
    """
    method = GradCAM(relu=False) if attribution is None else attribution
    n = len(images)
    # One pass of both: a rule such as "the predicted class" is asked of the images as they are.
    maps = explain(
        model,
        torch.cat([images, images.flip(3)]),
        lambda logits, labels: resolve_targets(targets, logits[:n]).repeat(2),
        attributions=method,
        create_graph=True,
    )
    here, there = maps[:n], maps[n:].flip(2)
    return 1 - F.cosine_similarity(here.flatten(1), there.flatten(1)).mean()
