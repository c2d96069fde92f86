"""Deliberately wrong transforms: the law's checks must refuse every one, and for the right reason."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flowcore.flow import Flow
from flowcore.models import build, configure
from flowcore.networks import Conditioner, DenseConditioner, TablePrior, TopPrior
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


# --- a wrong log-determinant ------------------------------------------------------------------------------------------


def test_logdet_without_the_number_of_pixels():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            return super().forward(x)[0], self.log_scale.sum().expand(len(x))

    bites(Wrong(4), "logdet: differs")


def test_logdet_that_counts_the_rows_twice_instead_of_the_columns():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            return super().forward(x)[0], (x.shape[2] * x.shape[2] * self.log_scale.sum()).expand(len(x))

    bites(Wrong(4), "logdet: differs")


@pytest.mark.parametrize("kind", [ActNorm, InvertibleConv])
def test_logdet_of_the_wrong_sign(kind):
    class Wrong(kind):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, -logdet

    bites(Wrong(4), "logdet: differs")


def test_logdet_that_contains_the_prior():
    class Wrong(Split):
        def forward(self, x, cond=None):
            (kept, latent), logdet = super().forward(x)
            return (kept, latent), logdet - 0.5 * (latent.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    bites(Wrong(Conditioner(2, 6, 4)), "logdet: differs")


def test_logdet_that_is_averaged_over_the_batch():
    class Wrong(Coupling):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, logdet.mean().expand(len(x))

    bites(Wrong(Conditioner(2, 6, 4)), "logdet: differs")


def test_logdet_that_is_a_mean_over_dimensions():
    class Wrong(Coupling):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, logdet / x[0].numel()

    bites(Wrong(Conditioner(2, 6, 4)), "logdet: differs")


def test_logdet_in_bits():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, logdet / math.log(2)

    bites(Wrong(4), "logdet: differs")


def test_logdet_that_forgets_eps():
    class Wrong(Coupling):
        def forward(self, x, cond=None):
            z = super().forward(x)[0]
            return z, affine(self.conditioner(halves(x)[0]), 0.0, like=x)[2].flatten(1).sum(1)

    bites(Wrong(Conditioner(2, 6, 4), eps=1e-4), "logdet: differs")


def test_logdet_without_the_batch():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, logdet[0]

    bites(Wrong(4), "logdet: shape")


def test_logdet_that_was_rounded_to_float32():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, logdet.float()

    bites(Wrong(4), "logdet: dtype")


# --- a wrong inverse --------------------------------------------------------------------------------------------------


class SubtractsBeforeItDivides(Coupling):
    def inverse(self, z, cond=None):
        z1, z2 = halves(z)
        shift, scale, _ = affine(self.conditioner(z1), self.eps, like=z)
        return torch.cat([z1, (z2 - shift) / scale], dim=1)


def test_inverse_that_subtracts_before_it_divides():
    bites(SubtractsBeforeItDivides(Conditioner(2, 6, 4)), "round trip: inverse")


def test_only_perturbed_parameters_show_a_wrong_inverse():
    """At its start a coupling shifts by zero, so that the order of subtraction and division makes no difference."""
    wrong = SubtractsBeforeItDivides(Conditioner(2, 6, 4)).double()
    check_untouched(wrong, batch())
    check_logdet(wrong, batch())
    check_round_trip(wrong, batch())  # no complaint: this is what perturbing is for
    bites(wrong, "round trip: inverse")


def test_inverse_of_the_parameters_that_once_were():
    class Wrong(InvertibleConv):
        def __init__(self, channels):
            super().__init__(channels)
            self.register_buffer("inverted", torch.linalg.inv(self.weight.detach()))

        def inverse(self, z, cond=None):
            return F.conv2d(z, self.inverted[:, :, None, None])

    bites(Wrong(4), "round trip: inverse")


def test_inverse_that_is_kept_in_the_module():
    class Wrong(InvertibleConv):
        def inverse(self, z, cond=None):
            if not hasattr(self, "kept"):
                self.kept = torch.linalg.inv(self.weight.detach())
            return F.conv2d(z, self.kept[:, :, None, None])

    bites(Wrong(4), "untouched: inverse keeps something in the module")


def test_inverse_that_is_kept_in_a_dictionary():
    class Wrong(InvertibleConv):
        def __init__(self, channels):
            super().__init__(channels)
            self.cache = {}

        def forward(self, x, cond=None):
            self.cache[len(x)] = torch.linalg.inv(self.weight.detach())
            return super().forward(x)

    bites(Wrong(4), "untouched: forward changed the module's attribute .cache")


def test_inverse_in_the_precision_of_float32():
    class Wrong(InvertibleConv):
        def inverse(self, z, cond=None):
            return F.conv2d(z, torch.linalg.inv(self.weight.float()).to(z)[:, :, None, None])

    bites(Wrong(4), "round trip: inverse")


def test_inverse_with_rows_and_columns_mixed_up():
    class Wrong(Squeeze):
        def inverse(self, z, cond=None):
            b, c, h, w = z.shape
            return z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 3, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)

    bites(Wrong(), "round trip: inverse")


def test_inverse_that_returns_a_pair():
    class Wrong(ActNorm):
        def inverse(self, z, cond=None):
            return super().inverse(z), z.new_zeros(len(z))

    with pytest.raises(AssertionError, match="round trip: inverse returns the data only"):
        check_round_trip(Wrong(4).double(), batch())


def test_inverse_that_forgets_the_condition():
    class Wrong(Coupling):
        def inverse(self, z, cond=None):
            return super().inverse(z, torch.zeros_like(cond))

    bites(Wrong(Conditioner(2 + 4, 6, 4)), "round trip: inverse", cond=batch() + 1)


def test_a_map_onto_a_part_of_the_latents():
    class Wrong(Transform):
        def forward(self, x, cond=None):
            return x.exp(), x.flatten(1).sum(1)

        def inverse(self, z, cond=None):
            return z.abs().log()

    bites(Wrong(), r"round trip: forward\(inverse")


def test_a_map_that_loses_dimensions():
    class Wrong(Transform):
        def forward(self, x, cond=None):
            return x[:, 1:], x.new_zeros(len(x))

        def inverse(self, z, cond=None):
            return torch.cat([z[:, :1], z], dim=1)

    bites(Wrong(), "logdet: 96 dimensions became 72")


# --- something is touched ---------------------------------------------------------------------------------------------


def test_forward_that_writes_into_its_input():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            return super().forward(x.add_(1))

        def inverse(self, z, cond=None):
            return super().inverse(z) - 1

    bites(Wrong(4), "untouched: forward changed its argument")


def test_inverse_that_writes_into_its_input():
    class Wrong(ActNorm):
        def inverse(self, z, cond=None):
            z *= torch.exp(-self.log_scale)[:, None, None]
            return z - self.bias[:, None, None]

    bites(Wrong(4), "untouched: inverse changed its argument")


def test_forward_that_writes_into_the_condition():
    class Wrong(Coupling):
        def forward(self, x, cond=None):
            cond.clamp_(min=0)
            return super().forward(x, cond)

    bites(Wrong(Conditioner(2 + 4, 6, 4)), "untouched: forward changed its argument", cond=batch())


class InitialisesItself(ActNorm):
    """By a flag, in training only, as many libraries do."""

    def __init__(self, channels):
        super().__init__(channels)
        self.done = False

    def forward(self, x, cond=None):
        if self.training and not self.done:
            self.done = True
            self.initialize(x)
        return super().forward(x)


def test_forward_that_initialises_its_parameters():
    bites(InitialisesItself(4), "untouched: forward changed the module's state")


def test_forward_that_sets_a_flag():
    class Wrong(ActNorm):
        done = False

        def forward(self, x, cond=None):
            self.done = True
            return super().forward(x)

    bites(Wrong(4), "untouched: forward keeps something in the module, .done")


def test_inverse_that_initialises_where_the_bias_is_zero():
    """Perturbed parameters alone would not show this one, so the check is asked without."""

    class Wrong(ActNorm):
        def inverse(self, z, cond=None):
            if not self.bias.any():
                self.initialize(z)
            return super().inverse(z)

    with pytest.raises(AssertionError, match="untouched: inverse changed the module's state"):
        check_untouched(Wrong(4).double(), batch())


def test_forward_that_counts_in_a_buffer():
    class Wrong(ActNorm):
        def __init__(self, channels):
            super().__init__(channels)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, cond=None):
            self.calls += 1
            return super().forward(x)

    bites(Wrong(4), "untouched: forward changed the module's state, calls")


@pytest.mark.parametrize(
    ("draw", "name"),
    [(lambda: torch.rand(1), "torch"), (lambda: np.random.rand(1), "numpy"), (random.random, "random")],  # noqa: NPY002
    ids=["torch", "numpy", "random"],
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_direction_that_draws_from_a_global_generator(direction, draw, name):
    class Wrong(ActNorm):
        pass

    def drawing(self, value, cond=None):
        draw()
        return getattr(ActNorm, direction)(self, value)

    drawing.__name__ = direction
    setattr(Wrong, direction, drawing)
    bites(Wrong(4), f"untouched: {direction} drew from the global random generator of {name}")


def test_forward_that_answers_differently_the_second_time():
    class Wrong(ActNorm):
        generator = torch.Generator().manual_seed(0)

        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z + 1e-3 * torch.randn(z.shape, generator=self.generator, dtype=z.dtype), logdet

    bites(Wrong(4), "untouched: forward of the same data gave two answers")


def test_forward_that_depends_on_training_mode():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return (z + 1 if self.training else z), logdet

    bites(Wrong(4), r"untouched: forward depends on train\(\)")


# --- mistakes in the younger transforms -------------------------------------------------------------------------------


def turned_over():
    """A signed actnorm with scales of both signs, for subclasses to be filled with."""
    return torch.tensor([1.3, -0.7, 0.4, -2.1])


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda scale: scale.log().sum(), "logdet: differs.* what came is not finite"),  # NaN below zero
        (lambda scale: scale.clamp(min=1e-6).log().sum(), "logdet: differs.* by"),
        (lambda scale: scale.abs().log().sum() / 24, "logdet: differs.* by"),  # without H * W
        (lambda scale: scale.sum(), "logdet: differs.* by"),  # as if it were the log
    ],
    ids=["log of the scale", "clamped", "one pixel", "no log"],
)
def test_signed_actnorms_logdet(mistake, reason):
    class Wrong(SignedActNorm):
        def forward(self, x, cond=None):
            return super().forward(x)[0], (24 * mistake(self.scale)).expand(len(x))

    wrong = Wrong(4)
    with torch.no_grad():
        wrong.scale.copy_(turned_over())
    with pytest.raises(AssertionError, match=reason):
        check_logdet(wrong.double(), batch())


def test_signed_actnorm_that_takes_the_scale_for_its_magnitude():
    class Wrong(SignedActNorm):
        def inverse(self, z, cond=None):
            return z / self.scale.abs()[:, None, None] - self.bias[:, None, None]

    wrong = Wrong(4)
    with torch.no_grad():
        wrong.scale.copy_(turned_over())
    bites(wrong, "round trip: inverse")


def test_scaled_actnorm_that_forgets_the_factor_in_its_logdet():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            return super().forward(x)[0], (24 * self.log_scale.sum()).expand(len(x))

    bites(Wrong(4, log_factor=3.0), "logdet: differs")


def test_scaled_actnorm_that_forgets_the_factor_on_the_way_back():
    class Wrong(ActNorm):
        def inverse(self, z, cond=None):
            return z * torch.exp(-self.log_scale)[:, None, None] - self.bias[:, None, None]

    bites(Wrong(4, log_factor=3.0), "round trip: inverse")


def measured(norm):
    norm.mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    norm.var.copy_(torch.tensor([0.5, 2.0, 0.1, 3.0]))
    return norm


def test_batch_norm_that_takes_the_batch_in_training_mode():
    """What torch's own batch norm does."""

    class Wrong(BatchNorm):
        def forward(self, x, cond=None):
            self.uses_batch = self.training
            try:
                return super().forward(x)
            finally:
                self.uses_batch = False

    bites(measured(Wrong(4)), "untouched: forward changed the module's state, mean")


def test_batch_norm_that_takes_the_batch_without_remembering_it():
    class Wrong(BatchNorm):
        def forward(self, x, cond=None):
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            logs = -0.5 * torch.log(var + self.eps)
            return (x - mean[:, None, None]) * logs.exp()[:, None, None], (24 * logs.sum()).expand(len(x))

    bites(measured(Wrong(4)), "logdet: differs|items:")


def test_batch_norm_that_is_left_in_batch_moments():
    with batch_moments(norm := measured(BatchNorm(4))):
        bites(norm, "untouched: forward changed the module's state, mean")


def test_batch_norm_with_the_whole_log_of_its_variance():
    class Wrong(BatchNorm):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, 2 * logdet

    bites(measured(Wrong(4)), "logdet: differs")


def test_batch_norm_without_eps_on_the_way_back():
    class Wrong(BatchNorm):
        def inverse(self, z, cond=None):
            return z * self.var.sqrt()[:, None, None] + self.mean[:, None, None]

    bites(measured(Wrong(4)), "round trip: inverse")


def checkerboard(kind, **options):
    return kind(Conditioner(4, 6, 8), parity=0, **options)


def test_checkerboard_with_the_other_colour_on_the_way_back():
    class Wrong(CheckerboardCoupling):
        def inverse(self, z, cond=None):
            return CheckerboardCoupling(self.conditioner, parity=1 - self.parity).inverse(z)

    bites(checkerboard(Wrong), "round trip: inverse")


def test_checkerboard_that_counts_all_squares():
    class Wrong(CheckerboardCoupling):
        def by_position(self, x, cond=None):
            z = super().by_position(x)[0]
            return z, self._affine(x, self._mask(x))[1].sum(1)

    bites(checkerboard(Wrong), "logdet: differs")


def test_checkerboard_that_looks_at_what_it_changes():
    class Wrong(CheckerboardCoupling):
        def _input(self, x, kept):
            return x

    bites(checkerboard(Wrong), "logdet: differs")


def test_checkerboard_that_shifts_before_it_divides():
    class Wrong(CheckerboardCoupling):
        def inverse(self, z, cond=None):
            kept = self._mask(z)
            shift, log_scale = self._affine(z, kept)
            return torch.where(kept, z, (z - shift) * torch.exp(-log_scale))

    bites(checkerboard(Wrong), "round trip: inverse")


def test_swapped_coupling_that_swaps_only_forward():
    class Wrong(Coupling):
        def inverse(self, z, cond=None):
            return Coupling(self.conditioner, scaling=self.scaling).inverse(z)

    bites(Wrong(Conditioner(2, 6, 4), swap=True), "round trip: inverse")


def test_swapped_coupling_that_joins_in_the_wrong_order():
    class Wrong(Coupling):
        def _join(self, x1, x2):
            return torch.cat([x1, x2], dim=1)

    bites(Wrong(Conditioner(2, 6, 4), swap=True), "round trip: inverse")


def test_additive_coupling_with_an_affine_logdet():
    class Wrong(Coupling):
        def forward(self, x, cond=None):
            shift = self.conditioner(halves(x)[0])
            return super().forward(x)[0], shift.flatten(1).sum(1)

    bites(Wrong(Conditioner(2, 6, 2), scaling="none"), "logdet: differs")


def test_additive_coupling_that_adds_both_ways():
    class Wrong(Coupling):
        def inverse(self, z, cond=None):
            return self.forward(z)[0]

    bites(Wrong(Conditioner(2, 6, 2), scaling="none"), "round trip: inverse")


def test_permutation_that_is_applied_twice_instead_of_undone():
    class Wrong(Permutation):
        def inverse(self, z, cond=None):
            return z[:, self.order]

    bites(Wrong(torch.tensor([1, 2, 3, 0])), "round trip: inverse")


def test_permutation_that_takes_a_channel_twice():
    class Wrong(Permutation):
        def forward(self, x, cond=None):
            return x[:, [0, 0, 1, 2]], x.new_zeros(len(x))

    bites(Wrong(torch.arange(4)), "logdet: differs.* what was expected is not finite")


def test_ordered_squeeze_with_the_usual_order_on_the_way_back():
    class Wrong(OrderedSqueeze):
        def inverse(self, z, cond=None):
            return F.pixel_shuffle(z, 2)

    bites(Wrong(), "round trip: inverse")


def test_ordered_squeeze_with_two_groups_mixed_up_on_the_way_back():
    class Wrong(OrderedSqueeze):
        def inverse(self, z, cond=None):
            first, diagonal, right, below = z.chunk(4, dim=1)
            return super().inverse(torch.cat([first, diagonal, below, right], dim=1))

    bites(Wrong(), "round trip: inverse")


def test_unsqueeze_that_is_undone_in_another_order():
    class Wrong(Unsqueeze):
        def inverse(self, z, cond=None):
            return OrderedSqueeze()(z)[0]

    bites(Wrong(), "round trip: inverse", x=batch(8))  # of one channel, only the order of the groups would differ


def test_unsqueeze_with_a_logdet_of_its_own():
    class Wrong(Unsqueeze):
        def forward(self, x, cond=None):
            return super().forward(x)[0], x.new_full((len(x),), math.log(4))

    bites(Wrong(), "logdet: differs")


def test_flatten_with_rows_and_columns_mixed_up():
    class Wrong(Flatten):
        def inverse(self, z, cond=None):
            channels, height, width = self.shape
            return z.reshape(len(z), channels, width, height).transpose(2, 3)

    bites(Wrong(4, 4, 6), "round trip: inverse")


def test_flatten_that_mixes_the_items():
    class Wrong(Flatten):
        def forward(self, x, cond=None):
            return x.transpose(0, 1).reshape(len(x), -1, 1, 1), x.new_zeros(len(x))

        def inverse(self, z, cond=None):
            channels, height, width = self.shape
            return z.reshape(channels, len(z), height, width).transpose(0, 1)

    bites(Wrong(4, 4, 6), "items: a latent depends on the rest of the batch")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda shift, width: 72 * math.log(width),  # the sign
        lambda shift, width: -4 * math.log(width),  # without H * W
        lambda shift, width: -96 * math.log(width) - 96 * shift,
        lambda shift, width: -96 * width,  # without the log
    ],
    ids=["sign", "one pixel", "shift", "no log"],
)
def test_pixel_maps_logdet(mistake):
    class Wrong(PixelMap):
        def forward(self, x, cond=None):
            return super().forward(x)[0], x.new_full((len(x),), mistake(self.shift, self.width))

    bites(Wrong(0.3, 0.7), "logdet: differs")


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
def test_logits_logdet(mistake):
    class Wrong(Logit):
        def by_position(self, x, cond=None):
            p = self.alpha + (1 - 2 * self.alpha) * x
            amounts = mistake(p.log(), torch.log1p(-p), math.log(1 - 2 * self.alpha))
            return super().by_position(x)[0], amounts.sum(1)

    bites(Wrong(0.05), "logdet: differs", x=batch().sigmoid())


def test_logit_that_forgets_to_stretch_on_the_way_back():
    class Wrong(Logit):
        def inverse(self, z, cond=None):
            return torch.sigmoid(z)

    bites(Wrong(0.05), "round trip: inverse", x=batch().sigmoid())


def test_logit_that_clamps_what_it_returns():
    class Wrong(Logit):
        def inverse(self, z, cond=None):
            return super().inverse(z).clamp(0, 1)

    # pixels come back as they were; latents beyond black and white do not
    x = batch().sigmoid()
    x[0, 0, 0, 0] = 0.5
    with pytest.raises(AssertionError, match=r"round trip: forward\(inverse"):
        check_round_trip(Wrong(0.2), x)


class Reads(TopPrior):
    """A prior that looks at what it is the prior of."""

    def forward(self, like, labels=None):
        return super().forward(like) + 0.1 * like.repeat_interleave(2, dim=1)


def test_whiten_that_reads_the_values_of_its_argument():
    bites(Whiten(Reads(4)), "logdet: differs")


def test_whiten_that_reads_the_values_for_the_mean_only():
    """A mean alone would leave the logdet of a triangular map right, if it were one."""

    class Wrong(TopPrior):
        def forward(self, like, labels=None):
            raw = super().forward(like).clone()
            raw[:, 0:2:2] += like[:, 1:2]
            return raw

    bites(Whiten(Wrong(4)), "round trip: inverse")


def test_whiten_with_the_sign_of_the_deviations_wrong():
    class Wrong(Whiten):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, -logdet

    bites(Wrong(TopPrior(4)), "logdet: differs")


def test_whiten_that_forgets_the_label_on_the_way_back():
    class Wrong(Whiten):
        def inverse(self, z, cond=None):
            return super().inverse(z, torch.ones_like(cond) / 3)

    told = torch.eye(3)[:2]
    bites(Wrong(TablePrior(4, 4, 6, classes=3)), "round trip: inverse", cond=told, networks=False)


def test_split_that_sends_out_the_first_half_on_the_way_back():
    class Wrong(Split):
        def inverse(self, z, cond=None):
            return super().inverse(z).roll(2, dims=1)

    bites(Wrong(None), "round trip: inverse")


def test_split_whose_prior_is_one_for_the_batch_and_so_is_its_logdet():
    class Wrong(Split):
        def forward(self, x, cond=None):
            z, logdet = super().forward(x)
            return z, logdet[:1]

    bites(Wrong(TablePrior(2, 4, 6)), "logdet: shape", networks=False)


# --- by position ------------------------------------------------------------------------------------------------------


def wrong_place(kind, amounts, *arguments, **options):
    """The transform, with amounts by position that come from the right ones through a mistake."""

    class Wrong(kind):
        def by_position(self, x, cond=None):
            z, right = super().by_position(x, cond)
            return amounts(z, right)

    return Wrong(*arguments, **options)


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda z, right: (z, right * right[0].numel()), "sum differs"),  # the whole logdet at every position
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
    bites(wrong_place(Coupling, mistake, Conditioner(2, 6, 4)), f"by position: .*{reason}")


def test_a_chain_that_forgets_to_spread():
    class Wrong(Chain):
        def by_position(self, x, cond=None):
            total = 0
            for part in self.parts():
                x, amounts = part.by_position(x)
                total = total + amounts.sum((1, 2), keepdim=True)
            return x, total

    bites(Wrong(Squeeze(), ActNorm(16)), r"by position: shape \(2, 1, 1\)")


def test_a_chain_that_repeats_instead_of_dividing():
    class Wrong(Chain):
        def by_position(self, x, cond=None):
            z, amounts = self.parts()[1].by_position(self.parts()[0](x)[0])
            return z, amounts.repeat_interleave(2, -2).repeat_interleave(2, -1)

    bites(Wrong(Squeeze(), ActNorm(16)), "by position: the sum differs")


def test_amounts_that_are_kept_in_the_module():
    class Wrong(Logit):
        def by_position(self, x, cond=None):
            self.last = super().by_position(x)
            return self.last

        def forward(self, x, cond=None):
            z, amounts = super().by_position(x)
            return z, amounts.sum((1, 2))

    with pytest.raises(AssertionError, match=r"untouched: by_position keeps something in the module, \.last"):
        check_by_position(Wrong(0.05), batch().sigmoid())


def tiny_glow():
    torch.manual_seed(0)
    return build("glow", configure("glow", {"channels": 1, "levels": 2, "steps": 1, "hidden": 4}))


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda latents, shares: (latents, sum(shares)), "not one grid per latent"),
        (lambda latents, shares: (latents, shares[:1]), "not one grid per latent"),
        (lambda latents, shares: (latents, [shares[0], 4 * shares[1]]), "the sum differs"),
        (lambda latents, shares: (latents[::-1], shares), "the latent differs"),
        (
            # without the prior of the last latents
            lambda latents, shares: (
                latents,
                [shares[0], shares[1] + 0.5 * latents[1].square().sum((1, 2, 3))[:, None, None] / 32],
            ),
            "the sum differs",
        ),
    ],
    ids=["one grid", "a level missing", "not divided", "coarsest first", "no prior"],
)
def test_a_flow_with_wrong_amounts(mistake, reason):
    class Wrong(Flow):
        def by_position(self, x, cond=None):
            return mistake(*super().by_position(x, cond))

    flow = tiny_glow()
    flow.__class__ = Wrong
    x = torch.rand(2, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    bites(flow, f"by position: .*{reason}", x=x)


# --- items, gradients, precision --------------------------------------------------------------------------------------


def test_statistics_of_the_batch():
    class Wrong(Transform):
        def forward(self, x, cond=None):
            return x - x.mean(dim=(0, 2, 3), keepdim=True).detach(), x.new_zeros(len(x))

        def inverse(self, z, cond=None):
            return z

    bites(Wrong(), "items: a latent depends on the rest of the batch")


def test_a_parameter_that_takes_no_gradient():
    class Wrong(ActNorm):
        def forward(self, x, cond=None):
            z = (x + self.bias.detach()[:, None, None]) * self.log_scale.exp()[:, None, None]
            return z, (x.shape[2] * x.shape[3] * self.log_scale.sum()).expand(len(x))

    bites(Wrong(4), "gradients: forward: bias is dead")


def test_an_inverse_without_gradients():
    class Wrong(ActNorm):
        @torch.no_grad()
        def inverse(self, z, cond=None):
            return super().inverse(z)

    bites(Wrong(4), "gradients: inverse passes none")


def test_a_parameter_that_is_called_dead_but_lives():
    with pytest.raises(AssertionError, match="gradients: forward: bias is alive"):
        check_gradients(ActNorm(4).double(), batch(), dead=["bias"])


def test_a_dead_parameter_that_does_not_exist():
    with pytest.raises(AssertionError, match="called dead but do not exist"):
        check_gradients(ActNorm(4).double(), batch(), dead=["offset"])


def test_a_convolution_that_runs_in_low_precision():
    class Wrong(InvertibleConv):
        def forward(self, x, cond=None):
            z = F.conv2d(x, self.weight[:, :, None, None])
            return z, super().forward(x)[1]

    bites(Wrong(4), "precision: autocast leaked, a result is torch.bfloat16")


def test_a_low_precision_that_is_widened_too_late():
    class Wrong(InvertibleConv):
        def forward(self, x, cond=None):
            z = F.conv2d(x, self.weight[:, :, None, None])
            return z.to(x.dtype), super().forward(x)[1]

    bites(Wrong(4), "precision: autocast leaked, it changed a transform without networks", networks=False)


def test_an_exponential_in_low_precision():
    class Wrong(Coupling):
        def forward(self, x, cond=None):
            x1, x2 = halves(x)
            raw = self.conditioner(x1)
            shift, scale, log_scale = affine(raw, self.eps, like=raw)
            return torch.cat([x1, (x2 + shift) * scale], dim=1), log_scale.flatten(1).sum(1)

    bites(Wrong(Conditioner(2, 6, 4)), "precision: autocast leaked")


# --- and the honest ones pass -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        ActNorm(4),
        InvertibleConv(4),
        Squeeze(),
        measured(BatchNorm(4)),
        Logit(0.05),
        Flatten(4, 4, 6),
        Whiten(TopPrior(4)),
    ],
    ids=lambda t: type(t).__name__,
)
def test_honest_transforms_pass(transform):
    check(transform, batch().sigmoid(), networks=False)


def test_honest_networks_pass():
    check(checkerboard(CheckerboardCoupling), batch())
    check(Chain(Flatten(4, 4, 6), Coupling(DenseConditioner(48, 6, 96))), batch())
    check(tiny_glow(), torch.rand(2, 1, 4, 8))


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 4, 4, 6), torch.zeros(2, 4, 4, 4)],
    ids=["batch of one", "square"],
)
def test_a_weak_batch_is_refused(x):
    with pytest.raises(AssertionError):
        check(ActNorm(4), x, networks=False)
