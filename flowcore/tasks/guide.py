"""The guide: another enlargement of the same image, a part of whose latents is kept.

    z_g = f(guide | lr)                              what the model would have had to draw to make the guide
    z   = a z_g + sqrt(1 - a^2) tau eps              per level

If z_g were a draw from the prior, z would be one for every a. 0 is sampling without a guide, 1 gives the guide back.

Source: Neal, "Regression and classification using Gaussian process priors" (1998), for the move; SRFlow, section 4.3,
for latents of another picture under an LR image. Keeping a part of them is ours; see docs/decisions/0020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.motion import blur
from ..images.resize import resize
from ..prior import number_or_map
from ..quality.metrics import lr_psnr
from .intake import resolve, validate_image
from .runner import Runner

Strength = float | Tensor
"""a, in [0, 1]: a number, or a map ``(1 or B, 1, any height, any width)`` that covers the image."""

NEARBY = 9  # latents: the window of a local rms
BOUND = 1.2  # of that rms; less blurs films in the long run, more lets specks grow in what is out of focus
SAME_SCENE = 20.0  # dB between an image and its shrunk guide; published upscalers have 27 and more


@dataclass(frozen=True)
class Guide:
    """A guide for every image, ``(B, 3, s * h, s * w)`` in [0, 1], None for the model's own; and its strength.

    If it is bounded, its latents deviate nowhere far more than those that are drawn, see ``bounded``.
    """

    pictures: Tensor | None
    strength: Strength
    bounded: bool = False


def own_strength(flow: Flow, guide: Tensor | None, strength: Strength | None) -> Strength:
    """Check a strength; where it is None, fill in the model's own, see ``left_to_model``."""
    strength = resolve(flow, {"guide": guide, "guide_strength": strength})["guide_strength"]
    assert strength is not None
    images = len(strength) if isinstance(strength, Tensor) and strength.ndim else 1
    value = number_or_map(strength, images, "guide strengths")
    low, high = (float(end) for end in value.aminmax()) if isinstance(value, Tensor) else (value, value)
    if not (low >= 0 and high <= 1):
        raise FlowError(
            f"guide_strength must lie in [0, 1]; got {low if not low >= 0 else high}. 0 ignores the guide, 1 gives it "
            "back."
        )
    return value


def prepare_guide(
    run: Runner, flow: Flow, rgb: Tensor, guide: Tensor | None, strength: Strength, bounded: bool = False
) -> Guide | None:
    """Check a guide of images ``(B, 3, h, w)``, and bring it to the size that the model draws; None for no guide."""
    if not (strength.any() if isinstance(strength, Tensor) else strength):
        return None
    number_or_map(strength, len(rgb), "guide strengths")
    if guide is None and flow.guide is None:
        run.notify("guide_strength is ignored: there is no guide.")
        return None
    if guide is None:
        return Guide(None, strength)
    try:
        pictures = validate_image(guide)[0].to(rgb.device)
    except ImageError as error:
        raise ImageError(f"The guide cannot be used. {error}") from error
    if len(pictures) not in (1, len(rgb)):
        raise ImageError(f"Expected one guide for all, or one for each of {len(rgb)} images; got {len(pictures)}.")
    height, width = (side * flow.condition_scale for side in rgb.shape[-2:])
    if pictures.shape[-2:] != (height, width):
        run.notify(
            f"The guide has {pictures.shape[3]}x{pictures.shape[2]} pixels, and the model draws {width}x{height}: it "
            "was resized (bicubic)."
        )
        pictures = torch.cat([resize(picture[None], height, width).clamp(0, 1) for picture in pictures])
    alike = min(float(lr_psnr(pictures[k % len(pictures), None], image[None])) for k, image in enumerate(rgb))
    if alike < SAME_SCENE:
        run.notify(
            f"The guide shows something else than the image: shrunk, it is {alike:.0f} dB from it, and an enlargement "
            f"of the image would be {SAME_SCENE:.0f} or more. What it shows is drawn all the same."
        )
    return Guide(pictures.expand(len(rgb), -1, -1, -1), strength, bounded)


def bounded(latents: Tensor, spread: Tensor | float) -> Tensor:
    """Scale latents ``(B, C, H, W)`` down where their local rms far exceeds the ``spread`` of those that are drawn."""
    rms = blur(latents.square().mean(1, keepdim=True), NEARBY).sqrt()
    return latents * (BOUND * spread / rms.clamp(min=1e-6)).clamp(max=1)


def drawn_share(a: Strength) -> Strength:
    """Compute ``sqrt(1 - a^2)``; resizing may have rounded a map to more than 1."""
    return (1 - a.square()).relu().sqrt() if isinstance(a, Tensor) else math.sqrt(1 - a * a)
