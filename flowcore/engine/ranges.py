"""The values that a setting may have, and how they are shown."""

import math
from typing import Any, NamedTuple

from ..flows.prior import MAX_DRAWS as MAX_DRAWS
from ..models.fields import Range, check_value

ANY = Range(0, math.inf)


class Setting(NamedTuple):
    """The values that a setting may have, and how nodes, the command line and names of results show it."""

    kind: type[int] | type[float] | None = None  # None: it is no number, and the type of its field says all
    bounds: Range = ANY
    note: str = ""  # follows the message that a value is not among them
    label: str = ""  # what stands before its value in names of results; "": it is not in them
    unit: str = ""
    most: float | None = None  # highest number of its widget, where there is no bound
    step: float | None = None  # step of its widget, which is a box and no slider
    advanced: bool = False  # whether the node folds it away
    node: bool = True  # whether nodes offer it
    command: bool = True  # whether commands do
    help: str = ""  # its first sentence is the help of commands, and of inputs of nodes that no locale names

    def check(self, name: str, value: object) -> None:
        """Raise FlowError unless a value is a number in the range; see ``check_value``."""
        check_value(name, value, self.kind, self.bounds, self.note)


def share(note: str = "", **shown: Any) -> Setting:
    """Describe a number from 0 to 1."""
    return Setting(float, Range(0, 1), note, **shown)


def nonnegative(note: str = "", **shown: Any) -> Setting:
    """Describe a number from 0 on."""
    return Setting(float, ANY, note, **shown)


def count(low: int, high: float = math.inf, note: str = "", **shown: Any) -> Setting:
    """Describe a whole number."""
    return Setting(int, Range(low, high), note, **shown)
