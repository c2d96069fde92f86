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
from flowcore.networks import Conditioner, TablePrior, TopPrior
from flowcore.testing import check, check_by_position, check_gradients, check_logdet, check_round_trip, check_untouched
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

DIFFERS = "logdet: differs"


def pixel_map(mistake):
    return logdet(PixelMap, lambda t, x, z, right: x.new_full((2,), mistake(t.shift, t.width)), 0.3, 0.7)


def signed(mistake):
    actnorm = logdet(SignedActNorm, lambda t, x, z, right: (24 * mistake(t.scale)).expand(len(x)), 4)
    return turned_over(actnorm), {"law": check_logdet}


def logit(mistake):
    def by_position(t, x, cond=None):
        p = t.alpha + (1 - 2 * t.alpha) * x
        amounts = mistake(p.log(), torch.log1p(-p), math.log(1 - 2 * t.alpha))
        return Logit.by_position(t, x)[0], amounts.sum(1)

    return wrong(Logit, by_position=by_position)(0.05), {"x": batch().sigmoid()}


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
            "batch norm by the log of its variance": move_buffers(
                logdet(BatchNorm, lambda t, x, z, right: 2 * right, 4)
            ),
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
            "logit without the ends": logit(lambda log_p, log_q, inside: -log_p - log_q),  # as if x were p
            "logit with the wrong sign": logit(lambda log_p, log_q, inside: inside + log_p + log_q),
            "half of a logit": logit(lambda log_p, log_q, inside: inside - log_p),
            "logit with the wrong sign of the ends": logit(lambda log_p, log_q, inside: -inside - log_p - log_q),
        },
        "logdet: differs.* the expected value is not finite": wrong(
            Permutation, forward=lambda t, x, cond=None: (x[:, [0, 0, 1, 2]], x.new_zeros(len(x)))
        )(torch.arange(4)),
        "logdet: differs.* the actual value is not finite": signed(lambda scale: scale.log().sum()),
        "logdet: differs.* by": {
            "signed scale, clamped": signed(lambda scale: scale.clamp(min=1e-6).log().sum()),
            "signed scale, one pixel": signed(lambda scale: scale.abs().log().sum() / 24),
            "signed scale without the log": signed(lambda scale: scale.sum()),
        },
        "logdet: shape": {
            "without the batch": logdet(ActNorm, lambda t, x, z, right: right[0], 4),
            "one logdet for the batch": logdet(Split, lambda t, x, z, right: right[:1], TablePrior(2, 4, 6)),
        },
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
        mixing := inverse(InvertibleConv, lambda t, z, cond: mix(z, t.inverted), 4),
        "inverted",
        inverted_weight(mixing),
    ),
    "float32": inverse(InvertibleConv, lambda t, z, cond: mix(z, torch.linalg.inv(t.weight.float()).to(z)), 4),
    "rows and columns mixed up": inverse(Squeeze, squeeze_with_axes_mixed_up),
    "magnitude of a signed scale": turned_over(inverse(SignedActNorm, without_the_sign, 4)),
    "actnorm without its factor": inverse(ActNorm, without_the_factor, 4, log_factor=3.0),
    "batch norm without eps": move_buffers(
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
    # of one channel only the order of the groups differs
    "unsqueeze in another order": (
        inverse(Unsqueeze, lambda t, z, cond: OrderedSqueeze()(z)[0]),
        {"x": batch(8)},
    ),
    "logit not stretched": (
        inverse(Logit, lambda t, z, cond: torch.sigmoid(z), 0.05),
        {"x": batch().sigmoid()},
    ),
    "without the condition": (
        inverse(Coupling, lambda t, z, cond: Coupling.inverse(t, z, torch.zeros_like(cond)), network(2 + 4)),
        {"cond": batch() + 1},
    ),
    "without the label": (
        inverse(
            Whiten,
            lambda t, z, cond: Whiten.inverse(t, z, torch.ones_like(cond) / 3),
            TablePrior(4, 4, 6, classes=3),
        ),
        {"cond": torch.eye(3)[:2], "networks": False},
    ),
}


@refused(
    {
        "round trip: inverse": INVERSES,
        "round trip: inverse returns the data only": (
            inverse(ActNorm, lambda t, z, cond: (ActNorm.inverse(t, z), z.new_zeros(len(z))), 4),
            {"law": check_round_trip},
        ),
        r"round trip: forward\(inverse": {
            "onto a part of the latents": wrong(
                Transform,
                forward=lambda t, x, cond=None: (x.exp(), x.flatten(1).sum(1)),
                inverse=lambda t, z, cond=None: z.abs().log(),
            )(),
            # pixels come back as they were; latents beyond black and white do not
            "logit that clamps": (
                inverse(Logit, lambda t, z, cond: Logit.inverse(t, z).clamp(0, 1), 0.2),
                {"law": check_round_trip, "x": batch().sigmoid()},
            ),
        },
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


def initializing_inverse(t, z, cond):
    if not t.bias.any():
        t.initialize(z)
    return ActNorm.inverse(t, z)


def drawing(direction, draw):
    def drawn(t, value, cond=None):
        draw()
        return getattr(ActNorm, direction)(t, value)

    return wrong(ActNorm, **{direction: drawn})(4)


GENERATORS = {"torch": lambda: torch.rand(1), "numpy": lambda: np.random.rand(1), "random": random.random}  # noqa: NPY002
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
        "untouched: inverse keeps something in the module": inverse(InvertibleConv, caching_inverse, 4),
        "untouched: forward changed the module's attribute .cache": with_attribute(
            wrong(InvertibleConv, forward=caching_forward)(4), cache={}
        ),
        "untouched: forward changed its argument": wrong(
            ActNorm, forward=forward_in_place, inverse=lambda t, z, cond=None: ActNorm.inverse(t, z) - 1
        )(4),
        "untouched: forward changed its argument$": (
            wrong(Coupling, forward=lambda t, x, cond=None: Coupling.forward(t, x, cond.clamp_(min=0)))(network(2 + 4)),
            {"cond": batch()},
        ),
        # perturbed parameters would not show this one, so the check is asked without
        "untouched: inverse changed the module's state": (
            inverse(ActNorm, initializing_inverse, 4),
            {"law": check_untouched},
        ),
        **{
            f"untouched: {direction} drew from the global random generator of {name}": {
                f"{direction} draws from {name}": drawing(direction, draw)
            }
            for direction in ("forward", "inverse")
            for name, draw in GENERATORS.items()
        },
        "untouched: inverse changed its argument": inverse(ActNorm, inverse_in_place, 4),
        "untouched: forward changed the module's state": with_attribute(
            wrong(ActNorm, forward=initializing_forward)(4), done=False
        ),
        "untouched: forward keeps something in the module, .done": wrong(ActNorm, forward=flag_setting_forward)(4),
        "untouched: forward changed the module's state, calls": with_buffer(
            wrong(ActNorm, forward=counting_forward)(4), "calls", torch.zeros(())
        ),
        "untouched: forward of the same data gave two answers": wrong(ActNorm, forward=noisy_forward)(4),
        r"untouched: forward depends on train\(\)": wrong(ActNorm, forward=forward_by_training_mode)(4),
        "untouched: forward changed the module's state, mean": move_buffers(
            wrong(BatchNorm, forward=batch_norm_by_training_mode)(4)
        ),
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


def storing_by_position(t, x, cond=None):
    t.last = ActNorm.by_position(t, x)
    return t.last


def chain_that_forgets_to_spread(t, x, cond=None):
    total = 0
    for part in t.parts():
        x, amounts = part.by_position(x)
        total = total + amounts.sum((1, 2), keepdim=True)
    return x, total


def chain_that_repeats_instead_of_dividing(t, x, cond=None):
    z, amounts = t.parts()[1].by_position(t.parts()[0](x)[0])
    return z, amounts.repeat_interleave(2, -2).repeat_interleave(2, -1)


@refused(
    {
        "by position: .*the sum differs": {
            "not divided": amounts(lambda z, right: (z, right * right[0].numel())),  # all of it at every position
            "sign": amounts(lambda z, right: (z, -right)),
            "averaged over items": amounts(lambda z, right: (z, right.mean(0, keepdim=True).expand(2, -1, -1))),
            "items mixed up": amounts(lambda z, right: (z, right.flip(0))),
            "chain repeats": wrong(Chain, by_position=chain_that_repeats_instead_of_dividing)(Squeeze(), ActNorm(16)),
        },
        r"by position: .*shape \(2,\) instead of \(2, 4, 6\)": amounts(lambda z, right: (z, right.sum((1, 2)))),
        r"by position: .*shape \(2, 6, 4\)": amounts(lambda z, right: (z, right.transpose(1, 2))),
        r"by position: .*shape \(2, 1, 1\)": wrong(Chain, by_position=chain_that_forgets_to_spread)(
            Squeeze(), ActNorm(16)
        ),
        "by position: .*dtype torch.float32": amounts(lambda z, right: (z, right.float())),
        "locality: .*spreads evenly": {
            "coupling": amounts(lambda z, right: (z, right.mean((1, 2), keepdim=True).expand_as(right))),
            "said to be uniform": with_attribute(
                wrong(Coupling, by_position=lambda t, x, cond=None: Transform.by_position(t, x))(network()),
                uniform_logdet=True,
            ),
        },
        "by position: .*the latent differs": amounts(lambda z, right: (z + 1e-6, right)),
        r"untouched: by_position keeps something in the module, \.last": (
            wrong(ActNorm, by_position=storing_by_position)(4),
            {"law": check_by_position},
        ),
    }
)
def test_wrong_amounts(transform, reason, options):
    bites(transform, reason, **options)


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


def mixing_widened_too_late(t, x, cond=None):
    return mix(x, t.weight).to(x.dtype), InvertibleConv.forward(t, x)[1]


@refused(
    {
        "items: a latent depends on the rest of the batch": {
            "mean of the batch": wrong(Transform, forward=centered_by_the_batch, inverse=lambda t, z, cond=None: z)(),
            "flatten mixes the items": wrong(
                Flatten, forward=flatten_that_mixes_items, inverse=unflatten_that_mixes_items
            )(4, 4, 6),
        },
        "gradients: forward: bias is dead": wrong(ActNorm, forward=forward_without_gradient_of_the_bias)(4),
        "gradients: inverse passes none": inverse(
            ActNorm, torch.no_grad()(lambda t, z, cond: ActNorm.inverse(t, z)), 4
        ),
        "precision: autocast leaked, a result is torch.bfloat16": wrong(
            InvertibleConv, forward=mixing_in_low_precision
        )(4),
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
