"""Ranking: how much samples differ and where, and which of them is best."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import FlowError, ShapeError
from ..flow import Flow
from .consistency import consistency, samples_per_source
from .options import Reporting, part_of_run, runs_with
from .plausibility import consensus, palette_bits
from .runner import log, validate_image
from .score import score

By = Literal["consistency", "likelihood", "consensus"]
"""How nearly a sample shrinks to its source, in dB, most first; or how many bits per dimension the model needs for it,
fewest first (of colorings: for their palettes, see ``plausibility``); or how far a coloring is from the other colorings
of its photograph, nearest first."""


LEVEL = 0.1  # dB of consistency within which no sample is the better one


@torch.no_grad()
def diversity_map(images: Tensor, samples: int = 0) -> Tensor:
    """Compute the standard deviation of samples at every pixel, averaged over the channels: ``(B, 1, H, W)``.

    Of ``(B * N, C, H, W)``: all N samples of image 0, then of image 1; 0 samples if all are of one image. Alpha is
    ignored. Its mean is ``metrics.diversity`` / 255.
    """
    rgb = validate_image(images)[0].cpu()
    each = samples or len(rgb)
    if each < 2 or len(rgb) % each:
        raise ShapeError(
            f"Expected at least 2 samples of every picture, and as many of each; got {len(rgb)} images and {each} "
            "samples. Draw more, or say how many belong together; 0 takes all for samples of one picture."
        )
    return rgb.unflatten(0, (-1, each)).std(1, correction=0).mean(1, keepdim=True)


@runs_with(Reporting)
def ranked(
    images: Tensor,
    source: Tensor,
    by: By = "consistency",
    flow: Flow | None = None,
    **options: Unpack[Reporting],
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
        options: How to run, see ``RunOptions``.

    Returns:
        The scores, ``(B, N)`` in the order of the images, and the indices of every image's samples, best first,
        ``(B, N)``. Equal samples keep their order; those without a finite score come last.

    Raises:
        ShapeError: If the number of images is not a multiple of the number of sources, or the flow makes other sizes.
        FlowError: If the flow is missing or makes no such samples, ``by`` is unknown, or memory does not suffice.
        ImageError: If either is no valid image.
        Cancelled: If stopped.
    """
    if by not in get_args(By):
        raise FlowError(f"by must be one of {', '.join(get_args(By))}; got {by!r}.")
    rgb, small = validate_image(images)[0], validate_image(source)[0]
    each = samples_per_source(rgb, small)
    if by == "consensus":
        scores = consensus(rgb, small)
        return scores, torch.argsort(scores, dim=1, stable=True)
    if by == "consistency":
        if rgb.shape[-2:] == small.shape[-2:]:
            (options.get("notify") or log.warning)(
                "consistency compares enlargements with their source; these are as large as it. Choose consensus for "
                "colorings."
            )
        scores = consistency(rgb, small).view(-1, each)
        spread = float((scores.amax(1) - scores.amin(1)).nan_to_num(nan=0.0).max())
        if each > 1 and spread < LEVEL:
            (options.get("notify") or log.warning)(
                f"The samples are level: their consistency differs by {spread:.2g} dB. Choose likelihood, or by eye."
            )
        return scores, torch.argsort(scores, dim=1, descending=True, stable=True)
    if flow is None:
        raise FlowError(
            "likelihood needs the model that made the samples; got none. Without one choose consistency for "
            "enlargements, or consensus for colorings."
        )
    if "colorize" in flow.capabilities.tasks:
        scores = palette_bits(flow, rgb, small, **options)
        return scores, torch.argsort(scores.nan_to_num(nan=torch.inf), dim=1, stable=True)
    flow.require("upscale")
    scale, device = flow.condition_scale, next(flow.parameters()).device
    height, width = (side * scale for side in small.shape[-2:])
    if rgb.shape[-2:] != (height, width) or height % flow.size_multiple or width % flow.size_multiple:
        side = max(1, flow.size_multiple // scale)
        raise ShapeError(
            f"likelihood needs images {scale} times as large as a source with sides divisible by {side}; got "
            f"{rgb.shape[3]}x{rgb.shape[2]} for {small.shape[3]}x{small.shape[2]}. Leave the model's own scale, crop "
            "the source before it is enlarged, or choose consistency."
        )
    rows: list[Tensor] = []
    for k, one in enumerate(small):
        part = part_of_run(options, k / len(small), 1 / len(small))
        samples = rgb[k * each : (k + 1) * each].to(device)
        made = score(flow, samples, one[None], complexity=False, **part)
        rows.append(made.bits_per_dim.float().cpu())
    scores = torch.stack(rows)
    return scores, torch.argsort(scores.nan_to_num(nan=torch.inf), dim=1, stable=True)
