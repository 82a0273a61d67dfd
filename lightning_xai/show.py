"""``show()``: the first picture of what a classifier looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from lightning_xai.attribution import Attribution, GradCAM
from lightning_xai.baselines import to_pixels
from lightning_xai.explain import attribute, named_attributions, trace_of
from lightning_xai.images import read_image, upright
from lightning_xai.kinds import fits, require_kinds
from lightning_xai.networks import Preprocessing, class_names_of, preprocessing_of
from lightning_xai.scores import log_sigmoid, log_softmax, resolve_targets
from lightning_xai.trace import kind_of, plain_tensors, require_model
from lightning_xai.types import Score, Targets
from lightning_xai.visualization import Panel, overlay

_TOLD = 5
_TILE = 2.8


def show(
    model: nn.Module,
    image: Any,
    *,
    attributions: Attribution | Mapping[str, Attribution] | None = None,
    targets: Targets = None,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    log_probability: Score = log_softmax,
) -> Figure:
    """A figure of an image and what a classifier looked at, with the most probable classes.

    A row for each method, a column for each explained class, in the colours of `visualization.heatmap`: bright where
    the network looks, or red for and blue against the class where a method tells them apart.

    What is shown of the image is what the classifier got of it. A notebook shows the figure, and
    ``figure.savefig("a.png")`` writes it.

    Args:
        model: The classifier.
        image: A file, a picture of PIL, an array (H,W,3) of bytes or of numbers in [0, 1], or a tensor: (C,H,W) or
            (1,C,H,W), of bytes, or of floating numbers just as the classifier gets them.
        attributions: One method, or a dict of named methods; None for Grad-CAM.
        targets: Which classes are explained, side by side: a class, several, or a rule; None for the predicted
            one, with ``log_sigmoid`` all of probability 0.5 or more.
        transform: What makes tensors of pictures: a transform of torchvision or timm, timm's data configuration, or an
            image processor of Hugging Face. None for the model's own where timm or Hugging Face made it, else that of
            ImageNet, which is logged.
        class_names: Names of the classes; None for the model's own, or ImageNet's for 1000 classes.
        log_probability: The confidence; ``log_sigmoid`` for one-logit and multi-label heads.

    Returns:
        A matplotlib figure, independent of pyplot.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the file is no image, or there are no such classes.

    Example:
        >>> from torchvision.transforms import ToTensor
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> figure = show(model, Image.new("RGB", (32, 32)), targets=[0, 3], transform=ToTensor())
        >>> [text.get_text() for text in figure.texts][-3:]
        ['image', '0', '3']
    """
    require_model(model)
    require_kinds(show, targets=targets, class_names=class_names, log_probability=log_probability)
    methods = named_attributions(GradCAM() if attributions is None else attributions)
    wanted = preprocessing_of(model, transform)
    images = _as_batch(image, wanted).to(next(model.parameters(), torch.empty(0)))
    trace = trace_of(model, images, methods)
    with plain_tensors():
        n = max(trace.logits.shape[1], 2)
        probabilities = log_probability(trace.logits.expand(n, -1), torch.arange(n, device=images.device)).exp()
        chosen = _chosen(targets, trace.logits, probabilities, log_probability)
        names = _names(class_names_of(model, trace.logits.shape[1]) if class_names is None else class_names, n)
        mean, std = wanted.standard if wanted.standard[0] else ((0.0,) * images.shape[1], (1.0,) * images.shape[1])
        pixels = to_pixels(images, mean, std).cpu()
        drawn = {}
        for one in chosen:
            maps = attribute(trace, torch.tensor([one], device=images.device), methods)
            drawn[names[one]] = torch.cat([overlay(pixels, values.cpu()) for values in maps.values()])
        most = probabilities.topk(min(_TOLD, n)).indices.tolist()
    beside = [None] * (len(methods) - 1)
    facts = {names[one]: [float(probabilities[one]), *beside] for one in dict.fromkeys([*most, *chosen])}
    rows = pixels.expand(len(methods), -1, -1, -1)
    return Panel(rows, drawn, {"method": [*methods]} | facts).figure(tile=_TILE)


def _as_batch(image: Any, wanted: Preprocessing) -> Tensor:
    """An image as the classifier gets it, (1,C,H,W)."""
    if fits(image, Tensor) and image.is_floating_point():
        batch = image if image.ndim == 4 else image[None]
        if batch.ndim == 4 and len(batch) == 1:
            return batch
        raise ValueError(f"`image` expected one image (C, H, W), got shape {tuple(image.shape)}.")
    if isinstance(image, (str, Path)):
        image = read_image(Path(image))
    elif isinstance(image, (Tensor, np.ndarray)):
        image = _as_picture(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"`image` expected a file, a picture of PIL, an array or a tensor, got {type(image).__name__}.")
    return wanted.transform(upright(image))[None]


def _as_picture(image: Tensor | np.ndarray) -> Image.Image:
    try:
        if isinstance(image, Tensor):
            return to_pil_image(image[0] if image.ndim == 4 and len(image) == 1 else image)
        return Image.fromarray(_as_bytes(image))
    except (RuntimeError, TypeError, ValueError) as error:
        told = kind_of(image) if isinstance(image, Tensor) else f"{image.dtype} of shape {image.shape}"
        raise ValueError(f"`image` expected bytes, (C, H, W) or (H, W, 3) in an array, got {told}: {error}") from error


def _as_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"`image` expected an array of bytes or of numbers in [0, 1], got {array.dtype}.")
    return (array * 255).round().astype(np.uint8)


def _chosen(targets: Any, logits: Tensor, probabilities: Tensor, log_probability: Score) -> list[int]:
    """Numbers of the classes that are explained."""
    if targets is None and log_probability is log_sigmoid and logits.shape[1] > 1:
        likely = [one for one in probabilities.argsort(descending=True).tolist() if probabilities[one] >= 0.5]
        return likely or [int(probabilities.argmax())]
    is_list = isinstance(targets, Sequence) and not isinstance(targets, str | bytes)
    if is_list or (isinstance(targets, Tensor) and targets.ndim):
        return resolve_targets(targets, logits.expand(len(targets), -1)).tolist()
    return resolve_targets(targets, logits).tolist()


def _names(names: Sequence[str] | None, n: int) -> list[str]:
    """A name for each class, no two alike: ImageNet has two cranes."""
    if names is not None and len(names) < n:
        raise ValueError(f"`class_names` expected a name for each of the {n} classes, got {len(names)}.")
    told = [str(i) for i in range(n)] if names is None else [str(one) for one in names]
    return [f"{one} ({i})" if told.count(one) > 1 else one for i, one in enumerate(told)]
