"""Verify: was a picture made by this model from this seed, and where was it changed since?

A flow is inverted exactly, so a picture leads back to the noise that it was drawn from, and the seed draws that noise
again. Nothing is embedded in pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.options import SEED, ReportOptions, python
from ..engine.ranges import Setting
from ..engine.runner import Runner, runs_with
from ..errors import FlowError, say
from ..flows.mark import mark_key
from ..flows.model import FlowModel
from ..flows.prior import check_seed
from .edits import Box, largest_boxes, least_share
from .examination import SMALLEST_CROP, VERIFIED, Examination, Match

REFUSED = {
    "labels": "A picture of a model with labels is verified by `score` and `encode` with its label only.",
    "low_light": "A brightened picture lacks what its condition, the dark photograph, shows.",
}
COLD = "A picture drawn at temperature 0 depends on no seed, so it cannot be verified."


@dataclass(frozen=True, eq=False, kw_only=True)
class Verification:
    """Whether pictures were made from a seed, or bear a mark. All tensors are on the CPU.

    Attributes:
        z: Agreement of the latents with the noise, ``(B,)``, float64: standard normal for pictures of any other origin,
            after allowance for the sizes and places that were tried (Bonferroni); 0 where that leaves nothing.
        verified: Whether z is at least 6, ``(B,)``, bool.
        agreement: Correlation of latents and noise near every pixel, ``(B, 1, H, W)`` in [-1, 1]: near 0 where a
            picture was edited. It is the more blurred, the weaker the agreement is.
        edited: How far agreement is below what is usual for such detail in the picture, ``(B, 1, H, W)`` in [0, 1]: 1
            where a picture was edited, 0 where nothing speaks for that; 1 all over pictures that are not verified.
        offset: Row and column of the picture's first pixel in the picture as it was made, ``(B, 2)``; 0 unless it is a
            crop.
        size: Height and width of the picture as it was made, ``(B, 2)``.
        mirrored: Whether it was mirrored since, left to right, ``(B,)``, bool.
        seeds: The seed of the noise that was compared with each picture, or the likeliest ``among`` many.
    """

    z: Tensor
    verified: Tensor
    agreement: Tensor
    edited: Tensor
    offset: Tensor
    size: Tensor
    mirrored: Tensor
    seeds: tuple[int, ...] = ()

    @property
    def edited_share(self) -> Tensor:
        """Share of the pixels where ``edited`` is above 0.5, ``(B,)``, float64."""
        return (self.edited > 0.5).double().mean((1, 2, 3))

    @property
    def is_edited(self) -> Tensor:
        """Whether a verified picture has more of that than most unedited ones, see ``edits.EDITED``; ``(B,)``, bool."""
        least = [least_share(level) for level in self.agreement.mean((1, 2, 3)).tolist()]
        return self.verified & (self.edited_share >= torch.tensor(least, dtype=torch.float64))

    @property
    def boxes(self) -> list[list[Box]]:
        """The three most edited places of each edited picture: left, top, right and bottom in its pixels."""
        height, width = self.edited.shape[-2:]
        maps = zip((self.edited[:, 0] > 0.5).float(), self.is_edited.tolist(), strict=True)
        return [largest_boxes(each, (height, width)) if is_edited else [] for each, is_edited in maps]


@dataclass(frozen=True, kw_only=True)
class VerifySettings(ReportOptions):
    """Options of ``verify``."""

    seed: Annotated[
        int | Sequence[int],
        SEED._replace(
            help="One for all pictures, or a list with that of each; sample s of an image was drawn with ``seed + s``."
        ),
    ] = 0
    mark: Annotated[
        str | None,
        Setting(
            unit="phrase",
            help="A phrase that the pictures are thought to bear, see ``prior.sample_latents``; ``seed`` is then "
            "ignored.",
        ),
    ] = None
    source: Annotated[
        Tensor | None,
        python(
            "What the pictures were made from, one or B images: their size tells that of the pictures. Needed for "
            "crops, unless ``size`` is given."
        ),
    ] = None
    size: Annotated[
        tuple[int, int] | None,
        python(
            "Height and width of the pictures as the model made them, before they were resized or cropped. None for "
            "their present size, and for usual ones."
        ),
    ] = None
    search: Annotated[
        bool,
        python("Whether to try other sizes, crops and mirrored pictures if the pictures as they are do not agree."),
    ] = True
    among: Annotated[
        Sequence[int] | None,
        python(
            "Seeds among which that of each picture is looked for, instead of ``seed``, such as ``range(100_000)``. "
            "Other sizes and crops are then not tried."
        ),
    ] = None


@runs_with(VerifySettings)
def verify(flow: FlowModel, pictures: Tensor, settings: VerifySettings) -> Verification:
    """Verify that pictures were made by a model from a seed, however they were stored, and show where they were edited.

    A picture is encoded, an enlargement given its own shrunk version, a coloring given its luma. For every level of the
    latents z, clamped to 4, and the noise n of the seed::

        z_level = sum(z n) / sqrt(sum(z^2))        z = sum over levels of z_level / sqrt(levels)

    which is standard normal if z and n are independent. Pictures may have been recompressed, resized, mirrored, or
    edited in part; cropped, too, if their size before is known. Settings other than the seed need not be known, but at
    temperature 0 there is no noise to verify.

    >>> flow = flowcore.load("glow-photos")
    >>> pictures = flowcore.sample(flow, 2, size=(64, 96), seed=7)
    >>> flowcore.verify(flow, pictures, seed=[7, 8]).verified.tolist()
    [True, True]
    >>> flowcore.verify(flow, pictures, among=range(1000)).seeds
    (7, 8)

    Args:
        flow: The model that is thought to have made them: one that enlarges, colorizes, restores (``restore``, at a
            temperature above 0) or samples, without labels.
        pictures: ``(B, C, H, W)`` in [0, 1], as in ``upscale``.
        settings: The options below, by name.

    Returns:
        The verification.

    Raises:
        FlowError: If the model makes no such pictures, the size is not one that it makes, or there is neither one seed
            nor one for each picture, nor any among which to look.
        ImageError: If the batch is empty, has a wrong number of channels, or values that are not numbers.

    Source: ours.
    """
    kind = flow.capabilities.source
    if kind in REFUSED or not flow.capabilities.tasks & {"upscale", "colorize", "sample", "rescale"}:
        raise FlowError(
            f"verify is for models that enlarge, colorize, restore, or sample without labels; got a "
            f"{flow.architecture} model. {REFUSED.get(kind, '')}".rstrip()
        )
    seed, mark, source, size = settings.seed, settings.mark, settings.source, settings.size
    seeds = [*map(check_seed, seed if isinstance(seed, Sequence) else [seed])]
    among = [*map(check_seed, settings.among or ())]
    if settings.among is not None and not among:
        raise FlowError("among must be at least one seed; got none.")
    key = None if mark is None else mark_key(mark)
    if source is not None and size is None:
        height, width = source.shape[-2:]
        size = height * flow.condition_scale, width * flow.condition_scale
    run = Runner(flow, settings, say("Pass fewer or smaller images."), pictures)

    def task() -> Verification:
        rgb = ImageBatch(pictures, run.notify).extended_rgb.cpu()
        searched = among if key is None else []
        units = max(1, len(searched))  # of progress, for each picture
        run.expect(units * len(rgb))
        if len(seeds) not in (1, len(rgb)):
            raise FlowError(f"seed must be one, or one for each of {len(rgb)} pictures; got {len(seeds)} seeds.")
        results: list[Match] = []
        sources = seeds * (len(rgb) // len(seeds)) if key is None else [key] * len(rgb)
        for picture, drawn_with in zip(rgb.split(1), sources, strict=True):
            examination, counted = Examination(run, flow, picture, drawn_with, size), list[int]()

            def report(compared: int, counted: list[int] = counted) -> None:
                counted.append(compared)
                run.advance(compared)

            if searched:
                results.append(examination.among(searched, search=settings.search, report=report))
            else:
                results.append(examination(search=settings.search))
            run.advance(units - sum(counted))
        z = torch.tensor([result.z for result in results], dtype=torch.float64)
        return Verification(
            z=z,
            verified=z >= VERIFIED,
            agreement=torch.cat([result.agreement for result in results]),
            edited=torch.cat([each.edited if each.z >= VERIFIED else torch.ones_like(each.edited) for each in results]),
            offset=torch.tensor([result.place.crop or (0, 0) for result in results]),
            size=torch.tensor([result.place.size for result in results]),
            mirrored=torch.tensor([result.place.mirrored for result in results]),
            seeds=tuple(each.seed if isinstance(each.seed, int) else 0 for each in results),
        )

    return run.retry_on_oom(task)


def may_be_crops(flow: FlowModel, pictures: Tensor) -> bool:
    """Tell whether ``verify`` would find where pictures ``(B, C, H, W)`` were cropped, if their size were given."""
    return min(pictures.shape[-2:]) >= SMALLEST_CROP and flow.capabilities.source != "luma"
