"""How many steps fit into the time of a run, from what steps and measurements take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

UNMEASURED = 0.1  # share of the time that is kept for the last checkpoint, before one was timed


class Pace:
    """Fits the steps that are left of a run into the time that is left; ``mean`` averages over its processes."""

    def __init__(self, deadline: float, mean: Callable[[float], float]) -> None:
        self.deadline, self._mean = deadline, mean  # the deadline as ``time.monotonic`` tells it, or infinity
        self.trial: list[float] = []  # seconds per step of every stage, as tried before the first step
        self.closing: float | None = None  # seconds of a checkpoint with its measurements
        self._stage, self._first, self._done = -1, 0, 0  # steps of the stage at its first and last ``count``
        self._begun, self._now = 0.0, 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a deadline."""
        return self.deadline < math.inf

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline

    def count(self, stage: int, done: int) -> None:
        """Note that a stage has made so many steps by now."""
        self._done, self._now = done, time.monotonic()
        if stage != self._stage or done < self._first:
            self._stage, self._first, self._begun = stage, done, self._now

    def fit(self, plan: Sequence[int], longest: Sequence[int], stage: int, done: int) -> list[int]:
        """Scale what is left of a plan, steps of every stage, to the time that is left.

        A stage keeps at least one step, and has ``longest`` at most; ``done`` are those that the present one has made.
        """
        left = max(0.0, self.deadline - time.monotonic())
        if self.closing is None:
            self.closing = UNMEASURED * left
        slower = self._seconds_per_step(stage) / self.trial[stage]
        ahead = [0] * stage + [plan[stage] - done, *plan[stage + 1 :]]
        seconds = slower * sum(each * steps for each, steps in zip(self.trial, ahead, strict=True))
        factor = self._mean(max(0.0, left - self.closing) / max(seconds, 1e-9))
        past = [*plan[:stage], done, *[0] * (len(plan) - stage - 1)]
        return [
            max(1, min(most, made + round(factor * steps)))
            for made, steps, most in zip(past, ahead, longest, strict=True)
        ]

    def _seconds_per_step(self, stage: int) -> float:
        """The mean of all steps that were counted, the first of which is the trial."""
        if stage != self._stage:
            return self.trial[stage]
        return (self.trial[stage] + self._now - self._begun) / (1 + self._done - self._first)
