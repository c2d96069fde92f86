"""Remember: the colors of photographs, to color others with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..images import color
from ..images.resize import resize_bilinear
from ..networks import LumaEncoder
from ..networks.memory import CELL, SIDE

MULTIPLE = 32  # of the sides that a backbone takes
MAX_ASPECT = 4  # the longer side is at most so many times the shorter


def cells_of(encoder: LumaEncoder, rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Describe the cells of a photograph in color, ``(1, 3, H, W)``: ``(N, WIDTH)``, and their chroma ``(N, 2)``."""
    height, width = rgb.shape[-2:]
    factor = min(SIDE / min(height, width), MAX_ASPECT * SIDE / max(height, width))
    sides = [max(1, round(side * factor / MULTIPLE)) * MULTIPLE for side in (height, width)]
    y, chroma = color.split(resize_bilinear(rgb, sides))
    described = encoder.describe(y)
    return described[0].flatten(1).T, F.avg_pool2d(chroma, CELL)[0].flatten(1).T
