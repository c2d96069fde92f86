"""Brighten: one dark photograph, the picture that the model expects, and many other exposures of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..condition import Condition
from ..flow import Flow
from ..images.resize import pad_symmetric
from ..images.tiling import windows
from ..inference.strips import DENSE_BYTES
from ..networks.low_light import network_input
from ..prior import level_temperatures, resize_temperature_map, sample_latents
from . import Precision, Progress, overflow
from .gray import gray_images, with_channels_of, without_color
from .passes import MAX_DEVIATION
from .runner import Runner, RunOptions, SamplingOptions, validate_image, with_alpha
from .tile_size import TileSize

PADDING = 16  # pixels that are added to a side, or what lacks to a multiple of it: what the published program does
HALO = 64  # pixels read around a tile
SMALLEST_TILE = 128  # pixels; below this a tile is mostly halo
TILES = (2048, 1536, 1024, 768, 512, 384, 256)  # pixels; the sides to choose from
STRIPS = 2**26  # bytes that strips take at most, whatever the image
MOST_SAMPLES = 8  # at once: they share what every step computes from the photograph
ADVICE = "Set tile to 128, ask for fewer samples, brighten a smaller photograph, or free memory on the device."


def brighten(
    flow: Flow,
    image: Tensor,
    *,
    temperature: float | Tensor | None = None,
    seed: int = 0,
    samples: int = 1,
    tile: int = 0,
    halo: int = HALO,
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Brighten dark photographs; above temperature 0, every sample is another exposure of the same scene.

    The histogram that the model sees is that of the whole photograph, also in tiles. Noise is drawn for the whole
    photograph and cropped, so a seed gives the same picture whatever the batch position and the device.

    Args:
        flow: A low-light model, such as an LLFlow.
        image: ``(B, C, H, W)`` in [0, 1], any size from 1x1, float of any precision, uint8 or uint16; values outside
            are clamped. C is 3; or 1 (gray, which stays gray, as in ``upscale``); or 4, whose alpha is kept. The model
            was trained on 8-bit photographs.
        temperature: Standard deviation of the noise around the mean of the prior, >= 0: a number, or a map ``(1 or B,
            1, any height, any width)`` that covers the image. 0 is the published picture, the same for every seed;
            None for what the model's file states.
        seed: In [0, 2^64). Sample s of every image is drawn with ``seed + s``.
        samples: Exposures per image, at least 1.
        tile: Side of the tiles in pixels, at least 128; 0 for the whole image if memory allows, else the largest tile
            that fits. Tiles differ from the whole image by what lies beyond ``halo``.
        halo: Pixels read around every tile.
        precision: Of encoder and conditioners; the flow itself stays in float32. See ``upscale``.
        progress: Called with ``(done, total, preview)``; a preview with every finished picture.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked; None logs it.

    Returns:
        ``(B * samples, C, H, W)`` float32 in [0, 1] on the device of ``image``: all samples of image 0, then of
        image 1. The published program cuts the values down to 8 bits; here they are not rounded.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        ShapeError: If a map of temperatures has another shape.
        FlowError: If the model does not brighten, another argument is out of its range, or memory does not suffice for
            the smallest tile.
        Cancelled: If stopped.

    Source: Wang et al., "Low-Light Image Enhancement with Normalizing Flow" (AAAI 2022); noise and tiling are ours.
    """
    flow.require("brighten")
    sampling = SamplingOptions(seed=seed, samples=samples)
    options = RunOptions(precision=precision, progress=progress, cancelled=cancelled, notify=notify)
    tau = float(flow.config.temperature) if temperature is None else temperature
    run = Runner(flow, options, ADVICE, image)
    job = _Brightener(run, flow, tile, halo)

    def task() -> Tensor:
        rgb, alpha = validate_image(image)
        gray = gray_images(run, image, rgb)
        return with_alpha(with_channels_of(image, job(rgb, tau, sampling, gray), gray).to(image.device), alpha)

    return run(task, job.tiles.halve)


def memory_required(flow: Flow, height: int, width: int, tile: int = 0, halo: int = HALO, samples: int = 1) -> int:
    """Estimate the working memory of ``brighten`` in float32, beyond the weights and the resulting pictures.

    Args:
        flow: A low-light model.
        height: Of the image.
        width: Of the image.
        tile: As in ``brighten``; 0 for the whole image at once.
        halo: As in ``brighten``.
        samples: Pictures that are computed at once.

    Returns:
        Bytes.

    Raises:
        FlowError: If the model does not brighten.
    """
    flow.require("brighten")
    rows, columns = (min(n + PADDING, tile + 2 * halo) if tile else n + PADDING for n in (height, width))
    config = flow.config
    features = config.encoder_width * (1 / 4 + 1 / 16 + 1 / 64 + len(config.stacked_blocks) / 4)
    first = 2 * config.encoder_width + 12  # the first two convolutions see every pixel
    dense = min(2 * (4 * config.encoder_growth + 3 * config.encoder_width) * rows * columns, DENSE_BYTES["cuda"])
    held = 4 * rows * columns * max(first + config.encoder_width / 4, features + samples * 5 * 3)
    return round(held + dense) + STRIPS


class _Brightener:
    """Brightens a batch of images, tile by tile."""

    def __init__(self, run: Runner, flow: Flow, tile: int, halo: int) -> None:
        self._run, self._flow, self._halo = run, flow, halo
        self.tiles = TileSize(tile, halo, sides=TILES, smallest=SMALLEST_TILE, unit="pixels")

    def __call__(self, rgb: Tensor, tau: float | Tensor, sampling: SamplingOptions, gray: Sequence[bool]) -> Tensor:
        """Compute all samples, ``(B * samples, 3, H, W)``, on the CPU; those of images that are gray without color."""
        run, plan = self._run, self._run.plan
        batch, _, height, width = rgb.shape
        left, _, top, _ = border = _border(height, width)
        rows, columns = height + top + border[3], width + left + border[1]
        side = self.tiles.choose(
            max(rows, columns), lambda side: memory_required(self._flow, height, width, side, self._halo), run.device
        )
        multiple = plan.size_multiple
        tiles = windows(rows, columns, tile=side // multiple * multiple, halo=self._halo, multiple=multiple)
        (shape,) = plan.latent_shapes(rows, columns)
        (noise,) = sample_latents([shape], sampling.samples, 1.0, sampling.seed)  # the same for every image
        (tau,) = level_temperatures(tau, 1, batch)
        at_once = run.at_once(min(sampling.samples, MOST_SAMPLES))
        parts = [slice(first, first + at_once) for first in range(0, sampling.samples, at_once)]
        result = torch.empty((batch, sampling.samples, 3, rows, columns), dtype=torch.float32, device="cpu")
        repairs = overflow.Repairs()
        run.expect(batch * len(tiles) * (plan.encoder_units + len(parts) * plan.units + sampling.samples))
        for item, pictures in enumerate(result):
            padded = pad_symmetric(rgb[item, None], border)
            seen = network_input(padded).to(run.dtype)  # the histogram is that of the whole photograph
            latents = noise * self._scale(tau, item, height, width)
            for tile in tiles:
                area = (..., slice(tile.halo_top, tile.halo_bottom), slice(tile.halo_left, tile.halo_right))
                run.stage(plan.encoder_units)
                cond = plan.encode_condition(seen[area].to(run.device))
                coarse = (..., *(slice(edges.start // multiple, edges.stop // multiple) for edges in area[1:]))
                y, x = tile.top - tile.halo_top, tile.left - tile.halo_left
                inner = (..., slice(y, y + tile.bottom - tile.top), slice(x, x + tile.right - tile.left))
                outer = (..., slice(tile.top, tile.bottom), slice(tile.left, tile.right))
                for part in parts:
                    run.stage(plan.units)
                    images = self._decode(latents[part][coarse], cond, padded[area], repairs, item * len(noise), part)
                    for number, image in enumerate(images[inner], start=part.start):
                        image = image.clamp(0, 1)
                        pictures[number][outer] = without_color(image) if gray[item] else image
                        cropped = pictures[number, :, top : top + height, left : left + width]
                        run.advance(preview=cropped if tile is tiles[-1] else None)
        for sentence in repairs.sentences(rows * columns, "left as dark as it was"):
            run.notify(sentence)
        self.tiles.finish()
        return result[..., top : top + height, left : left + width].flatten(0, 1).contiguous()

    def _decode(
        self, z: Tensor, cond: Condition, dark: Tensor, repairs: overflow.Repairs, first: int, part: slice
    ) -> Tensor:
        run = self._run
        decoder = overflow.bounded_decoder(run.plan, cond, MAX_DEVIATION)
        decoded = overflow.decode_with_backoff(decoder, [z.to(run.device, run.dtype)], lambda: dark.to(run.device))
        repairs.add(first + part.start, decoded.attenuated, decoded.filled)
        return decoded.images

    def _scale(self, tau: float | Tensor, item: int, height: int, width: int) -> float | Tensor:
        """Temperature of an image by position of the latents; a map covers the image, latents the padded one."""
        if not isinstance(tau, Tensor):
            return tau
        own = resize_temperature_map(tau[min(item, len(tau) - 1), None], height, width)
        own = pad_symmetric(own, _border(height, width))
        return resize_temperature_map(own, *(side // self._flow.size_multiple for side in own.shape[-2:]))


def _border(height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels to add left, right, above and below: to a multiple of 16, always some, as the published program does."""
    columns, rows = (PADDING - side % PADDING for side in (width, height))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
