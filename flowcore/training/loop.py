"""The training loop: stages, averaged weights, exact resume, sample sheets.

Everything random is a function of (seed, step): crops, noise, initial weights. So the state of a run is its step, the
weights, their average and the optimiser's moments, and a run that was stopped goes on to the same parameters.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.file import read, save
from ..color import NEUTRAL, compress
from ..condition import Condition
from ..flow import Flow
from ..likelihood import (
    Uniform,
    VariationalDequantizer,
    bits_per_dim,
    dequantize,
    log_prob,
    log_weight,
    quantisation,
    to_integers,
)
from ..metrics import lr_psnr, psnr
from ..models import build
from ..networks import RRDBEncoder
from ..networks.luma import STRIDE
from ..prior import sample_latents
from ..resize import enlarge, shrink
from ..tasks.colorize import schedule
from ..transforms import FlowError, batch_moments
from .data import Colours, Digits, Photographs
from .recipe import Recipe, Stage

SHEET_TEMPERATURES = (0.0, 0.8, 0.8)  # of upscalers
UNCONDITIONAL_TEMPERATURES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
GIVE_UP = 50  # non-finite steps in a row after which the run stops


Data = Photographs | Colours | Digits


@dataclass
class Progress:
    """What a run remembers between checkpoints besides tensors.

    Attributes:
        step: Finished steps, over all stages.
        skipped: Steps that were not made because the loss or gradient was not finite.
        precision: "float32" or "bfloat16", once chosen.
        seconds: Time spent training.
    """

    step: int = 0
    skipped: int = 0
    precision: str = ""
    seconds: float = 0.0


def train(
    recipe: Recipe,
    data: Path,
    run: Path,
    *,
    device: str = "cpu",
    encoder_from: Path | None = None,
    stop_after: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Run a recipe to its end, from wherever the run folder says it has come.

    Args:
        recipe: What to train.
        data: Folder of photographs.
        run: Folder for the checkpoint, the model file, sample sheets, the log and the decoded photographs.
        device: Torch device.
        encoder_from: A model file whose encoder to start from.
        stop_after: Stop (with a checkpoint) after this many steps in all; None for the recipe's end.
        log: Where lines of progress go; None for the standard error stream.

    Returns:
        Path of the model file, ``run/model.safetensors``.

    Raises:
        FlowError: If a stage does not suit the data or the model, the run folder belongs to another recipe, or too many
            steps in a row were not finite.
    """
    run.mkdir(parents=True, exist_ok=True)
    say = _logger(run / "log.txt", log)
    photographs = open_data(recipe, data, run / "cache")
    say(
        f"{len(photographs.training)} images to train on, {len(photographs.held_out)} held out, "
        f"{len(photographs.skipped)} skipped"
    )
    for line in photographs.skipped:
        say(f"skipped {line}")

    torch.manual_seed(recipe.seed)
    flow = build(recipe.architecture, recipe.model)
    if encoder_from is not None:
        _take_encoder(flow, encoder_from)
    for stage in recipe.stages:  # now, not hours later
        _check_stage(stage, recipe, photographs, flow)
    flow.to(device=device, memory_format=torch.channels_last)
    average = copy.deepcopy(flow).requires_grad_(False).eval()
    progress = Progress()
    optimiser_state = _restore(run / "checkpoint.pt", recipe, flow, average, progress)
    if progress.step:
        say(f"going on after step {progress.step}")
    total = sum(stage.steps for stage in recipe.stages)
    limit = total if stop_after is None else min(total, stop_after)

    first = 0
    initialised = False  # by the first likelihood stage
    for stage in recipe.stages:
        if first <= progress.step < min(first + stage.steps, limit):
            if progress.step == first:
                flow.load_state_dict(average.state_dict())
                if stage.objective == "likelihood" and not initialised:
                    _initialise(flow, photographs, recipe, stage, device)
                average.load_state_dict(flow.state_dict())
                optimiser_state = None
            runner = _StageRunner(recipe, stage, first, flow, average, photographs, progress, device, say)
            runner.go(min(first + stage.steps, limit), optimiser_state, run)
            optimiser_state = None
        first += stage.steps
        initialised = initialised or stage.objective == "likelihood"
    model = run / "model.safetensors"
    say(f"{progress.step} of {total} steps, {progress.skipped} skipped, {progress.seconds / 60:.1f} minutes: {model}")
    return model


class _StageRunner:
    """The steps of one stage."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        first: int,
        flow: Flow,
        average: Flow,
        photographs: Data,
        progress: Progress,
        device: str,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.stage, self.first = recipe, stage, first
        self.flow, self.average = flow, average
        self.photographs, self.progress = photographs, progress
        self.device, self.say = device, say
        frozen = len(flow.levels) - stage.frozen_levels
        for number, level in enumerate(flow.levels):
            level.requires_grad_(number < frozen)
        trained = _encoder(flow) if stage.objective == "l1" else flow
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        kernels = [p for p in self.parameters if p.ndim == 4]
        others = [p for p in self.parameters if p.ndim != 4]
        groups = [{"params": kernels, "weight_decay": stage.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], stage.learning_rate, betas=(0.9, 0.99), fused=True
        )

    def go(self, until: int, optimiser_state: dict[str, Any] | None, run: Path) -> None:
        """Train up to a step, with checkpoints on the way."""
        progress, every = self.progress, self.recipe.checkpoint_every
        if optimiser_state is not None:
            self.optimiser.load_state_dict(optimiser_state)
        if not progress.precision:
            progress.precision = self._choose_precision()
            self.say(f"precision of conditioners and encoder: {progress.precision}")
        bad, waited, started, shown = 0, 0.0, time.monotonic(), time.monotonic()
        recent: list[float] = []
        while progress.step < until:
            begun = time.monotonic()
            x, source = self._batch(progress.step)
            waited += time.monotonic() - begun
            value = self._step(x, source)
            if value is None:
                progress.skipped += 1
                bad += 1
                if bad >= GIVE_UP:
                    raise FlowError(
                        f"{bad} steps in a row were not finite, the last at step {progress.step}. Lower the learning "
                        f"rate of stage {self.stage.name} ({self.stage.learning_rate}); a checkpoint, if there is "
                        f"one, is in {run}."
                    )
            else:
                bad = 0
                recent.append(value)
            progress.step += 1
            now = time.monotonic()
            if now - shown > 20 or progress.step == until:
                self._show(recent, len(recent) / max(now - shown, 1e-9), waited / max(now - started, 1e-9))
                recent, shown = [], now
            if progress.step % every == 0 or progress.step == until:
                progress.seconds += time.monotonic() - started
                self._checkpoint(run)
                started, waited = time.monotonic(), 0.0

    def _step(self, x: Tensor, source: Tensor | None) -> float | None:
        """Make one optimiser step; None if it was not finite and therefore not made."""
        done = self.progress.step - self.first
        for group in self.optimiser.param_groups:
            group["lr"] = self.stage.learning_rate * _rate(self.stage, done)
        self.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.progress.step)  # for dropout
        with batch_moments(self.flow):
            loss = self._loss(self.flow, x, source)
        if not math.isfinite(loss.item()):
            return None
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.stage.clip or math.inf)
        if not math.isfinite(norm.item()):
            return None
        self.optimiser.step()
        decay = min(self.recipe.ema, (1 + done) / (10 + done))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.flow.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for mean, value in zip(self.average.buffers(), self.flow.buffers(), strict=True):
                mean.copy_(value)  # fixed orders, and moments that are running means already
        return loss.item()

    def _loss(self, flow: Flow, x: Tensor, source: Tensor | None, *, validating: bool = False) -> Tensor:
        step = 0 if validating else self.progress.step
        stage = self.stage
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.progress.precision == "bfloat16"):
            if stage.objective == "l1":
                assert source is not None
                picture = _encoder(flow).picture(source)
                loss = F.l1_loss(picture, x)
                if stage.lr_consistency and not validating:
                    loss = loss + stage.lr_consistency * F.l1_loss(shrink(picture, flow.config.scale), source)
                return loss
            frozen = step - self.first < stage.train_encoder_after * stage.steps
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                cond = None if source is None else flow.encode_condition(source)
            generator = torch.Generator("cpu").manual_seed(self.recipe.seed * 1_000_003 + step)
            if stage.balanced and not validating:
                return _bits_by_level(flow, x, cond, generator).mean()
            return _bits(flow, x, cond, generator).mean()

    def _batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        x, source = self.photographs.batch(self.stage.batch, self.stage.crop, self.recipe.seed, step)
        return x.to(self.device), None if source is None else source.to(self.device)

    def _choose_precision(self) -> str:
        if self.recipe.precision != "auto":
            return self.recipe.precision
        x, source = self._batch(self.progress.step)
        seconds: dict[str, float] = {}
        for precision in ("float32", "bfloat16"):
            self.progress.precision = precision
            for attempt in range(4):
                if attempt == 1:  # the first one warms up
                    seconds[precision] = -time.monotonic()
                loss = self._loss(self.flow, x, source)
                loss.backward()
                loss.item()
            seconds[precision] += time.monotonic()
        self.optimiser.zero_grad(set_to_none=True)
        self.say("seconds per step: " + ", ".join(f"{name} {value / 3:.2f}" for name, value in seconds.items()))
        return min(seconds, key=lambda name: seconds[name])

    def _show(self, recent: list[float], rate: float, waiting: float) -> None:
        done = self.progress.step - self.first
        unit = "L1" if self.stage.objective == "l1" else "bits/dim"
        mean = sum(recent) / len(recent) if recent else math.nan
        left = (self.stage.steps - done) / max(rate, 1e-9) / 60
        bar = "#" * round(20 * done / self.stage.steps)
        self.say(
            f"{self.stage.name} [{bar:<20}] {done}/{self.stage.steps} {unit} {mean:.4f} {rate:.2f} steps/s "
            f"data wait {waiting:.1%} skipped {self.progress.skipped} {left:.0f} min left"
        )

    @torch.no_grad()
    def _checkpoint(self, run: Path) -> None:
        progress = self.progress
        content = {
            "flow": self.flow.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": vars(progress).copy(),
            "recipe": _fingerprint(self.recipe),
        }
        _atomically(run / "checkpoint.pt", lambda partial: torch.save(content, partial))
        if not len(self.photographs.fitting(self.stage.crop, held_out=True)):
            save(self.average, run / "model.safetensors", provenance=_provenance(self.recipe, progress, {}))
            return
        metrics, columns = self._validate()
        save(self.average, run / "model.safetensors", provenance=_provenance(self.recipe, progress, metrics))
        _sheet(run / "sheets" / f"{progress.step:06d}.png", columns)
        self.say(f"step {progress.step} held out: {json.dumps(metrics)}")

    def _validate(self) -> tuple[dict[str, float], list[Tensor]]:
        """Measure the averaged weights on held-out images, and make the columns of a sample sheet."""
        upscaler = self.photographs.scale > 1 if isinstance(self.photographs, Photographs) else False
        size = 8 if upscaler else 64 if isinstance(self.photographs, Colours) else 256
        x, source = self.photographs.batch(size, self.stage.crop, 0, 0, held_out=True)
        x, source = x.to(self.device), None if source is None else source.to(self.device)
        measure = "l1" if self.stage.objective == "l1" else "bits_per_dim"
        metrics = {f"validation_{measure}": round(float(self._loss(self.average, x, source, validating=True)), 4)}
        if upscaler and source is not None:
            return self._validate_upscaler(x, source, metrics)
        if isinstance(self.photographs, Colours) and source is not None:
            return self._validate_colorizer(x, source, metrics)
        if source is not None:
            source = torch.arange(8, device=self.device) % max(1, self.average.classes)
        cond = None if source is None else self.average.encode_condition(source)
        shapes = self.average.latent_shapes(*x.shape[-2:])
        columns: list[Tensor] = []
        for tau in UNCONDITIONAL_TEMPERATURES:  # a row a seed, a column a temperature
            latents = [z.to(self.device) for z in sample_latents(shapes, 8, tau)]
            columns.append(self.average.inverse(latents, cond))
        return metrics, [*columns, x[:8]]

    def _validate_colorizer(
        self, x: Tensor, source: Tensor, metrics: dict[str, float]
    ) -> tuple[dict[str, float], list[Tensor]]:
        cond = self.average.encode_condition(source)
        by_level = _bits_by_level(self.average, x, cond, torch.Generator("cpu").manual_seed(0)).mean(1)
        metrics |= {f"validation_level{k + 1}": round(float(bits), 4) for k, bits in enumerate(by_level)}
        shown = source[::8]
        y = F.avg_pool2d(shown[:, :1], STRIDE)
        cond, shapes = self.average.encode_condition(shown), self.average.latent_shapes(*x.shape[-2:])
        palette, detail = self.average.config.temperatures
        columns = [y.expand(-1, 3, -1, -1), compress(y, x[::8] - NEUTRAL)]
        for k in range(6):  # a row a photograph, a column a seed
            taus = schedule(palette, detail, len(shapes)) if k else 0.0
            latents = [z.to(self.device) for z in sample_latents(shapes, len(shown), taus, seed=k * len(shown))]
            columns.append(compress(y, self.average.inverse(latents, cond) - NEUTRAL))
        return metrics, columns

    def _validate_upscaler(
        self, hr: Tensor, lr: Tensor, metrics: dict[str, float]
    ) -> tuple[dict[str, float], list[Tensor]]:
        pictures = [enlarge(lr, self.average.config.scale)]
        if self.stage.objective == "l1":
            pictures.append(_encoder(self.average).picture(lr))
            names = ["bicubic", "l1"]
        else:
            cond = self.average.encode_condition(lr)
            shapes = self.average.latent_shapes(*hr.shape[-2:])
            for k, tau in enumerate(SHEET_TEMPERATURES):
                latents = [z.to(self.device) for z in sample_latents(shapes, len(hr), tau, seed=k * len(hr))]
                pictures.append(self.average.inverse(latents, cond))
            names = ["bicubic", *(f"tau{tau}" for tau in SHEET_TEMPERATURES[:-1])]
        for name, picture in zip(names, pictures, strict=False):
            # over the whole batch at once, since a crop of its own may be met exactly
            sr, target, small = (t.flatten(0, 1)[None] for t in (picture.clamp(0, 1), hr, lr))
            metrics[f"psnr_{name}"] = round(float(psnr(sr, target)), 2)
            metrics[f"lr_psnr_{name}"] = round(float(lr_psnr(sr, small)), 2)
        return metrics, [*pictures, hr]


def open_data(recipe: Recipe, data: Path, cache: Path) -> Data:
    """Open what a recipe trains on.

    Args:
        recipe: The recipe.
        data: A folder of images at any depth, or of the four files of MNIST for class-conditional models.
        cache: Where decoded pixels are kept.

    Returns:
        The data.
    """
    if recipe.architecture == "class_conditional":
        return Digits(data, validation=recipe.validation, unlabelled=recipe.unlabelled)
    photographs = Photographs(
        data,
        cache,
        scale=getattr(recipe.model, "scale", 1),
        pyramid=recipe.pyramid,
        validation=recipe.validation,
        turn=recipe.turn,
        short_sides=recipe.short_sides,
    )
    return Colours(photographs) if recipe.architecture == "colorizer" else photographs


def _bits(flow: Flow, x: Tensor, cond: Condition | None, generator: torch.Generator) -> Tensor:
    """Bits per dimension of dequantized images, with the noise that the model's configuration names."""
    quant_bins = getattr(flow.config, "quant_bins", 0)
    if quant_bins:  # wider than the 8-bit step on purpose
        return bits_per_dim(log_prob(flow, dequantize(x, quant_bins, generator), cond), x[0].numel())
    k = to_integers(x, quantisation(flow).n_bits)[0]
    dequantizer = flow.dequantizer if isinstance(flow.dequantizer, VariationalDequantizer) else None
    return bits_per_dim(log_weight(flow, k, cond, dequantizer=dequantizer, noise=generator), x[0].numel())


def _bits_by_level(flow: Flow, x: Tensor, cond: Condition | None, generator: torch.Generator) -> Tensor:
    """Bits per dimension of every level's own latents, ``(levels, B)``, with uniform noise."""
    bins = quantisation(flow)
    k = to_integers(x, bins.n_bits)[0]
    latents, shares = flow.by_position(bins.place(k, Uniform().draw(k, generator)[0]).to(x), cond)
    per_level = [
        bits_per_dim(share.sum((1, 2)), z[0].numel(), bins.width) for z, share in zip(latents, shares, strict=True)
    ]
    return torch.stack(per_level)


def _check_stage(stage: Stage, recipe: Recipe, photographs: Data, flow: Flow) -> None:
    """Refuse a stage whose crop fits no photograph, or whose first batch is too small to find principal axes in."""
    if not len(photographs.fitting(stage.crop)):
        raise FlowError(
            f"No image has both sides of at least {stage.crop} pixels, the crop of stage {stage.name}. Use larger "
            "images or a smaller crop."
        )
    if stage.frozen_levels >= len(flow.levels):
        raise FlowError(
            f"frozen_levels of stage {stage.name} leaves nothing to train: the model has {len(flow.levels)} levels; "
            f"got {stage.frozen_levels}."
        )
    if stage.objective == "likelihood" and getattr(recipe.model, "mixing", "") == "principal":
        channels, height, width = flow.latent_shapes(stage.crop, stage.crop)[-1]
        pixels = recipe.init_batch * height * width
        if pixels <= channels:
            raise FlowError(
                f"mixing = 'principal' needs more pixels than channels on the deepest grid; stage {stage.name} has "
                f"{pixels} pixels for {channels} channels. Raise init_batch to at least "
                f"{channels // (height * width) + 1}."
            )


def _initialise(flow: Flow, photographs: Data, recipe: Recipe, stage: Stage, device: str) -> None:
    """Set the flow's data-dependent parameters from one large batch."""
    x, source = photographs.batch(recipe.init_batch, stage.crop, recipe.seed + 1, 0)
    generator = torch.Generator("cpu").manual_seed(recipe.seed)
    quant_bins = getattr(flow.config, "quant_bins", 0)
    with torch.no_grad():
        cond = None if source is None else flow.encode_condition(source.to(device))
        if quant_bins:
            noisy = dequantize(x.to(device), quant_bins, generator)
        else:
            bins = quantisation(flow)
            k = to_integers(x, bins.n_bits)[0].to(device)
            noisy = bins.place(k, Uniform().draw(k, generator)[0]).to(x)
            if isinstance(flow.dequantizer, VariationalDequantizer):
                flow.dequantizer.initialise(torch.randn(k.shape, generator=generator).to(k), k)
        flow.initialise(noisy, cond)


def _rate(stage: Stage, done: int) -> float:
    rise = min(1.0, (done + 1) / max(stage.warmup, 1))
    part = done / stage.steps
    if stage.schedule == "cosine":
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))
    if stage.schedule == "halving":
        return rise * 0.5 ** sum(part >= p for p in (0.5, 0.75, 0.9, 0.95))
    return rise


def _encoder(flow: Flow) -> RRDBEncoder:
    if not isinstance(flow.encoder, RRDBEncoder):
        raise FlowError(
            f"Objective l1 trains an LR encoder; a {flow.architecture} model has none. Use objective likelihood."
        )
    return flow.encoder


def _take_encoder(flow: Flow, path: Path) -> None:
    source, target = _encoder(read(path)).state_dict(), _encoder(flow)
    try:
        target.load_state_dict(source)
    except RuntimeError as error:
        raise FlowError(f"The encoder of {path.name} does not fit this recipe's encoder_* fields: {error}.") from error


def _restore(path: Path, recipe: Recipe, flow: Flow, average: Flow, progress: Progress) -> dict[str, Any] | None:
    """Read a checkpoint into its places, if there is one; return the optimiser's state."""
    if not path.exists():
        return None
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if content["recipe"] != _fingerprint(recipe):
        raise FlowError(
            f"{path.parent} holds a run of another recipe (model, stages or seed differ). Choose another --run folder."
        )
    flow.load_state_dict(content["flow"])
    average.load_state_dict(content["average"])
    for name, value in content["progress"].items():
        setattr(progress, name, value)
    return content["optimiser"]


def _fingerprint(recipe: Recipe) -> str:
    # in the order in which keys came: those that came later only where a recipe uses them, so that old runs resume
    # (a new field of Stage ends that: those of this release differ from what came before)
    relevant: tuple[Any, ...] = (
        recipe.architecture,
        recipe.model,
        recipe.stages,
        recipe.seed,
        recipe.pyramid,
        recipe.validation,
        recipe.ema,
        recipe.init_batch,
        *((recipe.turn, recipe.unlabelled) if not recipe.turn or recipe.unlabelled else ()),
        *recipe.short_sides,
    )
    return hashlib.sha256(repr(relevant).encode()).hexdigest()


def _provenance(recipe: Recipe, progress: Progress, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "source": f"trained by flowcore, recipe {recipe.name}",
        "licence": recipe.licence,
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 1),
        "recipe": recipe.text,
        "metrics": metrics,
    }


def _sheet(path: Path, columns: list[Tensor]) -> None:
    """Save pictures side by side: a row an image."""
    from PIL import Image

    columns = [c.clamp(0, 1).cpu().float().expand(-1, 3, -1, -1) for c in columns]
    rows = torch.cat(columns, dim=3)  # (B, 3, H, columns * W)
    sheet = torch.cat(list(rows), dim=1)  # (3, B * H, columns * W)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).contiguous().numpy()).save(path)


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    os.replace(partial, path)


def _logger(path: Path, log: Callable[[str], None] | None) -> Callable[[str], None]:
    def say(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        with path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")
        if log is not None:
            log(stamped)
        else:
            sys.stderr.write(stamped + "\n")
            sys.stderr.flush()

    return say
