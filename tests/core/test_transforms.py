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
from flowcore.flows.networks.conditioner import Conditioner, FixedPrior, MLPConditioner, TablePrior, TopPrior, ZeroConv
from flowcore.flows.transforms import (
    ActNorm,
    BatchNorm,
    Center,
    Chain,
    ChannelWhitening,
    CheckerboardCoupling,
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
    spread,
    use_batch_moments,
)
from flowcore.models.srflow.rrdb import DenseConvs


def data(channels=3, height=4, width=6, batch=2, seed=1):
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def network(inputs, outputs, **options):
    return Conditioner(inputs, 6, outputs, **options)


def local(inputs, outputs):
    """A network that sees nothing but the pixel it is at."""
    return nn.Sequential(nn.Conv2d(inputs, 6, 1), nn.Tanh(), nn.Conv2d(6, outputs, 1)).double()


def labels(classes=3, batch=2):
    """Weights of classes, a different mixture for each item."""
    return LevelCondition(labels=torch.softmax(data(1, batch, classes, batch=1)[0, 0], dim=1))


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


def by_options(make, *options):
    return {f"{make.__name__}{option}": functools.partial(make, **option) for option in options}


def case(transform, x, cond=None, networks=True):
    return transform, x, cond, networks


def plain(transform, x):
    """A case without networks, in which autocast must change nothing at all."""
    return transform, x, None, False


def features(channels):
    return LevelCondition(features=data(channels, seed=2)) if channels else None


def lr_mean(channels):
    return LevelCondition(lr_mean=data(channels, seed=2))


def coupling(channels=5, cond_channels=0, swap=False, scaling="sigmoid", **options):
    kept = options.get("first", channels // 2)
    other = channels - kept
    kept, other = (other, kept) if swap else (kept, other)
    conditioner = network(kept + cond_channels, other * (1 if scaling == "none" else 2))
    return case(Coupling(conditioner, scaling=scaling, swap=swap, **options), data(channels), features(cond_channels))


def injector(**options):
    return case(Injector(network(3, 10), **options), data(5), features(3))


def checkerboard(shape, parity, mask_channel):
    channels = shape[0]
    conditioner = network(channels + mask_channel, 2 * channels)
    return case(CheckerboardCoupling(conditioner, parity=parity, mask_channel=mask_channel), data(*shape))


def condition_on_channels(kept, cond_channels):
    seen, rest = kept + cond_channels, 5 - kept
    inner = Chain(
        ActNorm(rest),
        Coupling(network(rest // 2 + seen, 2 * (rest - rest // 2)), scaling="atan"),
        Injector(network(seen, 2 * rest), scaling="exp"),
    )
    return case(ConditionOnChannels(kept, inner), data(5), features(cond_channels))


def invertible_conv(initialized=False, **options):
    mixing = InvertibleConv(5, **options).double()
    if initialized:
        mixing.initialize(data(5, batch=4))
    return plain(mixing, data(5))


def split(kept):
    return case(Split(ZeroConv(kept, 2 * (5 - kept)), kept=kept), data(5))


def split_without_prior(kept):
    return plain(Split(None, kept=kept), data(5))


def whitening(channels=3):
    transform = ChannelWhitening(channels).double()
    transform.initialize(mixed(channels))
    assert (transform.get_buffer("matrix") - torch.eye(channels)).abs().max() > 0.1
    return transform


def signed_actnorm(*scales):
    actnorm = SignedActNorm(len(scales))
    with torch.no_grad():
        actnorm.scale.copy_(torch.tensor(scales))
    return actnorm


def options(**choices):
    """All combinations of choices, as keyword arguments."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


# Makers of cases. Chains of these, with networks of every kind, are the models of test_models.py.
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
    **by_options(invertible_conv, *options(lu=[False, True], start=["orthogonal", "principal", "reverse"])),
    **by_options(invertible_conv, *options(lu=[False, True], start=["principal"], initialized=[True])),
    **by_options(coupling, {"channels": 4}, {"eps": 1e-4}, {"channels": 4, "cond_channels": 3}, {"cond_channels": 3}),
    **by_options(coupling, *options(scaling=["atan", "exp", "none"], cond_channels=[3])),
    **by_options(coupling, *options(scaling=["sigmoid", "atan", "exp", "none"], swap=[True])),
    **by_options(coupling, {"scaling": "exp", "swap": True, "cond_channels": 3}),
    **by_options(coupling, *options(scaling=["narrow"], swap=[False, True], first=[1, 3])),
    "coupling with dense convolutions": lambda: case(Coupling(DenseConvs(3, 2, 4), scaling="narrow", first=3), data(5)),
    "standardize by a fixed prior": lambda: plain(Standardize(FixedPrior(-2.0)), data(5)),
    "center around a mean": lambda: (Center(), data(5), lr_mean(5), False),
    # odd sides have more squares of one color
    **by_options(checkerboard, *options(shape=[(1, 3, 5), (3, 4, 3)], parity=[0, 1], mask_channel=[False, True])),
    **by_options(injector, {"eps": 0.0}, {"eps": 1e-4}, {"scaling": "atan"}, {"scaling": "exp"}),
    **by_options(injector, {"scaling": "narrow"}),
    **by_options(condition_on_channels, *options(kept=[1, 2], cond_channels=[0, 3])),
    "split in halves": lambda: case(Split(ZeroConv(2, 6)), data(5)),
    "split without a prior": lambda: plain(Split(None), data(5)),
    **by_options(split, *options(kept=[1, 4])),
    **by_options(split_without_prior, *options(kept=[1, 4])),
    "split by position": lambda: plain(Split(TablePrior(3, 4, 6)), data(5)),
    "split by position and label": lambda: (
        Split(TablePrior(3, 4, 6, classes=3), labeled=True),
        data(5),
        labels(),
        False,
    ),
    "standardize by convolution": lambda: case(Standardize(TopPrior(5)), data(5)),
    "standardize by a table": lambda: plain(Standardize(TablePrior(5, 4, 6)), data(5)),
    "standardize by a table of labels": lambda: (Standardize(TablePrior(5, 4, 6, classes=3)), data(5), labels(), False),
}


@pytest.mark.parametrize("name", CASES)
def test_transforms_obey_the_law(name):
    transform, x, cond, networks = CASES[name]()
    check(transform, x, cond, networks=networks)
    started = perturbed(transform).double()
    with torch.no_grad():  # and the first batch comes out as forward then makes it
        for one, two in zip(tensors(started.initialize(x, cond)), tensors(started(x, cond)[0]), strict=True):
            assert torch.equal(one, two)


def test_condition_on_channels_initializes_its_inner_transform():
    transform = ConditionOnChannels(2, Chain(ActNorm(3), Injector(network(2, 6)))).double()
    transform.initialize(3 * data(5, batch=4) + 7)
    actnorm, injector = transform.transform.parts()
    assert actnorm.bias.abs().min() > 5
    assert injector.conditioner.hidden[0].actnorm.bias.abs().min() > 1e-3  # of what is kept, 7 and its neighbors


def test_channel_whitening_initialize_gives_mean_0_and_the_identity_as_covariance():
    whitening = ChannelWhitening(3).double()
    x = mixed(3)
    z = whitening.initialize(x)
    pixels = z.transpose(0, 1).flatten(1)
    assert pixels.mean(1).abs().max() < 1e-12
    assert torch.allclose(torch.cov(pixels), torch.eye(3, dtype=torch.float64), atol=1e-5)
    # the second time it measures the data, not what the first time made of them
    assert torch.allclose(whitening.initialize(x), z, atol=1e-12)
    x = data(1).repeat(1, 3, 1, 1)  # equal channels, and a constant one
    x[:, 2] = 0.25
    assert torch.allclose(whitening.float().inverse(whitening.initialize(x.float())), x.float(), atol=1e-3)
    assert whitening.state_dict().keys() == {"mean", "matrix"}


@pytest.mark.parametrize(
    "actnorm", [ActNorm(5), ActNorm(5, log_factor=3.0), SignedActNorm(5)], ids=["usual", "log3", "signed"]
)
def test_actnorm_initialize_normalizes_the_batch_and_survives_a_constant_one(actnorm):
    x, usual = 3 * data(5, batch=4) + 7, ActNorm(5).double()
    z = actnorm.double().initialize(x)
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.square().mean(dim=(0, 2, 3)), torch.ones(5, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(z, usual.initialize(x), atol=1e-12)
    assert torch.allclose(actnorm(x)[1], usual(x)[1], atol=1e-9)
    assert actnorm.initialize(torch.full_like(x, 0.25)).abs().max() == 0
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
    """A conditioner with a fixed output; it stores its input."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x, labels=None):
        self.seen, self.labels = x, labels
        return self.raw


def test_transforms_that_start_as_the_identity():
    for transform in (Chain(), BatchNorm(3, eps=0.0), ChannelWhitening(3)):
        z, logdet = transform(data().float())
        assert torch.equal(z, data().float())
        assert torch.equal(logdet, torch.zeros(2))


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


SCALINGS = [
    ("sigmoid", 0.0, lambda r: torch.log(1 / (1 + torch.exp(-(r + 2))))),
    ("sigmoid", 1e-4, lambda r: torch.log(torch.sigmoid(r + 2) + 1e-4)),
    ("atan", 0.0, lambda r: 1.2 * 0.636 * torch.atan(r)),
    ("narrow", 0.0, lambda r: 0.318 * torch.atan(2 * r)),
    ("exp", 0.0, lambda r: r),
]


@pytest.mark.parametrize(("scaling", "eps", "log_scale"), SCALINGS)
def test_scalings_follow_their_formulas(scaling, eps, log_scale):
    x, raw = data(5), 2 * data(10, seed=5)
    logs = log_scale(raw[:, 1::2])
    z, logdet = Injector(_Constant(raw), scaling=scaling, eps=eps)(x, features(3))
    assert torch.allclose(z, (x + raw[:, 0::2]) * logs.exp(), atol=1e-12)
    assert torch.allclose(logdet, logs.flatten(1).sum(1), atol=1e-12)


def test_flatten_lays_pixels_out_row_by_row_and_channel_by_channel():
    x = data(2, 3, 5)
    z, _ = Flatten(2, 3, 5)(x)
    assert z.shape == (2, 30, 1, 1)
    for c, i, j in ((0, 0, 0), (0, 2, 1), (1, 1, 4)):
        assert torch.equal(z[:, (c * 3 + i) * 5 + j, 0, 0], x[:, c, i, j])
    with pytest.raises(ShapeError):
        Flatten(2, 3, 5)(data(2, 5, 3))


def test_invalid_permutations_are_refused():
    for order in ([0, 0, 1], [1, 2, 3], [0, -1, 1], [[0, 1], [1, 0]]):
        with pytest.raises(FlowError, match="each of 0 to C - 1 once") as caught:
            Permutation(torch.tensor(order))
        assert str(order) in str(caught.value)


def test_logit_of_black_and_white_is_finite_and_its_inverse_bounded():
    logit = Logit(0.05)
    z, logdet = logit(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    ends = logit.inverse(torch.tensor([-100.0, 100.0]).view(1, 1, 1, 2))
    assert torch.allclose(ends.flatten(), torch.tensor([-0.05 / 0.9, 1 + 0.05 / 0.9]))


def test_a_split_keeps_half_of_the_channels_or_the_given_number():
    prior, x = _Constant(torch.zeros_like(data(4))), data(5)
    for split, count in ((Split(None), 2), (Split(None, kept=1), 1), (Split(prior, kept=3), 3)):
        assert split.kept_channels(5) == count
        (kept, latent), logdet = split(x)
        assert torch.equal(kept, x[:, :count])
        assert torch.equal(latent, x[:, count:])
        assert not logdet.any()
    assert torch.equal(prior.seen, x[:, :3])


def test_only_a_labeled_split_sees_the_labels():
    for labeled in (False, True):
        prior = _Constant(data(4, seed=5))
        split = Split(prior, labeled=labeled)
        z, _ = split(data(4), labels())
        assert (prior.labels is not None) == labeled
        assert torch.allclose(split.inverse(z, labels()), data(4), atol=1e-12)
        assert (prior.labels is not None) == labeled


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
    coupling = Coupling(local(1, 4))
    x = data(12)
    fine = coupling.forward_with_logdet_map(Unsqueeze()(x)[0])[1]  # (B, 8, 12)
    amounts = Chain(Unsqueeze(), coupling).forward_with_logdet_map(x)[1]
    assert torch.allclose(amounts[:, 1, 2], fine[:, 2:4, 4:6].sum((1, 2)), atol=1e-12)
    check(Chain(Chain(Squeeze(), ActNorm(8)), Chain(Unsqueeze(), Coupling(network(1, 2)))), data(2))


def test_spread_divides_evenly_and_adds_up():
    amounts = torch.tensor([[[6.0, 12.0]]])
    assert spread(amounts, 2, 6).tolist() == [[[1, 1, 1, 2, 2, 2]] * 2]
    assert torch.equal(spread(spread(amounts, 2, 6), 1, 2), amounts)
    assert spread(torch.arange(8.0).view(1, 2, 4), 1, 2).tolist() == [[[0 + 1 + 4 + 5, 2 + 3 + 6 + 7]]]


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
