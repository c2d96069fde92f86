"""The residual network inside Real NVP's couplings: weight-normalized convolutions, batch normalization, skip sums."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transforms import BatchNorm, use_batch_moments


class WeightNormConv(nn.Module):
    """A weight-normalized convolution, ``w_o = g_o v_o / |v_o|``. Source: Salimans & Kingma, "Weight Normalization"."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        """Draw the directions as torch draws kernels, and start at their lengths."""
        super().__init__()
        direction = nn.Conv2d(inputs, outputs, kernel).weight.detach()
        self.direction = nn.Parameter(direction)
        self.length = nn.Parameter(_lengths(direction))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.direction * (self.length / _lengths(self.direction))[:, None, None, None]
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class AffineBatchNorm(nn.Module):
    """Batch normalization inside a network: a ``BatchNorm`` gives mean and variance; scale and shift are learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, eps=1e-5)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not norm.uses_batch:
            return F.batch_norm(x, norm.mean, norm.var, self.weight, self.bias, eps=norm.eps)  # one pass
        if norm.average is None:
            var, mean = torch.var_mean(x.detach().to(norm.mean), dim=(0, 2, 3), correction=0)
            norm.update_running(mean, var)
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=norm.eps)
        mean, var = norm.batch_moments(x.to(norm.mean))
        scale = self.weight * torch.rsqrt(var + norm.eps)
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


class ResidualBlock(nn.Module):
    """``x + conv3x3(relu(norm(conv3x3(relu(norm(x))))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(AffineBatchNorm(channels) for _ in range(2))
        self.convs = nn.ModuleList(WeightNormConv(channels, channels, 3, bias=bias) for bias in (False, True))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.relu(norm(y)))
        return x + y


class ResidualConditioner(nn.Module):
    """Shift and bounded log-scale of a Real NVP coupling: ``(B, inputs, H, W)`` to ``(B, 2 * outputs, H, W)``.

    The first convolution reads the normalized input and its negative; every block's output is also added to the result
    by a 1x1 skip convolution; ``log_scale = rescale * tanh(raw)``, on odd channels, is bounded. ``double`` doubles the
    normalized input, for checkerboard masks, which blank half of it.

    Source: Dinh et al., "Real NVP", section 3.3, section 3.7 and appendix E, and its reference implementation.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, blocks: int, double: bool, rescale: float) -> None:
        super().__init__()
        self.gain = 2 if double else 1
        self.norm_in = AffineBatchNorm(inputs)
        self.conv_in = WeightNormConv(2 * inputs, hidden, 3)
        self.blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv(hidden, hidden, 1) for _ in range(blocks + 1))
        self.norm_out = AffineBatchNorm(hidden)
        self.conv_out = WeightNormConv(hidden, 2 * outputs, 1)
        self.rescale = nn.Parameter(torch.full((outputs,), rescale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_in(x) * self.gain
        x = self.conv_in(F.relu(torch.cat([x, -x], dim=1)))  # (B, hidden, H, W)
        total = self.skips[0](x)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            x = block(x)
            total = total + skip(x)
        raw = self.conv_out(F.relu(self.norm_out(total)))  # (B, 2 * outputs, H, W)
        shift, log_scale = raw[:, 0::2], self.rescale[:, None, None] * torch.tanh(raw[:, 1::2])
        return torch.stack([shift, log_scale], dim=2).flatten(1, 2)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set the moments of every normalization, one after the other, to those of this batch."""
        momenta = {module: module.momentum for module in self.modules() if isinstance(module, BatchNorm)}
        for norm in momenta:
            norm.momentum = 1.0
        with use_batch_moments(self):
            self.forward(x)
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _lengths(direction: Tensor) -> Tensor:
    return direction.flatten(1).norm(dim=1)
