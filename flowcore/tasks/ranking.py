"""Ranking: how much samples differ and where, and which of them is best.

The log density of colorings is highest near gray, and sorts them by colorfulness. So the criteria for colorings leave
that out: bits of palettes of equal colorfulness, and least expected distance (minimum Bayes risk, Kumar & Byrne, 2004).
``python -m flowcore eval`` measures both.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..device import float64
from ..engine.image_batch import ImageBatch
from ..engine.options import ReportOptions
from ..engine.runner import Runner, runs_with
from ..errors import FlowError, ShapeError
from ..flows.dequantization import quantization
from ..flows.model import FlowModel
from ..images import color
from ..images.color import NEUTRAL
from ..images.metrics import colorfulness
from ..images.resize import limit_shorter_side
from .chroma import Colorization
from .colorize import ADVICE, AT_ONCE
from .consistency import consistency, samples_per_source
from .score import score

COMPARED_SIDE = 64  # shorter side at which colorings are compared
MIN_COLORFULNESS = 1e-3  # a picture below it is gray, and its hues are noise
MAX_SCALING = 4.0  # largest factor on chroma, when colorfulness is equalized
MIN_COLORINGS = 4  # fewest colorings whose trend by colorfulness is removed
SAME = 0.1  # dB of consistency within which no sample is better

By = Literal["consistency", "likelihood", "consensus"]
"""How exactly a sample shrinks to its source, in dB, highest first ("consistency"); how many bits per dimension the
model needs for it, fewest first ("likelihood"; of colorings: for their palettes, see ``palette_bits``); or how far a
coloring is from the others of its photograph, nearest first ("consensus")."""


@torch.no_grad()
def consensus(images: Tensor, source: Tensor) -> Tensor:
    """Compute how far each coloring is from the other ones: the expected distance from the true colors, ``(B, N)``.

    Distances are divided by how colorful both are, so that muted colorings are not favored. Of ``(B * N, C, H, W)``,
    all colorings of image 0 first; 0 if all are alike, about 2 if they have nothing in common.
    """
    each = _colorings_per_source(images, source)
    # One by one, because a batch may fill half of the memory.
    chroma = (color.split(ImageBatch(one[None]).rgb)[1] for one in images)
    small = [limit_shorter_side(one, COMPARED_SIDE).cpu().double() for one in chroma]
    rows: list[Tensor] = []
    for x in torch.cat(small).flatten(1).split(each):  # (N, 2 * pixels): the mean of |a - b|^2 / (|a| |b|) over others
        length = x.norm(dim=1).clamp_min(MIN_COLORFULNESS * (x.shape[1] / 2) ** 0.5)
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()  # 0 on the diagonal
        rows.append((distance / (length[:, None] * length)).sum(1) / max(1, each - 1))
    return torch.stack(rows)


@runs_with(ReportOptions)
def palette_bits(flow: FlowModel, images: Tensor, source: Tensor, settings: ReportOptions) -> Tensor:
    """Compute how many bits per dimension a colorizer needs for the coarsest grid, which decides on colors: ``(B, N)``.

    All colorings of a photograph are scaled to their median colorfulness first, and the remaining trend is removed, so
    that neither calm nor vivid ones come first. Comparable among the colorings of one photograph only.
    """
    flow.require("colorize")
    each = _colorings_per_source(images, source)
    run = Runner(flow, settings, ADVICE, source)

    def task() -> Tensor:
        job, preprocess = Colorization(run, flow, source, None, notes=False), flow.preprocess
        run.expect(len(job.y) + len(images))
        rows: list[Tensor] = []
        for number in range(len(job.y)):
            cond = job.condition(slice(number, number + 1), None)
            colorings = images[number * each : (number + 1) * each].split(1)
            chroma = torch.cat([job.chroma_on_grid(one, slice(number, number + 1)) for one in colorings])
            colorful = float64(colorfulness(chroma))
            scale = (colorful.median() / colorful.clamp_min(MIN_COLORFULNESS)).clamp(1 / MAX_SCALING, MAX_SCALING)
            chroma = chroma * scale.to(chroma)[:, None, None, None]
            bits: list[Tensor] = []
            for part in chroma.split(run.at_once(AT_ONCE)):
                x = part + NEUTRAL
                latents, shares = run.compiled.forward_with_logdet_map(x, cond.expand(len(part)))
                dimensions = latents[-1][0].numel()
                log_prob = float64(shares[-1]).flatten(1).sum(1)
                # the density of ``preprocess`` belongs to all levels, by their dimensions
                if preprocess is not None and len(shares) > 1:
                    log_prob = log_prob + float64(preprocess(x)[1]) * dimensions / x[0].numel()
                bits.append((-(log_prob / dimensions + math.log(quantization(flow).width)) / math.log(2)).cpu())
                run.advance(len(part))
            rows.append(without_trend(torch.cat(bits), colorful.clamp_min(MIN_COLORFULNESS).log().cpu()))
        return torch.stack(rows)

    return run.retry_on_oom(task)


def without_trend(bits: Tensor, colorful: Tensor) -> Tensor:
    """Remove the linear trend over log colorfulness ``(N,)`` from bits ``(N,)``, if there are at least 4."""
    centered = colorful - colorful.mean()
    variance = centered.square().sum()
    if len(bits) < MIN_COLORINGS or not bits.isfinite().all() or not variance > 1e-12:
        return bits
    return bits - (centered * bits).sum() / variance * centered


def _colorings_per_source(images: Tensor, source: Tensor) -> int:
    if images.ndim != 4 or source.ndim != 4 or images.shape[-2:] != source.shape[-2:]:
        raise ShapeError(
            "Expected colorings of their source's own size; got {shape} for {source_shape}. Give the photographs that "
            "were colored as source.",
            shape=tuple(images.shape),
            source_shape=tuple(source.shape),
        )
    return samples_per_source(images, source)


@torch.no_grad()
def diversity_map(images: Tensor, samples: int = 0) -> Tensor:
    """Compute the standard deviation of each image's ``samples``, 0 for all, at every pixel: ``(B, 1, H, W)``."""
    rgb = ImageBatch(images).rgb.cpu()
    each = samples or len(rgb)
    if each < 2 or len(rgb) % each:
        raise ShapeError(
            "Expected at least 2 samples of every picture, and as many of each; got {images} images and {samples} "
            "samples. Draw more, or say how many belong together; 0 takes all for samples of one picture.",
            images=len(rgb),
            samples=each,
        )
    return rgb.unflatten(0, (-1, each)).std(1, correction=0).mean(1, keepdim=True)


@runs_with(ReportOptions)
def ranked(
    images: Tensor, source: Tensor, by: By = "consistency", flow: FlowModel | None = None, *, settings: ReportOptions
) -> tuple[Tensor, Tensor]:
    """Sort the samples of every image, best first.

    >>> samples, source = torch.rand(4, 3, 32, 32), torch.rand(1, 3, 8, 8)
    >>> scores, order = flowcore.ranked(samples, source)
    >>> samples[order[0, :2]].shape  # the best two
    torch.Size([2, 3, 32, 32])

    Args:
        images: ``(B * N, C, H, W)`` in [0, 1]: all samples of image 0, then of image 1.
        source: ``(B, C, h, w)``, what they were made from: small images, or the photographs that were colored.
        by: The criterion, see ``By``. For colorings "consensus" is the better one.
        flow: The model that made them, needed for "likelihood"; an upscaling model takes images of its own scale only.
        settings: The options below, by name.

    Returns:
        The scores, ``(B, N)`` in the order of the images, and the indices of every image's samples, best first,
        ``(B, N)``. Equal samples keep their order; those without a finite score come last.

    Raises:
        ShapeError: If the number of images is not a multiple of the number of sources, or the flow makes other sizes.
        FlowError: If the flow is missing or makes no such samples, ``by`` is unknown, or memory does not suffice.
        ImageError: If either is no valid image.
    """
    if by not in get_args(By):
        raise FlowError(f"by must be one of {', '.join(get_args(By))}; got {by!r}.")
    tell = settings.tell
    rgb, small = ImageBatch(images).extended_rgb, ImageBatch(source).extended_rgb
    each = samples_per_source(rgb, small)
    if by == "consensus":
        scores = consensus(rgb, small)
    elif by == "consistency":
        if rgb.shape[-2:] == small.shape[-2:]:
            tell(
                "consistency compares enlargements with their source; these are as large as it. Choose consensus "
                "for colorings."
            )
        scores = consistency(rgb, small).view(-1, each)
        spread = float((scores.amax(1) - scores.amin(1)).nan_to_num(nan=0.0).max())
        if each > 1 and spread < SAME:
            tell(
                "The samples are level: their consistency differs by {decibels} dB. Choose likelihood, or by eye.",
                decibels=f"{spread:.2g}",
            )
    elif flow is None:
        raise FlowError(
            "likelihood needs the model that made the samples; got none. Without one choose consistency for "
            "enlargements, or consensus for colorings."
        )
    elif "colorize" in flow.capabilities.tasks:
        scores = palette_bits(flow, rgb, small, settings=settings)
    else:
        flow.require("upscale")
        scale, device = flow.condition_scale, next(flow.parameters()).device
        height, width = (side * scale for side in small.shape[-2:])
        if rgb.shape[-2:] != (height, width) or height % flow.size_multiple or width % flow.size_multiple:
            side = max(1, flow.size_multiple // scale)
            raise ShapeError(
                "likelihood needs images {scale} times as large as a source with sides divisible by {multiple}; got "
                "{size} for {source_size}. Leave the model's own scale, crop the source before it is enlarged, or "
                "choose consistency.",
                scale=scale,
                multiple=side,
                size=f"{rgb.shape[3]}x{rgb.shape[2]}",
                source_size=f"{small.shape[3]}x{small.shape[2]}",
            )
        rows: list[Tensor] = []
        for k, one in enumerate(small):
            part = settings.part(k / len(small), 1 / len(small))
            samples = rgb[k * each : (k + 1) * each].to(device)
            rows.append(score(flow, samples, one[None], complexity=False, **part).bits_per_dim.float().cpu())
        scores = torch.stack(rows)
    worse = -scores if by == "consistency" else scores.nan_to_num(nan=torch.inf)
    return scores, torch.argsort(worse, dim=1, stable=True)
