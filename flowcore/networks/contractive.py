"""Contractive networks: convolutions of bounded spectral norm, and activations of slope at most 1.

The Lipschitz constant of such a network is at most the product of its convolutions' bounds, c each, so that
``x + network(x)`` has an inverse. A bound is kept by what ``normalize`` last measured; ``forward`` only divides by it.

Source: Behrmann et al., "Invertible residual networks" (ICML 2019); Gouk et al., "Regularisation of neural networks by
enforcing Lipschitz continuity" (norms of convolutions); Chen et al., "Residual flows" (NeurIPS 2019), section 3.3
(LipSwish).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import no_autocast

ActivationName = Literal["lipswish", "elu"]

FREQUENCIES = 32  # per axis, of the bound that holds at any image size
MAX_ITERATIONS = 200  # of a power iteration


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
    singular vectors u and v, constants that ``normalize`` measures; gradients pass through it. On a grid, u and v are
    those of the convolution of an image of that size, zero padding included. Without a grid they are plane waves: the
    largest norm over all frequencies bounds the convolution at every image size, by 6 to 22 % too high on small grids.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, grid: tuple[int, int] | None, coefficient: float
    ) -> None:
        """Build the convolution with random weights; its norm is unknown until ``normalize``.

        Args:
            inputs: Channels.
            outputs: Channels.
            kernel: Side of the kernel, odd.
            grid: Height and width of the images; None for any size.
            coefficient: c.
        """
        super().__init__()
        self.padding, self.grid, self.coefficient = kernel // 2, grid, coefficient
        bound = (inputs * kernel**2) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        sides = (1, 1) if kernel == 1 else grid
        if sides is None:
            self.register_buffer("direction", torch.zeros(outputs, inputs, kernel, kernel))
        else:
            for name, channels in (("u", outputs), ("v", inputs)):
                vector = torch.randn(channels, *sides)
                self.register_buffer(name, vector / vector.norm())

    def sigma(self) -> Tensor:
        """Compute the spectral norm along the directions that ``normalize`` found; differentiable."""
        if "direction" in self._buffers:
            return (self.weight * self.get_buffer("direction")).sum()
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
                it is if the first step does so.
        """
        if "direction" in self._buffers:
            self.get_buffer("direction").copy_(_steepest_wave(self.weight))
            return
        u, v, sigma = self.get_buffer("u"), self.get_buffer("v"), self.sigma()
        for _ in range(MAX_ITERATIONS):
            new_u = _unit(F.conv2d(v[None], self.weight, padding=self.padding)[0])
            back = F.conv_transpose2d(new_u[None], self.weight, padding=self.padding)[0]
            before, sigma = sigma, back.norm()
            if not (sigma - before).abs() > tolerance * sigma:
                return
            u.copy_(new_u)
            v.copy_(_unit(back))

    @torch.no_grad()
    def excess(self) -> float:
        """Measure how much larger the norm is than ``sigma``, in proportion, as one step of power iteration tells."""
        ...


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
