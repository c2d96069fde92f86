"""Checks of configuration fields, whose values may come from untrusted files; every message names the field."""

import dataclasses
import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..errors import FlowError
from ..flows.stated import Recommendations

SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(Recommendations))
"""Names of configuration fields that recommend how to sample; the flow itself does not depend on them."""
GUIDE_FIELDS = ("guide_layers", "guide_width")
"""Names of configuration fields of the network that makes a model's own guide; the flow does not depend on them."""

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
    """Reject values that do not fit bool, Literal, Range, or a tuple of distinct names; convert lists to tuples."""
    for name, (kind, bound) in annotated_types(type(config)).items():
        value = getattr(config, name)
        if kind is bool or get_origin(kind) is Literal:
            allowed = (True, False) if kind is bool else get_args(kind)
            if not any(type(value) is type(option) and value == option for option in allowed):  # True == 1
                listed = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
                raise FlowError(f"{name} must be {listed}; got {short_repr(value)}.")
        elif kind == tuple[str, ...]:
            named = type(value) in (list, tuple) and all(isinstance(item, str) and item for item in value)
            if not named or len(set(value)) < len(value):
                raise FlowError(f"{name} must be a list of different names; got {short_repr(value)}.")
            object.__setattr__(config, name, tuple(value))
        elif isinstance(bound, Range) and kind is int:
            check_integer(name, value, bound)
        elif isinstance(bound, Range) and kind is float:
            within = type(value) in (int, float) and bound.low <= value <= bound.high
            if not within or (bound.open and value == bound.high):
                end = ")" if bound.open else "]"
                raise FlowError(f"{name} must lie in [{bound.low}, {bound.high}{end}; got {short_repr(value)}.")
        elif isinstance(bound, Range):
            item, *others = get_args(kind)
            length = 0 if Ellipsis in others else 1 + len(others)
            object.__setattr__(config, name, _number_tuple(name, value, bound, item is int, length))


def check_integer(name: str, value: object, bound: Range) -> None:
    """Reject a value that is not a whole number within bounds; True and 4.0 are not whole numbers here."""
    if type(value) is not int or not bound.low <= value <= bound.high:
        raise FlowError(f"{name} must be a whole number from {bound.low} to {bound.high}; got {short_repr(value)}.")


def block_indices(value: object, encoder_blocks: int) -> tuple[int, ...]:
    """Read a field ``stacked_blocks``, indices of the encoder's blocks; JSON has lists for tuples."""
    return _number_tuple("stacked_blocks", value, Range(0, encoder_blocks - 1), True, 0)


def _number_tuple(name: str, value: object, bound: Range, whole: bool, length: int) -> tuple[Any, ...]:
    """Read several numbers: ``length`` of them, or any number for 0."""
    numbers: Any = tuple(value) if isinstance(value, list) else value
    types = (int,) if whole else (int, float)
    within = type(numbers) is tuple and all(type(n) in types and bound.low <= n <= bound.high for n in numbers)
    if not within or length not in (0, len(numbers)):
        count = f"{length} " if length else ""
        kind = "whole numbers" if whole else "numbers"
        raise FlowError(f"{name} must be {count}{kind} from {bound.low} to {bound.high}; got {short_repr(value)}.")
    return numbers


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
