"""The tiles of a task, and their side: asked for, or chosen by free memory; and halved where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..device import free_memory
from ..errors import FlowError
from ..flow import Flow

Size = tuple[int, int]  # height and width
Border = tuple[int, int, int, int]  # pixels to add left, right, above and below


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a task decodes in tiles; lengths are in pixels of the image that the model is given."""

    sides: tuple[int, ...]  # of tiles, to choose from, largest first
    smallest: int  # side below which a tile is mostly halo
    unit: str  # what sides are counted in, for messages
    memory: Callable[[Flow, Size, Size, int, int, bool], int]
    """Bytes, by size of image and padded image, side, halo, and whether there is a guide."""
    border: Callable[[int, int, int], Border]  # to add to a height and width, so that a number divides both
    pad: Callable[[Tensor, Border], Tensor]  # adds it to images
    pad_map: Callable[[Tensor, Border], Tensor]  # adds it to maps of temperatures
    encoder_input: Callable[[Tensor], Tensor] = lambda padded: padded  # what the encoder sees of a padded image
    max_deviation: float  # from 0.5, beyond which a value is an overflow
    filled: str  # what stands where the model overflows at any temperature, for messages
    shares: bool  # whether samples share a prepared condition, and progress counts each of them


class TileSize:
    """The largest side that a task's tiles may have, from one attempt of its ``Runner`` to the next."""

    def __init__(self, tile: int, halo: int, tiling: Tiling) -> None:
        if tile < 0 or halo < 0:
            raise FlowError(
                f"tile and halo must not be negative; got tile {tile}, halo {halo}. Tile 0 chooses by free memory."
            )
        self._sides, self._smallest, self._unit = tiling.sides, tiling.smallest, tiling.unit
        self._side = max(tile, tiling.smallest) if tile else 0  # 0: not chosen yet
        self._longest = 0  # side of the images while there are tiles to compute, else 0

    def choose(self, longest: int, memory: Callable[[int], int], device: torch.device) -> int:
        """Return the side; if it was not asked for, the whole image or the largest one that half of free memory holds.

        ``longest`` is the longer side of the images; ``memory`` says how many bytes tiles of a side need on the device.
        """
        self._longest = longest
        if not self._side:
            free = free_memory(device)
            budget = 2 * 2**30 if free is None else free // 2
            sides = [longest, *(side for side in self._sides if side < longest)]
            self._side = next((side for side in sides if memory(side) <= budget), sides[-1])
        return self._side

    def finish(self) -> None:
        """Note that all tiles are computed: smaller ones would not help what comes after."""
        self._longest = 0

    def halve(self) -> str | None:
        """Halve it for the next attempt; see ``smaller`` of ``Runner``."""
        if not self._longest or self._side <= self._smallest:
            return None
        self._side = max(self._smallest, min(self._side, self._longest) // 2)
        return f"with tiles of {self._side} {self._unit}. Set tile to {self._side} to start there"
