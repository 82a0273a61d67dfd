"""Where a logit shift comes from: the last layer at which it is seen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_xai.integrity.checking import inspect_trace
from lightning_xai.integrity.inspection import Inspection
from lightning_xai.integrity.verdict import Threshold
from lightning_xai.trace import Calling, Capture, find_layer, run, spatial_layers


def locate_shift(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[str] | None = None,
    threshold: Threshold | None = None,
    calling: Calling | None = None,
) -> Inspection | None:
    """The last layer, in the order of the pass, at which a logit shift is seen; its ``position`` tells where in it.

    A ``t`` that is computed from a layer depends on that layer and on what lies before it, and on nothing behind it.
    One pass, and four sweeps for each layer: meant for models that were flagged, with few images. A ``t`` that is
    computed from the image, by another network say, is at no layer of this one.

    Args:
        model: The classifier, images (N,C,H,W) -> logits (N,K), K >= 2.
        images: Probe images (N,C,H,W); some 8 of different classes.
        layers: Dotted names in the order of the pass; None for all with a spatial output, found by one pass of one
            image.
        threshold: From which suspicion on a shift is seen; None for the default.
        calling: What else the model is given, where its logits are, and the context it runs in.

    Returns:
        The check at that layer; None where no layer shows a shift.

    Raises:
        ValueError: If a layer does not exist, or as `inspect_model` does.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.ReLU(), nn.Hardtanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
        >>> model[4].weight.data = torch.tensor([[40.0, -40.0], [-40.0, 40.0]])
        >>> model[4].weight.data += 1000
        >>> locate_shift(model, torch.rand(8, 2, 4, 4)).layer
        '1'
    """
    names = spatial_layers(model, images, calling) if layers is None else list(layers)
    trace = run(model, images, Capture({name: find_layer(model, name) for name in names}), calling)
    for name in reversed(names):
        inspection = inspect_trace(trace, name, threshold=threshold)
        if inspection.verdict.alarms:
            return inspection
    return None
