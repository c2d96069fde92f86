"""The training loop: stages, averaged weights, exact resume, many devices.

Everything random is a function of (seed, step): crops, noise, initial weights. So the state of a run is its step, the
weights, their average and the optimiser's moments, and a run that was stopped goes on to the same parameters.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoints.file import read, read_header, save
from ..device import free_memory, is_out_of_memory
from ..errors import FlowError
from ..flow import Flow
from ..models import build
from ..networks import Conditioner
from ..tasks import Progress as Watcher
from ..transforms import batch_moments
from .data import Data, open_data
from .memory import largest_batch, recomputed
from .objective import AbsoluteError, initialize, lr_encoder, objective
from .ranks import Ranks
from .recipe import Recipe, Stage, fingerprint
from .run_folder import Checkpoints, Journal, Progress, restore
from .validate import validate

LOOK_EVERY = 10  # steps between looks at what the device has counted: each look waits for the device
SPEAK_EVERY = 20  # seconds between progress lines
MOST_RETREATS = 6
SPARE = 0.8  # part of the free memory that a batch may take


class _Diverged(Exception):
    """Too many steps in a row were not finite."""


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
    progress: Watcher | None = None,
    cancelled: Callable[[], bool] | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Run a recipe to its end, from wherever the run folder says it has come.

    Args:
        recipe: What to train.
        data: What to train on: a folder or ZIP archive of images, or several; see ``data.open_data``.
        run: Folder for the checkpoints, the model file, sample sheets, logs and the decoded photographs.
        device: Torch device.
        start: A model file whose weights to start from; its configuration must be the recipe's.
        encoder_from: A model file whose encoder to start from.
        stop_after: Stop (with a checkpoint) after this many steps in all; None for the recipe's end.
        minutes: Shorten all stages so that a new run ends in about this time; and stop, with a checkpoint, when this
            call has taken it. None for the recipe's own length.
        log: Where lines of progress go; None for the standard error stream.
        progress: Told of every step, and shown every sample sheet, ``(3, H, W)``.
        cancelled: Asked after every step; if it says yes, or raises, the run stops with a checkpoint.
        ranks: This process's place among those that train together; None if it is alone.

    Returns:
        Path of the model file, ``run/model.safetensors``.

    Raises:
        FlowError: If a stage does not suit the data or the model, the run folder belongs to another recipe, a batch
            does not fit into memory, or steps are not finite again and again.
    """
    devices = [torch.device(device)] if device.startswith("cuda") else []
    # a host may call this in inference mode, and has random numbers of its own
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        trainer = _Trainer(recipe, data, run, device, log, progress, cancelled, ranks or Ranks(), deadline)
        try:
            trainer.prepare(start, encoder_from)
            trainer.go(stop_after)
        finally:
            trainer.journal.close()
    return trainer.model_file


class _Trainer:
    """A run: what its folder holds, and the stages that are left."""

    def __init__(
        self,
        recipe: Recipe,
        data: Path | Sequence[Path],
        run: Path,
        device: str,
        log: Callable[[str], None] | None,
        watcher: Watcher | None,
        cancelled: Callable[[], bool] | None,
        ranks: Ranks,
        deadline: float,
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.recipe, self.run, self.device, self.ranks = recipe, run, device, ranks
        self.watcher, self.cancelled = watcher, cancelled
        self.checkpoints = Checkpoints(run, fingerprint(recipe))
        self.progress = Progress()
        self.deadline = deadline
        self.model_file = run / "model.safetensors"
        early: list[str] = []
        content = self.checkpoints.read(early.append)
        if content is not None:
            self.progress.step = content["progress"]["step"]
        self.journal = Journal(run, log, step=self.progress.step, speaks=ranks.first)
        for line in early:
            self.say(line)
        self.data = open_data(recipe, data, run / "cache", self._decoded)
        self.say(
            f"{len(self.data.training)} images to train on, {len(self.data.held_out)} held out, "
            f"{len(self.data.skipped)} skipped"
        )
        for line in self.data.skipped:
            self.say(f"skipped {line}")
        torch.manual_seed(recipe.seed)
        self.flow = build(recipe.architecture, recipe.model)
        for stage in recipe.stages:  # now, not hours later
            _check_stage(stage, recipe, self.data, self.flow)
            ranks.share(stage.batch)
        self.average = copy.deepcopy(self.flow)
        self.content = content
        self.timed: dict[str, dict[str, float]] = {}  # seconds per step, by precision and stage

    def say(self, line: str) -> None:
        self.journal.say(line)

    def _decoded(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Ask while images are decoded, too."""
        if self.cancelled is not None and self.cancelled():
            raise FlowError(f"Stopped after {done} of {total} images were decoded: nothing has been trained yet.")

    def prepare(self, start: Path | None, encoder_from: Path | None) -> None:
        """Fill the weights, and choose precision and length, all of which a checkpoint remembers."""
        self.ranks.wait()  # all have read the same checkpoint, or none
        self.optimiser_state = None
        if self.content is not None:
            self.optimiser_state = restore(self.content, self.flow, self.average, self.progress)
            self.say(f"going on after step {self.progress.step}")
        else:
            if start is not None:
                _take_weights(self.flow, start)
                self.progress.initialised = True
                self.progress.origin = f", starting from {start.stem}"
            elif encoder_from is not None:
                _take_encoder(self.flow, encoder_from)
                self.progress.origin = f", with the encoder of {encoder_from.stem}"
            self.average.load_state_dict(self.flow.state_dict())
        self.content = None
        for model in (self.flow, self.average):
            model.to(device=self.device, memory_format=torch.channels_last)
        self.average.requires_grad_(False).eval()
        if not self.progress.precision:
            self.progress.precision = self._choose_precision()
            self.say(f"precision of conditioners and encoder: {self.progress.precision}")
        if self.deadline < math.inf and not self.progress.step:
            self.progress.length = self._length(self.deadline - time.monotonic())
        if self.progress.length < 1:
            lengths = ", ".join(f"{stage.name} {stage.steps}" for stage in self.stages())
            self.say(f"shortened to fit the time, steps: {lengths}")
        if self.recipe.compile:
            for module in self.flow.modules():
                if isinstance(module, Conditioner):
                    module.compile()

    def stages(self) -> list[Stage]:
        """The recipe's stages at the length of this run."""
        length = self.progress.length
        if length == 1:
            return list(self.recipe.stages)

        def scaled(number: int) -> int:
            return max(1, round(number * length))

        return [
            dataclasses.replace(stage, steps=scaled(stage.steps), warmup=scaled(stage.warmup))
            for stage in self.recipe.stages
        ]

    def go(self, stop_after: int | None) -> None:
        """Run what is left, going back where steps are not finite."""
        while True:
            try:
                finished = self._run_stages(stop_after)
                break
            except _Diverged:
                self._go_back()
        progress, total = self.progress, sum(stage.steps for stage in self.stages())
        if self.ranks.first and not self._published():
            self._publish(self._stage_of(progress.step))
        self.ranks.wait()
        self.say(
            f"{progress.step} of {total} steps, {progress.skipped} skipped, {progress.seconds / 60:.1f} minutes: "
            f"{self.model_file}{'' if finished else '; run again to go on'}"
        )

    def _run_stages(self, stop_after: int | None) -> bool:
        """Run the stages from the present step on; say whether they came to their end."""
        progress, stages = self.progress, self.stages()
        total = sum(stage.steps for stage in stages)
        limit = total if stop_after is None else min(total, stop_after)
        first = 0
        for stage in stages:
            if first <= progress.step < min(first + stage.steps, limit):
                if progress.step == first:
                    self.flow.load_state_dict(self.average.state_dict())
                    if stage.objective == "likelihood" and not progress.initialised:
                        x, source = self.data.batch(self.recipe.init_batch, stage.crop, self.recipe.seed + 1, 0)
                        source = None if source is None else source.to(self.device)
                        initialize(self.flow, x.to(self.device), source, self.recipe.seed)
                        progress.initialised = True
                    self.average.load_state_dict(self.flow.state_dict())
                    self.optimiser_state = None
                    if self.ranks.first:  # something good to go back to
                        self.checkpoints.write(self.flow, self.average, None, progress)
                runner = _StageRunner(self, stage, first)
                if not runner.go(min(first + stage.steps, limit), self.optimiser_state):
                    return False
                self.optimiser_state = None
            first += stage.steps
        return progress.step == total

    def _go_back(self) -> None:
        progress, patience = self.progress, self.recipe.patience
        self.ranks.wait()
        stage, step = self._stage_of(progress.step), progress.step
        advice = (
            f"Lower the learning rate of stage {stage.name} ({stage.learning_rate}); a checkpoint, if there is one, "
            f"is in {self.run}."
        )
        content = self.checkpoints.read(self.say, good=True)
        retreats = progress.retreats + 1
        if content is None or retreats > MOST_RETREATS:
            raise FlowError(f"{patience} steps in a row were not finite, the last at step {step}. {advice}")
        rate, skipped = progress.rate / 2, progress.skipped
        self.optimiser_state = restore(content, self.flow, self.average, progress)
        progress.rate, progress.retreats, progress.skipped = rate, retreats, skipped
        self.say(
            f"{patience} steps in a row were not finite, the last at step {step}: back to step {progress.step}, with "
            f"learning rates times {rate:g}"
        )
        self.ranks.wait()

    def checkpoint(self, optimiser: torch.optim.Optimizer, stage: Stage) -> None:
        """Write everything: the checkpoint first, then what is made from it."""
        if self.ranks.first:
            self.checkpoints.write(self.flow, self.average, optimiser, self.progress)
            self._publish(stage)
        self.ranks.wait()

    def _publish(self, stage: Stage) -> None:
        """Measure the averaged weights, and write model, sheet and curve."""
        progress, metrics, sheet = self.progress, {}, None
        if len(self.data.fitting(stage.crop, held_out=True)):
            metrics, columns = validate(
                self.average, self.data, self.recipe, stage, device=self.device, precision=progress.precision
            )
            sheet = self.journal.sheet(progress.step, columns)
            self.journal.measured(progress.step, stage.name, metrics)
            self.say(f"step {progress.step} held out: {_shown(metrics)}")
        provenance = {
            "source": f"trained by flowcore, recipe {self.recipe.name}{progress.origin}",
            "licence": self.recipe.licence,
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 1),
            "recipe": self.recipe.text,
            "metrics": metrics,
        }
        save(self.average, self.model_file, provenance=provenance)
        if self.watcher is not None and sheet is not None:
            self.watcher(progress.step, sum(s.steps for s in self.stages()), sheet)

    def _published(self) -> bool:
        return self.model_file.exists() and read_header(self.model_file).provenance.get("steps") == self.progress.step

    def _stage_of(self, step: int) -> Stage:
        """The stage that made a step."""
        first = 0
        for stage in self.stages():
            first += stage.steps
            if step <= first:
                return stage
        return self.stages()[-1]

    def _choose_precision(self) -> str:
        if self.recipe.precision != "auto":
            return self.recipe.precision
        seconds: dict[str, float] = {}
        for precision in ("float32", "bfloat16"):
            self.progress.precision = precision
            self.timed[precision] = self._seconds_per_step()
            seconds[precision] = sum(self.timed[precision].values())
        self.say("seconds, a step of each stage: " + ", ".join(f"{name} {s:.2f}" for name, s in seconds.items()))
        return min(seconds, key=lambda name: seconds[name])

    def _length(self, seconds: float) -> float:
        """The factor on all numbers of steps by which a run takes so many seconds; a tenth goes to validation."""
        each = self.timed.get(self.progress.precision) or self._seconds_per_step()
        return min(1.0, 0.9 * max(0.0, seconds) / sum(each[stage.name] * stage.steps for stage in self.recipe.stages))

    def _seconds_per_step(self) -> dict[str, float]:
        """Time a step of every stage, without making it."""
        result: dict[str, float] = {}
        for stage in self.recipe.stages:
            runner = _StageRunner(self, dataclasses.replace(stage, train_encoder_after=0.0), 0)
            times: list[float] = []
            for _ in range(3):
                begun = time.monotonic()
                runner.gradient(*runner.batch(0)).item()
                times.append(time.monotonic() - begun)
            runner.optimiser.zero_grad(set_to_none=True)
            result[stage.name] = self.ranks.mean(torch.tensor(min(times[1:]), device=self.device)).item()
        return result


class _StageRunner:
    """The steps of one stage."""

    def __init__(self, trainer: _Trainer, stage: Stage, first: int) -> None:
        self.trainer, self.stage, self.first = trainer, stage, first
        self.recipe, self.progress, self.device = trainer.recipe, trainer.progress, trainer.device
        self.flow, self.average, self.ranks = trainer.flow, trainer.average, trainer.ranks
        self.flow.requires_grad_(True)
        frozen = len(self.flow.levels) - stage.frozen_levels
        for number, level in enumerate(self.flow.levels):
            level.requires_grad_(number < frozen)
        self.loss = objective(self.flow, stage)
        self.parameters = [p for p in self.loss.parameters() if p.requires_grad]
        kernels = [p for p in self.parameters if p.ndim == 4]
        others = [p for p in self.parameters if p.ndim != 4]
        groups = [{"params": kernels, "weight_decay": stage.weight_decay}, {"params": others, "weight_decay": 0.0}]
        kind = torch.optim.AdamW if stage.optimiser == "adamw" else torch.optim.Adam
        self.optimiser = kind(
            [group for group in groups if group["params"]], stage.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self._freeze(self._frozen(trainer.progress.step))
        # counted on the device, so that no step waits for it
        self.skipped = torch.tensor(self.progress.skipped, device=self.device)
        self.bad = torch.tensor(self.progress.bad, device=self.device)
        self.sum = torch.zeros((), dtype=torch.float64 if self.device != "mps" else torch.float32, device=self.device)
        self.count = torch.zeros((), dtype=torch.int64, device=self.device)
        self.norm = torch.zeros((), device=self.device)

    # --- a stage

    def go(self, until: int, optimiser_state: dict[str, Any] | None) -> bool:
        """Train up to a step, with checkpoints on the way; say whether it came so far."""
        progress = self.progress
        every = self.recipe.checkpoint_every
        if progress.length < 1:
            every = max(min(every, 25), round(every * progress.length))
        if optimiser_state is not None:
            self.optimiser.load_state_dict(optimiser_state)
        self._fit_into_memory()
        waited, started, shown = 0.0, time.monotonic(), time.monotonic()
        made = progress.step
        with ThreadPoolExecutor(1, "flowcore-data") as loader:
            coming = loader.submit(self.batch, progress.step)
            while progress.step < until:
                begun = time.monotonic()
                batch = coming.result()
                waited += time.monotonic() - begun
                coming: Future[Any] = loader.submit(self.batch, min(progress.step + 1, until - 1))
                self._step(*batch)
                progress.step += 1
                interrupt = self._interrupted(until)
                due = progress.step % every == 0 or progress.step == until or interrupt is not None
                if due or progress.step % LOOK_EVERY == 0:
                    self._look()
                now = time.monotonic()
                if due or now - shown > SPEAK_EVERY:
                    self._show((progress.step - made) / max(now - shown, 1e-9), waited / max(now - shown, 1e-9))
                    shown, made, waited = now, progress.step, 0.0
                if due:
                    progress.seconds += time.monotonic() - started
                    self.trainer.checkpoint(self.optimiser, self.stage)
                    started = shown = time.monotonic()
                if isinstance(interrupt, BaseException):
                    raise interrupt
                if interrupt is not None:
                    self.trainer.say(f"stopped: {interrupt}")
                    return progress.step == until
        return True

    def _interrupted(self, until: int) -> str | BaseException | None:
        """Ask whether to stop here: a reason, or what the caller raised."""
        trainer, progress = self.trainer, self.progress
        reason: str | BaseException | None = None
        try:
            if trainer.watcher is not None:
                trainer.watcher(progress.step, sum(stage.steps for stage in trainer.stages()))
            if trainer.cancelled is not None and trainer.cancelled():
                reason = "cancelled"
        except BaseException as raised:  # the host's own interruption; raised again after the checkpoint
            reason = raised
        if time.monotonic() > trainer.deadline and progress.step < until:
            reason = reason or "the time is up"
        if self.ranks.several:  # now and then, for it waits for the device
            due = progress.step % LOOK_EVERY == 0
            return (reason or "cancelled") if due and self.ranks.agree(reason is not None, self.device) else None
        return reason

    def _look(self) -> None:
        """Fetch what the device has counted."""
        self.progress.skipped, self.progress.bad = int(self.skipped), int(self.bad)
        if self.progress.bad >= self.recipe.patience:
            raise _Diverged

    def _show(self, rate: float, waiting: float) -> None:
        progress, stage = self.progress, self.stage
        done = progress.step - self.first
        mean = float(self.sum / self.count)
        self.sum.zero_()
        self.count.zero_()
        left = (stage.steps - done) / max(rate, 1e-9) / 60
        bar = "#" * round(20 * done / stage.steps)
        self.trainer.say(
            f"{stage.name} [{bar:<20}] {done}/{stage.steps} {self.loss.unit} {mean:.4f} {rate:.2f} steps/s "
            f"data wait {waiting:.1%} skipped {progress.skipped} {left:.0f} min left"
        )
        self.trainer.journal.training(
            step=progress.step,
            stage=stage.name,
            unit=self.loss.unit,
            loss=round(mean, 6),
            rate=f"{self._rate():.6g}",
            gradient_norm=round(float(self.norm), 6),
            steps_per_second=round(rate, 3),
            data_wait=round(waiting, 4),
            skipped=progress.skipped,
        )

    # --- a step

    def batch(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Images, sources and noise of a step: this process's share of them. Runs beside the step before."""
        stage, seed = self.stage, self.recipe.seed
        x, source = self.trainer.data.batch(stage.batch, stage.crop, seed, step)
        noise = self.loss.noise(tuple(x.shape), torch.Generator("cpu").manual_seed(seed * 1_000_003 + step))
        share = self.ranks.share(stage.batch)
        return tuple(None if t is None else self._sent(t[share]) for t in (x, source, noise))  # pyright: ignore[reportReturnType]

    def gradient(self, x: Tensor, source: Tensor | None, noise: Tensor | None) -> Tensor:
        """Compute the loss and the gradient."""
        recompute = self.progress.recompute == "always"
        across = self.ranks.mean if self.ranks.several else None
        with recomputed(self.flow) if recompute else nullcontext():
            with batch_moments(self.flow, average=across), self._autocast():
                loss = self.module(x, source, noise)
            loss.backward()
        return loss.detach()

    def _step(self, x: Tensor, source: Tensor | None, noise: Tensor | None) -> None:
        """Make one optimiser step, unless loss or gradient are not finite."""
        self._freeze(self._frozen(self.progress.step))
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad(set_to_none=True)
        # for dropout; processes must not drop alike
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.progress.step + 7_919 * self.ranks.rank)
        try:
            loss = self.gradient(x, source, noise)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise FlowError(
                f"Stage {self.stage.name} ran out of memory with a batch of {self.stage.batch} crops of "
                f"{self.stage.crop} pixels. Lower batch or crop, or set recompute = 'always' in the recipe."
            ) from error
        loss = self.ranks.mean(loss)
        self.norm = nn.utils.clip_grad_norm_(self.parameters, self.stage.clip or math.inf)
        good = loss.isfinite() & self.norm.isfinite()
        self.optimiser.found_inf = (~good).float()  # pyright: ignore[reportAttributeAccessIssue]  (torch's own way to say: make no step)
        self.optimiser.step()
        self._follow(good)
        self.skipped += ~good
        self.bad = torch.where(good, 0, self.bad + 1)
        self.sum += torch.where(good, loss, 0.0)
        self.count += good

    @torch.no_grad()
    def _follow(self, good: Tensor) -> None:
        """Move the average towards the weights, if the step was made."""
        done = self.progress.step - self.first
        decay = min(self.recipe.ema, (1 + done) / (10 + done))
        weight = (1 - decay) * good.float()
        for mean, value in zip(self.average.parameters(), self.flow.parameters(), strict=True):
            if value.requires_grad:  # the others are equal already
                mean.lerp_(value, weight)
        for mean, value in zip(self.average.buffers(), self.flow.buffers(), strict=True):
            mean.copy_(value)  # fixed orders, and moments that are running means already

    def _frozen(self, step: int) -> bool:
        """Whether the encoder is frozen at a step."""
        stage = self.stage
        return stage.objective == "likelihood" and step - self.first < stage.train_encoder_after * stage.steps

    def _freeze(self, frozen: bool) -> None:
        """Freeze the encoder or let it go, and share the objective among the processes accordingly."""
        if not isinstance(self.loss, AbsoluteError):
            if hasattr(self, "module") and self.loss.encoder_frozen == frozen:
                return
            self.loss.encoder_frozen = frozen
            if self.flow.encoder is not None:
                self.flow.encoder.requires_grad_(not frozen)
        elif hasattr(self, "module"):
            return
        self.module: nn.Module = self.loss
        if self.ranks.several:
            self.module = DistributedDataParallel(self.loss, broadcast_buffers=False, find_unused_parameters=True)

    def _rate(self) -> float:
        return self.stage.learning_rate * self.progress.rate * _schedule(self.stage, self.progress.step - self.first)

    def _autocast(self) -> torch.autocast:
        low = self.progress.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=low)

    def _sent(self, t: Tensor) -> Tensor:
        if self.device.startswith("cuda"):
            return t.pin_memory().to(self.device, non_blocking=True)
        return t.to(self.device)

    # --- memory

    def _fit_into_memory(self) -> None:
        """Say how large a batch fits, and choose whether to recompute; a run keeps to its choice."""
        stage, progress = self.stage, self.progress
        free = free_memory(self.device)
        if self.recipe.recompute != "auto":
            progress.recompute = self.recipe.recompute
        chosen = progress.recompute
        if free is None:
            progress.recompute = chosen or "never"
            return
        each_rank = stage.batch // self.ranks.world
        images = self.batch(progress.step)

        def step(items: int) -> None:
            self.gradient(*(None if t is None else _repeated(t, items) for t in images))  # pyright: ignore[reportArgumentType]
            self.optimiser.zero_grad(set_to_none=True)

        buffers = [b.clone() for b in self.flow.buffers()]
        progress.recompute = chosen or "never"
        fits, each = largest_batch(step, round(SPARE * free), each_rank)
        if fits < each_rank and not chosen:
            progress.recompute = "always"
            fits, each = largest_batch(step, round(SPARE * free), each_rank)
        for buffer, value in zip(self.flow.buffers(), buffers, strict=True):
            buffer.copy_(value)  # moments that the trial steps moved
        how = ", activations computed again" if progress.recompute == "always" else ""
        self.trainer.say(
            f"{stage.name}: {each / 2**20:.3g} MB a crop of {stage.crop}{how}; the largest batch that fits into "
            f"{free / 2**30:.1f} GB of free memory is about {fits}"
            + (f", fewer than {each_rank}: expect to run out of memory" if fits < each_rank else "")
        )


def _repeated(t: Tensor, items: int) -> Tensor:
    """The first items of a batch, over again if there are too few."""
    return t.repeat(math.ceil(items / len(t)), *[1] * (t.ndim - 1))[:items]


def _schedule(stage: Stage, done: int) -> float:
    rise = min(1.0, (done + 1) / max(stage.warmup, 1))
    part = done / stage.steps
    if stage.schedule == "cosine":
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))
    if stage.schedule == "halving":
        return rise * 0.5 ** sum(part >= p for p in (0.5, 0.75, 0.9, 0.95))
    return rise


def _check_stage(stage: Stage, recipe: Recipe, data: Data, flow: Flow) -> None:
    """Refuse a stage whose crop fits no photograph, or whose first batch is too small to find principal axes in."""
    if not len(data.fitting(stage.crop)):
        raise FlowError(
            f"No image has both sides of at least {stage.crop} pixels, the crop of stage {stage.name}. Use larger "
            "images or a smaller crop."
        )
    if stage.frozen_levels >= len(flow.levels):
        raise FlowError(
            f"frozen_levels of stage {stage.name} leaves nothing to train: the model has {len(flow.levels)} levels; "
            f"got {stage.frozen_levels}."
        )
    if stage.objective == "l1":
        lr_encoder(flow)
    elif getattr(recipe.model, "mixing", "") == "principal":
        channels, height, width = flow.latent_shapes(stage.crop, stage.crop)[-1]
        pixels = recipe.init_batch * height * width
        if pixels <= channels:
            raise FlowError(
                f"mixing = 'principal' needs more pixels than channels on the deepest grid; stage {stage.name} has "
                f"{pixels} pixels for {channels} channels. Raise init_batch to at least "
                f"{channels // (height * width) + 1}."
            )


def _take_weights(flow: Flow, path: Path) -> None:
    other = read(path)
    asked, came = dataclasses.asdict(flow.config), dataclasses.asdict(other.config)
    asked.pop("styles", None)  # measured after training, and not of these weights any more
    differences = [
        f"{key} is {came.get(key)!r} instead of {asked[key]!r}" for key in asked if asked[key] != came.get(key)
    ]
    if other.architecture != flow.architecture or differences:
        raise FlowError(
            f"{path.name}, a {other.architecture} model, does not fit this recipe's {flow.architecture} model: "
            f"{'; '.join(differences[:3]) or 'another architecture'}. Start from a model of the same configuration."
        )
    weights = other.state_dict()
    flow.load_state_dict({name: weights[name] for name in flow.state_dict()})


def _take_encoder(flow: Flow, path: Path) -> None:
    source, target = lr_encoder(read(path)).state_dict(), lr_encoder(flow)
    try:
        target.load_state_dict(source)
    except RuntimeError as error:
        raise FlowError(f"The encoder of {path.name} does not fit this recipe's encoder_* fields: {error}.") from error


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in metrics.items())
