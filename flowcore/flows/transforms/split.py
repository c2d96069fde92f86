"""Channels that become latents: Split, in the middle of a flow; Standardize, Center and Variances, at its end."""

import torch
from torch import Tensor, nn

from ...errors import ConditionError
from ..level_condition import LevelCondition
from ..transform import Transform
from .coupling import split_channels

MIN_VARIANCE = 1e-12  # an optimizer step may make a variance negative


class Split(Transform[tuple[Tensor, Tensor], LevelCondition]):
    """Factor out the second part of the channels, whitened by a prior that the first part predicts.

    With ``x = [x1, x2]`` and ``mean, log_std = conditioner(x1)`` (even and odd channels): forward: ``latent = (x2 -
    mean) * exp(-log_std)``; logdet: ``-sum log_std``; inverse: ``x2 = mean + exp(log_std) * latent``. Without a
    conditioner, mean and log_std are zero; a ``labeled`` one also sees the labels, ``(B, classes)``. The latent side is
    the pair ``(x1, latent)``, ``(B, K, H, W)`` and ``(B, C - K, H, W)``; K is ``kept``, or half of the channels,
    rounded down.

    Source: Dinh et al., "Real NVP", section 3.6; the learned prior of the reference implementation of Glow.
    """

    def __init__(self, conditioner: nn.Module | None, *, labeled: bool = False, kept: int | None = None) -> None:
        super().__init__()
        self.conditioner, self.labeled, self.kept = conditioner, labeled, kept

    def kept_channels(self, channels: int) -> int:
        """Return K for C channels; the other ``C - K`` become latents."""
        return channels // 2 if self.kept is None else self.kept

    def inverse(self, z: tuple[Tensor, Tensor], cond: LevelCondition | None = None) -> Tensor:
        x1, latent = z
        if self.conditioner is None:
            return torch.cat([x1, latent], dim=1)
        mean, log_std = _mean_log_std(self.conditioner, x1, cond.labels if self.labeled and cond else None)
        return torch.cat([x1, mean + torch.exp(log_std) * latent], dim=1)

    def forward_with_logdet_map(
        self, x: Tensor, cond: LevelCondition | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        x1, x2 = split_channels(x, self.kept_channels(x.shape[1]))
        if self.conditioner is None:
            return (x1, x2), x.new_zeros(x.shape[0], *x.shape[2:])
        mean, log_std = _mean_log_std(self.conditioner, x1, cond.labels if self.labeled and cond else None)
        logdet = -log_std.sum(1).expand(x.shape[0], -1, -1)  # the prior may have a batch of 1
        return (x1, (x2 - mean) * torch.exp(-log_std)), logdet


class Standardize(Transform):
    """Turn the last output of a flow into standard-normal latents, by a Gaussian prior.

    With ``mean, log_std = prior(x, labels)``, on even and odd channels: forward: ``z = (x - mean) * exp(-log_std)``;
    logdet: ``-sum log_std``; inverse: ``x = mean + exp(log_std) * z``. The prior may read only the shape of ``x``,
    and the condition's labels, ``(B, classes)``, if there are any.

    Source: the learned and class-conditional top prior of the reference implementation of Glow.
    """

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = _mean_log_std(self.prior, x, cond.labels if cond else None)
        return (x - mean) * torch.exp(-log_std), -log_std.flatten(1).sum(1).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mean, log_std = _mean_log_std(self.prior, z, cond.labels if cond else None)
        return mean + torch.exp(log_std) * z

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = _mean_log_std(self.prior, x, cond.labels if cond else None)
        return (x - mean) * torch.exp(-log_std), -log_std.sum(1).expand(x.shape[0], -1, -1)


class Center(Transform):
    """Subtract the condition's mean: ``z = x - lr_mean``; logdet: 0; inverse: ``x = z + lr_mean``."""

    uniform_logdet = True

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        return x - _lr_mean(x, cond), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return z + _lr_mean(z, cond)


class Variances(Transform):
    """Divide every latent by its standard deviation.

    Forward: ``z = x / sqrt(var)``; logdet: ``-sum log(var) / 2``; inverse: ``x = z sqrt(var)``.

    Source: Zhai et al., "Normalizing flows are capable generative models" (TarFlow, 2024), section 3.1, for flows
    whose steps do not scale.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.var = nn.Parameter(torch.ones(channels, height, width))

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        var = self.var.clamp(min=MIN_VARIANCE)
        return x / var.sqrt(), (-0.5 * var.log()).sum(0).expand(x.shape[0], -1, -1)

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return z * self.var.clamp(min=MIN_VARIANCE).sqrt()

    def problem(self) -> tuple[str, str] | None:
        return ("var", "is not positive") if float(self.var.detach().min()) <= 0 else None

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        self.var.copy_(x.square().mean((0, 2, 3)).clamp(min=MIN_VARIANCE)[:, None, None].expand_as(self.var))
        return self.encode(x)


def _lr_mean(x: Tensor, cond: LevelCondition | None) -> Tensor:
    lr_mean = None if cond is None else cond.lr_mean
    if lr_mean is None or lr_mean.shape[1:] != x.shape[1:] or lr_mean.shape[0] not in (1, x.shape[0]):
        raise ConditionError(
            f"Expected a condition of {x.shape[0]} items with a mean of shape {tuple(x.shape[1:])}; got "
            f"{'none' if lr_mean is None else tuple(lr_mean.shape)}. Encode the condition from an image of the "
            "matching size and batch."
        )
    return lr_mean


def _mean_log_std(network: nn.Module, x: Tensor, prior_input: Tensor | None) -> tuple[Tensor, Tensor]:
    raw = (network(x) if prior_input is None else network(x, prior_input)).to(x.dtype)
    return raw[:, 0::2], raw[:, 1::2]
