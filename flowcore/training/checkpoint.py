"""Checkpoints of a run: written atomically, so that a complete one exists whenever the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.writing import replacing
from ..errors import FlowError
from ..flow import Flow


@dataclass
class RunState:
    """What a checkpoint stores besides tensors; the field names are part of its format."""

    step: int = 0  # finished ones, over all stages
    skipped: int = 0  # steps whose update was skipped because loss or gradient was not finite
    bad: int = 0  # how many of the last steps, consecutively, were skipped
    rate: float = 1.0  # on the recipe's learning rates, halved whenever the run went back to a checkpoint
    retreats: int = 0  # how often it went back
    initialised: bool = False  # whether the data-dependent initialization was made
    # steps of every stage of a run that is to end within some minutes; empty for the recipe's
    stage_steps: list[int] = field(default_factory=list[int])
    # what held-out images say of the model that the run started from, by stage; empty if it began anew
    start: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    precision: str = ""  # "float32" or "bfloat16", once chosen
    recompute: str = ""  # "always" or "never", once chosen
    origin: str = ""  # text on the model that the weights were taken from, if any
    seconds: float = 0.0  # spent training


class Checkpoints:
    """The two checkpoints of a run: ``checkpoint.pt``, the newest, and ``checkpoint.previous.pt``, the one before it.

    While steps are not finite, the previous one stays the last good one. ``fingerprint`` is that of the run's recipe.
    """

    def __init__(self, run: Path, fingerprint: str) -> None:
        self.newest, self.previous = run / "checkpoint.pt", run / "checkpoint.previous.pt"
        self.fingerprint = fingerprint
        self._newest_is_good = False

    def write(
        self, flow: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer | None, state: RunState
    ) -> None:
        """Write the newest checkpoint; the one that was the newest becomes the previous one, if it is good."""
        content = {
            "flow": flow.state_dict(),
            "average": average.state_dict(),
            "optimiser": None if optimizer is None else optimizer.state_dict(),
            "progress": vars(state).copy(),
            "recipe": self.fingerprint,
        }
        with replacing(self.newest) as partial:
            with partial.open("wb") as file:
                torch.save(content, file)
            if self.newest.exists() and self._newest_is_good:
                os.replace(self.newest, self.previous)
        self._newest_is_good = state.bad == 0

    def read(self, log: Callable[[str], None], *, good: bool = False) -> dict[str, Any] | None:
        """Read the newest readable checkpoint, with ``good`` the newest whose last steps were finite; None without one.

        A damaged one is logged; one of another recipe is refused.
        """
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                state: dict[str, Any] = content["progress"]
            except Exception as error:  # a damaged file can raise anything
                log(f"{path.name} is damaged ({type(error).__name__}: {error}); trying the one before it")
                continue
            if content["recipe"] != self.fingerprint:
                raise FlowError(
                    f"{path.parent} holds a run of another recipe (model, stages or seed differ). Choose another "
                    "--run folder."
                )
            is_good = state.get("bad", 0) == 0
            if path == self.newest:
                self._newest_is_good = is_good
            if is_good or not good:
                return content
        return None


def restore(content: Mapping[str, Any], flow: Flow, average: Flow, state: RunState) -> dict[str, Any] | None:
    """Load a checkpoint's content into models and state, and return the optimizer's state, if there is one."""
    flow.load_state_dict(content["flow"])
    average.load_state_dict(content["average"])
    for name, value in content["progress"].items():
        setattr(state, name, value)
    return content["optimiser"]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with replacing(target, source.stat().st_size) as partial:
        shutil.copyfile(source, partial)
