"""ChannelWhitening: fixed decorrelation of an image's channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import float32_arithmetic, float64, no_autocast
from .transform import Transform


class ChannelWhitening(Transform):
    """Subtract a fixed mean from every pixel and decorrelate its channels by a fixed matrix.

    Forward: ``z = M (x - mean)`` per pixel; logdet: ``H * W * log|det M|``; inverse: ``x = M^-1 z + mean``.
    ``initialize`` sets mean and M from its batch, whose pixels then have mean 0 and the identity as covariance
    (``M = L^-1`` with the covariance ``L L^T``); nothing trains them afterward.
    """

    uniform_logdet = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        matrix = self.get_buffer("matrix")
        log_det = torch.linalg.slogdet(float64(matrix))[1].to(x) * x.shape[-2] * x.shape[-1]
        return _mix(x - self._mean(), matrix), log_det.expand(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        return _mix(z, torch.linalg.inv(float64(self.get_buffer("matrix"))).to(z)) + self._mean()

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Any = None) -> Tensor:
        pixels = float64(x).transpose(0, 1).flatten(1)  # (C, B*H*W)
        ridge = 1e-8 * torch.eye(len(pixels), dtype=pixels.dtype, device=pixels.device)  # for constant channels
        mean, matrix = pixels.mean(1), torch.linalg.inv(torch.linalg.cholesky(torch.cov(pixels) + ridge))
        self.get_buffer("mean").copy_(mean.to(x))
        self.get_buffer("matrix").copy_(matrix.to(x))
        return self.forward(x)[0]

    def _mean(self) -> Tensor:
        return self.get_buffer("mean")[:, None, None]


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    with no_autocast(x.device), float32_arithmetic():
        return F.conv2d(x, matrix[:, :, None, None])
