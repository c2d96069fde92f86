"""The folded residual network of Real NVP's couplings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import float64_on_cpu
from ..networks import ResidualConditioner
from ..networks.residual import NetworkNorm, ResidualBlock, WeightNormConv
from .convolutions import NHWC, Conv
from .strips import StripBudget

PixelScale = tuple[Tensor, Tensor]
"""Scale and shift of every channel, ``(C,)`` in float64 on the CPU, or ``(C, 1, 1)`` as a network has it."""


class FoldedResidual(nn.Module):
    """``ResidualConditioner`` with weight norms computed once, and normalizations folded into convolutions.

    A normalization between a sum and a ReLU stays a scale and a shift. The last is folded into all the skip
    convolutions, whose sum it normalizes.
    """

    def __init__(self, network: ResidualConditioner, dtype: torch.dtype, budget: StripBudget) -> None:
        super().__init__()
        self.budget = budget
        scale, shift = _normalization(network.norm_in)
        self.norm_in = _planes((scale * network.gain, shift * network.gain), network.rescale, dtype)
        self.conv_in = _conv(network.conv_in, dtype)
        self.first, self.norms, self.second = nn.ModuleList(), list[PixelScale](), nn.ModuleList()
        for block in network.blocks:
            assert isinstance(block, ResidualBlock)
            before, between = block.norms
            self.norms.append(_planes(_normalization(before), network.rescale, dtype))
            self.first.append(_conv(block.convs[0], dtype, _normalization(between)))
            self.second.append(_conv(block.convs[1], dtype))
        scale, shift = _normalization(network.norm_out)
        self.skips = nn.ModuleList(
            _conv(skip, dtype, (scale, shift if k == 0 else torch.zeros_like(shift)))
            for k, skip in enumerate(network.skips)
        )
        self.conv_out = _conv(network.conv_out, dtype)
        self.rescale = network.rescale.detach().to(dtype)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to shifts and log-scales, ``(B, 2 * outputs, H, W)``, some images at a time."""
        weight = self.conv_in.weight
        image = weight.shape[0] * x.shape[2] * x.shape[3] * weight.element_size()
        several = max(1, self.budget.strip // 4 // image)  # a block holds its input and output, a sum and a term of it
        return torch.cat([self._run(items).to(x.dtype) for items in x.split(several)])

    def _run(self, x: Tensor) -> Tensor:
        rows = 0, x.shape[2], x.shape[2]  # all of them
        scale, shift = self.norm_in
        x = torch.addcmul(shift, x.to(shift.dtype).contiguous(memory_format=NHWC), scale)
        x = self.conv_in(F.relu_(torch.cat([x, -x], dim=1)), *rows)  # (B, hidden, H, W)
        total = self.skips[0](x, *rows)
        for (scale, shift), first, second, skip in zip(
            self.norms, self.first, self.second, self.skips[1:], strict=True
        ):
            y = F.relu_(first(F.relu_(torch.addcmul(shift, x, scale)), *rows))
            x = second(y, *rows).add_(x)
            total.add_(skip(x, *rows))
        raw = self.conv_out(F.relu_(total), *rows)
        raw[:, 1::2] = self.rescale * torch.tanh(raw[:, 1::2])
        return raw


def _normalization(norm: nn.Module) -> PixelScale:
    assert isinstance(norm, NetworkNorm)
    mean, var = (float64_on_cpu(norm.norm.get_buffer(name)) for name in ("mean", "var"))
    scale = float64_on_cpu(norm.weight) * torch.rsqrt(var + norm.norm.eps)
    return scale, float64_on_cpu(norm.bias) - mean * scale


def _planes(normalization: PixelScale, like: Tensor, dtype: torch.dtype) -> PixelScale:
    scale, shift = (t.to(like.device, dtype)[:, None, None] for t in normalization)
    return scale, shift


def _conv(conv: nn.Module, dtype: torch.dtype, after: PixelScale | None = None) -> Conv:
    """Fold the weight norm of a convolution, and the normalization after it."""
    assert isinstance(conv, WeightNormConv)
    direction = float64_on_cpu(conv.direction)
    weight = direction * (float64_on_cpu(conv.length) / direction.flatten(1).norm(dim=1))[:, None, None, None]
    bias = None if conv.bias is None else float64_on_cpu(conv.bias)
    if after is not None:
        scale, shift = after
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else bias * scale + shift
    return Conv(weight, bias, dtype, device=conv.direction.device)
