"""What a run has come to: its model files, and whether they are better than what it started from."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.file import read_header, save
from ..flow import Flow
from .checkpoint import copy_file
from .start import became_worse, loss_of_quality

START_FILE = "start.safetensors"  # in the run folder: the model that the run started from


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run has come to at the end of a call of ``train``."""

    model: Path  # the model file
    steps: int  # made in this call and those before
    total: int  # of the whole run
    new_steps: int  # that this call made
    skipped: int  # that changed nothing because they were not finite
    minutes: float  # of training, in this call and those before
    better_than_start: bool | None  # by measurements; None if it started from none, or nothing could be measured
    verdict: str  # the comparison with that model, in a sentence; empty if the run started from none

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.steps >= self.total


class Results:
    """The model files of a run: what it started from, the better of the two, and what was trained if it is worse."""

    def __init__(self, folder: Path) -> None:
        self.start, self.model, self.worse = (
            folder / name for name in (START_FILE, "model.safetensors", "worse.safetensors")
        )

    def publish(
        self, flow: Flow, provenance: dict[str, Any], start: Mapping[str, float], *, measured: bool = True
    ) -> None:
        """Write a model with its metrics; where the start, which measured ``start``, is better, beside that one."""
        if start and not measured:  # nothing tells which is better: what has been measured stays
            if not self.model.exists():
                copy_file(self.start, self.model)
        elif became_worse(start, provenance["metrics"]):
            save(flow, self.worse, provenance=provenance)
            copy_file(self.start, self.model)
        else:
            save(flow, self.model, provenance=provenance)
            self.worse.unlink(missing_ok=True)

    def is_of(self, step: int) -> bool:
        """Whether the files are those of a step."""
        files = [file for file in (self.worse, self.model) if file.exists()]
        return self.model in files and any(read_header(file).provenance.get("steps") == step for file in files)

    def verdict(self, start: Mapping[str, float]) -> tuple[bool | None, str]:
        """Compare what was trained with what it started from, which measured ``start``: is it better, in a sentence."""
        if not start:
            return None, (
                "no held-out image is as large as a crop, so nothing tells whether this is better than the start"
            )
        file = self.worse if self.worse.exists() else self.model
        if file == self.model and filecmp.cmp(file, self.start, shallow=False):
            return None, f"stopped before it was measured, so {file.name} is the start"
        metrics = read_header(file).provenance["metrics"]
        values = ", ".join(f"{name} {start[name]:g} -> {value:g}" for name, value in metrics.items() if name in start)
        worse = became_worse(start, metrics)
        if worse:
            return False, (
                f"worse than the start {worse} ({values}): {self.model.name} is the start; what was trained is "
                f"{self.worse}"
            )
        change, *others = (loss_of_quality(name, start, metrics) for name in start)
        if change == 0:
            return False, f"as good as the start ({values})"
        lost = ", ".join(name for name, loss in zip([*start][1:], others, strict=True) if loss > 0)
        return True, f"better than the start by {-change:.4g} ({values})" + (f", but not in {lost}" if lost else "")
