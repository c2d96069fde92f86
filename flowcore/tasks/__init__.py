"""Tasks: image in, image out. The types here are what every task shares with its caller."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Precision = Literal["float32", "bfloat16", "float16", "auto", "tf32"]
"""Of conditioners and encoder, see ``inference.Plan``; "auto" is ``device.preferred_precision``."""


class Cancelled(Exception):
    """The caller asked a task to stop."""


class Progress(Protocol):
    """What a task calls as its work advances."""

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Report.

        Args:
            done: Finished units of work.
            total: All units of work.
            preview: A finished picture, ``(3, H, W)`` in [0, 1], when there is a new one.
        """
