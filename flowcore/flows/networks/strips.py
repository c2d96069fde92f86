"""Strips: images are decoded a few rows at a time, so that the wide tensors in between stay small and in the cache.

A 3x3 convolution also reads one row on either side (the halo), and sees zeros beyond the image. So strips give exactly
the result of the whole image, with the memory of a few rows. Between strips, progress is reported and a run can stop.
What is here knows tensors only: compiled flows (``engine``) and the folded networks of families run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ...device import free_memory

STRIP_BYTES = {"cpu": 2**23, "cuda": 2**28}  # a strip's widest tensor: fits a core's cache; keeps a GPU busy
DENSE_BYTES = {"cpu": 2**23, "cuda": 2**27}  # all tensors of a dense block for a strip
MINIMUM_BYTES = 2**18  # bound that replaces both inside ``minimum_memory``
MIN_ROWS = 8  # lower strips would mostly recompute halo rows

Rows = Callable[[int, int], Tensor]  # computes the rows from start to stop, (B or 1, C, stop - start, W)
Tile = tuple[slice, int, int]  # some images of a batch; their rows from top to bottom

_minimum: ContextVar[bool] = ContextVar("minimum", default=False)  # threads differ: compiled flows may be shared
Observer = Callable[[int], None]
_observer: ContextVar[Observer] = ContextVar("observer", default=lambda _: None)


@contextmanager
def minimum_memory() -> Generator[None, None, None]:
    """Make strips as low as possible in all compiled flows that run inside the ``with`` block, in this thread."""
    token = _minimum.set(True)
    try:
        yield
    finally:
        _minimum.reset(token)


@contextmanager
def observed(observer: Observer) -> Generator[None, None, None]:
    """Report the progress of all compiled flows that run inside the ``with`` block, in this thread, to an observer.

    It is called with 0 before every convolution, and with the number of finished units of work (a block of
    the encoder, a coupling, an injector) after them; see ``CompiledFlow.units``. Exceptions that it raises end the run.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def report(units: int = 0) -> None:
    """Report finished units of work to this thread's observer, if any; ``report()`` only lets it stop the run."""
    _observer.get()(units)


def stop_before(layer: nn.Module) -> None:
    """Let this thread's observer stop every run before it reaches a layer."""
    layer.register_forward_pre_hook(lambda _layer, _inputs: report())


class Folded(nn.Module):
    """A folded network, which reports its own progress: so many ``units`` of work for a pass."""

    units: int


class StripBudget:
    """Bytes that the tensors of a strip may take, for all parts of a flow; results depend on it by rounding at most."""

    def __init__(self, strip: int = STRIP_BYTES["cpu"], dense: int = DENSE_BYTES["cpu"]) -> None:
        self.usual_strip, self.usual_dense = strip, dense

    @classmethod
    def fitting(cls, device: torch.device) -> StripBudget:
        """Choose a budget for a device and its free memory."""
        free = free_memory(device)
        usual = STRIP_BYTES.get(device.type, STRIP_BYTES["cpu"])
        dense = DENSE_BYTES.get(device.type, DENSE_BYTES["cpu"])
        return cls(usual if free is None else min(usual, max(2**20, free // 16)), dense)

    @property
    def strip(self) -> int:
        """Bytes of the widest tensor."""
        return min(self.usual_strip, MINIMUM_BYTES) if _minimum.get() else self.usual_strip

    @property
    def dense(self) -> int:
        """Bytes of all that a dense block holds."""
        return min(self.usual_dense, MINIMUM_BYTES) if _minimum.get() else self.usual_dense

    def rows(self, row_bytes: int, least: int = MIN_ROWS) -> int:
        """Choose the height of strips, given the bytes of a row of the widest tensor, and a minimum."""
        return max(MIN_ROWS, least, self.strip // max(1, row_bytes))

    def dense_rows(self, row_bytes: int) -> int:
        """Choose the height of a dense block's strips, given the bytes of a row of all its tensors."""
        return max(2 * MIN_ROWS, self.dense // max(1, row_bytes))

    def strips(self, batch: int, height: int, row_bytes: int, least: int = MIN_ROWS) -> list[Tile]:
        """Split into strips of all images, given the bytes of a row of one image, and a minimum height."""
        return [(slice(batch), top, bottom) for top, bottom in strips(height, self.rows(batch * row_bytes, least))]

    def tiles(self, batch: int, height: int, row_bytes: int, least: int = MIN_ROWS) -> list[Tile]:
        """Split into groups of images, or strips where one image is too large, given the bytes of a row of an image."""
        budget = self.strip // 2  # a convolution reads one tensor and writes another
        rows = max(MIN_ROWS, least, budget // max(1, row_bytes))
        images = max(1, budget // (row_bytes * height))
        return [
            (slice(first, first + images), top, bottom)
            for first in range(0, batch, images)
            for top, bottom in strips(height, rows)
        ]


def strips(height: int, rows: int) -> list[tuple[int, int]]:
    """Split rows into strips: the first row of each, and the row after its last; the last strip may be lower."""
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def canvas(shape: Sequence[int], like: Tensor) -> Tensor:
    """Allocate ``(B, C, H, W)`` of the type and device of a tensor, to be written strip by strip."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
