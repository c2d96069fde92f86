"""The check of values by type and bounds, also of untrusted files; every message names the field."""

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import NoneType as NONE
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from ..errors import FlowError
from ..flows.stated import Recommendations

SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(Recommendations))
"""Names of configuration fields that recommend how to sample; the flow itself does not depend on them."""
GUIDE_FIELDS = ("guide_layers", "guide_width")
"""Names of configuration fields of the network that makes a model's own guide; the flow does not depend on them."""

WORDS = str, bytes, dict  # what is no number, nor a map or list of numbers
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = 16
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def short_repr(value: object) -> str:
    """Write a value for a message: at most 200 characters, whatever a file contains."""
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


@dataclass(frozen=True)
class Range:
    """Bounds of a numeric field, or of each item of a tuple: ``Annotated[int, Range(1, 64)]``."""

    low: float
    high: float
    open: bool = False  # whether ``high`` itself is excluded


@cache
def annotated_types(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Map the names of a dataclass's fields to their types and annotations; None for one without annotation."""
    hints = get_type_hints(kind, include_extras=True)
    types: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        types[field.name] = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    return types


def check_fields(config: object) -> None:
    """Check the values of a dataclass, see ``check_value``; lists become tuples."""
    for name, (kind, bounds) in annotated_types(type(config)).items():
        object.__setattr__(config, name, check_value(name, getattr(config, name), kind, bounds))


def check_value(name: str, value: Any, kind: Any, bounds: Range | None = None, note: str = "") -> Any:
    """Return a value of a type within its bounds, or raise FlowError with the name, what was expected, and a note.

    Checked are bool, Literal, str, whole numbers, finite numbers, tuples of numbers, and tuples of distinct names, each
    also ``| None``. What has another type, such as a number or a map, is returned as it is; its own code checks it.
    Lists become tuples, and scalars of NumPy and torch numbers of Python.
    """
    value = value.item() if isinstance(value, np.generic) else value
    kinds = [each for each in (get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)) if each != NONE]
    if value is None and kinds != [kind]:
        return None
    if len(kinds) > 1:
        words = [each for each in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(each, WORDS)]
        if float not in kinds or not words:
            return value
        kinds, value = [float], words[0]
    (kind,), given = kinds, value
    if kind in (bool, int, float) and isinstance(value, Tensor) and not value.ndim:
        value = value.item()
    elif get_origin(kind) is tuple and bounds is None and kind != tuple[str, ...]:
        return value  # numbers, such as an ``image_size``, that their own code checks
    elif get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        value = tuple[Any, ...](value)
    if (expected := _expected(value, kind, bounds or Range(-math.inf, math.inf))) is None:
        return value
    number = type(value) in (int, float)
    got = short_repr(given) if number else f"{short_repr(given)}, a {type(given).__name__}"
    if kind in (int, float) and type(value) not in (int, kind):
        note = "Pass a whole number." if kind is int else "Pass a number."
    raise FlowError(f"{name} must {expected}; got {got}. {note}".rstrip())


def _expected(value: Any, kind: Any, bounds: Range) -> str | None:
    """Say what a value must be or do; None if it is or does."""
    origin, low, high = get_origin(kind), bounds.low, bounds.high
    if kind is bool or origin is Literal:
        allowed = (True, False) if kind is bool else get_args(kind)
        if any(type(value) is type(option) and value == option for option in allowed):  # True == 1
            return None
        return f"be {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
    if kind is str:
        return None if isinstance(value, str) else "be a text"
    if kind in (int, float):
        if _is_number(value, kind, bounds):
            return None
        if high < math.inf:
            return f"{'be a whole number in' if kind is int else 'lie in'} [{low}, {high}{')' if bounds.open else ']'}"
        least = f" >= {low:g}" if low > -math.inf else ""
        return f"be a {'whole' if kind is int else 'finite'} number{least}"
    if kind == tuple[str, ...]:
        named = type(value) is tuple and all(isinstance(item, str) and item for item in value)
        return None if named and len({*value}) == len(value) else "be a list of different names"
    if origin is tuple and get_args(kind)[0] in (int, float):
        item, *others = get_args(kind)
        length = 0 if Ellipsis in others else 1 + len(others)
        of_kind = type(value) is tuple and all(_is_number(each, item, bounds) for each in value)
        if of_kind and length in (0, len(value)):
            return None
        place = f"from {low} to {high}" if high < math.inf else f">= {low}" if low > -math.inf else ""
        return f"be {f'{length} ' if length else ''}{'whole numbers' if item is int else 'numbers'} {place}".rstrip()
    return None


def _is_number(value: Any, kind: Any, bounds: Range) -> bool:
    """Tell whether a value is a number of a type, but not True or False, finite and within bounds."""
    of_kind = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    return of_kind and bounds.low <= value <= bounds.high and not (bounds.open and value == bounds.high)


def block_indices(value: object, encoder_blocks: int) -> tuple[int, ...]:
    """Read a field ``stacked_blocks``, indices of the encoder's blocks; JSON has lists for tuples."""
    return check_value("stacked_blocks", value, tuple[int, ...], Range(0, encoder_blocks - 1))


def size_tuple(value: object, multiple: int) -> tuple[int, int] | None:
    """Read a field ``image_size``, None or a number for both sides, as height and width: multiples of ``multiple``."""
    if value is None:
        return None
    sides: Any = (value, value) if type(value) is int else value
    pair = type(sides) in (list, tuple) and len(sides) == 2 and all(type(side) is int for side in sides)
    if not pair or any(not 1 <= side <= 16384 or side % multiple for side in sides):
        raise FlowError(
            f"image_size must be a side, or a height and a width, in multiples of {multiple}; got {short_repr(value)}."
        )
    return sides[0], sides[1]


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Write " Did you mean NAME?" for the nearest choice; "" if nothing is near."""
    near = difflib.get_close_matches(word[:100], list(choices), 1)
    return f" Did you mean {near[0]}?" if near else ""
