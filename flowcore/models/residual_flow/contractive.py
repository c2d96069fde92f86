"""Contractive networks: convolutions of bounded spectral norm, and activations of slope at most 1.

Source: Behrmann et al., "Invertible residual networks" (ICML 2019); Gouk et al., "Regularisation of neural networks by
enforcing Lipschitz continuity" (norms); Chen et al., "Residual flows" (NeurIPS 2019), section 3.3 (LipSwish).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device import no_autocast

ActivationName = Literal["lipswish", "elu"]

FREQUENCIES = 32  # frequencies per axis, for the bound that holds at any image size
MAX_ITERATIONS = 1000  # most steps of a power iteration


class LipSwish(nn.Module):
    """``x sigmoid(b x) / 1.1`` with a learned ``b = softplus(beta)``: its slope is at most 1 (1.0998 / 1.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.beta) * x) / 1.1

    def slope(self, x: Tensor) -> Tensor:
        scaled = F.softplus(self.beta) * x
        gate = torch.sigmoid(scaled)
        return (gate + scaled * gate * (1 - gate)) / 1.1


class ELU(nn.Module):
    """``x`` above 0, ``exp(x) - 1`` below: its slope is at most 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x)

    def slope(self, x: Tensor) -> Tensor:
        return torch.exp(x.clamp(max=0))


ACTIVATIONS: dict[ActivationName, type[LipSwish | ELU]] = {"lipswish": LipSwish, "elu": ELU}  # slopes are at most 1


class LipschitzConv(nn.Module):
    """A zero-padded convolution with the weight ``W / max(1, sigma / c)``; sigma is W's norm, c the ``coefficient``.

    Sigma, the spectral norm, is ``<u, W v>`` with the leading singular vectors u and v: constants that ``normalize``
    measures, so sigma is linear in W.

    - With a ``grid`` (height, width), they are those for images of that size, zero padding included.
    - Without, they are plane waves, and sigma, the largest norm over all frequencies, is a bound at every image size;
      on small grids it is 6 to 22 % above the norm there.
    """

    direction: Tensor
    u: Tensor
    v: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, grid: tuple[int, int] | None, coefficient: float
    ) -> None:
        super().__init__()
        self.padding, self.grid, self.coefficient = kernel // 2, grid, coefficient
        bound = (inputs * kernel**2) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        sides = (1, 1) if kernel == 1 else grid  # a 1x1 convolution has one norm on every grid
        self.uses_plane_waves = sides is None
        if sides is None:
            self.register_buffer("direction", torch.zeros(outputs, inputs, kernel, kernel))
        else:
            for name, channels in (("u", outputs), ("v", inputs)):
                vector = torch.randn(channels, *sides)
                self.register_buffer(name, vector / vector.norm())

    def sigma(self) -> Tensor:
        """Compute the spectral norm along the directions that ``normalize`` found; differentiable."""
        if self.uses_plane_waves:
            return (self.weight * self.direction).sum()
        return (self.u * F.conv2d(self.v[None], self.weight, padding=self.padding)[0]).sum()

    def bounded_weight(self) -> Tensor:
        """Compute ``W / max(1, sigma / c)``, ``(outputs, inputs, kernel, kernel)``."""
        return self.weight / (self.sigma() / self.coefficient).clamp_min(1)

    @torch.no_grad()
    def normalize(self, tolerance: float = 1e-4) -> None:
        """Measure the norm by power iteration, until the relative change of sigma is below ``tolerance``."""
        for _ in range(0 if self.weight.is_meta else MAX_ITERATIONS):
            vectors, sigma = self._step()
            if not sigma - self.sigma() > tolerance * sigma:  # NaN ends it, too
                return
            for name, vector in vectors.items():
                self.get_buffer(name).copy_(vector)

    @torch.no_grad()
    def is_normalized(self, tolerance: float = 0.05) -> bool:
        """Return True if a step of power iteration finds no norm that is larger by more than this share."""
        sigma = self._step()[1]
        return bool(sigma - self.sigma() <= tolerance * sigma)

    def problem(self) -> tuple[str, str] | None:
        """See ``Transform.problem``."""
        wrong = "has a larger norm than its stored vectors give (saved without flow.normalize()?)"
        return None if self.is_normalized() else ("weight", wrong)

    def _step(self) -> tuple[dict[str, Tensor], Tensor]:
        """Make a step of power iteration: better vectors by name, and their sigma. Plane waves need one step only."""
        if self.uses_plane_waves:
            wave = _worst_plane_wave(self.weight)
            return {"direction": wave}, (self.weight * wave).sum()
        u = _unit(F.conv2d(self.v[None], self.weight, padding=self.padding)[0])
        back = F.conv_transpose2d(u[None], self.weight, padding=self.padding)[0]
        return {"u": u, "v": _unit(back)}, back.norm()


class ContractiveNetwork(nn.Module):
    """Convolutions of bounded norm with activations of bounded slope between them and, if ``leading``, one before them.

    Its Lipschitz constant is below 1, so ``x + network(x)`` has an inverse. Its Jacobian J is a product of convolutions
    and diagonal matrices. So ``linearize`` multiplies by ``J^T`` without automatic differentiation: training then
    differentiates through it once, not twice. ``coefficient`` and ``grid`` are as in ``LipschitzConv``.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        kernels: Sequence[int] = (3, 1, 3),
        activation: ActivationName = "lipswish",
        leading: bool = True,
        grid: tuple[int, int] | None = None,
        coefficient: float = 0.98,
    ) -> None:
        super().__init__()
        widths = [channels, *[hidden] * (len(kernels) - 1), channels]
        self.layers = nn.ModuleList()
        for k, kernel in enumerate(kernels):
            if k or leading:
                self.layers.append(ACTIVATIONS[activation]())
            self.layers.append(LipschitzConv(widths[k], widths[k + 1], kernel, grid=grid, coefficient=coefficient))

    def convolutions(self) -> list[LipschitzConv]:
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
        """Evaluate the network in the precision of ``x``, whatever autocast says; pass ``weights()`` to reuse them."""
        with no_autocast(x.device):
            remaining = iter(self.weights() if weights is None else weights)
            for layer in self.layers:
                x = layer(x) if isinstance(layer, (LipSwish, ELU)) else _conv(x, *next(remaining))
        return x

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the output at ``x`` ``(B, C, H, W)``, and the function ``e -> J^T e`` there.

        e is ``(B, C, H, W)``, or ``(N, C, H, W)`` if B is 1.
        """
        linear: list[tuple[bool, Tensor]] = []  # for every layer: whether a convolution, and its kernel or the slopes
        with no_autocast(x.device):
            remaining = iter(self.weights())
            for layer in self.layers:
                if isinstance(layer, (LipSwish, ELU)):
                    linear.append((False, layer.slope(x)))
                    x = layer(x)
                else:
                    weight, bias = next(remaining)
                    linear.append((True, weight))
                    x = _conv(x, weight, bias)

        def vjp(e: Tensor) -> Tensor:
            with no_autocast(e.device):
                for convolves, factor in reversed(linear):
                    e = F.conv_transpose2d(e, factor, padding=factor.shape[-1] // 2) if convolves else e * factor
            return e

        return x, vjp


def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)


def _worst_plane_wave(weight: Tensor) -> Tensor:
    """Find the direction whose product with the weight bounds the norm of the convolution at every image size.

    The norm there is at most the largest ``|W(f)|`` over frequencies f. W(f) is a trigonometric polynomial of degree
    kernel // 2 in each axis, so N frequencies miss its maximum by a factor of at most ``1 / cos(pi degree / N)`` per
    axis. The direction is multiplied by both factors.
    """
    kernel = weight.shape[-1]
    spectrum = torch.fft.fft2(weight.double(), s=(FREQUENCIES, FREQUENCIES)).permute(2, 3, 0, 1)  # (N, N, O, I)
    tall = spectrum if weight.shape[0] >= weight.shape[1] else spectrum.mH
    norms = torch.linalg.eigvalsh(tall.mH @ tall)[..., -1]
    row, column = divmod(int(norms.argmax()), FREQUENCIES)
    u, _, vh = torch.linalg.svd(spectrum[row, column], full_matrices=False)
    angles = [2 * math.pi / FREQUENCIES * at * torch.arange(kernel, dtype=torch.float64) for at in (row, column)]
    phase = (angles[0][:, None] + angles[1]).to(weight.device)
    wave = torch.polar(torch.ones_like(phase), -phase)
    direction = (u[:, 0].conj()[:, None] * vh[0].conj())[:, :, None, None] * wave
    return (direction.real / math.cos(math.pi * (kernel // 2) / FREQUENCIES) ** 2).to(weight)
