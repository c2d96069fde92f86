"""Upscale: one LR image, many sharp HR images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..condition import Condition
from ..device import free_memory, is_out_of_memory
from ..errors import FlowError
from ..flow import Flow
from ..images.resize import enlarge, resize
from ..images.tiling import Window, windows
from ..inference.condition_cache import ConditionStore
from ..inference.fold import DENSE_BYTES
from ..inference.plan import Plan
from ..prior import Temperature, on_grid, sample_latents, temperatures
from . import Cancelled, Precision, Progress, consistency, overflow
from .runner import layers, make_room, plan_for, retry_on_oom, validate_image, watched

HALO = 16  # LR pixels; what it leaves of the difference to the whole image is in docs/decisions/0004
SMALLEST_TILE = 32  # LR pixels; below this a tile is mostly halo
STRIPS = 2**26  # bytes that strips take at most, whatever the image
GUARD_REACH = 2.0  # from 0.5; what stays within 1.6 at temperature 1, and what explodes: docs/decisions/0013
MOST_SAMPLES = 8  # at once: they share what every step draws from the LR image; more would share little more
LONGEST = 2**16  # pixels of a side that someone may ask for

Index = tuple[EllipsisType, slice, slice]

log = logging.getLogger("flowcore")


@retry_on_oom(
    "Set tile to 32, ask for fewer samples, enlarge a smaller image, or free memory on the device.", at_once=""
)
@torch.no_grad()
def upscale(
    flow: Flow,
    lr: Tensor,
    *,
    temperature: Temperature = 0.9,
    seed: int = 0,
    samples: int = 1,
    tile: int = 0,
    halo: int = HALO,
    precision: Precision = "float32",
    factor: float = 0.0,
    longest_side: int = 0,
    match_source: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
    store: ConditionStore | None = None,
) -> Tensor:
    """Enlarge images; every sample is another plausible enlargement of the same LR image.

    The image is worked on as a whole, in strips of rows that are exact (see ``folding``); only where memory does not
    suffice for that, or ``tile`` asks for it, in tiles. The latents are drawn for the whole image and cropped, so a
    seed gives the same picture whatever the tile size, the batch position and the device. Sample s of every image is
    drawn with ``seed + s``. Where the model overflows, it is drawn calmer, see ``guard``, and ``notify`` is told.

    Args:
        flow: An SRFlow.
        lr: ``(B, C, h, w)`` in [0, 1], any size from 1x1, float of any precision or uint8 in [0, 255]; values outside
            are clamped. C is 3; or 1, treated as grey; or 4, whose alpha is enlarged the ordinary way (bicubic).
        temperature: Standard deviation of the latents, >= 0: one, or one per level, finest first. 0 is calm, 1 the
            model's own spread. Each may be a map ``(1 or B, 1, any height, any width)`` that lies over the image, for
            example of ``prior.painted``.
        seed: In [0, 2^64).
        samples: Enlargements per image, at least 1.
        tile: Side of the tiles in LR pixels, at least 32; 0 for the whole image if memory allows, else the largest that
            fits. Changes memory and time, not the picture (at most 1/255).
        halo: LR pixels read around every tile.
        precision: Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32.
            "auto": what the device gains from, see ``plan.gain``. "tf32": float32 on an NVIDIA GPU's tensor cores;
            elsewhere the same as float32.
        factor: Enlarge by this in all: the model enlarges by its scale, and one bicubic resize does the rest, up or
            down. 0 for the model's scale.
        longest_side: Length of the longest side of the result in pixels, likewise; 0 for no matter. Wins over
            ``factor``.
        match_source: Whether to change the pictures a little, so that they are the LR image again when they are
            shrunk, see ``consistency.match_source``.
        progress: Called with ``(done, total, preview)``; a preview with every finished sample, of the model's scale.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked (tile, precision, temperature where
            the model overflows); None logs it.
        store: Where what was learnt of an image is kept for the next call; None for nowhere.

    Returns:
        ``(B * samples, 3 or 4, s * h, s * w)`` float32 in [0, 1] on the device of ``lr``: all samples of image 0, then
        of image 1. Sides are those of ``target_size`` where a size was asked for.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        ShapeError: If there are not as many temperatures as levels, or a map has another shape.
        FlowError: If another argument is out of its range, or memory does not suffice for the smallest tile.
        Cancelled: If stopped.

    Source: Lugmayr et al., "SRFlow", sections 3 and 4; the tiling is ours.
    """
    _check_model(flow)
    if samples < 1:
        raise FlowError(f"samples must be at least 1; got {samples}.")
    rgb, alpha = validate_image(lr)
    say = notify or log.warning
    height, width = rgb.shape[-2:]
    size = target_size(flow, height, width, factor, longest_side)
    if min(size[0] - height * flow.condition_scale, size[1] - width * flow.condition_scale) > 0:
        say(
            f"The model enlarges {flow.condition_scale} times; the rest, to {size[1]}x{size[0]}, is an ordinary resize "
            "(bicubic)."
        )
    work = _Work(flow, tile, halo, precision, progress, cancelled, say, store)
    pictures = work(rgb, [temperature], samples, seed).flatten(0, 1)
    if size != tuple(pictures.shape[-2:]):
        pictures = _resized(pictures, size, cancelled)
    if match_source and (size[0] < height or size[1] < width):
        say(f"match_source is left out: at {size[1]}x{size[0]} the result is smaller than the image.")
    elif match_source:
        pictures = consistency.match_source(pictures, rgb, cancelled=cancelled, notify=say)
    pictures = pictures.to(lr.device)
    if alpha is None:
        return pictures
    alpha = resize(alpha, *size).clamp(0, 1).repeat_interleave(samples, 0)
    return torch.cat([pictures, alpha], dim=1)


@retry_on_oom("Set tile to 32, ask for fewer seeds, enlarge a smaller image, or free memory on the device.", at_once="")
@torch.no_grad()
def temperature_grid(
    flow: Flow,
    lr: Tensor,
    temperatures: Sequence[float],
    *,
    seed: int = 0,
    seeds: int = 1,
    tile: int = 0,
    halo: int = HALO,
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
    store: ConditionStore | None = None,
) -> Tensor:
    """Enlarge images with several temperatures and several seeds; each is analysed once.

    Args:
        flow: As in ``upscale``; so are the arguments that are not named here.
        lr: ``(B, C, h, w)``; an alpha channel is left out.
        temperatures: Each is one picture per seed.
        seed: The first.
        seeds: How many, counted up from ``seed``.
        tile: See ``upscale``.
        halo: See ``upscale``.
        precision: See ``upscale``.
        progress: See ``upscale``.
        cancelled: See ``upscale``.
        notify: See ``upscale``.
        store: See ``upscale``.

    Returns:
        ``(B * temperatures * seeds, 3, s * h, s * w)``, on the device of ``lr``: of image 0 all seeds of the first
        temperature, then of the second. Each is what ``upscale`` makes.

    Raises:
        FlowError: If there are no temperatures, or an argument is out of its range.
        ImageError: As in ``upscale``.
        Cancelled: If stopped.
    """
    _check_model(flow)
    if not temperatures or seeds < 1:
        raise FlowError(
            f"Expected at least one temperature and one seed; got {len(temperatures)} and {seeds}. Give some."
        )
    work = _Work(flow, tile, halo, precision, progress, cancelled, notify or log.warning, store)
    return work(validate_image(lr)[0], temperatures, seeds, seed).flatten(0, 1).to(lr.device)


def target_size(flow: Flow, height: int, width: int, factor: float = 0.0, longest_side: int = 0) -> tuple[int, int]:
    """Say how large the pictures of ``upscale`` are.

    Args:
        flow: An SRFlow.
        height: Of the LR image.
        width: Likewise.
        factor: As in ``upscale``.
        longest_side: Likewise.

    Returns:
        Height and width. The proportions are those of the LR image, as near as whole pixels allow.

    Raises:
        FlowError: If factor or side is out of its range.
    """
    if not (math.isfinite(factor) and factor >= 0) or longest_side < 0:
        raise FlowError(
            f"factor and longest_side must be finite and not negative; got {factor} and {longest_side}. 0 leaves the "
            "size to the model."
        )
    ratio = longest_side / max(height, width, 1) if longest_side else factor or float(flow.condition_scale)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    if max(size) > LONGEST:
        raise FlowError(f"A side of {max(size)} pixels was asked for, and {LONGEST} is the most. Ask for less.")
    return size


def memory_required(flow: Flow, height: int, width: int, tile: int = 0, halo: int = HALO, samples: int = 1) -> int:
    """Estimate the working memory of ``upscale`` in float32, beyond the weights and the resulting pictures.

    Counts what is held for the whole image or tile at the widest moment, which is the end of level 1 (in small images a
    dense block of the encoder): the features of all levels, and for every sample its latents and the image before and
    after what is done to it; and the strips, which do not grow with the image.

    Args:
        flow: An SRFlow.
        height: Of the LR image.
        width: Likewise.
        tile: As in ``upscale``; 0 for the whole image at once.
        halo: As in ``upscale``.
        samples: Enlargements that are made at once.

    Returns:
        Bytes.

    Raises:
        FlowError: If the model is no SRFlow.
    """
    _check_model(flow)
    rows, columns = (min(n, tile + 2 * halo) if tile else n for n in (height, width))
    config = flow.config
    stack = config.encoder_width * len(config.stacked_blocks)
    native = sum((config.scale / 2**level) ** 2 for level in range(1, config.levels + 1))
    hr = config.scale**2 * ((3 if config.residual else 0) + samples * 5 * 3)
    decoding = 4 * (config.encoder_width * native + hr) * rows * columns
    dense = 4 * 2 * (4 * config.encoder_growth + 3 * config.encoder_width) * rows * columns
    return round(4 * stack * rows * columns + max(decoding, min(dense, DENSE_BYTES))) + STRIPS


def _check_model(flow: Flow) -> None:
    if flow.architecture != "srflow":
        raise FlowError(f"upscale needs an SRFlow model; got a {flow.architecture} model.")


def _padded_sides(flow: Flow, height: int, width: int) -> tuple[int, int]:
    multiple = flow.size_multiple // flow.condition_scale or 1
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


class _Work:
    """Enlarges a batch with what memory there is: as a whole, in the lowest strips, in ever smaller tiles."""

    def __init__(
        self,
        flow: Flow,
        tile: int,
        halo: int,
        precision: Precision,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
        say: Callable[[str], None],
        store: ConditionStore | None,
    ) -> None:
        if tile < 0 or halo < 0:
            raise FlowError(
                f"tile and halo must not be negative; got tile {tile}, halo {halo}. Tile 0 chooses by free memory."
            )
        self.flow, self.plan, self.tile, self.halo = flow, plan_for(flow, precision, say), tile, halo
        self.progress, self.cancelled, self.say, self.store = progress, cancelled, say, store

    def __call__(self, rgb: Tensor, taus: Sequence[Temperature], seeds: int, seed: int) -> Tensor:
        """Make ``(B, taus * seeds, 3, s * h, s * w)`` on the CPU."""
        sides = _padded_sides(self.flow, *rgb.shape[-2:])
        device = next(self.flow.parameters()).device
        side = max(self.tile, SMALLEST_TILE) if self.tile else _automatic_tile(self.flow, *sides, self.halo, device)
        at_once = min(len(taus) * seeds, MOST_SAMPLES)
        run = _Run(self.plan, rgb, taus, seeds, seed, self.halo, self.progress, self.cancelled, self.store)
        spare = False
        while True:
            try:
                pictures = run(side, at_once)
                break
            except (RuntimeError, MemoryError) as error:  # what torch and Python raise, on every device
                if not is_out_of_memory(error):
                    raise
                if spare and side <= SMALLEST_TILE:
                    raise FlowError(
                        f"Out of memory even with tiles of {SMALLEST_TILE} LR pixels. Enlarge a smaller image, ask for "
                        "fewer samples at once, or free memory on the device."
                    ) from error
            if self.store is not None:
                self.store.clear()
            make_room(self.plan)
            if not spare:
                spare, at_once = True, 1
                self.say("Out of memory: going on with one sample at a time, in the lowest strips.")
            else:
                side = max(SMALLEST_TILE, min(side, max(sides)) // 2)
                self.say(f"Out of memory: going on with tiles of {side} LR pixels. Set tile to {side} to start there.")
        for sentence in run.repairs.sentences(pictures[0, 0, 0].numel(), "enlarged the ordinary way (bicubic)"):
            self.say(sentence)
        return pictures


class _Run:
    """Enlarges every image, tile by tile; what depends on the image alone is computed once per tile."""

    def __init__(
        self,
        plan: Plan,
        rgb: Tensor,
        taus: Sequence[Temperature],
        seeds: int,
        seed: int,
        halo: int,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
        store: ConditionStore | None,
    ) -> None:
        self.plan, self.rgb, self.samples, self.halo = plan, rgb, len(taus) * seeds, halo
        self.progress, self.cancelled, self.store = progress, cancelled, store
        self.rows, self.columns = _padded_sides(plan, *rgb.shape[-2:])
        self.shapes = plan.latent_shapes(self.rows * plan.condition_scale, self.columns * plan.condition_scale)
        self.taus = [self._on_levels(temperatures(tau, len(self.shapes), len(rgb))) for tau in taus]
        self.noise = sample_latents(self.shapes, seeds, 1.0, seed)  # the same for every image and temperature
        self.repairs = overflow.Repairs()

    def __call__(self, tile: int, at_once: int) -> Tensor:
        self.repairs = overflow.Repairs()
        plan, rgb, samples, scale = self.plan, self.rgb, self.samples, self.plan.condition_scale
        multiple = plan.size_multiple // scale or 1
        tiles = windows(self.rows, self.columns, tile=tile // multiple * multiple, halo=self.halo, multiple=multiple)
        batch, _, height, width = rgb.shape
        result = rgb.new_empty((batch, samples, 3, height * scale, width * scale), device="cpu")
        parts = [slice(s, min(s + at_once, samples)) for s in range(0, samples, at_once)]
        encoder, decoder = len(layers(cast(nn.Module, plan.encoder))), len(layers(plan.levels))
        total = batch * len(tiles) * (encoder + len(parts) * decoder + samples)
        meter = _Meter(total, self.progress, self.cancelled)
        with watched(plan, meter.advance):
            for item, (image, pictures) in enumerate(zip(rgb, result, strict=True)):
                padded = _pad(image[None], self.rows, self.columns)
                for number, window in enumerate(tiles):
                    meter.begin(encoder)
                    source = _cut(padded, window, 1)
                    cond = self._condition(source, len(parts) > 1)
                    here, there = _core(window, scale, height * scale, width * scale)
                    for part in parts:
                        meter.begin(decoder)
                        z = self._latents(range(part.start, part.stop), item, window)
                        attempt = overflow.within(plan, cond, GUARD_REACH)
                        decoded = overflow.decode(attempt, z, partial(enlarge, source, scale))
                        images, *marks = (None if t is None else t[here] for t in decoded)
                        self.repairs.add(item * samples + part.start, *marks)
                        assert images is not None
                        for sample, piece in zip(pictures[part], images, strict=True):
                            sample[there] = piece.clamp(0, 1)
                            meter.finished(sample if number == len(tiles) - 1 else None)
        return result

    def _on_levels(self, taus: list[float | Tensor]) -> list[float | Tensor]:
        """Bring maps of temperatures, which lie over the image, onto the latents, which lie over the padded one."""
        height, width = self.rgb.shape[-2:]
        fine = max(1, self.shapes[0][1] // self.rows)  # the finest latents may be coarser than the LR image
        placed: list[float | Tensor] = []
        for tau, (_, rows, columns) in zip(taus, self.shapes, strict=True):
            if isinstance(tau, Tensor):
                tau = on_grid(tau, height * fine, width * fine)
                beyond = (0, self.columns * fine - tau.shape[-1], 0, self.rows * fine - tau.shape[-2])
                tau = on_grid(F.pad(tau, beyond, mode="replicate"), rows, columns)
            placed.append(tau)
        return placed

    def _latents(self, numbers: range, item: int, window: Window) -> list[Tensor]:
        """Give the latents of some pictures of an image, in a window."""
        latents: list[Tensor] = []
        for level, noise in enumerate(self.noise):
            factor = noise.shape[-2] / self.rows
            each: list[Tensor] = []
            for number in numbers:
                which, seed = divmod(number, len(noise))
                tau = self.taus[which][level]
                if isinstance(tau, Tensor):
                    tau = _cut(tau[min(item, len(tau) - 1), None], window, factor)
                each.append(tau * _cut(noise[seed, None], window, factor))
            latents.append(torch.cat(each).to(self.plan.device))
        return latents

    def _condition(self, source: Tensor, again: bool) -> Condition:
        """What the flow is told, prepared if it is wanted again and memory allows."""
        if self.store is not None:
            return self.store.condition(self.plan, source)
        cond = self.plan.encode_condition(source.to(self.plan.device))
        if not again:
            return cond
        height, width = (side * self.plan.condition_scale for side in source.shape[-2:])
        free = free_memory(str(self.plan.device))
        roomy = free is not None and self.plan.prepared_bytes(height, width) <= free // 4
        return cond.prepare(self.plan) if roomy else cond


class _Meter:
    """Counts layers that run for the first time in a stage, and finished samples; asks each layer whether to stop."""

    def __init__(self, total: int, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._total, self._progress, self._cancelled = total, progress, cancelled
        self._done, self._start, self._end = 0, 0, 0
        self._seen: set[nn.Module] = set()

    def begin(self, units: int) -> None:
        """Begin a stage that has so many layers; not all of them need to run."""
        self._start, self._end = self._end, self._end + units
        self._seen.clear()

    def finished(self, preview: Tensor | None) -> None:
        """Count a sample."""
        self.begin(1)
        self._report(self._end, preview)

    def advance(self, layer: nn.Module) -> None:
        """A layer is about to run."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("Stopped on request.")
        self._seen.add(layer)
        self._report(min(self._start + len(self._seen), self._end))

    def _report(self, done: int, preview: Tensor | None = None) -> None:
        if done > self._done:
            self._done = done
            if self._progress is not None:
                self._progress(done, self._total, preview)


def _resized(pictures: Tensor, size: tuple[int, int], cancelled: Callable[[], bool] | None) -> Tensor:
    """Bring pictures to a size, one after the other."""
    result = pictures.new_empty((*pictures.shape[:2], *size))
    for small, there in zip(pictures, result, strict=True):
        if cancelled is not None and cancelled():
            raise Cancelled("Stopped on request.")
        there[:] = resize(small[None], *size)[0].clamp(0, 1)
    return result


def _pad(image: Tensor, rows: int, columns: int) -> Tensor:
    """Extend to the right and below, by reflection where there is something to reflect."""
    for axis, missing in (("right", columns - image.shape[-1]), ("below", rows - image.shape[-2])):
        length = image.shape[-1] if axis == "right" else image.shape[-2]
        amounts = (0, missing, 0, 0) if axis == "right" else (0, 0, 0, missing)
        image = F.pad(image, amounts, mode="reflect" if length > missing else "replicate")
    return image


def _cut(tensor: Tensor, window: Window, factor: float) -> Tensor:
    """Cut a window with its halo out of something `factor` times as large as the LR image."""
    top, bottom, left, right = (
        round(edge * factor) for edge in (window.halo_top, window.halo_bottom, window.halo_left, window.halo_right)
    )
    return tensor[..., top:bottom, left:right]


def _core(window: Window, scale: int, height: int, width: int) -> tuple[Index, Index]:
    """A decoded window without its halo: where in the window, and where in the HR canvas, which ends with the image."""
    top, left = window.top * scale, window.left * scale
    bottom, right = min(window.bottom * scale, height), min(window.right * scale, width)
    y, x = top - window.halo_top * scale, left - window.halo_left * scale
    here = (..., slice(y, y + bottom - top), slice(x, x + right - left))
    return here, (..., slice(top, bottom), slice(left, right))


def _automatic_tile(flow: Flow, height: int, width: int, halo: int, device: torch.device) -> int:
    """The whole image if half of the free memory holds it, else the largest tile that it does hold."""
    free = free_memory(str(device))
    budget = 2 * 2**30 if free is None else free // 2
    sizes = [
        max(height, width),
        *(size for size in (1024, 768, 512, 384, 256, 192, 128, 96, 64) if size < max(height, width)),
    ]
    fitting = [size for size in sizes if memory_required(flow, height, width, size, halo) <= budget]
    return fitting[0] if fitting else sizes[-1]
