"""Colors under the transparent parts of cut-outs: arbitrary, mostly black, and seen when a picture is resized."""

import torch
import torch.nn.functional as F
from torch import Tensor

RELIABLE = 1 / 8  # alpha from which on a pixel's color is its own: below, 8 bits leave hardly any of it
MIN_BLANK = 16  # pixels under alpha 0 that are believed to be of one color on purpose


def extend_colors(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Continue the visible colors of pictures ``(B, 3, H, W)`` under alpha ``(B, 1, H, W)`` near 0; others stay.

    By means of 2x2 pixels, weighted by how visible they are, again and again, down to one pixel; then from the coarsest
    on, what is not visible is filled in from the next coarser means. Pictures that are nowhere visible stay.

    Source: Gortler et al., "The Lumigraph" (1996), section 3.4 (pull-push).
    """
    known = (alpha / RELIABLE).clamp(max=1)
    if bool((known == 1).all()):
        return rgb
    levels = [(rgb, known)]
    while max(levels[-1][1].shape[-2:]) > 1:
        color, weight = levels[-1]
        share = F.avg_pool2d(weight, 2, ceil_mode=True)
        mean = F.avg_pool2d(color * weight, 2, ceil_mode=True) / share.clamp_min(torch.finfo(share.dtype).tiny)
        levels.append((mean, (4 * share).clamp(max=1)))
    filled = levels.pop()[0]
    for color, weight in reversed(levels):
        coarse = F.interpolate(filled, color.shape[-2:], mode="bilinear")
        filled = weight * color + (1 - weight) * coarse
    return torch.where(known.amax((1, 2, 3), keepdim=True) > 0, filled.clamp(0, 1), rgb)


def extend_over_blank(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Continue colors as ``extend_colors`` does, if all that lies under alpha 0 is of one color.

    Otherwise it is part of the picture, as where a mask was painted on it, which is stored as alpha, too.
    """
    hidden = (alpha == 0).expand_as(rgb)
    low, high = rgb.masked_fill(~hidden, 1).amin((2, 3)), rgb.masked_fill(~hidden, 0).amax((2, 3))
    blank = (low == high).all(1) & (hidden[:, 0].sum((1, 2)) >= MIN_BLANK)  # (B,)
    return torch.where(blank[:, None, None, None], extend_colors(rgb, alpha), rgb)
