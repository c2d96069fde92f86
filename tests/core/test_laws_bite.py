"""Deliberately wrong transforms: the law's checks must refuse every one, and for the right reason."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flowcore.networks import Conditioner
from flowcore.transforms import ActNorm, Coupling, InvertibleConv, Split, Squeeze, Transform
from flowcore.transforms.coupling import affine, halves

from .laws import check, check_gradients, check_logdet, check_round_trip, check_untouched


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
            self.initialise(x)
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
                self.initialise(z)
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


@pytest.mark.parametrize("transform", [ActNorm(4), InvertibleConv(4), Squeeze()], ids=lambda t: type(t).__name__)
def test_honest_transforms_pass(transform):
    check(transform, batch(), networks=False)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 4, 4, 6), torch.zeros(2, 4, 4, 4)],
    ids=["batch of one", "square"],
)
def test_a_weak_batch_is_refused(x):
    with pytest.raises(AssertionError):
        check(ActNorm(4), x, networks=False)
