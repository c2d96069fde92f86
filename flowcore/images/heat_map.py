"""Maps of numbers as color images."""

from __future__ import annotations

import torch
from torch import Tensor

# Inferno of matplotlib at ten places (van der Walt and Smith, CC0): perceptually uniform, also in gray.
COLORS = (
    (0, 0, 4),
    (27, 12, 65),
    (74, 12, 107),
    (120, 28, 109),
    (165, 44, 96),
    (207, 68, 70),
    (237, 105, 37),
    (251, 155, 6),
    (247, 209, 61),
    (252, 255, 164),
)


def heat_map(maps: Tensor) -> Tensor:
    """Color maps by a perceptually uniform scale, dark for 0 and bright for 1.

    Args:
        maps: (B, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    table = torch.tensor(COLORS) / 255  # (10, 3)
    place = maps * (len(COLORS) - 1)
    below = place.floor().clamp(max=len(COLORS) - 2).long()
    share = (place - below)[..., None]
    return ((1 - share) * table[below] + share * table[below + 1]).permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
