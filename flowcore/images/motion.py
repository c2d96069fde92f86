"""Dense motion between two pictures, and pictures moved by it.

A motion is ``(1, 2, H, W)``: pixel p of one picture corresponds to ``p + d(p)`` in another, with d(p) in pixels, right
and down.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import or_on_cpu
from .resize import downsample, pad_symmetric, sample_points

SMALLEST = 16  # pixels of the shorter side below which pictures are not halved
WINDOW = 23  # pixels: the deviation of the Gaussian window is that of a box of this side
ITERATIONS = 6  # iterations at each size of the pictures
STIFFNESS = 1e-3  # variance of gradients, of pictures in [0, 1], at which texture and neighbors count alike
REACH = 3  # pixels of the Lanczos kernel, on each side


def estimate_motion(picture: Tensor, other: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
    """Estimate where each pixel of a picture ``(1, C, H, W)`` in [0, 1] is in another: Lucas-Kanade, coarse to fine.

    Around every pixel p, with a Gaussian window w and the gradient g of the other picture moved by the motion d so far,
    the next motion minimizes

        sum over q of w(q - p) (picture(q) - other(q + d(q)) - g(q) (d'(p) - d(q)))^2 + stiffness |d'(p) - (w * d)(p)|^2

    as in Le Besnerais & Champagnat, "Dense optical flow by iterative local window registration" (ICIP 2005); the pull
    to the neighbors' mean, which fills places without texture, is ours. Between equal pictures it is exactly 0.
    ``check`` is called before each iteration, and may raise an error to stop.
    """
    pyramid = [(picture, other)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * SMALLEST:
        height, width = pyramid[-1][0].shape[-2:]
        one, another = (downsample(pad_symmetric(each, (0, width % 2, 0, height % 2)), 2) for each in pyramid[-1])
        pyramid.append((one, another))
    motion = picture.new_zeros(1, 2, *pyramid[-1][0].shape[-2:])
    for one, another in reversed(pyramid):
        if motion.shape[-2:] != one.shape[-2:]:
            height, width = one.shape[-2:]
            motion = 2 * F.interpolate(motion, scale_factor=2.0, mode="bilinear")[..., :height, :width]
        for _ in range(ITERATIONS):
            check()
            motion = _refine(one, another, motion)
    return motion


def _refine(picture: Tensor, other: Tensor, motion: Tensor) -> Tensor:
    moved = sample_at(other, motion)
    edged = F.pad(moved, (1, 1, 1, 1), mode="replicate")
    gx = (edged[..., 1:-1, 2:] - edged[..., 1:-1, :-2]) / 2
    gy = (edged[..., 2:, 1:-1] - edged[..., :-2, 1:-1]) / 2
    rest = picture - moved + gx * motion[:, :1] + gy * motion[:, 1:]
    pairs = (gx, gx), (gx, gy), (gy, gy), (gx, rest), (gy, rest)
    products = [(one * two).mean(1, keepdim=True) for one, two in pairs]
    xx, xy, yy, xr, yr, x, y = blur(torch.cat([*products, motion], 1), WINDOW).split(1, 1)
    xx, yy, xr, yr = xx + STIFFNESS, yy + STIFFNESS, xr + STIFFNESS * x, yr + STIFFNESS * y
    return torch.cat([yy * xr - xy * yr, xx * yr - xy * xr], 1) / (xx * yy - xy * xy)  # Cramer's rule


def blur(image: Tensor, window: int) -> Tensor:
    """Blur images ``(B, C, H, W)`` by a Gaussian with the standard deviation of a box ``window`` pixels wide."""
    deviation = (window**2 / 12) ** 0.5
    reach = round(2.5 * deviation)
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.softmax(-0.5 * (offsets / deviation) ** 2, 0)
    channels = image.shape[1]
    across = F.conv2d(pad_symmetric(image, reach), kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel[:, None].expand(channels, 1, -1, -1), groups=channels)


def sample_at(image: Tensor, motion: Tensor) -> Tensor:
    """Read images ``(1, C, H, W)`` at ``p + d(p)``, bilinear; beyond the border, its pixels."""
    height, width = motion.shape[-2:]
    x = torch.arange(width, device=motion.device, dtype=motion.dtype) + motion[:, 0]
    y = torch.arange(height, device=motion.device, dtype=motion.dtype)[:, None] + motion[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return or_on_cpu(partial(F.grid_sample, padding_mode="border", align_corners=False), image, grid)


def move(image: Tensor, motion: Tensor) -> Tensor:
    """Read an image ``(1, C, H, W)`` at ``p + d(p)`` with Lanczos' kernel of 6 taps, which blurs less than bicubic.

    Not clamped; beyond its border the image is reflected. Where the motion is whole pixels, its own values return.
    """
    height, width = image.shape[-2:]
    x = (torch.arange(width, device=image.device) + motion[0, 0]).clamp(0, width - 1)  # (H, W)
    y = (torch.arange(height, device=image.device)[:, None] + motion[0, 1]).clamp(0, height - 1)
    return sample_points(pad_symmetric(image, REACH), torch.stack([x, y], -1) + REACH, _lanczos)


def _lanczos(t: Tensor) -> Tensor:
    distances = t - torch.arange(1 - REACH, REACH + 1, device=t.device).view(-1, 1, 1)
    weights = torch.sinc(distances) * torch.sinc(distances / REACH)
    return weights / weights.sum(0)
