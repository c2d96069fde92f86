"""SRFlow as a whole: its shapes, its files, its defaults, its refusals."""

import dataclasses

import pytest
import torch
from builders import build_minimal, encode_source

from flowcore.errors import ConditionError, ShapeError
from flowcore.testing import perturbed
from flowcore.transforms import ActNorm, Coupling, Injector, InvertibleConv

LEVELS = {2: 2, 4: 3, 8: 4}


def tiny(scale=4, **fields):
    return build_minimal("srflow", **{"scale": scale, "levels": LEVELS[scale], **fields})


def lr(height=2, width=4, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(5))


def hr(height, width, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("injector", [True, False])
def test_the_parts_of_a_step_are_numbered_in_order(injector):
    flow = tiny(injector=injector)
    conditional = [Injector, Coupling] if injector else [Coupling]
    for level in flow.levels:
        plain, coupled = level.steps.parts()
        assert [type(part) for part in plain.parts()] == [ActNorm, InvertibleConv]
        assert [type(part) for part in coupled.parts()] == [ActNorm, InvertibleConv, *conditional]
    last = f"levels.0.steps.transforms.1.transforms.{1 + len(conditional)}.conditioner.last.weight"
    assert flow.state_dict()[last].shape == (12, 4, 3, 3)  # shift and scale of half of 12 channels
    assert not any(f".transforms.{2 + len(conditional)}." in name for name in flow.state_dict())


def test_residual_measures_from_the_encoders_picture():
    flow = perturbed(tiny(residual=True), 0.05).double()
    source, x = lr().double(), hr(8, 16).double()
    cond = flow.encode_condition(source)
    assert torch.equal(cond.origin, flow.encoder.enlargement(source))
    from_zero = dataclasses.replace(cond, origin=torch.zeros_like(cond.origin))
    for one, two in zip(flow(x, cond)[0], flow(x - cond.origin, from_zero)[0], strict=True):
        assert torch.equal(one, two)
    assert tiny(residual=False).encode_condition(lr()).origin is None


@pytest.mark.parametrize("fields", [{}, {"transition_steps": 0}, {"transition_steps": 0, "injector": False}], ids=str)
def test_every_level_starts_from_the_principal_axes_of_its_first_batch(fields):
    """With transition steps or without, the first mixing holds them: in front of the first injector and coupling.

    The deepest grid of the batch has more pixels than its 96 channels.
    """
    flow = tiny(steps=2, mixing="principal", **fields).double()
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


def test_without_an_injector_the_coupling_alone_depends_on_the_condition():
    flow = perturbed(tiny(injector=False, levels=1), 0.05).double()
    one, two = (flow(hr(8, 16).double(), encode_source(flow, source))[0][0] for source in (lr(), 1 - lr()))
    assert torch.allclose(one[:, :6], two[:, :6], atol=1e-12)  # what the coupling lets pass
    assert not torch.allclose(one[:, 6:], two[:, 6:], atol=1e-3)


def test_images_and_sources_that_do_not_fit_are_refused():
    flow = tiny()
    with pytest.raises(ShapeError, match=r"divisible by 8; got 20x33.*16x32"):
        flow(hr(20, 33), flow.encode_condition(lr()))
    with pytest.raises(ShapeError, match="divisible by 8; got 0x8"):
        flow.latent_shapes(0, 8)
    for shape, sentence in (
        ((1, 3, 3, 5), r"srflow model needs sides divisible by 2 here; got 3x5.*flowcore.upscale, which pads for you"),
        ((1, 1, 4, 4), r"RGB source of shape \(B, 3, h, w\); got \(1, 1, 4, 4\)"),
        ((1, 3, 0, 4), "got 0x4"),
    ):
        with pytest.raises(ShapeError, match=sentence):
            flow.encode_condition(torch.zeros(shape))


def test_a_condition_of_another_model_or_image_is_refused():
    for flow, other, x, sentence in (
        (tiny(residual=True), tiny(8), hr(16, 32), "3 levels; the condition has 4"),
        (tiny(residual=True), tiny(residual=True), hr(16, 16), r"\(2, 3, 8, 16\); got \(2, 3, 16, 16\)"),
        (tiny(), tiny(), hr(16, 16), "grid"),
        (tiny(), tiny(), hr(8, 16, batch=3), "grid"),
    ):
        with pytest.raises(ConditionError, match=sentence):
            flow(x, other.encode_condition(lr()))
