"""Conditions of the latest images, so that another seed or temperature does not encode them again."""

from __future__ import annotations

import hashlib
from operator import attrgetter

from torch import Tensor

from ..condition import Condition
from ..device import free_memory
from .plan import Plan
from .recently_used import RecentlyUsed


class ConditionStore(RecentlyUsed[Condition]):
    """The conditions of the most recently used images; with one, decoding skips the encoder.

    A condition is stored prepared if it fits into the budget that way, else as the encoder left it, else not at all. It
    belongs to a model, its weights, a precision and an image: if any of these changes, it is not found.
    """

    def __init__(self, budget: int = 2**30, count: int = 4) -> None:
        """Start empty; all conditions together hold at most ``budget`` bytes, and an eighth of the free memory."""
        super().__init__(count, attrgetter("nbytes"))
        self.budget = budget

    def condition(self, plan: Plan, source: Tensor) -> Condition:
        """Look an image's condition up, or encode and store it; prepared if the budget allows.

        ``source`` is what ``plan.encode_condition`` takes, of one image.
        """
        pixels = source.detach().cpu().contiguous()
        digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
        key = (plan.identity, tuple(source.shape), digest)
        if (found := self.get(key)) is not None:
            return found
        cond = plan.encode_condition(source.to(plan.device))
        free = free_memory(str(plan.device))
        budget = self.budget if free is None else min(self.budget, (free + self.nbytes) // 8)
        height, width = (side * plan.condition_scale for side in source.shape[-2:])
        if cond.nbytes + plan.prepared_bytes(height, width) <= budget:
            cond = cond.prepare(plan)
        if cond.nbytes <= budget:
            self.put(key, cond, budget)
        return cond
