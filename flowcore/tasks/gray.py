"""Gray stays gray: what is made of an image without color has no color, although models make colors of their own."""

from __future__ import annotations

from torch import Tensor

from ..images.color import luma
from .runner import Runner


def gray_images(run: Runner, image: Tensor, rgb: Tensor) -> list[bool]:
    """Tell of which images all three channels are equal; notify the run where they are stored as color images.

    ``image`` is as the caller passed it, ``(B, C, H, W)``, C = 1, 3 or 4; ``rgb`` as ``validate_image`` returns it.
    """
    gray = [bool((one == one[:1]).all()) for one in rgb]
    if image.shape[1] != 1 and any(gray):
        which, them = ("The image is", "it") if len(gray) == 1 else (f"{sum(gray)} of {len(gray)} images are", "them")
        run.notify(f"{which} gray, in three equal channels, and so is what is made of {them}.")
    return gray


def without_color(rgb: Tensor) -> Tensor:
    """Replace all channels of an image ``(3, H, W)`` by its luma."""
    return luma(rgb[None])[0].expand(3, -1, -1)


def with_channels_of(image: Tensor, pictures: Tensor, gray: list[bool]) -> Tensor:
    """Make pictures ``(B * N, 3, H, W)`` of gray images exactly gray, in place: resizing may have rounded them.

    Of images of one channel the result is ``(B * N, 1, H, W)``.
    """
    if image.shape[1] == 1:
        return pictures[:, :1].contiguous()
    for is_gray, made in zip(gray, pictures.unflatten(0, (len(gray), -1)), strict=True):
        if is_gray:
            made[:, 1:] = made[:, :1]
    return pictures
