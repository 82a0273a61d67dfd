"""The classifier that a recipe explains: one trained here on images drawn here, or a given one on photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.data.boxed import BoxedImages, most_probable_of
from common.data.images import ImageData, eval_transform, image_data
from common.data.planted import CLASSES, PlantedEvidence, planted_evidence
from common.networks import classifier_of, save_weights
from common.options import DataOptions, ModelOptions
from common.planted_network import STANDARD, small_network, standardized, trained
from common.run import first_images, in_chunks
from lightning_xai.networks import load_weights
from lightning_xai.types import TargetRule


@dataclass(frozen=True)
class Subject:
    """A classifier as it is explained.

    Attributes:
        network: In evaluation mode, on the device.
        mean: Mean by which its images are standardised.
        std: Standard deviation by which they are.
        classes: Names of the classes by index.
        layer: The layer that is explained; None for the last one with a spatial output.
        device: Where it computes.
        batch_size: Images in a pass.
        name: Its name in tables.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str] = ()
    layer: str | None = None
    device: str = "cpu"
    batch_size: int = 8
    name: str = ""

    @property
    def standard(self) -> dict[str, Any]:
        """Mean and standard deviation as keywords of attributions, metrics and callbacks."""
        return {"mean": tuple(self.mean), "std": tuple(self.std)}

    def predict(self, images: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,K), in batches and without a graph."""
        with torch.no_grad():
            return torch.cat([self.network(batch) for batch in self.batches(images)])

    def batches(self, *parts: Tensor) -> Iterator[Any]:
        """Batches on the device: of one tensor the tensors, of several tuples of them."""
        slices = zip(*(in_chunks(part, self.batch_size) for part in parts), strict=True)
        for one in slices:
            moved = tuple(part.to(self.device) for part in one)
            yield moved if len(parts) > 1 else moved[0]


def drawn_here(
    folder: Path, seed: int, *, small: bool = False, layer: str | None = None, device: str = "cpu", batch_size: int = 8
) -> Subject:
    """A small network trained on images with planted evidence; a resumed run goes on with the very same one.

    It is read from or written to the run's folder; ``layer`` None is its second rectifier, ``small`` to try a script.
    """
    weights, model = folder / "network.safetensors", small_network().eval()
    if not weights.exists():
        save_weights(trained(seed, 256 if small else 1536), weights)
    load_weights(model, weights)
    name = "A small network trained here"
    return Subject(model.to(device), *STANDARD, CLASSES, layer or "6", device, batch_size, name)


def planted(n: int, seed: int) -> PlantedEvidence:
    """Images (n,3,40,40), standardised as for `drawn_here`, their labels, and masks of what decides their class.

    The training images of `drawn_here` have its seed: take another one.
    """
    found = planted_evidence(torch.arange(n) % len(CLASSES), seed=seed)
    return found._replace(images=standardized(found.images))


def given(
    data: DataOptions, model: ModelOptions, *, seed: int = 0, device: str = "cpu", batch_size: int | None = None
) -> tuple[Subject, ImageData]:
    """The classifier that a command line asks for, and its photographs; the seed is of the order of training images."""
    images = image_data(data, model, seed=seed)
    network = classifier_of(model, len(images.classes)).eval().to(device)
    name = str(model.model).rpartition(":")[2]
    size = batch_size or data.batch_size
    return Subject(network, images.mean, images.std, images.classes, model.layer, device, size, name), images


@dataclass(frozen=True)
class Boxed:
    """Images of which it is known where their object is.

    Attributes:
        items: Items ``(image (C,H,W), number of its label, mask (H,W) of the object)``.
        targets: From logits and numbers of labels to the classes that are explained.
        n_classes: How many of the classifier's classes each label stands for.
    """

    items: Dataset[Any]
    targets: TargetRule
    n_classes: Sequence[int] = ()

    def first(self, n: int, data: DataOptions) -> list[Tensor]:
        """The first n images (N,C,H,W), numbers of their labels (N,) and masks (N,H,W)."""
        return first_images(DataLoader(self.items, batch_size=data.batch_size, num_workers=data.workers), n, 3)


def boxed(folder: Path, data: DataOptions, subject: Subject) -> Boxed:
    """The photographs of a folder with ``boxes.csv``, see `BoxedImages`."""
    found = BoxedImages(folder, eval_transform(data.image_size, subject.mean, subject.std))
    return Boxed(found, most_probable_of(found.classes), [len(one) for one in found.classes])
