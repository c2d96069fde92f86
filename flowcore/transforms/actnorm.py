"""Actnorm: a learned shift and scale per channel, in two parametrizations."""

import torch
from torch import Tensor, nn

from .batchnorm import moments
from .level_condition import LevelCondition
from .transform import Transform, require_channels


class ActNorm(Transform):
    """Shift and scale every channel; the identity at first.

    With ``s = log_factor * log_scale``: forward: ``z = (x + bias) * exp(s)``; logdet: ``H * W * sum(s)``; inverse: ``x
    = z * exp(-s) - bias``. ``initialize`` gives its batch mean 0 and (population) variance 1 per channel, but scales
    channels of a variance below ``min_variance`` as if it were that. ``log_factor`` is 3 in Glow's own program.

    Source: Kingma & Dhariwal, "Glow", section 3.1.
    """

    uniform_logdet = True

    def __init__(self, channels: int, *, log_factor: float = 1.0, min_variance: float = 0.0) -> None:
        super().__init__()
        self.log_factor, self.min_variance = log_factor, min_variance
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def logs(self) -> Tensor:
        """Compute the effective log-scale s, ``(C,)``."""
        return self.log_factor * self.log_scale

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_channels(x, len(self.bias), "ActNorm")
        logs = self.logs()
        z = (x + self.bias[:, None, None]) * logs.exp()[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * logs.sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        require_channels(z, len(self.bias), "ActNorm")
        return z * torch.exp(-self.logs())[:, None, None] - self.bias[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mean, std = _mean_std(x)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(std.clamp_min(self.min_variance**0.5)) / self.log_factor)
        return self.forward(x)[0]


class SignedActNorm(Transform):
    """Shift and scale every channel; the scale itself is stored, and may be negative.

    Forward: ``z = (x + bias) * scale``; logdet: ``H * W * sum(log|scale|)``; inverse: ``x = z / scale - bias``.
    Initialized as ``ActNorm``.

    Source: as ``ActNorm``, in the parametrization of rosinality's Glow in PyTorch.
    """

    uniform_logdet = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_channels(x, len(self.bias), "SignedActNorm")
        z = (x + self.bias[:, None, None]) * self.scale[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * self.scale.abs().log().sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        require_channels(z, len(self.bias), "SignedActNorm")
        return z / self.scale[:, None, None] - self.bias[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mean, std = _mean_std(x)
        self.bias.copy_(-mean)
        self.scale.copy_(1 / std)
        return self.forward(x)[0]


def _mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = moments(x)
    return mean, var.sqrt() + 1e-6  # keeps a constant channel finite
