"""Contractive networks: convolutions of bounded spectral norm, and activations of slope at most 1.

The Lipschitz constant of such a network is at most the product of its convolutions' bounds, c each, so that
``x + network(x)`` has an inverse. A bound is kept by what ``normalize`` last measured; ``forward`` only divides by it.

Source: Behrmann et al., "Invertible residual networks" (ICML 2019); Gouk et al., "Regularisation of neural networks by
enforcing Lipschitz continuity" (norms of convolutions); Chen et al., "Residual flows" (NeurIPS 2019), section 3.3
(LipSwish).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import no_autocast

ActivationName = Literal["lipswish", "elu"]

MAX_ITERATIONS = 1000  # of a power iteration


class LipSwish(nn.Module):
    """``x sigmoid(b x) / 1.1`` with a learned ``b = softplus(beta)``: its slope is at most 1 (1.0998 / 1.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.beta) * x) / 1.1

    def slope(self, x: Tensor) -> Tensor:
        """Compute the derivative at ``x``, elementwise."""
        scaled = F.softplus(self.beta) * x
        gate = torch.sigmoid(scaled)
        return (gate + scaled * gate * (1 - gate)) / 1.1


class ELU(nn.Module):
    """``x`` above 0, ``exp(x) - 1`` below: its slope is at most 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x)

    def slope(self, x: Tensor) -> Tensor:
        """Compute the derivative at ``x``, elementwise."""
        return torch.exp(x.clamp(max=0))


ACTIVATIONS: dict[ActivationName, type[LipSwish | ELU]] = {"lipswish": LipSwish, "elu": ELU}


class LipschitzConv(nn.Module):
    """A convolution with zero padding that is used as ``W / max(1, sigma / c)``, sigma its spectral norm.

    A convolution whose norm is below c is left alone. Sigma is a linear function of W, ``<u, W v>`` with the leading
    singular vectors u and v of the convolution of an image of one size, zero padding included. They are constants that
    ``normalize`` measures; gradients pass through sigma.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, grid: tuple[int, int], coefficient: float) -> None:
        """Build the convolution with random weights; its norm is unknown until ``normalize``.

        Args:
            inputs: Channels.
            outputs: Channels.
            kernel: Side of the kernel, odd.
            grid: Height and width of the images; a 1x1 kernel takes any size.
            coefficient: c.
        """
        super().__init__()
        self.padding, self.coefficient = kernel // 2, coefficient
        bound = (inputs * kernel**2) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        for name, channels in (("u", outputs), ("v", inputs)):
            vector = torch.randn(channels, *((1, 1) if kernel == 1 else grid))
            self.register_buffer(name, vector / vector.norm())

    def sigma(self) -> Tensor:
        """Compute the spectral norm along the directions that ``normalize`` found; differentiable."""
        image = F.conv2d(self.get_buffer("v")[None], self.weight, padding=self.padding)
        return (self.get_buffer("u") * image[0]).sum()

    def bounded_weight(self) -> Tensor:
        """Compute ``W / max(1, sigma / c)``, ``(outputs, inputs, kernel, kernel)``."""
        return self.weight / (self.sigma() / self.coefficient).clamp_min(1)

    @torch.no_grad()
    def normalize(self, tolerance: float = 1e-4) -> None:
        """Measure the norm of the present weight.

        Args:
            tolerance: Of the power iteration: it ends when sigma changes by less, relatively, and leaves everything as
                it is if already the first step does so.
        """
        for _ in range(0 if self.weight.is_meta else MAX_ITERATIONS):
            u, v, sigma = self._step()
            if not sigma - self.sigma() > tolerance * sigma:
                return
            self.get_buffer("u").copy_(u)
            self.get_buffer("v").copy_(v)

    @torch.no_grad()
    def is_normalized(self, tolerance: float = 0.05) -> bool:
        """Return True if a step of power iteration finds no norm that is larger by more than this share."""
        sigma = self._step()[2]
        return bool(sigma - self.sigma() <= tolerance * sigma)

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make a step of power iteration: better vectors u and v, and their sigma."""
        u = _unit(F.conv2d(self.get_buffer("v")[None], self.weight, padding=self.padding)[0])
        back = F.conv_transpose2d(u[None], self.weight, padding=self.padding)[0]
        return u, _unit(back), back.norm()


class ContractiveNetwork(nn.Module):
    """Convolutions of bounded norm with activations of bounded slope between them, and perhaps one before them.

    Its Jacobian J is a product of convolutions and diagonal matrices, so products with ``J^T`` are transposed
    convolutions and multiplications: they need no automatic differentiation, and are differentiable themselves.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        kernels: Sequence[int] = (3, 1, 3),
        activation: ActivationName = "lipswish",
        leading: bool = True,
        grid: tuple[int, int] = (1, 1),
        coefficient: float = 0.98,
    ) -> None:
        """Build the network with random weights.

        Args:
            channels: Of input and output.
            hidden: Channels between convolutions.
            kernels: Side of each convolution.
            activation: What stands between them.
            leading: Whether one stands before the first.
            grid: Height and width of the images; kernels of 1 take any size.
            coefficient: Bound of each norm, below 1.
        """
        super().__init__()
        widths = [channels, *[hidden] * (len(kernels) - 1), channels]
        parts: list[nn.Module] = [ACTIVATIONS[activation]()] if leading else []
        for k, kernel in enumerate(kernels):
            parts.append(LipschitzConv(widths[k], widths[k + 1], kernel, grid=grid, coefficient=coefficient))
            if k < len(kernels) - 1:
                parts.append(ACTIVATIONS[activation]())
        self.layers = nn.ModuleList(parts)

    def convolutions(self) -> list[LipschitzConv]:
        """List the convolutions in order."""
        return [layer for layer in self.layers if isinstance(layer, LipschitzConv)]

    def normalize(self, tolerance: float = 1e-4) -> None:
        """Measure the norms of all convolutions; see ``LipschitzConv.normalize``."""
        for convolution in self.convolutions():
            convolution.normalize(tolerance)

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Compute the weight of bounded norm, and the bias, of every convolution."""
        with no_autocast(self.convolutions()[0].weight.device):
            return [(convolution.bounded_weight(), convolution.bias) for convolution in self.convolutions()]

    def forward(self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: ``(B, C, H, W)``.
            weights: From ``weights``, where the network is evaluated more than once.

        Returns:
            ``(B, C, H, W)``, in the precision of ``x``, whatever autocast is in force.
        """
        with no_autocast(x.device):
            remaining = iter(self.weights() if weights is None else weights)
            for layer in self.layers:
                x = layer(x) if isinstance(layer, (LipSwish, ELU)) else _conv(x, *next(remaining))
        return x

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Evaluate the network and its Jacobian J at ``x``.

        Args:
            x: ``(B, C, H, W)``.

        Returns:
            The network's output; and the function from e to ``J^T e``, of ``(B, C, H, W)``, or of ``(N, C, H, W)`` if
            B is 1.
        """
        slopes: list[Tensor] = []
        weights = self.weights()
        with no_autocast(x.device):
            remaining = iter(weights)
            for layer in self.layers:
                if isinstance(layer, (LipSwish, ELU)):
                    slopes.append(layer.slope(x))
                    x = layer(x)
                else:
                    x = _conv(x, *next(remaining))

        def transposed(e: Tensor) -> Tensor:
            kernels, factors = [weight for weight, _ in weights], list(slopes)
            with no_autocast(e.device):
                for layer in reversed(self.layers):
                    if isinstance(layer, (LipSwish, ELU)):
                        e = e * factors.pop()
                    else:
                        kernel = kernels.pop()
                        e = F.conv_transpose2d(e, kernel, padding=kernel.shape[-1] // 2)
            return e

        return x, transposed


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
