"""HCFlow against tensors recorded from the published program; see hcflow/README.md.

Tolerances are relative to the largest value, if that exceeds 1: float64 1e-9; float32 1e-5 for images, latents and
features, 2e-6 for logdet and likelihood. The published likelihood rounds the LR image to 8 bits first.
"""

import math

import pytest
import torch
from torch import Tensor

from flowcore import Flow
from flowcore.flows import likelihood, prior
from flowcore.models.hcflow.published import HCFLOW, hcflow_origins

from . import published
from .published import PRECISIONS, given, near

PIXELS = 20 * 28  # of the recorded HR images
LR_LOG_DENSITY = 6 - math.log(2 * math.pi) / 2  # of a value at its mean


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return published.recording("hcflow/tiny4x_io", "hcflow/tiny4x_train")


def converted(case: str, precision: str) -> Flow:
    return published.as_ours(HCFLOW, published.recorded_hcflow(case), precision)


@pytest.fixture(scope="module", params=PRECISIONS)
def flow(request) -> Flow:
    return converted("tiny4x", request.param)


def own_lr(latents: list[Tensor], lr: Tensor) -> Tensor:
    return lr + latents[-1] * math.exp(-6)


def published_objective(latents: list[Tensor], logdet: Tensor) -> Tensor:
    """Logdet and density of the latents, without those of the LR image."""
    return logdet - 6 * latents[-1][0].numel() + prior.log_prob(latents[:-1])


def rounded_lr_log_prob(latents: list[Tensor], lr: Tensor) -> Tensor:
    """The published density of the LR image: of the flow's own, rounded to 8 bits, its gradient passed through."""
    own = own_lr(latents, lr)
    rounded = own + (own.clamp(0, 1).mul(255).round().div(255) - own).detach()
    return (LR_LOG_DENSITY - ((rounded - lr) * math.exp(6)).square() / 2).flatten(1).sum(1)


def published_nll(latents: list[Tensor], logdet: Tensor, lr: Tensor) -> Tensor:
    total = published_objective(latents, logdet) - math.log(64) * PIXELS + rounded_lr_log_prob(latents, lr)
    return -total / (math.log(2) * PIXELS)


def noisy(flow: Flow, recorded: dict[str, Tensor]) -> tuple[str, Tensor, Tensor]:
    t, hr, lr, u = given(flow, recorded, "hr", "lr", "noise.u")
    return t, hr + u / 64, lr


def test_encode_then_decode(flow, recorded):
    t, hr, lr = given(flow, recorded, "hr", "lr")
    cond = flow.encode_condition(lr)
    latents, logdet = flow(hr, cond)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes(20, 28) == [(6, 10, 14), (21, 5, 7), (3, 5, 7)]
    for level in range(2):
        near(latents[level], recorded[f"{t}.enc.eps{level}"])
    near(own_lr(latents, lr), recorded[f"{t}.enc.lr"])
    near(logdet - 6 * 3 * 35, recorded[f"{t}.enc.logdet"], 2e-6)
    near(published_objective(latents, logdet), recorded[f"{t}.enc.objective"], 2e-6)
    near(rounded_lr_log_prob(latents, lr), recorded[f"{t}.enc.lr_logp"], 2e-6)
    near(flow.reduce(hr), recorded[f"{t}.enc.lr"])
    x = flow.inverse(latents, cond)
    near(x, recorded[f"{t}.recon.x"])
    near(x, hr)


def test_decode_latents(flow, recorded):
    t, lr, *latents = given(flow, recorded, "lr", "given.eps0", "given.eps1")
    cond, still = flow.encode_condition(lr), torch.zeros_like(lr)
    near(flow.inverse([*latents, still], cond), recorded[f"{t}.given.x"])
    near(flow.inverse([*map(torch.zeros_like, latents), still], cond), recorded[f"{t}.tau0.x"])


def test_log_prob_does_not_round_the_lr_image(flow, recorded):
    _, hr, lr = given(flow, recorded, "hr", "lr")
    latents, logdet = flow(hr, flow.encode_condition(lr))
    density = (LR_LOG_DENSITY - latents[-1].square() / 2).flatten(1).sum(1)
    total = published_objective(latents, logdet) + density
    near(likelihood.log_prob(flow, hr, flow.encode_condition(lr)), total, 2e-6)


@pytest.mark.parametrize("whole", [False, True])
@torch.enable_grad()
def test_gradients(recorded, whole):
    flow = converted("tiny4x", "float64")
    _, hr, lr = noisy(flow, recorded)
    latents, logdet = flow(hr, flow.encode_condition(lr))
    objective = published_objective(latents, logdet)
    if whole:
        objective = objective + rounded_lr_log_prob(latents, lr)
    (-objective.mean() / (math.log(2) * PIXELS)).backward()
    published.check_gradients(flow, hcflow_origins(flow.config), recorded, "" if whole else "flow_")


def test_data_dependent_initialization(recorded):
    flow = converted("tiny4x", "float64")
    _, hr, lr = noisy(flow, recorded)
    latents, logdet = published.initialized(flow, hcflow_origins(flow.config), recorded, hr, flow.encode_condition(lr))
    near(published_nll(latents, logdet, lr).mean().reshape(()), recorded["f64.init.nll"].reshape(()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rescaling(precision):
    flow = converted("tiny_rescaling4x", precision)
    recorded = published.recording("hcflow/tiny_rescaling4x_io")
    t, hr, lr, *noise = given(flow, recorded, "hr", "lr", "given.eps0", "given.eps1")
    latents = flow(hr, flow.encode_condition(lr))[0]
    for level in range(2):
        near(latents[level], recorded[f"{t}.enc.eps{level}"])
    small = flow.reduce(hr)
    near(small, recorded[f"{t}.enc.lr"])
    rounded = small.clamp(0, 1).mul(255).round() / 255
    near(rounded, recorded[f"{t}.enc.lr_quantised"], 1e-6)
    zeros = [torch.zeros_like(z) for z in noise]
    for source, details, name in (
        (lr, noise, "given"),
        (lr, zeros, "tau0"),
        (rounded, zeros, "roundtrip_tau0"),
        (small, latents[:2], "recon"),
    ):
        x = flow.inverse([*details, torch.zeros_like(lr)], flow.encode_condition(source))
        near(x, recorded[f"{t}.{name}.x"])
