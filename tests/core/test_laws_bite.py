"""Deliberately wrong transforms: the law's checks must refuse every one, and for the right reason."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import build_tiny, move_buffers

from flowcore.flow import Flow
from flowcore.networks import Conditioner, TopPrior
from flowcore.testing import check, check_gradients, check_logdet, check_round_trip, check_untouched
from flowcore.transforms import (
    ActNorm,
    BatchNorm,
    Chain,
    CheckerboardCoupling,
    Coupling,
    InvertibleConv,
    Logit,
    Permutation,
    SignedActNorm,
    Split,
    Squeeze,
    Transform,
    Whiten,
    batch_moments,
)
from flowcore.transforms.coupling import affine, halves


def batch(channels=4):
    return torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bites(transform, reason, x=None, law=check, **options):
    transform = transform if law is check else transform.double()
    with pytest.raises(AssertionError, match=reason):
        law(transform, batch() if x is None else x, **options)


def wrong(kind, **methods):
    """A subclass with other methods, given as functions of the transform and their usual arguments."""
    for name, method in methods.items():
        method.__name__ = name  # as reasons name it
    return type("Wrong", (kind,), methods)


def logdet(kind, mistake, *arguments, **options):
    """A transform with a wrong logdet: ``mistake(transform, x, z, logdet)``."""

    def forward(t, x, cond=None):
        z, right = kind.forward(t, x, cond)
        return z, mistake(t, x, z, right)

    return wrong(kind, forward=forward)(*arguments, **options)


def inverse(kind, mistake, *arguments, **options):
    """A transform with a wrong inverse: ``mistake(transform, z, cond)``."""
    return wrong(kind, inverse=lambda t, z, cond=None: mistake(t, z, cond))(*arguments, **options)


def network(inputs=2, outputs=4):
    return Conditioner(inputs, 6, outputs)


def with_attribute(transform, **attributes):
    for name, value in attributes.items():
        setattr(transform, name, value)
    return transform


def with_buffer(transform, name, value):
    transform.register_buffer(name, value)
    return transform


def turned_over(transform):
    """Give a signed actnorm scales of both signs."""
    with torch.no_grad():
        transform.scale.copy_(torch.tensor([1.3, -0.7, 0.4, -2.1]))
    return transform


def per_channel(parameter):
    return parameter[:, None, None]


def refused(reasons):
    """Parametrize a test from ``{reason: transform}`` or ``{reason: {name: transform}}``.

    Beside a transform may stand options of ``bites``.
    """
    cases = [
        pytest.param(*(value if isinstance(value, tuple) else (value, {})), reason, id=name)
        for reason, values in reasons.items()
        for name, value in (values if isinstance(values, dict) else {reason: values}).items()
    ]
    return pytest.mark.parametrize(("transform", "options", "reason"), cases)


# --- a wrong log-determinant ------------------------------------------------------------------------------------------


def prior_that_reads_values(t, like, labels=None):
    return TopPrior.forward(t, like) + 0.1 * like.repeat_interleave(2, dim=1)


def with_density(t, x, z, right):
    return right - 0.5 * (z[1].square() + math.log(2 * math.pi)).flatten(1).sum(1)


@refused(
    {
        "logdet: differs": {
            "no number of pixels": logdet(ActNorm, lambda t, x, z, right: t.log_scale.sum().expand(len(x)), 4),
            "sign": logdet(ActNorm, lambda t, x, z, right: -right, 4),
            "contains the prior": logdet(Split, with_density, network()),
            "mean over the batch": logdet(Coupling, lambda t, x, z, right: right.mean().expand(len(x)), network()),
            "mean over dimensions": logdet(Coupling, lambda t, x, z, right: right / x[0].numel(), network()),
            "bits": logdet(ActNorm, lambda t, x, z, right: right / math.log(2), 4),
            "conditions on what it changes": wrong(CheckerboardCoupling, _input=lambda t, x, mask: x)(
                network(4, 8), parity=0
            ),
            "whiten by a prior that reads values": Whiten(wrong(TopPrior, forward=prior_that_reads_values)(4)),
        },
        "logdet: differs.* the expected value is not finite": wrong(
            Permutation, forward=lambda t, x, cond=None: (x[:, [0, 0, 1, 2]], x.new_zeros(len(x)))
        )(torch.arange(4)),
        "logdet: differs.* the actual value is not finite": (
            turned_over(logdet(SignedActNorm, lambda t, x, z, right: right + t.scale.log().sum(), 4)),
            {"law": check_logdet},
        ),
        "logdet: shape": logdet(ActNorm, lambda t, x, z, right: right[0], 4),
        "logdet: dtype": logdet(ActNorm, lambda t, x, z, right: right.float(), 4),
        "logdet: 96 dimensions became 72": wrong(
            Transform,
            forward=lambda t, x, cond=None: (x[:, 1:], x.new_zeros(len(x))),
            inverse=lambda t, z, cond=None: torch.cat([z[:, :1], z], dim=1),
        )(),
    }
)
def test_wrong_logdet(transform, reason, options):
    bites(transform, reason, **options)


# --- a wrong inverse --------------------------------------------------------------------------------------------------


def subtract_before_dividing(t, z, cond):
    z1, z2 = halves(z)
    shift, scale, _ = affine(t.conditioner(z1), t.eps, like=z)
    return torch.cat([z1, (z2 - shift) / scale], dim=1)


def inverted_weight(t):
    return torch.linalg.inv(t.weight.detach())


def mix(z, matrix):
    return F.conv2d(z, matrix[:, :, None, None])


def mean_from_a_neighboring_channel(t, like, labels=None):
    raw = TopPrior.forward(t, like).clone()
    raw[:, 0:2:2] += like[:, 1:2]
    return raw


@refused(
    {
        "round trip: inverse": {
            "subtracts before it divides": inverse(Coupling, subtract_before_dividing, network()),
            "of old parameters": with_buffer(
                mixing := inverse(InvertibleConv, lambda t, z, cond: mix(z, t.inverted), 4),
                "inverted",
                inverted_weight(mixing),
            ),
            "float32": inverse(InvertibleConv, lambda t, z, cond: mix(z, torch.linalg.inv(t.weight.float()).to(z)), 4),
            "swaps only forward": inverse(
                Coupling, lambda t, z, cond: Coupling(t.conditioner).inverse(z), network(), swap=True
            ),
            # which leaves the logdet of a triangular map right
            "whiten by a mean that reads values": Whiten(wrong(TopPrior, forward=mean_from_a_neighboring_channel)(4)),
            "without the condition": (
                inverse(Coupling, lambda t, z, cond: Coupling.inverse(t, z, torch.zeros_like(cond)), network(2 + 4)),
                {"cond": batch() + 1},
            ),
        },
        "round trip: inverse returns the data only": (
            inverse(ActNorm, lambda t, z, cond: (ActNorm.inverse(t, z), z.new_zeros(len(z))), 4),
            {"law": check_round_trip},
        ),
        # pixels come back as they were; latents beyond black and white do not
        r"round trip: forward\(inverse": (
            inverse(Logit, lambda t, z, cond: Logit.inverse(t, z).clamp(0, 1), 0.2),
            {"law": check_round_trip, "x": batch().sigmoid()},
        ),
    }
)
def test_wrong_inverse(transform, reason, options):
    bites(transform, reason, **options)


def test_only_perturbed_parameters_show_a_wrong_inverse():
    """At its start a coupling shifts by zero, so that the order of subtraction and division makes no difference."""
    transform = inverse(Coupling, subtract_before_dividing, network()).double()
    check_untouched(transform, batch())
    check_logdet(transform, batch())
    check_round_trip(transform, batch())  # no complaint: this is what perturbing is for
    bites(transform, "round trip: inverse")


# --- something is touched ---------------------------------------------------------------------------------------------


def caching_inverse(t, z, cond):
    if not hasattr(t, "cached"):
        t.cached = inverted_weight(t)
    return mix(z, t.cached)


def inverse_in_place(t, z, cond):
    z *= per_channel(torch.exp(-t.log_scale))
    return z - per_channel(t.bias)


def initializing_forward(t, x, cond=None):
    """By a flag, in training only, as many libraries do."""
    if t.training and not t.done:
        t.done = True
        t.initialize(x)
    return ActNorm.forward(t, x)


def initializing_inverse(t, z, cond):
    if not t.bias.any():
        t.initialize(z)
    return ActNorm.inverse(t, z)


def drawing(direction, draw):
    def drawn(t, value, cond=None):
        draw()
        return getattr(ActNorm, direction)(t, value)

    return wrong(ActNorm, **{direction: drawn})(4)


NOISE = torch.Generator().manual_seed(0)


def noisy_forward(t, x, cond=None):
    return ActNorm.forward(t, x + 1e-3 * torch.randn(x.shape, generator=NOISE, dtype=x.dtype))


def forward_by_training_mode(t, x, cond=None):
    return ActNorm.forward(t, x + 1 if t.training else x)


def batch_norm_of_the_batch(t, x, cond=None):
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    logs = -0.5 * torch.log(var + t.eps)
    return (x - per_channel(mean)) * per_channel(logs.exp()), (24 * logs.sum()).expand(len(x))


@refused(
    {
        "untouched: inverse keeps something in the module": inverse(InvertibleConv, caching_inverse, 4),
        "untouched: forward changed its argument$": (
            wrong(Coupling, forward=lambda t, x, cond=None: Coupling.forward(t, x, cond.clamp_(min=0)))(network(2 + 4)),
            {"cond": batch()},
        ),
        # perturbed parameters would not show this one, so the check is asked without
        "untouched: inverse changed the module's state": (
            inverse(ActNorm, initializing_inverse, 4),
            {"law": check_untouched},
        ),
        "untouched: forward drew from the global random generator of torch": drawing("forward", lambda: torch.rand(1)),
        "untouched: inverse drew from the global random generator of numpy": drawing("inverse", np.random.rand),
        "untouched: inverse drew from the global random generator of random": drawing("inverse", random.random),
        "untouched: inverse changed its argument": inverse(ActNorm, inverse_in_place, 4),
        "untouched: forward changed the module's state": with_attribute(
            wrong(ActNorm, forward=initializing_forward)(4), done=False
        ),
        "untouched: forward of the same data gave two answers": wrong(ActNorm, forward=noisy_forward)(4),
        r"untouched: forward depends on train\(\)": wrong(ActNorm, forward=forward_by_training_mode)(4),
        "logdet: differs|items:": move_buffers(wrong(BatchNorm, forward=batch_norm_of_the_batch)(4)),
    }
)
def test_changed_state(transform, reason, options):
    bites(transform, reason, **options)


def test_batch_norm_that_is_left_in_batch_moments():
    with batch_moments(norm := move_buffers(BatchNorm(4))):
        bites(norm, "untouched: forward changed the module's state, mean")


# --- by position ------------------------------------------------------------------------------------------------------


def amounts(mistake):
    return wrong(Coupling, by_position=lambda t, x, cond=None: mistake(*Coupling.by_position(t, x, cond)))(network())


def chain_that_repeats_instead_of_dividing(t, x, cond=None):
    z, amounts = t.parts()[1].by_position(t.parts()[0](x)[0])
    return z, amounts.repeat_interleave(2, -2).repeat_interleave(2, -1)


@refused(
    {
        "by position: .*the sum differs": {
            "not divided": amounts(lambda z, right: (z, right * right[0].numel())),  # all of it at every position
            "items mixed up": amounts(lambda z, right: (z, right.flip(0))),
            "chain repeats": wrong(Chain, by_position=chain_that_repeats_instead_of_dividing)(Squeeze(), ActNorm(16)),
        },
        r"by position: .*shape \(2, 6, 4\)": amounts(lambda z, right: (z, right.transpose(1, 2))),
        "by position: .*dtype torch.float32": amounts(lambda z, right: (z, right.float())),
        "locality: .*spreads evenly": amounts(lambda z, right: (z, right.mean((1, 2), keepdim=True).expand_as(right))),
        "by position: .*the latent differs": amounts(lambda z, right: (z + 1e-6, right)),
    }
)
def test_wrong_amounts(transform, reason, options):
    bites(transform, reason, **options)


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda latents, shares: (latents, shares[:1]), "not one grid per latent"),
        (lambda latents, shares: (latents, [shares[0], 4 * shares[1]]), "the sum differs"),
        (lambda latents, shares: (latents[::-1], shares), "the latent differs"),
    ],
)
def test_a_flow_with_wrong_amounts(mistake, reason):
    flow = build_tiny("glow", channels=1)
    flow.__class__ = wrong(Flow, by_position=lambda t, x, cond=None: mistake(*Flow.by_position(t, x, cond)))
    x = torch.rand(2, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    bites(flow, f"by position: .*{reason}", x=x)


# --- items, gradients, precision --------------------------------------------------------------------------------------


def forward_without_gradient_of_the_bias(t, x, cond=None):
    z = (x + per_channel(t.bias.detach())) * per_channel(t.log_scale.exp())
    return z, (x.shape[2] * x.shape[3] * t.log_scale.sum()).expand(len(x))


def coupling_with_exp_in_low_precision(t, x, cond=None):
    x1, x2 = halves(x)
    raw = t.conditioner(x1)
    shift, scale, log_scale = affine(raw, t.eps, like=raw)
    return torch.cat([x1, (x2 + shift) * scale], dim=1), log_scale.flatten(1).sum(1)


def centered_by_the_batch(t, x, cond=None):
    return x - x.mean((0, 2, 3), keepdim=True).detach(), x.new_zeros(len(x))


def mixing_widened_too_late(t, x, cond=None):
    return mix(x, t.weight).to(x.dtype), InvertibleConv.forward(t, x)[1]


@refused(
    {
        "items: a latent depends on the rest of the batch": wrong(
            Transform, forward=centered_by_the_batch, inverse=lambda t, z, cond=None: z
        )(),
        "gradients: forward: bias is dead": wrong(ActNorm, forward=forward_without_gradient_of_the_bias)(4),
        "gradients: inverse passes none": inverse(
            ActNorm, torch.no_grad()(lambda t, z, cond: ActNorm.inverse(t, z)), 4
        ),
        "precision: autocast leaked, it changed a transform without networks": (
            wrong(InvertibleConv, forward=mixing_widened_too_late)(4),
            {"networks": False},
        ),
        "precision: autocast leaked": wrong(Coupling, forward=coupling_with_exp_in_low_precision)(network()),
    }
)
def test_items_gradients_and_precision(transform, reason, options):
    bites(transform, reason, **options)


def test_what_the_checks_ask_of_their_arguments():
    with pytest.raises(AssertionError, match="gradients: forward: bias is alive"):
        check_gradients(ActNorm(4).double(), batch(), dead=["bias"])
    with pytest.raises(AssertionError, match="called dead but do not exist"):
        check_gradients(ActNorm(4).double(), batch(), dead=["offset"])
    for weak in (torch.zeros(1, 4, 4, 6), torch.zeros(2, 4, 4, 4)):  # a batch of one, and a square
        with pytest.raises(AssertionError):
            check(ActNorm(4), weak, networks=False)
