"""The bicubic resize of the super-resolution literature: MATLAB's ``imresize``, which made the papers' LR images.

Also resizes by other kernels, padding, and pictures read at arbitrary points.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import no_autocast, or_on_cpu
from ..errors import ShapeError

# Torch has the kernel (Keys' with a = -0.5, stretched when shrinking) but truncates it at the border, so we pad.
PADDING = 4  # pixels of the coarser grid; the kernel reaches 2
STOP_DB = 70.0  # PSNR at which back-projection ends early
STEP = 1.6  # any step in (0, 2) converges: 25 to 100 % of a correction remain when it is enlarged and shrunk


def downsample(image: Tensor, factor: int) -> Tensor:
    """Shrink ``(B, C, H, W)`` by an integer factor, which divides H and W; not clamped: bicubic overshoots at edges."""
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ShapeError(
            f"Shrinking by {factor} needs sides divisible by {factor}; got {height}x{width}. Crop the image first."
        )
    return _resize(image, PADDING * factor, (height // factor, width // factor), PADDING)


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Enlarge ``(B, C, h, w)`` by an integer factor: the baseline of every paper; not clamped."""
    height, width = image.shape[-2:]
    return _resize(image, PADDING, (height * factor, width * factor), PADDING * factor)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize ``(B, C, H, W)`` to any size, not clamped: by ``enlarge`` or ``downsample`` if a factor fits both."""
    old_height, old_width = image.shape[-2:]
    factor = height // old_height
    if factor and (height, width) == (old_height * factor, old_width * factor):
        return enlarge(image, factor)
    factor = old_height // height
    if factor and (old_height, old_width) == (height * factor, width * factor):
        return downsample(image, factor)
    with no_autocast(image.device):  # no padding, so at the border two pixels of the coarser grid differ
        return _interpolate(image, (height, width), "bicubic")


def _resize(image: Tensor, pad_in: int, size: tuple[int, int], pad_out: int) -> Tensor:
    """Pad by ``pad_in`` pixels, resize so that the padding becomes ``pad_out`` pixels, and crop it."""
    height, width = size
    with no_autocast(image.device):
        canvas = pad_symmetric(image, pad_in)
        canvas = _interpolate(canvas, (height + 2 * pad_out, width + 2 * pad_out), "bicubic")
    return canvas[..., pad_out : pad_out + height, pad_out : pad_out + width]


def resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize to any height and width: bilinear, antialiased when shrinking; values stay within their range."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return _interpolate(image, size, "bilinear")


def _interpolate(image: Tensor, size: Sequence[int], mode: str) -> Tensor:
    return or_on_cpu(partial(F.interpolate, size=tuple(size), mode=mode, antialias=True), image)


def limit_shorter_side(image: Tensor, side: int) -> Tensor:
    """Shrink so that the shorter side has at most so many pixels, as ``resize_bilinear`` does."""
    factor = min(1.0, side / min(image.shape[-2:]))
    return resize_bilinear(image, [max(1, round(n * factor)) for n in image.shape[-2:]])


def back_project(x: Tensor, y: Tensor, iterations: int, *, check: Callable[[], None]) -> Tensor:
    """Change an enlargement ``(1, C, H, W)`` to shrink to its source ``(1, C, h, w)``, see ``tasks.consistency``."""
    for _ in range(iterations):
        check()
        missing = y - resize(x, *y.shape[-2:])
        if float(missing.square().mean()) <= 10 ** (-STOP_DB / 10):
            break
        x = resize(missing, *x.shape[-2:]).mul_(STEP).add_(x).clamp_(0, 1)
    return x


def pad_symmetric(image: Tensor, border: int | tuple[int, int, int, int]) -> Tensor:
    """Pad all sides, or left, right, top and bottom, by reflection that repeats the border pixel, by any amount."""
    left, right, top, bottom = (border,) * 4 if isinstance(border, int) else border
    for dim, before, after in ((-2, top, bottom), (-1, left, right)):
        n = image.shape[dim]
        index = torch.arange(-before, n + after, device=image.device) % (2 * n)
        image = image.index_select(dim, torch.minimum(index, 2 * n - 1 - index))
    return image


def sample_points(image: Tensor, points: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Interpolate ``(B, C, H, W)`` at points ``(h, w, 2)``, (x, y) in pixels, the middle of the first at (0, 0).

    ``kernel`` maps the fractional parts of coordinates, ``(h, w)`` in [0, 1), to the weights of the pixels around,
    ``(taps, h, w)``. The border's pixels continue beyond it. ``F.grid_sample`` has only Keys' kernel with
    a = -0.75, whose results differ by up to 3/255 in photographs.
    """
    before = points.floor()
    across, down = (kernel(distances) for distances in (points - before).to(image).unbind(-1))
    x, y = (before.long().to(image.device) + 1 - len(across) // 2).unbind(-1)  # position of the first tap
    result = image.new_zeros(*image.shape[:2], *points.shape[:2])
    for j, i in product(range(len(down)), range(len(across))):
        rows, columns = (y + j).clamp(0, image.shape[-2] - 1), (x + i).clamp(0, image.shape[-1] - 1)
        result += image[..., rows, columns] * (down[j] * across[i])
    return result


def keys_cubic(t: Tensor) -> Tensor:
    """Compute the weights of Keys' cubic kernel, a = -0.5, for ``sample_points``."""
    inner = (1.5 * t - 2.5) * t * t + 1.0, ((-1.5 * t + 2.0) * t + 0.5) * t
    return torch.stack([((-0.5 * t + 1.0) * t - 0.5) * t, *inner, (0.5 * t - 0.5) * t * t])
