"""A least-recently-used cache, and one of encoded conditions, so that a new seed does not encode its image again."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from operator import attrgetter
from threading import RLock
from typing import Generic, TypeVar

from torch import Tensor

from ..device import free_memory
from ..flows.condition import Condition
from ..models.identity import fingerprint
from .compiled import CompiledFlow

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


class ConditionStore(RecentlyUsed[Condition]):
    """The conditions of the latest images, stored prepared if the budget allows, else as encoded, else not at all."""

    def __init__(self, budget: int = 2**30, count: int = 4) -> None:
        """Start empty; all conditions together hold at most ``budget`` bytes, and an eighth of the free memory."""
        super().__init__(count, attrgetter("nbytes"))
        self.budget = budget

    def condition(self, compiled: CompiledFlow, source: Tensor) -> Condition:
        """Look up, or encode and store, the condition of one image; ``source`` is as in ``encode_condition``."""
        key = (compiled.identity, fingerprint(source))
        if (cached := self.get(key)) is not None:
            return cached
        cond = compiled.encode_condition(source.to(compiled.device))
        free = free_memory(compiled.device)
        budget = self.budget if free is None else min(self.budget, (free + self.nbytes) // 8)
        height, width = (side * compiled.condition_scale for side in source.shape[-2:])
        if cond.nbytes + compiled.prepared_bytes(height, width) <= budget:
            cond = cond.prepare(compiled)
        if cond.nbytes <= budget:
            self.put(key, cond, budget)
        return cond
