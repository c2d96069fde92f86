"""The values that a setting may have, and the check of them."""

import math
from numbers import Integral, Real
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import FlowError
from ..flows.prior import MAX_DRAWS as MAX_DRAWS
from ..models.fields import Range, short_repr

ANY = Range(0, math.inf)


class Setting(NamedTuple):
    """The values that a setting may have, and how nodes, the command line and names of results show it."""

    kind: type[int] | type[float] | None = None  # None: it is no number, and the type of its field says all
    bounds: Range = ANY
    note: str = ""  # follows the message that a value is not among them
    label: str = ""  # what stands before its value in names of results; "": it is not in them
    unit: str = ""
    most: float | None = None  # highest number of its widget, where there is no bound
    step: float | None = None  # of its widget, which is a box and no slider
    advanced: bool = False  # whether the node folds it away
    node: bool = True  # whether nodes offer it
    command: bool = True  # whether commands do


def share(note: str = "", **shown: Any) -> Setting:
    """Describe a number from 0 to 1."""
    return Setting(float, Range(0, 1), note, **shown)


def nonnegative(note: str = "", **shown: Any) -> Setting:
    """Describe a number from 0 on."""
    return Setting(float, ANY, note, **shown)


def count(low: int, high: float = math.inf, note: str = "", **shown: Any) -> Setting:
    """Describe a whole number."""
    return Setting(int, Range(low, high), note, **shown)


def check_range(name: str, value: object, setting: Setting) -> None:
    """Raise FlowError unless a value is a number in the range of its setting."""
    kind, bounds, note, *_ = setting
    is_number = is_whole(value) if kind is int else is_real(value)
    number: Any = value
    is_finite = is_number and -math.inf < number < math.inf
    if is_finite and bounds.low <= number <= bounds.high and not (bounds.open and number == bounds.high):
        return
    whole = "a whole number" if kind is int else "a finite number"
    expected = f"be {whole} >= {bounds.low:g}"
    if bounds.high < math.inf:
        place = f"in [{bounds.low}, {bounds.high}{')' if bounds.open else ']'}"
        expected = f"be a whole number {place}" if kind is int else f"lie {place}"
    got = f"{value}" if is_real(value) else f"{short_repr(value)}, a {type(value).__name__}"
    advice = note if is_number else f"Pass {whole.replace('finite ', '')}."
    raise FlowError(f"{name} must {expected}; got {got}. {advice}".rstrip())


def is_real(value: object) -> bool:
    """Tell whether a value is a number: Python's, NumPy's, or a tensor of no dimensions, but not True or False."""
    if isinstance(value, Tensor):
        return value.ndim == 0
    return not isinstance(value, bool) and isinstance(value, Real)


def is_whole(value: object) -> bool:
    """Tell whether a value is an integer of Python or NumPy."""
    return not isinstance(value, bool) and isinstance(value, Integral)
