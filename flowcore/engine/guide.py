"""A guide: another enlargement of an image, whose latents are blended with those that are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Argument, ImageError, say
from ..flows.model import FlowModel
from ..flows.prior import number_or_map
from ..images.grid import remove_grid
from ..images.metrics import lr_psnr
from ..images.motion import blur
from ..images.resize import back_project, resize
from .image_batch import ImageBatch
from .options import GUIDE_STRENGTH, Strength
from .runner import Runner

NEARBY = 9  # latents: side of the window in which the rms of a guide's latents is measured
BOUND = 1.2  # highest ratio of that rms to drawn latents'; less blurs clips over time, more adds specks out of focus
SOFT, AROUND = 4, 16  # pixels: windows of the unsharp mask and of its contrast, standard deviations of 1.15 and 4.6
CRISP = 0.02  # rms of detail around a place at which the unsharp mask is half as strong
MATCHING = 6  # steps by which a guide is matched to the image, to 60 dB and more where nothing is clamped
NO_GUIDE = say("{guide_strength} is ignored: there is no guide.", guide_strength=Argument("guide_strength"))
SAME_SCENE = 20.0  # dB between an image and its shrunk guide; published upscalers have 27 and more


@dataclass(frozen=True)
class Guide:
    """A reference enlargement of every image, ``(B, 3, s * h, s * w)``, whose latents are blended in with weight a.

        guide = sharpen(guide, sharpness)                if it is the model's own
        g   = guide + match (matched - guide)            ``matched`` shrinks to the image, so only detail is the guide's
        z_g = f(g | lr)                                  what the model would have had to draw to make it
        z   = a z_g + sqrt(1 - a^2) tau eps              per level

    If z_g were a draw from the prior, z would be one for every a. That of a model's own guide follows the temperature,
    see ``defaults.guide_share``.

    Source: Neal, "Regression and classification using Gaussian process priors" (1998), for the sum; SRFlow, section
    4.3, for latents of another picture under an LR image. Blending them in is ours; see docs/decisions/0020.
    """

    pictures: Tensor | None  # None for the model's own
    strengths: list[Strength]  # one for each setting
    match: float = 0.0  # how far its pictures are changed to shrink to the images, see ``consistency.match_source``
    sharpness: float = 0.0  # amount of an unsharp mask on the model's own, whose edges are softer than a photograph's
    bounded: bool = False  # whether its latents are limited to the rms of drawn ones, see ``limit_rms``

    def picture(self, run: Runner, rgb: Tensor, item: int) -> Tensor:
        """Return the guide of an image of ``(B, 3, h, w)``, made of the whole image if it is the model's."""
        if self.pictures is not None:
            picture = self.pictures[item, None]
        else:
            with run.counting(run.compiled.guide_units):
                made = run.compiled.make_guide(rgb[item, None].to(run.device, run.dtype)).to(rgb)
            picture = remove_grid(made, rgb[item, None]).clamp_(0, 1)
            picture = sharpen(picture, self.sharpness).clamp_(0, 1)
        if self.match:
            matched = back_project(picture, rgb[item, None], MATCHING, check=run.check_cancelled)
            picture = picture.lerp(matched, self.match)
        return picture


def checked_strength(strength: Strength, images: int = 1) -> Strength:
    """Check the strength of a guide of some images."""
    value = number_or_map(strength, images, "guide strengths")
    for end in value.aminmax() if isinstance(value, Tensor) else [value]:
        GUIDE_STRENGTH.check("guide_strength", float(end))
    return value


def prepare_guide(
    run: Runner,
    flow: FlowModel,
    rgb: Tensor,
    strengths: Sequence[Strength],
    guide: Tensor | None,
    *,
    bounded: bool = False,
) -> Guide | None:
    """Check the guide of images ``(B, 3, h, w)``, and bring it to the size of the results."""
    strengths = [checked_strength(strength, len(rgb)) for strength in strengths]
    if not any(value.any() if isinstance(value, Tensor) else value for value in strengths):
        return None
    own = flow.recommended
    match = 1.0 if own.guide_match is None else own.guide_match
    if guide is None and flow.guide is None:
        run.notify(NO_GUIDE)
        return None
    if guide is None:
        return Guide(None, strengths, match, own.guide_sharpness or 0.0)
    try:
        pictures = ImageBatch(guide).extended_rgb.to(rgb.device)
    except ImageError as error:
        raise ImageError("The guide cannot be used. {error}", error=error) from error
    if len(pictures) not in (1, len(rgb)):
        raise ImageError(
            "Expected one guide for all, or one for each of {count} images; got {guides}.",
            count=len(rgb),
            guides=len(pictures),
        )
    height, width = (side * flow.condition_scale for side in rgb.shape[-2:])
    if pictures.shape[-2:] != (height, width):
        run.notify(
            "The guide has {size} pixels, and the model draws {drawn}: it was resized (bicubic).",
            size=f"{pictures.shape[3]}x{pictures.shape[2]}",
            drawn=f"{width}x{height}",
        )
        pictures = torch.cat([resize(picture[None], height, width).clamp(0, 1) for picture in pictures])
    alike = min(float(lr_psnr(pictures[k % len(pictures), None], image[None])) for k, image in enumerate(rgb))
    if alike < SAME_SCENE:
        run.notify(
            "The guide shows something other than the image: shrunk, it is {decibels} dB from it, and an "
            "enlargement of the image would be {expected} or more. It is used all the same.",
            decibels=f"{alike:.0f}",
            expected=f"{SAME_SCENE:.0f}",
        )
    return Guide(pictures.expand(len(rgb), -1, -1, -1), strengths, 0.0 if bounded else match, bounded=bounded)


def sharpen(picture: Tensor, amount: float) -> Tensor:
    """Sharpen pictures ``(B, C, H, W)`` by an unsharp mask, less where contrast is high: edges there would be outlined.

    Source: as in AMD's Contrast Adaptive Sharpening (Lottes, 2019), with the rms of detail as the contrast.
    """
    if not amount:
        return picture
    detail = picture - blur(picture, SOFT)
    contrast = blur(detail.square().mean(1, keepdim=True), AROUND)
    return picture + amount * CRISP**2 / (CRISP**2 + contrast) * detail


def limit_rms(latents: Tensor, spread: Tensor | float) -> Tensor:
    """Scale latents ``(B, C, H, W)`` down where their local rms far exceeds the ``spread`` of drawn ones."""
    rms = blur(latents.square().mean(1, keepdim=True), NEARBY).sqrt()
    return latents * (BOUND * spread / rms.clamp(min=1e-6)).clamp(max=1)


def drawn_share(a: Strength) -> Strength:
    """Compute ``sqrt(1 - a^2)``; resizing may have rounded a map to more than 1."""
    return (1 - a.square()).relu().sqrt() if isinstance(a, Tensor) else math.sqrt(1 - a * a)
