"""Tasks: image in, image out. Here is what every task shares with its caller."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

STEPS = 10_000  # of a progress that several tasks share

Precision = Literal["float32", "bfloat16", "float16", "auto", "tf32"]
"""Of conditioners and encoder, see ``inference.Plan``; "auto" is ``device.preferred_precision``."""


class Cancelled(Exception):
    """The caller asked a task to stop."""


class Progress(Protocol):
    """What a task calls as its work advances."""

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Report finished of all units of work, with each new finished picture, ``(3, H, W)`` in [0, 1]."""


def part_of(progress: Progress | None, start: float, share: float) -> Progress | None:
    """Make the progress of one task among several: it begins at ``start``, and is ``share`` of the whole, of 1."""
    if progress is None:
        return None

    def report(done: int, total: int, preview: Tensor | None = None) -> None:
        progress(round(STEPS * (start + share * done / total)), STEPS, preview)

    return report
