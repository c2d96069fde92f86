"""Likelihoods: log densities, dequantization noise, bounds on discrete probabilities, bits per dimension.

A flow is a density over real numbers; an image is made of integers k in {0, ..., 2^n - 1}. What an image costs is the
probability of its bin,

    P(k) = integral over [0, 1)^D of p_bins(k + u) du,      log p_bins = log_prob + D log(width),

which no one can integrate, but which noise u ~ q(u | k) bounds from below. One draw gives

    w = log p_bins(k + u) - log q(u | k),      E[w] <= log P(k),

with equality where ``q(u | k) = p_bins(k + u) / P(k)``: then every draw gives log P. Uniform noise has ``log q = 0``.
Several draws give the importance-weighted bound ``log mean exp(w)``, which in expectation never falls as draws are
added, and tends to log P.

Source: Theis et al., "A note on the evaluation of generative models", section 3.1 (uniform noise); Ho et al.,
"Flow++", section 3.1 (variational noise); Burda et al., "Importance weighted autoencoders", section 3 (several draws);
Hoogeboom et al., "Learning discrete distributions by dequantization" (all of it together).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import prior
from .errors import ConditionError, FlowError, ImageError, ShapeError
from .flow import Flow
from .networks import Conditioner
from .transforms import ActNorm, Chain, Coupling, Injector, InvertibleConv, Squeeze, Transform

Grid = Literal["bins", "levels"]


def log_prob(flow: Flow, x: Tensor, cond: Any = None) -> Tensor:
    """Evaluate a flow's log density: prior plus log-determinant, at temperature 1.

    Args:
        flow: The model.
        x: ``(B, C, H, W)``, in the model's image units.
        cond: Its condition.

    Returns:
        Nats per image, ``(B,)``.
    """
    latents, logdet = flow(x, cond)
    return prior.log_prob(latents) + logdet


def bits_per_dim(log_probs: Tensor, dimensions: int, bin_width: float = 1.0) -> Tensor:
    """Turn a log density into bits per dimension.

    ``-(log_prob + D log(bin_width)) / (D log 2)``.

    Args:
        log_probs: Nats per image, ``(B,)``.
        dimensions: D, the number of subpixels: ``C * H * W``.
        bin_width: Quantisation step in image units, 1/256 for 8 bits; 1 for the bare density.

    Returns:
        ``(B,)``.
    """
    return -(log_probs + dimensions * math.log(bin_width)) / (dimensions * math.log(2))


def dequantize(x: Tensor, bins: int, noise: Tensor | torch.Generator | None = None) -> Tensor:
    """Spread every pixel over one quantisation bin, centred: ``x + (u - 0.5) / bins``, u uniform in [0, 1).

    Args:
        x: Image, ``(B, C, H, W)`` in [0, 1].
        bins: Number of bins in [0, 1]; SRFlow uses 32, wider than the 8-bit step on purpose: it keeps densities
            bounded.
        noise: u, shaped like ``x``, or a CPU generator to draw it from; None for torch's own.

    Returns:
        The noisy image, same shape, up to half a bin outside [0, 1].

    Source: Theis et al., "A note on the evaluation of generative models", section 3.1; SRFlow, section 4.1.
    """
    if not isinstance(noise, Tensor):
        noise = torch.rand(x.shape, generator=noise, dtype=x.dtype)
    return x + (noise.to(x) - 0.5) / bins


# --- integers and bins ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantisation:
    """Where a model expects the integers of an image: ``x = (k + u + shift) * width``, u in [0, 1).

    Attributes:
        n_bits: Bits per subpixel, 1 to 8: k is in {0, ..., 2^n_bits - 1}.
        grid: "bins": ``x = (k + u) / 2^n_bits``, bins side by side from 0 to 1. "levels": ``x = (k + u - 1/2) /
            (2^n_bits - 1)``, bins centred on the grey levels of ordinary images, the first on 0 and the last on 1.
    """

    n_bits: int = 8
    grid: Grid = "bins"

    def __post_init__(self) -> None:
        """Refuse what no image has."""
        if self.n_bits not in range(1, 9):
            raise FlowError(f"n_bits must be a whole number from 1 to 8; got {self.n_bits!r}.")
        if self.grid not in get_args(Grid):
            raise FlowError(f'grid must be "bins" or "levels"; got {self.grid!r}.')

    @property
    def width(self) -> float:
        """Width of a bin in image units."""
        return 1 / 2**self.n_bits if self.grid == "bins" else 1 / (2**self.n_bits - 1)

    @property
    def shift(self) -> float:
        """What is added to k + u before it is scaled."""
        return 0.0 if self.grid == "bins" else -0.5

    def place(self, k: Tensor, u: Tensor) -> Tensor:
        """Put integers and their noise into image units: ``(k + u + shift) * width``.

        Args:
            k: Integers as floats, ``(B, C, H, W)``.
            u: Noise of the same shape.

        Returns:
            ``(B, C, H, W)``, in the precision of ``u``.
        """
        return (k.to(u) + u + self.shift) * self.width


def snap(flow: Flow, x: Tensor) -> Tensor:
    """Undo dequantization: the ordinary image whose bins the values lie in.

    ``k = floor(x / width - shift)``, as ``k / (2^n_bits - 1)``. What a model draws holds the noise that it was trained
    with; at few bits that noise shows as grain, and this takes it off.

    Args:
        flow: The model.
        x: ``(B, C, H, W)``, as ``flow.inverse`` gives it.

    Returns:
        The same shape, in [0, 1].
    """
    bins = quantisation(flow)
    most = 2**bins.n_bits - 1
    return torch.floor(x / bins.width - bins.shift).clamp(0, most) / most


def quantisation(flow: Flow) -> Quantisation:
    """Read off a model how it quantises images.

    Args:
        flow: The model; without ``n_bits`` and ``grid`` in its config (SRFlow) it takes ordinary 8-bit levels.

    Returns:
        Its quantisation.
    """
    return Quantisation(getattr(flow.config, "n_bits", 8), getattr(flow.config, "grid", "levels"))


def to_integers(image: Tensor, n_bits: int = 8) -> tuple[Tensor, Tensor]:
    """Turn an image into the integers that a discrete probability is about.

    ``k = floor(round(255 x) / 2^(8 - n_bits))``; values outside [0, 1] count as 0 or 1.

    Args:
        image: ``(B, C, H, W)``, uint8, or float in [0, 1].
        n_bits: Bits to keep, 1 to 8.

    Returns:
        k as floats, ``(B, C, H, W)``, float64 for float64 images, else float32; and how far 255 x was from the integer
        that was taken for it at most, ``(B,)``: 0 on the 8-bit grid, up to 1/2 off it, more outside [0, 1].

    Raises:
        ImageError: If the image is neither uint8 nor float, or holds NaN or infinities.
    """
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ImageError(f"Expected an image of uint8, or of floats in [0, 1]; got {image.dtype}. Convert it to uint8.")
    scaled = _bytes(image)
    wrong = int((~scaled.isfinite()).sum())
    if wrong:
        raise ImageError(
            f"The image holds {wrong} values that are not finite numbers (NaN or infinity). Mend the node or file it "
            "comes from."
        )
    off = (scaled - scaled.round().clamp(0, 255)).abs()
    return integers(image, n_bits), off.flatten(1).amax(1)


def integers(image: Tensor, n_bits: int = 8) -> Tensor:
    """Turn an image into integers as ``to_integers`` does, without a look at its values: no wait for the device.

    Args:
        image: ``(B, C, H, W)``, uint8, or float in [0, 1]; NaN stays NaN.
        n_bits: Bits to keep, 1 to 8.

    Returns:
        k as floats, ``(B, C, H, W)``, float64 for float64 images, else float32.
    """
    return torch.floor(_bytes(image).round().clamp(0, 255) / 2 ** (8 - n_bits))


def _bytes(image: Tensor) -> Tensor:
    """Give 255 x as floats."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return image.to(dtype) if image.dtype == torch.uint8 else image.to(dtype) * 255


# --- noise ------------------------------------------------------------------------------------------------------------


@runtime_checkable
class Dequantizer(Protocol):
    """A distribution q(u | k) of noise on [0, 1)^D that can be drawn from, with a known density.

    A draw has two halves, so that whoever owns the seeds decides what is random: ``noise`` takes random numbers from a
    generator, ``draw`` makes the noise out of them and is a function of its arguments alone.
    """

    @property
    def name(self) -> str:
        """What a score calls it."""
        ...

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Take the random numbers of a draw.

        Args:
            shape: Of the image, ``(..., C, H, W)``.
            generator: On the CPU; None for torch's own.

        Returns:
            Random numbers of that shape, on the CPU.
        """
        ...

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k).

        Args:
            image: k, integers as floats, ``(B, C, H, W)``.
            noise: What ``noise`` returned, or a generator to take it from; None for torch's own.

        Returns:
            u, ``(B, C, H, W)`` in [0, 1), and ``log q(u | k)`` in nats, ``(B,)``.
        """
        ...


class Uniform:
    """Uniform noise: ``q(u | k) = 1`` on [0, 1)^D, so ``log q = 0``.

    Source: Theis et al., "A note on the evaluation of generative models", section 3.1.
    """

    name = "uniform"

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Take uniform numbers; float32 ones, so that a seed means the same in every precision."""
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k): the numbers themselves; see ``Dequantizer``."""
        u = _taken(self, image, noise)
        return u, u.new_zeros(u.shape[0])


class Gaussian:
    """Gaussian noise around the middle of the bin, truncated to it.

    Per subpixel, with ``z = (u - 1/2) / std`` and standard-normal density phi and distribution function Phi,
    ``log q = log phi(z) - log std - log[Phi(1 / (2 std)) - Phi(-1 / (2 std))]``, and the bracket is
    ``erf(1 / (2 sqrt(2) std))``. Drawn by inverting the distribution function at a uniform number r:
    ``u = 1/2 + sqrt(2) std erfinv((2 r - 1) erf(1 / (2 sqrt(2) std)))``, in float64.

    Gaussian noise that is not truncated leaks into neighbouring bins: what it gives is no bound.
    """

    def __init__(self, std: float = 0.5) -> None:
        """Choose the spread.

        Args:
            std: Standard deviation before truncation, in bins. Uniform noise is the limit of large ones; the default
                costs a smooth density 0.015 bits per dimension more than uniform noise, 0.25 costs it 0.18.

        Raises:
            FlowError: If it is not a positive number.
        """
        if not (math.isfinite(std) and std > 0):
            raise FlowError(f"std must be a positive number, in bins; got {std}.")
        self.std = std
        self.name = "gaussian" if std == 0.5 else f"gaussian (std {std:g})"

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Take uniform numbers; see ``Dequantizer``."""
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k); see the class and ``Dequantizer``."""
        r = _wide(_taken(self, image, noise))
        inside = math.erf(1 / (2 * math.sqrt(2) * self.std))
        u = 0.5 + math.sqrt(2) * self.std * torch.erfinv((2 * r - 1) * inside)
        # erfinv(-1) is minus infinity where the bin is many std wide
        u = u.clamp(0, 1 - torch.finfo(u.dtype).eps)
        return u, self.log_q(u)

    def log_q(self, u: Tensor) -> Tensor:
        """Evaluate the density of the noise.

        Args:
            u: ``(B, C, H, W)`` in [0, 1).

        Returns:
            Nats, ``(B,)``.
        """
        inside = math.erf(1 / (2 * math.sqrt(2) * self.std))
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.std) + math.log(inside)
        return (-0.5 * ((_wide(u) - 0.5) / self.std).square() - constant).flatten(1).sum(1)


class VariationalDequantizer(Transform):
    """Noise from a small flow that sees the pixels and is trained together with the model.

    Forward, from normal noise e to u: ``t = g(e; k)``, ``u = a + (1 - 2a) sigmoid(t)``, elementwise but for g. Logdet:
    ``log|dg/de| + sum(log sigmoid(t) + log sigmoid(-t)) + D log(1 - 2a)``. So

        log q(u | k) = log N(e; 0, 1) - logdet = log N(e) - log|dg/de| - sum(log sigmoid(t) + log sigmoid(-t))
                       - D log(1 - 2a).

    ``a = 2^-20`` keeps u off the ends of the bin, which a float32 sigmoid would reach. It is part of the map and of
    log q, so nothing is approximate: q is a density on (a, 1 - a)^D, which is all that the bound asks for.

    g is steps of (actnorm, invertible 1x1 convolution, affine injector, affine coupling) on squeezed noise, given the
    squeezed pixels, and an actnorm at the end that starts g near the spread at which ``sigmoid(normal)`` is nearest to
    uniform: untrained, it costs a few hundredths of a bit per dimension more than uniform noise. The pixels come twice:
    over their range, where one of 256 grey levels is hardly to be seen, and as their contrast to the 2x2 block around
    them, ``tanh((k - mean) / 4)``, where it is.

    Source: Ho et al., "Flow++", section 3.1; g is made of Glow's and SRFlow's parts instead of theirs.
    """

    name = "variational"
    MARGIN = 2.0**-20  # a above
    SPREAD = 1.75  # standard deviation of t at the start
    CONTRAST = 4.0  # grey levels that are a large contrast

    def __init__(self, channels: int, *, n_bits: int = 8, hidden: int = 32, steps: int = 4) -> None:
        """Build the noise flow.

        Args:
            channels: C, of the image.
            n_bits: Bits of the integers that it is conditioned on.
            hidden: Channels of the conditioners' hidden layers.
            steps: Steps of g, at least 1.

        Raises:
            FlowError: If there are no steps, or ``n_bits`` is out of its range.
        """
        super().__init__()
        if steps < 1:
            raise FlowError(f"A variational dequantizer has at least 1 step; got {steps}.")
        self.n_bits = Quantisation(n_bits).n_bits
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
        self.flow = Chain(*parts, ActNorm(wide))
        # an injector starts with the scale sigmoid(2), a coupling too, on half of the channels
        shrinkage = -1.5 * steps * math.log1p(math.exp(-2))
        torch.nn.init.constant_(self._spread().log_scale, math.log(self.SPREAD) - shrinkage)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map normal noise to noise of one bin; see the class.

        Args:
            x: e, ``(B, C, H, W)``, even sides.
            cond: k, integers as floats, ``(B, C, H, W)``.

        Returns:
            u, ``(B, C, H, W)``, and logdet ``(B,)``.

        Raises:
            ShapeError: If the sides are odd, or the shapes differ.
        """
        t, logdet = self.flow(self.squeeze(x)[0], self._pixels(cond, x))  # (B, 4C, H/2, W/2)
        slope = F.logsigmoid(t) + F.logsigmoid(-t) + math.log1p(-2 * self.MARGIN)
        u = self.MARGIN + (1 - 2 * self.MARGIN) * torch.sigmoid(t)
        return self.squeeze.inverse(u), logdet + slope.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Map noise of one bin back to normal noise; see the class.

        Args:
            z: u, ``(B, C, H, W)`` in (a, 1 - a).
            cond: As in ``forward``.

        Returns:
            e, ``(B, C, H, W)``.
        """
        t = torch.logit((self.squeeze(z)[0] - self.MARGIN) / (1 - 2 * self.MARGIN))
        return self.squeeze.inverse(self.flow.inverse(t, self._pixels(cond, z)))

    @torch.no_grad()
    def initialise(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Set what is derived from a first batch; the last actnorm to the spread of the start.

        Args:
            x: e of a batch, ``(B, C, H, W)``.
            cond: k of the batch.

        Returns:
            The batch's u.
        """
        pixels, e = self._pixels(cond, x), self.squeeze(x)[0]
        for part in self.flow.parts():
            e = part.initialise(e, pixels)
        self._spread().log_scale.add_(math.log(self.SPREAD))
        return self.forward(x, cond)[0]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Take normal numbers; see ``Dequantizer``."""
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    def draw(self, image: Tensor, noise: Tensor | torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw u from q(u | k), differentiable in the parameters; see ``Dequantizer``."""
        own = next(self.parameters())
        e = _taken(self, image, noise).to(own)
        u, logdet = self(e, image.to(own))
        return u, prior.log_prob([e]) - logdet

    def _spread(self) -> ActNorm:
        spread = self.flow.parts()[-1]
        assert isinstance(spread, ActNorm)
        return spread

    def _pixels(self, k: Tensor | None, like: Tensor) -> Tensor:
        """Squeeze the pixels, scaled to [-1, 1], and their contrast to the 2x2 block: (B, 8C, H/2, W/2)."""
        if k is None:
            raise ConditionError("A variational dequantizer is conditioned on the image's integers; got none.")
        if k.shape != like.shape:
            raise ShapeError(f"Noise of shape {tuple(like.shape)} came with an image of shape {tuple(k.shape)}.")
        pixels = self.squeeze(k.to(like))[0]  # (B, 4C, H/2, W/2)
        blocks = pixels.unflatten(1, (-1, 4))  # (B, C, 4, H/2, W/2)
        contrast = torch.tanh((blocks - blocks.mean(2, keepdim=True)) / self.CONTRAST).flatten(1, 2)
        return torch.cat([pixels * (2 / (2**self.n_bits - 1)) - 1, contrast], dim=1)


def _taken(dequantizer: Dequantizer, image: Tensor, noise: Tensor | torch.Generator | None) -> Tensor:
    """Take the random numbers of a draw from whatever was given, onto the image's device."""
    if not isinstance(noise, Tensor):
        noise = dequantizer.noise(tuple(image.shape), noise)
    if noise.shape != image.shape:
        raise ShapeError(f"Expected noise of the image's shape {tuple(image.shape)}; got {tuple(noise.shape)}.")
    return noise.to(image.device)


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()  # Apple's device has no float64


# --- bounds -----------------------------------------------------------------------------------------------------------


def log_weight(
    flow: Flow,
    k: Tensor,
    cond: Any = None,
    *,
    dequantizer: Dequantizer | None = None,
    noise: Tensor | torch.Generator | None = None,
) -> Tensor:
    """Take one draw per image: ``w = log p_bins(k + u) - log q(u | k)``; differentiable, also in the dequantizer.

    The mean of ``-w / (D log 2)`` is the loss that trains a flow and its variational dequantizer together.

    Args:
        flow: The model.
        k: Integers as floats, ``(B, C, H, W)``, on the flow's device; see ``to_integers``.
        cond: The model's condition.
        dequantizer: None for uniform noise.
        noise: Random numbers of the draw, or a CPU generator to take them from; None for torch's own.

    Returns:
        Nats per image, ``(B,)``.
    """
    quantised = quantisation(flow)
    u, log_q = (dequantizer or Uniform()).draw(k, noise)
    own = next(flow.parameters(), k)
    log_p = log_prob(flow, quantised.place(k, u.to(own)), cond)
    return log_p + k[0].numel() * math.log(quantised.width) - log_q.to(log_p)


@dataclass(frozen=True)
class Draws:
    """A chunk of dequantized images.

    Attributes:
        items: Which image each is, ``(N,)``.
        draws: Which draw of it, ``(N,)``.
        x: In image units, float64, ``(N, C, H, W)``, on the CPU.
        log_q: Density of their noise, nats, float64, ``(N,)``, on the CPU.
        inside: Whether all their noise lies in [0, 1), ``(N,)``.
    """

    items: Tensor
    draws: Tensor
    x: Tensor
    log_q: Tensor
    inside: Tensor


@torch.no_grad()
def dequantized(
    k: Tensor,
    quantised: Quantisation,
    dequantizer: Dequantizer,
    *,
    samples: int = 1,
    seed: int = 0,
    batch: int = 16,
    noise: Tensor | None = None,
) -> Iterator[Draws]:
    """Draw noise for images, several times each, a chunk at a time: all draws of image 0, then of image 1.

    Image i has a CPU generator of its own, seeded with ``seed + i``, and its draws are taken from it one after the
    other: neither the chunks, nor the other images, nor how many draws follow change a draw.

    Args:
        k: Integers as floats, ``(B, C, H, W)``.
        quantised: Of the model.
        dequantizer: What to draw from.
        samples: Draws per image.
        seed: Of image 0.
        batch: Draws in a chunk.
        noise: ``(samples, B, C, H, W)``, taken instead of the generators' random numbers; sets ``samples``.

    Yields:
        ``batch`` draws at a time, less at the end.

    Raises:
        ShapeError: If the noise is not for these images.
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
    k = k.cpu()
    for start in range(0, total, batch):
        numbers = torch.arange(start, min(start + batch, total))
        items, draws = numbers // samples, numbers % samples
        taken: list[Tensor] = []
        for i, s in zip(items.tolist(), draws.tolist(), strict=True):
            if noise is not None:
                taken.append(noise[s, i].cpu())
                continue
            if s == 0:
                generator.manual_seed((seed + i) % 2**64)
            taken.append(dequantizer.noise(tuple(k.shape[1:]), generator))
        image = k[items]
        u, log_q = dequantizer.draw(image, torch.stack(taken))
        u = u.detach().cpu().double()
        inside = ((u >= 0) & (u < 1)).flatten(1).all(1)
        yield Draws(items, draws, quantised.place(image, u), log_q.detach().cpu().double(), inside)


@torch.no_grad()
def log_weights(
    flow: Flow,
    k: Tensor,
    cond: Any = None,
    *,
    dequantizer: Dequantizer | None = None,
    samples: int = 1,
    seed: int = 0,
    batch: int = 16,
    noise: Tensor | None = None,
) -> Tensor:
    """Take several draws per image; one number per draw is all that is kept, so memory does not grow with them.

    Args:
        flow: The model.
        k: Integers as floats, ``(B, C, H, W)``; see ``to_integers``.
        cond: The model's condition, for the B images.
        dequantizer: None for uniform noise.
        samples: Draws per image.
        seed: Image i is drawn with ``seed + i``; see ``dequantized``.
        batch: Draws that go through the flow at once.
        noise: ``(samples, B, C, H, W)``, taken instead of random numbers; sets ``samples``.

    Returns:
        w of every draw in nats, float64, ``(B, samples)``, on the CPU.
    """
    quantised = quantisation(flow)
    own = next(flow.parameters(), k)
    weights = torch.empty(k.shape[0], samples if noise is None else noise.shape[0], dtype=torch.float64)
    chunks = dequantized(k, quantised, dequantizer or Uniform(), samples=samples, seed=seed, batch=batch, noise=noise)
    for chunk in chunks:
        log_p = log_prob(flow, chunk.x.to(own), rows(cond, chunk.items)).cpu().double()
        bins = log_p + k[0].numel() * math.log(quantised.width)
        weights[chunk.items, chunk.draws] = bins - chunk.log_q
    return weights


def importance_weighted(log_weights: Tensor) -> Tensor:
    """Bound log P by several draws: ``logsumexp(w) - log(number of draws)``, in float64.

    With one draw it is the plain bound w, whose mean over draws is the evidence lower bound (ELBO). Its expectation
    never falls with the number of draws and tends to log P.

    Args:
        log_weights: w in nats, ``(..., draws)``.

    Returns:
        Nats, ``(...)``.

    Source: Burda et al., "Importance weighted autoencoders", section 3 and theorem 1.
    """
    return torch.logsumexp(_wide(log_weights), -1) - math.log(log_weights.shape[-1])


def effective_samples(log_weights: Tensor) -> Tensor:
    """Count the draws that carry the importance-weighted bound: ``(sum exp w)^2 / sum exp(2 w)``.

    Near the number of draws, all count alike, and more would change little; near 1, a single draw decides, and the
    bound is not tight.

    Args:
        log_weights: w in nats, ``(..., draws)``.

    Returns:
        From 1 to the number of draws, ``(...)``.
    """
    w = _wide(log_weights)
    return torch.exp(2 * torch.logsumexp(w, -1) - torch.logsumexp(2 * w, -1))


def rows(cond: Any, items: Tensor) -> Any:
    """Take a condition's entries for some of its images.

    Args:
        cond: A tensor ``(B, ...)``, a ``Condition``, a nest of them, or None. A batch of one goes for every image.
        items: Numbers of the images, ``(N,)``.

    Returns:
        The same kind of thing for N images.
    """
    if isinstance(cond, Tensor):
        return cond.expand(len(items), *cond.shape[1:]) if cond.shape[0] == 1 else cond[items.to(cond.device)]
    if isinstance(cond, (list, tuple)):
        parts = [rows(part, items) for part in cond]
        return parts if isinstance(cond, list) else tuple(parts)
    if dataclasses.is_dataclass(cond) and not isinstance(cond, type):
        return dataclasses.replace(
            cond, **{f.name: rows(getattr(cond, f.name), items) for f in dataclasses.fields(cond)}
        )
    return cond
