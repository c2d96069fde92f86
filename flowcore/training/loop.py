"""The training loop. Everything random is a function of (seed, step): crops, noise, initial weights.

So the state of a run is its step, the weights, their average and the optimizer's moments, and resuming is exact.
"""

import copy
import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.file import read
from ..device import has_bfloat16, is_out_of_memory
from ..errors import FlowError
from ..models import build
from ..networks import Conditioner
from ..tasks import Progress
from . import checkpoint
from .data import ColorPhotographs, Photographs, Recall, count_images, fill_memories, open_data
from .image_sources import Folders
from .objective import initialize_flow, pretrained_backbone, validate
from .recipe import Recipe, Stage, fingerprint
from .run import Distributed, Pace, Run, Stopped, check_limits
from .run_folder import Result, Results, RunLog, refuse_to_replace
from .stage import Diverged, StageRunner, check_stage

MAX_RETREATS = 6
SYNC_EVERY = 10  # steps between reading counters off the device, which waits for it
LOG_EVERY = 20  # seconds between progress lines
CANCELLED = "cancelled"


def train(
    recipe: Recipe,
    data: Folders,
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
) -> Result:
    """Run a recipe to its end, resuming from the checkpoint in the folder ``run`` if there is one.

    ``data`` is a folder or ZIP archive of images, or several, see ``open_data``. ``start`` is a model file whose
    weights to start from; it is measured before the first step, the recipe has stages and rates of its own for it
    (``start_stages``, ``start_rate``), and the model file holds the better of the two: the start, or what was trained.
    ``encoder_from`` is a model file whose encoder to start from; or, for an encoder with a backbone, the file of the
    backbone alone. None for such an encoder takes the shipped model that has it.

    The run stops, with a checkpoint, after ``stop_after`` steps in all. ``minutes`` shortens all stages so that a new
    run ends, with the decay of its rate, in this time, all included; a run that was begun so keeps to the minutes of
    every later call, too; any other run stops, with a checkpoint, when this call has taken them. After every step
    ``progress`` is called, also with every sample sheet, ``(3, H, W)``, and ``cancelled``; if that returns True, or
    either raises, the run stops with a checkpoint, without measuring the model.
    """
    check_limits(minutes, stop_after)
    if start is None and not any(run.glob("checkpoint*.pt")) and any(stage.teacher_weight for stage in recipe.stages):
        raise FlowError(
            f"teacher_weight of recipe {recipe.name} is about the features of the model that a run starts from, but "
            "this run starts from none. Name one by start (--start), or leave teacher_weight out."
        )
    devices = [torch.device(device)] if device.startswith("cuda") else []
    # a host may call this in inference mode, and has random numbers of its own
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        is_new = not run.exists()
        try:
            trainer = _Trainer(
                recipe, data, run, device, log, progress, cancelled, distributed or Distributed(), deadline
            )
        except FlowError:
            if is_new:  # a run that is refused leaves nothing behind
                shutil.rmtree(run, ignore_errors=True)
            raise
        try:
            trainer.prepare(start, encoder_from)
            return trainer.train(stop_after)
        except Stopped as stop:
            if stop.raised is not None:
                raise stop.raised from None
            raise FlowError(f"Stopped {stop}: run again to go on.") from None
        except Exception as error:
            if isinstance(error, FlowError) or not is_out_of_memory(error):
                raise
            raise trainer.out_of_memory() from error
        finally:
            trainer.log.close()


class _Trainer(Run):
    """A run with what trains it: data and checkpoints are opened, then ``prepare`` and ``train`` are called."""

    def __init__(
        self,
        recipe: Recipe,
        data: Folders,
        folder: Path,
        device: str,
        write_line: Callable[[str], None] | None,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
        distributed: Distributed,
        deadline: float,
    ) -> None:
        self.folder, self.cancelled = folder, cancelled or (lambda: False)
        self.progress: Progress = progress or (lambda done, total, preview=None: None)
        self.results = Results(folder)
        self.checkpoints = checkpoint.Checkpoints(folder, fingerprint(recipe))
        state, lines = checkpoint.RunState(), list[str]()
        self.content = self.checkpoints.read(lines.append)  # of the checkpoint to resume from, until ``prepare``
        refuse_to_replace(folder, resumed=self.content is not None)
        if self.content is not None:
            state.step = self.content["progress"]["step"]
        log = RunLog(folder, write_line, step=state.step, enabled=distributed.is_main)
        for line in lines:
            log.line(line)
        opened = open_data(recipe, data, folder / "cache", self._while_decoding)
        training, held_out = count_images([*opened.training]), count_images([*opened.held_out])
        log.line(f"{training} to train on, {held_out} held out, {len(opened.skipped)} skipped")
        for name in opened.skipped:
            log.line(f"skipped {name}")
        torch.manual_seed(recipe.seed)
        flow = build(recipe.architecture, recipe.model)
        for stage in recipe.stages:  # now, not hours later
            check_stage(stage, recipe, opened, flow)
            distributed.shard(stage.batch)
        super().__init__(recipe, opened, flow, copy.deepcopy(flow), state, log, device, distributed)
        self.optimizer_state: dict[str, Any] | None = None
        self.was_cancelled = False
        self.pace = Pace(deadline, self._mean)

    def _while_decoding(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Stop reading images if the caller asks for it; a ``Progress``."""
        if self.cancelled():
            raise FlowError(f"Stopped after {done} of {total} images were read: nothing has been trained yet.")

    # --- before the first step

    def prepare(self, start: Path | None, encoder_from: Path | None) -> None:
        """Load the weights, measure those of a start, and choose precision and length."""
        state = self.state
        self.distributed.barrier()  # all have read the same checkpoint, or none
        resumed, self.content = self.content, None
        if resumed is not None:
            self._resume(resumed, start)
        else:
            self._load(start, encoder_from)
            self.average.load_state_dict(self.flow.state_dict())
        if isinstance(self.data, ColorPhotographs) and self.recipe.model.memory:
            if resumed is None:
                self.log.line("remembering places of the photographs to train on")
                fill_memories([self.flow, self.average], self.data, self._while_decoding)
            self.data.recall = Recall(self.flow, self.data)
        if any(stage.teacher_weight for stage in self.whole_stages()):
            self.teacher = read(start or self.results.start).to(self.device, memory_format=torch.channels_last)
        for model in (self.flow, self.average):
            model.to(device=self.device, memory_format=torch.channels_last)
        self.average.requires_grad_(False).eval()
        if not state.precision:
            fast = "bfloat16" if has_bfloat16(torch.device(self.device)) else "float32"
            state.precision = fast if self.recipe.precision == "auto" else self.recipe.precision
            self.log.line(f"precision of conditioners and encoder: {state.precision}")
        if start is not None and resumed is None:
            self._measure_start()
        if self.pace.deadline < math.inf and (state.stage_steps or not state.step) and state.step < self.total():
            self._plan()
        if self.total() < sum(stage.steps for stage in self.whole_stages()):
            lengths = ", ".join(f"{stage.name} {stage.steps}" for stage in self.stages())
            self.log.line(f"shortened to fit the time, steps: {lengths}")
        if self.recipe.compile:
            for module in self.flow.modules():
                if isinstance(module, Conditioner):
                    module.compile()

    def _resume(self, content: dict[str, Any], start: Path | None) -> None:
        state = self.state
        self.optimizer_state = checkpoint.restore(content, self.flow, self.average, state)
        if start is not None and not f"{state.origin},".startswith(f", starting from {start.stem},"):
            raise FlowError(
                f"{self.folder} holds a run that did not start from {start.stem}. Choose another --run folder, or "
                "leave out --start to go on with that run."
            )
        if state.start:
            checkpoint.take_sampling_defaults([self.flow, self.average], self.results.start)
        self.log.line(f"resuming after step {state.step}")

    def _load(self, start: Path | None, encoder_from: Path | None) -> None:
        """Load the weights that a new run begins with."""
        state = self.state
        if start is not None:
            checkpoint.load_weights(self.flow, start, other_encoder=encoder_from is not None)
            checkpoint.take_sampling_defaults([self.flow, self.average], start)
            state.initialised, state.rate, state.origin = True, self.recipe.start_rate, f", starting from {start.stem}"
            if self.distributed.is_main:
                checkpoint.copy_file(start, self.results.start)
        elif self.distributed.is_main:
            self.results.start.unlink(missing_ok=True)  # of a run that stopped before its first step
        if encoder_from is not None:
            part = checkpoint.load_encoder(self.flow, encoder_from)
            state.origin += f", with the {part} of {encoder_from.stem}"
        elif start is None and pretrained_backbone(self.flow) is not None:
            if (shipped := checkpoint.shipped_with_backbone(self.recipe.model)) is None:
                return
            trained_here = any(stage.objective == "chroma" for stage in self.recipe.stages)
            part = checkpoint.load_encoder(self.flow, shipped, backbone_alone=trained_here)
            state.origin = f", with the {part} of {shipped.stem}"
            self.log.line(f"took the {part} of the shipped model {shipped.stem}; encoder_from chooses another file")

    def _measure_start(self) -> None:
        """Measure the model that the run starts from, at the crops of every stage that it trains."""
        begin, start = time.monotonic(), self.state.start
        start += [{} for _ in self.recipe.stages_from_start()]
        for number, stage in enumerate(self.stages() if self.distributed.is_main else ()):
            self._stop_before_step()
            start[number], sheet = self._measure(stage)
            if sheet is not None:
                self.progress(0, self.total(), sheet)
        self.pace.closing = (time.monotonic() - begin) / len(start)

    def _plan(self) -> None:
        """Time the gradient of every stage from the present one on, and give each as many steps as fit."""
        state, number = self.state, self.number_of(self.state.step + 1)
        for k, stage in enumerate(self.stages()):
            seconds = 0.0
            if k >= number:
                # including the encoder's gradient, if it is trained at all
                runner = StageRunner(self, dataclasses.replace(stage, train_encoder_after=0.0), 0)
                runner.fit_into_memory()
                for _ in range(2):  # the first one also warms up what later ones reuse
                    self._stop_before_step()
                    seconds = runner.within_memory(runner.seconds)
            self.pace.trial.append(max(self._mean(seconds), 1e-9))
        self._fit_into_time(number, state.step - sum(stage.steps for stage in self.stages()[:number]))

    def _fit_into_time(self, number: int, done: int) -> None:
        """Choose the length of the stages that are left; the present one has made so many steps."""
        whole = [stage.steps for stage in self.whole_stages()]
        self.state.stage_steps = self.pace.fit(self.state.stage_steps or whole, whole, number, done)

    def _mean(self, value: float) -> float:
        """Average a number over the processes, so that all decide alike."""
        return self.distributed.mean(torch.tensor(value, device=self.device)).item()

    # --- stages

    def train(self, stop_after: int | None) -> Result:
        """Run the remaining stages, going back to a checkpoint where steps are not finite."""
        before = self.state.step
        while True:
            try:
                finished = self._run_stages(stop_after)
                break
            except Diverged:
                self._go_back()
        state = self.state
        if self.distributed.is_main and not self.was_cancelled and not self.results.is_of(state.step):
            self._publish(self.stages()[self.number_of(state.step)])
        self.distributed.barrier()
        self.log.line(
            f"{state.step} of {self.total()} steps, {state.skipped} skipped, {state.seconds / 60:.1f} "
            f"minutes: {self.results.model}{'' if finished else '; run again to go on'}"
        )
        better, verdict = None, ""
        if state.start and self.distributed.is_main:
            better, verdict = self.results.verdict(self._start_metrics())
            self.log.line(f"{verdict}{self.results.say_where()}")
        return Result(
            model=self.results.model,
            steps=state.step,
            total=self.total(),
            new_steps=state.step - before,
            skipped=state.skipped,
            minutes=state.seconds / 60,
            better_than_start=better,
            verdict=verdict,
            files=self.results,
        )

    def _run_stages(self, stop_after: int | None) -> bool:
        """Run the stages from the present step on; return True if all of them are finished."""
        state, first = self.state, 0
        limit = math.inf if stop_after is None else stop_after
        for number in range(len(self.stages())):
            stage = self.stages()[number]
            if first <= state.step < min(first + stage.steps, limit):
                self._stop_before_step()
                if state.step == first:
                    self._begin_stage(stage)
                if not self._run_stage(number, StageRunner(self, stage, first), limit):
                    return False
                self.optimizer_state = None
            first += self.stages()[number].steps  # which may have changed
        return state.step == self.total()

    def _run_stage(self, number: int, runner: StageRunner, limit: float) -> bool:
        """Make the steps of a stage, up to its end or a limit, with checkpoints; return False if it was stopped."""
        state, every = self.state, self.recipe.checkpoint_every
        share = self.total() / sum(stage.steps for stage in self.whole_stages())
        if share < 1:
            every = max(min(every, 25), round(every * share))
        if self.optimizer_state is not None:
            runner.resume(self.optimizer_state)
        if not self.pace.trial:  # else all stages were fitted before they were timed
            runner.fit_into_memory()
        data_wait, started, logged, logged_step = 0.0, time.monotonic(), time.monotonic(), state.step
        with ThreadPoolExecutor(1, "flowcore-data") as loader:
            upcoming = loader.submit(runner.batch, state.step)
            while state.step < min(runner.end, limit):
                begin = time.monotonic()
                batch = upcoming.result()
                data_wait += time.monotonic() - begin
                upcoming = loader.submit(runner.batch, state.step + 1)
                runner.step(*batch)
                state.step += 1
                self._keep_pace(number, runner)
                is_last = state.step == min(runner.end, limit)
                stop = self._reason_to_stop(is_last=is_last)
                due = state.step % every == 0 or is_last or stop is not None
                if due or state.step % SYNC_EVERY == 0:
                    runner.read_counters()
                now = time.monotonic()
                if due or now - logged > LOG_EVERY:
                    seconds = max(now - logged, 1e-9)
                    runner.log_progress((state.step - logged_step) / seconds, data_wait / seconds)
                    logged, logged_step, data_wait = now, state.step, 0.0
                if due:
                    state.seconds += time.monotonic() - started
                    self.was_cancelled = str(stop) == CANCELLED
                    self._checkpoint(runner)
                    started = logged = time.monotonic()
                if stop is not None:
                    if stop.raised is not None:
                        raise stop.raised
                    self.log.line(f"stopped: {stop}")
                    return is_last
        return True

    def _begin_stage(self, stage: Stage) -> None:
        """Continue from the averaged weights of the stage before, and initialize the flow if that is still to do."""
        self.flow.load_state_dict(self.average.state_dict())
        if not self.state.initialised and (stage.objective == "likelihood" or self.recipe.brightens):
            x, source = self.data.batch(self.recipe.init_batch, stage.crop, self.recipe.seed + 1, 0)
            source = None if source is None else source.to(self.device)
            initialize_flow(self.flow, x.to(self.device), source, self.recipe.seed)
            self.state.initialised = True
        self.average.load_state_dict(self.flow.state_dict())
        self.optimizer_state = None
        if self.distributed.is_main:  # a good checkpoint to go back to
            self.checkpoints.write(self.flow, self.average, None, self.state)

    def _asked_to_stop(self, *, after_step: bool = False) -> Stopped | None:
        try:
            if after_step:
                self.progress(self.state.step, self.total())
            return Stopped(CANCELLED) if self.cancelled() else None
        except BaseException as raised:  # the host's own interruption, to be raised again after the checkpoint
            return Stopped(CANCELLED, raised)

    def _stop_before_step(self) -> None:
        """Raise Stopped if the caller asks for it; several processes stop together, after a step."""
        stop = None if self.distributed.is_active else self._asked_to_stop()
        if stop is not None:
            when = f"before step {self.state.step + 1}"
            self.log.line(f"stopped: {when}")
            raise Stopped(when, stop.raised)

    def _reason_to_stop(self, *, is_last: bool) -> Stopped | None:
        """Report the step, and tell whether to stop after it."""
        stop = self._asked_to_stop(after_step=True)
        if stop is None and time.monotonic() > self.pace.deadline and not self.state.stage_steps and not is_last:
            stop = Stopped("the time is up")
        if not self.distributed.is_active:
            return stop
        agree = self.state.step % SYNC_EVERY == 0 and self._mean(float(stop is not None)) > 0  # it waits for the device
        return (stop or Stopped(CANCELLED)) if agree else None

    def _keep_pace(self, number: int, runner: StageRunner) -> None:
        """Fit the stage into the time, now that more of its pace is known."""
        agree = not self.distributed.is_active or self.state.step % SYNC_EVERY == 0
        if self.pace.deadline < math.inf and self.state.stage_steps and agree:
            self.pace.count(number, self.state.step - runner.first)
            self._fit_into_time(number, self.state.step - runner.first)
            runner.stage = self.stages()[number]  # of another length, to which its rate decays

    def _go_back(self) -> None:
        """Return to the last good checkpoint with half the learning rate, or raise."""
        state, stage = self.state, self.stages()[self.number_of(self.state.step)]
        problem = f"{self.recipe.patience} steps in a row were not finite, the last at step {state.step}"
        self.distributed.barrier()
        content = self.checkpoints.read(self.log.line, good=True)
        if content is None or state.retreats >= MAX_RETREATS:
            raise FlowError(
                f"{problem}. Lower the learning rate of stage {stage.name} ({stage.learning_rate}); a checkpoint, if "
                f"there is one, is in {self.folder}."
            )
        content["progress"] |= {"rate": state.rate / 2, "retreats": state.retreats + 1, "skipped": state.skipped}
        self.optimizer_state = checkpoint.restore(content, self.flow, self.average, state)
        self.log.line(f"{problem}: back to step {state.step}, with learning rates times {state.rate:g}")
        self.distributed.barrier()

    # --- results

    def _checkpoint(self, runner: StageRunner) -> None:
        begin = time.monotonic()
        self.average.normalize()  # before it is written, so that a resumed run has the same
        if self.distributed.is_main:
            self.checkpoints.write(self.flow, self.average, runner.optimizer, self.state)
            self._publish(runner.stage)
            if isinstance(self.data, Photographs):
                self.data.cache.remove_others()
        self.pace.closing = time.monotonic() - begin
        self.distributed.barrier()

    def _publish(self, stage: Stage) -> None:
        """Measure the averaged weights unless the caller has cancelled, and write model, sample sheet and curve."""
        state = self.state
        metrics, sheet = ({}, None) if self.was_cancelled else self._measure(stage)
        flow, of_guide = checkpoint.with_guide_of(self.average, self.results.start)
        provenance = {
            "source": f"trained by flowcore, recipe {self.recipe.name}{state.origin}",
            "licence": self.recipe.licence + of_guide,
            "steps": state.step,
            "minutes": round(state.seconds / 60, 1),
            "recipe": self.recipe.text,
            "metrics": metrics,
        }
        self.results.publish(flow, provenance, self._start_metrics(), measured=not self.was_cancelled)
        if sheet is not None:
            self.progress(state.step, self.total(), sheet)

    def _measure(self, stage: Stage) -> tuple[dict[str, float], Tensor | None]:
        """Measure the averaged weights on held-out images, if there are any, and write the sample sheet and curve."""
        state = self.state
        if not len(self.data.fitting(stage.crop, held_out=True)):
            return {}, None
        options = {"device": self.device, "precision": state.precision}
        metrics, columns = validate(self.average, self.data, self.recipe, stage, **options)
        sheet = self.log.sheet(state.step, columns)
        self.log.validation(state.step, stage.name, metrics)
        values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        self.log.line(f"step {state.step} held out: {values}")
        return metrics, sheet

    def _start_metrics(self) -> dict[str, float]:
        """What the present stage measured of the model that the run started from; nothing if it began anew."""
        start = self.state.start
        return start[self.number_of(self.state.step)] if start else {}
