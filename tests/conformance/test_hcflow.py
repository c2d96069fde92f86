"""HCFlow against tensors recorded from the published program; see hcflow/README.md.

Tolerances are relative to the largest value, if that exceeds 1: float64 1e-9; float32 1e-5 for images, latents and
features, 2e-6 for logdet and likelihood. The published likelihood rounds the LR image to 8 bits first.
"""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowcore import likelihood, prior
from flowcore.checkpoints.sources import HCFLOW
from flowcore.checkpoints.sources.hcflow import hcflow_origins
from flowcore.flow import Flow
from flowcore.inference.plan import Plan
from flowcore.models.hcflow import HCFlowConfig

from .published import HCFLOW as FOLDER
from .published import HCFLOWS, near, published_draws, recorded_hcflow

PIXELS = 20 * 28  # of the recorded HR images
LR_LOG_DENSITY = 6 - math.log(2 * math.pi) / 2  # of a value at its mean


def load(*names: str) -> dict[str, Tensor]:
    return {key: t for name in names for key, t in load_file(FOLDER / f"{name}.safetensors").items()}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load("tiny4x_io", "tiny4x_train")


@pytest.fixture(scope="module")
def rescaling() -> dict[str, Tensor]:
    return load("tiny_rescaling4x_io")


def converted(case: str, dtype: str) -> Flow:
    flow = HCFLOW.convert(recorded_hcflow(case), {})
    assert flow.config == HCFlowConfig(**HCFLOWS[case], temperature=1.0 if "rescaling" in case else 0.9)
    return flow.to(dtype=getattr(torch, dtype))


@pytest.fixture(scope="module", params=["float32", "float64"])
def flow(request) -> Flow:
    """The recorded super-resolution network as ours; tests do not change it."""
    return converted("tiny4x", request.param)


@pytest.fixture(scope="module", params=["float32", "float64"])
def rescaler(request) -> Flow:
    return converted("tiny_rescaling4x", request.param)


@pytest.fixture
def flow64() -> Flow:
    """For tests that change it."""
    return converted("tiny4x", "float64")


def precision(flow: Flow) -> str:
    return "f64" if next(flow.parameters()).dtype == torch.float64 else "f32"


def inputs(flow: Flow, recorded: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    dtype = next(flow.parameters()).dtype
    return recorded["hr"].to(dtype), recorded["lr"].to(dtype)


def own_lr(latents: list[Tensor], lr: Tensor) -> Tensor:
    """The flow's own LR image."""
    return lr + latents[-1] * math.exp(-6)


def published_objective(latents: list[Tensor], logdet: Tensor) -> Tensor:
    """Logdet and density of the latents, without those of the LR image."""
    return logdet - 6 * latents[-1][0].numel() + prior.log_prob(latents[:-1])


def rounded_lr_log_prob(latents: list[Tensor], lr: Tensor) -> Tensor:
    """The published density of the LR image: of the flow's own, rounded to 8 bits, its gradient passed through."""
    own = own_lr(latents, lr)
    rounded = own + (own.clamp(0, 1).mul(255).round().div(255) - own).detach()
    return (LR_LOG_DENSITY - ((rounded - lr) * math.exp(6)).square() / 2).flatten(1).sum(1)


@torch.no_grad()
@pytest.mark.parametrize("planned", [False, True])
def test_encode_then_decode(flow, recorded, planned):
    hr, lr = inputs(flow, recorded)
    t = precision(flow)
    walk, cond = Plan(flow) if planned else flow, flow.encode_condition(lr)
    latents, logdet = walk(hr, cond)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes(20, 28) == [(6, 10, 14), (21, 5, 7), (3, 5, 7)]
    for level in range(2):
        near(latents[level], recorded[f"{t}.enc.eps{level}"])
    near(own_lr(latents, lr), recorded[f"{t}.enc.lr"])
    near(logdet - 6 * 3 * 35, recorded[f"{t}.enc.logdet"], 2e-6)
    near(published_objective(latents, logdet), recorded[f"{t}.enc.objective"], 2e-6)
    near(rounded_lr_log_prob(latents, lr), recorded[f"{t}.enc.lr_logp"], 2e-6)
    near(flow.reduce(hr), recorded[f"{t}.enc.lr"])
    x = walk.inverse(latents, cond)
    near(x, recorded[f"{t}.recon.x"])
    near(x, hr)


@torch.no_grad()
@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("case", ["given", "tau0"])
def test_decode_latents(flow, recorded, case, planned):
    _, lr = inputs(flow, recorded)
    latents = [recorded[f"given.eps{level}"].to(lr) for level in range(2)]
    latents = [z if case == "given" else torch.zeros_like(z) for z in latents]
    latents.append(torch.zeros_like(lr))
    x = (Plan(flow) if planned else flow).inverse(latents, flow.encode_condition(lr))
    near(x, recorded[f"{precision(flow)}.{case}.x"])


@torch.no_grad()
def test_seeded_sample(flow, recorded):
    _, lr = inputs(flow, recorded)
    drawn = published_draws(flow.latent_shapes(20, 28)[:-1], 2, 0.9, 1234)
    assert torch.equal(drawn[0], recorded["f32.seed1234.draw1"])
    assert torch.equal(drawn[1], recorded["f32.seed1234.draw0"])
    x = flow.inverse([*(z.to(lr) for z in drawn), torch.zeros_like(lr)], flow.encode_condition(lr))
    near(x.float(), recorded["f32.seed1234.x"], 1e-5)


@torch.no_grad()
def test_dequantized_likelihood(flow, recorded):
    hr, lr = inputs(flow, recorded)
    t = precision(flow)
    latents, logdet = flow(hr + recorded["noise.u"].to(hr) / 64, flow.encode_condition(lr))
    for level in range(2):
        near(latents[level], recorded[f"{t}.noise.eps{level}"])
    near(own_lr(latents, lr), recorded[f"{t}.noise.lr"])
    objective = published_objective(latents, logdet)
    near(objective, recorded[f"{t}.noise.objective"], 2e-6)
    total = objective - math.log(64) * PIXELS + rounded_lr_log_prob(latents, lr)
    near(-total / (math.log(2) * PIXELS), recorded[f"{t}.noise.nll"], 2e-6)


@torch.no_grad()
def test_log_prob_takes_the_lr_image_as_it_is(flow, recorded):
    hr, lr = inputs(flow, recorded)
    latents, logdet = flow(hr, flow.encode_condition(lr))
    density = (LR_LOG_DENSITY - latents[-1].square() / 2).flatten(1).sum(1)
    total = published_objective(latents, logdet) + density
    near(likelihood.log_prob(flow, hr, flow.encode_condition(lr)), total, 2e-6)


def noisy(flow: Flow, recorded: dict[str, Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    hr, lr = inputs(flow, recorded)
    latents, logdet = flow(hr + recorded["noise.u"].to(hr) / 64, flow.encode_condition(lr))
    return latents, logdet, lr


@pytest.mark.parametrize("whole", [False, True])
def test_gradients(flow64, recorded, whole):
    latents, logdet, lr = noisy(flow64, recorded)
    objective = published_objective(latents, logdet)
    if whole:
        objective = objective + rounded_lr_log_prob(latents, lr)
    (-objective.mean() / (math.log(2) * PIXELS)).backward()
    parameters = dict(flow64.named_parameters())
    prefix = "f64.gradnorm." if whole else "f64.flow_gradnorm."
    seen = set()
    for origin in hcflow_origins(flow64.config):
        name, gradient = origin.names[0], parameters.pop(origin.ours).grad
        near(gradient.norm().reshape(()), recorded[prefix + name].reshape(()))
        seen.add(prefix + name)
        if not whole and f"f64.flow_grad.{name}" in recorded:
            theirs = recorded[f"f64.flow_grad.{name}"].reshape(gradient.shape)
            near(origin.forms[0].to_ours(theirs), gradient)
    assert not parameters
    assert seen == {key for key in recorded if key.startswith(prefix)}


@torch.no_grad()
def test_data_dependent_initialization(flow64, recorded):
    state = flow64.state_dict()
    actnorms = [(o.ours, o.names[0]) for o in hcflow_origins(flow64.config) if ".actnorm." in o.names[0]]
    for ours, _ in actnorms:
        state[ours].zero_()
    hr, lr = inputs(flow64, recorded)
    hr = hr + recorded["noise.u"].to(hr) / 64
    latents = flow64.initialize(hr, flow64.encode_condition(lr))
    for ours, name in actnorms:
        near(state[ours], recorded[f"f64.init.{name}"].flatten())
    assert len(actnorms) == sum(key.startswith("f64.init.flow.") for key in recorded)
    again, logdet = flow64(hr, flow64.encode_condition(lr))
    for first, second in zip(latents, again, strict=True):
        near(first, second)
    total = published_objective(again, logdet) - math.log(64) * PIXELS + rounded_lr_log_prob(again, lr)
    near((-total / (math.log(2) * PIXELS)).mean().reshape(()), recorded["f64.init.nll"].reshape(()))


@torch.no_grad()
@pytest.mark.parametrize("planned", [False, True])
def test_rescaling(rescaler, rescaling, planned):
    hr, lr = inputs(rescaler, rescaling)
    t = precision(rescaler)
    walk = Plan(rescaler) if planned else rescaler
    latents = walk(hr, rescaler.encode_condition(lr))[0]
    for level in range(2):
        near(latents[level], rescaling[f"{t}.enc.eps{level}"])
    small = walk.reduce(hr)
    near(small, rescaling[f"{t}.enc.lr"])
    rounded = small.clamp(0, 1).mul(255).round() / 255
    near(rounded, rescaling[f"{t}.enc.lr_quantised"], 1e-6)
    still = torch.zeros_like(lr)
    noise = [rescaling[f"given.eps{level}"].to(lr) for level in range(2)]
    zeros = [torch.zeros_like(z) for z in noise]
    near(walk.inverse([*noise, still], rescaler.encode_condition(lr)), rescaling[f"{t}.given.x"])
    near(walk.inverse([*zeros, still], rescaler.encode_condition(lr)), rescaling[f"{t}.tau0.x"])
    x = walk.inverse([*zeros, still], rescaler.encode_condition(rounded))
    near(x, rescaling[f"{t}.roundtrip_tau0.x"])
    x = walk.inverse([*latents[:2], still], rescaler.encode_condition(small))
    near(x, rescaling[f"{t}.recon.x"])
    drawn = published_draws(rescaler.latent_shapes(20, 28)[:-1], 2, 1.0, 1234)
    x = walk.inverse([*(z.to(lr) for z in drawn), still], rescaler.encode_condition(lr))
    near(x.float(), rescaling["f32.seed1234.x"], 1e-5)
