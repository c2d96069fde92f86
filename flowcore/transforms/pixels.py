"""From pixels in [0, 1] to the range in which a flow works: a fixed affine map, or the logit."""

import math
from typing import Any

import torch
from torch import Tensor

from .transform import Transform


class PixelMap(Transform):
    """Shift and scale all pixels by fixed numbers: ``shift`` becomes 0, ``shift + width`` becomes 1.

    Forward: ``z = (x - shift) / width``; logdet: ``-D log(width)``, D = C * H * W; inverse: ``x = z * width + shift``.
    """

    uniform_logdet = True

    def __init__(self, shift: float, width: float = 1.0) -> None:
        super().__init__()
        self.shift, self.width = shift, width

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        return (x - self.shift) / self.width, x.new_full((x.shape[0],), -x[0].numel() * math.log(self.width))

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        return z * self.width + self.shift


class Logit(Transform):
    """Map the unit interval to the whole line, so that no density is lost beyond black and white.

    With ``p = alpha + (1 - 2 alpha) x``, alpha in (0, 0.5): forward: ``z = log p - log(1 - p)``;
    logdet: ``sum log(1 - 2 alpha) - log p - log(1 - p)``; inverse: ``x = (sigmoid(z) - alpha) / (1 - 2 alpha)``. Data
    lie in (-m, 1 + m) with the margin ``m = alpha / (1 - 2 alpha)``.

    Source: Dinh et al., "Real NVP", section 4.1 (alpha = 0.05).
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        log_p, log_q = torch.log(p), torch.log1p(-p)
        return log_p - log_q, (math.log(1 - 2 * self.alpha) - log_p - log_q).sum(1)
