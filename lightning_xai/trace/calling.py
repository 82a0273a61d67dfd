"""How a classifier is called: what it is given besides images, and which part of what it gives are the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_xai.kinds import require_kinds
from lightning_xai.types import ForwardContext, LogitsOf


class _Images:
    def __repr__(self) -> str:
        return "IMAGES"


IMAGES = _Images()
"""Stands where the images go, among the arguments of a `Calling`."""


def logits_of(output: Any) -> Tensor | None:
    """The logits in what a classifier gives: the tensor itself, what is called ``logits``, or the first (N,K) tensor.

    So outputs of Hugging Face models are understood, dicts and tuples, and the auxiliary outputs of Inception and
    GoogLeNet.

    Args:
        output: What a classifier gives.

    Returns:
        The logits; None where there are none.

    Example:
        >>> import torch
        >>> logits_of({"features": torch.zeros(1, 7), "logits": torch.ones(1, 2)})
        tensor([[1., 1.]])
    """
    if isinstance(output, Tensor):
        return output
    named = _named(output)
    return named if isinstance(named, Tensor) else next(iter(_candidates(output)), None)


def has_several(output: Any) -> bool:
    """Whether an output holds several tensors that may be the logits, none of which is called so."""
    return not isinstance(_named(output), Tensor) and len(_candidates(output)) > 1


def _named(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _candidates(output: Any) -> list[Tensor]:
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [one for one in parts if isinstance(one, Tensor) and one.ndim == 2 and one.is_floating_point()]


def is_image_batch(value: object) -> bool:
    """Whether a value looks like images (N,C,H,W) of a floating dtype.

    Args:
        value: Any argument of a forward.

    Returns:
        True if so.
    """
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def kind_of(value: object) -> str:
    """What there is in the place of images, in the words of an error."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested or value.layout is not torch.strided:
        return "a nested tensor" if value.is_nested else f"{value.layout}"
    volumes = ", which are no images: volumes (N, C, D, H, W) are not explained" if value.ndim == 5 else ""
    meta = ", without values, on the meta device" if value.is_meta else ""
    return f"{value.dtype} of shape {tuple(value.shape)}{volumes}{meta}"


def images_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first batch of images among the arguments of a call, in dicts and lists, too; None where there is none."""
    return next((one for one in tree_leaves((args, dict(kwargs))) if is_image_batch(one)), None)


@contextmanager
def naming_images(model: object, images: Tensor) -> Iterator[None]:
    """Errors of torch say inside what the model was given: images of another dtype, size or device, as a rule.

    Args:
        model: Who is called.
        images: What it is given.

    Raises:
        RuntimeError: What was raised, with a sentence before it; so for TypeError.

    Example:
        >>> with naming_images(nn.Conv2d(3, 1, 1), torch.ones(1, 1, 2, 2)):
        ...     nn.Conv2d(3, 1, 1)(torch.ones(1, 1, 2, 2))
        Traceback (most recent call last):
        ...
        RuntimeError: `model` cannot run on images of torch.float32 of shape (1, 1, 2, 2) on cpu, its parameters ...
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if type(error) not in (RuntimeError, TypeError) or "`" in str(error):  # ours, or of a kind of its own
            raise
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        own = "" if first is None else f", its parameters being {first.dtype} on {first.device}"
        told = f"`model` cannot run on images of {kind_of(images)} on {images.device}{own}. It says: {error}"
        raise type(error)(told) from error


@dataclass(frozen=True, eq=False)
class Calling:
    """How a classifier is called besides its images, and how what it gives is understood.

    Tensors with one row for each image stay with their images, wherever a method runs some of them, or many copies.

    Attributes:
        args: Positional arguments. `IMAGES` stands where the images go; without it they come first.
        kwargs: Keyword arguments; `IMAGES` may stand among them, too.
        logits_of: Finds the logits (N,K) in what the model gives.
        context: Makes the context in which the model runs, such as a precision plugin's autocast.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class WithMetaData(nn.Module):
        ...     def forward(self, images, meta):
        ...         return {"features": images.mean((2, 3)), "main": images.mean((2, 3)) + meta}
        >>> calling = Calling((torch.tensor([[1.0], [2.0]]),), logits_of=lambda output: output["main"])
        >>> calling.logits(WithMetaData(), torch.zeros(2, 3, 4, 4))
        tensor([[1., 1., 1.],
                [2., 2., 2.]])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    logits_of: LogitsOf = logits_of
    context: ForwardContext = nullcontext

    def __post_init__(self) -> None:
        require_kinds(Calling, args=self.args, kwargs=self.kwargs, logits_of=self.logits_of)

    def given(self, images: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, with these images."""
        args = self.args if any(one is IMAGES for one in self._leaves) else (IMAGES, *self.args)
        filled: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(
            lambda one: images if one is IMAGES else one, (args, dict(self.kwargs))
        )
        return filled

    def logits(self, model: Callable[..., Any], images: Tensor) -> Tensor:
        """Call the model, and find the logits in what it gives.

        Raises:
            ValueError: If there are none.
        """
        args, kwargs = self.given(images)
        with naming_images(model, images):
            output = model(*args, **kwargs)
        return self.found(output, len(images))

    def found(self, output: Any, n: int) -> Tensor:
        """The logits in an output.

        Raises:
            ValueError: If there are none.
        """
        logits = self.understood(output, n)
        if logits is None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"`model` expected to give logits (N, K) = ({n}, K), got {shape}. Wrap it in a module whose forward "
                "returns the logits alone, or say where they are: `Calling(logits_of=lambda output: output[1])`, say."
            )
        return logits

    def understood(self, output: Any, n: int) -> Tensor | None:
        """The logits (N,K) in an output; None where there are none, as in what other modules give."""
        logits = self.logits_of(output)
        is_logits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == n
        return logits if is_logits else None

    def heard(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], images: Tensor) -> Calling:
        """The same with the arguments of a call that was heard, so that it can be repeated with other images."""
        args, kwargs = tree_map(lambda one: IMAGES if one is images else one, (args, dict(kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def has_rows(self, n: int) -> bool:
        """Whether any argument has one row for each of n images."""
        return any(_has_rows(one, n) for one in self._leaves)

    def of(self, rows: Tensor, n: int) -> Calling:
        """The same for M other images, made from these of the n images, (M,).

        Example:
            >>> import torch
            >>> Calling((torch.tensor([5.0, 6.0]),)).of(torch.tensor([1, 1, 0]), 2).args
            (tensor([6., 6., 5.]),)
        """

        def chosen(one: Any) -> Any:
            return one[rows.to(one.device)] if _has_rows(one, n) else one

        args, kwargs = tree_map(chosen, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def to(self, device: torch.device | str) -> Calling:
        """The same with all tensors on a device."""
        args, kwargs = tree_map(
            lambda one: one.to(device) if isinstance(one, Tensor) else one, (self.args, dict(self.kwargs))
        )
        return replace(self, args=args, kwargs=kwargs)

    @staticmethod
    def joined(callings: Sequence[Calling], counts: Sequence[int]) -> Calling:
        """The calling for the images of several batches together; what has no row for each image is the first one's.

        Example:
            >>> import torch
            >>> one, other = Calling((torch.tensor([5.0]),)), Calling((torch.tensor([6.0, 7.0]),))
            >>> Calling.joined([one, other], [1, 2]).args
            (tensor([5., 6., 7.]),)
        """

        def together(*values: Any) -> Any:
            if all(_has_rows(one, n) for one, n in zip(values, counts, strict=True)):
                return torch.cat(values)
            return values[0]

        args, kwargs = tree_map(together, *((one.args, dict(one.kwargs)) for one in callings))
        return replace(callings[0], args=args, kwargs=kwargs)

    @property
    def _leaves(self) -> list[Any]:
        leaves: list[Any] = tree_leaves((self.args, dict(self.kwargs)))
        return leaves


def _has_rows(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n
