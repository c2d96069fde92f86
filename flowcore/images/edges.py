"""Sharper edges, for pictures that were enlarged softly."""

import torch.nn.functional as F
from torch import Tensor

from .motion import blur

SOFT, NEARBY = 4, 5  # pixels: window of the blur, and side of the window whose values bound the result


def sharpen_edges(pictures: Tensor, amount: float) -> Tensor:
    """Make edges of pictures ``(B, C, H, W)`` narrower: an unsharp mask between the least and greatest value nearby.

    So it outlines nothing, unlike an unsharp mask alone. ``amount`` is the mask's, at least 0.
    """
    if not amount:
        return pictures
    sharp = pictures + amount * (pictures - blur(pictures, SOFT))
    highest, lowest = (sign * F.max_pool2d(sign * pictures, NEARBY, 1, NEARBY // 2) for sign in (1, -1))
    return sharp.minimum(highest).maximum(lowest)
