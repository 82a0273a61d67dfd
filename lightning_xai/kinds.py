"""Whether what a user gives is what the annotation of an argument says, checked where it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from inspect import Parameter, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a name",
    NoneType: "None",
}
_WORDS |= {Callable: "a function", Sequence: "a sequence", tuple: "a tuple", Mapping: "a dict"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "names"}
_LARGEST = 2**63


def require_kinds(annotated: Any, **values: object) -> None:
    """Check arguments against the annotations of a function or of the fields of a class.

    Args:
        annotated: The function or class.
        values: The arguments by name; those without an annotation may be anything.

    Raises:
        TypeError: If one of them is something else; a class is no function.
        ValueError: If it is another text than those of a ``Literal``.

    Example:
        >>> def draw(n: int, names: Sequence[str] | None = None, shown: Literal["all", "best"] = "all") -> None: ...
        >>> require_kinds(draw, n=1, names=["cat"], shown="best")
        >>> require_kinds(draw, names="cat")
        Traceback (most recent call last):
        ...
        TypeError: `names` expected a sequence of names or None, got 'cat'; the default is None.
    """
    kinds = _kinds(annotated)
    for name, value in values.items():
        if not fits(value, kinds.get(name, Any)):
            create = f" Create it: `{value.__name__}()`." if isinstance(value, type) else ""
            default = signature(annotated).parameters[name].default
            usual = "" if default is Parameter.empty else f"; the default is {getattr(default, '__name__', default)}"
            another = isinstance(value, str) and get_origin(kinds[name]) is Literal
            told = f"`{name}` expected {_in_words(kinds[name])}, got {_told(value)}{usual}.{create}"
            raise (ValueError if another else TypeError)(told)


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated kind.

    Numbers are those of numpy, too, and True is none; numbers in an array or tensor are a sequence of them. Tensors
    have values, one beside the other: they are not sparse, nested or on the meta device.

    Example:
        >>> fits(True, int), fits(3, float), fits(int, Callable), fits([1], Sequence[float] | None)
        (False, True, False, True)
    """
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if outer is Literal:
        return isinstance(value, str | int) and value in inner
    if outer in _CHECKS:
        return _CHECKS[outer](value, *inner)
    return not isinstance(outer, type) or isinstance(value, outer)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_sequence(value: Any, of: Any = Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 1 and of is float
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(fits(one, of) for one in value)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta


_CHECKS: dict[Any, Callable[..., bool]] = {
    Any: lambda value: True,
    int: lambda value: _is_number(value) and isinstance(value, Integral) and -_LARGEST <= int(value) < _LARGEST,
    float: _is_number,
    Callable: lambda value, *_: callable(value) and not isinstance(value, type),
    Sequence: _is_sequence,
    Mapping: lambda value, _=Any, of=Any: isinstance(value, Mapping) and all(fits(one, of) for one in value.values()),
    Tensor: lambda value: isinstance(value, Tensor) and _is_plain(value),
}


def require_number(name: str, value: object) -> None:
    """Check that an argument is a number.

    Raises:
        TypeError: If it is none.

    Example:
        >>> require_number("fraction", 0.5)
    """
    if not fits(value, float):
        raise TypeError(f"`{name}` expected a number, got {_told(value)}.")


def require_count(name: str, value: Any, none: str = "") -> None:
    """Check that an argument is a whole number of 1 or more.

    Args:
        name: What the argument is called, for the error.
        value: The number.
        none: What None stands for, where it may stand there.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is less than 1.

    Example:
        >>> require_count("n_images", None, none="all")
    """
    if none and value is None:
        return
    wanted = f"1 or more, or None for {none}" if none else "1 or more"
    if not fits(value, int):
        raise TypeError(f"`{name}` expected a whole number, {wanted}, got {_told(value)}.")
    if value < 1:
        raise ValueError(f"`{name}` expected {wanted}, got {value}.")


@cache
def _kinds(annotated: Any) -> dict[str, Any]:
    return get_type_hints(annotated)


def _in_words(kind: Any) -> str:
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, UnionType):
        return _either(dict.fromkeys(map(_in_words, inner)))
    if outer is Literal:
        return _either(map(repr, inner))
    name = getattr(outer, "__name__", str(outer))
    known = _WORDS.get(outer, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
    return f"{known} of {_SEVERAL[inner[0]]}" if outer is Sequence and inner[0] in _SEVERAL else known


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _told(value: object) -> str:
    """A value that is short as it is, else what it is."""
    if isinstance(value, Tensor):
        return f"a tensor{' that is nested' * value.is_nested} of {value.dtype} and {value.layout} on {value.device}"
    short = isinstance(value, str | int | float | list | tuple | NoneType) and len(repr(value)) < 60
    return repr(value) if short else f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
