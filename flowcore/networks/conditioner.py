"""Networks inside couplings, injectors and splits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transforms import ActNorm


class NormalisedConv(nn.Module):
    """A bias-free convolution followed by an actnorm, computed as one convolution.

    ``y = (conv(x) + bias) * exp(log_scale)``. Folding the actnorm into weight and bias is exact and saves two passes
    over the activations. Its log-determinant is nobody's business: a conditioner need not be invertible.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        """Draw the weights from N(0, 0.05^2), as Glow does.

        Args:
            inputs: Channels in.
            outputs: Channels out.
            kernel: Side of the kernel, odd; the grid keeps its size.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * 0.05)
        self.actnorm = ActNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, outputs, H, W)``.
        """
        scale = self.actnorm.log_scale.exp()
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight * scale[:, None, None, None], self.actnorm.bias * scale, padding=padding)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Choose the actnorm so that this batch leaves with mean 0 and variance 1 per channel.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            The normalised output.
        """
        return self.actnorm.initialise(F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2))


class ScaledConv(nn.Module):
    """A 3x3 convolution with a learned scale per output channel, all zero at first ("zero convolution").

    ``y = (conv(x) + bias) * exp(3 * log_scale)``.

    Source: Kingma & Dhariwal, "Glow", section 3.3 and its program.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Start at zero.

        Args:
            inputs: Channels in.
            outputs: Channels out.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and scale.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, outputs, H, W)``.
        """
        scale = torch.exp(3 * self.log_scale)
        return F.conv2d(x, self.weight * scale[:, None, None, None], self.bias * scale, padding=1)


class Conditioner(nn.Module):
    """The usual network of a Glow coupling: 3x3, some hidden convolutions, 3x3.

    Every convolution but the last is followed by an actnorm and a ReLU; the last is a zero convolution.

    Source: Kingma & Dhariwal, "Glow", section 3.3; deeper variants as in SRFlow-DA.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, layers: int = 1, kernel: int = 1) -> None:
        """Build the network.

        Args:
            inputs: Channels in.
            hidden: Channels of the hidden layers.
            outputs: Channels out.
            layers: Hidden convolutions between the first and the last.
            kernel: Their side: 1 or 3.
        """
        super().__init__()
        self.hidden = nn.ModuleList([NormalisedConv(inputs, hidden, 3)])
        self.hidden.extend(NormalisedConv(hidden, hidden, kernel) for _ in range(layers))
        self.last = ScaledConv(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, outputs, H, W)``.
        """
        for conv in self.hidden:
            x = F.relu(conv(x))
        return self.last(x)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Initialise the hidden actnorms, each from what the layers before it make of the batch.

        Args:
            x: ``(B, inputs, H, W)``.
        """
        for conv in self.hidden:
            assert isinstance(conv, NormalisedConv)
            x = F.relu(conv.initialise(x))
