"""Calm edges: a lower temperature at edges, which samples would break into specks, and the full one in texture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.color import luma

WEAK, STRONG = 0.08, 0.4  # luma's differences to its neighbors between which the temperature falls


def edge_map(lr: Tensor) -> Tensor:
    """Find the edges of images ``(B, 3, h, w)`` in [0, 1]: 0 in smooth places and weak texture, 1 at strong edges.

    ``d = sqrt(dx^2 + dy^2)``, where dx and dy add the absolute differences of luma to both neighbors along an axis, so
    that lines as thin as a pixel count double; its maximum over 3x3 pixels, averaged over 3x3; and of that a ramp in
    the logarithm, 0 up to ``WEAK`` and 1 from ``STRONG`` on. ``(B, 1, h, w)``, float32 on the CPU, so that a seed is
    the same picture on every device.

    Source: ours; docs/decisions/0015 compares it with other maps.
    """
    y = F.pad(luma(lr.to("cpu", torch.float32)), (1, 1, 1, 1), mode="replicate")
    center = y[..., 1:-1, 1:-1]
    dx = (y[..., 1:-1, 2:] - center).abs() + (y[..., 1:-1, :-2] - center).abs()
    dy = (y[..., 2:, 1:-1] - center).abs() + (y[..., :-2, 1:-1] - center).abs()
    strongest = F.max_pool2d((dx.square() + dy.square()).sqrt(), 3, stride=1, padding=1)
    nearby = F.avg_pool2d(F.pad(strongest, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (nearby.clamp_min(WEAK) / WEAK).log().div(math.log(STRONG / WEAK)).clamp(0, 1)
