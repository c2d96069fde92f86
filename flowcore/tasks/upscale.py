"""Upscale: one LR image, many sharp HR images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flow import Flow
from ..prior import sample_latents
from ..resize import enlarge
from ..tiling import Window, windows
from ..transforms import FlowError
from . import Cancelled, Progress, is_out_of_memory, layers, picture, watched

Precision = Literal["float32", "bfloat16", "float16"]

HALO = 16  # LR pixels; what it leaves of the difference to the whole image is in docs/decisions/0004
CPU_TILE = 256  # LR pixels; larger ones make single layers run for seconds, and Cancel waits for a layer to end
SMALLEST_TILE = 32  # LR pixels; below this a tile is mostly halo

log = logging.getLogger("flowcore")


@torch.no_grad()
def upscale(
    flow: Flow,
    lr: Tensor,
    *,
    temperature: float | Sequence[float] = 0.9,
    seed: int = 0,
    samples: int = 1,
    tile: int = 0,
    halo: int = HALO,
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Enlarge images; every sample is another plausible enlargement of the same LR image.

    The latents are drawn for the whole image and cropped, so a seed gives the same picture whatever the tile size, the
    batch position and the device. Sample s of every image is drawn with ``seed + s``.

    Args:
        flow: An SRFlow.
        lr: ``(B, C, h, w)`` in [0, 1], any size from 1x1, float of any precision or uint8 in [0, 255]; values outside
            are clamped. C is 3; or 1, treated as grey; or 4, whose alpha is enlarged the ordinary way (bicubic).
        temperature: Standard deviation of the latents, >= 0: one, or one per level, finest first. 0 is calm, 1 the
            model's own spread.
        seed: In [0, 2^64).
        samples: Enlargements per image, at least 1.
        tile: Side of the tiles in LR pixels, at least 32; 0 chooses by free memory. Changes memory and time, not the
            picture (at most 1/255).
        halo: LR pixels read around every tile.
        precision: Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32.
        progress: Called with ``(done, total, preview)``; a preview with every finished sample.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked (tile, precision); None logs it.

    Returns:
        ``(B * samples, 3 or 4, s * h, s * w)`` float32 in [0, 1] on the device of ``lr``: all samples of image 0, then
        of image 1.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If another argument is out of its range, or memory does not suffice for the smallest tile.
        Cancelled: If stopped.

    Source: Lugmayr et al., "SRFlow", sections 3 and 4; the tiling is ours.
    """
    _check_model(flow)
    if samples < 1:
        raise FlowError(f"samples must be at least 1; got {samples}.")
    if tile < 0 or halo < 0:
        raise FlowError(
            f"tile and halo must not be negative; got tile {tile}, halo {halo}. Tile 0 chooses by free memory."
        )
    if precision not in ("float32", "bfloat16", "float16"):
        raise FlowError(f"precision must be float32, bfloat16 or float16; got {precision!r}.")
    rgb, alpha = picture(lr)
    device = next(flow.parameters()).device
    say = notify or log.warning
    if precision == "float16" and device.type == "cpu":
        say("float16 is many times slower than float32 on a CPU: going on in float32.")
        precision = "float32"
    height, width = rgb.shape[-2:]
    sides = _padded_sides(flow, height, width)
    side = max(tile, SMALLEST_TILE) if tile else _automatic_tile(flow, *sides, halo, device)
    while True:
        try:
            pictures = _run(flow, rgb, temperature, seed, samples, side, halo, precision, progress, cancelled)
            break
        except RuntimeError as error:  # what torch raises when memory runs out, on every device
            if not is_out_of_memory(error):
                raise
            if side <= SMALLEST_TILE:
                raise FlowError(
                    f"Out of memory even with tiles of {SMALLEST_TILE} LR pixels. Enlarge a smaller image, ask for "
                    "fewer samples at once, or free memory on the device."
                ) from error
        side = max(SMALLEST_TILE, min(side, max(sides)) // 2)
        say(f"Out of memory: going on with tiles of {side} LR pixels. Set tile to {side} to start there.")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    pictures = pictures.to(lr.device)
    if alpha is None:
        return pictures
    alpha = enlarge(alpha, flow.config.scale).clamp(0, 1).repeat_interleave(samples, 0)
    return torch.cat([pictures, alpha], dim=1)


def memory_required(flow: Flow, height: int, width: int, tile: int = 0, halo: int = HALO) -> int:
    """Estimate the working memory of ``upscale`` in float32, beyond the weights and the resulting pictures.

    Counts the widest moment of a tile: the features of all levels, one conditioner at level 1, and the encoder's
    enlargement.

    Args:
        flow: An SRFlow.
        height: Of the LR image.
        width: Likewise.
        tile: As in ``upscale``; 0 for the whole image at once.
        halo: As in ``upscale``.

    Returns:
        Bytes.

    Raises:
        FlowError: If the model is no SRFlow.
    """
    _check_model(flow)
    rows, columns = (min(n, tile + 2 * halo) if tile else n for n in (height, width))
    config = flow.config
    features = config.encoder_width * (1 + len(config.stacked_blocks))
    per_lr_pixel = features * sum((config.scale / 2**level) ** 2 for level in range(1, config.levels + 1))
    fine = (config.scale / 2) ** 2
    # level 1: features beside x1, hidden layers, shift and scale
    per_lr_pixel += fine * (features + 2 * config.hidden + 6 * 12)
    # the stacked blocks' outputs, a dense block and its surroundings
    per_lr_pixel += 2 * features + 12 * config.encoder_width
    per_lr_pixel += config.scale**2 * ((2 * config.encoder_width if config.residual else 0) + 5 * 3)
    return round(4 * per_lr_pixel * rows * columns)


def _check_model(flow: Flow) -> None:
    if flow.architecture != "srflow":
        raise FlowError(f"upscale needs an SRFlow model; got a {flow.architecture} model.")


def _padded_sides(flow: Flow, height: int, width: int) -> tuple[int, int]:
    multiple = flow.size_multiple // flow.condition_scale or 1
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def _run(
    flow: Flow,
    rgb: Tensor,
    temperature: float | Sequence[float],
    seed: int,
    samples: int,
    tile: int,
    halo: int,
    precision: Precision,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> Tensor:
    """Enlarge every image, tile by tile; the encoder runs once per tile, whatever the number of samples."""
    batch, _, height, width = rgb.shape
    scale = flow.condition_scale
    rows, columns = _padded_sides(flow, height, width)
    multiple = flow.size_multiple // scale or 1
    tiles = windows(rows, columns, tile=tile // multiple * multiple, halo=halo, multiple=multiple)
    device = next(flow.parameters()).device
    dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    shapes = flow.latent_shapes(rows * scale, columns * scale)
    latents = sample_latents(shapes, samples, temperature, seed)  # the same for every image of the batch
    result = rgb.new_empty((batch, samples, 3, height * scale, width * scale), device="cpu")
    meter = _Meter(batch * len(tiles) * _units(flow, samples), progress, cancelled)
    with watched(flow, meter.advance), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for image, pictures in zip(rgb, result, strict=True):
            padded = _pad(image[None], rows, columns)
            for number, window in enumerate(tiles):
                cond = flow.encode_condition(_cut(padded, window, 1).to(device))
                for picture, s in zip(pictures, range(samples), strict=True):
                    z = [_cut(level[s : s + 1], window, level.shape[-2] / rows).to(device) for level in latents]
                    _place(flow.inverse(z, cond), window, scale, picture)
                    meter.advance(picture if number == len(tiles) - 1 else None)
    return result.flatten(0, 1)


def _units(flow: Flow, samples: int) -> int:
    """Count what a meter counts on one tile: the encoder's layers, and per sample the decoder's and one for the end."""
    encoder, decoder = len(layers(cast(nn.Module, flow.encoder))), len(layers(flow.levels))
    unused = 0 if flow.config.residual else 3  # the published network's HR branch
    return encoder - unused + samples * (decoder + 1)


class _Meter:
    """Counts layers that have started and samples that are finished; asks each time whether to stop."""

    def __init__(self, total: int, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._done, self._total = 0, total
        self._progress, self._cancelled = progress, cancelled

    def advance(self, preview: Tensor | None = None) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("Stopped on request.")
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, preview)


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


def _place(picture: Tensor, window: Window, scale: int, canvas: Tensor) -> None:
    """Write a decoded window, without its halo, into the HR canvas (which ends where the unpadded image ends)."""
    height, width = canvas.shape[-2:]
    top, left = window.top * scale, window.left * scale
    bottom, right = min(window.bottom * scale, height), min(window.right * scale, width)
    y, x = top - window.halo_top * scale, left - window.halo_left * scale
    canvas[:, top:bottom, left:right] = picture[0, :, y : y + bottom - top, x : x + right - left].clamp(0, 1)


def _automatic_tile(flow: Flow, height: int, width: int, halo: int, device: torch.device) -> int:
    """Choose the largest tile that memory holds, up to the whole image; on a CPU also one that is quick to cancel."""
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] // 2
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        budget = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    else:
        budget = 2 * 2**30
    largest = max(height, width) if device.type != "cpu" else min(max(height, width), CPU_TILE)
    sizes = [largest, *(size for size in (1024, 768, 512, 384, 256, 192, 128, 96, 64) if size < largest)]
    fitting = [size for size in sizes if memory_required(flow, height, width, size, halo) <= budget]
    return fitting[0] if fitting else sizes[-1]
