"""Images as callers pass them to tasks: checked, as floats in [0, 1]; and results in the form of these images."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ImageError, say
from ..images.fill import extend_colors
from ..images.resize import resize, resize_bilinear

MAX_STRETCH = 0.02  # difference of a mask's shape from its image's: its size may have been rounded
WHITE = {torch.uint8: 255, torch.uint16: 65535}  # white of each integer type


class ImageBatch:
    """The images that a task is given, from any valid tensor; and how results get their form.

    Attributes:
        rgb: ``(B, 3, H, W)`` float32 in [0, 1], as passed.
        alpha: ``(B, 1, H, W)``, None for opaque images.
    """

    def __init__(self, image: Tensor, notify: Callable[[str], None] | None = None) -> None:
        """Check images; ``notify`` is called if their floats look like [-1, 1]."""
        require_tensor(image)
        if image.ndim != 4 or image.shape[1] not in (1, 3, 4):
            raise ImageError(f"Expected images of shape (B, C, H, W), C = 1, 3 or 4; got {tuple(image.shape)}.")
        self.channels, self.device = image.shape[1], image.device
        pixels = to_float(image, torch.float32).clamp(0, 1)
        if notify is not None:
            notify_of_range(image, notify)
        self.rgb = pixels[:, :3].expand(-1, 3, -1, -1)
        self.alpha = pixels[:, 3:] if self.channels == 4 else None

    @cached_property
    def extended_rgb(self) -> Tensor:
        """``rgb``, with visible colors continued where alpha is 0: hidden ones would show at the edges of results."""
        return self.rgb if self.alpha is None else extend_colors(self.rgb, self.alpha)

    @cached_property
    def is_gray(self) -> list[bool]:
        """Whether each image has one channel or three equal ones."""
        return [bool((image == image[:1]).all()) for image in self.extended_rgb]

    def to_input_layout(self, pictures: Tensor, *, alpha: bool = True) -> Tensor:
        """Give results ``(B * N, 3, H, W)``, N per image, the device, the channels and the ``alpha`` of the images.

        Results of gray images become exactly gray; this changes ``pictures`` itself.
        """
        if self.channels == 1:
            pictures = pictures[:, :1].contiguous()
        else:
            for is_gray, results in zip(self.is_gray, pictures.unflatten(0, (len(self.rgb), -1)), strict=True):
                if is_gray:
                    results[:, 1:] = results[:, :1]
        return append_alpha(pictures.to(self.device), self.alpha if alpha else None)


def append_alpha(pictures: Tensor, alpha: Tensor | None) -> Tensor:
    """Append the alpha of B images, if they have any, to pictures ``(B * N, 3, H, W)``, by a bicubic resize."""
    if alpha is None:
        return pictures
    alpha = resize(alpha, *pictures.shape[-2:]).clamp(0, 1)
    return torch.cat([pictures, alpha.repeat_interleave(len(pictures) // len(alpha), 0)], dim=1)


def fit_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize masks ``(B, 1, h, w)`` to the height and width of their images, bilinear; see ``check_proportions``."""
    check_proportions(mask, height, width)
    return resize_bilinear(mask.float(), (height, width))


def check_proportions(mask: Tensor, height: int, width: int) -> None:
    """Raise ImageError unless the proportions of masks ``(B, 1, h, w)`` are those of their images, within 2 %.

    A mask of another picture would be stretched over them. A mask of one value, such as ComfyUI's of a picture without
    transparency, fits every image.
    """
    rows, columns = mask.shape[-2:]
    is_uniform = bool((mask == mask.flatten()[0]).all())
    if abs(columns * height / (rows * width) - 1) > MAX_STRETCH and not is_uniform:
        raise ImageError(
            "The mask has {mask_size} pixels and the image {size}: their proportions differ by more than 2 %. Make the "
            "mask from this image, or crop it as the image was cropped.",
            mask_size=f"{columns}x{rows}",
            size=f"{width}x{height}",
        )


def require_tensor(image: object) -> None:
    """Raise ImageError unless an image is a tensor, and say how to convert it."""
    if isinstance(image, Tensor):
        if image.is_meta:
            raise ImageError("The images are on the device meta, which holds no values. Pass images of another device.")
        return
    kind = f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"
    how = {
        "numpy": "torch.from_numpy(array).permute(2, 0, 1)[None], of an array (H, W, C) of uint8, or floats in [0, 1]",
        "PIL": "torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None], of an RGB image",
    }.get(kind.split(".")[0], "flowcore.images.files.read(content, name).pixels, of the bytes of an image file")
    raise ImageError(f"Expected images as a tensor (B, C, H, W); got {kind}. Make one: {how}.")


def require_pixels(image: Tensor) -> None:
    """Raise ImageError unless a batch is a tensor of images with pixels."""
    require_tensor(image)
    if 0 in image.shape:
        raise ImageError(
            f"The batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least one image."
        )


def to_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert images of at least one pixel, uint8, uint16 or finite float in [0, 1], to a float type; no clamping."""
    require_pixels(image)
    if image.dtype not in WHITE and not image.is_floating_point():
        raise ImageError(f"Expected images of uint8 or uint16, or float in [0, 1]; got {image.dtype}. Convert them.")
    image = image.to(dtype) / WHITE[image.dtype] if image.dtype in WHITE else image.to(dtype)
    invalid = int((~image.isfinite()).sum())
    if invalid:
        raise ImageError(
            "The image holds {count} values that are not finite numbers (NaN or infinity). Fix the node or file that "
            "it comes from.",
            count=invalid,
        )
    refuse_integer_range(image)
    return image


def notify_of_range(image: Tensor, notify: Callable[[str], None]) -> None:
    """Tell the caller if floats look like [-1, 1]."""
    if not image.is_floating_point() or not image.numel():
        return
    low, high = (float(value) for value in image.detach().aminmax())
    if low < -0.5 and high < 1.5:
        notify(
            say(
                "The image's floats go from {low} to {high}; expected [0, 1]. If they are in [-1, 1], pass (image + 1) "
                "/ 2.",
                low=f"{low:g}",
                high=f"{high:g}",
            )
        )


def refuse_integer_range(image: Tensor) -> None:
    """Raise ImageError for floats that look like [0, 255] or [0, 65535]: none negative, the mean above 1."""
    low, high = (float(value) for value in image.detach().aminmax())
    if low >= 0 and 4 < high <= 65536 and float(image.mean()) > 1:
        largest = 255 if high <= 256 else 65535  # bfloat16 rounds up
        raise ImageError(
            f"The image's floats go from {low:g} to {high:g}; expected [0, 1], and these look like [0, {largest}]. "
            f"Divide them by {largest}, or convert them to uint{8 if largest == 255 else 16}."
        )
