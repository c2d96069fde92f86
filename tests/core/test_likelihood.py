"""Densities that can be checked by hand, and that integrate to one; noise and bounds against closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch
from builders import assemble, build_tiny, random_image

from flowcore import FlowError, ImageError, PrecisionError, ShapeError
from flowcore.flows.dequantization import (
    Dequantizer,
    Gaussian,
    Quantization,
    Uniform,
    VariationalDequantizer,
    dequantize,
    quantization,
    to_integers,
)
from flowcore.flows.flow import Level
from flowcore.flows.likelihood import bits_per_dim, effective_samples, importance_weighted, log_prob, log_weight
from flowcore.flows.testing import check, jacobian_logdet, perturbed
from flowcore.flows.transforms import ActNorm, InvertibleConv, LevelCondition

from .bounds import log_weights


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
    flow, x = build_tiny("glow", perturb=0.1).double(), random_image(2, 3, 4, 8).double()
    latents, logdet = flow(x)  # and several levels, prior plus logdet
    density = sum(torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1) for z in latents)
    assert len(latents) == 2
    assert torch.allclose(log_prob(flow, x), density + logdet, atol=1e-9)


def test_bits_per_dim():
    """Uniform on [0, 1]^D has log density 0; quantized to 2^bits values it takes `bits` bits per dimension."""
    nats = torch.tensor([0.0, -100.0, 250.0], dtype=torch.float64)
    for bits in (0, 5):
        expected = [bits, bits + 100 / 12 / math.log(2), bits - 250 / 12 / math.log(2)]
        assert bits_per_dim(nats, 12, 2.0**-bits).tolist() == pytest.approx(expected, abs=1e-12)
    assert bits_per_dim(nats, 12).tolist() == bits_per_dim(nats, 12, 1.0).tolist()


def test_dequantization_noise_is_one_centered_bin_and_reproducible():
    x, bins = torch.full((4, 3, 64, 64), 0.5, dtype=torch.float64), 32
    one, two, other = (dequantize(x, bins, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    noise = (one - x) * bins
    assert (x == 0.5).all()
    assert -0.5 <= noise.min() < -0.499
    assert 0.499 < noise.max() < 0.5
    assert abs(noise.mean()) < 5 * math.sqrt(1 / 12 / noise.numel())
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert dequantize(x.float(), bins).dtype == torch.float32


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


def test_quantization_of_a_model():
    assert quantization(build_tiny("realnvp", n_bits=5)) == Quantization(5, "bins")
    assert quantization(unconditional(([ActNorm(4)], None), channels=1)) == Quantization(8, "levels")
    for n_bits, grid, wrong in [(9, "bins", "9"), (0, "bins", "0"), (8, "boxes", "boxes")]:
        with pytest.raises(FlowError, match=wrong):
            Quantization(n_bits, grid)


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


def test_values_off_the_grid_are_rounded_and_reported():
    image = torch.tensor([[0.0, 10.4], [255.0, 20.0]], dtype=torch.float64).view(1, 1, 2, 2) / 255
    k, off = to_integers(torch.cat([image, image * 0, image + 1]))
    assert k[0].flatten().tolist() == [0, 10, 255, 20]
    assert off.tolist() == pytest.approx([0.4, 0, 255])
    image[0, 0, 0, 0] = math.nan
    with pytest.raises(ImageError, match="1 values"):
        to_integers(image)
    with pytest.raises(ImageError, match="int64"):
        to_integers(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


def every_dequantizer():
    return [Uniform(), Gaussian(0.1), perturbed(VariationalDequantizer(3, hidden=6, steps=2), 0.2).double()]


@pytest.mark.parametrize("which", range(3))
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
    assert 0 <= u.min() < u.max() < 1
    alone = q.draw(k[1:2], noise[1:2])
    assert torch.allclose(alone[0], u[1:2], atol=1e-5)
    assert torch.allclose(alone[1], log_q[1:2], atol=1e-3)
    with pytest.raises(ShapeError):
        q.draw(k, noise[..., :4])


@pytest.mark.parametrize("std", [0.03, 0.1, 0.25, 0.5, 2.0])
def test_a_truncated_gaussian_has_its_density_and_draws_from_it(std):
    q = Gaussian(std)
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    log_q = q.log_q(grid.view(-1, 1, 1, 1))
    assert abs(torch.trapezoid(log_q.exp(), grid) - 1) < 1e-6
    assert torch.allclose(log_q - log_q[10000], -0.5 * ((grid - 0.5) / std) ** 2, rtol=1e-12, atol=1e-12)
    both = q.log_q(torch.tensor([0.2, 0.7]).double().view(1, 2, 1, 1))
    assert torch.allclose(both, q.log_q(torch.tensor([0.2, 0.7]).double().view(2, 1, 1, 1)).sum(0))
    n = 200_000
    u, drawn = q.draw(torch.zeros(n, 1, 1, 1), torch.Generator().manual_seed(1))
    a = 0.5 / std
    variance = std**2 * (1 - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / math.erf(a / math.sqrt(2)))
    assert u.dtype == torch.float64
    assert torch.equal(drawn, q.log_q(u))
    assert u.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / n))
    assert u.var().item() == pytest.approx(variance, rel=0.02)
    below = torch.searchsorted(u.flatten().sort()[0], grid[1:]) / n
    assert (below - torch.cumulative_trapezoid(log_q.exp(), grid)).abs().max() < 2.2 / math.sqrt(n)  # 1 in 10 000


def test_the_ends_of_a_truncated_gaussian_are_finite():
    ends = torch.tensor([0.0, 1 - 2**-24]).view(2, 1, 1, 1)
    for std in (1e-3, 0.05, 0.5, 50.0):
        u, log_q = Gaussian(std).draw(torch.zeros(2, 1, 1, 1), ends)
        assert 0 <= u.min() < u.max() < 1
        assert log_q.isfinite().all()
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(FlowError, match="std"):
            Gaussian(std)


def variational(channels=1, strength=0.3, **options):
    q = VariationalDequantizer(channels, **{"hidden": 6, "steps": 2, **options})
    return perturbed(q, strength).double()


def test_variational_noise_has_the_density_of_its_jacobian():
    check(variational(3, 0).flow, torch.randn(2, 12, 2, 3), LevelCondition(features=torch.randn(2, 24, 2, 3)))
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


def test_extreme_variational_noise_stays_in_the_bin():
    q = variational().float()
    e = torch.tensor([60.0, -60.0, 15.0, -15.0]) * torch.tensor([[1.0], [10.0]])
    u, log_q = q.draw(torch.zeros(2, 1, 2, 2), e.view(2, 1, 2, 2).requires_grad_())
    assert 0 < u.min() < u.max() < 1
    assert log_q.isfinite().all()
    log_q.sum().backward()
    for name, parameter in q.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@torch.no_grad()
@pytest.mark.parametrize("initialized", [False, True])
def test_untrained_variational_noise_is_nearly_uniform(initialized):
    q = VariationalDequantizer(3)
    k = torch.randint(0, 256, (16, 3, 16, 16)).float()
    if initialized:
        assert q.initialize(q.noise(tuple(k.shape)), k).isfinite().all()
    cost = bits_per_dim(-q.draw(k)[1], k[0].numel()).mean()  # KL from uniform
    assert 0 < cost < 0.06  # over draws 0.035, deviation 0.004: by chance above once in 10^9


def test_variational_noise_refuses_what_it_cannot_do():
    q = variational()
    with pytest.raises(PrecisionError):
        q.half()
    with pytest.raises(ShapeError):
        q.draw(torch.zeros(1, 1, 2, 3))
    with pytest.raises(FlowError, match="at least 1 step"):
        VariationalDequantizer(1, steps=0)
    with pytest.raises(FlowError, match="conditioned on"):
        q(torch.zeros(1, 1, 2, 2))


def gaussian_flow(mean, std, n_bits, grid):
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


def narrow(grid, n_bits):
    """A density a bin or two wide, where dequantization has something to lose, and flat images near its mean."""
    quantized = Quantization(n_bits, grid)
    generator = torch.Generator().manual_seed(5)
    k = torch.randint(2, 2**n_bits - 2, (1, 3, 1, 1), generator=generator).double()
    k = k + torch.randint(-1, 2, (4, 3, 2, 2), generator=generator)
    middle = quantized.place(k.mean(0), torch.full((3, 2, 2), 0.3, dtype=torch.float64))
    std = quantized.width * (0.4 + torch.rand(3, 2, 2, generator=generator, dtype=torch.float64))
    return k, middle, std, quantized


@pytest.mark.parametrize(("which", "grid", "n_bits"), [(0, "bins", 5), (1, "levels", 3), (2, "bins", 8)])
def test_more_draws_tighten_the_bound_up_to_the_exact_number(which, grid, n_bits):
    torch.manual_seed(0)  # fixed draws: the tails of the weights are too heavy to bound what chance may do
    dequantizer = [Uniform(), Gaussian(0.4), VariationalDequantizer(3, hidden=4, steps=1).double()][which]
    k, mean, std, quantized = narrow(grid, n_bits)
    truth = exact(k, mean, std, quantized)
    flow = gaussian_flow(mean, std, n_bits, grid)
    w = log_weights(flow, k, dequantizer=dequantizer, samples=8192, batch=4096, seed=1)
    bounds = [importance_weighted(w.view(4, -1, n)) for n in (1, 4, 16, 64)]  # over 8192 / n trials
    means = torch.stack([bound.mean(1) for bound in bounds])
    errors = torch.stack([bound.std(1) / math.sqrt(bound.shape[1]) for bound in bounds])
    assert (means.diff(dim=0) > 0).all()
    assert (means < truth + 4 * errors).all()
    assert (truth - means[0] > 0.5).all()
    assert (truth - means[-1]).abs().max() < 0.35 * (truth - means[0]).min()
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
