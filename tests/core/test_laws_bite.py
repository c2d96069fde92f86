"""One wrong transform per law: the checks must refuse each, and for the right reason."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from builders import build_tiny, move_buffers

from flowcore import Flow, Transform
from flowcore.flows.networks.conditioner import Conditioner
from flowcore.flows.testing import check, check_gradients, check_logdet, check_round_trip, check_untouched
from flowcore.flows.transforms import (
    ActNorm,
    BatchNorm,
    Coupling,
    InvertibleConv,
    LevelCondition,
    Logit,
    Permutation,
    SignedActNorm,
    Split,
    map_tensors,
    use_batch_moments,
)
from flowcore.flows.transforms.coupling import shift_scale, split_channels


def batch(channels=4):
    return torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bites(reason, transform, law=check, x=None, **options):
    with pytest.raises(AssertionError, match=reason):
        law(transform if law is check else transform.double(), batch() if x is None else x, **options)


def wrong(kind, **methods):
    """A subclass with other methods, given as functions of the transform and their usual arguments."""
    for name, method in methods.items():
        method.__name__ = name  # as reasons name it
    return type("Wrong", (kind,), methods)


def logdet(kind, mistake, *arguments):
    """A transform with a wrong logdet: ``mistake(transform, x, z, logdet)``."""

    def forward(t, x, cond=None):
        z, right = kind.forward(t, x, cond)
        return z, mistake(t, x, z, right)

    return wrong(kind, forward=forward)(*arguments)


def inverse(kind, mistake, *arguments):
    """A transform with a wrong inverse: ``mistake(transform, z, cond)``."""
    return wrong(kind, inverse=lambda t, z, cond=None: mistake(t, z, cond))(*arguments)


def network(inputs=2, outputs=4):
    return Conditioner(inputs, 6, outputs)


def per_channel(parameter):
    return parameter[:, None, None]


def mix(z, matrix):
    return torch.nn.functional.conv2d(z, matrix[:, :, None, None])


def with_density(t, x, z, right):
    return right - 0.5 * (z[1].square() + math.log(2 * math.pi)).flatten(1).sum(1)


def turned_over():
    """A signed actnorm with scales of both signs, whose logdet takes no absolute values."""
    transform = logdet(SignedActNorm, lambda t, x, z, right: right + t.scale.log().sum(), 4)
    transform.scale.data.copy_(torch.tensor([1.3, -0.7, 0.4, -2.1]))
    return transform


def subtract_before_dividing(t, z, cond):
    z1, z2 = split_channels(z)
    shift, scale, _ = shift_scale(t.conditioner(z1), t.eps, like=z)
    return torch.cat([z1, (z2 - shift) / scale], dim=1)


def caching_inverse(t, z, cond):
    if not hasattr(t, "cached"):
        t.cached = torch.linalg.inv(t.weight.detach())
    return mix(z, t.cached)


def counting():
    def forward(t, x, cond=None):
        t.calls += 1
        return ActNorm.forward(t, x)

    transform = wrong(ActNorm, forward=forward)(4)
    transform.calls = 0
    return transform


def drawing(direction, draw):
    def drawn(t, value, cond=None):
        draw()
        return getattr(ActNorm, direction)(t, value)

    return wrong(ActNorm, **{direction: drawn})(4)


CALLS = itertools.count()


def noisy_forward(t, x, cond=None):
    return ActNorm.forward(t, x + 1e-3 * next(CALLS))


def amounts(mistake):
    return wrong(
        Coupling, forward_with_logdet_map=lambda t, x, cond=None: mistake(*Coupling.forward_with_logdet_map(t, x, cond))
    )(network())


def flow_amounts(mistake):
    flow = build_tiny("glow", channels=1)
    flow.__class__ = wrong(
        Flow, forward_with_logdet_map=lambda t, x, cond=None: mistake(*Flow.forward_with_logdet_map(t, x, cond))
    )
    return flow, {"x": torch.rand(2, 1, 4, 8, generator=torch.Generator().manual_seed(1))}


def inverse_of_another_condition(t, z, cond):
    return Coupling.inverse(t, z, map_tensors(torch.zeros_like, cond))


def changing_its_condition(t, x, cond=None):
    cond.features.clamp_(min=0)
    return Coupling.forward(t, x, cond)


def centered_by_the_batch(t, x, cond=None):
    return x - x.mean((0, 2, 3), keepdim=True).detach(), x.new_zeros(len(x))


def forward_without_gradient_of_the_bias(t, x, cond=None):
    z = (x + per_channel(t.bias.detach())) * per_channel(t.log_scale.exp())
    return z, (x.shape[2] * x.shape[3] * t.log_scale.sum()).expand(len(x))


def coupling_with_exp_in_low_precision(t, x, cond=None):
    x1, x2 = split_channels(x)
    raw = t.conditioner(x1)
    shift, scale, log_scale = shift_scale(raw, t.eps, like=raw)
    return torch.cat([x1, (x2 + shift) * scale], dim=1), log_scale.flatten(1).sum(1)


# By reason: a maker of a transform, beside which may stand options of `bites`.
WRONG = {
    "logdet: differs": lambda: logdet(ActNorm, lambda t, x, z, right: t.log_scale.sum().expand(len(x)), 4),
    "logdet: differs.* by": lambda: logdet(Split, with_density, network()),  # it contains the prior
    "logdet: differs.* the expected value is not finite": lambda: wrong(
        Permutation, forward=lambda t, x, cond=None: (x[:, [0, 0, 1, 2]], x.new_zeros(len(x)))
    )(torch.arange(4)),
    "logdet: differs.* the actual value is not finite": lambda: (turned_over(), {"law": check_logdet}),
    "logdet: shape": lambda: logdet(ActNorm, lambda t, x, z, right: right[0], 4),
    "logdet: dtype": lambda: logdet(ActNorm, lambda t, x, z, right: right.float(), 4),
    "logdet: 96 dimensions became 72": lambda: wrong(
        Transform,
        forward=lambda t, x, cond=None: (x[:, 1:], x.new_zeros(len(x))),
        inverse=lambda t, z, cond=None: torch.cat([z[:, :1], z], dim=1),
    )(),
    "round trip: inverse": lambda: (
        inverse(Coupling, inverse_of_another_condition, network(2 + 4)),
        {"cond": LevelCondition(features=batch() + 1)},
    ),
    "round trip: inverse returns the data only": lambda: (
        inverse(ActNorm, lambda t, z, cond: (ActNorm.inverse(t, z), z.new_zeros(len(z))), 4),
        {"law": check_round_trip},
    ),
    # pixels come back as they were; latents beyond black and white do not
    r"round trip: forward\(inverse": lambda: (
        inverse(Logit, lambda t, z, cond: Logit.inverse(t, z).clamp(0, 1), 0.2),
        {"law": check_round_trip, "x": batch().sigmoid()},
    ),
    "untouched: forward changed its argument$": lambda: (
        wrong(Coupling, forward=changing_its_condition)(network(2 + 4)),
        {"cond": LevelCondition(features=batch())},
    ),
    "untouched: inverse keeps something in the module": lambda: inverse(InvertibleConv, caching_inverse, 4),
    "untouched: forward changed the module's attribute": counting,
    "untouched: forward drew from the global random generator of torch": lambda: drawing(
        "forward", lambda: torch.rand(1)
    ),
    "untouched: inverse drew from the global random generator of numpy": lambda: drawing("inverse", np.random.rand),
    "untouched: inverse drew from the global random generator of random": lambda: drawing("inverse", random.random),
    "untouched: forward of the same data gave two answers": lambda: wrong(ActNorm, forward=noisy_forward)(4),
    "untouched: forward differs between training and evaluation": lambda: wrong(
        ActNorm, forward=lambda t, x, cond=None: ActNorm.forward(t, x + 1 if t.training else x)
    )(4),
    "by position: .*the sum differs": lambda: amounts(
        lambda z, right: (z, right * right[0].numel())  # all of it, everywhere
    ),
    "by position: .*the sum differs.* by": lambda: flow_amounts(
        lambda latents, shares: (latents, [shares[0], 4 * shares[1]])
    ),
    "by position: not one grid per latent": lambda: flow_amounts(lambda latents, shares: (latents, shares[:1])),
    r"by position: .*shape \(2, 6, 4\)": lambda: amounts(lambda z, right: (z, right.transpose(1, 2))),
    "by position: .*dtype torch.float32": lambda: amounts(lambda z, right: (z, right.float())),
    "by position: .*the latent differs": lambda: amounts(lambda z, right: (z + 1e-6, right)),
    "locality: .*spreads evenly": lambda: amounts(
        lambda z, right: (z, right.mean((1, 2), keepdim=True).expand_as(right))
    ),
    "items: a latent depends on the rest of the batch": lambda: wrong(
        Transform, forward=centered_by_the_batch, inverse=lambda t, z, cond=None: z
    )(),
    "gradients: forward: bias is dead": lambda: wrong(ActNorm, forward=forward_without_gradient_of_the_bias)(4),
    "gradients: inverse passes none": lambda: inverse(
        ActNorm, torch.no_grad()(lambda t, z, cond: ActNorm.inverse(t, z)), 4
    ),
    "precision: autocast leaked, it changed a transform without networks": lambda: (
        wrong(
            InvertibleConv,
            forward=lambda t, x, cond=None: (mix(x, t.weight).to(x.dtype), InvertibleConv.forward(t, x)[1]),
        )(4),
        {"networks": False},
    ),
    "precision: autocast leaked, a result": lambda: wrong(Coupling, forward=coupling_with_exp_in_low_precision)(
        network()
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_wrong_transforms_are_refused_for_the_right_reason(reason):
    case = WRONG[reason]()
    transform, options = case if isinstance(case, tuple) else (case, {})
    bites(reason, transform, **options)


def test_only_perturbed_parameters_show_a_wrong_inverse():
    """At its start a coupling shifts by zero, so that the order of subtraction and division makes no difference."""
    transform = inverse(Coupling, subtract_before_dividing, network()).double()
    for law in (check_untouched, check_logdet, check_round_trip):
        law(transform, batch())  # no complaint: this is what perturbing is for
    bites("round trip: inverse", transform)


def test_batch_norm_that_is_left_in_batch_moments():
    with use_batch_moments(norm := move_buffers(BatchNorm(4))):
        bites("untouched: forward changed the module's state, mean", norm)


def test_what_the_checks_ask_of_their_arguments():
    bites("gradients: forward: bias is alive", ActNorm(4), check_gradients, dead=["bias"])
    bites("called dead but do not exist", ActNorm(4), check_gradients, dead=["offset"])
    for weak in (torch.zeros(1, 4, 4, 6), torch.zeros(2, 4, 4, 4)):  # they would hide a mix-up of axes
        bites(r"B > 1 and H != W.*got \(., 4, 4, .\)", ActNorm(4), x=weak)
