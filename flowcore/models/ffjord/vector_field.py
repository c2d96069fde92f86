"""The network of an ODE: a velocity for every position and time, and its derivative along given directions."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ShapeError
from ...flows.networks.conditioner import start_at_zero

TimeInput = Literal["concat", "concatsquash", "ignore"]
Activation = Literal["softplus", "tanh", "elu", "relu", "swish"]

# Every activation with its slope.
ACTIVATIONS: dict[Activation, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softplus": (F.softplus, torch.sigmoid),
    "tanh": (torch.tanh, lambda x: 1 - torch.tanh(x).square()),
    "elu": (F.elu, lambda x: x.clamp(max=0).exp()),
    "relu": (F.relu, lambda x: (x > 0).to(x)),
    "swish": (F.silu, lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))),
}


class TimedConv(nn.Module):
    """A convolution that sees the time: 3x3 for stride 1, 4x4 for 2, and a transposed 4x4 of stride 2 for -2.

    ``concat``: the time is the first input channel, zero-padded like all others. ``concatsquash``: ``conv(x) *
    sigmoid(a t + b) + c t``, with a, b and c for every output channel. ``ignore``: the time has no effect.
    """

    def __init__(self, inputs: int, outputs: int, *, time: TimeInput, stride: int = 1) -> None:
        super().__init__()
        self.concat = time == "concat"
        size = 3 if stride == 1 else 4
        kind = nn.ConvTranspose2d if stride < 0 else nn.Conv2d
        self.conv = kind(inputs + self.concat, outputs, size, stride=abs(stride), padding=1)
        self.gate: Any = nn.Linear(1, outputs) if time == "concatsquash" else None
        self.shift: Any = nn.Linear(1, outputs, bias=False) if time == "concatsquash" else None

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.concat:
            x = torch.cat([t.expand(x.shape[0], 1, *x.shape[2:]), x], dim=1)
        x = self.conv(x)
        if self.gate is None:
            return x
        return x * self._gate(t) + self.shift(t.reshape(1, 1))[:, :, None, None]

    def derivative(self, t: Tensor, v: Tensor) -> Tensor:
        """Apply the linear part to directions ``(N, C, H, W)``."""
        conv = self.conv
        transposed = isinstance(conv, nn.ConvTranspose2d)
        weight = conv.weight
        if self.concat:  # the time channel has a zero tangent
            weight = weight[1:] if transposed else weight[:, 1:]
        apply = F.conv_transpose2d if transposed else F.conv2d
        v = apply(v, weight, stride=conv.stride[0], padding=conv.padding[0])  # pyright: ignore[reportArgumentType]
        return v if self.gate is None else v * self._gate(t)

    def _gate(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(t.reshape(1, 1)))[:, :, None, None]


class VectorField(nn.Module):
    """``f(t, y)``: convolutions with an activation between, none after the last; all of them see the time t, ``()``.

    The derivative with respect to y is written out, layer by layer, so that it needs no second backward pass. Use a
    smooth activation: kinks cost a solver its order. ``strides`` are, per layer, 1, 2 to halve the sides, or -2 to
    double them.

    Source: Grathwohl et al., "FFJORD" (2019), section 3 and appendix B.
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int],
        *,
        time: TimeInput = "concat",
        activation: Activation = "softplus",
        strides: Sequence[int] = (),
    ) -> None:
        """Start with a velocity of zero everywhere."""
        super().__init__()
        self.activation, self.slope = ACTIVATIONS[activation]
        self.multiple = 2 ** [*strides].count(2)
        widths = [channels, *hidden, channels]
        self.layers: Any = nn.ModuleList(
            TimedConv(inputs, outputs, time=time, stride=stride)
            for (inputs, outputs), stride in zip(pairwise(widths), strides or [1] * (len(widths) - 1), strict=True)
        )
        start_at_zero(self.layers[-1])

    def forward(self, t: Tensor, y: Tensor, slopes: list[Tensor] | None = None) -> Tensor:
        """Evaluate the velocity of y ``(B, C, H, W)``, of the same shape, and append the activations' ``slopes``."""
        height, width = y.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ShapeError(
                f"The strides of this velocity need sides divisible by {self.multiple}; got {height}x{width}. Crop or "
                "pad the image."
            )
        first, *others = self.layers
        y = first(t, y)
        for layer in others:
            if slopes is not None:
                slopes.append(self.slope(y))
            y = layer(t, self.activation(y))
        return y

    def linearized(self, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Evaluate the velocity, and the slopes of all activations, for ``derivative``."""
        slopes: list[Tensor] = []
        return self(t, y, slopes), slopes

    def derivative(self, t: Tensor, slopes: Sequence[Tensor], v: Tensor) -> Tensor:
        """Apply the Jacobian df/dy, given by ``linearized``, to K directions per item, ``(B, K, C, H, W)``."""
        batch, directions = v.shape[:2]
        first, *others = self.layers
        v = first.derivative(t, v.flatten(0, 1))
        for layer, slope in zip(others, slopes, strict=True):
            v = slope[:, None] * v.unflatten(0, (batch, directions))
            v = layer.derivative(t, v.flatten(0, 1))
        return v.unflatten(0, (batch, directions))
