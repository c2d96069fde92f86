"""Colorize: many colourings of a photograph, all of them with its own luma.

    image -> luma -> working size -> flow (+ hints) -> latents -> chroma -> image size, beside the untouched luma

The colours are decided at a working size, the same for every size of one photograph; only the enlargement of the chroma
and the merge with the luma happen at the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images import color
from ..images.color import NEUTRAL
from ..images.resize import resize_bilinear
from ..networks.luma import STRIDE
from ..prior import sample_latents
from . import Precision, Progress
from .chroma import (
    AT_ONCE,
    Colorization,
    Gamut,
    blend_latents,
    check_draw,
    enlarge_chroma,
    items_at_once,
    merge,
    pad,
    working_sides,
)
from .hints import Hints
from .runner import retry_on_oom, validate_image

FEWER = "Ask for fewer at once (samples), lower working_size, shrink the picture, or free memory on the device."


@retry_on_oom(FEWER)
@torch.no_grad()
def colorize(
    flow: Flow,
    image: Tensor,
    *,
    temperature: float | None = None,
    detail: float | None = None,
    seed: int = 0,
    samples: int = 1,
    saturation: float = 1.0,
    working_size: int | None = None,
    hints: Hints | None = None,
    hint_steps: int = 20,
    latents: Sequence[Tensor] | None = None,
    latents_strength: float = 1.0,
    latents_levels: int = 2,
    gamut: Gamut = "compress",
    precision: Precision = "float32",
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tensor:
    """Colour photographs; every sample is another plausible colouring with the same luma.

    Args:
        flow: A colorizer.
        image: ``(B, C, H, W)`` in [0, 1], any size from 1x1, float of any precision or uint8 in [0, 255]; values
            outside are clamped. C is 1; or 3, whose luma is used; or 4, whose alpha is kept.
        temperature: Standard deviation of the coarsest latents, which decide on the colours; None for what the model
            was made for.
        detail: Of the finest latents; those between follow geometrically. None likewise.
        seed: In [0, 2^64). Sample s of every image is drawn with ``seed + s``.
        samples: Colourings per image, at least 1.
        saturation: Factor on the chroma, before the colours are fitted into the gamut.
        working_size: Shorter side in pixels at which colours are decided; None for the model's own.
        hints: Colours that are wanted.
        hint_steps: By how many steps of gradient descent the latents are refined until the covered places have the
            wanted colours; they stay near those drawn, so that seeds still differ. 0: only what the model makes of the
            hints.
        latents: Of ``encode_colors``, 1 or B items of any size: colours to take over.
        latents_strength: Part of the latents' variance that is taken over, the rest is drawn: 0 to 1.
        latents_levels: How many of the coarsest levels are taken over; 0 for all.
        gamut: "compress": colours that the luma leaves no room for lose saturation; luma and hue stay. "clip": they are
            cut off, as most programs do, and luma changes.
        precision: Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32.
            "auto" and "tf32": see ``upscale``.
        batch: Colourings decoded together; None or 0 chooses. Changes memory and time, not the pictures (but for
            rounding).
        progress: Called with ``(done, total, preview)``; a preview with every finished colouring.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when there is something to say about the picture; None logs it.

    Returns:
        ``(B * samples, 3 or 4, H, W)`` float32 in [0, 1] on the device of ``image``: all samples of image 0, then of
        image 1. With "compress" its luma differs from the image's by rounding only.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If another argument is out of its range.
        ShapeError: If hints or latents do not fit.
        Cancelled: If stopped.

    Source: Ardizzone et al. 2019, section 4.2 (sampling); the refinement by hints is maximum a posteriori search with
        the drawn latents as the prior's mean, ours.
    """
    if samples < 1:
        raise FlowError(f"samples must be at least 1; got {samples}.")
    if hint_steps < 0:
        raise FlowError(f"hint_steps must not be negative; got {hint_steps}.")
    check_draw(seed, latents_strength, latents_levels)
    job = Colorization(flow, image, working_size, saturation, gamut, precision, notify)
    hints = job.fitting(hints)
    taus = job.temperatures(temperature, detail)
    at_once = items_at_once(batch)
    groups = [range(start, min(start + at_once, samples)) for start in range(0, samples, at_once)]
    refined = hint_steps if hints is not None and hints.coverage is not None else 0
    with job.reporting(progress, cancelled, len(job.y) * (1 + samples + len(groups) * refined)):
        pictures: list[Tensor] = []
        for number in range(len(job.y)):
            part = slice(number, number + 1)
            wanted = job.wanted(hints, part)
            cond = job.condition(part, wanted)
            given = None if latents is None else job.given(latents, number)
            for group in groups:
                z = sample_latents(job.shapes, len(group), taus, seed=(seed + group.start) % 2**64)
                z = [level.to(job.device) for level in z]
                if given is not None:
                    z = blend_latents(z, given, latents_strength, latents_levels or len(z))
                shared = cond.expand(len(group))
                if refined and wanted is not None:
                    z = job.refined(z, shared, wanted, refined)
                    decoded = job.decode(z, shared, job.bounded, job.locking(wanted))  # calmer would miss the hints
                else:
                    decoded = job.guarded(len(pictures), z, shared, wanted)
                for chroma in decoded.split(1):
                    pictures.append(job.finish(chroma, part, hints))
                    job.step(pictures[-1][0])
    job.report()
    return torch.cat(pictures)


@retry_on_oom(FEWER)
@torch.no_grad()
def encode_colors(
    flow: Flow,
    image: Tensor,
    *,
    working_size: int | None = None,
    batch: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Tensor]:
    """Find the latents of a picture's own colours.

    Args:
        flow: A colorizer.
        image: In colour, ``(B, 3 or 4, H, W)``; see ``colorize``.
        working_size: See ``colorize``.
        batch: Pictures at once; None or 0 chooses.
        cancelled: See ``colorize``.

    Returns:
        Latents, finest first, float32. ``decode_colors`` on the same image gives its colours back, as finely as the
        working size has them.

    Raises:
        ImageError: If it is no colour image.
        Cancelled: If stopped.
    """
    if image.ndim != 4 or image.shape[1] not in (3, 4):
        raise ImageError(f"Expected a colour image of shape (B, 3 or 4, H, W); got {tuple(image.shape)}.")
    job = Colorization(flow, image, working_size, 1.0, "compress", "float32", None, encoding=True)
    at_once = items_at_once(batch)
    with job.reporting(None, cancelled, -(-len(image) // at_once)):
        encoded: list[list[Tensor]] = []
        for start in range(0, len(image), at_once):
            part = slice(start, start + at_once)
            chroma = resize_bilinear(color.split(validate_image(image[part])[0])[1], job.chroma_size).to(job.device)
            encoded.append(job.plan(pad(chroma, job.grid) + NEUTRAL, job.condition(part, None))[0])
        return [torch.cat(levels).to(image.device) for levels in zip(*encoded, strict=True)]


def decode_colors(
    flow: Flow,
    latents: Sequence[Tensor],
    image: Tensor,
    *,
    saturation: float = 1.0,
    gamut: Gamut = "compress",
    working_size: int | None = None,
) -> Tensor:
    """Give a picture the colours that latents mean on its luma.

    Args:
        flow: A colorizer.
        latents: As of ``encode_colors``, finest first, 1 or B items of any size.
        image: See ``colorize``.
        saturation: See ``colorize``.
        gamut: See ``colorize``.
        working_size: See ``colorize``.

    Returns:
        ``(B, 3 or 4, H, W)``.

    Raises:
        ImageError: See ``colorize``.
        ShapeError: If the latents are not this model's.
    """
    return colorize(
        flow,
        image,
        latents=latents,
        latents_levels=0,
        saturation=saturation,
        gamut=gamut,
        working_size=working_size,
        notify=_ignore,
    )


def transfer_palette(
    flow: Flow, image: Tensor, reference: Tensor, *, strength: float = 1.0, levels: int = 2, **options: Any
) -> Tensor:
    """Colour a picture as another one is coloured: with the coarse latents of the other's colours.

    Args:
        flow: A colorizer.
        image: See ``colorize``.
        reference: In colour, one picture or as many as images.
        strength: Part of the latents' variance that is taken over: 0 to 1.
        levels: How many of the coarsest levels are taken over; 0 for all.
        options: Any of ``colorize``, such as seed and samples.

    Returns:
        See ``colorize``.

    Raises:
        ImageError: See ``colorize``.
    """
    working = options.get("working_size")
    latents = encode_colors(flow, reference, working_size=working, cancelled=options.get("cancelled"))
    return colorize(flow, image, latents=latents, latents_strength=strength, latents_levels=levels, **options)


def apply_chroma(
    luma_from: Tensor, colors_from: Tensor, *, saturation: float = 1.0, gamut: Gamut = "compress"
) -> Tensor:
    """Put the colours of one picture on the luma of another, exactly: mends what colorizers do to luma.

    Args:
        luma_from: ``(B, 1, 3 or 4, H, W)``; see ``colorize``. Alpha is kept.
        colors_from: ``(B, 3 or 4, h, w)`` of any size; its chroma is enlarged along the edges of the luma.
        saturation: Factor on the chroma.
        gamut: See ``colorize``.

    Returns:
        ``(B, 3 or 4, H, W)``; one picture of either goes with any number of the other.

    Raises:
        ImageError: If a picture is none, or the numbers of pictures do not fit.
    """
    rgb, alpha = validate_image(luma_from)
    colours = validate_image(colors_from)[0].to(rgb.device)
    if len(rgb) != len(colours) and 1 not in (len(rgb), len(colours)):
        raise ImageError(
            f"{len(rgb)} pictures for luma and {len(colours)} for colours do not pair. Give one of either, or as many."
        )
    y = color.luma(rgb)
    chroma = color.split(colours)[1]
    if chroma.shape[2:] != y.shape[2:]:
        # along with this luma at the small size: that of the colours may have drifted, which is no edge
        chroma = enlarge_chroma(chroma, resize_bilinear(y, chroma.shape[2:]), y)
    return merge(y, chroma, alpha, saturation, gamut)


def memory_required(flow: Flow, height: int, width: int, samples: int = 1, *, working_size: int | None = None) -> int:
    """Estimate the working memory of ``colorize`` in float32, beyond the weights and the resulting pictures.

    Counts the merge of one colouring at full size, and the widest moment at the working size: all features and one
    conditioner on the finest grid. The gradients of hints come on top, at the working size.

    Args:
        flow: A colorizer.
        height: Of the image.
        width: Likewise.
        samples: Per image.
        working_size: See ``colorize``.

    Returns:
        Bytes.

    Raises:
        FlowError: If the model is no colorizer.
    """
    flow.require("colorize")
    config = flow.config
    rows, columns = working_sides(max(1, height), max(1, width), working_size or config.working_size)
    positions = rows * columns / STRIDE**2
    encoder = positions * (STRIDE**2 + 8 * config.widths[0])
    conditioner = min(samples, AT_ONCE) * positions / 4 * (3 * config.hidden[0] + 2 * config.features + 40)
    return round(4 * (encoder + conditioner + 24 * height * width))


def _ignore(_: str) -> None:
    pass
