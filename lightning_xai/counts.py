"""Numbers that a user gives, checked where they are given."""

from __future__ import annotations

from numbers import Integral, Real


def require_number(name: str, value: object) -> None:
    """Check that an argument is a number.

    Raises:
        TypeError: If it is none.

    Example:
        >>> require_number("fraction", 0.5)
    """
    if not isinstance(value, Real):
        raise TypeError(f"`{name}` expected a number, got {type(value).__name__}.")


def require_count(name: str, value: object, none: str = "") -> None:
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
    if not isinstance(value, Integral):
        raise TypeError(f"`{name}` expected a whole number, {wanted}, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"`{name}` expected {wanted}, got {value}.")
