"""Batch normalization as a step of a flow: fixed moments in use, the batch's own while training."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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

    def __init__(self, channels: int, *, eps: float = 1e-4, momentum: float = 0.05) -> None:
        """Start as the identity, up to eps."""
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.uses_batch = False
        self.updates_running = True
        self.average: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        require_channels(x, len(self.get_buffer("mean")), "BatchNorm")
        mean, var = self.batch_moments(x) if self.uses_batch else (self.get_buffer("mean"), self.get_buffer("var"))
        logs = -0.5 * torch.log(var + self.eps)
        z = (x - mean[:, None, None]) * logs.exp()[:, None, None]
        return z, (x.shape[-2] * x.shape[-1] * logs.sum()).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        require_channels(z, len(self.get_buffer("mean")), "BatchNorm")
        std = torch.sqrt(self.get_buffer("var") + self.eps)
        return z * std[:, None, None] + self.get_buffer("mean")[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Any = None) -> Tensor:
        for name, value in zip(("mean", "var"), _moments(x), strict=True):
            self.get_buffer(name).copy_(value)
        return self.forward(x)[0]

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor) -> None:
        """Move the running moments toward those of a batch, ``(C,)`` each, except by values that are not finite."""
        if not self.updates_running:
            return
        for name, value in (("mean", mean), ("var", var)):
            running = self.get_buffer(name)
            value = value.to(running)
            running.lerp_(torch.where(value.isfinite(), value, running), self.momentum)

    def batch_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Measure mean and population variance over all processes that share the batch, and update the running ones."""
        moments = _moments(x, self.average)
        self.update_running(*moments)
        return moments


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


def _moments(x: Tensor, average: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    mean = x.mean(dim=(0, 2, 3))
    mean = mean if average is None else average(mean)
    var = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3))
    return mean, var if average is None else average(var)
