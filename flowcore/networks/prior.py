"""Networks that predict means and standard deviations of latents from nothing but the grid and the labels."""

import torch
from torch import Tensor, nn

from ..device import no_autocast
from ..errors import ConditionError
from .conditioner import Edge, ScaledConv


class ScaledLinear(nn.Module):
    """``y = (W x + bias) * exp(3 * log_scale)``, all zero at first: "linear_zeros" of Kingma & Dhariwal's program."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T + self.bias) * torch.exp(3 * self.log_scale)


class TopPrior(nn.Module):
    """Prior of a flow's last latents: learned constants, a contribution of the border, and one of the label.

    ``raw = conv(zeros) + linear(labels)``: a zero convolution of an empty grid gives a constant per channel and, unless
    ``edge`` is "zeros", another one at the border. Starts at mean 0 and standard deviation 1.

    Source: Kingma & Dhariwal's program for Glow ("learntop", "ycond").
    """

    def __init__(self, channels: int, *, learned: bool = True, edge: Edge = "zeros", classes: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.inputs = channels if edge == "ones" else 0
        self.constants = ScaledConv(self.inputs, 2 * channels, edge=edge) if learned else None
        self.by_label = ScaledLinear(classes, 2 * channels) if classes else None

    def forward(self, like: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict ``(B, 2 * C, H, W)`` for latents like ``like``: means on even, log standard deviations on odd."""
        batch, _, height, width = like.shape
        raw = like.new_zeros(1, 2 * self.channels, height, width)
        if self.constants is not None:
            raw = raw + self.constants(like.new_zeros(1, self.inputs, height, width))
        if self.by_label is not None:
            assert labels is not None
            raw = raw + self.by_label(labels.to(like.dtype))[:, :, None, None]
        return raw.expand(batch, -1, -1, -1)


class TablePrior(nn.Module):
    """Prior with a learned mean and log standard deviation for every channel, position and label, as in normflows."""

    def __init__(self, channels: int, height: int, width: int, *, classes: int = 0) -> None:
        """Start at mean 0 and standard deviation 1; without classes, one table serves every label."""
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(max(classes, 1), channels, height, width))
        self.log_std = nn.Parameter(torch.zeros(max(classes, 1), channels, height, width))

    def forward(self, like: Tensor, labels: Tensor | None = None) -> Tensor:
        """Look up ``(B or 1, 2 * C, H, W)`` by one-hot labels: means on even, log standard deviations on odd."""
        tables = torch.stack([self.mean, self.log_std], dim=2).flatten(1, 2)  # (K, 2C, H, W)
        if labels is not None:
            with no_autocast(tables.device):  # a look-up gains nothing from low precision
                tables = torch.tensordot(labels.to(tables.dtype), tables, dims=1)  # (B, 2C, H, W)
        return tables.to(like.dtype)


class AnchorPrior(nn.Module):
    """Prior of a flow's last output around the condition's anchor, with a fixed standard deviation.

    Source: Liang et al., "Hierarchical Conditional Flow" (2021), section 3: the density of the LR image.
    """

    def __init__(self, log_std: float) -> None:
        super().__init__()
        self.log_std = log_std

    def forward(self, like: Tensor, anchor: Tensor) -> Tensor:
        """Return the anchor as means on even, ``log_std`` on odd channels; it must have the shape of ``like``."""
        if anchor.shape[1:] != like.shape[1:] or anchor.shape[0] not in (1, like.shape[0]):
            raise ConditionError(
                f"The condition belongs to an LR image of shape {tuple(anchor.shape)}; got {tuple(like.shape)}. Encode "
                "the condition from the matching image."
            )
        mean = anchor.to(like.dtype)
        return torch.stack([mean, torch.full_like(mean, self.log_std)], dim=2).flatten(1, 2)
