"""Images as callers pass them: checked, converted to floats in [0, 1], and given back their channels at the end.

Gray stays gray: what is made of an image without color has no color, although models make colors of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ImageError
from ..images.color import luma
from ..images.resize import resize

LARGEST = {torch.uint8: 255, torch.uint16: 65535}  # value of integers, white


def require_tensor(image: object) -> None:
    """Refuse what is no tensor as an ImageError, and say how to make one of it."""
    if isinstance(image, Tensor):
        return
    kind = f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"
    how = {
        "numpy": "torch.from_numpy(array).permute(2, 0, 1)[None], of an array (H, W, C) of uint8, or floats in [0, 1]",
        "PIL": "torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None], of an RGB image",
    }.get(kind.split(".")[0], "flowcore.images.files.read(content, name).pixels, of the bytes of an image file")
    raise ImageError(f"Expected images as a tensor (B, C, H, W); got {kind}. Make one: {how}.")


def require_pixels(image: Tensor) -> None:
    """Refuse a batch without images, or images without pixels, as an ImageError."""
    if 0 in image.shape:
        raise ImageError(
            f"The batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least one image."
        )


def validate_image(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Check an image that is passed to a task: ``(B, 3, H, W)`` float32 in [0, 1], and alpha ``(B, 1, H, W)`` if any.

    It has 1 (gray), 3 or 4 channels (with alpha), floats of any precision in [0, 1], uint8 in [0, 255] or uint16 in [0,
    65535]; values outside are clamped. ImageError if it is of another kind, empty, or holds NaN or infinity.
    """
    require_tensor(image)
    if image.ndim != 4 or image.shape[1] not in (1, 3, 4):
        raise ImageError(f"Expected images of shape (B, C, H, W), C = 1, 3 or 4; got {tuple(image.shape)}.")
    image = to_float(image, torch.float32).clamp(0, 1)
    return image[:, :3].expand(-1, 3, -1, -1), image[:, 3:] if image.shape[1] == 4 else None


def with_alpha(pictures: Tensor, alpha: Tensor | None) -> Tensor:
    """Append the alpha of B images, if they have any, to pictures ``(B * N, 3, H, W)``, by a bicubic resize."""
    if alpha is None:
        return pictures
    alpha = resize(alpha, *pictures.shape[-2:]).clamp(0, 1)
    return torch.cat([pictures, alpha.repeat_interleave(len(pictures) // len(alpha), 0)], dim=1)


def to_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert images of at least one pixel, uint8, uint16 or finite float in [0, 1], to a float type; no clamping."""
    require_pixels(image)
    if image.dtype not in LARGEST and not image.is_floating_point():
        raise ImageError(f"Expected images of uint8 or uint16, or float in [0, 1]; got {image.dtype}. Convert them.")
    image = image.to(dtype) / LARGEST[image.dtype] if image.dtype in LARGEST else image.to(dtype)
    wrong = int((~image.isfinite()).sum())
    if wrong:
        raise ImageError(
            f"The image holds {wrong} values that are not finite numbers (NaN or infinity). Fix the node or file "
            "that it comes from."
        )
    refuse_integer_range(image)
    return image


def refuse_integer_range(image: Tensor) -> None:
    """Refuse floats in [0, 255] or [0, 65535], which would be white: brighter on average than white, none negative."""
    low, high = (float(value) for value in image.aminmax())
    if low >= 0 and 4 < high <= 65536 and float(image.mean()) > 1:
        largest = 255 if high <= 256 else 65535  # bfloat16 rounds up
        raise ImageError(
            f"The image's floats go from {low:g} to {high:g}; expected [0, 1], and these look like [0, {largest}]. "
            f"Divide them by {largest}, or convert them to uint{8 if largest == 255 else 16}."
        )


def gray_images(image: Tensor, rgb: Tensor, notify: Callable[[str], None]) -> list[bool]:
    """Tell of which images all three channels are equal; ``notify`` is told where they are stored as color images.

    ``image`` is as the caller passed it, ``(B, C, H, W)``, C = 1, 3 or 4; ``rgb`` as ``validate_image`` returns it.
    """
    gray = [bool((one == one[:1]).all()) for one in rgb]
    if image.shape[1] != 1 and any(gray):
        which, them = ("The image is", "it") if len(gray) == 1 else (f"{sum(gray)} of {len(gray)} images are", "them")
        notify(f"{which} gray, in three equal channels, and so is what is made of {them}.")
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
