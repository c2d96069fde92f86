"""A cache for conditions of images and results of nodes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

V = TypeVar("V")


class RecentlyUsed(Generic[V]):
    """The values used last, by key; the least recently used is dropped first. Threads may share it."""

    def __init__(self, count: int, size: Callable[[V], int] = lambda _: 0) -> None:
        """Hold at most ``count`` values, at least 1; ``size`` maps a value to its bytes."""
        self.count, self._size = count, size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = RLock()

    @property
    def nbytes(self) -> int:
        with self._lock:  # another thread may clear it
            return sum(map(self._size, self._values.values()))

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Look a value up; None if it is not held."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: V, budget: int = sys.maxsize) -> None:
        """Keep a value, and drop others until all together are within ``budget`` bytes."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self) > 1 and (len(self) > self.count or self.nbytes > budget):
                self._values.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
