"""Densities that can be checked by hand, and that integrate to one."""

from __future__ import annotations

import math

import pytest
import torch

from flowcore.flow import Flow, Level
from flowcore.likelihood import bits_per_dim, dequantize, log_prob
from flowcore.networks import Conditioner, ScaledConv
from flowcore.transforms import ActNorm, Coupling, InvertibleConv, Split

from .laws import perturbed


def unconditional(*levels, channels):
    return Flow(
        [Level(steps, split) for steps, split in levels], channels=channels, config=None, architecture="test"
    ).double()


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
    came = bits_per_dim(nats, 48, 1 / 256)
    expected = [-(value + 48 * math.log(1 / 256)) / (48 * math.log(2)) for value in (-100.0, 250.0)]
    assert came.tolist() == pytest.approx(expected, abs=1e-12)
    assert bits_per_dim(nats, 48).tolist() == pytest.approx(
        [100 / 48 / math.log(2), -250 / 48 / math.log(2)], abs=1e-12
    )


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_a_uniform_density_costs_exactly_its_bits(bits):
    """Uniform on [0, 1]^D has log density 0; quantised to 2^bits values it takes `bits` bits per dimension."""
    assert bits_per_dim(torch.zeros(1, dtype=torch.float64), 12, 2.0**-bits).item() == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("bins", [32, 256])
def test_dequantization_noise_is_one_centred_bin(bins):
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
