"""What a model says of probe images, in a form that is small and can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.explain import capture_for, named_attributions
from lightning_xai.integrity.code import autograd_functions
from lightning_xai.integrity.digest import Digest
from lightning_xai.integrity.heads import check_logits
from lightning_xai.integrity.maps import AT_LAYER, signed_maps
from lightning_xai.integrity.measures import mean_logit
from lightning_xai.scores import at_least_float32, centered, pre_softmax
from lightning_xai.trace import (
    Calling,
    Capture,
    Trace,
    find_layer,
    last_spatial_layer,
    require_images,
    require_logits,
    require_model,
    run,
)
from lightning_xai.types import OneLayer, Score

SKETCH = 128
"""Numbers kept of each gradient; distances between sketches are those of the gradients to about 10 %."""
MAP_SIZE = 16
"""Maps are averaged down to at most this many positions in each direction."""
KINDS = ("raw ", "zero-sum ")
"""With what the names of maps begin in a file."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model says of N probe images.

    Attributes:
        logits: Logits (N,K).
        common: Gradient of the mean logit at the layer, or a linear sketch of it, (N,m).
        centered: Gradient of the centred score of the reference's class, likewise, (N,m).
        raw_maps: Maps of the raw logit before any ReLU, (N,h,w) by name.
        zero_sum_maps: Maps of the centred score, likewise.
        eps: Spacing of the numbers the model computes with, relative to 1.
        functions: Autograd functions between layer and logits that are written in Python, with hashes of their code.
    """

    logits: Tensor
    common: Tensor
    centered: Tensor
    raw_maps: dict[str, Tensor]
    zero_sum_maps: dict[str, Tensor]
    eps: float
    functions: tuple[str, ...] = ()


def traced(
    model: nn.Module, images: Tensor, layer: OneLayer, methods: Mapping[str, Attribution], calling: Calling | None
) -> tuple[nn.Module, Trace]:
    """One pass of the probes, in the dtype and on the device of the model.

    Args:
        model: The classifier.
        images: Probe images (N,C,H,W).
        layer: The explained layer; None for the last with a spatial output.
        methods: Whose captures the pass makes too.
        calling: What else the model is given, where its logits are, and the context it runs in.

    Returns:
        The explained layer, under which the trace has it, and the trace.

    Raises:
        ValueError: If a layer does not exist, the logits are not finite, or there is one only.
    """
    require_model(model, calling)
    require_images(images)
    images = for_model(model, images)
    module = last_spatial_layer(model, images, calling) if layer is None else find_layer(model, layer)
    capture = Capture({module: module}) | capture_for(model, methods.values(), module)
    trace = run(model, images, capture, calling)
    check_logits(trace.logits)
    require_logits(trace)
    return module, trace


def methods_of(attributions: Mapping[str, Attribution] | None) -> dict[str, Attribution]:
    """Named methods, of which there may be none, each checked to be one."""
    none = attributions is None or (isinstance(attributions, Mapping) and not attributions)
    return {} if attributions is None or none else named_attributions(attributions)


def for_model(model: nn.Module, images: Tensor) -> Tensor:
    """Images where the model is, in its precision."""
    like = next((one for one in model.parameters() if one.is_floating_point()), images)
    return images.to(like.device, like.dtype)


def evidence_of(trace: Trace, module: nn.Module, targets: Tensor, methods: Mapping[str, Attribution]) -> Evidence:
    """What a pass shows of a model: three sweeps from the logits to the layer, and what the methods cost.

    Raises:
        ValueError: If a method has no field ``score``, or the name of a map at the layer.
    """
    with trace.computing():
        targets = targets.to(trace.logits.device, copy=True)  # may have been made in inference mode

        def maps(score: Score) -> dict[str, Tensor]:
            return {name: _small(one) for name, one in signed_maps(trace, module, targets, score, methods).items()}

        return Evidence(
            logits=at_least_float32(trace.logits).cpu(),
            common=sketch(trace.gradient(mean_logit, targets, of=module)),
            centered=sketch(trace.gradient(centered, targets, of=module)),
            raw_maps=maps(pre_softmax),
            zero_sum_maps=maps(centered),
            eps=_precision(trace.logits, trace.activation(module)),
            functions=autograd_functions(trace.nodes),
        )


def sketch(gradients: Tensor) -> Tensor:
    """A random linear projection to a few numbers that keeps lengths and distances (count sketch).

    Each entry is added, with a random sign, to one of `SKETCH` sums (Weinberger et al., "Feature Hashing", 2009):
    squared lengths are right on average, with a relative deviation of ``sqrt(2 / 128) = 12 %``. Signs and sums are
    settled by a fixed seed and the number of entries. Gradients (N,...) become (N,128) on the CPU.

    Example:
        >>> 0.8 < sketch(torch.ones(1, 10_000)).norm().item() / 100 < 1.2
        True
    """
    values = at_least_float32(gradients).flatten(1).cpu()
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(SKETCH, (values.shape[1],), generator=generator)
    signs = torch.randint(2, (values.shape[1],), generator=generator) * 2 - 1
    return values.new_zeros(len(values), SKETCH).index_add_(1, sums, values * signs)


def _small(maps: Tensor) -> Tensor:
    _, height, width = maps.shape
    return F.adaptive_avg_pool2d(maps[:, None], (min(height, MAP_SIZE), min(width, MAP_SIZE)))[:, 0].cpu()


def _precision(*values: Tensor) -> float:
    """Spacing of the coarsest numbers that the pass computed with. Weights do not count: any can be rounded."""
    eps = max(torch.finfo(value.dtype).eps for value in values)
    tf32 = values[0].is_cuda and torch.backends.cudnn.allow_tf32 and any(one.dtype is torch.float32 for one in values)
    return max(eps, 2.0**-10) if tf32 else eps


_ABOUT: dict[str, Callable[[Any], bool]] = {
    "layer": lambda value: isinstance(value, str),
    "layer_shape": lambda value: _is_list_of(int, value) and len(value) == 3,
    "eps": lambda value: isinstance(value, float) and 0 < value <= torch.finfo(torch.bfloat16).eps,
    "functions": lambda value: _is_list_of(str, value),
    "images": lambda value: isinstance(value, str),
    "digest": lambda value: (
        isinstance(value, dict)
        and set(value) == {one.name for one in fields(Digest)}
        and _is_list_of(str, list(value.values()))
    ),
}


def fault_of(about: Any, tensors: Mapping[str, Tensor], maps: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The first fault of a file that says of itself that it is a fingerprint; None for what `Fingerprint.save` writes.

    Example:
        >>> fault_of({}, {}, {})
        'no proper `layer`'
    """
    wrong = [name for name, fits in _ABOUT.items() if not isinstance(about, dict) or not fits(about.get(name))]
    if wrong:
        return f"no proper `{wrong[0]}`"
    logits = tensors.get("logits")
    if logits is None or logits.ndim != 2 or logits.shape[1] < 2 or 0 in logits.shape:
        return "no logits (N,K) of at least 2 classes"
    names = {kind: set(maps[kind]) for kind in KINDS}
    if names[KINDS[0]] != names[KINDS[1]] or not names[KINDS[0]].issuperset(AT_LAYER):
        return f"maps of {sorted(names[KINDS[0]])} and of {sorted(names[KINDS[1]])}, expected {list(AT_LAYER)} of both"
    shapes: dict[str, tuple[int, ...]] = {name: (len(logits), SKETCH) for name in ("common", "centered")}
    shapes |= {name: (len(logits), *one.shape[1:]) for name, one in tensors.items() if name.startswith(KINDS)}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape or (name.startswith(KINDS) and len(shape) != 3):
            return f"no `{name}` for each of the {len(logits)} images of its logits"
    bad = [name for name, one in tensors.items() if not one.is_floating_point() or not one.isfinite().all()]
    return f"numbers in `{bad[0]}` that are not finite" if bad else None


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)
