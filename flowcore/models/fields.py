"""Checks of configuration fields, whose values may come from untrusted files; every message names the field."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable
from typing import Any

from ..errors import FlowError

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = 16
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def short_repr(value: Any) -> str:
    """Write a value for a message: at most 200 characters, whatever a file contains.

    Args:
        value: Any.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def check_integer(config: Any, **limits: tuple[int, int]) -> None:
    """Refuse fields that are not whole numbers within their limits; True and 4.0 are none.

    Args:
        config: A configuration.
        limits: Field name to the smallest and largest value.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if type(value) is not int or not low <= value <= high:
            raise FlowError(f"{name} must be a whole number from {low} to {high}; got {short_repr(value)}.")


def check_number(config: Any, **limits: tuple[float, float]) -> None:
    """Refuse fields that are not numbers within their limits, the upper one excluded.

    Args:
        config: A configuration.
        limits: Field name to the smallest value and the first that is too large.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if type(value) not in (int, float) or not low <= value < high or not math.isfinite(value):
            raise FlowError(f"{name} must lie in [{low}, {high}); got {short_repr(value)}.")


def check_share(config: Any, *names: str) -> None:
    """Refuse fields that are not numbers in [0, 1].

    Args:
        config: A configuration.
        names: The fields.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise FlowError(f"{name} must lie in [0, 1]; got {short_repr(value)}.")


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
            raise FlowError(f"{name} must be {listed}; got {short_repr(value)}.")


def integer_tuple(config: Any, name: str, low: int, high: int) -> tuple[int, ...]:
    """Read a field of several whole numbers; JSON has lists for tuples.

    Args:
        config: A configuration.
        name: The field.
        low: Smallest value.
        high: Largest value.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    value = getattr(config, name)
    if type(value) not in (list, tuple) or any(type(n) is not int or not low <= n <= high for n in value):
        value = tuple(value) if type(value) is list else value
        raise FlowError(f"{name} must be whole numbers from {low} to {high}; got {short_repr(value)}.")
    return tuple(value)


def name_tuple(config: Any, name: str) -> tuple[str, ...]:
    """Read a field of several different names; JSON has lists for tuples.

    Args:
        config: A configuration.
        name: The field.

    Raises:
        FlowError: Naming the field, its value and what it may be.
    """
    value: Any = getattr(config, name)
    named = type(value) in (list, tuple) and all(isinstance(item, str) and item for item in value)
    if not named or len(set(value)) < len(value):
        raise FlowError(f"{name} must be a list of different names; got {short_repr(value)}.")
    return tuple(value)


def size_tuple(config: Any, multiple: int) -> tuple[int, int] | None:
    """Read the field ``image_size``: a side, or height and width, or None.

    Args:
        config: A configuration.
        multiple: Divisor of both sides.

    Returns:
        Height and width.

    Raises:
        FlowError: If it is not a size, or not divisible.
    """
    value: Any = config.image_size
    if value is None:
        return None
    sides = (value, value) if type(value) is int else value
    if (
        type(sides) not in (list, tuple)
        or len(sides) != 2
        or any(type(side) is not int or not 1 <= side <= 16384 or side % multiple for side in sides)
    ):
        raise FlowError(
            f"image_size must be a side, or a height and a width, in multiples of {multiple}; got {short_repr(value)}."
        )
    return sides[0], sides[1]


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Ask for the nearest of some choices, as a sentence for an error message.

    Args:
        word: What was written.
        choices: What might have been meant.

    Returns:
        " Did you mean NAME?"; "" if nothing is near.
    """
    near = difflib.get_close_matches(word[:100], list(choices), 1)
    return f" Did you mean {near[0]}?" if near else ""
