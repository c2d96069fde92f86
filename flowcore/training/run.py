"""A run: its state, what all its stages share, how many steps they have, and the processes that train together."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor

from ..errors import FlowError
from ..flows.model import FlowModel
from .data import Data
from .recipe import Recipe, Stage
from .run_folder import RunLog

UNMEASURED = 0.1  # share of the time that is kept for the last checkpoint, before one was timed


def check_limits(minutes: float | None, stop_after: int | None = None) -> None:
    """Raise FlowError unless the minutes, and the step to stop at, are valid."""
    if minutes is not None and not 0 < minutes < math.inf:
        raise FlowError(
            f"minutes (--minutes) must be a finite number above 0; got {minutes}. Leave it out for all of the recipe."
        )
    if stop_after is not None and stop_after < 1:
        raise FlowError(f"stop_after (--stop-after) must be the number of a step, at least 1; got {stop_after}.")


@dataclass
class TrainingState:
    """What a checkpoint stores besides tensors; the field names are part of its format."""

    step: int = 0  # finished ones, over all stages
    skipped: int = 0  # steps without an update: loss or gradient was not finite, or the gradient exploded
    bad: int = 0  # how many of the last steps, consecutively, were skipped
    # norms of the stage's last gradients, see ``StageTrainer.step``
    norms: list[float] = field(default_factory=list[float])
    rate: float = 1.0  # factor on the recipe's learning rates, halved whenever the run went back to a checkpoint
    retreats: int = 0  # how often it went back
    initialised: bool = False  # whether the data-dependent initialization was made
    # steps of every stage of a run that is to end within some minutes; empty for the recipe's
    stage_steps: list[int] = field(default_factory=list[int])
    # metrics of the model that the run started from on held-out images, by stage; empty without one
    start: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    precision: str = ""  # "float32" or "bfloat16", once chosen
    recompute: str = ""  # "always" or "never", once chosen
    origin: str = ""  # names, in words, the model files that weights were taken from, if any
    seconds: float = 0.0  # spent training


@dataclass
class TrainingRun:
    """What all stages of a run share."""

    recipe: Recipe
    data: Data
    flow: FlowModel
    average: FlowModel
    state: TrainingState
    log: RunLog
    device: str
    distributed: Distributed
    teacher: FlowModel | None = None  # the model that the run started from

    def whole_stages(self) -> tuple[Stage, ...]:
        """The stages that are trained, each as long as in the recipe."""
        return self.recipe.stages_from_start() if self.state.start else self.recipe.stages

    def stages(self) -> list[Stage]:
        """The stages that are trained, as long as this run makes them, with warmups in proportion."""
        whole = self.whole_stages()
        lengths = self.state.stage_steps or [stage.steps for stage in whole]
        return [
            dataclasses.replace(s, steps=steps, warmup=min(s.warmup, max(1, round(s.warmup * steps / s.steps))))
            for s, steps in zip(whole, lengths, strict=True)
        ]

    def total(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages())

    def number_of(self, step: int) -> int:
        """The number of the stage that a step belongs to."""
        ends = itertools.accumulate(stage.steps for stage in self.stages())
        return next((number for number, end in enumerate(ends) if step <= end), len(self.whole_stages()) - 1)

    def mean(self, value: float) -> float:
        """Average a number over the processes, so that all decide alike."""
        return self.distributed.mean(torch.tensor(value, device=self.device)).item()

    def out_of_memory(self, stage: Stage | None = None) -> FlowError:
        """Make the error for a stage, by default that of the next step, which needs more memory than there is."""
        stage = stage or self.stages()[self.number_of(self.state.step + 1)]
        other = "" if self.state.recompute == "always" else ", or set recompute = 'always' in the recipe"
        return FlowError(
            f"Stage {stage.name} ran out of memory with a batch of {stage.batch} crops of {stage.crop} pixels. Lower "
            f"batch or crop{other}. Before the first step it takes init_batch crops, and to measure, evaluate crops."
        )


class Pace:
    """Fits the remaining steps of a run into the remaining time."""

    def __init__(self, deadline: float, mean: Callable[[float], float]) -> None:
        """``deadline`` is a time of ``time.monotonic``, or infinity; ``mean`` averages over the run's processes."""
        self.deadline, self._mean = deadline, mean
        self.trial_seconds: list[float] = []  # seconds per step of every stage, as tried before the first step
        self.checkpoint_seconds: float | None = None  # time of a checkpoint with its measurements
        # stage that is timed, its first timed step, and since when
        self._stage, self._first, self._start_time = -1, 0, 0.0

    def count(self, stage: int, done: int) -> None:
        """Time a stage, which has made ``done`` steps, from now on; unless it is being timed, and has not gone back."""
        if stage != self._stage or done < self._first:
            self._stage, self._first, self._start_time = stage, done, time.monotonic()

    def fit(self, plan: Sequence[int], longest: Sequence[int], stage: int, done: int) -> list[int]:
        """Scale the remaining steps of every stage so that the run ends in time; ``stage`` has made ``done`` of its.

        If there is time for half of the steps that ``plan`` has left, every stage keeps half of those that it has left.
        No stage gets more steps than in ``longest``.
        """
        seconds_left = max(0.0, self.deadline - time.monotonic())
        if self.checkpoint_seconds is None:
            self.checkpoint_seconds = UNMEASURED * seconds_left
        trial = self.trial_seconds[stage]
        per_step = trial
        if stage == self._stage:  # the mean of the trial and all steps that were timed
            per_step = (trial + time.monotonic() - self._start_time) / (1 + done - self._first)
        remaining = [0] * stage + [plan[stage] - done, *plan[stage + 1 :]]
        seconds = sum(each * steps for each, steps in zip(self.trial_seconds, remaining, strict=True))
        seconds *= per_step / trial
        factor = self._mean(max(0.0, seconds_left - self.checkpoint_seconds) / max(seconds, 1e-9))
        finished = [*plan[:stage], done, *[0] * (len(plan) - stage - 1)]
        stages = zip(finished, remaining, longest, strict=True)
        return [max(1, min(most, before + round(factor * steps))) for before, steps, most in stages]


# --- several processes, started by ``torchrun --nproc-per-node N -m flowcore train ...`` ------------------------------


@dataclass(frozen=True)
class Distributed:
    """This process among those that train together, each a share of every batch; only the main one writes."""

    rank: int = 0  # number of this process, from 0
    world_size: int = 1  # number of processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_active(self) -> bool:
        return self.world_size > 1

    def shard(self, batch: int) -> slice:
        """Select this process's share of a batch; all shares must be equal, for the mean over processes."""
        if batch % self.world_size:
            raise FlowError(
                f"A batch of {batch} cannot be shared equally by {self.world_size} processes. Start a number of "
                f"processes that divides {batch}, or change the recipe's batch."
            )
        each = batch // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over the processes, differentiably."""
        return differentiable.all_reduce(value) / self.world_size if self.is_active else value

    def barrier(self) -> None:
        if self.is_active:
            dist.barrier()


@contextmanager
def init_distributed(device: str) -> Generator[tuple[Distributed, str], None, None]:
    """Join the processes that torchrun started, if any, and yield this one's place and its device, e.g. "cuda:1"."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Distributed(), device
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{dist.get_node_local_rank()}"  # pyright: ignore[reportPrivateImportUsage] - it is documented
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Distributed(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
