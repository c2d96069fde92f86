"""Calm edges: a lower temperature at edges, which samples would break into specks, and the full one in texture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.color import luma

SMOOTH, EDGE = 0.08, 0.24  # luma's differences per LR pixel between which the temperature falls


def edge_map(lr: Tensor) -> Tensor:
    """Find the edges of images: 0 in smooth places and weak texture, 1 at strong edges and one pixel around them.

    ``g = sqrt(dx^2 + dy^2)``, of the larger difference of luma from either neighbor along each axis; its maximum over
    3x3 pixels, averaged over 3x3; and from that a ramp, 0 up to ``SMOOTH`` and 1 from ``EDGE`` on.

    Args:
        lr: ``(B, 3, h, w)`` in [0, 1].

    Returns:
        ``(B, 1, h, w)`` in [0, 1], float32 on the CPU, so that a seed is the same picture on every device.

    Source: ours; ``python -m benchmarks calm_edges`` compares it with other maps.
    """
    y = F.pad(luma(lr.to("cpu", torch.float32)), (1, 1, 1, 1), mode="replicate")
    center = y[..., 1:-1, 1:-1]
    dx = torch.maximum((y[..., 1:-1, 2:] - center).abs(), (center - y[..., 1:-1, :-2]).abs())
    dy = torch.maximum((y[..., 2:, 1:-1] - center).abs(), (center - y[..., :-2, 1:-1]).abs())
    nearby = F.max_pool2d((dx.square() + dy.square()).sqrt(), 3, stride=1, padding=1)
    mean = F.avg_pool2d(F.pad(nearby, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return ((mean - SMOOTH) / (EDGE - SMOOTH)).clamp(0, 1)
