"""Batch normalization as a step of a flow: fixed moments in use, the batch's own while training."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .level_condition import LevelCondition
from .transform import Transform, require_channels


class BatchNorm(Transform):
    """Normalize every channel by moments measured in training.

    Forward: ``z = (x - mean) / sqrt(var + eps)``; logdet: ``-H * W * sum(log(var + eps)) / 2``;
    inverse: ``x = z * sqrt(var + eps) + mean``. ``initialize`` takes the moments of its batch.

    ``mean`` and ``var`` are buffers, the same for every image whatever the mode, which makes this a bijection. Only
    inside ``with batch_moments(model):``, and in ``Flow.log_prob`` while it trains, are the moments those of the batch,
    and the buffers follow them.

    Source: Dinh et al., "Real NVP", section 3.7 and appendix E.
    """

    uniform_logdet = True
    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-4, momentum: float = 0.05) -> None:
        """Start as the identity, up to eps."""
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.uses_batch, self.updates_running = False, True
        self.average: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        require_channels(x, len(self.mean), "BatchNorm")
        mean, var = self.batch_moments(x) if self.uses_batch else (self.mean, self.var)
        logs = -0.5 * torch.log(var + self.eps)
        z = (x - mean[:, None, None]) * logs.exp()[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * logs.sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        require_channels(z, len(self.mean), "BatchNorm")
        return z * torch.sqrt(self.var + self.eps)[:, None, None] + self.mean[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mean, var = moments(x)
        self.mean.copy_(mean)
        self.var.copy_(var)
        return self.forward(x)[0]

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor) -> None:
        """Move the running moments toward those of a batch, ``(C,)`` each, except by values that are not finite."""
        for running, value in ((self.mean, mean.to(self.mean)), (self.var, var.to(self.var))):
            if self.updates_running:
                running.lerp_(torch.where(value.isfinite(), value, running), self.momentum)

    def batch_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Measure mean and population variance over all processes that share the batch, and update the running ones."""
        mean, var = moments(x, self.average)
        self.update_running(mean, var)
        return mean, var


@contextmanager
def batch_moments(
    model: nn.Module, *, average: Callable[[Tensor], Tensor] | None = None, update: bool = True
) -> Generator[None, None, None]:
    """Let every ``BatchNorm`` of a model normalize by the moments of its batch, and update its running moments.

    ``average`` averages a tensor over the processes that share the batch, differentiably. Do not ``update`` where a
    batch is recomputed.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and not module.uses_batch]
    for norm in norms:
        norm.uses_batch, norm.average, norm.updates_running = True, average, update
    try:
        yield
    finally:
        for norm in norms:
            norm.uses_batch, norm.average, norm.updates_running = False, None, True


def moments(x: Tensor, average: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Measure mean and population variance of every channel, ``(C,)`` each; ``average`` is over processes."""
    mean = x.mean(dim=(0, 2, 3))
    mean = mean if average is None else average(mean)
    var = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3))
    return mean, var if average is None else average(var)
