"""Densities that can be checked by hand, and that integrate to one; noise and bounds against closed forms."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from builders import assemble

from flowcore import FlowError, ImageError, PrecisionError, ShapeError
from flowcore.condition import Condition
from flowcore.dequantization import (
    Dequantizer,
    Gaussian,
    Quantization,
    Uniform,
    VariationalDequantizer,
    dequantize,
    dequantized_batches,
    quantization,
    to_integers,
)
from flowcore.flow import Level
from flowcore.likelihood import (
    bits_per_dim,
    effective_samples,
    importance_weighted,
    log_prob,
    log_weight,
    log_weights,
    select_items,
)
from flowcore.models import build, configure
from flowcore.networks import Conditioner, ScaledConv
from flowcore.transforms import ActNorm, Coupling, InvertibleConv, Split

from .laws import check, jacobian_logdet, perturbed


def unconditional(*levels, channels):
    return assemble([Level(steps, split) for steps, split in levels], channels=channels).double()


def affine_flow():
    """Squeeze, actnorm and mixing of one channel: a Gaussian whose mean and covariance are known."""
    return perturbed(unconditional(([ActNorm(4), InvertibleConv(4)], None), channels=1), 0.3)


def test_an_affine_flow_has_the_density_of_its_gaussian():
    flow = affine_flow()
    actnorm, mixing = flow.levels[0].steps.parts()
    forward = mixing.weight @ torch.diag(actnorm.log_scale.exp())  # z = forward (x + bias)
    covariance = torch.linalg.inv(forward) @ torch.linalg.inv(forward).T
    gaussian = torch.distributions.MultivariateNormal(-actnorm.bias, covariance)
    x = torch.randn(3, 1, 4, 6, dtype=torch.float64)
    blocks = x.reshape(3, 2, 2, 3, 2).permute(0, 1, 3, 2, 4).reshape(3, 6, 4)  # six 2x2 blocks, row by row inside
    assert torch.allclose(log_prob(flow, x), gaussian.log_prob(blocks).sum(1), rtol=0, atol=1e-9)


def test_a_one_dimensional_density_integrates_to_one():
    flow = perturbed(unconditional(([ActNorm(4)], None), channels=1), 0.3)
    actnorm = flow.levels[0].steps.parts()[0]
    at_the_mean = -actnorm.bias.detach()
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64) * torch.exp(-actnorm.log_scale[2].detach())
    pixels = at_the_mean.repeat(len(grid), 1)
    pixels[:, 2] += grid
    along = log_prob(flow, pixels.view(-1, 1, 2, 2)).detach()
    # the other three pixels sit at their means, where each has the density exp(log_scale) / sqrt(2 pi)
    others = sum(actnorm.log_scale[k].detach() - 0.5 * math.log(2 * math.pi) for k in (0, 1, 3))
    assert abs(torch.trapezoid((along - others).exp(), grid) - 1) < 1e-6


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_a_two_dimensional_coupled_density_integrates_to_one(eps):
    """Two pixels of a coupling and an actnorm on two channels, over a grid; nothing here is Gaussian."""
    parts = [
        ActNorm(2),
        InvertibleConv(2),
        Coupling(Conditioner(1, 6, 2), eps=eps),
        InvertibleConv(2),
        Coupling(Conditioner(1, 6, 2), eps=eps),
    ]
    parts = [perturbed(part, 0.4).double() for part in parts]
    side = torch.linspace(-30, 30, 401, dtype=torch.float64)
    x = torch.cartesian_prod(side, side).view(-1, 2, 1, 1)
    total = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for part in parts:
            x, change = part(x)
            total += change
    density = (total + torch.distributions.Normal(0, 1).log_prob(x).flatten(1).sum(1)).exp().view(len(side), len(side))
    assert abs(torch.trapezoid(torch.trapezoid(density, side), side) - 1) < 1e-3
    assert not torch.allclose(density, density.flip(0, 1), atol=1e-3)


def test_log_prob_is_prior_plus_logdet_over_all_levels():
    flow = unconditional(
        ([ActNorm(12), InvertibleConv(12)], Split(ScaledConv(6, 12))),
        ([ActNorm(24), Coupling(Conditioner(12, 6, 24))], None),
        channels=3,
    )
    flow = perturbed(flow)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    latents, logdet = flow(x)
    density = sum(torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1) for z in latents)
    assert torch.allclose(log_prob(flow, x), density + logdet, atol=1e-9)


def test_bits_per_dimension_formula():
    nats = torch.tensor([-100.0, 250.0], dtype=torch.float64)
    actual = bits_per_dim(nats, 48, 1 / 256)
    expected = [-(value + 48 * math.log(1 / 256)) / (48 * math.log(2)) for value in (-100.0, 250.0)]
    assert actual.tolist() == pytest.approx(expected, abs=1e-12)
    assert bits_per_dim(nats, 48).tolist() == pytest.approx(
        [100 / 48 / math.log(2), -250 / 48 / math.log(2)], abs=1e-12
    )


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_a_uniform_density_costs_exactly_its_bits(bits):
    """Uniform on [0, 1]^D has log density 0; quantized to 2^bits values it takes `bits` bits per dimension."""
    assert bits_per_dim(torch.zeros(1, dtype=torch.float64), 12, 2.0**-bits).item() == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("bins", [32, 256])
def test_dequantization_noise_is_one_centered_bin(bins):
    x = torch.full((4, 3, 64, 64), 0.5, dtype=torch.float64)
    noise = (dequantize(x, bins, torch.Generator().manual_seed(0)) - x) * bins
    assert noise.min() >= -0.5
    assert noise.max() < 0.5
    assert noise.min() < -0.499
    assert noise.max() > 0.499
    assert abs(noise.mean()) < 5 * math.sqrt(1 / 12 / noise.numel())
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.02)


def test_dequantization_is_reproducible_and_leaves_its_input_alone():
    x = torch.rand(2, 3, 4, 6)
    before = x.clone()
    one, two = (dequantize(x, 32, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(x, before)
    assert one.dtype == torch.float32
    assert not torch.equal(one, dequantize(x, 32, torch.Generator().manual_seed(8)))


def test_a_real_nvp_of_two_pixels_integrates_to_one():
    """A whole model with its logit: over the logits of the pixels, where the density is smooth and has no edges."""
    torch.manual_seed(3)
    config = configure("realnvp", {"channels": 1, "scales": 1, "hidden": 6, "blocks": 1})
    flow = perturbed(build("realnvp", config), 0.3).double()
    side = torch.linspace(-18, 18, 241, dtype=torch.float64)
    t = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    a = config.alpha
    x = (torch.sigmoid(t) - a) / (1 - 2 * a)
    with torch.no_grad():
        along = log_prob(flow, x) + (F.logsigmoid(t) + F.logsigmoid(-t) - math.log(1 - 2 * a)).flatten(1).sum(1)
    density = along.exp().view(len(side), len(side))
    assert abs(torch.trapezoid(torch.trapezoid(density, side), side) - 1) < 1e-4
    assert not torch.allclose(density, density.T, atol=1e-3)  # the pixels are not exchangeable, let alone independent


# --- integers and bins ------------------------------------------------------------------------------------------------


def test_bins_lie_side_by_side_and_levels_are_centered():
    for n_bits in range(1, 9):
        k = torch.arange(2.0**n_bits, dtype=torch.float64)
        bins, levels = Quantization(n_bits, "bins"), Quantization(n_bits, "levels")
        for q in (bins, levels):
            lower, upper = q.place(k, torch.zeros_like(k)), q.place(k, torch.ones_like(k))
            assert torch.allclose(upper[:-1], lower[1:], atol=1e-15)
            assert torch.allclose(upper - lower, torch.full_like(k, q.width), atol=1e-15)
        assert bins.place(k, torch.zeros_like(k))[0] == 0
        assert bins.place(k, torch.ones_like(k))[-1] == 1
        assert torch.allclose(levels.place(k, torch.full_like(k, 0.5)), torch.linspace(0, 1, 2**n_bits).double())


def test_a_model_says_how_it_quantises():
    assert quantization(build("realnvp", configure("realnvp", {"scales": 1, "n_bits": 5}))) == Quantization(5, "bins")
    assert quantization(unconditional(([ActNorm(4)], None), channels=1)) == Quantization(8, "levels")
    for wrong in [(9, "bins"), (0, "bins"), (8, "boxes")]:
        with pytest.raises(FlowError, match=str(wrong[0] if wrong[1] == "bins" else wrong[1])):
            Quantization(*wrong)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_bytes_and_floats_are_the_same_integers(dtype):
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    k, off = to_integers(every)
    assert torch.equal(k.flatten(), torch.arange(256.0))
    assert off.item() == 0
    again, off = to_integers((every.double() / 255).to(dtype))
    assert torch.equal(again.float(), k)
    assert off.item() < (0.1 if dtype == torch.float16 else 1e-4)
    fewer = to_integers(every, 5)[0]
    assert torch.equal(fewer.flatten(), torch.arange(32.0).repeat_interleave(8))


def test_what_lies_off_the_grid_is_rounded_and_said():
    image = torch.tensor([[0.0, 10.4], [255.0, 20.0]], dtype=torch.float64).view(1, 1, 2, 2) / 255
    k, off = to_integers(torch.cat([image, image * 0, image + 1]))
    assert k[0].flatten().tolist() == [0, 10, 255, 20]
    assert off.tolist() == pytest.approx([0.4, 0, 255])
    image[0, 0, 0, 0] = math.nan
    with pytest.raises(ImageError, match="1 values"):
        to_integers(image)
    with pytest.raises(ImageError, match="int64"):
        to_integers(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


# --- noise ------------------------------------------------------------------------------------------------------------


def every_dequantizer():
    torch.manual_seed(7)
    learned = perturbed(VariationalDequantizer(3, hidden=6, steps=2), 0.2)
    return [Uniform(), Gaussian(), Gaussian(0.1), learned, learned.double()]


@pytest.mark.parametrize("which", range(5))
def test_a_draw_is_a_function_of_its_noise_and_lies_in_the_bin(which):
    q = every_dequantizer()[which]
    assert isinstance(q, Dequantizer)
    k = torch.randint(0, 256, (3, 3, 4, 6)).double()
    before = k.clone()
    noise = q.noise((3, 3, 4, 6), torch.Generator().manual_seed(4))
    u, log_q = q.draw(k, noise)
    for again in (q.draw(k, noise), q.draw(k, torch.Generator().manual_seed(4))):
        assert torch.equal(u, again[0])
        assert torch.equal(log_q, again[1])
    assert u.shape == k.shape
    assert log_q.shape == (3,)
    assert torch.equal(k, before)
    assert u.min() >= 0
    assert u.max() < 1
    alone = q.draw(k[1:2], noise[1:2])
    assert torch.allclose(alone[0], u[1:2], atol=1e-5)
    assert torch.allclose(alone[1], log_q[1:2], atol=1e-3)
    with pytest.raises(ShapeError, match=r"\(3, 3, 4, 4\)"):
        q.draw(k, noise[..., :4])


def test_uniform_noise_has_density_one():
    u, log_q = Uniform().draw(torch.zeros(2, 3, 64, 64), torch.Generator().manual_seed(0))
    assert log_q.tolist() == [0, 0]
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.numel())
    assert u.var().item() == pytest.approx(1 / 12, rel=0.02)


@pytest.mark.parametrize("std", [0.03, 0.1, 0.25, 0.5, 2.0])
def test_a_truncated_gaussian_is_the_density_that_it_says(std):
    q = Gaussian(std)
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    density = q.log_q(grid.view(-1, 1, 1, 1)).exp()
    assert abs(torch.trapezoid(density, grid) - 1) < 1e-6
    for at in (0.0, 0.3, 0.5, 0.9):
        below, above = (0.5 * (1 + math.erf(b / math.sqrt(2))) for b in (-0.5 / std, 0.5 / std))
        expected = -0.5 * ((at - 0.5) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi)) - math.log(above - below)
        assert q.log_q(torch.full((1, 1, 1, 1), at, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)
    both = q.log_q(torch.tensor([0.2, 0.7]).double().view(1, 2, 1, 1))
    assert torch.allclose(both, q.log_q(torch.tensor([0.2, 0.7]).double().view(2, 1, 1, 1)).sum(0))


@pytest.mark.parametrize("std", [0.03, 0.25, 0.5, 2.0])
def test_a_truncated_gaussian_draws_from_its_density(std):
    q = Gaussian(std)
    n = 200_000
    u, log_q = q.draw(torch.zeros(n, 1, 1, 1), torch.Generator().manual_seed(1))
    a = 0.5 / std
    variance = std**2 * (1 - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / math.erf(a / math.sqrt(2)))
    assert u.dtype == torch.float64
    assert torch.equal(log_q, q.log_q(u))
    assert u.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / n))
    assert u.var().item() == pytest.approx(variance, rel=0.02)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    cumulative = torch.cumulative_trapezoid(q.log_q(grid.view(-1, 1, 1, 1)).exp(), grid)
    below = torch.searchsorted(u.flatten().sort()[0], grid[1:]) / n
    assert (below - cumulative).abs().max() < 2.2 / math.sqrt(n)  # Kolmogorov and Smirnov: 1 in 10 000


def test_the_ends_of_a_truncated_gaussian_are_finite():
    ends = torch.tensor([0.0, 1 - 2**-24]).view(2, 1, 1, 1)
    for std in (1e-3, 0.05, 0.5, 50.0):
        u, log_q = Gaussian(std).draw(torch.zeros(2, 1, 1, 1), ends)
        assert u.min() >= 0
        assert u.max() < 1
        assert log_q.isfinite().all()
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(FlowError, match="std"):
            Gaussian(std)


def variational(channels=1, strength=0.3, **options):
    torch.manual_seed(11)
    q = VariationalDequantizer(channels, **{"hidden": 6, "steps": 2, **options})
    return perturbed(q, strength).double()


def test_the_noise_flow_obeys_the_law():
    q = variational(3, 0)
    check(q.flow, torch.randn(2, 12, 2, 3), torch.randn(2, 24, 2, 3))


def test_variational_noise_has_the_density_of_its_jacobian():
    q = variational()
    k = torch.randint(0, 256, (2, 1, 2, 4)).double()
    e = torch.randn(2, 1, 2, 4, dtype=torch.float64)
    u, logdet = q(e, k)
    expected = torch.stack([jacobian_logdet(q, e[i : i + 1], k[i : i + 1]) for i in range(2)])
    assert torch.allclose(logdet, expected, rtol=0, atol=1e-9)
    drawn, log_q = q.draw(k, e)
    assert torch.equal(drawn, u)
    normal = torch.distributions.Normal(0, 1).log_prob(e).flatten(1).sum(1)
    assert torch.allclose(log_q, normal - expected, rtol=0, atol=1e-9)
    assert torch.allclose(q.inverse(u, k), e, rtol=0, atol=1e-9)
    other = q.draw((k + 64) % 256, e)[0]
    assert (other - u).abs().max() > 0.01  # it sees the pixels


@torch.no_grad()
def test_variational_noise_integrates_to_one():
    """Over the unit cube of four subpixels, by a lattice of 2^16 points with one random shift (Korobov's)."""
    q = variational(strength=0.15)
    k = torch.tensor([3.0, 200.0, 77.0, 128.0], dtype=torch.float64).view(1, 1, 2, 2)
    n = 2**16
    powers = [1]
    for _ in range(3):
        powers.append(powers[-1] * 17797 % n)
    points = torch.arange(n)[:, None] * torch.tensor(powers) % n
    u = (points.double() / n + torch.rand(4, dtype=torch.float64)) % 1
    edge = 4 * q.MARGIN
    u = (u * (1 - 2 * edge) + edge).view(n, 1, 2, 2)  # the rest of the cube is 1e-5 of it
    e = q.inverse(u, k.expand_as(u))
    again, log_q = q.draw(k.expand_as(u), e)
    assert torch.allclose(again, u, atol=1e-9)
    assert log_q.exp().mean().item() == pytest.approx(1, abs=5e-3)
    assert log_q.exp().std() > 0.3  # it is not the uniform density, for which this would prove nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variational_noise_stays_in_the_bin_however_extreme(dtype):
    q = variational().to(dtype)
    k = torch.zeros(2, 1, 2, 2, dtype=dtype)
    e = torch.tensor([60.0, -60.0, 15.0, -15.0], dtype=dtype).view(1, 1, 2, 2) * torch.tensor([1.0, 10.0]).view(
        2, 1, 1, 1
    )
    u, log_q = q.draw(k, e.to(dtype).requires_grad_())
    assert u.min() > 0
    assert u.max() < 1
    assert log_q.isfinite().all()
    log_q.sum().backward()
    for name, parameter in q.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@torch.no_grad()
@pytest.mark.parametrize("initialized", [False, True])
def test_untrained_variational_noise_is_nearly_uniform(initialized):
    torch.manual_seed(0)
    q = VariationalDequantizer(3)
    k = torch.randint(0, 256, (16, 3, 16, 16)).float()
    if initialized:
        u = q.initialize(q.noise(tuple(k.shape)), k)
        assert torch.equal(u.isfinite(), torch.ones_like(u, dtype=torch.bool))
    log_q = q.draw(k)[1]
    cost = log_q.mean().item() / k[0].numel() / math.log(2)  # KL from uniform, bits per dimension
    assert 0 < cost < 0.05


def test_variational_noise_refuses_what_it_cannot_do():
    q = variational()
    with pytest.raises(PrecisionError):
        q.half()
    with pytest.raises(ShapeError, match="even sides"):
        q.draw(torch.zeros(1, 1, 2, 3))
    with pytest.raises(FlowError, match="at least 1 step"):
        VariationalDequantizer(1, steps=0)
    with pytest.raises(FlowError, match="conditioned on"):
        q(torch.zeros(1, 1, 2, 2))


# --- bounds -----------------------------------------------------------------------------------------------------------


def gaussian_flow(mean, std, n_bits=8, grid="bins"):
    """A flow whose density is N(mean, std^2), subpixel by subpixel, for images (C, 2, 2)."""
    channels = mean.shape[0]
    flow = unconditional(([ActNorm(4 * channels)], None), channels=channels)
    actnorm = flow.levels[0].steps.parts()[0]
    with torch.no_grad():
        actnorm.bias.copy_(-mean.flatten())  # squeezing (C, 2, 2) keeps the order
        actnorm.log_scale.copy_(-std.log().flatten())
    flow.config = SimpleNamespace(n_bits=n_bits, grid=grid)
    return flow


def exact(k, mean, std, quantized):
    """log P(k): the integral of that density over the bins, (B,)."""
    ends = [(quantized.place(k.double(), torch.full_like(k.double(), u)) - mean) / std for u in (0.0, 1.0)]
    swap = ends[0] > 0  # the tail that is small is the one to compute with
    low, high = torch.where(swap, -ends[1], ends[0]), torch.where(swap, -ends[0], ends[1])
    return (cumulative(high) - cumulative(low)).log().flatten(1).sum(1)


def cumulative(z):
    """Phi, exact in the lower tail too, where torch's own loses its digits."""
    return 0.5 * torch.erfc(-z / math.sqrt(2))


class Optimal:
    """q = p(x + u) / P(x) for that density: a Gaussian truncated to the bin, by inverse distribution function."""

    name = "optimal"

    def __init__(self, mean, std, quantized):
        self.mean, self.std, self.quantized = mean, std, quantized

    def noise(self, shape, generator=None):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def draw(self, image, noise=None):
        noise = noise if isinstance(noise, torch.Tensor) else self.noise(image.shape, noise)
        low, high = (
            cumulative((self.quantized.place(image, torch.full_like(noise, u)) - self.mean) / self.std)
            for u in (0.0, 1.0)
        )
        z = torch.special.ndtri(low + noise * (high - low))
        u = (self.mean + self.std * z) / self.quantized.width - self.quantized.shift - image
        log_q = (
            -0.5 * z.square() - (self.std * math.sqrt(2 * math.pi) / self.quantized.width).log() - (high - low).log()
        )
        return u, log_q.flatten(1).sum(1)


def narrow(grid="bins", n_bits=8):
    """A density a bin or two wide, where dequantization has something to lose, and flat images near its mean."""
    quantized = Quantization(n_bits, grid)
    generator = torch.Generator().manual_seed(5)
    k = torch.randint(2, 2**n_bits - 2, (1, 3, 1, 1), generator=generator).double()
    k = k + torch.randint(-1, 2, (4, 3, 2, 2), generator=generator)
    middle = quantized.place(k.mean(0), torch.full((3, 2, 2), 0.3, dtype=torch.float64))
    std = quantized.width * (0.4 + torch.rand(3, 2, 2, generator=generator, dtype=torch.float64))
    return k, middle, std, quantized


@pytest.mark.parametrize(("grid", "n_bits"), [("bins", 8), ("levels", 8), ("bins", 5), ("levels", 3)])
def test_optimal_noise_makes_every_draw_exact(grid, n_bits):
    k, mean, std, quantized = narrow(grid, n_bits)
    flow = gaussian_flow(mean, std, n_bits, grid)
    w = log_weights(flow, k, dequantizer=Optimal(mean, std, quantized), samples=5)
    assert torch.allclose(w, exact(k, mean, std, quantized)[:, None].expand(-1, 5), rtol=0, atol=1e-9)
    assert effective_samples(w).tolist() == pytest.approx([5] * 4)


def test_more_draws_never_loosen_the_bound_and_end_at_the_exact_number():
    k, mean, std, quantized = narrow()
    truth = exact(k, mean, std, quantized)
    flow = gaussian_flow(mean, std)
    learned = VariationalDequantizer(3, hidden=4, steps=1).double()
    for dequantizer in (Uniform(), Gaussian(0.4), learned):
        w = log_weights(flow, k, dequantizer=dequantizer, samples=8192, batch=4096, seed=1)
        expected = [importance_weighted(w.view(4, -1, n)).mean(1) for n in (1, 4, 16, 64)]  # over 8192 / n trials
        errors = [importance_weighted(w.view(4, -1, n)).std(1) * math.sqrt(n / w.shape[1]) for n in (1, 4, 16, 64)]
        for fewer, more in itertools.pairwise(expected):
            assert (more > fewer).all()
        for mean_bound, error in zip(expected, errors, strict=True):
            assert (mean_bound < truth + 4 * error).all()
        assert (truth - expected[0] > 0.5).all()
        assert (truth - expected[-1]).abs().max() < 0.35 * (truth - expected[0]).min()
        assert (importance_weighted(w) - truth).abs().max() < 0.25
        assert (effective_samples(w) < 8192 / 2).all()


def test_several_draws_by_hand():
    w = torch.tensor([[1.0, 2.0, 3.0], [-4000.0, -4000.0, -4000.0], [0.0, -2000.0, -2000.0]])
    actual = importance_weighted(w)
    by_hand = math.log((math.e + math.e**2 + math.e**3) / 3)
    assert actual.tolist() == pytest.approx([by_hand, -4000, -math.log(3)], abs=1e-12)
    assert actual.dtype == torch.float64
    ratio = (math.e + math.e**2 + math.e**3) ** 2 / (math.e**2 + math.e**4 + math.e**6)
    assert effective_samples(w).tolist() == pytest.approx([ratio, 3, 1], abs=1e-9)


def test_a_draw_depends_on_its_image_and_its_number_alone():
    k = torch.randint(0, 256, (5, 3, 4, 4)).float()

    def all_x(image, seed, samples, batch, dequantizer):
        x = torch.empty(len(image), samples, 3, 4, 4, dtype=torch.float64)
        q = torch.empty(len(image), samples, dtype=torch.float64)
        for chunk in dequantized_batches(image, Quantization(), dequantizer, samples=samples, seed=seed, batch=batch):
            assert len(chunk.items) <= batch
            x[chunk.items, chunk.draws], q[chunk.items, chunk.draws] = chunk.x, chunk.log_q
            assert chunk.inside.all()
        return torch.cat([x.flatten(2), q[..., None]], 2)

    state = torch.get_rng_state()
    for dequantizer in (Uniform(), Gaussian(), VariationalDequantizer(3, hidden=4, steps=1).double()):
        state = torch.get_rng_state()
        whole = all_x(k, 10, 7, 64, dequantizer)
        assert torch.equal(torch.get_rng_state(), state)
        for batch in (1, 3, 35):
            assert torch.allclose(all_x(k, 10, 7, batch, dequantizer), whole, rtol=0, atol=1e-12)
        assert torch.allclose(all_x(k, 10, 3, 4, dequantizer), whole[:, :3], rtol=0, atol=1e-12)
        assert torch.allclose(all_x(k[3:4], 13, 7, 4, dequantizer), whole[3:4], rtol=0, atol=1e-12)
        assert not torch.allclose(whole[0, 0, :-1] - whole[0, 1, :-1], torch.zeros(48).double(), atol=1e-4)
        assert not torch.allclose(all_x(k, 11, 1, 64, dequantizer), whole[:, :1], atol=1e-4)


def test_one_weight_with_gradients_is_one_weight_without():
    flow, k = affine_flow(), torch.randint(0, 256, (3, 1, 4, 6)).double()
    q = variational()
    noise = q.noise((1, 3, 1, 4, 6))
    expected = log_weights(flow, k, dequantizer=q, noise=noise)[:, 0]
    actual = log_weight(flow, k, dequantizer=q, noise=noise[0])
    assert torch.allclose(actual, expected, rtol=0, atol=1e-9)
    actual.sum().backward()
    for name, parameter in [*q.named_parameters(), *flow.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    uniform = log_weight(flow, k, noise=noise[0] % 1)
    assert torch.allclose(uniform, log_weights(flow, k, noise=noise % 1)[:, 0], rtol=0, atol=1e-9)


def test_training_variational_noise_tightens_the_bound():
    """On the narrow density, where uniform noise loses bits; the exact number stays out of reach."""
    k, mean, std, quantized = narrow()
    flow = gaussian_flow(mean, std).requires_grad_(False)
    torch.manual_seed(2)
    q = VariationalDequantizer(3, hidden=8, steps=1)
    optimiser = torch.optim.Adam(q.parameters(), lr=0.01)
    many = k.repeat(24, 1, 1, 1)
    q.initialize(q.noise(tuple(many.shape)), many)
    for _ in range(100):
        loss = -log_weight(flow, many, dequantizer=q).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    truth = exact(k, mean, std, quantized)
    uniform, learned = (log_weights(flow, k, dequantizer=d, samples=1000, batch=4000).mean(1) for d in (Uniform(), q))
    assert (learned < truth).all()
    assert (truth - learned).mean() < 0.4 * (truth - uniform).mean()


def test_rows_of_conditions():
    items = torch.tensor([2, 0, 2])
    a, one = torch.arange(6.0).view(3, 2), torch.ones(1, 2)
    cond = Condition(features=(a, None), labels=one)
    actual = select_items(cond, items)
    assert torch.equal(actual.features[0], a[items])
    assert actual.features[1] is None
    assert actual.labels.shape == (3, 2)
    assert select_items(None, items) is None
    assert torch.equal(select_items([a], items)[0], a[items])


# --- the oracle -------------------------------------------------------------------------------------------------------


class Sigmoid:
    """The oracle's noise: u = sigmoid(0.3 + 0.8 e)."""

    name = "oracle"

    def noise(self, shape, generator=None):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def draw(self, image, noise=None):
        t = 0.3 + 0.8 * noise
        log_q = -0.5 * noise.square() - math.log(0.8 * math.sqrt(2 * math.pi)) - F.logsigmoid(t) - F.logsigmoid(-t)
        return torch.sigmoid(t), log_q.flatten(1).sum(1)


def oracle():
    """Closed-form values for a factorised Gaussian, with everything as float64 tensors, and the flow that it is."""
    values = json.loads((Path(__file__).parent / "data" / "dequant_oracle.json").read_text())
    tensors = {key: torch.tensor(values[key], dtype=torch.float64) for key in ("x", "mu", "sigma", "u", "e")}
    return values, tensors, gaussian_flow(tensors["mu"], tensors["sigma"])


def test_the_oracle_of_uniform_noise():
    values, t, flow = oracle()
    w = log_weights(flow, t["x"], noise=t["u"])
    for count, expected in values["uniform_iw_bpd"].items():
        bound = importance_weighted(w[:, : int(count)])
        assert bits_per_dim(bound, 12).tolist() == pytest.approx(expected, abs=1e-9)
    assert bits_per_dim(w.mean(1), 12).tolist() == pytest.approx(values["uniform_elbo_bpd_mc64"], abs=1e-9)
    # log p is quadratic in every u, so two points of Gauss and Legendre integrate it exactly
    nodes = torch.tensor([0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3)], dtype=torch.float64)
    w = log_weights(flow, t["x"], noise=nodes.view(2, 1, 1, 1, 1).expand(2, *t["x"].shape))
    assert bits_per_dim(w.mean(1), 12).tolist() == pytest.approx(values["uniform_elbo_bpd_analytic"], abs=1e-9)


def test_the_oracle_of_other_noise():
    values, t, flow = oracle()
    w = log_weights(flow, t["x"], dequantizer=Sigmoid(), noise=t["e"])
    for count, expected in values["vardeq"]["iw_bpd"].items():
        bound = importance_weighted(w[:, : int(count)])
        assert bits_per_dim(bound, 12).tolist() == pytest.approx(expected, abs=1e-9)
    assert bits_per_dim(w.mean(1), 12).tolist() == pytest.approx(values["vardeq"]["elbo_mc64"], abs=1e-9)


def test_the_oracle_of_the_exact_number():
    values, t, _ = oracle()
    actual = exact(t["x"], t["mu"], t["sigma"], Quantization())
    assert bits_per_dim(actual, 12).tolist() == pytest.approx(values["exact_discrete_bpd"], abs=1e-9)
