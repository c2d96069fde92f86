"""SRFlow against tensors recorded from the published program; see srflow/README.md.

Tolerances, relative to the largest value (at least 1): float64 1e-9; float32 5e-5, logdet 2e-6. The
published "logdet" contains the log density of the latents of splits; ours never contains a prior, so the tests add it.
"""

import math

import pytest
import torch
from torch import Tensor

from flowcore.flows import likelihood, prior
from flowcore.models.srflow.published import SRFLOW, srflow_origins

from .published import PRECISIONS, as_ours, check_gradients, given, initialized, near, recorded_srflow, recording

PIXELS = 48 * 40  # of the recorded HR images


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return recording("srflow/tiny4x_io", "srflow/tiny4x_train")


def converted(precision: str):
    return as_ours(SRFLOW, recorded_srflow(), precision, stacked_blocks=(0, 1, 2, 3))


@pytest.fixture(scope="module", params=PRECISIONS)
def flow(request):
    return converted(request.param)


def published_nll(log_prob: Tensor) -> Tensor:
    return -log_prob / (math.log(2) * PIXELS)  # bits per HR pixel of three subpixels


def published_logdet(latents: list[Tensor], logdet: Tensor) -> Tensor:
    return logdet + prior.log_prob(latents[:-1])


def test_encode_then_decode(flow, recorded):
    t, gt, lr = given(flow, recorded, "gt", "lr")
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


def test_decode_latents(flow, recorded):
    t, eps, z, lr = given(flow, recorded, "given.eps0", "given.z", "lr")
    cond = flow.encode_condition(lr)
    for case, latents in (("given", [eps, z]), ("tau0", [torch.zeros_like(eps), torch.zeros_like(z)])):
        x = flow.inverse(latents, cond)
        near(x, recorded[f"{t}.{case}.x"], 5e-5)
        near(-published_logdet(latents, flow(x, cond)[1]), recorded[f"{t}.{case}.logdet"], 2e-6)


@torch.enable_grad()
def test_gradients(recorded):
    flow = converted("float64")
    _, gt, lr = given(flow, recorded, "gt", "lr")
    published_nll(likelihood.log_prob(flow, gt, flow.encode_condition(lr))).mean().backward()
    check_gradients(flow, srflow_origins(flow.config), recorded)


def test_data_dependent_initialization_is_an_explicit_call(recorded):
    flow = converted("float64").train()
    _, gt, lr = given(flow, recorded, "gt", "lr")
    before, cond = {name: t.clone() for name, t in flow.state_dict().items()}, flow.encode_condition(lr)
    flow.inverse(flow(gt, cond)[0], cond)
    assert all(torch.equal(t, before[name]) for name, t in flow.state_dict().items())
    latents, logdet = initialized(flow, srflow_origins(flow.config), recorded, gt, cond)
    near(published_logdet(latents, logdet), recorded["f64.init.logdet"])
    near(published_nll(prior.log_prob(latents) + logdet), recorded["f64.init.nll"])
