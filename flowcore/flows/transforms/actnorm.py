"""Normalization per channel: actnorm, in two parametrizations, and batch normalization."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..level_condition import LevelCondition
from ..transform import Transform, require_channels


class ActNorm(Transform):
    """Shift and scale every channel; the identity at first.

    With ``s = log_factor * log_scale``: forward: ``z = (x + bias) * exp(s)``; logdet: ``H * W * sum(s)``; inverse: ``x
    = z * exp(-s) - bias``. ``initialize`` gives its batch mean 0 and (population) variance 1 per channel; variances
    below ``min_variance`` are clamped to it. ``log_factor`` is 3 in the reference implementation of Glow.

    Source: Kingma & Dhariwal, "Glow", section 3.1.
    """

    uniform_logdet = True

    def __init__(self, channels: int, *, log_factor: float = 1.0, min_variance: float = 0.0) -> None:
        super().__init__()
        self.log_factor, self.min_variance = log_factor, min_variance
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def effective_log_scale(self) -> Tensor:
        """Compute s, ``(C,)``."""
        return self.log_factor * self.log_scale

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_channels(x, len(self.bias), "ActNorm")
        s = self.effective_log_scale()
        z = (x + self.bias[:, None, None]) * s.exp()[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * s.sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        require_channels(z, len(self.bias), "ActNorm")
        return z * torch.exp(-self.effective_log_scale())[:, None, None] - self.bias[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mean, std = _mean_std(x)
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(std.clamp_min(self.min_variance**0.5)) / self.log_factor)
        return self.forward(x)[0]


class SignedActNorm(Transform):
    """Shift and scale every channel; the scale itself is stored, and may be negative.

    Forward: ``z = (x + bias) * scale``; logdet: ``H * W * sum(log|scale|)``; inverse: ``x = z / scale - bias``.
    Initialized like ``ActNorm``.

    Source: that of ``ActNorm``; the parametrization is that of rosinality's Glow in PyTorch.
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


class BatchNorm(Transform):
    """Normalize every channel by moments measured in training.

    Forward: ``z = (x - mean) / sqrt(var + eps)``; logdet: ``-H * W * sum(log(var + eps)) / 2``;
    inverse: ``x = z * sqrt(var + eps) + mean``. ``initialize`` takes the moments of its batch.

    ``mean`` and ``var`` are buffers, used in both training and evaluation mode, which makes this a bijection. Inside
    ``use_batch_moments``, which ``Flow.log_prob`` enters in training, forward uses the moments of the batch instead,
    and updates the buffers, their running averages: an exception to the law.

    Source: Dinh et al., "Real NVP", section 3.7 and appendix E.
    """

    uniform_logdet = True
    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-4, momentum: float = 0.05) -> None:
        """Start as the identity, up to eps."""
        super().__init__()
        self.eps, self.momentum = eps, momentum
        # set by the context manager ``use_batch_moments`` only
        self.uses_batch, self.updates_running = False, True
        self.average: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_channels(x, len(self.mean), "BatchNorm")
        mean, var = self.batch_moments(x) if self.uses_batch else (self.mean, self.var)
        log_scale = -0.5 * torch.log(var + self.eps)
        z = (x - mean[:, None, None]) * log_scale.exp()[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * log_scale.sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        require_channels(z, len(self.mean), "BatchNorm")
        return z * torch.sqrt(self.var + self.eps)[:, None, None] + self.mean[:, None, None]

    def problem(self) -> tuple[str, str] | None:
        return ("var", "is negative") if float(self.var.min()) < 0 else None

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mean, var = _moments(x)
        self.mean.copy_(mean)
        self.var.copy_(var)
        return self.forward(x)[0]

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor) -> None:
        """Update the running mean and variance by those of a batch, ``(C,)`` each, skipping non-finite values."""
        if not self.updates_running:
            return
        for running, value in ((self.mean, mean.to(self.mean)), (self.var, var.to(self.var))):
            running.lerp_(torch.where(value.isfinite(), value, running), self.momentum)

    def batch_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Measure mean and population variance over all processes that share the batch, and update the running ones."""
        mean, var = _moments(x, self.average)
        self.update_running(mean, var)
        return mean, var


@contextmanager
def use_batch_moments(
    model: nn.Module, *, average: Callable[[Tensor], Tensor] | None = None, update: bool = True
) -> Generator[None, None, None]:
    """Let every ``BatchNorm`` of a model normalize by the moments of its batch, and update its running moments.

    ``average`` averages a tensor over the processes that share the batch, differentiably. Pass ``update=False`` when
    activations are recomputed, as for gradient checkpointing.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and not module.uses_batch]
    for norm in norms:
        norm.uses_batch, norm.average, norm.updates_running = True, average, update
    try:
        yield
    finally:
        for norm in norms:
            norm.uses_batch, norm.average, norm.updates_running = False, None, True


def _moments(x: Tensor, average: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Measure mean and population variance of every channel, ``(C,)`` each; ``average`` is over processes."""
    mean = x.mean(dim=(0, 2, 3))
    mean = mean if average is None else average(mean)
    var = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3))
    return mean, var if average is None else average(var)


def _mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = _moments(x)
    return mean, var.sqrt() + 1e-6  # keeps a constant channel finite, also without ``min_variance``
