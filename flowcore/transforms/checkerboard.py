"""Checkerboard coupling: the white squares determine how the black ones are shifted and scaled."""

from typing import Any

import torch
from torch import Tensor, nn

from .coupling import affine, initialize_network
from .transform import Transform


class CheckerboardCoupling(Transform):
    """Shift and scale every second pixel by what a conditioner computes from the others.

    With the mask ``b`` (1 where ``(row + column) % 2 != parity``) and ``shift, log_scale = conditioner(b * x)``, on
    even and odd channels: forward: ``z = b * x + (1 - b) * (x + shift) * exp(log_scale)``; logdet: ``sum (1 - b) *
    log_scale``; inverse: ``x = b * z + (1 - b) * (z * exp(-log_scale) - shift)``. With ``mask_channel`` the conditioner
    also sees b.

    Source: Dinh et al., "Real NVP", section 3.4, with the order of operations of its program: (x + t) * exp(s).
    """

    def __init__(self, conditioner: nn.Module, *, parity: int, mask_channel: bool = False) -> None:
        super().__init__()
        self.conditioner, self.parity, self.mask_channel = conditioner, parity, mask_channel

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        mask = self._mask(z)
        shift, log_scale = self._affine(z, mask)
        return torch.where(mask, z, z * torch.exp(-log_scale) - shift)

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        mask = self._mask(x)
        shift, log_scale = self._affine(x, mask)
        z = torch.where(mask, x, (x + shift) * torch.exp(log_scale))
        return z, torch.where(mask, 0, log_scale).sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Any = None) -> Tensor:
        initialize_network(self.conditioner, self._input(x, self._mask(x)))
        return self.forward(x, cond)[0]

    def _affine(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        shift, _, log_scale = affine(self.conditioner(self._input(x, mask)), 0, like=x, scaling="exp")
        return shift, log_scale

    def _input(self, x: Tensor, mask: Tensor) -> Tensor:
        masked = torch.where(mask, x, 0)
        return torch.cat([masked, mask.to(x).expand(x.shape[0], 1, -1, -1)], dim=1) if self.mask_channel else masked

    def _mask(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[-2], device=x.device)[:, None]
        columns = torch.arange(x.shape[-1], device=x.device)[None]
        return ((rows + columns) % 2 != self.parity)[None, None]  # (1, 1, H, W)
