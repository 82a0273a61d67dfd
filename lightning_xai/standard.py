"""Mean and standard deviation of images, said once: as numbers, or by whatever standardises them already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from lightning_xai.kinds import fits

Standard: TypeAlias = Sequence[float] | Callable[..., Any] | Mapping[str, Any]
"""What ``mean=`` takes: one number for each channel, with ``std=``; or, alone, something that says both: a
transform of torchvision (``Normalize``, ``Compose``, those of v2, ``weights.transforms()``) or timm, timm's data
configuration, an image processor of Hugging Face, or a dataset with one of them."""

Numbers: TypeAlias = tuple[float, ...]

_PAIRS = ("mean", "std"), ("image_mean", "image_std")
_INSIDE = "transform", "transforms", "pretrained_cfg", "dataset", "datasets"
_DEEPEST = 8
HOW_TO_SAY = (
    "Pass one number for each channel to both, `mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)` say, or to `mean` alone "
    "what standardises the images: a transform, timm's data configuration, or an image processor."
)


def standard_of(mean: Standard | None, std: Sequence[float] | None = None) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation in numbers.

    Args:
        mean: The mean of each channel, or what says both.
        std: The standard deviation of each channel; None where ``mean`` says both.

    Returns:
        Mean and standard deviation, one number for each channel.

    Raises:
        TypeError: If one of them is a single number, or none is found.
        ValueError: If their lengths differ, or several are found.

    Example:
        >>> from torchvision.transforms import v2
        >>> standard_of(v2.Compose([v2.CenterCrop(8), v2.Normalize([0.5], [0.25])]))
        ((0.5,), (0.25,))
        >>> standard_of(0.5, 0.25)
        Traceback (most recent call last):
        ...
        TypeError: `mean` and `std` expected one number for each channel, got 0.5 and 0.25. Pass ...
    """
    if isinstance(mean, (int, float)) or isinstance(std, (int, float)) or mean is None:
        raise TypeError(f"`mean` and `std` expected one number for each channel, got {mean} and {std}. {HOW_TO_SAY}")
    numbers = _numbers(mean), _numbers(std)
    if numbers[0] is None:
        return _said_by(mean, std)
    if numbers[1] is None or len(numbers[0]) != len(numbers[1]) or min(numbers[1], default=0) <= 0:
        raise ValueError(
            f"`mean` and `std` expected as many numbers, those of `std` above 0, got {mean} and {std}. {HOW_TO_SAY}"
        )
    return numbers[0], numbers[1]


def found_standards(source: Any) -> set[tuple[Numbers, Numbers]]:
    """Every mean and deviation that a transform, a configuration or a dataset names.

    Args:
        source: What may name them; transforms in transforms and datasets in datasets are looked through.

    Example:
        >>> found_standards({"input_size": (3, 8, 8), "mean": (0.5,), "std": (0.25,)})
        {((0.5,), (0.25,))}
    """
    return set(_found(source, _DEEPEST))


def _said_by(source: Any, std: Any) -> tuple[Numbers, Numbers]:
    kind = type(source).__name__
    if std is not None:
        raise ValueError(f"`std` expected None where `mean` says both, got {std} beside {kind}.")
    found = found_standards(source)
    if not found:
        raise TypeError(f"`mean` expected numbers or what names mean and std, got {kind}, which does not. {HOW_TO_SAY}")
    if len(found) > 1:
        raise ValueError(f"`mean` expected one standardisation, got {kind} with {sorted(found)}. {HOW_TO_SAY}")
    return found.pop()


def _found(source: Any, depth: int) -> Iterator[tuple[Numbers, Numbers]]:
    if depth == 0 or source is None:
        return
    for names in _PAIRS:
        mean, std = (_numbers(_part(source, name)) for name in names)
        if mean and std and getattr(source, "do_normalize", True):
            yield mean, std
            return
    for inner in [_part(source, name) for name in _INSIDE]:
        items = inner if isinstance(inner, (list, tuple, nn.ModuleList)) else [inner]
        for item in items:
            yield from _found(item, depth - 1)
    if isinstance(source, nn.Sequential):
        for item in source:
            yield from _found(item, depth - 1)


def _part(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _numbers(values: Any) -> Numbers | None:
    """Numbers of a sequence, array or tensor; None of anything else, such as the method ``mean`` of an array."""
    if isinstance(values, Tensor) and not fits(values, Tensor):
        return None
    values = values.tolist() if hasattr(values, "tolist") else values
    usual = isinstance(values, Sequence) and all(isinstance(one, (int, float)) for one in values)
    return tuple(map(float, values)) if usual else None
