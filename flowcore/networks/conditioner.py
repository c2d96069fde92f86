"""Networks inside couplings, injectors and splits; all keep the grid: (B, inputs, H, W) to (B, outputs, H, W)."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transforms import ActNorm

M = TypeVar("M", bound=nn.Module)
Edge = Literal["zeros", "ones", "flag"]


class NormalizedConv(nn.Module):
    """A bias-free convolution followed by an actnorm, computed as one convolution.

    ``y = (conv(x) + bias) * exp(log_scale)``.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, edge: Edge = "zeros", log_factor: float = 1.0
    ) -> None:
        """Draw the weights from N(0, 0.05^2), as Glow does.

        Args:
            inputs: Channels in.
            outputs: Channels out.
            kernel: Side of the kernel, odd.
            edge: What lies beyond the border; see ``convolve``. A 1x1 kernel sees no border.
            log_factor: Of the actnorm.
        """
        super().__init__()
        self.edge: Edge = edge if kernel > 1 else "zeros"
        self.weight = nn.Parameter(torch.randn(outputs, inputs + (self.edge == "flag"), kernel, kernel) * 0.05)
        self.actnorm = ActNorm(outputs, log_factor=log_factor)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.actnorm.logs().exp()
        weight, bias = self.weight * scale[:, None, None, None], self.actnorm.bias * scale
        return convolve(x, weight, bias, self.edge)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Initialize the actnorm and return the output, of mean 0 and variance 1 per channel."""
        return self.actnorm.initialize(convolve(x, self.weight, None, self.edge))


class ScaledConv(nn.Module):
    """A 3x3 convolution with a learned scale per output channel, all zero at first ("zero convolution").

    ``y = (conv(x) + bias) * exp(3 * log_scale)``.

    Source: Kingma & Dhariwal, "Glow", section 3.3 and its program.
    """

    def __init__(self, inputs: int, outputs: int, *, edge: Edge = "zeros") -> None:
        """Start at zero.

        Args:
            inputs: Channels in; 0 for a constant (and, with the edge "flag", another one at the border).
            outputs: Channels out.
            edge: What lies beyond the border; see ``convolve``.
        """
        super().__init__()
        self.edge: Edge = edge
        inputs += edge == "flag"
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3)) if inputs else None
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.exp(3 * self.log_scale)
        if self.weight is None:
            return (self.bias * scale)[:, None, None].expand(x.shape[0], -1, *x.shape[2:])
        return convolve(x, self.weight * scale[:, None, None, None], self.bias * scale, self.edge)


class Conditioner(nn.Module):
    """The usual network of a Glow coupling: 3x3, some hidden convolutions, 3x3.

    Every convolution but the last is followed by an actnorm and a ReLU; the last is a zero convolution.

    Source: Kingma & Dhariwal, "Glow", section 3.3; deeper variants as in SRFlow-DA; not scaled as in normflows.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        layers: int = 1,
        kernel: int = 1,
        edge: Edge = "zeros",
        log_factor: float = 1.0,
        scaled: bool = True,
        pooled: bool = False,
    ) -> None:
        """Build the network.

        Args:
            inputs: Channels in.
            hidden: Channels of the hidden layers.
            outputs: Channels out.
            layers: Hidden convolutions between the first and the last.
            kernel: Side of their kernels: 1 or 3.
            edge: What lies beyond the border; see ``convolve``.
            log_factor: Of the actnorms.
            scaled: Whether the last convolution is a ``ScaledConv``; else a plain one that starts at zero.
            pooled: Whether to add to every position a linear map of the first hidden layer's mean over all positions,
                which makes the whole grid the receptive field, whatever its size.
        """
        super().__init__()
        self.pool = nn.Linear(hidden, hidden) if pooled else None
        self.hidden = nn.ModuleList([NormalizedConv(inputs, hidden, 3, edge=edge, log_factor=log_factor)])
        self.hidden.extend(
            NormalizedConv(hidden, hidden, kernel, edge=edge, log_factor=log_factor) for _ in range(layers)
        )
        self.last = _last_conv(hidden, outputs, edge, scaled)

    def forward(self, x: Tensor) -> Tensor:
        for number, conv in enumerate(self.hidden):
            x = self._add_pooled(F.relu(conv(x)), number)
        return self.last(x)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initialize the hidden actnorms, each from the output of the layers before it."""
        for number, conv in enumerate(self.hidden):
            assert isinstance(conv, NormalizedConv)
            x = self._add_pooled(F.relu(conv.initialize(x)), number)

    def _add_pooled(self, x: Tensor, number: int) -> Tensor:
        if self.pool is None or number > 0:
            return x
        return x + self.pool(x.mean((2, 3)))[:, :, None, None]


class PlainConditioner(nn.Module):
    """The network of a coupling without actnorms: 3x3, hidden and 3x3 convolutions with biases, ReLU between.

    With residual blocks, every block of hidden convolutions adds its input to its output, both after their ReLU.

    Source: re-implementations of Glow whose checkpoints need it (the paper's is ``Conditioner``); Jo et al.,
    "SRFlow-DA", section 3.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        edge: Edge = "zeros",
        scaled: bool = True,
        layers: int = 1,
        kernel: int = 1,
        residual_blocks: int = 0,
    ) -> None:
        """Build the network.

        Args:
            inputs: Channels in.
            hidden: Channels of the hidden layers.
            outputs: Channels out.
            edge: What lies beyond the border for the last convolution; see ``convolve``.
            scaled: Whether the last convolution is a ``ScaledConv``; else a plain one that starts at zero.
            layers: Hidden convolutions between the first and the last.
            kernel: Side of their kernels: 1 or 3.
            residual_blocks: Residual blocks that they form, a divisor of ``layers``; 0 for none.
        """
        super().__init__()
        self.block_layers = layers // residual_blocks if residual_blocks else 0
        self.hidden = nn.ModuleList([nn.Conv2d(inputs, hidden, 3, padding=1)])
        self.hidden.extend(nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2) for _ in range(layers))
        self.last = _last_conv(hidden, outputs, edge, scaled)
        for conv in self.hidden:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        first, *hidden = self.hidden
        x = block = F.relu(first(x))
        for number, conv in enumerate(hidden, start=1):
            x = F.relu(conv(x))
            if self.block_layers and number % self.block_layers == 0:
                x = block = x + block
        return self.last(x)


class DenseConditioner(nn.Module):
    """A fully connected network for couplings on a single position: linear, ReLU, linear that starts at zero.

    Source: Ardizzone et al., "Guided Image Generation with Conditional Invertible Neural Networks" (2019), MNIST model.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.last = start_at_zero(nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.flatten(1))))[:, :, None, None]  # from (B, inputs, 1, 1)


def _last_conv(inputs: int, outputs: int, edge: Edge, scaled: bool) -> nn.Module:
    if scaled:
        return ScaledConv(inputs, outputs, edge=edge)
    return start_at_zero(nn.Conv2d(inputs, outputs, 3, padding=1))


def start_at_zero(layer: M) -> M:
    """Set all parameters of a layer to zero, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, edge: Edge) -> Tensor:
    """Convolve on the same grid.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(outputs, C, k, k)``, k odd; ``(outputs, C + 1, k, k)`` for the edge "flag".
        bias: ``(outputs,)`` or None.
        edge: What lies beyond the border: "zeros"; "ones": the constant 1; or "flag": zeros, and an additional last
            channel that is 1 beyond the border and 0 inside, by which a convolution can tell where it is (Glow's
            program).

    Returns:
        ``(B, outputs, H, W)``.
    """
    border = weight.shape[-1] // 2
    if edge == "zeros":
        return F.conv2d(x, weight, bias, padding=border)
    if edge == "ones":
        return F.conv2d(F.pad(x, (border,) * 4, value=1), weight, bias)
    flag = F.pad(x.new_zeros(x.shape[0], 1, *x.shape[2:]), (border,) * 4, value=1)
    return F.conv2d(torch.cat([F.pad(x, (border,) * 4), flag], dim=1), weight, bias)
