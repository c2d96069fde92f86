"""Variances: latents of known variances, made standard-normal."""

from typing import Any

import torch
from torch import Tensor, nn

from .transform import Transform

SMALLEST = 1e-12  # a step of training may make a variance negative


class Variances(Transform):
    """Divide every latent by its standard deviation.

    Forward: ``z = x / sqrt(var)``; logdet: ``-sum log(var) / 2``; inverse: ``x = z sqrt(var)``.

    Source: Zhai et al., "Normalizing flows are capable generative models" (TarFlow, 2024), section 3.1, for flows
    without scales.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.var = nn.Parameter(torch.ones(channels, height, width))

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        var = self.var.clamp(min=SMALLEST)
        return x / var.sqrt(), (-0.5 * var.log()).sum(0).expand(len(x), -1, -1)

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        return z * self.var.clamp(min=SMALLEST).sqrt()

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Any = None) -> Tensor:
        self.var.copy_(x.square().mean((0, 2, 3)).clamp(min=SMALLEST)[:, None, None].expand_as(self.var))
        return self.encode(x)
