"""Classifiers by name, weights from files that are not executed, and which images and classes a classifier knows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from lightning_xai.standard import Numbers, found_standards, standard_of


def create_classifier(
    name: str, num_classes: int | None = None, *, pretrained: bool = False, weights: Path | None = None, **options: Any
) -> nn.Module:
    """A classifier of timm, of torchvision, or of anybody's function or LightningModule.

    Args:
        name: Name in timm's list, else in torchvision's; ``timm:NAME`` or ``torchvision:NAME`` to insist on one;
            ``package.module:function`` for any other function that makes a network; a LightningModule of that name is
            loaded from its checkpoint, with the arguments in it, where ``weights`` is given.
        num_classes: Number of classes; None for the architecture's own.
        pretrained: Whether to download the library's weights.
        weights: File with weights, loaded by `load_weights`.
        options: Further arguments of the constructor.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: If neither library knows the name, or the weights do not fit.
        FileNotFoundError: If the weights file does not exist.
    """
    import timm  # here, since importing it takes long

    source, _, bare = name.rpartition(":")
    if num_classes is not None:
        options["num_classes"] = num_classes
    if source in ("", "timm") and timm.is_model(bare):
        model = timm.create_model(bare, pretrained=pretrained, **options)
    elif source in ("", "torchvision") and bare in torchvision.models.list_models():
        model = _torchvision_model(bare, pretrained, options)
    elif source not in ("", "timm", "torchvision"):
        make = getattr(importlib.import_module(source), bare, None)
        if not callable(make):
            raise ValueError(f"`--model` expected a function or class {bare!r} in {source}, found none.")
        if weights is not None and isinstance(make, type) and issubclass(make, LightningModule):
            return make.load_from_checkpoint(_existing(weights), "cpu", weights_only=True, **options)
        model = make(**options)
    else:
        near = timm.list_models(f"*{bare}*")[:5] or ["resnet18", "resnet50"]
        raise ValueError(
            f"`--model` expected a classifier of timm or torchvision, or package.module:function, got {name!r}. "
            f"Near names: {', '.join(near)}."
        )
    if weights is not None:
        load_weights(model, weights)
    return model


def _torchvision_model(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if not pretrained or "num_classes" not in options:
        return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    # torchvision refuses another number of classes beside its weights: all but the last layer is taken from them
    model = torchvision.models.get_model(name, **options)
    theirs = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    ours = model.state_dict()
    fitting = {key: value for key, value in theirs.items() if value.shape == ours[key].shape}
    model.load_state_dict(fitting, strict=False)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file or a torch or Lightning checkpoint, without executing pickled code.

    A ``state_dict`` inside a checkpoint is found; a prefix that all its keys share (``model.``, ``module.``) is
    stripped.

    Args:
        model: The model; its dtypes are kept.
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If keys or shapes do not fit; they are listed.
    """
    from safetensors.torch import load_file

    safe = _existing(path).suffix == ".safetensors"
    loaded: Any = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    found = _without_prefix(loaded.get("state_dict", loaded), set(model.state_dict()))
    own = model.state_dict()
    troubles = {
        "missing": sorted(set(own) - set(found)),
        "unexpected": sorted(set(found) - set(own)),
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in found and found[key].shape != own[key].shape
        ],
    }
    if any(troubles.values()):
        told = "; ".join(f"{len(keys)} {kind}: {_shortened(keys)}" for kind, keys in troubles.items() if keys)
        raise ValueError(f"`--weights` {path.name} does not fit the model. Keys {told}.")
    model.load_state_dict(found)


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier wants its images.

    Attributes:
        transform: From a picture in RGB to a tensor (C,H,W).
        standard: Mean and deviation by which it standardises; empty where it does not.
    """

    transform: Callable[[Image.Image], Tensor]
    standard: tuple[Numbers, Numbers] = ((), ())


def preprocessing_of(model: nn.Module, transform: Any = None, **changes: Any) -> Preprocessing:
    """How a classifier wants its images: as is said, as its library says, or as ImageNet's are usually given.

    Args:
        model: The classifier, or a module that holds it.
        transform: A transform of torchvision or timm, timm's data configuration, or an image processor of Hugging Face;
            None for what timm's or Hugging Face's models know, else ImageNet's, which is logged.
        changes: What differs, in the words of timm's data configuration: ``input_size``, ``mean``, ``std``.

    Raises:
        TypeError: If the transform is neither.

    Example:
        >>> from torchvision.models import ResNet50_Weights
        >>> wanted = preprocessing_of(nn.Identity(), ResNet50_Weights.DEFAULT.transforms())
        >>> wanted.transform(Image.new("RGB", (300, 400))).shape, wanted.standard
        (torch.Size([3, 224, 224]), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    """
    if transform is None:
        transform = _own_transform(model)
    if changes:
        import timm

        known = dict(transform) if isinstance(transform, Mapping) else {}
        transform = timm.data.resolve_data_config(changes, known)
    if transform is None:
        transform = ResNet18_Weights.DEFAULT.transforms()
        rank_zero_info(
            f"{type(model).__name__} does not say how it wants images: they are given as ImageNet's usually are, the "
            "centre in 224 x 224 pixels, with ImageNet's mean and std. `transform=` says otherwise."
        )
    standard = standard_of(transform) if found_standards(transform) else ((), ())
    if isinstance(transform, Mapping):
        import timm

        try:
            transform = timm.data.create_transform(**transform)
        except TypeError as error:
            raise TypeError(
                f"`transform` expected timm's data configuration, got a dict with others: {error}"
            ) from error
    if not callable(transform):
        raise TypeError(f"`transform` expected a function from a picture to a tensor, got {type(transform).__name__}.")
    if hasattr(transform, "image_processor_type") or hasattr(transform, "image_mean"):  # Hugging Face's
        processor = transform
        return Preprocessing(lambda image: processor(image, return_tensors="pt")["pixel_values"][0], standard)
    return Preprocessing(transform, standard)


def _own_transform(model: nn.Module) -> Any:
    """Timm's data configuration, or the processor beside weights of Hugging Face that are on this machine."""
    for module in model.modules():
        if isinstance(getattr(module, "pretrained_cfg", None), Mapping):
            import timm

            return timm.data.resolve_model_data_config(module)
        if name := getattr(getattr(module, "config", None), "_name_or_path", ""):
            from transformers import AutoImageProcessor  # whose model this is

            with suppress(OSError):  # none beside its weights
                return AutoImageProcessor.from_pretrained(name, local_files_only=True)
    return None


def class_names_of(model: nn.Module, n_classes: int) -> list[str] | None:
    """Names of the classes that a classifier knows, or of ImageNet's thousand.

    Args:
        model: The classifier, or a module that holds it.
        n_classes: How many there are.

    Returns:
        The names by index; None where nobody knows them.

    Example:
        >>> print(class_names_of(nn.Identity(), 7))
        None
    """
    known = [getattr(getattr(module, "config", None), "id2label", None) for module in model.modules()]
    for names in filter(None, known):
        if len(names) == n_classes:
            return [str(names[i]) for i in sorted(names)]
    return imagenet_names() if n_classes == 1000 else None


def imagenet_names() -> list[str]:
    """The names of ImageNet's classes by index, the first of each one's synonyms.

    Example:
        >>> imagenet_names()[:2]
        ['tench', 'goldfish']
    """
    import timm

    info = timm.data.ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"`--weights` expected a file, got {str(path)!r}.")
    return path


def _without_prefix(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    prefixes = {""} | {key.removesuffix(one) for key in state for one in wanted if key.endswith(f".{one}")}

    def stripped(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    return max(map(stripped, sorted(prefixes)), key=lambda found: len(wanted & set(found)))


def _shortened(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f", ... ({len(keys) - most} more)" if len(keys) > most else "")
