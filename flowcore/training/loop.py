"""The training loop: stages, checkpoints, validation, exact resume, several processes.

Everything random is a function of (seed, step): crops, noise, initial weights. So the state of a run is its step, the
weights, their average and the optimizer's moments, and a run that is stopped and resumed ends with the same parameters.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.file import is_ours, read, read_header, save
from ..errors import FlowError
from ..flow import Flow
from ..models import build
from ..networks import Conditioner, LumaEncoder
from ..tasks import Progress
from .checkpoint import Checkpoints, RunState, restore
from .data import open_data
from .distributed import Distributed
from .objective import initialize_flow, lr_encoder, pretrained_backbone
from .pixel_cache import Entry
from .recipe import Recipe, Stage, fingerprint
from .run_log import RunLog
from .stage import SYNC_EVERY, Diverged, Run, StageRunner, check_stage
from .validate import validate

MAX_RETREATS = 6


def train(
    recipe: Recipe,
    data: Path | Sequence[Path],
    run: Path,
    *,
    device: str = "cpu",
    start: Path | None = None,
    encoder_from: Path | None = None,
    stop_after: int | None = None,
    minutes: float | None = None,
    log: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    distributed: Distributed | None = None,
) -> Path:
    """Run a recipe to its end, resuming from the checkpoint in the run folder if there is one.

    Args:
        recipe: What to train.
        data: What to train on: a folder or ZIP archive of images, or several; see ``open_data``.
        run: Folder for the checkpoints, the model file, sample sheets, logs and the decoded photographs.
        device: Torch device.
        start: A model file whose weights to start from; its configuration must be the recipe's.
        encoder_from: A model file whose encoder to start from; or, for an encoder with a backbone, the file of the
            backbone alone, as ``benchmarks/read_efficientnet.py`` writes it.
        stop_after: Stop, with a checkpoint, after this many steps in all; None for the recipe's end.
        minutes: Shorten all stages so that a new run ends in about this time; and stop, with a checkpoint, when this
            call has taken it. None for the recipe's own length.
        log: Called with every line of progress; None for the standard error stream.
        progress: Called after every step, and with every sample sheet, ``(3, H, W)``.
        cancelled: Called after every step; if it returns True, or raises, the run stops with a checkpoint.
        distributed: This process's place among those that train together; None if it is alone.

    Returns:
        Path of the model file, ``run/model.safetensors``.

    Raises:
        FlowError: If a stage does not suit the data or the model, the run folder belongs to another recipe, a batch
            does not fit into memory, or steps are repeatedly not finite.
    """
    devices = [torch.device(device)] if device.startswith("cuda") else []
    # a host may call this in inference mode, and has random numbers of its own
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        trainer = _Trainer(recipe, data, run, device, log, progress, cancelled, distributed or Distributed(), deadline)
        try:
            trainer.prepare(start, encoder_from)
            trainer.train(stop_after)
        finally:
            trainer.log.close()
    return trainer.model_file


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        data: Path | Sequence[Path],
        folder: Path,
        device: str,
        write_line: Callable[[str], None] | None,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
        distributed: Distributed,
        deadline: float,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.folder, self.device, self.distributed = recipe, folder, device, distributed
        self.progress, self.cancelled, self.deadline = progress, cancelled, deadline
        self.model_file = folder / "model.safetensors"
        self.checkpoints = Checkpoints(folder, fingerprint(recipe))
        self.state = RunState()
        lines: list[str] = []
        self.content = self.checkpoints.read(lines.append)
        if self.content is not None:
            self.state.step = self.content["progress"]["step"]
        self.log = RunLog(folder, write_line, step=self.state.step, enabled=distributed.is_main)
        for line in lines:
            self.log.line(line)
        self.data = open_data(recipe, data, folder / "cache", self._while_decoding)
        self.log.line(
            f"{_photographs(list(self.data.training))} to train on, {_photographs(list(self.data.held_out))} held out, "
            f"{len(self.data.skipped)} skipped"
        )
        for name in self.data.skipped:
            self.log.line(f"skipped {name}")
        torch.manual_seed(recipe.seed)
        self.flow = build(recipe.architecture, recipe.model)
        for stage in recipe.stages:  # now, not hours later
            check_stage(stage, recipe, self.data, self.flow)
            distributed.shard(stage.batch)
        self.average = copy.deepcopy(self.flow)
        self.optimiser_state: dict[str, Any] | None = None
        self.run = Run(recipe, self.data, self.flow, self.average, self.state, self.log, device, distributed)
        self.timed: dict[str, dict[str, float]] = {}  # seconds per step, by precision and stage

    def _while_decoding(self, done: int, total: int, preview: Tensor | None = None) -> None:
        if self.cancelled is not None and self.cancelled():
            raise FlowError(f"Stopped after {done} of {total} images were decoded: nothing has been trained yet.")

    # --- before the first step

    def prepare(self, start: Path | None, encoder_from: Path | None) -> None:
        """Load the weights, and choose precision and length unless the checkpoint holds them."""
        state = self.state
        self.distributed.barrier()  # all have read the same checkpoint, or none
        if self.content is not None:
            self.optimiser_state = restore(self.content, self.flow, self.average, state)
            self.log.line(f"resuming after step {state.step}")
        else:
            if start is not None:
                _load_weights(self.flow, start)
                state.initialised = True
                state.origin = f", starting from {start.stem}"
            elif encoder_from is not None:
                _load_encoder(self.flow, encoder_from)
                state.origin = f", with the encoder of {encoder_from.stem}"
            elif pretrained_backbone(self.flow) is not None:
                raise FlowError(
                    "This recipe's encoder has a backbone, whose pretrained weights must be loaded before training. "
                    "Give a file with encoder_from (--encoder-from): another model with this backbone, or what "
                    "benchmarks/read_efficientnet.py writes."
                )
            self.average.load_state_dict(self.flow.state_dict())
        self.content = None
        for model in (self.flow, self.average):
            model.to(device=self.device, memory_format=torch.channels_last)
        self.average.requires_grad_(False).eval()
        if not state.precision:
            state.precision = self._choose_precision()
            self.log.line(f"precision of conditioners and encoder: {state.precision}")
        if self.deadline < math.inf and not state.step:
            state.length = self._choose_length(self.deadline - time.monotonic())
        if state.length < 1:
            lengths = ", ".join(f"{stage.name} {stage.steps}" for stage in self._stages())
            self.log.line(f"shortened to fit the time, steps: {lengths}")
        if self.recipe.compile:
            for module in self.flow.modules():
                if isinstance(module, Conditioner):
                    module.compile()

    def _choose_precision(self) -> str:
        if self.recipe.precision != "auto":
            return self.recipe.precision
        seconds: dict[str, float] = {}
        for precision in ("float32", "bfloat16"):
            self.state.precision = precision
            self.timed[precision] = self._seconds_per_step()
            seconds[precision] = sum(self.timed[precision].values())
        self.log.line("seconds, a step of each stage: " + ", ".join(f"{name} {s:.2f}" for name, s in seconds.items()))
        return min(seconds, key=lambda name: seconds[name])

    def _choose_length(self, seconds: float) -> float:
        """The factor on all numbers of steps with which a run takes this time, a tenth of it for validation."""
        each = self.timed.get(self.state.precision) or self._seconds_per_step()
        return min(1.0, 0.9 * max(0.0, seconds) / sum(each[stage.name] * stage.steps for stage in self.recipe.stages))

    def _seconds_per_step(self) -> dict[str, float]:
        """Time the gradient of every stage."""
        result: dict[str, float] = {}
        for stage in self.recipe.stages:
            runner = StageRunner(self.run, dataclasses.replace(stage, train_encoder_after=0.0), 0)
            times: list[float] = []
            for _ in range(3):
                begin = time.monotonic()
                runner.gradient(*runner.batch(0)).item()
                times.append(time.monotonic() - begin)
            runner.optimiser.zero_grad(set_to_none=True)
            result[stage.name] = self.distributed.mean(torch.tensor(min(times[1:]), device=self.device)).item()
        return result

    # --- stages

    def _stages(self) -> list[Stage]:
        """The recipe's stages at the length of this run."""
        length = self.state.length
        if length == 1:
            return list(self.recipe.stages)
        return [
            dataclasses.replace(
                stage, steps=max(1, round(stage.steps * length)), warmup=max(1, round(stage.warmup * length))
            )
            for stage in self.recipe.stages
        ]

    def _total(self) -> int:
        return sum(stage.steps for stage in self._stages())

    def _stage_of(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        first = 0
        for stage in self._stages():
            first += stage.steps
            if step <= first:
                return stage
        return self._stages()[-1]

    def train(self, stop_after: int | None) -> None:
        """Run the remaining stages, going back to a checkpoint where steps are not finite."""
        while True:
            try:
                finished = self._run_stages(stop_after)
                break
            except Diverged:
                self._go_back()
        state = self.state
        if self.distributed.is_main and not self._is_published():
            self._publish(self._stage_of(state.step))
        self.distributed.barrier()
        self.log.line(
            f"{state.step} of {self._total()} steps, {state.skipped} skipped, {state.seconds / 60:.1f} minutes: "
            f"{self.model_file}{'' if finished else '; run again to go on'}"
        )

    def _run_stages(self, stop_after: int | None) -> bool:
        """Run the stages from the present step on; return True if all of them are finished."""
        state, total = self.state, self._total()
        limit = total if stop_after is None else min(total, stop_after)
        first = 0
        for stage in self._stages():
            until = min(first + stage.steps, limit)
            if first <= state.step < until:
                if state.step == first:
                    self._begin_stage(stage)
                runner = StageRunner(self.run, stage, first)
                if not runner.train(
                    until, self.optimiser_state, interruption=self._interruption, checkpoint=self._checkpoint
                ):
                    return False
                self.optimiser_state = None
            first += stage.steps
        return state.step == total

    def _begin_stage(self, stage: Stage) -> None:
        """Continue from the averaged weights of the stage before, and initialize the flow if that is still to do."""
        self.flow.load_state_dict(self.average.state_dict())
        if stage.objective == "likelihood" and not self.state.initialised:
            x, source = self.data.batch(self.recipe.init_batch, stage.crop, self.recipe.seed + 1, 0)
            source = None if source is None else source.to(self.device)
            initialize_flow(self.flow, x.to(self.device), source, self.recipe.seed)
            self.state.initialised = True
        self.average.load_state_dict(self.flow.state_dict())
        self.optimiser_state = None
        if self.distributed.is_main:  # a good checkpoint to go back to
            self.checkpoints.write(self.flow, self.average, None, self.state)

    def _interruption(self, until: int) -> str | BaseException | None:
        """Ask whether to stop after a step: a reason, or what the caller raised."""
        state = self.state
        reason: str | BaseException | None = None
        try:
            if self.progress is not None:
                self.progress(state.step, self._total())
            if self.cancelled is not None and self.cancelled():
                reason = "cancelled"
        except BaseException as raised:  # the host's own interruption, to be raised again after the checkpoint
            reason = raised
        if time.monotonic() > self.deadline and state.step < until:
            reason = reason or "the time is up"
        if self.distributed.is_active:  # now and then, because it waits for the device
            due = state.step % SYNC_EVERY == 0
            return (reason or "cancelled") if due and self.distributed.any(reason is not None, self.device) else None
        return reason

    def _go_back(self) -> None:
        """Return to the last good checkpoint with half the learning rate, or raise."""
        state, patience = self.state, self.recipe.patience
        self.distributed.barrier()
        stage, step = self._stage_of(state.step), state.step
        content = self.checkpoints.read(self.log.line, good=True)
        retreats = state.retreats + 1
        if content is None or retreats > MAX_RETREATS:
            raise FlowError(
                f"{patience} steps in a row were not finite, the last at step {step}. Lower the learning rate of stage "
                f"{stage.name} ({stage.learning_rate}); a checkpoint, if there is one, is in {self.folder}."
            )
        rate, skipped = state.rate / 2, state.skipped
        self.optimiser_state = restore(content, self.flow, self.average, state)
        state.rate, state.retreats, state.skipped = rate, retreats, skipped
        self.log.line(
            f"{patience} steps in a row were not finite, the last at step {step}: back to step {state.step}, with "
            f"learning rates times {rate:g}"
        )
        self.distributed.barrier()

    # --- results

    def _checkpoint(self, optimiser: torch.optim.Optimizer, stage: Stage) -> None:
        if self.distributed.is_main:
            self.checkpoints.write(self.flow, self.average, optimiser, self.state)
            self._publish(stage)
        self.distributed.barrier()

    def _publish(self, stage: Stage) -> None:
        """Measure the averaged weights, and write model, sample sheet and curve."""
        state = self.state
        metrics: dict[str, float] = {}
        sheet: Tensor | None = None
        if len(self.data.fitting(stage.crop, held_out=True)):
            metrics, columns = validate(
                self.average, self.data, self.recipe, stage, device=self.device, precision=state.precision
            )
            sheet = self.log.sheet(state.step, columns)
            self.log.validation(state.step, stage.name, metrics)
            values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
            self.log.line(f"step {state.step} held out: {values}")
        provenance = {
            "source": f"trained by flowcore, recipe {self.recipe.name}{state.origin}",
            "licence": self.recipe.licence,
            "steps": state.step,
            "minutes": round(state.seconds / 60, 1),
            "recipe": self.recipe.text,
            "metrics": metrics,
        }
        save(self.average, self.model_file, provenance=provenance)
        if self.progress is not None and sheet is not None:
            self.progress(state.step, self._total(), sheet)

    def _is_published(self) -> bool:
        return self.model_file.exists() and read_header(self.model_file).provenance.get("steps") == self.state.step


def _photographs(entries: Sequence[Any]) -> str:
    """Count photographs, however many sizes there are of each; or digits."""
    names = {entry.name for entry in entries if isinstance(entry, Entry)}
    if not names:
        return f"{len(entries)} images"
    sizes = f" in {len(entries)} sizes" if len(entries) > len(names) else ""
    return f"{len(names)} photograph{'' if len(names) == 1 else 's'}{sizes}"


def _load_weights(flow: Flow, path: Path) -> None:
    other = read(path)
    expected, actual = dataclasses.asdict(flow.config), dataclasses.asdict(other.config)
    for measured in ("styles", "temperature", "calm_edges"):  # after training: those of the file are of its weights
        expected.pop(measured, None)
    differences = [
        f"{key} is {actual.get(key)!r} instead of {expected[key]!r}"
        for key in expected
        if expected[key] != actual.get(key)
    ]
    if type(other.config) is not type(flow.config) or differences:
        raise FlowError(
            f"{path.name}, a {other.architecture} model, does not fit this recipe's {flow.architecture} model: "
            f"{'; '.join(differences[:3]) or 'another architecture'}. Start from a model of the same configuration."
        )
    weights = other.state_dict()
    flow.load_state_dict({name: weights[name] for name in flow.state_dict()})


def _load_encoder(flow: Flow, path: Path) -> None:
    """Load an encoder; of a colorizer's, at least the backbone, where the rest is of another size."""
    encoder, backbone = flow.encoder, pretrained_backbone(flow)
    try:
        if backbone is not None and not is_ours(path):
            backbone.load_state_dict({name: t.float() for name, t in load_file(path).items()})
        elif isinstance(encoder, LumaEncoder):
            other = read(path)
            theirs = {} if other.encoder is None else other.encoder.state_dict()
            same = {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in encoder.state_dict().items()}
            if backbone is None or same:
                encoder.load_state_dict(theirs)
            else:
                their_backbone = pretrained_backbone(other)
                backbone.load_state_dict({} if their_backbone is None else their_backbone.state_dict())
        else:
            lr_encoder(flow).load_state_dict(lr_encoder(read(path)).state_dict())
    except (RuntimeError, SafetensorError) as error:
        raise FlowError(
            f"The encoder of {path.name} does not fit the encoder of this recipe's model: {error}."
        ) from error
