"""What the fields of Glow, Real NVP, SRFlow and the class-conditional flow mean; and their labels and styles."""

import dataclasses
import functools

import pytest
import torch
from builders import build_minimal, encode_source, move_buffers, random_image

from flowcore import ConditionError
from flowcore.flows import likelihood
from flowcore.flows.dequantization import VariationalDequantizer
from flowcore.flows.testing import perturbed
from flowcore.flows.transforms import InvertibleConv, Split, use_batch_moments

glow, realnvp, digits = (functools.partial(build_minimal, name) for name in ("glow", "realnvp", "class_conditional"))


def srflow(scale=4, **fields):
    return build_minimal("srflow", **{"scale": scale, "levels": {2: 2, 4: 3, 8: 4}[scale], **fields})


def steps(flow):
    return [chain.parts() for level in flow.levels for chain in level.steps.parts()]


@pytest.mark.parametrize(("fields", "moved"), [({}, [False, True]), ({"split_prior": "table"}, [True, True])], ids=str)
def test_labels_whiten_other_latents(fields, moved):
    flow = perturbed(glow(classes=3, image_size=(4, 8), **fields), 0.05)
    assert [m.labeled for m in flow.modules() if isinstance(m, Split)] == moved[:1]
    one, two = (flow(random_image(2, 3, 4, 8), flow.encode_condition(torch.tensor([k, k])))[0] for k in (0, 1))
    assert [not torch.equal(a, b) for a, b in zip(one, two, strict=True)] == moved


def test_fields_that_no_published_model_has_choose_the_parts():
    for mixing in ("conv", "lu"):  # sorts once a level and then reverses
        principal = glow(mixing=mixing, mixing_start="principal", steps=3)
        assert [step[1].start for step in steps(principal)] == ["principal", "reverse", "reverse"] * 2
    dequantizer = glow(channels=1, dequantizer_steps=1, n_bits=5).dequantizer
    assert isinstance(dequantizer, VariationalDequantizer)
    assert dequantizer.n_bits == 5


def test_log_scales_of_checkerboards_start_at_0_and_those_of_halves_are_bounded_by_1():
    rescales = {name: p for name, p in realnvp().named_parameters() if name.endswith("rescale")}
    assert sorted(float(p.detach().unique()) for p in rescales.values()) == [0.0] * 7 + [1.0] * 3


def test_the_mode_decides_whose_moments_a_density_takes():
    flow, x = move_buffers(realnvp()).double(), random_image(3, 3, 4, 6).double()
    with use_batch_moments(flow, update=False):
        expected = flow.log_prob(x)
    before = {name: value.clone() for name, value in flow.named_buffers()}
    for training, gradients in ((False, True), (True, False)):
        with torch.set_grad_enabled(gradients):
            assert not torch.allclose(flow.train(training).log_prob(x), expected, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in flow.named_buffers())
    assert torch.allclose(flow.train().log_prob(x), expected)
    assert not any(torch.equal(value, before[name]) for name, value in flow.named_buffers() if "mean" in name)


def log_prob(flow, given):
    return likelihood.log_prob(flow, random_image(2, 1, 3, 4).double(), flow.encode_condition(given))


def test_no_label_is_a_label_of_its_own():
    flow = perturbed(digits()).double()
    every = torch.stack([log_prob(flow, torch.tensor([k, k])) for k in range(4)])  # 3 is none
    assert (every[:, None] - every[None]).abs().amax(2)[~torch.eye(4, dtype=torch.bool)].min() > 1e-3
    with pytest.raises(ConditionError):
        flow.encode_condition(torch.tensor([4]))


def lr(height=2, width=4, batch=2):
    return random_image(batch, 3, height, width, seed=5)


def hr(height, width, batch=2):
    return random_image(batch, 3, height, width, seed=6)


def test_residual_measures_from_the_encoders_picture():
    flow = perturbed(srflow(residual=True), 0.05).double()
    source, x = lr().double(), hr(8, 16).double()
    cond = flow.encode_condition(source)
    assert torch.equal(cond.origin, flow.encoder.enlargement(source))
    from_zero = dataclasses.replace(cond, origin=torch.zeros_like(cond.origin))
    for one, two in zip(flow(x, cond)[0], flow(x - cond.origin, from_zero)[0], strict=True):
        assert torch.equal(one, two)
    assert srflow(residual=False).encode_condition(lr()).origin is None


@pytest.mark.parametrize("fields", [{}, {"transition_steps": 0}, {"transition_steps": 0, "injector": False}], ids=str)
def test_every_level_starts_from_the_principal_axes_of_its_first_batch(fields):
    """With transition steps or without, the first mixing holds them: in front of the first injector and coupling.

    The deepest grid of the batch has more pixels than its 96 channels.
    """
    flow = srflow(steps=2, mixing="principal", **fields).double()
    x, cond = hr(16, 32, batch=16).double(), encode_source(flow, lr(4, 8, batch=16))
    flow.initialize(x, cond)
    seen = []
    first = [next(m for m in level.modules() if isinstance(m, InvertibleConv)) for level in flow.levels]
    for mixing in first:
        mixing.register_forward_hook(lambda module, arguments, result: seen.append(result[0]))
    flow(x, cond)
    for mixing, z in zip(first, seen, strict=True):
        covariance = torch.cov(z.transpose(0, 1).flatten(1))
        variances = covariance.diagonal()
        assert (covariance - variances.diag()).abs().max() < 1e-9 * variances[0]
        assert (variances.diff() <= 0).all()
        assert torch.allclose(mixing.weight @ mixing.weight.T, torch.eye(len(variances)).double(), atol=1e-9)


def test_an_image_of_another_size_than_the_encoders_picture_is_refused():
    flow = srflow(residual=True)
    with pytest.raises(ConditionError):
        flow(hr(16, 16), flow.encode_condition(lr()))
