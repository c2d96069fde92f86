"""What tasks are made with: settings, batches, tiles, progress, memory. This file has what callers share with them."""

from typing import Literal, Protocol

from torch import Tensor

PROGRESS_UNITS = 10_000  # resolution of a progress that several tasks share

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


def duration(seconds: float) -> str:
    """Format a duration for people: "8.1 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
