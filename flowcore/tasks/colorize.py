"""Colorize: many colourings of a photograph, all of them with its own luma.

    image -> luma -> working size -> flow (+ hints) -> latents -> chroma -> image size, beside the untouched luma

The colours are decided at a working size, the same for every size of one photograph; only the enlargement of the chroma
and the merge with the luma happen at the size of the image.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from ..condition import Condition
from ..errors import FlowError, ImageError, ShapeError
from ..flow import Flow
from ..images import color
from ..images.color import NEUTRAL
from ..images.resize import continued
from ..likelihood import rows
from ..networks.luma import STRIDE
from ..prior import Shape, sample_latents
from . import Cancelled, Precision, Progress, overflow, picture, plan_for, watched
from .runner import retry_on_oom

Gamut = Literal["compress", "clip"]
Colour = str | Sequence[float]
Point = tuple[float, float, Colour]

LONGEST = 4  # a working image is at most so many times longer than it is wide
AT_ONCE = 8  # colourings decoded together
GUARD_REACH = 2.0  # of chroma; at temperature 1 no colouring of the shipped model goes beyond 0.6
FEWER = "Ask for fewer at once (samples), lower working_size, shrink the picture, or free memory on the device."
COLOURED = 2 / 255  # chroma above which a picture is said to be in colour
STROKE = 8 / 255  # chroma above which a pixel of strokes counts as painted, where there is no mask
HINT_SPREAD = 0.01  # chroma by which a hint may be missed: standard deviation, in the refinement
HINT_RATE = 0.08  # of Adam, in the refinement
MOST = 0.501  # chroma of the most colourful colours, and rounding
COVERED = 0.999  # of a cell or pixel, from which on a locked hint is met exactly

log = logging.getLogger("flowcore")


# --- hints ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Which colours are wanted, and where.

    Attributes:
        coverage: Where, in [0, 1], ``(1 or B, 1, H, W)``; None for nowhere in particular.
        chroma: Which chroma is wanted there, centred on 0, ``(1 or B, 2, H, W)``; read only where covered.
        palette: What the whole picture should be like, ``(1 or B, 4)``; see ``color.palette_of``. None for no matter.
        lock: Whether the wanted chroma is met exactly where coverage is 1, as far as the luma leaves room for it.
    """

    coverage: Tensor | None = None
    chroma: Tensor | None = None
    palette: Tensor | None = None
    lock: bool = False


def hints_from_strokes(
    strokes: Tensor, mask: Tensor | None = None, *, size: tuple[int, int] | None = None, lock: bool = False
) -> Hints:
    """Take coloured strokes as hints; their luma does not matter.

    Args:
        strokes: Painted on anything, ``(B, 3 or 4, H, W)`` in [0, 1].
        mask: Where they are painted, in [0, 1], ``(1 or B, 1, h, w)`` of any size; None for wherever that image is in
            colour, as far as its alpha, if it has one, is opaque there.
        size: Height and width of the hints; None for those of the strokes.
        lock: See ``Hints``.

    Returns:
        The hints.

    Raises:
        ImageError: If the strokes are no colour image, or the mask no mask of as many items.
    """
    rgb, alpha = picture(strokes)
    if strokes.shape[1] < 3:
        raise ImageError(f"Strokes need colours: expected (B, 3, H, W); got {tuple(strokes.shape)}.")
    chroma = color.split(rgb)[1]
    if mask is None:
        coverage = (chroma.abs().amax(1, keepdim=True) > STROKE).to(rgb) * (1 if alpha is None else alpha)
    else:
        fits = mask.ndim == 4 and mask.shape[1] == 1 and 0 not in mask.shape and mask.shape[0] in (1, len(rgb))
        if not fits or not bool(mask.isfinite().all()):
            raise ImageError(
                f"Expected a mask (1 or {len(rgb)}, 1, h, w) of finite numbers for these strokes; got "
                f"{tuple(mask.shape)}."
            )
        coverage = _sized(mask.float().clamp(0, 1), chroma.shape[-2:]).to(rgb).expand(len(rgb), -1, -1, -1)
    if size is not None:
        # colours are averaged over what is painted only
        painted = _sized(torch.cat([coverage, coverage * chroma], dim=1), size)
        coverage, chroma = painted[:, :1], painted[:, 1:] / painted[:, :1].clamp_min(1e-6)
    return Hints(coverage=coverage, chroma=chroma, lock=lock)


def hints_from_points(
    points: Sequence[Point], size: tuple[int, int], *, radius: float = 8, lock: bool = False
) -> Hints:
    """Take discs of colours as hints.

    Args:
        points: Column, row and colour of each: pixels from the top left corner, and "#rrggbb" or red, green and blue in
            [0, 1]. Where two overlap the first counts.
        size: Height and width of the image.
        radius: Of the discs, in pixels; 0 for single pixels.
        lock: See ``Hints``.

    Returns:
        The hints.

    Raises:
        ImageError: If a point lies outside the image, or a colour is none.
        FlowError: If the radius is negative.
    """
    height, width = size
    if not radius >= 0 or not math.isfinite(radius):
        raise FlowError(f"The radius of a hint must be a number of pixels, at least 0; got {radius}.")
    coverage, chroma = torch.zeros(1, 1, height, width), torch.zeros(1, 2, height, width)
    radius = min(radius, height + width)
    reach = math.ceil(radius)
    for number, (x, y, colour) in reversed(list(enumerate(points, start=1))):
        if not (0 <= x < width and 0 <= y < height):
            raise ImageError(
                f"Hint {number} is at x {x:g}, y {y:g}, outside the image of {width}x{height} pixels. Move it inside."
            )
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)  # of the box that holds the disc
        rows = torch.arange(top, min(height, int(y) + reach + 1))[:, None]
        columns = torch.arange(left, min(width, int(x) + reach + 1))[None]
        disc = (columns - int(x)) ** 2 + (rows - int(y)) ** 2 <= radius**2
        box = (0, slice(None), slice(top, top + len(rows)), slice(left, left + columns.shape[1]))
        coverage[box][:, disc] = 1
        chroma[box][:, disc] = _chroma(colour)[:, None]
    return Hints(coverage=coverage, chroma=chroma, lock=lock)


def parse_points(text: str) -> list[Point]:
    """Read a list of points.

    Args:
        text: Lines "x, y, #rrggbb" (or with ";" between the points), or a JSON list ``[[x, y, "#rrggbb"], ...]``.

    Returns:
        The points.

    Raises:
        FlowError: Naming the line that is none.
    """
    if text.strip().startswith("["):
        try:
            rows: Any = json.loads(text)
            return [(float(x), float(y), str(colour)) for x, y, colour in rows]
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise FlowError(f'Points as JSON are [[x, y, "#rrggbb"], ...]; got {text.strip()[:60]!r}.') from error
    points: list[Point] = []
    for line in re.split(r"[;\n]", text):
        words = re.split(r"[,\s]+", line.strip())
        if words == [""]:
            continue
        try:
            x, y, colour = words
            points.append((float(x), float(y), colour))
        except ValueError as error:
            raise FlowError(
                f"A point is `x, y, #rrggbb`, such as `120, 80, #c03020`; got `{line.strip()[:60]}`. One point a line."
            ) from error
    return points


def palette(colours: Sequence[Colour] | None = None, image: Tensor | None = None) -> Tensor:
    """Describe what a whole picture should be like.

    Args:
        colours: Colours that it shall have on the whole, in equal parts, as in ``hints_from_points``.
        image: Or a picture that has them, ``(B, 3, H, W)`` in [0, 1].

    Returns:
        ``(1 or B, 4)``, see ``color.palette_of``.

    Raises:
        FlowError: If neither or both are given.
        ImageError: If they are no colours, or no picture.
    """
    if (image is None) == (not colours):
        raise FlowError("A palette is made of colours or of an image: give one of the two.")
    if image is not None:
        return color.palette_of(color.split(picture(image)[0])[1])
    return color.palette_of(torch.stack([_chroma(c) for c in colours or ()], dim=1)[None, :, None])


def combine(*hints: Hints | None) -> Hints | None:
    """Put hints of one size over each other.

    Args:
        hints: The first that covers a pixel counts there, as far as it covers it, and the first palette; None is passed
            over.

    Returns:
        All of them, locked if one is; None if there is none.

    Raises:
        ShapeError: If their sizes differ.
    """
    given = [hint for hint in hints if hint is not None]
    if not given:
        return None
    coverage = chroma = None
    for hint in reversed(given):
        if hint.coverage is None or hint.chroma is None:
            continue
        if coverage is None or chroma is None:
            coverage, chroma = hint.coverage, hint.chroma
            continue
        if coverage.shape[-2:] != hint.coverage.shape[-2:]:
            raise ShapeError(
                f"Hints of {coverage.shape[-1]}x{coverage.shape[-2]} and {hint.coverage.shape[-1]}x"
                f"{hint.coverage.shape[-2]} pixels do not go together. Make both for one image."
            )
        below = (1 - hint.coverage) * coverage
        mixed = hint.coverage * hint.chroma + below * chroma
        coverage = hint.coverage + below
        chroma = mixed / coverage.clamp_min(1e-6)
    found = next((hint.palette for hint in given if hint.palette is not None), None)
    return Hints(coverage=coverage, chroma=chroma, palette=found, lock=any(hint.lock for hint in given))


# --- colourings -------------------------------------------------------------------------------------------------------


def schedule(palette: float, detail: float, levels: int) -> list[float]:
    """Spread temperatures over the levels of a colorizer, geometrically from the finest to the coarsest.

    Args:
        palette: Temperature of the coarsest level, where colours are decided.
        detail: Temperature of the finest.
        levels: Their number.

    Returns:
        A temperature per level, finest first.
    """
    if levels == 1:
        return [palette]
    parts = [k / (levels - 1) for k in range(levels)]  # 0 at the finest
    return [detail ** (1 - part) * palette**part for part in parts]


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
    _check_draw(seed, latents_strength, latents_levels)
    job = _Job(flow, image, working_size, saturation, gamut, precision, notify)
    hints = job.fitting(hints)
    taus = job.temperatures(temperature, detail)
    at_once = _at_once(batch)
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
                    z = _taken_over(z, given, latents_strength, latents_levels or len(z))
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
    job = _Job(flow, image, working_size, 1.0, "compress", "float32", None, encoding=True)
    at_once = _at_once(batch)
    with job.reporting(None, cancelled, -(-len(image) // at_once)):
        encoded: list[list[Tensor]] = []
        for start in range(0, len(image), at_once):
            part = slice(start, start + at_once)
            chroma = _sized(color.split(picture(image[part])[0])[1], job.chroma_size).to(job.device)
            encoded.append(job.plan(_padded(chroma, job.grid) + NEUTRAL, job.condition(part, None))[0])
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
        notify=_unsaid,
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


@retry_on_oom(FEWER, at_once="chunk")
@torch.no_grad()
def colorize_video(
    flow: Flow,
    frames: Tensor,
    *,
    temperature: float | None = None,
    detail: float | None = None,
    seed: int = 0,
    saturation: float = 1.0,
    working_size: int | None = None,
    hints: Hints | None = None,
    latents: Sequence[Tensor] | None = None,
    latents_strength: float = 1.0,
    latents_levels: int = 2,
    carry: float = 0.0,
    chunk: int = AT_ONCE,
    gamut: Gamut = "compress",
    precision: Precision = "float32",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
    before: list[Tensor] | None = None,
) -> Tensor:
    """Colour the frames of one clip alike: from the same latents, and if wanted with colours carried along.

    Args:
        flow: A colorizer.
        frames: ``(T, C, H, W)`` in order; see ``colorize``.
        temperature: See ``colorize``.
        detail: See ``colorize``.
        seed: See ``colorize``; one for all frames.
        saturation: See ``colorize``.
        working_size: See ``colorize``.
        hints: One for all frames, or one per frame: told to the model, and locked if they are, but not refined.
        latents: See ``colorize``; 1 item.
        latents_strength: See ``colorize``.
        latents_levels: See ``colorize``.
        carry: Part of the previous frame's coarsest chroma that is kept, in [0, 1). More is steadier, and slower to
            follow a cut.
        chunk: Frames decoded together: memory, not result.
        gamut: See ``colorize``.
        precision: See ``colorize``.
        progress: See ``colorize``.
        cancelled: See ``colorize``.
        notify: See ``colorize``.
        before: For a clip that comes in parts: an empty list with the first, and the same one with all others. It is
            changed to what the next part carries on. None: these are all frames.

    Returns:
        ``(T, 3 or 4, H, W)``.

    Raises:
        ImageError: See ``colorize``.
        FlowError: If an argument is out of its range.
        ShapeError: If hints or latents do not fit.
        Cancelled: If stopped.
    """
    if not 0 <= carry < 1:
        raise FlowError(f"carry must lie in [0, 1); got {carry}.")
    if chunk < 1:
        raise FlowError(f"chunk must be at least 1; got {chunk}.")
    _check_draw(seed, latents_strength, latents_levels)
    job = _Job(flow, frames, working_size, saturation, gamut, precision, notify)
    hints = job.fitting(hints)
    z = sample_latents(job.shapes, 1, job.temperatures(temperature, detail), seed=seed)
    if latents is not None:
        given = job.given(latents, 0)
        if len(latents[0]) != 1:
            raise ShapeError(f"A clip takes the latents of 1 picture; got those of {len(latents[0])}.")
        z = _taken_over(z, given, latents_strength, latents_levels or len(z))
    kept: list[Tensor] = [] if before is None else before  # what is carried: the last frame's coarsest image

    def carried(number: int, x: Tensor) -> Tensor:
        if number < len(z) - 1:
            return x
        rows: list[Tensor] = []
        for row in x.split(1):
            rows.append(torch.lerp(row, kept[0], carry) if kept else row)
            kept[:] = rows[-1:]
        return torch.cat(rows)

    chunks = [slice(start, min(start + chunk, len(job.y))) for start in range(0, len(job.y), chunk)]
    with job.reporting(progress, cancelled, 2 * len(chunks)):
        pictures: list[Tensor] = []
        for part in chunks:
            wanted = job.wanted(hints, part)
            shared = [level.to(job.device).expand(part.stop - part.start, -1, -1, -1) for level in z]
            decoded = job.decode(shared, job.condition(part, wanted), job.bounded, carried, job.locking(wanted))
            pictures.append(job.finish(decoded, part, hints))
            job.step(pictures[-1][-1])
    return torch.cat(pictures)


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
    rgb, alpha = picture(luma_from)
    colours = picture(colors_from)[0].to(rgb.device)
    if len(rgb) != len(colours) and 1 not in (len(rgb), len(colours)):
        raise ImageError(
            f"{len(rgb)} pictures for luma and {len(colours)} for colours do not pair. Give one of either, or as many."
        )
    y = color.luma(rgb)
    chroma = color.split(colours)[1]
    if chroma.shape[2:] != y.shape[2:]:
        # along with this luma at the small size: that of the colours may have drifted, which is no edge
        chroma = _enlarged(chroma, _sized(y, chroma.shape[2:]), y)
    return _merged(y, chroma, alpha, saturation, gamut)


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
    _check_model(flow)
    config = flow.config
    rows, columns = _working_size(max(1, height), max(1, width), working_size or config.working_size)
    positions = rows * columns / STRIDE**2
    encoder = positions * (STRIDE**2 + 8 * config.widths[0])
    conditioner = min(samples, AT_ONCE) * positions / 4 * (3 * config.hidden[0] + 2 * config.features + 40)
    return round(4 * (encoder + conditioner + 24 * height * width))


# --- how it is done ---------------------------------------------------------------------------------------------------

Between = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class _Wanted:
    """Hints of some images at the working size: planes (B, 3, h, w), palette (B, 4), and whether they are locked."""

    planes: Tensor
    palette: Tensor
    lock: bool


class _Job:
    """Some images on their way through a colorizer."""

    def __init__(
        self,
        flow: Flow,
        image: Tensor,
        working_size: int | None,
        saturation: float,
        gamut: Gamut,
        precision: Precision,
        notify: Callable[[str], None] | None,
        *,
        encoding: bool = False,
    ) -> None:
        _check_model(flow)
        _check_finish(saturation, gamut)
        size = flow.config.working_size if working_size is None else working_size
        if not 16 <= size <= 4096:
            raise FlowError(f"working_size must lie between 16 and 4096 pixels; got {size}.")
        say = notify or log.warning
        self.say = say
        self.repairs = overflow.Repairs()
        self.flow = flow
        self.device = next(flow.parameters()).device
        self.home = image.device
        self.saturation = saturation
        self.gamut: Gamut = gamut
        self.plan = plan_for(flow, precision, say)  # hints are refined with gradients, by the flow itself
        rgb, self.alpha = picture(image)
        self.y = color.luma(rgb)
        if not encoding and image.shape[1] > 1 and float(color.split(rgb)[1].abs().max()) > COLOURED:
            say("The picture is in colour: its luma is used, its colours are not.")
        working = _working_size(self.y.shape[-2], self.y.shape[-1], size)
        multiple = flow.config.source_multiple
        self.padded = tuple(-(-side // multiple) * multiple for side in working)
        self.grid = cast(tuple[int, int], tuple(side // STRIDE for side in self.padded))
        self.chroma_size = cast(tuple[int, int], tuple(side // STRIDE for side in working))
        self.working = working
        self.small_y = _sized(self.y, working)  # (B, 1, h, w)
        self.shapes: list[Shape] = flow.latent_shapes(*self.grid)
        self._progress: Progress | None = None
        self._done = self._total = 0

    def temperatures(self, palette: float | None, detail: float | None) -> list[float]:
        usual: tuple[float, float] = self.flow.config.temperatures
        palette = usual[0] if palette is None else palette
        detail = usual[1] if detail is None else detail
        for name, tau in (("temperature", palette), ("detail", detail)):
            if not (math.isfinite(tau) and tau >= 0):
                raise FlowError(f"{name} must be a finite number >= 0; got {tau}.")
        return schedule(palette, detail, len(self.shapes))

    @contextmanager
    def reporting(
        self, progress: Progress | None, cancelled: Callable[[], bool] | None, total: int
    ) -> Generator[None, None, None]:
        self._progress, self._total = progress, total

        def stop(_: object) -> None:
            if cancelled is not None and cancelled():
                raise Cancelled("colorize was cancelled")

        with watched(self.flow, stop), watched(self.plan, stop):
            yield

    def step(self, preview: Tensor | None = None) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, None if preview is None else preview[:3])

    def fitting(self, hints: Hints | None) -> Hints | None:
        """Check that hints are for these images, and give coverage and chroma as many items as the other has."""
        if hints is None:
            return None
        coverage, chroma, told = hints.coverage, hints.chroma, hints.palette
        if (coverage is None) != (chroma is None):
            raise ShapeError("Hints need coverage and chroma, or neither of the two.")
        if coverage is not None and chroma is not None:
            same = coverage.ndim == chroma.ndim == 4 and coverage.shape[2:] == chroma.shape[2:]
            if not same or coverage.shape[1] != 1 or chroma.shape[1] != 2:
                raise ShapeError(
                    f"Expected hints of coverage (B, 1, H, W) and chroma (B, 2, H, W); got {tuple(coverage.shape)} and "
                    f"{tuple(chroma.shape)}."
                )
            for items in (len(coverage), len(chroma)):
                self._check_items("hints", items)
            count = max(len(coverage), len(chroma))
            coverage, chroma = (t.expand(count, -1, -1, -1) for t in (coverage, chroma))
        if told is not None:
            if told.ndim != 2 or told.shape[1] != 4:
                raise ShapeError(f"Expected a palette of shape (B, 4); got {tuple(told.shape)}.")
            self._check_items("palettes", len(told))
        return Hints(coverage=coverage, chroma=chroma, palette=told, lock=hints.lock)

    def wanted(self, hints: Hints | None, part: slice) -> _Wanted | None:
        """Bring the hints of some images to the working size."""
        if hints is None:
            return None
        count = len(self.y[part])
        planes = torch.zeros(count, 3, *self.padded, device=self.device)
        wanted_palette = torch.zeros(count, 4, device=self.device)
        if hints.coverage is not None and hints.chroma is not None:
            covered = torch.cat([hints.coverage, hints.coverage * hints.chroma], dim=1).float()
            covered = covered[part] if len(covered) > 1 else covered
            planes[..., : self.working[0], : self.working[1]] = _sized(covered, self.working).to(self.device)
        if hints.palette is not None:
            wanted_palette[:] = (hints.palette[part] if len(hints.palette) > 1 else hints.palette).to(self.device)
        return _Wanted(planes, wanted_palette, hints.lock)

    def _check_items(self, what: str, count: int) -> None:
        if count not in (1, len(self.y)):
            raise ShapeError(f"Expected {what} for 1 or {len(self.y)} images; got {count}.")

    def given(self, latents: Sequence[Tensor], number: int) -> list[Tensor]:
        """Bring one item of latents of any size to this size, by the nearest position of every level."""
        if [z.ndim for z in latents] != [4] * len(self.shapes) or any(
            z.shape[1] != shape[0] for z, shape in zip(latents, self.shapes, strict=True)
        ):
            raise ShapeError(
                f"Expected {len(self.shapes)} levels of latents with {', '.join(str(s[0]) for s in self.shapes)} "
                f"channels; got {[tuple(z.shape) for z in latents]}. Encode them with this model."
            )
        for level in latents:
            self._check_items("latents", len(level))
            if len(level) != len(latents[0]):
                raise ShapeError(f"Expected latents of as many items on every level; got {[len(z) for z in latents]}.")
        item = number if len(latents[0]) > 1 else 0
        return [
            F.interpolate(z[item : item + 1].float(), (shape[1], shape[2]), mode="nearest").to(self.device)
            for z, shape in zip(latents, self.shapes, strict=True)
        ]

    def condition(self, part: slice, wanted: _Wanted | None) -> Condition:
        source = _padded(self.small_y[part].to(self.device), self.padded)
        if wanted is not None:
            planes = wanted.palette[:, :, None, None].expand(-1, -1, *self.padded)
            source = torch.cat([source, wanted.planes, planes], dim=1)
        cond = self.plan.encode_condition(source)
        self.step()
        return Condition(features=tuple(f.float() if isinstance(f, Tensor) else f for f in cond.features))

    def decode(self, z: Sequence[Tensor], cond: Condition, *changes: Between | None) -> Tensor:
        """From latents to chroma, centred on 0, at a quarter of the working size; with changes between the levels."""

        def between(number: int, x: Tensor) -> Tensor:
            for change in changes:
                x = x if change is None else change(number, x)
            return x

        decoded = self.plan.inverse(z, cond, between)
        return (decoded - NEUTRAL)[..., : self.chroma_size[0], : self.chroma_size[1]]

    def guarded(self, first: int, z: Sequence[Tensor], cond: Condition, wanted: _Wanted | None) -> Tensor:
        """Decode with the guard: what is bounded, but would have been far off, is drawn calmer."""

        def attempt(latents: Sequence[Tensor], items: Tensor | None) -> tuple[Tensor, Tensor | None]:
            wild: list[Tensor] = []

            def look(number: int, x: Tensor) -> Tensor:
                wild.append(~(_chroma_seen(self.flow, number, x).abs() <= GUARD_REACH).all(1, keepdim=True))
                return x

            told = cond if items is None else rows(cond, items)
            chroma = self.decode(latents, told, look, self.bounded, self.locking(wanted))
            if not torch.stack([mark.any() for mark in wild]).any():
                return chroma, None
            whole = torch.stack([F.interpolate(mark.float(), self.grid) for mark in wild]).amax(0) > 0
            return chroma, whole[..., : self.chroma_size[0], : self.chroma_size[1]]

        decoded = overflow.decode(attempt, z, lambda: torch.zeros(1, 2, 1, 1))
        self.repairs.add(first, decoded.attenuated, decoded.filled)
        return decoded.images

    def report(self) -> None:
        """Say what the guard has done."""
        for sentence in self.repairs.sentences(self.chroma_size[0] * self.chroma_size[1], "left grey"):
            self.say(sentence)

    def bounded(self, number: int, x: Tensor) -> Tensor:
        return bounded(self.flow, number, x)

    def locking(self, wanted: _Wanted | None) -> Between | None:
        """Make what puts locked colours into the image between levels: where a cell is covered, its mean is known."""
        if wanted is None or not wanted.lock:
            return None

        def between(number: int, x: Tensor) -> Tensor:
            covered, chroma = _pooled(wanted.planes, x.shape[-2:])
            target = _seen(self.flow, number, chroma)
            return torch.where(covered > COVERED, target.to(x), x)

        return between

    def refined(self, z: Sequence[Tensor], cond: Condition, wanted: _Wanted, steps: int) -> list[Tensor]:
        """Move latents until the covered places have the wanted colours, as little as that takes."""
        with torch.inference_mode(False), torch.enable_grad():
            # copies, since what was loaded in inference mode can have no gradient
            weights = {f"flow.{name}": t.detach().clone() for name, t in _tensors(self.flow)}
            features = (f.detach().clone() if isinstance(f, Tensor) else f for f in cond.features)
            given = Condition(features=tuple(features))
            covered, chroma = (t.detach().clone() for t in _pooled(wanted.planes, self.grid))
            drawn = [part.detach().clone() for part in z]
            moved = [part.clone().requires_grad_() for part in drawn]
            optimiser = torch.optim.Adam(moved, lr=HINT_RATE)
            inverse = _Inverse(self.flow, self.bounded)
            for _ in range(steps):
                optimiser.zero_grad()
                decoded = cast(Tensor, functional_call(inverse, weights, (moved, given)))
                missed = (covered * (decoded - NEUTRAL - chroma).square()).sum() / (2 * HINT_SPREAD**2)
                loss = missed + sum(((a - b).square().sum() / 2 for a, b in zip(moved, drawn, strict=True)), missed * 0)
                loss.backward()
                for part in moved:
                    assert part.grad is not None
                    part.grad.nan_to_num_(0, 0, 0)  # of what was out of bounds
                optimiser.step()
                self.step()
            return [part.detach() for part in moved]

    def finish(self, chroma: Tensor, part: slice, hints: Hints | None) -> Tensor:
        """From chroma at the working size to pictures at the size of the image."""
        y = self.y[part].to(self.device)
        small = _sized(y, self.chroma_size)
        full = _enlarged(chroma, small, y)
        alpha = None if self.alpha is None else self.alpha[part].to(self.device)
        if hints is not None and hints.lock and hints.coverage is not None and hints.chroma is not None:
            one = len(hints.coverage) == 1
            coverage, target = (t if one else t[part] for t in (hints.coverage, hints.chroma))
            full = _locked(full * self.saturation, coverage.to(full), target.to(full))
            return _merged(y, full, alpha, 1.0, self.gamut).to(self.home)
        return _merged(y, full, alpha, self.saturation, self.gamut).to(self.home)


def bounded(flow: Flow, number: int, x: Tensor) -> Tensor:
    """Keep means of chroma among those of colours: for the argument ``between`` of a colorizer's inverse.

    Every picture is there already. What the flow makes of hints or temperatures unlike all it was trained on may not
    be, and each level that starts from it would be further off, up to infinity.

    Args:
        flow: A colorizer.
        number: Of the level, 0 for the finest.
        x: What it has been decoded to, ``(B, 2, h, w)``.

    Returns:
        The same where it is possible, else the nearest that is.
    """
    chroma = _chroma_seen(flow, number, x)
    possible = chroma.nan_to_num(0, MOST, -MOST).clamp(-MOST, MOST)
    return torch.where((possible == chroma).all(1, keepdim=True), x, _seen(flow, number, possible).to(x))


def _chroma_seen(flow: Flow, number: int, x: Tensor) -> Tensor:
    """Give means of chroma that the flow has between its levels; the inverse of ``_seen``."""
    assert flow.prelude is not None
    return flow.prelude.inverse(x / 2**number) - NEUTRAL


def _seen(flow: Flow, number: int, chroma: Tensor) -> Tensor:
    """Give means of chroma as the flow has them: whitened, and doubled by every Haar step still to be undone."""
    assert flow.prelude is not None
    return flow.prelude(chroma + NEUTRAL)[0] * 2**number


class _Inverse(nn.Module):
    """A flow whose call is its inverse, for ``functional_call``."""

    def __init__(self, flow: Flow, between: Between) -> None:
        super().__init__()
        self.flow = flow
        self.between = between

    def forward(self, z: Sequence[Tensor], cond: Condition) -> Tensor:
        return self.flow.inverse(z, cond, self.between)


def _tensors(flow: Flow) -> list[tuple[str, Tensor]]:
    return [*flow.named_parameters(), *flow.named_buffers()]


def _taken_over(drawn: Sequence[Tensor], given: Sequence[Tensor], strength: float, levels: int) -> list[Tensor]:
    """Mix drawn latents with given ones on the coarsest levels, with the same variance in all."""
    first = len(drawn) - levels
    return [
        z if number < first else math.sqrt(strength) * other.to(z) + math.sqrt(1 - strength) * z
        for number, (z, other) in enumerate(zip(drawn, given, strict=True))
    ]


def _locked(chroma: Tensor, coverage: Tensor, target: Tensor) -> Tensor:
    """Meet the wanted chroma where it is covered, and let the correction fade out around."""
    size = (chroma.shape[-2], chroma.shape[-1])
    covered = _sized(torch.cat([coverage, coverage * target], dim=1), size).expand(len(chroma), -1, -1, -1)
    coverage, target = covered[:, :1], covered[:, 1:] / covered[:, :1].clamp_min(1e-6)
    reach = max(1, min(size) // 64)  # a pixel of the finest grid or two
    # the correction, times how much of the neighbourhood is covered
    around = F.avg_pool2d(coverage * (target - chroma), 2 * reach + 1, 1, reach)
    return torch.where(coverage > COVERED, target, chroma + around)


def _merged(y: Tensor, chroma: Tensor, alpha: Tensor | None, saturation: float, gamut: Gamut) -> Tensor:
    _check_finish(saturation, gamut)
    count = max(len(y), len(chroma))
    y, chroma = y.expand(count, -1, -1, -1), chroma.expand(count, -1, -1, -1) * saturation
    rgb = color.compress(y, chroma) if gamut == "compress" else color.clip(y, chroma)
    return rgb if alpha is None else torch.cat([rgb, alpha.to(rgb).expand(count, -1, -1, -1)], dim=1)


def _enlarged(chroma: Tensor, small: Tensor, y: Tensor) -> Tensor:
    """Bring chroma to the size of an image, larger or smaller."""
    if chroma.shape[-2] > y.shape[-2] or chroma.shape[-1] > y.shape[-1]:
        return _sized(chroma, y.shape[-2:])
    return color.enlarge_chroma(chroma, small, y)


def _pooled(planes: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Coverage and mean wanted chroma by cell of a grid."""
    pooled = F.adaptive_avg_pool2d(planes, (size[0], size[1]))
    return pooled[:, :1], pooled[:, 1:] / pooled[:, :1].clamp_min(1e-6)


def _sized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Shrink (antialiased) or enlarge."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bilinear", antialias=True)


def _padded(image: Tensor, size: Sequence[int]) -> Tensor:
    """Continue an image symmetrically at its right and at its bottom."""
    height, width = size
    border = max(height - image.shape[-2], width - image.shape[-1])
    return continued(image, border)[..., border : border + height, border : border + width]


def _working_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Give the sides a length on the finest grid: the shorter one as asked, unless the other becomes too long."""
    factor = min(short / min(height, width), LONGEST * short / max(height, width))
    rows, columns = (max(1, round(side * factor / STRIDE)) * STRIDE for side in (height, width))
    return rows, columns


def _chroma(colour: Colour) -> Tensor:
    """Chroma (2,) of a colour."""
    rgb = color.parse_colour(colour) if isinstance(colour, str) else tuple(float(value) for value in colour)
    if len(rgb) != 3 or not all(0 <= value <= 1 for value in rgb):
        raise ImageError(f'Expected a colour such as "#e0b080", or red, green and blue in [0, 1]; got {colour!r}.')
    return color.split(torch.tensor(rgb)[None, :, None, None])[1].flatten()


def _check_model(flow: Flow) -> None:
    if flow.architecture != "colorizer":
        raise FlowError(f"Colouring needs a colorizer model, such as color-photos; got a {flow.architecture} model.")


def _check_finish(saturation: float, gamut: str) -> None:
    if not (math.isfinite(saturation) and saturation >= 0):
        raise FlowError(f"saturation must be a finite number >= 0; got {saturation}.")
    if gamut not in ("compress", "clip"):
        raise FlowError(f"gamut must be compress or clip; got {gamut!r}.")


def _at_once(batch: int | None) -> int:
    if batch is not None and batch < 0:
        raise FlowError(f"batch must not be negative; got {batch}. 0 chooses.")
    return batch or AT_ONCE


def _check_draw(seed: int, strength: float, levels: int) -> None:
    if not 0 <= seed < 2**64:
        raise FlowError(f"A seed must be a whole number in [0, 2^64); got {seed!r}.")
    if not 0 <= strength <= 1:
        raise FlowError(f"latents_strength must lie in [0, 1]; got {strength}.")
    if levels < 0:
        raise FlowError(f"latents_levels must be at least 0, which means all; got {levels}.")


def _unsaid(_: str) -> None:
    pass
