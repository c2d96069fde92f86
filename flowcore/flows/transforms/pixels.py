"""From pixels in [0, 1] to the range in which a flow works: a fixed affine map, the logit, or decorrelation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...device import float32_arithmetic, float64, no_autocast
from ..level_condition import LevelCondition
from ..transform import Transform
from .invconv import singular


class FixedAffine(Transform):
    """Shift and scale all pixels by fixed numbers: ``shift`` becomes 0, ``shift + width`` becomes 1.

    Forward: ``z = (x - shift) / width``; logdet: ``-D log(width)``, D = C * H * W; inverse: ``x = z * width + shift``.
    """

    uniform_logdet = True

    def __init__(self, shift: float, width: float = 1.0) -> None:
        super().__init__()
        self.shift, self.width = shift, width

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.shift) / self.width, x.new_full((x.shape[0],), -x[0].numel() * math.log(self.width))

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return z * self.width + self.shift


class Logit(Transform):
    """Map the unit interval to the whole line, so that no density falls outside [0, 1].

    With ``p = alpha + (1 - 2 alpha) x``, alpha in (0, 0.5): forward: ``z = log p - log(1 - p)``;
    logdet: ``sum log(1 - 2 alpha) - log p - log(1 - p)``; inverse: ``x = (sigmoid(z) - alpha) / (1 - 2 alpha)``. Data
    lie in (-m, 1 + m) with the margin ``m = alpha / (1 - 2 alpha)``.

    Source: Dinh et al., "Real NVP", section 4.1 (alpha = 0.05).
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        log_p, log_q = torch.log(p), torch.log1p(-p)
        return log_p - log_q, (math.log(1 - 2 * self.alpha) - log_p - log_q).sum(1)


class ChannelWhitening(Transform):
    """Subtract a fixed mean from every pixel and decorrelate its channels by a fixed matrix.

    Forward: ``z = M (x - mean)`` per pixel; logdet: ``H * W * log|det M|``; inverse: ``x = M^-1 z + mean``.
    ``initialize`` sets mean and M from its batch, whose pixels then have mean 0 and the identity as covariance
    (``M = L^-1`` with the covariance ``L L^T``); nothing trains them afterward.
    """

    uniform_logdet = True
    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(float64(self.matrix))[1].to(x) * x.shape[-2] * x.shape[-1]
        return _mix(x - self.mean[:, None, None], self.matrix), log_det.expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return _mix(z, torch.linalg.inv(float64(self.matrix)).to(z)) + self.mean[:, None, None]

    def problem(self) -> tuple[str, str] | None:
        return singular(self.matrix)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        pixels = float64(x).transpose(0, 1).flatten(1)  # (C, B*H*W)
        ridge = 1e-8 * torch.eye(len(pixels), dtype=pixels.dtype, device=pixels.device)  # constant channels need it
        self.mean.copy_(pixels.mean(1).to(x))
        self.matrix.copy_(torch.linalg.inv(torch.linalg.cholesky(torch.cov(pixels) + ridge)).to(x))
        return self.forward(x)[0]


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    with no_autocast(x.device), float32_arithmetic():
        return F.conv2d(x, matrix[:, :, None, None])
