"""Conditioners, the same-size networks inside couplings, injectors and splits; and priors of the last latents."""

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device import no_autocast
from ..transforms import ActNorm

M = TypeVar("M", bound=nn.Module)
Edge = Literal["zeros", "ones", "flag"]  # what pads the input; "flag": zeros, and a channel that marks them


class NormalizedConv(nn.Module):
    """A bias-free convolution and an actnorm: ``y = (conv(x) + bias) * exp(log_scale)``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, edge: Edge = "zeros", log_factor: float = 1.0
    ) -> None:
        """Draw the weights from N(0, 0.05^2), as Glow does; ``edge`` matters only if the kernel is larger than 1x1."""
        super().__init__()
        self.edge: Edge = edge if kernel > 1 else "zeros"
        self.weight = nn.Parameter(torch.randn(outputs, inputs + (self.edge == "flag"), kernel, kernel).mul_(0.05))
        self.actnorm = ActNorm(outputs, log_factor=log_factor)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.actnorm.effective_log_scale().exp()
        # scaling the kernel instead of the output saves a pass over the activations
        weight, bias = self.weight * scale[:, None, None, None], self.actnorm.bias * scale
        return convolve(x, weight, bias, self.edge)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Initialize the actnorm and return the output, of mean 0 and variance 1 per channel."""
        return self.actnorm.initialize(convolve(x, self.weight, None, self.edge))


class ZeroConv(nn.Module):
    """A 3x3 convolution with a learned scale per output channel, all zero at first.

    ``y = (conv(x) + bias) * exp(3 * log_scale)``. With 0 inputs the output is a constant per channel and, with the edge
    "flag", another one at the border.

    Source: Kingma & Dhariwal, "Glow", section 3.3 and its reference implementation.
    """

    def __init__(self, inputs: int, outputs: int, *, edge: Edge = "zeros") -> None:
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
    """The usual network of a Glow coupling, with actnorms: 3x3, ``layers`` hidden convolutions, 3x3.

    Every convolution but the last is followed by an actnorm and a ReLU; the last is a ``ZeroConv``, or, if not
    ``scaled``, a plain convolution that starts at zero. ``global_context`` adds a projection of the first hidden
    layer's global average at every position, so that the whole grid is the receptive field, whatever its size.

    Source: Kingma & Dhariwal, "Glow", section 3.3; deeper variants as in SRFlow-DA; unscaled in the package normflows.
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
        global_context: bool = False,
    ) -> None:
        super().__init__()
        self.pool = nn.Linear(hidden, hidden) if global_context else None
        shapes = [(inputs, hidden, 3), *[(hidden, hidden, kernel)] * layers]
        self.hidden = nn.ModuleList(NormalizedConv(*shape, edge=edge, log_factor=log_factor) for shape in shapes)
        self.last = _last_conv(hidden, outputs, edge, scaled)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._run_hidden(x))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initialize the hidden actnorms, each from the output of the layers before it."""
        self._run_hidden(x, initialize=True)

    def _run_hidden(self, x: Tensor, initialize: bool = False) -> Tensor:
        for number, conv in enumerate(self.hidden):
            assert isinstance(conv, NormalizedConv)
            x = F.relu(conv.initialize(x) if initialize else conv(x))
            if self.pool is not None and number == 0:
                x = x + self.pool(x.mean((2, 3)))[:, :, None, None]
        return x


class PlainConditioner(nn.Module):
    """A ``Conditioner`` without actnorms: its convolutions have biases instead, and ReLU between them.

    ``residual_blocks``, a divisor of ``layers``, groups the hidden convolutions: every group has a skip connection
    around it, from ReLU to ReLU. ``edge`` is that of the last convolution; the others pad with zeros.

    Source: re-implementations of Glow; Jo et al., "SRFlow-DA", section 3.
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
        super().__init__()
        self.block_layers = layers // residual_blocks if residual_blocks else 0
        shapes = [(inputs, hidden, 3), *[(hidden, hidden, kernel)] * layers]
        self.hidden = nn.ModuleList(nn.Conv2d(*shape, padding=shape[2] // 2) for shape in shapes)
        self.last = _last_conv(hidden, outputs, edge, scaled)
        for name, parameter in self.hidden.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.05)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        first, *hidden = self.hidden
        x = residual = F.relu(first(x))
        for number, conv in enumerate(hidden, start=1):
            x = F.relu(conv(x))
            if self.block_layers and number % self.block_layers == 0:
                x = residual = x + residual
        return self.last(x)


class MLPConditioner(nn.Module):
    """A fully connected network for couplings on a single position: linear, ReLU, linear that starts at zero.

    Source: Ardizzone et al., "Guided Image Generation with Conditional Invertible Neural Networks" (2019), MNIST model.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.last = start_at_zero(nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.flatten(1))))[:, :, None, None]  # x: (B, inputs, 1, 1)


class ZeroLinear(nn.Module):
    """``y = (W x + bias) * exp(3 * log_scale)``, all zero at first: "linear_zeros" of the original Glow."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T + self.bias) * torch.exp(3 * self.log_scale)


class TopPrior(nn.Module):
    """Prior of a flow's last latents: learned constants, a contribution of the border, and one of the label.

    ``raw = conv(zeros) + linear(labels)``: a convolution of zeros gives a constant per channel and, unless ``edge`` is
    "zeros", another one at the border. Starts at mean 0 and standard deviation 1.

    Source: Glow's reference implementation ("learntop", "ycond").
    """

    def __init__(self, channels: int, *, learned: bool = True, edge: Edge = "zeros", classes: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.inputs = channels if edge == "ones" else 0  # zeros, which the ones beyond the border surround
        self.constants = ZeroConv(self.inputs, 2 * channels, edge=edge) if learned else None
        self.by_label = ZeroLinear(classes, 2 * channels) if classes else None

    def forward(self, like: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict ``(B, 2 * C, H, W)`` for latents of shape ``like``: means on even, log standard deviations on odd."""
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
            with no_autocast(tables.device):  # the product with one-hot labels is a look-up, and must be exact
                tables = torch.tensordot(labels.to(tables.dtype), tables, dims=1)  # (B, 2C, H, W)
        return tables.to(like.dtype)


class FixedPrior(nn.Module):
    """Prior with mean 0 and a fixed standard deviation."""

    def __init__(self, log_std: float) -> None:
        super().__init__()
        self.log_std = log_std

    def forward(self, like: Tensor) -> Tensor:
        """Return zeros on even, ``log_std`` on odd channels."""
        return torch.stack([torch.zeros_like(like), torch.full_like(like, self.log_std)], dim=2).flatten(1, 2)


def _last_conv(inputs: int, outputs: int, edge: Edge, scaled: bool) -> nn.Module:
    if scaled:
        return ZeroConv(inputs, outputs, edge=edge)
    return start_at_zero(nn.Conv2d(inputs, outputs, 3, padding=1))


def start_at_zero(layer: M) -> M:
    """Set all parameters of a layer to zero, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, edge: Edge) -> Tensor:
    """Convolve on the same grid, with ``edge`` beyond the border: "zeros", "ones" or "flag".

    "flag" (as in Glow's reference implementation) pads with zeros and appends a channel that is 1 beyond the border.
    """
    border = weight.shape[-1] // 2
    if edge == "zeros":
        return F.conv2d(x, weight, bias, padding=border)
    return F.conv2d(with_border(x, (border, border, border, border), edge), weight, bias)


def with_border(x: Tensor, around: tuple[int, int, int, int], edge: Edge) -> Tensor:
    """Pad for the edge "ones" or "flag", by columns left and right and rows above and below; see ``convolve``."""
    if edge == "ones":
        return F.pad(x, around, value=1)
    flag = F.pad(x.new_zeros(x.shape[0], 1, *x.shape[2:]), around, value=1)
    return torch.cat([F.pad(x, around), flag], dim=1)
