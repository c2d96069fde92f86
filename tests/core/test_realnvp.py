"""Real NVP: the order of its couplings, and its batch norms."""

import functools

import torch
from builders import build_minimal, move_buffers

from flowcore import likelihood
from flowcore.testing import perturbed
from flowcore.transforms import batch_moments

tiny = functools.partial(build_minimal, "realnvp")


def image(channels=3, height=4, width=6, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(6))


def test_log_scales_of_checkerboards_start_at_0_and_those_of_halves_are_bounded_by_1():
    rescales = {name: p for name, p in tiny().named_parameters() if name.endswith("rescale")}
    assert sorted(float(p.detach().unique()) for p in rescales.values()) == [0.0] * 7 + [1.0] * 3


def test_batch_moments_agree_with_evaluation_once_initialized():
    flow = perturbed(tiny(), 0.05).double()
    x = image(batch=8).double()
    flow.initialize(x)
    with torch.no_grad():
        expected = likelihood.log_prob(flow, x)
        with batch_moments(flow):
            assert torch.allclose(likelihood.log_prob(flow, x), expected, atol=1e-8)
        assert torch.allclose(likelihood.log_prob(flow, x), expected, atol=1e-8)


def test_the_mode_decides_whose_moments_a_density_takes():
    flow, x = move_buffers(tiny()).double(), image(batch=3).double()
    with batch_moments(flow, update=False):
        expected = flow.log_prob(x)
    before = {name: value.clone() for name, value in flow.named_buffers()}
    for training, gradients in ((False, True), (True, False)):
        with torch.set_grad_enabled(gradients):
            assert not torch.allclose(flow.train(training).log_prob(x), expected, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in flow.named_buffers())
    assert torch.allclose(flow.train().log_prob(x), expected)
    assert not any(torch.equal(value, before[name]) for name, value in flow.named_buffers() if "mean" in name)
