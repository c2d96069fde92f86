"""The stages of a run, their steps, and how many fit into its time, from what steps and measurements take."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from .checkpoint import RunState
from .recipe import Recipe, Stage

UNMEASURED = 0.1  # share of the time that is kept for the last checkpoint, before one was timed


class Stages:
    """The stages of a recipe, at the length that the state of a run gives them."""

    def __init__(self, recipe: Recipe, state: RunState) -> None:
        self._recipe, self._state = recipe, state

    def whole(self) -> tuple[Stage, ...]:
        """The stages that the run trains, at the recipe's length."""
        return self._recipe.stages_from_start() if self._state.start else self._recipe.stages

    def shortened(self) -> list[Stage]:
        """The same at the length of the run, with warmups in proportion."""
        whole = self.whole()
        return [
            dataclasses.replace(
                stage, steps=steps, warmup=min(stage.warmup, max(1, round(stage.warmup * steps / stage.steps)))
            )
            for stage, steps in zip(whole, self._state.stage_steps or [s.steps for s in whole], strict=True)
        ]

    def total(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.shortened())

    def number_of(self, step: int) -> int:
        """The number of the stage that a step belongs to."""
        first, stages = 0, self.shortened()
        for number, stage in enumerate(stages):
            first += stage.steps
            if step <= first:
                return number
        return len(stages) - 1

    def at(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return self.shortened()[self.number_of(step)]


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
