"""Every transform obeys the law; and each does what its docstring says."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from builders import move_buffers
from flowcore.testing import check, perturbed, tensors
from torch import nn

from flowcore import ConditionError, FlowError, PrecisionError, ShapeError
from flowcore.flows.networks.conditioner import Conditioner, FixedPrior, MLPConditioner, TablePrior, ZeroConv
from flowcore.flows.transforms import (
    ActNorm,
    BatchNorm,
    Center,
    Chain,
    ChannelWhitening,
    CheckerboardSqueeze,
    ConditionOnChannels,
    Coupling,
    FixedAffine,
    Flatten,
    Haar,
    Injector,
    InterpolatedDetails,
    InvertibleConv,
    LevelCondition,
    Logit,
    Permutation,
    SignedActNorm,
    Split,
    Squeeze,
    Standardize,
    Unsqueeze,
    use_batch_moments,
)


def data(channels=3, height=4, width=6, batch=2, seed=1):
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def network(inputs, outputs, **options):
    return Conditioner(inputs, 6, outputs, **options)


def local(inputs, outputs):
    """A network that sees nothing but the pixel it is at."""
    return nn.Sequential(nn.Conv2d(inputs, 6, 1), nn.Tanh(), nn.Conv2d(6, outputs, 1)).double()


def mixed(channels, batch=4):
    """Pixels whose channels depend on each other and are not centered."""
    mixing = data(channels, height=channels, width=1, batch=1, seed=3)[0]
    return F.conv2d(data(channels, batch=batch), mixing.view(channels, channels, 1, 1)) + 0.7


def reached(transform, x, channel, row, column):
    """Positions, as (row, column), whose share of the logdet changes with one value of x."""
    moved = x.clone()
    moved[:, channel, row, column] += 1
    before, after = (transform.forward_with_logdet_map(image)[1] for image in (x, moved))
    return {(i, j) for _, i, j in (before != after).nonzero().tolist()}


def plain(transform, x):
    """A case without networks, in which autocast must change nothing at all."""
    return transform, x, None, False


def features(channels):
    return LevelCondition(features=data(channels, seed=2))


def lr_mean(channels):
    return LevelCondition(lr_mean=data(channels, seed=2))


def invertible_conv(lu, start):
    mixing = InvertibleConv(5, lu=lu, start=start).double()
    mixing.initialize(data(5, batch=4))
    return plain(mixing, data(5))


def whitening(channels=3):
    transform = ChannelWhitening(channels).double()
    transform.initialize(mixed(channels))
    return transform


def signed_actnorm(*scales):
    actnorm = SignedActNorm(len(scales))
    with torch.no_grad():
        actnorm.scale.copy_(torch.tensor(scales))
    return actnorm


# Makers of cases. Couplings, injectors and splits, with networks of every kind, are in the models of test_models.py.
CASES = {
    "squeeze": lambda: plain(Squeeze(), data()),
    "checkerboard squeeze": lambda: plain(CheckerboardSqueeze(), data()),
    "unsqueeze to odd multiples": lambda: plain(Unsqueeze(), data(4, 3, 5)),
    "flatten": lambda: plain(Flatten(3, 3, 5), data(3, 3, 5)),
    "haar": lambda: plain(Haar(), data()),
    "interpolated details": lambda: plain(InterpolatedDetails(), data(8)),
    "permutation": lambda: plain(Permutation(torch.tensor([3, 0, 4, 1, 2])), data(5)),
    "fixed affine": lambda: plain(FixedAffine(0.3, 0.7), data()),
    "logit": lambda: plain(Logit(0.05), data().sigmoid()),
    "actnorm": lambda: plain(ActNorm(5), data(5)),
    "scaled actnorm": lambda: plain(ActNorm(5, log_factor=3.0), data(5)),
    "signed actnorm": lambda: plain(signed_actnorm(1.3, -0.7, 0.4, -2.1, 1.0), data(5)),
    "batch norm": lambda: plain(move_buffers(BatchNorm(5)), data(5)),
    "channel whitening": lambda: plain(whitening(), data()),
    **{
        f"invertible conv {pair}": functools.partial(invertible_conv, *pair)
        for pair in itertools.product((False, True), ("orthogonal", "principal", "reverse"))
    },
    "standardize by a fixed prior": lambda: plain(Standardize(FixedPrior(-2.0)), data(5)),
    "standardize by a table": lambda: plain(Standardize(TablePrior(5, 4, 6)), data(5)),
    "center around a mean": lambda: (Center(), data(5), lr_mean(5), False),
    # halves of an odd number of channels
    "coupling": lambda: (Coupling(network(3 + 3, 4), swap=True), data(5), features(3), True),
    "split": lambda: (Split(ZeroConv(2, 6)), data(5), None, True),
}


@pytest.mark.parametrize("name", CASES)
def test_transforms_obey_the_law(name):
    transform, x, cond, networks = CASES[name]()
    check(transform, x, cond, networks=networks)
    started = perturbed(transform).double()
    with torch.no_grad():  # and the first batch comes out as forward then makes it
        for one, two in zip(tensors(started.initialize(x, cond)), tensors(started(x, cond)[0]), strict=True):
            assert torch.equal(one, two)


def test_channel_whitening_initialize_gives_mean_0_and_the_identity_as_covariance():
    whitening = ChannelWhitening(3).double()
    for _ in range(2):  # the second time it measures the data, not what the first time made of them
        pixels = whitening.initialize(mixed(3)).transpose(0, 1).flatten(1)
        assert pixels.mean(1).abs().max() < 1e-12
        assert torch.allclose(torch.cov(pixels), torch.eye(3, dtype=torch.float64), atol=1e-5)
    x = data(1).repeat(1, 3, 1, 1)  # equal channels, and a constant one
    x[:, 2] = 0.25
    assert torch.allclose(whitening.float().inverse(whitening.initialize(x.float())), x.float(), atol=1e-3)
    assert whitening.state_dict().keys() == {"mean", "matrix"}


@pytest.mark.parametrize(
    "actnorm", [ActNorm(5), ActNorm(5, log_factor=3.0), SignedActNorm(5)], ids=["usual", "log3", "signed"]
)
def test_the_start_of_an_actnorm_survives_a_constant_batch(actnorm):
    assert actnorm.double().initialize(torch.full((4, 5, 4, 6), 0.25).double()).abs().max() == 0
    assert all(parameter.isfinite().all() for parameter in actnorm.parameters())


@pytest.mark.parametrize("lu", [False, True], ids=["plain", "lu"])
def test_starts_of_an_invertible_conv(lu):
    identity = torch.eye(4, dtype=torch.float64)
    orthogonal = InvertibleConv(4, lu=lu).double()
    assert torch.allclose(orthogonal.matrix() @ orthogonal.matrix().T, identity, atol=1e-5)
    assert orthogonal(data(4))[1].abs().max() < 1e-4
    reverse = InvertibleConv(4, lu=lu, start="reverse").double()
    assert torch.allclose(reverse(data(4))[0], data(4).flip(1), atol=1e-12)
    for mixing in (orthogonal, reverse):  # these do not depend on data
        before = mixing.matrix().detach()
        mixing.initialize(data(4))
        assert torch.equal(mixing.matrix(), before)
    principal = InvertibleConv(4, lu=lu, start="principal").double()
    x = F.conv2d(data(4, batch=8, height=8), data(4, height=4, width=1, batch=1)[0].view(4, 4, 1, 1))
    covariance = torch.cov(principal.initialize(x).transpose(0, 1).flatten(1))
    variances = covariance.diagonal()
    assert torch.allclose(covariance, torch.diag(variances), atol=1e-9)
    assert torch.equal(variances, variances.sort(descending=True)[0])
    assert torch.allclose(principal.matrix() @ principal.matrix().T, identity, atol=1e-9)


def test_extreme_conditioner_outputs_stay_finite():
    raw = torch.tensor([-60.0, -20.0, 20.0, 80.0]).repeat_interleave(2).view(1, 8, 1, 1).expand(1, 8, 2, 3)
    x = torch.randn(1, 4, 2, 3)
    for eps in (0.0, 1e-4):
        z, logdet = Injector(_Constant(raw), eps=eps)(x, LevelCondition(features=x))
        assert z.isfinite().all()
        expected = torch.log(torch.sigmoid(raw[:, 1::2].double() + 2) + eps).sum()
        assert torch.allclose(logdet.double(), expected, rtol=1e-5)


class _Constant(nn.Module):
    """A conditioner with a fixed output."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x, labels=None):
        return self.raw


def test_inside_batch_moments_the_batch_is_normalized_by_its_own_and_outside_by_the_running_ones():
    norm = move_buffers(BatchNorm(3)).double().train()
    x = 3 * data(batch=4) + 7
    before = norm.mean.clone(), norm.var.clone()
    with use_batch_moments(norm):
        z, logdet = norm(x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    assert torch.allclose(z, F.batch_norm(x, None, None, training=True, eps=1e-4), atol=1e-12)
    # the logdet is that of a map with these moments, held fixed
    assert torch.allclose(logdet, (-12 * torch.log(var + 1e-4).sum()).expand(4), atol=1e-10)  # 4 * 6 / 2
    # the running moments follow, a twentieth of the way
    assert torch.allclose(norm.mean, 0.95 * before[0] + 0.05 * mean, atol=1e-12)
    assert torch.allclose(norm.var, 0.95 * before[1] + 0.05 * var, atol=1e-12)
    with pytest.raises(RuntimeError), use_batch_moments(norm):
        raise RuntimeError
    state = {name: t.clone() for name, t in norm.state_dict().items()}
    z, _ = norm(data())
    assert torch.allclose(z, F.batch_norm(data(), state["mean"], state["var"], eps=1e-4), atol=1e-12)
    assert all(torch.equal(t, state[name]) for name, t in norm.state_dict().items())


def test_gradients_flow_through_batch_moments():
    norm = BatchNorm(3).double()
    x = data().requires_grad_()
    with use_batch_moments(norm):
        z, logdet = norm(x)
    (gradient,) = torch.autograd.grad((z * data(seed=3)).sum() + logdet.sum(), x)
    expected_z = F.batch_norm(x, None, None, training=True, eps=1e-4)
    logs = -0.5 * torch.log(x.var((0, 2, 3), correction=0) + 1e-4)
    (expected,) = torch.autograd.grad((expected_z * data(seed=3)).sum() + 2 * 24 * logs.sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-12)
    assert not norm.mean.requires_grad


def test_the_scaling_that_no_published_model_has_follows_its_formula():
    x, raw = data(5), 2 * data(10, seed=5)
    logs = 1.2 * 0.636 * torch.atan(raw[:, 1::2])
    z, logdet = Injector(_Constant(raw), scaling="atan")(x, features(3))
    assert torch.allclose(z, (x + raw[:, 0::2]) * logs.exp(), atol=1e-12)
    assert torch.allclose(logdet, logs.flatten(1).sum(1), atol=1e-12)


def test_invalid_permutations_are_refused():
    for order in ([0, 0, 1], [1, 2, 3], [0, -1, 1], [[0, 1], [1, 0]]):
        with pytest.raises(FlowError, match="once"):
            Permutation(torch.tensor(order))


def test_logit_of_black_and_white_is_finite_and_its_inverse_bounded():
    logit = Logit(0.05)
    z, logdet = logit(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    ends = logit.inverse(torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2))
    assert torch.allclose(ends.flatten(), torch.tensor([-0.05 / 0.9, 1 + 0.05 / 0.9]))


def test_logdet_of_a_prior_lies_where_its_deviations_do():
    raw = data(6, seed=5)
    expected = -raw[:, 1::2].sum(1)
    assert torch.allclose(Standardize(_Constant(raw)).forward_with_logdet_map(data())[1], expected, atol=1e-12)
    assert torch.allclose(Split(_Constant(raw)).forward_with_logdet_map(data(6))[1], expected, atol=1e-12)
    table = perturbed(TablePrior(3, 4, 6)).double()
    at_places = Standardize(table).forward_with_logdet_map(data())[1]
    assert torch.allclose(at_places, -table.log_std.sum(1).expand(2, -1, -1), atol=1e-12)


def test_logdet_of_pixelwise_maps_is_spread_evenly():
    flat = Chain(Flatten(5, 4, 6), perturbed(Coupling(MLPConditioner(60, 6, 120))))
    norms = perturbed(ActNorm(5, log_factor=3.0)), perturbed(SignedActNorm(5)), move_buffers(BatchNorm(5))
    for transform in (*norms, perturbed(InvertibleConv(5)), FixedAffine(0.3, 0.7), whitening(5), flat):
        amounts = transform.double().forward_with_logdet_map(data(5))[1]
        expected = transform(data(5))[1][:, None, None] / 24
        assert expected.abs().min() > 1e-3
        assert torch.allclose(amounts, expected.expand(2, 4, 6), atol=1e-12)


def test_logdet_in_a_chain_covers_the_pixels_of_its_grid():
    kept = ConditionOnChannels(2, Coupling(local(1 + 2, 4), scaling="exp"))
    assert reached(kept, data(5), 1, 2, 4) == {(2, 4)}  # channel 1 is kept, and conditions
    assert reached(Chain(Squeeze(), Unsqueeze(), Coupling(local(1, 2))), data(2), 0, 1, 4) == {(1, 4)}
    x = data(1, 4, 8)  # value (0, 5) is in an upper row, so among the channels that condition
    chain = Chain(Squeeze(), Coupling(local(2, 4)), CheckerboardSqueeze(), Coupling(local(8, 16))).double()
    assert reached(chain, x, 0, 0, 5) == {(i, j) for i in range(4) for j in range(4, 8)}
    first = Chain(*chain.parts()[:2])
    assert reached(first, x, 0, 0, 5) == {(0, 4), (0, 5), (1, 4), (1, 5)}
    shares = first.forward_with_logdet_map(x)[1]
    assert torch.equal(shares, shares[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_logdet_of_a_finer_grid_is_summed():
    coupling, x = Coupling(local(1, 4)), data(12)
    fine = coupling.forward_with_logdet_map(Unsqueeze()(x)[0])[1]  # (B, 8, 12)
    amounts = Chain(Unsqueeze(), coupling).forward_with_logdet_map(x)[1]
    assert torch.allclose(amounts[:, 1, 2], fine[:, 2:4, 4:6].sum((1, 2)), atol=1e-12)


@pytest.mark.parametrize("norm", [ActNorm(4), SignedActNorm(4), BatchNorm(4)], ids=lambda t: type(t).__name__)
def test_norms_refuse_what_would_broadcast(norm):
    for call, shape in itertools.product((norm, norm.inverse), ((8, 4), (4, 6, 4), (2, 1, 6, 4))):
        with pytest.raises(ShapeError):
            call(torch.ones(shape))


def test_an_image_without_details_beyond_interpolation_is_smooth():
    """Zeros for the details give the enlarged means, not blocks."""
    means = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = torch.cat([2 * means, means.new_zeros(1, 6, 5, 6)], dim=1)
    image = Haar().inverse(InterpolatedDetails().inverse(z))
    enlarged = F.interpolate(means, scale_factor=2.0, mode="bicubic")
    assert torch.allclose(F.avg_pool2d(image, 2), means)
    correction = F.interpolate(means - F.avg_pool2d(enlarged, 2), scale_factor=2.0, mode="nearest")
    assert torch.allclose(image, enlarged + correction)


def test_odd_sides_are_refused():
    for transform, (height, width) in itertools.product((Squeeze(), CheckerboardSqueeze(), Haar()), ((5, 6), (4, 7))):
        with pytest.raises(ShapeError):
            transform(data(height=height, width=width))


def test_condition_of_another_size_is_refused():
    on_channels = ConditionOnChannels(2, Injector(network(3, 6)))
    takers = (Injector(network(5, 10)), 5), (Coupling(network(5, 6)), 3), (on_channels, 1)
    for (transform, channels), wrong in itertools.product(takers, ({"height": 2}, {"width": 3}, {"batch": 1})):
        cond = data(channels, **wrong).float()
        with pytest.raises(ConditionError):
            transform(data(5).float(), LevelCondition(features=cond))
    with pytest.raises(ConditionError):
        Injector(network(3, 10))(data(5).float())


def test_low_precision_is_refused_and_float64_is_not():
    chain = Chain(ActNorm(3), Coupling(network(1, 4)))
    for ask in (
        chain.half,
        chain.bfloat16,
        lambda: chain.to(dtype=torch.bfloat16),
        lambda: chain.to("cpu", torch.float16),
        lambda: chain.to(torch.zeros(1, dtype=torch.bfloat16)),
    ):
        with pytest.raises(PrecisionError):
            ask()
        assert {p.dtype for p in chain.parameters()} == {torch.float32}
    assert chain.to(torch.float64).to("cpu") is chain
    assert {p.dtype for p in chain.parameters()} == {torch.float64}
