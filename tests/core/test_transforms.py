"""Every transform obeys the law; and each does what its docstring says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowcore.networks import Conditioner, ScaledConv
from flowcore.transforms import (
    ActNorm,
    Chain,
    ConditionError,
    Coupling,
    Injector,
    InvertibleConv,
    PrecisionError,
    ShapeError,
    Split,
    Squeeze,
)

from .laws import check, perturbed

STARTS = ("orthogonal", "principal", "reverse")


def data(channels=3, height=4, width=6, batch=2, seed=1):
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def network(inputs, outputs, **options):
    return Conditioner(inputs, 6, outputs, **options)


# --- the law ----------------------------------------------------------------------------------------------------------


def test_squeeze_obeys_the_law():
    check(Squeeze(), data(), networks=False)


def test_actnorm_obeys_the_law():
    check(ActNorm(5), data(5), networks=False)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("lu", [False, True], ids=["plain", "lu"])
def test_invertible_conv_obeys_the_law(lu, start):
    check(InvertibleConv(5, lu=lu, start=start), data(5), networks=False)


@pytest.mark.parametrize("lu", [False, True], ids=["plain", "lu"])
def test_initialised_invertible_conv_obeys_the_law(lu):
    mixing = InvertibleConv(5, lu=lu, start="principal").double()
    mixing.initialise(data(5, batch=4))
    check(mixing, data(5), networks=False)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("cond_channels", [0, 3])
def test_coupling_obeys_the_law(channels, cond_channels, eps):
    kept = channels // 2
    coupling = Coupling(network(kept + cond_channels, 2 * (channels - kept)), eps=eps)
    check(coupling, data(channels), data(cond_channels, seed=2) if cond_channels else None)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_injector_obeys_the_law(eps):
    check(Injector(network(3, 10), eps=eps), data(5), data(3, seed=2))


@pytest.mark.parametrize("channels", [4, 5])
def test_split_obeys_the_law(channels):
    kept = channels // 2
    check(Split(ScaledConv(kept, 2 * (channels - kept))), data(channels))


@pytest.mark.parametrize("options", [{"layers": 0}, {"layers": 2}, {"layers": 1, "kernel": 3}], ids=str)
def test_coupling_with_other_conditioners_obeys_the_law(options):
    check(Coupling(network(2, 6, **options)), data(5))


def test_chain_obeys_the_law():
    chain = Chain(
        ActNorm(5),
        InvertibleConv(5),
        Injector(network(3, 10), eps=1e-4),
        Coupling(network(2 + 3, 6), eps=1e-4),
        Chain(ActNorm(5), InvertibleConv(5, lu=True)),
    )
    check(chain, data(5), data(3, seed=2))


def test_empty_chain_is_the_identity():
    x = data()
    z, logdet = Chain()(x)
    assert torch.equal(z, x)
    assert torch.equal(logdet, torch.zeros(2, dtype=torch.float64))


# --- what the docstrings say ------------------------------------------------------------------------------------------


def test_squeeze_orders_channels_as_documented():
    x = data()
    z, _ = Squeeze()(x)
    for c in range(3):
        for dy in range(2):
            for dx in range(2):
                assert torch.equal(z[:, 4 * c + 2 * dy + dx], x[:, c, dy::2, dx::2])


def test_squeeze_refuses_odd_sides():
    with pytest.raises(ShapeError, match="5x6"):
        Squeeze()(data(height=5))


def test_actnorm_initialise_normalises_the_batch():
    actnorm = ActNorm(5).double()
    x = 3 * data(5, batch=4) + 7
    z = actnorm.initialise(x)
    assert torch.equal(z, actnorm(x)[0])
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.square().mean(dim=(0, 2, 3)), torch.ones(5, dtype=torch.float64), atol=1e-5)


def test_actnorm_initialise_survives_a_constant_channel():
    actnorm = ActNorm(3)
    z = actnorm.initialise(torch.full((2, 3, 4, 6), 0.25))
    assert z.abs().max() == 0
    assert actnorm.log_scale.isfinite().all()


@pytest.mark.parametrize("lu", [False, True], ids=["plain", "lu"])
def test_principal_start_sorts_the_axes_of_the_batch(lu):
    mixing = InvertibleConv(4, lu=lu, start="principal").double()
    x = F.conv2d(data(4, batch=8, height=8), data(4, height=4, width=1, batch=1)[0].view(4, 4, 1, 1))
    z = mixing.initialise(x)
    covariance = torch.cov(z.transpose(0, 1).flatten(1))
    variances = covariance.diagonal()
    assert torch.allclose(covariance, torch.diag(variances), atol=1e-9)
    assert torch.equal(variances, variances.sort(descending=True)[0])
    assert torch.allclose(mixing.matrix() @ mixing.matrix().T, torch.eye(4, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("lu", [False, True], ids=["plain", "lu"])
def test_reverse_start_reverses_the_channels(lu):
    x = data(5)
    assert torch.allclose(InvertibleConv(5, lu=lu, start="reverse").double()(x)[0], x.flip(1), atol=1e-12)


@pytest.mark.parametrize("lu", [False, True], ids=["plain", "lu"])
def test_orthogonal_start_is_orthogonal_and_has_logdet_zero(lu):
    mixing = InvertibleConv(6, lu=lu)
    assert torch.allclose(mixing.matrix() @ mixing.matrix().T, torch.eye(6), atol=1e-5)
    assert mixing(data(6).float())[1].abs().max() < 1e-4


@pytest.mark.parametrize("start", ["orthogonal", "reverse"])
def test_initialise_leaves_other_starts_alone(start):
    mixing = InvertibleConv(5, start=start)
    before = mixing.weight.detach().clone()
    mixing.initialise(data(5).float())
    assert torch.equal(mixing.weight, before)


def test_coupling_keeps_the_first_half_and_follows_its_formula():
    raw = data(6, seed=5)
    x = data(5)
    z, logdet = Coupling(_Constant(raw), eps=1e-4)(x)
    scale = torch.sigmoid(raw[:, 1::2] + 2) + 1e-4
    assert torch.equal(z[:, :2], x[:, :2])
    assert torch.allclose(z[:, 2:], (x[:, 2:] + raw[:, 0::2]) * scale, atol=1e-13)
    assert torch.allclose(logdet, scale.log().flatten(1).sum(1), atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_extreme_conditioner_outputs_stay_finite(eps):
    raw = torch.tensor([-60.0, -20.0, 20.0, 80.0]).repeat_interleave(2).view(1, 8, 1, 1).expand(1, 8, 2, 3)
    injector = Injector(_Constant(raw), eps=eps)
    x = torch.randn(1, 4, 2, 3)
    z, logdet = injector(x, x)
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    expected = torch.log(torch.sigmoid(raw[:, 1::2].double() + 2) + eps).sum()
    assert torch.allclose(logdet.double(), expected, rtol=1e-5)


def test_split_whitens_with_the_predicted_prior():
    raw = data(4, seed=5)
    x = data(4)
    (kept, latent), logdet = Split(_Constant(raw))(x)
    assert torch.equal(kept, x[:, :2])
    assert torch.allclose(latent * raw[:, 1::2].exp() + raw[:, 0::2], x[:, 2:], atol=1e-12)
    # the density of what left, under N(mean, exp(log_std)^2), is the standard normal's plus logdet
    density = torch.distributions.Normal(raw[:, 0::2], raw[:, 1::2].exp()).log_prob(x[:, 2:]).flatten(1).sum(1)
    whitened = torch.distributions.Normal(0, 1).log_prob(latent).flatten(1).sum(1)
    assert torch.allclose(whitened + logdet, density, atol=1e-10)


class _Constant(nn.Module):
    """A conditioner whose output is given."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x):
        return self.raw


@pytest.mark.parametrize(
    "transform",
    [
        Coupling(network(2 + 3, 6), eps=1e-4),
        Injector(network(3, 10)),
        Chain(ActNorm(5), InvertibleConv(5, start="principal"), Coupling(network(2 + 3, 6))),
    ],
    ids=lambda t: type(t).__name__,
)
def test_initialise_returns_the_batch_that_forward_then_makes(transform):
    transform = perturbed(transform).double()
    x, cond = data(5), data(3, seed=2)
    assert torch.equal(transform.initialise(x, cond), transform(x, cond)[0])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_injector_refuses_a_missing_condition():
    with pytest.raises(ConditionError, match="4x6 grid; got none"):
        Injector(network(3, 10))(data(5).float())


@pytest.mark.parametrize("kind", [Injector, Coupling])
@pytest.mark.parametrize("wrong", [{"height": 2}, {"width": 3}, {"batch": 1}], ids=str)
def test_a_condition_of_another_size_is_refused_with_the_numbers(kind, wrong):
    transform = kind(network(5, 10 if kind is Injector else 6))
    cond = data(5 if kind is Injector else 3, **wrong).float()
    with pytest.raises(
        ConditionError, match=f"{cond.shape[0]} items on a {cond.shape[2]}x{cond.shape[3]} grid"
    ) as caught:
        transform(data(5).float(), cond)
    assert "2 items on a 4x6 grid" in str(caught.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.half(),
        lambda t: t.bfloat16(),
        lambda t: t.to(torch.float16),
        lambda t: t.to(dtype=torch.bfloat16),
        lambda t: t.to("cpu", torch.float16),
        lambda t: t.to(torch.zeros(1, dtype=torch.bfloat16)),
    ],
    ids=["half", "bfloat16", "to float16", "to dtype", "to device and dtype", "to tensor"],
)
def test_low_precision_is_refused(ask):
    chain = Chain(ActNorm(3), Coupling(network(1, 4)))
    with pytest.raises(PrecisionError, match=r"float32 or float64; got torch\.b?float16"):
        ask(chain)
    assert {p.dtype for p in chain.parameters()} == {torch.float32}


def test_wider_precision_and_devices_are_allowed():
    chain = Chain(ActNorm(3))
    assert chain.to(torch.float64) is chain
    assert chain.to("cpu") is chain
    assert chain.transforms[0].bias.dtype == torch.float64
