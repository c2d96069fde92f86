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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..device import has_bfloat16, is_out_of_memory
from ..engine.progress import Progress
from ..errors import FlowError
from ..models.model_file import read
from ..models.registry import build
from . import checkpoint
from .data import Photographs, count_images, open_data
from .image_sources import Folders
from .objective import initialize_flow
from .recipe import Recipe, Stage, fingerprint
from .run import Distributed, Pace, TrainingRun, TrainingState, check_limits
from .run_folder import Result, Results, RunLog, refuse_to_replace
from .stage import PATIENCE, Diverged, StageTrainer, check_stage
from .validation import validate

MAX_ROLLBACKS = 6
SYNC_EVERY = 10  # steps between reading counters off the device, which waits for it
LOG_EVERY = 20  # seconds between progress lines


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
    weights to start from; it is measured before the first step, the recipe has separate stages and rates for it
    (``start_stages``, ``start_rate``), and the model file has the better of the two: the start, or what was trained.
    ``encoder_from`` is a model file whose encoder to start from; or, for an encoder with a backbone, the file of the
    backbone alone. None for such an encoder takes the shipped model that has it.

    The run stops, with a checkpoint, after ``stop_after`` steps in all. ``minutes`` shortens the stages of a new run so
    that it ends, with the decay of its rate, in this time, all included; each later call fits the remaining steps into
    its own ``minutes``. A run that began without them stops, with a checkpoint, when this call has taken them.

    ``progress`` is called after every step, and with every sample sheet, ``(3, H, W)``; ``cancelled`` is called after
    every step. If ``cancelled`` returns True, or either raises, the run stops with a checkpoint, without measuring the
    model.
    """
    check_limits(minutes, stop_after)
    if start is None and not any(run.glob("checkpoint*.pt")) and any(stage.teacher_weight for stage in recipe.stages):
        raise FlowError(
            f"teacher_weight of recipe {recipe.name} needs a model to start from, whose features the encoder keeps. "
            "Choose one with start (--start), or remove teacher_weight."
        )
    devices = [torch.device(device)] if device.startswith("cuda") else []
    # ComfyUI calls this in inference mode, and its random numbers are not to change
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        is_new = not run.exists()
        try:
            trainer = _Trainer(
                recipe, data, run, device, log, progress, cancelled, distributed or Distributed(), deadline
            )
        except FlowError:
            if is_new:  # a rejected run leaves nothing behind
                shutil.rmtree(run, ignore_errors=True)
            raise
        try:
            trainer.prepare(start, encoder_from)
            return trainer.train(stop_after)
        except Exception as error:
            if isinstance(error, FlowError) or not is_out_of_memory(error):
                raise
            raise trainer.run.out_of_memory() from error
        finally:
            trainer.run.log.close()


@dataclass(frozen=True)
class _StopRequest:
    """Why a run is to stop before its end."""

    reason: str
    by_caller: bool = True  # skips measuring the model, for which the caller does not want to wait
    error: BaseException | None = None  # what the caller raised, to be raised again after the checkpoint


class _Trainer:
    """Opens the data and the checkpoints of a run; ``prepare`` and then ``train`` are to be called."""

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
        self.cancelled = cancelled or (lambda: False)
        self.progress: Progress = progress or (lambda done, total, preview=None: None)
        self.results = Results(folder)
        self.checkpoints = checkpoint.Checkpoints(folder, fingerprint(recipe))
        state, log = TrainingState(), RunLog(folder, write_line, enabled=distributed.is_main)
        self.content = self.checkpoints.read(log.line)  # state to resume from, until ``prepare`` loads it
        refuse_to_replace(folder, resumed=self.content is not None)
        if self.content is not None:
            state.step = self.content["progress"]["step"]
        log.begin(state.step)
        opened = open_data(recipe, data, folder / "cache", self._check_cancelled)
        training, held_out = count_images([*opened.training]), count_images([*opened.held_out])
        log.line(f"{training} to train on, {held_out} held out, {len(opened.skipped)} skipped")
        for name in opened.skipped:
            log.line(f"skipped {name}")
        torch.manual_seed(recipe.seed)
        flow = build(recipe.architecture, recipe.model)
        for stage in recipe.stages:  # now, not hours later
            check_stage(stage, recipe, opened, flow)
            distributed.shard(stage.batch)
        self.run = TrainingRun(recipe, opened, flow, copy.deepcopy(flow), state, log, device, distributed)
        self.pace = Pace(deadline, self.run.mean)
        self.optimizer_state: dict[str, Any] | None = None
        self.is_measured = True  # whether ``_publish`` measures; not if the caller cancels

    def _check_cancelled(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """A ``Progress`` of reading images, which stops if the caller asks for it."""
        if self.cancelled():
            raise FlowError(f"Stopped after {done} of {total} images were read: nothing has been trained yet.")

    # --- before the first step

    def prepare(self, start: Path | None, encoder_from: Path | None) -> None:
        """Load the weights, measure those of a start, and choose precision and length."""
        run, state = self.run, self.run.state
        run.distributed.barrier()  # all have read the same checkpoint, or none
        is_resumed = self.content is not None
        if self.content is not None:
            self.optimizer_state = checkpoint.resume(run, self.content, start, self.results.start)
            self.content = None
        else:
            checkpoint.load_start(run, start, encoder_from, self.results.start)
        if any(stage.teacher_weight for stage in run.whole_stages()):
            run.teacher = read(start or self.results.start).to(run.device, memory_format=torch.channels_last)
        for model in (run.flow, run.average):
            model.to(device=run.device, memory_format=torch.channels_last)
        run.average.requires_grad_(False).eval()
        if not state.precision:
            fast = "bfloat16" if has_bfloat16(torch.device(run.device)) else "float32"
            state.precision = fast if run.recipe.precision == "auto" else run.recipe.precision
            run.log.line(f"precision of conditioners and encoder: {state.precision}")
        if start is not None and not is_resumed:
            self._say_what_is_trained()
            self._measure_start()
        is_planned = bool(state.stage_steps) or state.step == 0
        if self.pace.deadline < math.inf and is_planned and state.step < run.total():
            self._plan()
        if run.total() < sum(stage.steps for stage in run.whole_stages()):
            lengths = ", ".join(f"{stage.name} {stage.steps}" for stage in run.stages())
            run.log.line(f"shortened to fit the time, steps: {lengths}")

    def _say_what_is_trained(self) -> None:
        recipe = self.run.recipe
        trained = recipe.stages_from_start()
        left = "".join(f", not {stage.name}" for stage in recipe.stages if stage not in trained)
        names = " and ".join(stage.name for stage in trained)
        self.run.log.line(
            f"starting from a model, this run trains {names}{left} (start_stages), at {recipe.start_rate:g} of the "
            "recipe's learning rates (start_rate)"
        )

    def _measure_start(self) -> None:
        """Measure the model that the run starts from, at the crops of every stage that it trains."""
        begin, start = time.monotonic(), self.run.state.start
        # one dictionary a stage in the state, which stages() reads
        start += [{} for _ in self.run.recipe.stages_from_start()]
        for number, stage in enumerate(self.run.stages() if self.run.distributed.is_main else ()):
            self._stop_before_step()
            start[number], sheet = self._measure(stage)
            if sheet is not None:
                self.progress(0, self.run.total(), sheet)
        self.pace.checkpoint_seconds = (time.monotonic() - begin) / len(start)

    def _plan(self) -> None:
        """Time the gradient of every stage from the present one on, and give each as many steps as fit."""
        run = self.run
        present = run.number_of(run.state.step + 1)
        for number, stage in enumerate(run.stages()):
            seconds = 0.0
            if number >= present:
                # including the encoder's gradient, if it is trained at all
                runner = StageTrainer(run, dataclasses.replace(stage, train_encoder_after=0.0), 0)
                runner.fit_into_memory()
                for _ in range(2):  # the first one also warms up what later ones reuse
                    self._stop_before_step()
                    seconds = runner.within_memory(runner.time_gradient)
            self.pace.trial_seconds.append(max(run.mean(seconds), 1e-9))
        self._fit_into_time(present, run.state.step - sum(stage.steps for stage in run.stages()[:present]))

    def _fit_into_time(self, number: int, done: int) -> None:
        """Choose the length of the remaining stages; the present one has made ``done`` steps."""
        state, longest = self.run.state, [stage.steps for stage in self.run.whole_stages()]
        state.stage_steps = self.pace.fit(state.stage_steps or longest, longest, number, done)

    # --- stages

    def train(self, stop_after: int | None) -> Result:
        """Run the remaining stages, going back to a checkpoint where too many are skipped."""
        run, state = self.run, self.run.state
        first_step, is_finished = state.step, None  # None: not until ``_run_stages`` returns
        while is_finished is None:
            try:
                is_finished = self._run_stages(math.inf if stop_after is None else stop_after)
            except Diverged:
                self._go_back()
        if run.distributed.is_main and self.is_measured and not self.results.is_of(state.step):
            self._publish(run.stages()[run.number_of(state.step)])
        run.distributed.barrier()
        run.log.line(
            f"{state.step} of {run.total()} steps, {state.skipped} skipped, {state.seconds / 60:.1f} "
            f"minutes: {self.results.model}{'' if is_finished else '; run again to continue'}"
        )
        better, verdict = None, ""
        if state.start and run.distributed.is_main:
            better, verdict = self.results.verdict(self._start_metrics())
            run.log.line(verdict)
        return Result(
            model=self.results.model,
            steps=state.step,
            total=run.total(),
            new_steps=state.step - first_step,
            skipped=state.skipped,
            minutes=state.seconds / 60,
            better_than_start=better,
            verdict=verdict,
            files=self.results,
        )

    def _run_stages(self, limit: float) -> bool:
        """Run the stages from the present step on; return True if all of them are finished."""
        run, state, first = self.run, self.run.state, 0
        for number in range(len(run.stages())):
            stage = run.stages()[number]
            if first <= state.step < min(first + stage.steps, limit):
                self._stop_before_step()
                if state.step == first:
                    self._begin_stage(stage)
                if not self._run_stage(number, StageTrainer(run, stage, first), limit):
                    return False
                self.optimizer_state = None
            first += run.stages()[number].steps  # number of steps after ``_keep_pace``
        return state.step == run.total()

    def _run_stage(self, number: int, runner: StageTrainer, limit: float) -> bool:
        """Make the steps of a stage, up to its end or a limit, with checkpoints; return False if it was stopped."""
        run, state, interval = self.run, self.run.state, self.run.recipe.checkpoint_every
        share = run.total() / sum(stage.steps for stage in run.whole_stages())
        if share < 1:  # a shortened run has as many checkpoints, at least 25 steps apart
            interval = max(min(interval, 25), round(interval * share))
        if self.optimizer_state is not None:
            runner.resume(self.optimizer_state)
        if not self.pace.trial_seconds:  # else ``_plan`` has fitted all stages
            runner.fit_into_memory()
        started = last_log = time.monotonic()
        data_wait, last_logged_step = 0.0, state.step
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
                is_due = state.step % interval == 0 or is_last or stop is not None
                if is_due or state.step % SYNC_EVERY == 0:
                    runner.read_counters()
                now = time.monotonic()
                if is_due or now - last_log > LOG_EVERY:
                    seconds = max(now - last_log, 1e-9)
                    runner.log_progress((state.step - last_logged_step) / seconds, data_wait / seconds)
                    last_log, last_logged_step, data_wait = now, state.step, 0.0
                if is_due:
                    state.seconds += time.monotonic() - started
                    self.is_measured = stop is None or not stop.by_caller
                    self._checkpoint(runner)
                    started = last_log = time.monotonic()
                if stop is not None:
                    if stop.error is not None:
                        raise stop.error
                    run.log.line(f"stopped: {stop.reason}")
                    return is_last
        return True

    def _begin_stage(self, stage: Stage) -> None:
        """Continue from the averaged weights of the stage before, and initialize the flow if that is still to do."""
        run = self.run
        run.flow.load_state_dict(run.average.state_dict())
        if not run.state.initialised and (stage.objective == "likelihood" or run.recipe.brightens):
            x, source = run.data.batch(run.recipe.init_batch, stage.crop, run.recipe.seed + 1, 0)
            source = None if source is None else source.to(run.device)
            initialize_flow(run.flow, x.to(run.device), source, run.recipe.seed)
            run.state.initialised = True
        run.average.load_state_dict(run.flow.state_dict())
        self.optimizer_state, run.state.norms = None, []
        if run.distributed.is_main:  # a good checkpoint to go back to
            self.checkpoints.write(run.flow, run.average, None, run.state)

    def _ask_caller(self, *, after_step: bool = False) -> _StopRequest | None:
        try:
            if after_step:
                self.progress(self.run.state.step, self.run.total())
            return _StopRequest("cancelled") if self.cancelled() else None
        except BaseException as error:  # the host's own interruption, and Ctrl-C
            return _StopRequest("cancelled", error=error)

    def _stop_before_step(self) -> None:
        """Raise if the caller asks to stop; several processes do not ask here, but stop together after a step."""
        stop = None if self.run.distributed.is_active else self._ask_caller()
        if stop is not None:
            when = f"before step {self.run.state.step + 1}"
            self.run.log.line(f"stopped: {when}")
            raise stop.error or FlowError(f"Stopped {when}: run again to continue.")

    def _reason_to_stop(self, *, is_last: bool) -> _StopRequest | None:
        """Report the step to the caller, and return why to stop after it, if so."""
        stop, state = self._ask_caller(after_step=True), self.run.state
        if stop is None and time.monotonic() > self.pace.deadline and not state.stage_steps and not is_last:
            stop = _StopRequest("the time is up", by_caller=False)
        if not self.run.distributed.is_active:
            return stop
        # the mean over processes waits for the device, so not after every step
        agree = state.step % SYNC_EVERY == 0 and self.run.mean(float(stop is not None)) > 0
        return (stop or _StopRequest("cancelled")) if agree else None

    def _keep_pace(self, number: int, runner: StageTrainer) -> None:
        """Fit the stage into the time, now that more of its pace is known."""
        state = self.run.state
        agree = not self.run.distributed.is_active or state.step % SYNC_EVERY == 0
        if self.pace.deadline < math.inf and state.stage_steps and agree:
            self.pace.count(number, state.step - runner.first)
            self._fit_into_time(number, state.step - runner.first)
            runner.stage = self.run.stages()[number]  # its new length, to which its rate decays

    def _go_back(self) -> None:
        """Return to the last good checkpoint with half the learning rate, or raise."""
        run, state = self.run, self.run.state
        stage = run.stages()[run.number_of(state.step)]
        problem = f"{PATIENCE} steps in a row were not finite or exploded, the last at step {state.step}"
        run.distributed.barrier()
        content = self.checkpoints.read(run.log.line, good=True)
        if content is None or state.retreats >= MAX_ROLLBACKS:
            raise FlowError(
                f"{problem}. Lower the learning rate of stage {stage.name} ({stage.learning_rate}); a checkpoint, if "
                f"there is one, is in {self.checkpoints.newest.parent}."
            )
        content["progress"] |= {"rate": state.rate / 2, "retreats": state.retreats + 1, "skipped": state.skipped}
        self.optimizer_state = checkpoint.restore(content, run.flow, run.average, state)
        run.log.line(f"{problem}: back to step {state.step}, with learning rates times {state.rate:g}")
        run.distributed.barrier()

    # --- results

    def _checkpoint(self, runner: StageTrainer) -> None:
        run, begin = self.run, time.monotonic()
        run.average.normalize()  # normalized before it is written, so that a resumed run has the same
        if run.distributed.is_main:
            self.checkpoints.write(run.flow, run.average, runner.optimizer, run.state)
            self._publish(runner.stage)
            if isinstance(run.data, Photographs):
                run.data.cache.remove_others()
        self.pace.checkpoint_seconds = time.monotonic() - begin
        run.distributed.barrier()

    def _publish(self, stage: Stage) -> None:
        """Measure the averaged weights unless the caller has cancelled, and write model, sample sheet and curve."""
        run, state = self.run, self.run.state
        metrics, sheet = self._measure(stage) if self.is_measured else ({}, None)
        flow, license_of_guide = checkpoint.with_guide_of(run.average, self.results.start)
        provenance = {
            "source": f"trained by flowcore, recipe {run.recipe.name}{state.origin}",
            "licence": run.recipe.licence + license_of_guide,
            "steps": state.step,
            "minutes": round(state.seconds / 60, 1),
            "recipe": run.recipe.text,
            "metrics": metrics,
        }
        self.results.publish(flow, provenance, self._start_metrics(), measured=self.is_measured)
        if sheet is not None:
            self.progress(state.step, run.total(), sheet)

    def _measure(self, stage: Stage) -> tuple[dict[str, float], Tensor | None]:
        """Measure the averaged weights on held-out images, if there are any, and write the sample sheet and curve."""
        run, step = self.run, self.run.state.step
        if not len(run.data.fitting(stage.crop, held_out=True)):
            return {}, None
        options = {"device": run.device, "precision": run.state.precision}
        metrics, columns = validate(run.average, run.data, run.recipe, stage, **options)
        sheet = run.log.sheet(step, columns)
        run.log.validation(step, stage.name, metrics)
        values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        run.log.line(f"step {step} held out: {values}")
        return metrics, sheet

    def _start_metrics(self) -> dict[str, float]:
        """What the present stage measured of the model that the run started from; nothing if there was none."""
        start = self.run.state.start
        return start[self.run.number_of(self.run.state.step)] if start else {}
