"""Which stages a run trains, and for how many steps."""

from __future__ import annotations

import dataclasses

from .checkpoint import RunState
from .recipe import Recipe, Stage


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
