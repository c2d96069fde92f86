"""Checks of configuration fields, for values that come from strangers' files: the sentence names the field."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from ..errors import FlowError

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = 16
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Write a value for a message: short, whatever a stranger's file holds.

    Args:
        value: Any.

    Returns:
        Its repr, with long and deep parts left out.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def check_whole(config: Any, **limits: tuple[int, int]) -> None:
    """Refuse fields that are no whole number within their limits; True and 4.0 are none.

    Args:
        config: A configuration.
        limits: Field name to the smallest and largest value.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if type(value) is not int or not low <= value <= high:
            raise FlowError(f"{name} must be a whole number from {low} to {high}; got {shown(value)}.")


def check_number(config: Any, **limits: tuple[float, float]) -> None:
    """Refuse fields that are no number within their limits, the upper one excluded.

    Args:
        config: A configuration.
        limits: Field name to the smallest value and the first that is too large.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if type(value) not in (int, float) or not low <= value < high or not math.isfinite(value):
            raise FlowError(f"{name} must lie in [{low}, {high}); got {shown(value)}.")


def check_choice(config: Any, **choices: tuple[Any, ...]) -> None:
    """Refuse fields that are none of their choices.

    Args:
        config: A configuration.
        choices: Field name to the values that it may have.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    for name, allowed in choices.items():
        value = getattr(config, name)
        if not any(type(value) is type(option) and value == option for option in allowed):
            listed = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
            raise FlowError(f"{name} must be {listed}; got {shown(value)}.")


def image_size(config: Any, multiple: int) -> tuple[int, int] | None:
    """Read the field ``image_size``: a side, or height and width, or None.

    Args:
        config: A configuration.
        multiple: What the sides must be multiples of.

    Returns:
        Height and width.

    Raises:
        FlowError: If it is no size, or does not fit.
    """
    value: Any = config.image_size
    if value is None:
        return None
    sides = (value, value) if type(value) is int else value
    whole = isinstance(sides, (list, tuple)) and all(type(side) is int and 1 <= side <= 16384 for side in sides)  # pyright: ignore[reportUnknownVariableType]
    if not whole or len(sides) != 2 or any(side % multiple for side in sides):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise FlowError(
            f"image_size must be a side, or a height and a width, in multiples of {multiple}; got {shown(value)}."
        )
    return tuple(sides)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType, reportReturnType]
