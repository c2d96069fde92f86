"""The grid that enlarging networks print: a pattern that repeats with every pixel of the small image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import enlarge

WINDOW = 9  # pixels of the small image over which the pattern is averaged
STRONG = 0.02  # rms within an LR pixel from which on it is an edge or texture, which a grid hardly reaches


def remove_grid(picture: Tensor, lr: Tensor) -> Tensor:
    """Remove the grid from an enlargement ``(B, C, s * h, s * w)`` of images ``(B, C, h, w)``.

    A network that ends in a pixel shuffle has channels of their own for the s x s positions within an LR pixel (their
    phase), and a bias between them repeats as a pattern. So what it adds to the bicubic enlargement is averaged by
    phase over 9x9 LR pixels, and the deviation of these means from the mean of all phases is subtracted. LR pixels to
    which much is added hardly count: an upright or level line would be printed beside itself. Source: ours, see
    docs/decisions/0020.
    """
    scale = picture.shape[-1] // lr.shape[-1]
    added = picture - enlarge(lr, scale)
    power = torch.cat([F.avg_pool2d(channel.square(), scale) for channel in added.split(1, dim=1)], 1)
    weight = (1 + power.mean(1, keepdim=True) / STRONG**2) ** -2
    total = _around(weight)
    for channel in added.split(1, dim=1):  # one at a time, in the memory of a third
        phases = _around(F.pixel_unshuffle(channel, scale) * weight) / total
        channel.copy_(F.pixel_shuffle(phases - phases.mean(1, keepdim=True), scale))
    return picture - added


def _around(planes: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(planes, (WINDOW // 2,) * 4, mode="replicate"), WINDOW, stride=1)
