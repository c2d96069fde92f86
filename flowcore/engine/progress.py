"""What tasks are made with: settings, batches, tiles, progress, memory. This file has what callers share with them."""

import time
from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

PROGRESS_UNITS = 10_000  # resolution of a progress that several tasks share
WORTH_SAYING = 3.0  # seconds that are left from which people are told

Precision = Literal["float32", "bfloat16", "float16", "auto", "tf32"]
"""How conditioners and encoder compute, see ``CompiledFlow``; "auto" is ``device.preferred_precision``."""


class Cancelled(Exception):
    """The caller asked a task to stop."""


class Progress(Protocol):
    """What a task calls as its work advances."""

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Report that ``done`` of ``total`` units are finished, and a picture ``(3, H, W)`` in [0, 1] if one is new."""


def part_of(progress: Progress | None, start: float, share: float) -> Progress | None:
    """Map the progress of one of several tasks to its part of the whole: from ``start`` to ``start + share``, of 1."""
    if progress is None:
        return None

    def report(done: int, total: int, preview: Tensor | None = None) -> None:
        progress(round(PROGRESS_UNITS * (start + share * done / total)), PROGRESS_UNITS, preview)

    return report


class TimeLeft:
    """Estimates the seconds that are left of a task whose work advances evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._told = clock, clock(), -1.0

    def after(self, share: float) -> float | None:
        """Return the seconds left after a share of the work, at most once a second; None for few, and for no share."""
        now = self._clock()
        if not 0 < share < 1 or now - self._told < 1:
            return None
        left = (now - self._start) * (1 - share) / share
        if left < WORTH_SAYING and self._told < 0:
            return None
        self._told = now
        return left


def duration(seconds: float) -> str:
    """Format a duration for people: "8.1 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
