"""SRFlow against tensors recorded from the published program; see srflow/README.md.

Tolerances, relative to the largest value (at least 1): float64 1e-9; float32 5e-5, logdet 2e-6. The
published "logdet" contains the log density of the latents of splits; ours never contains a prior, so the tests add it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowcore import dequantization, likelihood, prior
from flowcore.checkpoints.sources.srflow import srflow_origins

from .published import near, published_draws

PIXELS = 48 * 40  # of the recorded HR images


def names(flow) -> list[tuple[str, str]]:
    """Our name and the published one of every parameter."""
    return [(origin.ours, origin.names[0]) for origin in srflow_origins(flow.config)]


def precision(flow) -> str:
    return "f64" if next(flow.parameters()).dtype == torch.float64 else "f32"


def inputs(flow, recorded) -> tuple[Tensor, Tensor]:
    dtype = next(flow.parameters()).dtype
    return recorded["gt"].to(dtype), recorded["lr"].to(dtype)


def published_nll(log_prob: Tensor) -> Tensor:
    return -log_prob / (math.log(2) * PIXELS)  # bits per HR pixel of three subpixels


def published_logdet(latents: list[Tensor], logdet: Tensor) -> Tensor:
    return logdet + prior.log_prob(latents[:-1])


@torch.no_grad()
def test_encode_then_decode(flow, recorded):
    gt, lr = inputs(flow, recorded)
    t = precision(flow)
    cond = flow.encode_condition(lr)
    latents, logdet = flow(gt, cond)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes(48, 40)
    near(latents[0], recorded[f"{t}.enc.eps0"], 5e-5)
    near(latents[1], recorded[f"{t}.enc.z"], 5e-5)
    near(published_logdet(latents, logdet), recorded[f"{t}.enc.logdet"], 2e-6)
    nll = recorded[f"{t}.enc.nll"]
    log_prob = likelihood.log_prob(flow, gt, cond)
    near(published_nll(log_prob), nll, 2e-5)
    bits = likelihood.bits_per_dim(log_prob, 3 * PIXELS)
    near(bits, nll / 3, 2e-5)
    near(likelihood.bits_per_dim(log_prob, 3 * PIXELS, bin_width=1 / 256), bits.double() + 8, 1e-6)
    x = flow.inverse(latents, cond)
    near(x, recorded[f"{t}.recon.x"], 5e-5)
    near(x, gt, 5e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", ["given", "tau0"])
def test_decode_latents(flow, recorded, case):
    gt, lr = inputs(flow, recorded)
    latents = [recorded["given.eps0"].to(gt), recorded["given.z"].to(gt)]
    if case == "tau0":
        latents = [torch.zeros_like(z) for z in latents]
    cond = flow.encode_condition(lr)
    x = flow.inverse(latents, cond)
    t = precision(flow)
    near(x, recorded[f"{t}.{case}.x"], 5e-5)
    near(-published_logdet(latents, flow(x, cond)[1]), recorded[f"{t}.{case}.logdet"], 2e-6)


@torch.no_grad()
def test_seeded_sample(flow, recorded):
    _, lr = inputs(flow, recorded)
    drawn = published_draws(flow.latent_shapes(48, 40), 2, 0.9, 1234)
    assert torch.equal(drawn[0], recorded["f32.seed1234.draw0"])
    assert torch.equal(drawn[1], recorded["f32.seed1234.z"])
    cond = flow.encode_condition(lr)
    latents = [z.to(lr) for z in drawn]
    x = flow.inverse(latents, cond)
    near(x.float(), recorded["f32.seed1234.x"], 5e-5)
    near(-published_logdet(latents, flow(x, cond)[1]).float(), recorded["f32.seed1234.logdet"], 2e-6)


@torch.no_grad()
def test_dequantized_encode(flow, recorded):
    gt, lr = inputs(flow, recorded)
    u, bins = recorded["f32.noise.u"].to(gt), flow.config.quant_bins
    latents, logdet = flow(gt + (u - 0.5) / bins, flow.encode_condition(lr))
    near(latents[1].float(), recorded["f32.noise.z"], 5e-5)
    # The published constant counts pixels, not subpixels.
    constant = -math.log(bins) * PIXELS
    near((published_logdet(latents, logdet) + constant).float(), recorded["f32.noise.logdet"], 2e-6)
    near(published_nll(prior.log_prob(latents) + logdet + constant).float(), recorded["f32.noise.nll"], 2e-5)


def test_dequantize_matches_the_published_formula(recorded):
    noise = torch.rand(recorded["gt"].shape, generator=torch.Generator().manual_seed(3))
    ours = dequantization.dequantize(recorded["gt"], 32, torch.Generator().manual_seed(3))
    assert torch.equal(ours, recorded["gt"] + (noise - 0.5) / 32)


def test_gradients(flow64, recorded):
    gt, lr = inputs(flow64, recorded)
    published_nll(likelihood.log_prob(flow64, gt, flow64.encode_condition(lr))).mean().backward()
    parameters = dict(flow64.named_parameters())
    seen = set()
    for ours, name in names(flow64):
        gradient = parameters.pop(ours).grad
        if gradient is None:
            assert f"f64.gradnorm_none.{name}" in recorded, f"{ours} should have a gradient"
            continue
        seen.add(name)
        near(gradient.norm().reshape(1), recorded[f"f64.gradnorm.{name}"])
        if f"f64.grad.{name}" in recorded:
            near(gradient, recorded[f"f64.grad.{name}"].reshape(gradient.shape))
    assert not parameters
    assert seen == {key.removeprefix("f64.gradnorm.") for key in recorded if key.startswith("f64.gradnorm.")}


@torch.no_grad()
def test_data_dependent_initialization_is_an_explicit_call(flow64, recorded):
    gt, lr = inputs(flow64, recorded)
    state = flow64.state_dict()
    actnorms = [(ours, name) for ours, name in names(flow64) if ".actnorm." in name]
    for ours, _ in actnorms:
        state[ours].zero_()
    before, cond = {name: t.clone() for name, t in state.items()}, flow64.encode_condition(lr)
    flow64.train()
    flow64.inverse(flow64(gt, cond)[0], cond)
    assert all(torch.equal(t, before[name]) for name, t in flow64.state_dict().items())
    latents = flow64.initialize(gt, cond)
    for ours, name in actnorms:
        near(state[ours], recorded[f"f64.init.{name}"].flatten())
    assert len(actnorms) == sum(key.startswith("f64.init.flowUpsamplerNet.") for key in recorded)
    again, logdet = flow64(gt, cond)
    for first, second in zip(latents, again, strict=True):
        near(first, second)
    near(published_logdet(again, logdet), recorded["f64.init.logdet"])
    near(published_nll(prior.log_prob(again) + logdet), recorded["f64.init.nll"])
