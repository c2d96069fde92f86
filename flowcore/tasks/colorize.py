"""Colorize: several colorings of a photograph, all with its luma; ``chroma`` has the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..engine.image_batch import ImageBatch, require_tensor
from ..engine.options import MARK, BatchOptions, draws, python
from ..engine.ranges import Setting, count, nonnegative
from ..engine.runner import Runner, runs_with
from ..errors import Argument, ImageError, say
from ..flows.model import FlowModel
from ..flows.prior import sample_latents
from ..images import color
from ..images.resize import resize_bilinear
from ..models.colorizer.color_memory import ColorMemory, starter_memory
from ..models.fields import Range
from . import skin
from .chroma import AT_ONCE, WORKING_SIZE, Colorization, ColorSettings, Gamut, blend_latents, enlarge, merge
from .coherence import correlate_noise
from .hints import Hints, combine_hints, hints_from_points, palette_from, parse_points
from .task import Task

MEMORY_STEPS = 20  # how far the colors of a memory spread, in positions of the finest grid
ADVICE = say(
    "Ask for fewer at once (samples), lower {working_size}, shrink the picture, or free memory on the device.",
    working_size=Argument("working_size"),
)


@dataclass(frozen=True, kw_only=True)
class ColorizeSettings(ColorSettings):
    """Options of ``colorize``."""

    samples: Annotated[int, draws("Colorings per image, at least 1.")] = 1
    hint_steps: Annotated[
        int,
        count(
            0,
            most=200,
            advanced=True,
            help="How far hints spread over what they are painted on, in positions of the finest grid, four pixels "
            "of the working size each. They stop at its edges, see ``spread_hints``. 0: only what the model "
            "makes of them.",
        ),
    ] = 20
    memory: Annotated[
        ColorMemory | Literal["model"] | None,
        python(
            "Photographs whose colors are taken over, object by object, see ``remember``; every seed uses another part "
            'of it, temperature 0 all. Where they show nothing similar, and with "model" everywhere, the memory that '
            "the model's file recommends is used, if any, unless latents or a palette determine the colors. None: no "
            "memory."
        ),
    ] = "model"
    cast: Annotated[
        float,
        Setting(
            float,
            Range(-1, 1),
            "1 is as drawn, 0 that of the calmest coloring, -1 no cast.",
            advanced=True,
            help="Color cast of the whole picture, in [-1, 1]: 1 leaves it as drawn; 0 gives that of the coloring at "
            "temperature 0; -1 removes it.",
        ),
    ] = 1.0
    vivid: Annotated[
        float,
        nonnegative(
            "1 is as drawn.",
            most=2,
            advanced=True,
            help="Factor by which colors move away from their mean, at least 0; 1 leaves them as drawn.",
        ),
    ] = 1.0
    skin: Annotated[
        bool,
        Setting(
            advanced=True,
            help="Whether faces are looked for and get a color of skin, another one for every seed. Not if latents or "
            "a palette determine the colors; see ``tasks.skin``.",
        ),
    ] = True
    mark: Annotated[str | None, MARK] = None


@runs_with(ColorizeSettings)
def colorize(flow: FlowModel, image: Tensor, settings: ColorizeSettings) -> Tensor:
    """Color photographs; every sample is another plausible coloring with the same luma.

    >>> flow = flowcore.load("color-photos")
    >>> flowcore.colorize(flow, torch.rand(1, 1, 48, 64), samples=2).shape
    torch.Size([2, 3, 48, 64])

    Args:
        flow: A colorizer.
        image: As in ``upscale``, ``(B, C, H, W)``. Only the luma is used; alpha is kept. A plain border stays gray and
            does not influence the colors of the photograph.
        settings: The options below, by name.

    Returns:
        ``(B * samples, 3 or 4, H, W)`` float32 in [0, 1] on the device of ``image``: all samples of image 0, then of
        image 1. With "compress" its luma differs from the image's by rounding only.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If the model is no colorizer, or another argument is out of its range.
        ShapeError: If hints or latents do not fit.

    Source: Ardizzone et al. 2019, section 4.2 (sampling); see also ``noise_cholesky`` and ``spread_hints``.
    """
    memory, seed, samples = settings.memory, settings.seed, settings.samples
    hints, latents = settings.hints, settings.latents
    if isinstance(memory, ColorMemory):
        memory.check(flow)
    run = Runner(flow, settings, ADVICE, image)
    free = latents is None and (hints is None or hints.palette is None)  # nothing determines the colors
    starter = starter_memory(flow) if free and memory is not None else None
    own = memory if isinstance(memory, ColorMemory) else None
    if starter is not None and own is not None and own.fingerprint == starter.fingerprint:
        own = None
    memories = [each for each in (starter, own) if each is not None]  # the last one wins where it has similar cells

    def task() -> Tensor:
        # else all colors come from latents
        notes = latents is None or settings.latents_strength < 1 or settings.latents_levels > 0
        size = settings.working_size
        job = Colorization(run, flow, image, size, hints=hints, memories=memories, notes=notes)
        taus, rho, factor = job.resolve(settings)
        steps = settings.hint_steps if hints is not None and hints.coverage is not None else 0
        run.expect(len(job.y) * (1 + samples))
        pictures: list[Tensor] = []
        for number in range(len(job.y)):
            batch = slice(number, number + 1)
            planes = job.hint_planes(batch)
            locked = None if steps else planes  # hints that spread are applied to the decoded chroma below
            cond = job.condition(batch, planes)
            reference = None if latents is None else job.resize_latents(latents, number)
            small_y = job.luma_on_grid(batch)
            faces = skin.find_ovals(job.filled_luma[batch], run.check_cancelled) if settings.skin and free else ()
            calm = None
            if settings.cast < 1:
                zeros = [torch.zeros(1, *shape, device=run.device) for shape in job.shapes]
                calm = job.decode_guarded(len(pictures), zeros, cond, None)
            for part in run.batches(samples, AT_ONCE):
                seeds = [(seed + sample) % 2**64 for sample in range(part.start, part.stop)]
                z = sample_latents(job.shapes, len(seeds), taus, seed=seeds[0], mark=settings.mark)
                z = [level.to(run.device) for level in (*z[:-1], correlate_noise(flow, z[-1], cond, rho))]
                if reference is not None:
                    z = blend_latents(z, reference, settings.latents_strength, settings.latents_levels)
                part_seeds = seeds if taus[-1] else []  # at temperature 0 the whole memory counts
                chroma = job.decode_guarded(len(pictures), z, cond.expand(len(seeds)), locked)
                if calm is not None:
                    chroma = change_cast(chroma, calm, small_y, settings.cast)
                if starter is not None:
                    chroma = job.add_memory_colors(chroma, 0, batch, cond, part_seeds, MEMORY_STEPS)
                chroma = factor * chroma
                if own is not None:  # its colors are wanted as they are
                    chroma = job.add_memory_colors(chroma, len(memories) - 1, batch, cond, part_seeds, MEMORY_STEPS)
                chroma = make_vivid(chroma, small_y, settings.vivid)
                if faces:
                    chroma = skin.add_skin(job, chroma, faces, batch, cond, seeds if taus[-1] else [None] * len(seeds))
                if steps and planes is not None:
                    chroma = job.spread_colors(chroma, batch, cond, planes.pooled(job.grid), steps)
                for one in chroma.split(1):
                    pictures.append(job.finish(one, batch, settings.saturation, settings.gamut))
                    run.advance(preview=pictures[-1][0, :3])
        job.repairs.report(run.notify, math.prod(job.chroma_size), say("left gray"))
        return torch.cat(pictures)

    return run.retry_on_oom(task)


@dataclass(frozen=True, kw_only=True)
class EncodeColorsSettings(BatchOptions):
    """Options of ``encode_colors``."""

    working_size: Annotated[int | None, WORKING_SIZE] = None


@runs_with(EncodeColorsSettings)
def encode_colors(flow: FlowModel, image: Tensor, settings: EncodeColorsSettings) -> list[Tensor]:
    """Encode the colors that pictures have.

    >>> flow, image = flowcore.load("color-photos"), torch.rand(1, 3, 48, 64)
    >>> latents = flowcore.encode_colors(flow, image)
    >>> flowcore.decode_colors(flow, latents, image).shape
    torch.Size([1, 3, 48, 64])

    Args:
        flow: A colorizer.
        image: In color, ``(B, C, H, W)``, C = 3 or 4; see ``colorize``.
        settings: The options below, by name.

    Returns:
        Latents, finest first, float32. ``decode_colors`` on the same image gives its colors back, at the resolution of
        the working size.

    Raises:
        ImageError: If it is not a color image.
    """
    require_tensor(image)
    if image.ndim != 4 or image.shape[1] not in (3, 4):
        raise ImageError(f"Expected a color image of shape (B, C, H, W), C = 3 or 4; got {tuple(image.shape)}.")
    run = Runner(flow, settings, ADVICE, image)

    def task() -> list[Tensor]:
        job = Colorization(run, flow, image, settings.working_size, notes=False)
        batches = run.batches(len(image), AT_ONCE)
        run.expect(len(batches))
        encoded: list[list[Tensor]] = []
        for batch in batches:
            x = job.chroma_on_grid(image[batch], batch) + color.NEUTRAL
            encoded.append(run.compiled.encode(x, job.condition(batch, None)))
        return [torch.cat(levels).to(image.device) for levels in zip(*encoded, strict=True)]

    return run.retry_on_oom(task)


def decode_colors(flow: FlowModel, latents: Sequence[Tensor], image: Tensor, **options: Any) -> Tensor:
    """Decode latents to colors on the luma of a picture.

    >>> flow, image = flowcore.load("color-photos"), torch.rand(1, 3, 48, 64)
    >>> latents = flowcore.encode_colors(flow, image)
    >>> flowcore.decode_colors(flow, latents, image, saturation=1.2).shape
    torch.Size([1, 3, 48, 64])

    Args:
        flow: A colorizer.
        latents: From ``encode_colors``, finest first, 1 or B items of any size.
        image: See ``colorize``.
        options: Those of ``colorize``, such as saturation, gamut and working_size.

    Returns:
        ``(B, C, H, W)``, C = 3 or 4.

    Raises:
        ImageError: See ``colorize``.
        ShapeError: If the latents are not this model's.
    """
    return colorize(flow, image, latents=latents, latents_levels=0, **options)


def transfer_palette(
    flow: FlowModel, image: Tensor, reference: Tensor, *, strength: float = 1.0, levels: int = 2, **options: Any
) -> Tensor:
    """Color a picture like another one, with the coarse latents of the other's colors; returns what ``colorize`` does.

    >>> flow, reference = flowcore.load("color-photos"), torch.rand(1, 3, 40, 40)
    >>> flowcore.transfer_palette(flow, torch.rand(1, 1, 48, 64), reference, strength=0.8).shape
    torch.Size([1, 3, 48, 64])

    Args:
        flow: A colorizer.
        image: See ``colorize``.
        reference: In color, one picture or as many as images.
        strength: Share of the latents' variance that is taken over, in [0, 1].
        levels: How many of the coarsest levels are taken over; 0 for all.
        options: Any of ``colorize``, such as seed and samples.
    """
    shared = {name: options[name] for name in ("working_size", "batch", "cancelled", "notify") if name in options}
    latents = encode_colors(flow, reference, **shared)
    return colorize(flow, image, latents=latents, latents_strength=strength, latents_levels=levels, **options)


def apply_chroma(
    luma_from: Tensor, colors_from: Tensor, *, saturation: float = 1.0, gamut: Gamut = "compress"
) -> Tensor:
    """Put the colors of one picture on the luma of another, exactly; repairs the luma that other colorizers changed.

    >>> flowcore.apply_chroma(torch.rand(1, 1, 48, 64), torch.rand(1, 3, 24, 32)).shape
    torch.Size([1, 3, 48, 64])

    Args:
        luma_from: ``(B, C, H, W)``, C = 1, 3 or 4; see ``colorize``. Alpha is kept.
        colors_from: ``(B, C, h, w)``, C = 3 or 4, of any size; its chroma is enlarged along the edges of the luma.
        saturation: Factor on the chroma.
        gamut: See ``colorize``.

    Returns:
        ``(B, C, H, W)``, C = 3 or 4; one picture of either goes with any number of the other.

    Raises:
        ImageError: If a picture is invalid, or the numbers of pictures do not fit.
    """
    images = ImageBatch(luma_from)
    y, colors = color.luma(images.rgb), ImageBatch(colors_from).extended_rgb.to(images.device)
    if len(y) != len(colors) and 1 not in (len(y), len(colors)):
        raise ImageError(
            "{luma} pictures for luma and {colors} for colors do not pair. Pass one of either, or equally many.",
            luma=len(y),
            colors=len(colors),
        )
    ColorSettings(saturation=saturation, gamut=gamut)  # checks them
    chroma = color.split(colors)[1]
    if chroma.shape[2:] != y.shape[2:]:
        # guided by this luma, shrunk: that of the other picture may have drifted, and drift is no edge
        guide = color.luma(images.extended_rgb)
        chroma = enlarge(chroma, resize_bilinear(guide, chroma.shape[2:]), guide)
    return merge(y, chroma * saturation, images.alpha, gamut)


def change_cast(chroma: Tensor, calm: Tensor, y: Tensor, cast: float) -> Tensor:
    """Shift the mean chroma, mostly in midtones: cast 1 keeps it; 0 makes it that of ``calm``; -1 removes it."""
    mean, calm_mean = _mean(chroma, y), _mean(calm, y)
    target = calm_mean + cast * (mean - calm_mean) if cast >= 0 else (1 + cast) * calm_mean
    weight = y * (1 - y)
    rise = weight.square().sum() / weight.sum().clamp_min(1e-6)  # rise of the weighted mean if the weight is added
    return chroma + (target - mean) * weight / rise.clamp_min(1e-6)


def make_vivid(chroma: Tensor, y: Tensor, vivid: float) -> Tensor:
    """Move chroma ``(B, 2, h, w)`` away from its mean by a factor, most in the midtones of luma ``(1, 1, h, w)``."""
    if vivid == 1:
        return chroma
    weight = (4 * y * (1 - y)).clamp(0, 1)
    return chroma + (vivid - 1) * weight * (chroma - _mean(chroma, y))


def _mean(chroma: Tensor, y: Tensor) -> Tensor:
    """The mean chroma of midtones, (B, 2, 1, 1)."""
    weight = y * (1 - y)
    return (weight * chroma).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1e-6)


def hints_of(values: Mapping[str, Any], height: int, width: int) -> Hints | None:
    """Read the hints of a command: "points" with their "radius" and "lock", and the "colours" of a palette."""
    points = [point for text in values.get("points", ()) for point in parse_points(text)]
    brush = {"radius": values.get("radius", 8.0), "lock": values.get("lock", False)}
    colors = values.get("colours", ())
    return combine_hints(
        hints_from_points(points, (height, width), **brush) if points else None,
        Hints(coverage=None, chroma=None, palette=palette_from(colors), lock=False) if colors else None,
    )


def _of_file(flow: FlowModel, image: Tensor, _: bytes, values: dict[str, Any]) -> Tensor:
    """Color a photograph with the hints of a command, or like a "reference" with a "strength"."""
    options: dict[str, Any] = {**TASK.chosen(values), "hints": hints_of(values, *image.shape[-2:])}
    if values.get("reference") is None:
        return colorize(flow, image, **options)
    return transfer_palette(flow, image, values["reference"], strength=values.get("strength", 1.0), **options)


TASK = Task(
    name="colorize",
    settings=ColorizeSettings,
    run=colorize,
    needs="colorize",
    node="FlowcoreColorize",
    model="color-photos",
    traced=True,
    keeps_gray=False,
    of_file=_of_file,
)
