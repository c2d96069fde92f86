"""Upscale: one LR image, many sharp HR images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..condition import Condition
from ..device import free_memory
from ..errors import FlowError
from ..flow import Flow
from ..images.resize import enlarge, resize
from ..images.tiling import Window, windows
from ..inference.condition_cache import ConditionStore
from ..inference.strips import DENSE_BYTES
from ..models.hcflow import HCFlowConfig
from ..prior import Shape, Temperature, level_temperatures, resize_temperature_map, sample_latents
from . import Precision, Progress, consistency, overflow
from .calm_edges import edge_map
from .gray import gray_images, with_channels_of, without_color
from .runner import Runner, RunOptions, SamplingOptions, images_at_once, validate_image, with_alpha
from .tile_size import TileSize

HALO = 16  # LR pixels; how far tiles then differ from the whole image: docs/decisions/0004
SMALLEST_TILE = 32  # LR pixels; below this a tile is mostly halo
TILES = (1024, 768, 512, 384, 256, 192, 128, 96, 64)  # LR pixels; the sides to choose from
STRIPS = 2**26  # bytes that strips take at most, whatever the image
MAX_DEVIATION = 2.0  # from 0.5: temperature 1 stays within 1.6, overflows do not: docs/decisions/0013
ANALYSIS = 4  # a unit of encoding takes as long as so many of decoding a sample: srflow-x4, 72x48, one core
MOST_SAMPLES = 8  # at once: they share what every step computes from the LR image; more would share little more
LONGEST = 2**16  # pixels of a side of the result
ADVICE = "Set tile to 32, ask for fewer samples, enlarge a smaller image, or free memory on the device."

Index = tuple[EllipsisType, slice, slice]
Settings = tuple[Temperature, float]  # from ``sampling_settings``


def upscale(
    flow: Flow,
    lr: Tensor,
    *,
    temperature: Temperature | None = None,
    calm_edges: float | None = None,
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

    The whole image is processed in strips of rows, which is exact (see ``inference``); tiles are used only if memory
    does not suffice for that, or ``tile`` asks for them. The latents are drawn for the whole image and cropped, so a
    seed gives the same picture whatever the tile size, the batch position and the device. Where the model overflows,
    the temperature is lowered, see ``overflow``, and ``notify`` is called.

    Args:
        flow: An upscaling model, such as an SRFlow. Samples of an SRFlow share most of the work; those of an HCFlow
            share a fifth at 4x, since its finer levels are conditioned on what is drawn at the deeper ones.
        lr: ``(B, C, h, w)`` in [0, 1], any size from 1x1, float of any precision or uint8 in [0, 255]; values outside
            are clamped. C is 3; or 1 (gray); or 4, whose alpha is enlarged by a bicubic resize. What is gray stays
            gray: of an image whose three channels are equal, the luma of what the model makes is taken.
        temperature: Standard deviation of the latents, >= 0: one, or one per level, finest first. 0 is smoothest, 1 the
            model's own spread. Each may be a map ``(1 or B, 1, any height, any width)`` that covers the image, for
            example from ``prior.masked_temperature``. None for the model's own, which its file states: the highest
            that was measured to draw hardly any false specks.
        calm_edges: In [0, 1]: how much lower the temperature is at edges, where samples break lines into specks; it
            multiplies whatever ``temperature`` says by a map of the whole image. 0 for off. None: see
            ``sampling_settings``.
        seed: In [0, 2^64). Sample s of every image is drawn with ``seed + s``.
        samples: Enlargements per image, at least 1.
        tile: Side of the tiles in LR pixels, at least 32; 0 for the whole image if memory allows, else the largest tile
            that fits. Changes memory and time, not the picture (at most 1/255).
        halo: LR pixels read around every tile.
        precision: Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32.
            "auto": the device's fastest, see ``device.preferred_precision``. "tf32": float32 on an NVIDIA GPU's tensor
            cores; elsewhere the same as float32.
        factor: Total enlargement: the model enlarges by its scale, and one bicubic resize does the rest, up or down. 0
            for the model's scale.
        longest_side: Longest side of the result in pixels, reached the same way; 0 for no limit. Wins over ``factor``.
        match_source: Whether to change the pictures slightly so that shrinking them gives the LR image again, see
            ``consistency.match_source``.
        progress: Called with ``(done, total, preview)``; a preview with every finished sample, at the model's scale.
        cancelled: Asked before every convolution; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked (tile, precision, temperature where
            the model overflows); None logs it.
        store: Where the conditions of the images are kept for the next call; None for nowhere.

    Returns:
        ``(B * samples, C, s * h, s * w)`` float32 in [0, 1] on the device of ``lr``: all samples of image 0, then of
        image 1. With ``factor`` or ``longest_side``, the sides are those of ``target_size``.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        ShapeError: If there are not as many temperatures as levels, or a map has another shape.
        FlowError: If the model does not upscale, another argument is out of its range, or memory does not suffice for
            the smallest tile.
        Cancelled: If stopped.

    Source: Lugmayr et al., "SRFlow", sections 3 and 4; the tiling is ours.
    """
    flow.require("upscale")
    sampling = SamplingOptions(seed=seed, samples=samples)
    options = RunOptions(precision=precision, progress=progress, cancelled=cancelled, notify=notify)
    settings = sampling_settings(flow, temperature, calm_edges)
    run = Runner(flow, options, ADVICE, lr)
    upscaler = Upscaler(run, flow, tile, halo, store)

    def task() -> Tensor:
        rgb, alpha = validate_image(lr)
        height, width = rgb.shape[-2:]
        size = target_size(flow, height, width, factor, longest_side)
        if min(size[0] - height * flow.condition_scale, size[1] - width * flow.condition_scale) > 0:
            run.notify(
                f"The model enlarges {flow.condition_scale} times; the rest, to {size[1]}x{size[0]}, is an ordinary "
                "resize (bicubic)."
            )
        gray = gray_images(run, lr, rgb)
        pictures = upscaler(rgb, [settings], sampling, gray)
        if size != tuple(pictures.shape[-2:]):
            pictures = _resize_each(run, pictures, size)
        if match_source and (size[0] < height or size[1] < width):
            run.notify(f"match_source is ignored: at {size[1]}x{size[0]} the result is smaller than the image.")
        elif match_source:
            pictures = consistency.match_source(pictures, rgb, cancelled=cancelled, notify=run.notify)
        return with_alpha(with_channels_of(lr, pictures, gray).to(lr.device), alpha)

    return run(task, upscaler.tiles.halve)


def temperature_grid(
    flow: Flow,
    lr: Tensor,
    temperatures: Sequence[float | None],
    *,
    calm_edges: float | None = None,
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
    """Enlarge images with several temperatures and several seeds; every image is encoded once.

    Args:
        flow: As in ``upscale``; so are the arguments that are not named here.
        lr: ``(B, C, h, w)``; an alpha channel is dropped.
        temperatures: Each gives one picture per seed; None is the model's own.
        calm_edges: As in ``upscale``: None for that of the model where the temperature is the model's own, else 0.
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
        ``(B * temperatures * seeds, 1 or 3, s * h, s * w)``, on the device of ``lr``: of image 0 all seeds of the first
        temperature, then of the second. Each equals the result of ``upscale``.

    Raises:
        FlowError: If there are no temperatures, or as in ``upscale``.
        ImageError: As in ``upscale``.
        Cancelled: If stopped.
    """
    flow.require("upscale")
    if not temperatures or seeds < 1:
        raise FlowError(f"Expected at least one temperature and one seed; got {len(temperatures)} and {seeds}.")
    sampling = SamplingOptions(seed=seed, samples=seeds)
    options = RunOptions(precision=precision, progress=progress, cancelled=cancelled, notify=notify)
    settings = [sampling_settings(flow, tau, calm_edges) for tau in temperatures]
    run = Runner(flow, options, ADVICE.replace("samples", "seeds"), lr)
    upscaler = Upscaler(run, flow, tile, halo, store)

    def task() -> Tensor:
        rgb = validate_image(lr)[0]
        gray = gray_images(run, lr, rgb)
        return with_channels_of(lr, upscaler(rgb, settings, sampling, gray), gray).to(lr.device)

    return run(task, upscaler.tiles.halve)


def sampling_settings(
    flow: Flow, temperature: Temperature | None = None, calm_edges: float | None = None
) -> tuple[Temperature, float]:
    """Fill in what a model's file states.

    Temperature and ``calm_edges`` of a file were measured together. So a model's ``calm_edges`` comes with its
    temperature: whoever states a temperature gets that temperature everywhere, as before there were calm edges, unless
    they state ``calm_edges`` as well.

    Args:
        flow: An upscaling model.
        temperature: As in ``upscale``; None for the model's own.
        calm_edges: As in ``upscale``; None for the model's own if the temperature is, else 0.

    Returns:
        The temperature, and ``calm_edges``.

    Raises:
        FlowError: If the model does not upscale, or ``calm_edges`` lies outside [0, 1].
    """
    flow.require("upscale")
    if calm_edges is None:
        calm_edges = float(flow.config.calm_edges) if temperature is None else 0.0
    if not 0 <= calm_edges <= 1:
        raise FlowError(
            f"calm_edges must lie in [0, 1]; got {calm_edges}. 0 is off, 1 leaves no temperature at strong edges."
        )
    return (float(flow.config.temperature) if temperature is None else temperature), calm_edges


def target_size(flow: Flow, height: int, width: int, factor: float = 0.0, longest_side: int = 0) -> tuple[int, int]:
    """Compute the size of the pictures that ``upscale`` returns.

    Args:
        flow: An upscaling model.
        height: Of the LR image.
        width: Of the LR image.
        factor: As in ``upscale``.
        longest_side: As in ``upscale``.

    Returns:
        Height and width, with the proportions of the LR image as nearly as whole pixels allow.

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
        raise FlowError(f"A side of the result may have at most {LONGEST} pixels; got {max(size)}. Ask for less.")
    return size


def memory_required(flow: Flow, height: int, width: int, tile: int = 0, halo: int = HALO, samples: int = 1) -> int:
    """Estimate the working memory of ``upscale`` in float32, beyond the weights and the resulting pictures.

    Counts what is held for the whole image or tile at the widest moment, the end of level 1 (in small images a dense
    block of the encoder): the features of all levels, for every sample its latents and the image before and after a
    step; and the strips, which do not grow with the image.

    Args:
        flow: An SRFlow or HCFlow.
        height: Of the LR image.
        width: Of the LR image.
        tile: As in ``upscale``; 0 for the whole image at once.
        halo: As in ``upscale``.
        samples: Enlargements that are computed at once.

    Returns:
        Bytes.

    Raises:
        FlowError: If the model does not upscale.
    """
    if flow.capabilities.source != "low_resolution":
        flow.require("upscale")
    rows, columns = (min(n, tile + 2 * halo) if tile else n for n in (height, width))
    config = flow.config
    if isinstance(config, HCFlowConfig):
        return _hcflow_bytes(config, rows, columns, samples) + STRIPS
    stack = config.encoder_width * len(config.stacked_blocks)
    native = sum((config.scale / 2**level) ** 2 for level in config.grids)
    hr = config.scale**2 * ((3 if config.residual else 0) + samples * 5 * 3)
    decoding = 4 * (config.encoder_width * native + hr) * rows * columns
    dense = 4 * 2 * (4 * config.encoder_growth + 3 * config.encoder_width) * rows * columns
    return round(4 * stack * rows * columns + max(decoding, min(dense, DENSE_BYTES["cuda"]))) + STRIPS


def _hcflow_bytes(config: HCFlowConfig, rows: int, columns: int, samples: int) -> int:
    """What an HCFlow holds for so many LR pixels at its widest moment, the features of level 1 of the last sample.

    The features of all samples and levels; of the samples that are in the extractor at once, the trunk before and after
    a dense block and that of the RRDB; and all samples' latents and images.
    """
    grids = [(config.scale / 2**level) ** 2 for level in range(1, config.levels + 1)]  # positions per LR pixel
    features = config.extractor_width * (1 if config.rescaling else 2)
    held = samples * (features * sum(grids) + 5 * 3 * config.scale**2)
    trunk = 3 * config.extractor_width * grids[0]
    dense = 2 * (4 * config.extractor_growth + config.extractor_width) * grids[0]
    return round(4 * (held + trunk) * rows * columns + min(4 * dense * rows * columns, DENSE_BYTES["cuda"]))


class Upscaler:
    """Enlarges a batch of images, tile by tile; what depends on the image alone is computed once per tile."""

    def __init__(self, run: Runner, flow: Flow, tile: int, halo: int, store: ConditionStore | None) -> None:
        self._run, self._flow, self._halo, self._store = run, flow, halo, store
        self.tiles = TileSize(tile, halo, sides=TILES, smallest=SMALLEST_TILE, unit="LR pixels")

    def __call__(
        self, rgb: Tensor, taus: Sequence[Settings], sampling: SamplingOptions, gray: Sequence[bool] = ()
    ) -> Tensor:
        """Compute all samples at every temperature, ``(B * taus * samples, 3, s * h, s * w)``, on the CPU.

        Args:
            rgb: The images.
            taus: Temperatures.
            sampling: What is drawn.
            gray: For each image, whether its enlargements are made gray; none if empty.
        """
        run, plan, scale = self._run, self._run.plan, self._flow.condition_scale
        if self._store is not None and run.minimum_memory:
            self._store.clear()
        batch, _, height, width = rgb.shape
        multiple = plan.size_multiple // scale or 1
        rows, columns = (-(-side // multiple) * multiple for side in (height, width))
        side = self.tiles.choose(
            max(rows, columns), lambda side: memory_required(self._flow, rows, columns, side, self._halo), run.device
        )
        tiles = windows(rows, columns, tile=side // multiple * multiple, halo=self._halo, multiple=multiple)

        shapes = plan.latent_shapes(rows * scale, columns * scale)
        latents = _Latents(
            shapes, rgb, rows, columns, taus, sampling, anchored=plan.anchored, check=run.check_cancelled
        )
        samples = len(taus) * sampling.samples
        at_once = run.at_once(min(samples, MOST_SAMPLES))
        result = rgb.new_empty((batch, samples, 3, height * scale, width * scale), device="cpu")
        repairs = overflow.Repairs()
        analysis = ANALYSIS * (plan.encoder_units + plan.prepare_units)
        run.expect(batch * len(tiles) * (analysis + samples * (plan.units + 1)))
        for item, pictures in enumerate(result):
            padded = pad(rgb[item, None], rows, columns)
            for tile in tiles:
                run.stage(analysis, ANALYSIS)
                source = _crop(padded, tile, 1)
                cond = self._condition(source.to(run.dtype), reused=samples > at_once)
                run.settle()
                inner, outer = _without_halo(tile, scale, height * scale, width * scale)
                each = min(at_once, self._shown_at_once(height, width)) if cond.prepared else at_once
                for first in range(0, samples, each):
                    part = range(first, min(first + each, samples))
                    run.stage(len(part) * plan.units, len(part))
                    z = [
                        z.to(run.device, run.dtype).expand(len(part), -1, -1, -1)
                        for z in latents.crop(item, part, tile)
                    ]
                    decode = overflow.bounded_decoder(plan, cond, MAX_DEVIATION)
                    decoded = overflow.decode_with_backoff(decode, z, partial(enlarge, source, scale))
                    images, *marks = (None if t is None else t[inner] for t in decoded)
                    repairs.add(item * samples + part.start, *marks)
                    assert images is not None
                    for number, image in zip(part, images, strict=True):
                        image = image.clamp(0, 1)
                        pictures[number][outer] = without_color(image) if gray and gray[item] else image
                        run.advance(preview=pictures[number] if tile is tiles[-1] else None)
        for sentence in repairs.sentences(height * scale * width * scale, "enlarged by a bicubic resize"):
            run.notify(sentence)
        self.tiles.finish()
        return result.flatten(0, 1)

    def _shown_at_once(self, height: int, width: int) -> int:
        """Samples of an LR image that are worth decoding together where each is to be seen as soon as it is ready."""
        scale = self._flow.condition_scale
        return 1 if self._run.device.type == "cpu" else images_at_once(scale * height, scale * width)

    def _condition(self, source: Tensor, *, reused: bool) -> Condition:
        """The condition of a tile, prepared if it is used again and memory allows."""
        plan = self._run.plan
        if self._store is not None:
            return self._store.condition(plan, source)
        cond = plan.encode_condition(source.to(plan.device))
        if not reused:
            return cond
        height, width = (side * plan.condition_scale for side in source.shape[-2:])
        free = free_memory(plan.device)
        fits = free is not None and plan.prepared_bytes(height, width) <= free // 4
        return cond.prepare(plan) if fits else cond


class _Latents:
    """Latents of all samples of all images, drawn for whole images padded to ``(rows, columns)`` LR pixels."""

    def __init__(
        self,
        shapes: Sequence[Shape],
        rgb: Tensor,
        rows: int,
        columns: int,
        taus: Sequence[Settings],
        sampling: SamplingOptions,
        *,
        anchored: bool,
        check: Callable[[], None],
    ) -> None:
        self.rows = rows
        # the same for every image and temperature
        self.noise = sample_latents(shapes, sampling.samples, 1.0, sampling.seed, anchored=anchored, check=check)
        check()
        self.still = [self.noise.pop()[:1]] if anchored else []  # zero for all samples
        finest = max(1, shapes[0][1] // rows)  # the finest latents may be coarser than the LR image
        padding = (0, columns * finest - rgb.shape[3] * finest, 0, rows * finest - rgb.shape[2] * finest)

        height, width = rgb.shape[2] * finest, rgb.shape[3] * finest
        edges = edge_map(rgb) if any(calm for _, calm in taus) else None

        def place(tau: float | Tensor, calm: float, shape: Shape) -> float | Tensor:
            """Resize a map of temperatures, which covers the image, to latents, which cover the padded one."""
            check()
            if isinstance(tau, Tensor):
                tau = resize_temperature_map(tau, height, width)
            if calm and edges is not None:
                tau = tau * (1 - calm * resize_temperature_map(edges, height, width))
            if not isinstance(tau, Tensor):
                return tau
            return resize_temperature_map(F.pad(tau, padding, mode="replicate"), *shape[1:])

        per_level = [(level_temperatures(tau, len(self.noise), len(rgb)), calm) for tau, calm in taus]
        self.taus = [
            [place(tau, calm, shape) for tau, shape in zip(levels, shapes, strict=False)] for levels, calm in per_level
        ]

    def crop(self, item: int, samples: range, tile: Window) -> list[Tensor]:
        """The latents of some samples of an image in a tile, finest first; where all are the same, one."""
        latents: list[Tensor] = []
        for level, noise in enumerate(self.noise):
            factor = noise.shape[-2] / self.rows
            each: list[Tensor] = []
            for sample in samples:
                which, seed = divmod(sample, len(noise))
                tau = self.taus[which][level]
                if isinstance(tau, Tensor):
                    tau = _crop(tau[min(item, len(tau) - 1), None], tile, factor)
                each.append(tau * _crop(noise[seed, None], tile, factor))
            latents.append(torch.cat(each))
        return latents + [_crop(still, tile, still.shape[-2] / self.rows) for still in self.still]


def _resize_each(run: Runner, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    result = pictures.new_empty((*pictures.shape[:2], *size))
    for resized, picture in zip(result, pictures, strict=True):
        run.check_cancelled()
        resized[:] = resize(picture[None], *size)[0].clamp(0, 1)
    return result


def pad(image: Tensor, rows: int, columns: int) -> Tensor:
    """Extend images to the right and below, by reflection where there are enough pixels to reflect.

    Args:
        image: ``(B, C, H, W)``.
        rows: Of the result, at least H.
        columns: Of the result, at least W.

    Returns:
        ``(B, C, rows, columns)``.
    """
    for axis, missing in ((3, columns - image.shape[3]), (2, rows - image.shape[2])):
        padding = (0, missing, 0, 0) if axis == 3 else (0, 0, 0, missing)
        image = F.pad(image, padding, mode="reflect" if image.shape[axis] > missing else "replicate")
    return image


def _crop(tensor: Tensor, tile: Window, factor: float) -> Tensor:
    """Crop a tile with its halo out of something ``factor`` times as large as the LR image."""
    top, bottom, left, right = (
        round(edge * factor) for edge in (tile.halo_top, tile.halo_bottom, tile.halo_left, tile.halo_right)
    )
    return tensor[..., top:bottom, left:right]


def _without_halo(tile: Window, scale: int, height: int, width: int) -> tuple[Index, Index]:
    """Where a tile without its halo lies in the decoded tile, and in the HR image of ``(height, width)``."""
    top, left = tile.top * scale, tile.left * scale
    bottom, right = min(tile.bottom * scale, height), min(tile.right * scale, width)
    y, x = top - tile.halo_top * scale, left - tile.halo_left * scale
    inner = (..., slice(y, y + bottom - top), slice(x, x + right - left))
    return inner, (..., slice(top, bottom), slice(left, right))
