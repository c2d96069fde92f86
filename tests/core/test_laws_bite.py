"""Deliberately wrong transforms: the law's checks must refuse every one, and for the right reason."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import build_tiny

from flowcore.flow import Flow
from flowcore.networks import Conditioner, TablePrior, TopPrior
from flowcore.transforms import (
    ActNorm,
    BatchNorm,
    Chain,
    CheckerboardCoupling,
    Coupling,
    Flatten,
    InvertibleConv,
    Logit,
    OrderedSqueeze,
    Permutation,
    PixelMap,
    SignedActNorm,
    Split,
    Squeeze,
    Transform,
    Unsqueeze,
    Whiten,
    batch_moments,
)
from flowcore.transforms.coupling import affine, halves

from .laws import check, check_by_position, check_gradients, check_logdet, check_round_trip, check_untouched


def batch(channels=4):
    return torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bites(transform, reason, x=None, **options):
    with pytest.raises(AssertionError, match=reason):
        check(transform, batch() if x is None else x, **options)


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


def measured(norm):
    """Give a batch norm the moments of some training."""
    norm.mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    norm.var.copy_(torch.tensor([0.5, 2.0, 0.1, 3.0]))
    return norm


def per_channel(parameter):
    return parameter[:, None, None]


def refused(reasons):
    """Parametrize a test by reason and transform, from ``{reason: {name: transform}}``."""
    cases = [
        pytest.param(transform, reason, id=name)
        for reason, transforms in reasons.items()
        for name, transform in transforms.items()
    ]
    return pytest.mark.parametrize(("transform", "reason"), cases)


# --- a wrong log-determinant ------------------------------------------------------------------------------------------

DIFFERS = "logdet: differs"


def pixel_map(mistake):
    return logdet(PixelMap, lambda t, x, z, right: x.new_full((2,), mistake(t.shift, t.width)), 0.3, 0.7)


def checkerboard_that_counts_all_squares(t, x, cond=None):
    return CheckerboardCoupling.by_position(t, x)[0], t._affine(x, t._mask(x))[1].sum(1)


def prior_that_reads_values(t, like, labels=None):
    return TopPrior.forward(t, like) + 0.1 * like.repeat_interleave(2, dim=1)


def with_density(t, x, z, right):
    return right - 0.5 * (z[1].square() + math.log(2 * math.pi)).flatten(1).sum(1)


def without_eps(t, x, z, right):
    return affine(t.conditioner(halves(x)[0]), 0.0, like=x)[2].flatten(1).sum(1)


def of_an_affine_coupling(t, x, z, right):
    return t.conditioner(halves(x)[0]).flatten(1).sum(1)


@refused(
    {
        DIFFERS: {
            "no number of pixels": logdet(ActNorm, lambda t, x, z, right: t.log_scale.sum().expand(len(x)), 4),
            "squared rows": logdet(ActNorm, lambda t, x, z, right: (16 * t.log_scale.sum()).expand(len(x)), 4),
            "sign": logdet(ActNorm, lambda t, x, z, right: -right, 4),
            "sign of a determinant": logdet(InvertibleConv, lambda t, x, z, right: -right, 4),
            "contains the prior": logdet(Split, with_density, network()),
            "mean over the batch": logdet(Coupling, lambda t, x, z, right: right.mean().expand(len(x)), network()),
            "mean over dimensions": logdet(Coupling, lambda t, x, z, right: right / x[0].numel(), network()),
            "bits": logdet(ActNorm, lambda t, x, z, right: right / math.log(2), 4),
            "no eps": logdet(Coupling, without_eps, network(), eps=1e-4),
            "actnorm without its factor": logdet(ActNorm, lambda t, x, z, right: right / 3, 4, log_factor=3.0),
            "batch norm by the log of its variance": measured(logdet(BatchNorm, lambda t, x, z, right: 2 * right, 4)),
            "checkerboard counts all squares": wrong(
                CheckerboardCoupling, by_position=checkerboard_that_counts_all_squares
            )(network(4, 8), parity=0),
            "checkerboard conditions on what it changes": wrong(CheckerboardCoupling, _input=lambda t, x, mask: x)(
                network(4, 8), parity=0
            ),
            "additive coupling": logdet(Coupling, of_an_affine_coupling, network(2, 2), scaling="none"),
            "unsqueeze": logdet(Unsqueeze, lambda t, x, z, right: x.new_full((len(x),), math.log(4))),
            "whiten with the wrong sign": logdet(Whiten, lambda t, x, z, right: -right, TopPrior(4)),
            "whiten by a prior that reads values": Whiten(wrong(TopPrior, forward=prior_that_reads_values)(4)),
            "pixel map with the wrong sign": pixel_map(lambda shift, width: 72 * math.log(width)),
            "pixel map of one pixel": pixel_map(lambda shift, width: -4 * math.log(width)),
            "pixel map with its shift": pixel_map(lambda shift, width: -96 * math.log(width) - 96 * shift),
            "pixel map without the log": pixel_map(lambda shift, width: -96 * width),
        },
        "logdet: differs.* the expected value is not finite": {
            "permutation takes a channel twice": wrong(
                Permutation, forward=lambda t, x, cond=None: (x[:, [0, 0, 1, 2]], x.new_zeros(len(x)))
            )(torch.arange(4)),
        },
        "logdet: shape": {
            "without the batch": logdet(ActNorm, lambda t, x, z, right: right[0], 4),
            "one logdet for the batch": logdet(Split, lambda t, x, z, right: right[:1], TablePrior(2, 4, 6)),
        },
        "logdet: dtype": {"float32": logdet(ActNorm, lambda t, x, z, right: right.float(), 4)},
        "logdet: 96 dimensions became 72": {
            "fewer dimensions": wrong(
                Transform,
                forward=lambda t, x, cond=None: (x[:, 1:], x.new_zeros(len(x))),
                inverse=lambda t, z, cond=None: torch.cat([z[:, :1], z], dim=1),
            )(),
        },
    }
)
def test_wrong_logdet(transform, reason):
    bites(transform, reason)


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda scale: scale.log().sum(), "logdet: differs.* the actual value is not finite"),  # NaN below zero
        (lambda scale: scale.clamp(min=1e-6).log().sum(), "logdet: differs.* by"),
        (lambda scale: scale.abs().log().sum() / 24, "logdet: differs.* by"),  # without H * W
        (lambda scale: scale.sum(), "logdet: differs.* by"),  # as if it were the log
    ],
    ids=["log of the scale", "clamped", "one pixel", "no log"],
)
def test_wrong_logdet_of_a_signed_actnorm(mistake, reason):
    wrong_actnorm = logdet(SignedActNorm, lambda t, x, z, right: (24 * mistake(t.scale)).expand(len(x)), 4)
    with pytest.raises(AssertionError, match=reason):
        check_logdet(turned_over(wrong_actnorm).double(), batch())


@pytest.mark.parametrize(
    "mistake",
    [
        lambda log_p, log_q, inside: -log_p - log_q,  # as if x were p
        lambda log_p, log_q, inside: inside + log_p + log_q,
        lambda log_p, log_q, inside: inside - log_p,
        lambda log_p, log_q, inside: -inside - log_p - log_q,
    ],
    ids=["without the ends", "sign", "half of it", "sign of the ends"],
)
def test_wrong_logdet_of_a_logit(mistake):
    def by_position(t, x, cond=None):
        p = t.alpha + (1 - 2 * t.alpha) * x
        amounts = mistake(p.log(), torch.log1p(-p), math.log(1 - 2 * t.alpha))
        return Logit.by_position(t, x)[0], amounts.sum(1)

    bites(wrong(Logit, by_position=by_position)(0.05), DIFFERS, x=batch().sigmoid())


# --- a wrong inverse --------------------------------------------------------------------------------------------------


def subtract_before_dividing(t, z, cond):
    z1, z2 = halves(z)
    shift, scale, _ = affine(t.conditioner(z1), t.eps, like=z)
    return torch.cat([z1, (z2 - shift) / scale], dim=1)


def checkerboard_shift_before_dividing(t, z, cond):
    mask = t._mask(z)
    shift, log_scale = t._affine(z, mask)
    return torch.where(mask, z, (z - shift) * torch.exp(-log_scale))


def squeeze_with_axes_mixed_up(t, z, cond):
    b, c, h, w = z.shape
    return z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 3, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


def ordered_squeeze_with_groups_mixed_up(t, z, cond):
    first, diagonal, right, below = z.chunk(4, dim=1)
    return OrderedSqueeze.inverse(t, torch.cat([first, diagonal, below, right], dim=1))


def flatten_with_axes_mixed_up(t, z, cond):
    channels, height, width = t.shape
    return z.reshape(len(z), channels, width, height).transpose(2, 3)


def inverted_weight(t):
    return torch.linalg.inv(t.weight.detach())


def mix(z, matrix):
    return F.conv2d(z, matrix[:, :, None, None])


def without_the_sign(t, z, cond):
    return z / per_channel(t.scale.abs()) - per_channel(t.bias)


def without_the_factor(t, z, cond):
    return z * per_channel(torch.exp(-t.log_scale)) - per_channel(t.bias)


def of_the_other_color(t, z, cond):
    return CheckerboardCoupling(t.conditioner, parity=1 - t.parity).inverse(z)


def mean_from_a_neighboring_channel(t, like, labels=None):
    raw = TopPrior.forward(t, like).clone()
    raw[:, 0:2:2] += like[:, 1:2]
    return raw


INVERSES = {
    "subtracts before it divides": inverse(Coupling, subtract_before_dividing, network()),
    "of old parameters": with_buffer(
        mixing := inverse(InvertibleConv, lambda t, z, cond: mix(z, t.inverted), 4), "inverted", inverted_weight(mixing)
    ),
    "float32": inverse(InvertibleConv, lambda t, z, cond: mix(z, torch.linalg.inv(t.weight.float()).to(z)), 4),
    "rows and columns mixed up": inverse(Squeeze, squeeze_with_axes_mixed_up),
    "magnitude of a signed scale": turned_over(inverse(SignedActNorm, without_the_sign, 4)),
    "actnorm without its factor": inverse(ActNorm, without_the_factor, 4, log_factor=3.0),
    "batch norm without eps": measured(
        inverse(BatchNorm, lambda t, z, cond: z * per_channel(t.var.sqrt()) + per_channel(t.mean), 4)
    ),
    "checkerboard of the other color": inverse(CheckerboardCoupling, of_the_other_color, network(4, 8), parity=0),
    "checkerboard shifts before it divides": inverse(
        CheckerboardCoupling, checkerboard_shift_before_dividing, network(4, 8), parity=0
    ),
    "swaps only forward": inverse(
        Coupling, lambda t, z, cond: Coupling(t.conditioner).inverse(z), network(), swap=True
    ),
    "swapped coupling joins in the wrong order": wrong(Coupling, _join=lambda t, x1, x2: torch.cat([x1, x2], dim=1))(
        network(), swap=True
    ),
    "additive coupling adds both ways": inverse(
        Coupling, lambda t, z, cond: t.forward(z)[0], network(2, 2), scaling="none"
    ),
    "permutation applied twice": inverse(Permutation, lambda t, z, cond: z[:, t.order], torch.tensor([1, 2, 3, 0])),
    "usual order of squeeze": inverse(OrderedSqueeze, lambda t, z, cond: F.pixel_shuffle(z, 2)),
    "two groups mixed up": inverse(OrderedSqueeze, ordered_squeeze_with_groups_mixed_up),
    "flatten with axes mixed up": inverse(Flatten, flatten_with_axes_mixed_up, 4, 4, 6),
    # which leaves the logdet of a triangular map right
    "whiten by a mean that reads values": Whiten(wrong(TopPrior, forward=mean_from_a_neighboring_channel)(4)),
    "split sends out the first half": inverse(Split, lambda t, z, cond: Split.inverse(t, z).roll(2, dims=1), None),
}


@pytest.mark.parametrize("transform", INVERSES.values(), ids=INVERSES)
def test_wrong_inverse(transform):
    bites(transform, "round trip: inverse")


def test_wrong_inverse_that_needs_other_data():
    in_another_order = inverse(Unsqueeze, lambda t, z, cond: OrderedSqueeze()(z)[0])
    bites(in_another_order, "round trip: inverse", x=batch(8))  # of one channel only the order of the groups differs
    not_stretched = inverse(Logit, lambda t, z, cond: torch.sigmoid(z), 0.05)
    bites(not_stretched, "round trip: inverse", x=batch().sigmoid())
    without_condition = inverse(
        Coupling, lambda t, z, cond: Coupling.inverse(t, z, torch.zeros_like(cond)), network(2 + 4)
    )
    bites(without_condition, "round trip: inverse", cond=batch() + 1)
    without_label = inverse(
        Whiten, lambda t, z, cond: Whiten.inverse(t, z, torch.ones_like(cond) / 3), TablePrior(4, 4, 6, classes=3)
    )
    bites(without_label, "round trip: inverse", cond=torch.eye(3)[:2], networks=False)


def test_only_perturbed_parameters_show_a_wrong_inverse():
    """At its start a coupling shifts by zero, so that the order of subtraction and division makes no difference."""
    transform = inverse(Coupling, subtract_before_dividing, network()).double()
    check_untouched(transform, batch())
    check_logdet(transform, batch())
    check_round_trip(transform, batch())  # no complaint: this is what perturbing is for
    bites(transform, "round trip: inverse")


def test_an_inverse_that_returns_a_pair():
    transform = inverse(ActNorm, lambda t, z, cond: (ActNorm.inverse(t, z), z.new_zeros(len(z))), 4)
    with pytest.raises(AssertionError, match="round trip: inverse returns the data only"):
        check_round_trip(transform.double(), batch())


def test_a_map_onto_a_part_of_the_latents():
    transform = wrong(
        Transform,
        forward=lambda t, x, cond=None: (x.exp(), x.flatten(1).sum(1)),
        inverse=lambda t, z, cond=None: z.abs().log(),
    )
    bites(transform(), r"round trip: forward\(inverse")


def test_a_logit_that_clamps_what_it_returns():
    """Pixels come back as they were; latents beyond black and white do not."""
    transform = inverse(Logit, lambda t, z, cond: Logit.inverse(t, z).clamp(0, 1), 0.2)
    x = batch().sigmoid()
    x[0, 0, 0, 0] = 0.5
    with pytest.raises(AssertionError, match=r"round trip: forward\(inverse"):
        check_round_trip(transform, x)


# --- something is touched ---------------------------------------------------------------------------------------------


def caching_inverse(t, z, cond):
    if not hasattr(t, "cached"):
        t.cached = inverted_weight(t)
    return mix(z, t.cached)


def caching_forward(t, x, cond=None):
    t.cache[len(x)] = inverted_weight(t)
    return InvertibleConv.forward(t, x)


def inverse_in_place(t, z, cond):
    z *= per_channel(torch.exp(-t.log_scale))
    return z - per_channel(t.bias)


def initializing_forward(t, x, cond=None):
    """By a flag, in training only, as many libraries do."""
    if t.training and not t.done:
        t.done = True
        t.initialize(x)
    return ActNorm.forward(t, x)


def flag_setting_forward(t, x, cond=None):
    t.done = True
    return ActNorm.forward(t, x)


def counting_forward(t, x, cond=None):
    t.calls += 1
    return ActNorm.forward(t, x)


NOISE = torch.Generator().manual_seed(0)


def noisy_forward(t, x, cond=None):
    return ActNorm.forward(t, x + 1e-3 * torch.randn(x.shape, generator=NOISE, dtype=x.dtype))


def forward_by_training_mode(t, x, cond=None):
    return ActNorm.forward(t, x + 1 if t.training else x)


def batch_norm_by_training_mode(t, x, cond=None):
    """What torch's own batch norm does."""
    t.uses_batch = t.training
    try:
        return BatchNorm.forward(t, x)
    finally:
        t.uses_batch = False


def batch_norm_of_the_batch(t, x, cond=None):
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    logs = -0.5 * torch.log(var + t.eps)
    return (x - per_channel(mean)) * per_channel(logs.exp()), (24 * logs.sum()).expand(len(x))


def forward_in_place(t, x, cond=None):
    return ActNorm.forward(t, x.add_(1))


@refused(
    {
        "untouched: inverse keeps something in the module": {
            "inverse cached in the module": inverse(InvertibleConv, caching_inverse, 4)
        },
        "untouched: forward changed the module's attribute .cache": {
            "inverse cached in a dictionary": with_attribute(
                wrong(InvertibleConv, forward=caching_forward)(4), cache={}
            ),
        },
        "untouched: forward changed its argument": {
            "forward in place": wrong(
                ActNorm, forward=forward_in_place, inverse=lambda t, z, cond=None: ActNorm.inverse(t, z) - 1
            )(4),
        },
        "untouched: inverse changed its argument": {"inverse in place": inverse(ActNorm, inverse_in_place, 4)},
        "untouched: forward changed the module's state": {
            "forward initializes": with_attribute(wrong(ActNorm, forward=initializing_forward)(4), done=False)
        },
        "untouched: forward keeps something in the module, .done": {
            "forward sets a flag": wrong(ActNorm, forward=flag_setting_forward)(4)
        },
        "untouched: forward changed the module's state, calls": {
            "forward counts in a buffer": with_buffer(
                wrong(ActNorm, forward=counting_forward)(4), "calls", torch.zeros(())
            )
        },
        "untouched: forward of the same data gave two answers": {
            "noisy forward": wrong(ActNorm, forward=noisy_forward)(4)
        },
        r"untouched: forward depends on train\(\)": {
            "forward by training mode": wrong(ActNorm, forward=forward_by_training_mode)(4)
        },
        "untouched: forward changed the module's state, mean": {
            "batch norm by training mode": measured(wrong(BatchNorm, forward=batch_norm_by_training_mode)(4))
        },
        "logdet: differs|items:": {
            "batch norm of the batch": measured(wrong(BatchNorm, forward=batch_norm_of_the_batch)(4))
        },
    }
)
def test_changed_state(transform, reason):
    bites(transform, reason)


def test_a_forward_that_writes_into_the_condition():
    transform = wrong(Coupling, forward=lambda t, x, cond=None: Coupling.forward(t, x, cond.clamp_(min=0)))
    bites(transform(network(2 + 4)), "untouched: forward changed its argument", cond=batch())


def test_an_inverse_that_initializes_where_the_bias_is_zero():
    """Perturbed parameters alone would not show this one, so the check is asked without."""

    def initializing_inverse(t, z, cond):
        if not t.bias.any():
            t.initialize(z)
        return ActNorm.inverse(t, z)

    with pytest.raises(AssertionError, match="untouched: inverse changed the module's state"):
        check_untouched(inverse(ActNorm, initializing_inverse, 4).double(), batch())


@pytest.mark.parametrize(
    ("draw", "name"),
    [(lambda: torch.rand(1), "torch"), (lambda: np.random.rand(1), "numpy"), (random.random, "random")],  # noqa: NPY002
    ids=["torch", "numpy", "random"],
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_direction_that_draws_from_a_global_generator(direction, draw, name):
    def drawing(t, value, cond=None):
        draw()
        return getattr(ActNorm, direction)(t, value)

    transform = wrong(ActNorm, **{direction: drawing})(4)
    bites(transform, f"untouched: {direction} drew from the global random generator of {name}")


def test_batch_norm_that_is_left_in_batch_moments():
    with batch_moments(norm := measured(BatchNorm(4))):
        bites(norm, "untouched: forward changed the module's state, mean")


# --- by position ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda z, right: (z, right * right[0].numel()), "sum differs"),  # the entire logdet at every position
        (lambda z, right: (z, -right), "sum differs"),
        (lambda z, right: (z, right.mean(0, keepdim=True).expand(2, -1, -1)), "sum differs"),
        (lambda z, right: (z, right.flip(0)), "sum differs"),
        (lambda z, right: (z, right.sum((1, 2))), r"shape \(2,\) instead of \(2, 4, 6\)"),
        (lambda z, right: (z, right.transpose(1, 2)), r"shape \(2, 6, 4\)"),
        (lambda z, right: (z, right.float()), "dtype torch.float32"),
        (lambda z, right: (z + 1e-6, right), "the latent differs"),
    ],
    ids=["not divided", "sign", "averaged over items", "items mixed up", "one number", "axes", "float32", "latent"],
)
def test_a_coupling_with_wrong_amounts(mistake, reason):
    transform = wrong(Coupling, by_position=lambda t, x, cond=None: mistake(*Coupling.by_position(t, x, cond)))
    bites(transform(network()), f"by position: .*{reason}")


def chain_that_forgets_to_spread(t, x, cond=None):
    total = 0
    for part in t.parts():
        x, amounts = part.by_position(x)
        total = total + amounts.sum((1, 2), keepdim=True)
    return x, total


def chain_that_repeats_instead_of_dividing(t, x, cond=None):
    z, amounts = t.parts()[1].by_position(t.parts()[0](x)[0])
    return z, amounts.repeat_interleave(2, -2).repeat_interleave(2, -1)


@pytest.mark.parametrize(
    ("by_position", "reason"),
    [(chain_that_forgets_to_spread, r"shape \(2, 1, 1\)"), (chain_that_repeats_instead_of_dividing, "the sum differs")],
)
def test_a_chain_with_wrong_amounts(by_position, reason):
    bites(wrong(Chain, by_position=by_position)(Squeeze(), ActNorm(16)), f"by position: {reason}")


def test_amounts_stored_in_the_module():
    def by_position(t, x, cond=None):
        t.last = ActNorm.by_position(t, x)
        return t.last

    with pytest.raises(AssertionError, match=r"untouched: by_position keeps something in the module, \.last"):
        check_by_position(wrong(ActNorm, by_position=by_position)(4).double(), batch())


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda latents, shares: (latents, sum(shares)), "not one grid per latent"),
        (lambda latents, shares: (latents, shares[:1]), "not one grid per latent"),
        (lambda latents, shares: (latents, [shares[0], 4 * shares[1]]), "the sum differs"),
        (lambda latents, shares: (latents[::-1], shares), "the latent differs"),
        (lambda z, shares: (z, [shares[0], shares[1] + z[1].square().sum((1, 2, 3), True)[:, 0] / 64]), "sum differs"),
    ],
    ids=["one grid", "a level missing", "not divided", "coarsest first", "no prior"],
)
def test_a_flow_with_wrong_amounts(mistake, reason):
    flow = build_tiny("glow", channels=1)
    flow.__class__ = wrong(Flow, by_position=lambda t, x, cond=None: mistake(*Flow.by_position(t, x, cond)))
    x = torch.rand(2, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    bites(flow, f"by position: .*{reason}", x=x)


# --- items, gradients, precision --------------------------------------------------------------------------------------


def flatten_that_mixes_items(t, x, cond=None):
    return x.transpose(0, 1).reshape(len(x), -1, 1, 1), x.new_zeros(len(x))


def unflatten_that_mixes_items(t, z, cond=None):
    channels, height, width = t.shape
    return z.reshape(channels, len(z), height, width).transpose(0, 1)


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


def mixing_in_low_precision(t, x, cond=None):
    return mix(x, t.weight), InvertibleConv.forward(t, x)[1]


@refused(
    {
        "items: a latent depends on the rest of the batch": {
            "mean of the batch": wrong(Transform, forward=centered_by_the_batch, inverse=lambda t, z, cond=None: z)(),
            "flatten mixes the items": wrong(
                Flatten, forward=flatten_that_mixes_items, inverse=unflatten_that_mixes_items
            )(4, 4, 6),
        },
        "gradients: forward: bias is dead": {
            "a parameter without gradient": wrong(ActNorm, forward=forward_without_gradient_of_the_bias)(4)
        },
        "gradients: inverse passes none": {
            "an inverse without gradients": inverse(
                ActNorm, torch.no_grad()(lambda t, z, cond: ActNorm.inverse(t, z)), 4
            )
        },
        "precision: autocast leaked, a result is torch.bfloat16": {
            "a convolution in low precision": wrong(InvertibleConv, forward=mixing_in_low_precision)(4)
        },
        "precision: autocast leaked": {
            "an exponential in low precision": wrong(Coupling, forward=coupling_with_exp_in_low_precision)(network())
        },
    }
)
def test_items_gradients_and_precision(transform, reason):
    bites(transform, reason)


def test_a_low_precision_that_is_widened_too_late():
    def forward(t, x, cond=None):
        return mix(x, t.weight).to(x.dtype), InvertibleConv.forward(t, x)[1]

    reason = "precision: autocast leaked, it changed a transform without networks"
    bites(wrong(InvertibleConv, forward=forward)(4), reason, networks=False)


def test_parameters_that_are_wrongly_called_dead():
    with pytest.raises(AssertionError, match="gradients: forward: bias is alive"):
        check_gradients(ActNorm(4).double(), batch(), dead=["bias"])
    with pytest.raises(AssertionError, match="called dead but do not exist"):
        check_gradients(ActNorm(4).double(), batch(), dead=["offset"])


@pytest.mark.parametrize("x", [torch.zeros(1, 4, 4, 6), torch.zeros(2, 4, 4, 4)], ids=["batch of one", "square"])
def test_a_weak_batch_is_refused(x):
    with pytest.raises(AssertionError):
        check(ActNorm(4), x, networks=False)
