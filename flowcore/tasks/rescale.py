"""Rescale: ``shrink`` encodes photographs and keeps only their LR images; ``restore`` draws the other latents anew."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import ImageError
from ..images.color import as_stored
from ..images.resize import resize
from ..model import FlowModel
from .image_batch import ImageBatch
from .runner import Reporting, Runner, RunOptions, runs_with
from .settings import RestoreSettings
from .tiles import TiledDecoder, pad_by_reflection
from .upscale import TILING

UNMARKED = (
    "This picture bears no mark of Flow Shrink. If an earlier version shrank it, all is well; if it was made otherwise "
    "or changed since, as by JPEG, it is enlarged, but not well: use Flow Upscale."
)
MIN_MARKED_PIXELS = 16  # of a small picture; in smaller ones a mark may occur by chance
MARKED_PIXELS = 64  # that bear the mark of a small picture in color
SHRINK_ADVICE = "Shrink a smaller image, or free memory on the device."
RESTORE_ADVICE = "Set tile to 32, ask for fewer samples, restore a smaller image, or free memory on the device."


@runs_with(Reporting)
def shrink(flow: FlowModel, image: Tensor, **options: Unpack[Reporting]) -> Tensor:
    """Shrink photographs to small pictures that ``restore`` brings back.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> flowcore.shrink(flow, torch.rand(1, 3, 48, 64)).shape
    torch.Size([1, 3, 12, 16])

    Args:
        flow: A rescaling model.
        image: As in ``upscale``, ``(B, C, H, W)``. Sides that the model's scale does not divide are extended to the
            right and below. Small pictures of gray images have color, too, which carries detail. A watermark tells
            ``restore`` which are of gray images, and which were not made here, see ``mark``.

    Returns:
        ``(B, 3 or 4, ceil(H / s), ceil(W / s))`` float32 in [0, 1], rounded to 8 bits, on the device of ``image``.
        Store it without loss: JPEG destroys what it holds.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If the model does not rescale, or memory does not suffice.

    Source: Xiao et al., "Invertible Image Rescaling" (ECCV 2020); Liang et al., "Hierarchical Conditional Flow" (2021),
    section 3.
    """
    flow.require("rescale")
    run = Runner(flow, RunOptions(**options), SHRINK_ADVICE, image)

    def task() -> Tensor:
        images = ImageBatch(image, run.notify)
        scale, (height, width) = flow.condition_scale, images.rgb.shape[-2:]
        right, below = -width % scale, -height % scale
        border = (0, right, 0, below)
        if right or below:
            run.notify(
                f"The image was extended from {width}x{height} to {width + right}x{height + below}: its sides must be "
                f"divisible by {scale}. Crop what comes back to {width}x{height}."
            )
        run.expect(len(images.rgb))
        small: list[Tensor] = []
        for item, is_gray in zip(images.extended_rgb.split(1), images.is_gray, strict=True):
            run.check_cancelled()
            padded = pad_by_reflection(item, border).to(run.device, run.dtype)
            small.append(mark(run.plan.reduce(padded).to(image.device, torch.float32), gray=is_gray))
            run.advance(preview=small[-1][0])
        result = torch.cat(small)
        if images.alpha is None:
            return result
        alpha = resize(pad_by_reflection(images.alpha, border), *result.shape[-2:])
        return torch.cat([result, as_stored(alpha)], dim=1)

    return run(task)


@runs_with(RestoreSettings)
def restore(flow: FlowModel, small: Tensor, settings: RestoreSettings) -> Tensor:
    """Restore photographs from the small pictures that ``shrink`` made of them.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> small = flowcore.shrink(flow, torch.rand(1, 3, 45, 64))
    >>> flowcore.restore(flow, small, size=(45, 64)).shape
    torch.Size([1, 3, 45, 64])

    Args:
        flow: The rescaling model that shrank them; another gives a wrong picture.
        small: ``(B, C, h, w)`` in [0, 1], as ``shrink`` returns it or uint8. A picture that was shrunk otherwise is
            enlarged, but not well. Pictures that are gray, or were shrunk from gray ones, stay gray.
        settings: The options below, by name.

    Returns:
        ``(B * samples, C, s * h, s * w)``, or of ``size``, float32 in [0, 1] on the device of ``small``: all
        samples of picture 0, then of picture 1.

    Raises:
        ImageError: As in ``upscale``; or if ``size`` is not what shrinks to the picture's size.
        FlowError: If the model does not rescale, or as in ``upscale``.
    """
    flow.require("rescale")
    settings, size = settings.resolved(flow), settings.size
    run = Runner(flow, settings, RESTORE_ADVICE, small)
    decoder = TiledDecoder(TILING, run, flow, settings)

    def task() -> Tensor:
        images = ImageBatch(small, run.notify)
        rgb = images.rgb
        scale, sides = flow.condition_scale, tuple(rgb.shape[-2:])
        height, width = (side * scale for side in sides) if size is None else size
        if (math.ceil(height / scale), math.ceil(width / scale)) != sides:
            raise ImageError(
                f"size must be that of an image which shrinks {scale} times to {sides[0]}x{sides[1]} (height x width), "
                f"such as {sides[0] * scale}x{sides[1] * scale}; got {height}x{width}."
            )
        is_gray = [gray or is_of_gray(one) for gray, one in zip(images.is_gray, rgb, strict=True)]
        if not all(map(is_marked, rgb)):
            run.notify(UNMARKED)
        pictures = decoder(rgb, [settings], is_gray)
        return images.like_input(pictures)[..., :height, :width]

    return run(task, decoder.tiles.halve)


def mark(small: Tensor, *, gray: bool) -> Tensor:
    """Round a small picture ``(1, 3, h, w)`` to 8 bits with a watermark: made by ``shrink``, from a gray image or not.

    The mark is the parity of red + green + blue, in 255ths, set by rounding blue up or down: it follows a pattern in
    all pixels of a gray image, and is opposite to the pattern in the first pixels of an image in color.
    """
    exact = small.clamp(0, 1) * 255
    rounded = exact.round()
    round_up = (exact[:, 2] > rounded[:, 2]) | (rounded[:, 2] == 0)
    change = _breaks_pattern(rounded)
    if not gray:
        change = ~change & (torch.arange(change.numel(), device=change.device).view_as(change) < MARKED_PIXELS)
    rounded[:, 2] += torch.where(round_up, 1, -1) * change
    return rounded / 255


def is_of_gray(small: Tensor) -> bool:
    """Tell whether a small picture ``(3, h, w)`` bears the mark of a gray image; tiny ones may by chance."""
    return _off_share(small, small[0].numel()) == 0


def is_marked(small: Tensor) -> bool:
    """Tell whether a picture ``(3, h, w)`` bears a mark of ``mark``, or is too small for one."""
    return small[0].numel() < MIN_MARKED_PIXELS or is_of_gray(small) or _off_share(small, MARKED_PIXELS) == 1


def _off_share(small: Tensor, count: int) -> float:
    """Return the share of the first pixels of ``(3, h, w)`` that break the pattern; 0.5 if it cannot be marked."""
    rounded = (255 * small[None]).round()
    if small[0].numel() < MIN_MARKED_PIXELS or not torch.allclose(rounded / 255, small[None], atol=1e-3):
        return 0.5
    return _breaks_pattern(rounded).flatten()[:count].float().mean().item()


def _breaks_pattern(rounded: Tensor) -> Tensor:
    """Mark sums of channels ``(1, 3, h, w)`` of the wrong parity; by diagonal it should be 0, 1, 1, 0, repeated."""
    row, column = (torch.arange(side, device=rounded.device) for side in rounded.shape[-2:])
    diagonal = row[:, None] + column
    return (rounded.sum(1) + diagonal * (diagonal + 1) // 2) % 2 != 0
