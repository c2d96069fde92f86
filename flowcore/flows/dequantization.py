"""Dequantization: between images of integers and the real numbers that a flow is a density over.

A pixel with the integer value k in {0, ..., 2^n - 1} becomes ``(k + u + shift) * width`` with noise u ~ q(u | k) in
[0, 1). ``Quantization`` holds shift and width of a model; the dequantizers are the choices of q.

Source: Theis et al., "A note on the evaluation of generative models", section 3.1 (uniform noise); Ho et al.,
"Flow++", section 3.1 (variational noise).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import float64
from ..errors import ConditionError, FlowError, ImageError, ShapeError
from . import prior
from .flow import Flow
from .networks.conditioner import Conditioner
from .prior import seeds_of
from .stated import Facts
from .transforms import ActNorm, Chain, Coupling, Injector, InvertibleConv, LevelCondition, Squeeze, Transform

Grid = Literal["bins", "levels"]


# --- integers and bins ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantization:
    """Where a model expects the integers of an image: ``x = (k + u + shift) * width``, u in [0, 1).

    On the grid "bins", ``(k + u) / 2^n_bits``, they lie side by side from 0 to 1. On "levels", ``(k + u - 1/2) /
    (2^n_bits - 1)``, they are centered on the gray levels of ordinary images, the first on 0 and the last on 1.
    """

    n_bits: int = 8  # bits per subpixel, 1 to 8: k is in {0, ..., 2^n_bits - 1}
    grid: Grid = "bins"

    def __post_init__(self) -> None:
        if self.n_bits not in range(1, 9):
            raise FlowError(f"n_bits must be a whole number from 1 to 8; got {self.n_bits!r}.")
        if self.grid not in get_args(Grid):
            raise FlowError(f'grid must be "bins" or "levels"; got {self.grid!r}.')

    @property
    def width(self) -> float:
        """Width of a bin in image units."""
        return 1 / (2**self.n_bits - (self.grid == "levels"))

    @property
    def shift(self) -> float:
        """Offset of k + u before scaling, in bins."""
        return 0.0 if self.grid == "bins" else -0.5

    def place(self, k: Tensor, u: Tensor) -> Tensor:
        """Map integers and their noise to image units: ``(k + u + shift) * width``, in the noise's precision."""
        return (k.to(u) + u + self.shift) * self.width


def quantization(flow: Flow) -> Quantization:
    """Read how a model quantizes images from its config; one without ``n_bits`` and ``grid`` takes 8-bit levels."""
    facts = Facts.of(getattr(flow, "config", None))
    return Quantization(facts.n_bits or 8, facts.grid)


def quantize(flow: Flow, x: Tensor) -> Tensor:
    """Round decoded values to the gray level of their bin: dequantization noise would show as grain at few bits.

    That is ``k / (2^n_bits - 1)`` with ``k = floor(x / width - shift)``, in [0, 1].
    """
    bins = quantization(flow)
    highest = 2**bins.n_bits - 1
    return torch.floor(x / bins.width - bins.shift).clamp(0, highest) / highest


def to_integers(image: Tensor, n_bits: int = 8) -> tuple[Tensor, Tensor]:
    """Convert an image of uint8, or of floats in [0, 1], to integers, and measure how much that rounds.

    ``k = floor(round(255 x) / 2^(8 - n_bits))``, as floats; and the largest distance of 255 x from its integer,
    ``(B,)``: 0 on the 8-bit grid, up to 1/2 off it, more outside [0, 1].
    """
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ImageError(f"Expected an image of uint8, or of floats in [0, 1]; got {image.dtype}. Convert it to uint8.")
    scaled = _scale_to_255(image)
    invalid = int((~scaled.isfinite()).sum())
    if invalid:
        raise ImageError(
            f"The image holds {invalid} values that are not finite numbers (NaN or infinity). Fix the node or file "
            "it comes from."
        )
    distance = (scaled - scaled.round().clamp(0, 255)).abs()
    return round_to_integers(image, n_bits), distance.flatten(1).amax(1)


def round_to_integers(image: Tensor, n_bits: int = 8) -> Tensor:
    """Convert an image as ``to_integers`` does, without its checks, which would make the CPU wait for a GPU."""
    return torch.floor(_scale_to_255(image).round().clamp(0, 255) / 2 ** (8 - n_bits))


def _scale_to_255(image: Tensor) -> Tensor:
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return image.to(dtype) if image.dtype == torch.uint8 else image.to(dtype) * 255


def dequantize(x: Tensor, bins: int, noise: Tensor | torch.Generator | None = None) -> Tensor:
    """Spread every pixel uniformly over one bin centered on it: ``x + (u - 0.5) / bins``, u uniform in [0, 1).

    SRFlow uses 32 bins, on purpose wider than the 8-bit step: it keeps densities bounded. ``noise`` is u, or a CPU
    generator to draw it from. Source: SRFlow, section 4.1.
    """
    if not isinstance(noise, Tensor):
        noise = torch.rand(x.shape, generator=noise, dtype=x.dtype)
    return x + (noise.to(x) - 0.5) / bins


# --- noise ------------------------------------------------------------------------------------------------------------


@runtime_checkable
class Dequantizer(Protocol):
    """A distribution q(u | k) of noise on [0, 1)^D that can be sampled and has a known density.

    A draw takes two steps, so that the caller controls what is random: ``noise`` draws random numbers from a generator;
    ``draw`` turns them into u and depends on its arguments alone.
    """

    name: str  # its name in a score

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draw the random numbers of one draw for images ``(..., C, H, W)``: float32, on the CPU."""
        ...

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k) with what ``noise`` returned or a generator; and ``log q(u | k)`` in nats, ``(B,)``."""
        ...


class Uniform:
    """Uniform noise: ``q(u | k) = 1`` on [0, 1)^D, so ``log q = 0``."""

    name = "uniform"

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draw uniform numbers; see ``Dequantizer``."""
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the random numbers themselves; see ``Dequantizer``."""
        u = _random_numbers(self, image, noise)
        return u, u.new_zeros(u.shape[0])


class Gaussian(Uniform):
    """Gaussian noise around the middle of the bin, truncated to it.

    Per subpixel, with the standard-normal density phi: ``log q = log phi((u - 1/2) / std) - log std - log mass``, where
    ``mass = erf(1 / (2 sqrt(2) std))`` is the share of the Gaussian inside the bin. Drawn from a uniform number r by
    inverting the distribution function, in float64: ``u = 1/2 + sqrt(2) std erfinv((2 r - 1) mass)``.

    ``std`` is the standard deviation before truncation, in bins; as it grows, the noise becomes uniform. For a smooth
    density, the bound is looser than with uniform noise: by 0.015 bits per dimension at the default, by 0.18 at 0.25.
    """

    def __init__(self, std: float = 0.5) -> None:
        if not (math.isfinite(std) and std > 0):
            raise FlowError(f"std must be a positive number, in bins; got {std}.")
        self.std = std
        self._mass = math.erf(1 / (2 * math.sqrt(2) * std))
        self.name = "gaussian" if std == 0.5 else f"gaussian (std {std:g})"

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k); see the class and ``Dequantizer``."""
        r = float64(_random_numbers(self, image, noise))
        u = 0.5 + math.sqrt(2) * self.std * torch.erfinv((2 * r - 1) * self._mass)
        # erfinv(-1) is minus infinity where the bin is many std wide
        u = u.clamp(0, 1 - torch.finfo(u.dtype).eps)
        return u, self.log_q(u)

    def log_q(self, u: Tensor) -> Tensor:
        """Evaluate the density of noise ``(B, C, H, W)`` in [0, 1): nats, ``(B,)``."""
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.std) + math.log(self._mass)
        return (-0.5 * ((float64(u) - 0.5) / self.std).square() - constant).flatten(1).sum(1)


class VariationalDequantizer(Transform[Tensor, Tensor]):
    """Noise from a small flow that sees the pixels and is trained together with the model.

    Forward, from normal noise e to u: ``t = g(e; k)``, ``u = a + (1 - 2a) sigmoid(t)``, elementwise except g. Logdet:
    ``log|dg/de| + sum(log sigmoid(t) + log sigmoid(-t)) + D log(1 - 2a)``; ``log q(u | k) = log N(e; 0, 1) - logdet``.
    ``a = 2^-20`` keeps u off the ends of the bin, which a float32 sigmoid would reach: q is a density on (a, 1 - a)^D,
    which is all that the bound requires.

    g is steps of (actnorm, invertible 1x1 convolution, affine injector, affine coupling) on squeezed noise, and a final
    actnorm that starts g near the spread at which ``sigmoid(normal)`` is nearest to uniform. The pixels condition it
    twice: as values over their whole range, and as local contrast to the mean of their 2x2 block, ``tanh((k - mean) /
    4)``, which resolves single gray levels.

    Source: Ho et al., "Flow++", section 3.1; g is made of Glow's and SRFlow's transforms instead of theirs.
    """

    name = "variational"
    MARGIN = 2.0**-20  # a above
    SPREAD = 1.75  # standard deviation of t at the start
    CONTRAST = 4.0  # gray levels by which a contrast is divided

    def __init__(self, channels: int, *, n_bits: int = 8, hidden: int = 32, steps: int = 4) -> None:
        super().__init__()
        if steps < 1:
            raise FlowError(f"A variational dequantizer has at least 1 step; got {steps}.")
        self.n_bits = Quantization(n_bits).n_bits
        self.squeeze = Squeeze()
        wide = 4 * channels
        parts: list[Transform] = []
        for _ in range(steps):
            parts += [
                ActNorm(wide),
                InvertibleConv(wide),
                Injector(Conditioner(2 * wide, hidden, 2 * wide)),
                Coupling(Conditioner(wide // 2 + 2 * wide, hidden, 2 * (wide - wide // 2))),
            ]
        last = ActNorm(wide)
        self.flow = Chain(*parts, last)
        # an injector starts with the scale sigmoid(2); so does a coupling, on half of the channels
        shrinkage = -1.5 * steps * math.log1p(math.exp(-2))
        torch.nn.init.constant_(last.log_scale, math.log(self.SPREAD) - shrinkage)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map normal noise ``(B, C, H, W)`` to dequantization noise u, given integers as floats of that shape."""
        t, logdet = self.flow(self.squeeze(x)[0], self._features(cond, x))  # (B, 4C, H/2, W/2)
        slope = F.logsigmoid(t) + F.logsigmoid(-t) + math.log1p(-2 * self.MARGIN)
        u = self.MARGIN + (1 - 2 * self.MARGIN) * torch.sigmoid(t)
        return self.squeeze.inverse(u), logdet + slope.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map dequantization noise u, ``(B, C, H, W)`` in (a, 1 - a), back to normal noise; see the class."""
        t = torch.logit((self.squeeze(z)[0] - self.MARGIN) / (1 - 2 * self.MARGIN))
        return self.squeeze.inverse(self.flow.inverse(t, self._features(cond, z)))

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Initialize from a first batch of e and k; the last actnorm to the spread of the start."""
        features, e = self._features(cond, x), self.squeeze(x)[0]
        *parts, last = self.flow.parts()
        assert isinstance(last, ActNorm)
        for part in (*parts, last):
            e = part.initialize(e, features)
        last.log_scale.add_(math.log(self.SPREAD))
        return self.forward(x, cond)[0]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draw normal numbers; see ``Dequantizer``."""
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k), differentiable in the parameters; see ``Dequantizer``."""
        parameter = next(self.parameters())
        e = _random_numbers(self, image, noise).to(parameter)
        u, logdet = self(e, image.to(parameter))
        return u, prior.log_prob([e]) - logdet

    def _features(self, k: Tensor | None, like: Tensor) -> LevelCondition:
        """Squeeze the pixels, scaled to [-1, 1], and their contrast to the 2x2 block: (B, 8C, H/2, W/2)."""
        if k is None:
            raise ConditionError("A variational dequantizer is conditioned on the image's integers; got none.")
        if k.shape != like.shape:
            raise ShapeError(f"Expected noise of the image's shape {tuple(k.shape)}; got {tuple(like.shape)}.")
        pixels = self.squeeze(k.to(like))[0]  # (B, 4C, H/2, W/2)
        blocks = pixels.unflatten(1, (-1, 4))  # (B, C, 4, H/2, W/2)
        contrast = torch.tanh((blocks - blocks.mean(2, keepdim=True)) / self.CONTRAST).flatten(1, 2)
        return LevelCondition(features=torch.cat([pixels * (2 / (2**self.n_bits - 1)) - 1, contrast], dim=1))


def _random_numbers(dequantizer: Dequantizer, image: Tensor, noise: Tensor | torch.Generator | None) -> Tensor:
    """Return random numbers on the image's device: ``noise``, or drawn with it if it is a generator."""
    if not isinstance(noise, Tensor):
        noise = dequantizer.noise(tuple(image.shape), noise)
    if noise.shape != image.shape:
        raise ShapeError(f"Expected noise of the image's shape {tuple(image.shape)}; got {tuple(noise.shape)}.")
    return noise.to(image.device)


# --- many draws -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DequantizedBatch:
    """A batch of N dequantized images."""

    items: Tensor  # image index of each row, (N,)
    draws: Tensor  # draw index of each row, within its image, (N,)
    x: Tensor  # image units, float64, (N, C, H, W), on the CPU
    log_q: Tensor  # density of the noise, nats, float64, (N,), on the CPU
    inside: Tensor  # whether all of the noise lies in [0, 1), (N,)


@torch.no_grad()
def dequantized_batches(
    k: Tensor,
    bins: Quantization,
    dequantizer: Dequantizer,
    *,
    samples: int = 1,
    seed: int | Sequence[int] = 0,
    batch: int = 16,
    noise: Tensor | None = None,
) -> Iterator[DequantizedBatch]:
    """Draw noise for images several times each: all draws of image 0, then of image 1; ``batch`` draws at a time.

    Every image has its own CPU generator (of ``seed + i``, or a seed for each), so that a draw depends neither on the
    batch size, nor on other images, nor on how many draws follow. ``noise``, ``(samples, B, C, H, W)``, replaces the
    random numbers, and sets ``samples``.
    """
    if noise is not None:
        samples = noise.shape[0]
        if noise.shape[1:] != k.shape:
            raise ShapeError(
                f"Expected noise of shape (samples, {', '.join(map(str, k.shape))}), a draw for every sample and "
                f"image; got {tuple(noise.shape)}."
            )
    total = k.shape[0] * samples
    generator = torch.Generator("cpu")
    seeds = seeds_of(seed, k.shape[0])
    k = k.cpu()
    for start in range(0, total, batch):
        numbers = torch.arange(start, min(start + batch, total))
        items, draws = numbers // samples, numbers % samples
        random_numbers: list[Tensor] = []
        for i, draw in zip(items.tolist(), draws.tolist(), strict=True):
            if noise is not None:
                random_numbers.append(noise[draw, i].cpu())
                continue
            if draw == 0:
                generator.manual_seed(seeds[i])
            random_numbers.append(dequantizer.noise(tuple(k.shape[1:]), generator))
        u, log_q = dequantizer.draw(k[items], torch.stack(random_numbers))
        u = u.detach().cpu().double()
        inside = ((u >= 0) & (u < 1)).flatten(1).all(1)
        yield DequantizedBatch(items, draws, bins.place(k[items], u), log_q.detach().cpu().double(), inside)
