"""The side of the tiles of a task: asked for, or chosen by free memory; and halved where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..device import free_memory
from ..errors import FlowError


class TileSize:
    """The largest side that a task's tiles may have, from one attempt of its ``Runner`` to the next."""

    def __init__(self, tile: int, halo: int, *, sides: Sequence[int], smallest: int, unit: str) -> None:
        """Start with what was asked for.

        Args:
            tile: Side that was asked for; 0 to choose by free memory.
            halo: Pixels read around every tile.
            sides: What to choose from, largest first.
            smallest: Side below which tiles are mostly halo.
            unit: What sides are counted in, for messages: "pixels".

        Raises:
            FlowError: If tile or halo is negative.
        """
        if tile < 0 or halo < 0:
            raise FlowError(
                f"tile and halo must not be negative; got tile {tile}, halo {halo}. Tile 0 chooses by free memory."
            )
        self._sides, self._smallest, self._unit = sides, smallest, unit
        self._side = max(tile, smallest) if tile else 0  # 0: not chosen yet
        self._longest = 0  # side of the images while there are tiles to compute, else 0

    def choose(self, longest: int, memory: Callable[[int], int], device: torch.device) -> int:
        """Return the side; if it was not asked for, the whole image or the largest one that half of free memory holds.

        Args:
            longest: Longer side of the images.
            memory: Computes the working memory that tiles of a side need, in bytes.
            device: Where it is needed.
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
