"""Every rewrite is exact: folded parts against what they stand for, in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from flowcore.condition import MultiScaleFeatures
from flowcore.inference import fold
from flowcore.inference.fold import (
    ConditionConv,
    FoldedConv,
    FoldedEncoder,
    Mixing,
    Network,
    StreamedConditionConv,
    UnsplitConditioner,
    canvas,
    convolve_enlarged,
    folded_weights,
    mixing,
    on_canvas,
    rows,
    rows_of,
    strips,
)
from flowcore.networks import (
    Conditioner,
    DenseConditioner,
    PlainConditioner,
    ResidualConditioner,
    RRDBEncoder,
    ScaledConv,
)
from flowcore.transforms import (
    ActNorm,
    BatchNorm,
    Chain,
    ChannelWhitening,
    Coupling,
    InvertibleConv,
    Permutation,
    SignedActNorm,
    Squeeze,
)

from .laws import perturbed

LIKE = torch.zeros((), dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told_on_canvas(told, parts, strip_bytes):
    (result,) = on_canvas(told, parts, strip_bytes)
    return result


def close(came, expected, tolerance=1e-12):
    assert came.shape == expected.shape
    assert came.dtype == expected.dtype
    assert expected.isfinite().all()
    assert float((came - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


# --- convolutions of enlarged features --------------------------------------------------------------------------------


def ordinary(x, weight, factor, top, bottom, bias):
    """Enlarge, and convolve; rows beyond the image see zeros like those at its border."""
    beyond = 2 * factor
    big = F.pad(F.interpolate(x, scale_factor=factor, mode="nearest"), (0, 0, beyond, beyond))
    return F.conv2d(big, weight, bias, padding=1)[:, :, beyond + top : beyond + bottom]


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(5, 3), (4, 1), (1, 1), (1, 4), (2, 7)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_enlarged_features_are_convolved_without_enlarging_them(factor, size, biased):
    x, weight = random(2, 3, *size), random(4, 3, 3, 3, seed=1)
    bias = random(4, seed=2) if biased else None
    given = [t.clone() for t in (x, weight)]
    whole = F.conv2d(F.interpolate(x, scale_factor=factor, mode="nearest"), weight, bias, padding=1)
    close(convolve_enlarged(x, weight, factor, 0, factor * size[0], bias), whole)
    for top in range(-1, size[0] + 1):
        for bottom in range(top + 1, size[0] + 2):
            strip = convolve_enlarged(x, weight, factor, factor * top, factor * bottom, bias)
            close(strip, ordinary(x, weight, factor, factor * top, factor * bottom, bias))
    assert torch.equal(x, given[0])
    assert torch.equal(weight, given[1])


@pytest.mark.parametrize("strip_bytes", [1, 3000, 2**30], ids=["low", "some", "whole"])
@pytest.mark.parametrize("factors", [(1,), (1, 2), (1, 4), (2, 1), (4, 2, 1), (8,)], ids=str)
def test_told_convolutions_see_all_parts_in_any_strips(factors, strip_bytes):
    height, width = 72, 8
    sources = tuple((random(2, 2, height // f, width // f, seed=f), f) for f in factors)
    parts = MultiScaleFeatures(sources=sources)
    weight, bias = random(5, 2 * len(factors), 3, 3, seed=3), random(5, seed=4)
    expected = F.conv2d(parts.whole(), weight, bias, padding=1)
    told = ConditionConv(weight, bias, torch.float64)
    close(told_on_canvas(told, parts, strip_bytes), expected)
    assert told.outputs == 5
    for top, bottom in ((0, 8), (8, 24), (64, 72)):
        close(told(sources, top, bottom), expected[:, :, top:bottom])


@pytest.mark.parametrize("strip_bytes", [1, 20_000, 2**30], ids=["low", "some", "whole"])
@pytest.mark.parametrize("factors", [(1,), (1, 2), (2, 4), (8, 1)], ids=str)
def test_rows_are_told_as_they_are_asked_for(factors, strip_bytes):
    height, width, reach = 72, 8, 2
    sources = tuple((random(2, 2, height // f, width // f, seed=f), f) for f in factors)
    parts, calls = MultiScaleFeatures(sources=sources), []
    told = ConditionConv(random(5, 2 * len(factors), 3, 3, seed=3), random(5, seed=4), torch.float64)
    expected = told_on_canvas(told, parts, 2**30)
    told.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[1:3]))
    for each in (1, 5, 72):
        asked = StreamedConditionConv(told, parts, reach, strip_bytes)
        calls.clear()
        for top, bottom in strips(height, each):
            start, stop = top - reach, bottom + reach
            came = asked(start, stop)
            assert came.shape[2] == stop - start
            inside = slice(max(start, 0), min(stop, height))
            close(came[:, :, inside.start - start : inside.stop - start], expected[:, :, inside])
        assert sum(bottom - top for top, bottom in calls) <= height + len(calls) * 2 * (reach + max(factors))
        assert len(calls) == 1 or strip_bytes < 2**30
        close(asked(3, 9), expected[:, :, 3:9])  # up again


def test_told_convolutions_together_are_the_single_ones():
    parts = MultiScaleFeatures(sources=((random(2, 3, 9, 4), 1),))
    single = [ConditionConv(random(n, 3, 3, 3, seed=n), random(n, seed=-n), torch.float64) for n in (2, 5, 1)]
    together = ConditionConv.together(single)
    assert together.outputs == 8
    close(told_on_canvas(together, parts, 1), torch.cat([told_on_canvas(conv, parts, 1) for conv in single], dim=1))


def test_a_condition_that_was_expanded_is_convolved_once():
    told = ConditionConv(random(4, 3, 3, 3), random(4, seed=1), torch.float64)
    one = random(1, 3, 9, 4)
    result = told_on_canvas(told, MultiScaleFeatures(sources=((one.expand(5, -1, -1, -1), 1),)), 1)
    assert result.shape[0] == 1
    close(result, F.conv2d(one, told.weight, told.bias, padding=1))
    two = random(2, 3, 9, 4)
    assert told_on_canvas(told, MultiScaleFeatures(sources=((two, 1),)), 1).shape[0] == 2


# --- rows and strips --------------------------------------------------------------------------------------------------


def test_rows_beyond_the_image_are_zeros():
    x = random(2, 3, 4, 5)
    padded = F.pad(x, (0, 0, 3, 3))
    for top in range(-3, 5):
        for bottom in range(max(top, 0) + 1, 8):
            if top < 4:
                assert torch.equal(rows(x, top, bottom), padded[:, :, top + 3 : bottom + 3])
    assert rows(x, 1, 3).data_ptr() == x[:, :, 1].data_ptr()  # a view where nothing is missing


@pytest.mark.parametrize("height", [1, 7, 8, 9, 16, 17, 100])
@pytest.mark.parametrize("each", [1, 8, 9, 200])
def test_strips_cover_every_row_once(height, each):
    found = strips(height, each)
    assert [row for top, bottom in found for row in range(top, bottom)] == list(range(height))
    assert all(bottom - top == each for top, bottom in found[:-1])


def test_strips_are_as_high_as_memory_lets_them_be_but_not_too_low():
    assert rows_of(100, 10_000) == 100
    assert rows_of(100, 10_099) == 100
    assert rows_of(100, 1) == 8
    assert rows_of(0, 50) == 50


def test_a_canvas_is_like_what_it_is_for():
    like = random(2, 3, 4, 5).float()
    assert canvas(like, 7).shape == (2, 7, 4, 5)
    assert canvas(like, 7).dtype == torch.float32


# --- mixings ----------------------------------------------------------------------------------------------------------


def measured(part):
    """Buffers away from their start."""
    if isinstance(part, BatchNorm):
        part.mean.copy_(0.3 * random(*part.mean.shape))
        part.var.copy_(0.5 + random(*part.var.shape).abs())
    if isinstance(part, ChannelWhitening):
        part.mean.copy_(random(*part.mean.shape))
        part.matrix.copy_(torch.eye(len(part.mean)) - 0.3 * random(*part.matrix.shape))
    return part


def alike():
    """One of everything that treats all pixels alike, of 4 channels."""
    torch.manual_seed(1)
    signed = SignedActNorm(4)
    parts = {
        "actnorm": ActNorm(4),
        "log3": ActNorm(4, log_factor=3.0),
        "signed": signed,
        "batch norm": BatchNorm(4),
        "batch norm, large eps": BatchNorm(4, eps=0.1),
        "conv": InvertibleConv(4),
        "lu": InvertibleConv(4, lu=True),
        "principal": InvertibleConv(4, start="principal"),
        "reverse": InvertibleConv(4, start="reverse"),
        "whitening": ChannelWhitening(4),
        "permutation": Permutation(torch.tensor([2, 0, 3, 1])),
    }
    parts = {name: measured(perturbed(part, 0.2).double()) for name, part in parts.items()}
    with torch.no_grad():
        parts["signed"].scale[1] *= -1
    return parts


@pytest.mark.parametrize("name", alike())
def test_a_mixing_is_the_transform_that_it_stands_for(name):
    part, x = alike()[name], random(2, 4, 5, 3)
    folded = mixing(part, LIKE)
    with torch.no_grad():
        z, logdet = part(x)
        close(folded.forward(x), z)
        close(torch.full((2,), folded.log_det * 15, dtype=torch.float64), logdet.expand(2))
        close(folded.inverse(x), part.inverse(x))
        close(folded.inverse(folded.forward(x)), x)


@pytest.mark.parametrize("second", alike())
@pytest.mark.parametrize("first", ["log3", "whitening", "permutation", "lu"])
def test_mixings_compose(first, second):
    one, two, x = alike()[first], alike()[second], random(2, 4, 5, 3)
    both = mixing(two, LIKE).after(mixing(one, LIKE), LIKE)
    chain = Chain(one, two)
    with torch.no_grad():
        z, logdet = chain(x)
        close(both.forward(x), z)
        close(torch.full((2,), both.log_det * 15, dtype=torch.float64), logdet)
        close(both.inverse(z), x, 1e-11)
        three = mixing(alike()["conv"], LIKE).after(both, LIKE)
        close(three.inverse(alike()["conv"](z)[0]), x, 1e-11)


def test_a_mixing_is_inverted_in_float64_and_rounded_once():
    like = torch.zeros((), dtype=torch.float32)
    matrix = torch.eye(6, dtype=torch.float64) + 0.3 * random(6, 6)
    bias = random(6, seed=1)
    exact = Mixing(matrix, bias, torch.linalg.slogdet(matrix)[1], LIKE)
    rounded = Mixing(matrix, bias, torch.linalg.slogdet(matrix)[1], like)
    for one, two in zip((*exact.there, *exact.back), (*rounded.there, *rounded.back), strict=True):
        assert torch.equal(one.float(), two)
    twice = rounded.after(rounded, like)
    assert torch.equal(twice.back[0], exact.after(exact, LIKE).back[0].float())  # and composed before it is rounded


@pytest.mark.parametrize("part", [Squeeze(), Coupling(Conditioner(2, 3, 4)), Chain(ActNorm(4))], ids=lambda p: type(p))
def test_other_transforms_are_no_mixings(part):
    assert mixing(part, LIKE) is None


# --- networks ---------------------------------------------------------------------------------------------------------

OWN, COND, OUT = 3, 4, 6
NETWORKS = {
    "usual": lambda: Conditioner(OWN + COND, 5, OUT),
    "log3": lambda: Conditioner(OWN + COND, 5, OUT, log_factor=3.0),
    "shallow": lambda: Conditioner(OWN + COND, 5, OUT, layers=0),
    "deep": lambda: Conditioner(OWN + COND, 5, OUT, layers=2, kernel=3),
    "plain": lambda: PlainConditioner(OWN + COND, 5, OUT),
    "plain, not scaled": lambda: PlainConditioner(OWN + COND, 5, OUT, scaled=False),
    "prior": lambda: ScaledConv(OWN + COND, OUT),
}


def network_of(name):
    torch.manual_seed(3)
    return perturbed(NETWORKS[name](), 0.3).double()


def expected_of(network, x, offset):
    with torch.no_grad():
        raw = network(x)
    return raw if offset is None else torch.cat([raw[:, 0::2], raw[:, 1::2] + offset], dim=1)


@pytest.mark.parametrize("offset", [None, 0.0, 2.0], ids=str)
@pytest.mark.parametrize("inputs", [OWN + COND, OWN, 0], ids=["own", "both", "condition"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_network_is_its_conditioner_in_any_strips(name, inputs, offset):
    if name == "prior" and inputs == 0:
        pytest.skip("a prior has no condition")
    network, x = network_of(name), random(2, OWN + COND, 7, 3)
    expected = expected_of(network, x, offset)
    folded = Network(folded_weights(network), inputs, offset, torch.float64)
    own = x[:, :inputs] if inputs else None
    held = first = None
    if inputs < OWN + COND:
        held = told_on_canvas(folded.told, MultiScaleFeatures(sources=((x[:, inputs:], 1),)), 1)
        first = partial(rows, held)
    else:
        assert folded.told is None
    given = [None if t is None else t.clone() for t in (own, held)]
    for top in range(7):
        for bottom in range(top + 1, 8):
            close(folded(own, first, top, bottom, 7), expected[:, :, top:bottom])
    for was, now in zip(given, (own, held), strict=True):
        assert was is None or torch.equal(was, now)
    assert folded.outputs == OUT
    assert folded.widest == (OUT if name == "prior" else max(5, OUT))


@torch.no_grad()
def test_the_condition_of_one_serves_several():
    network = network_of("deep")
    folded = Network(folded_weights(network), OWN, 2.0, torch.float64)
    own, cond = random(3, OWN, 9, 4), random(1, COND, 9, 4, seed=1)
    first = StreamedConditionConv(folded.told, MultiScaleFeatures(sources=((cond, 1),)), folded.reach, 1)
    expected = expected_of(network, torch.cat([own, cond.expand(3, -1, -1, -1)], dim=1), 2.0)
    close(folded(own, first, 2, 9, 9), expected[:, :, 2:])


def test_a_network_reads_no_row_that_it_does_not_need():
    folded = Network(folded_weights(network_of("deep")), OWN + COND, 2.0, torch.float64)
    x = random(1, OWN + COND, 40, 3)
    expected = folded(x, None, 16, 20, 40)
    reach = 4  # four 3x3 convolutions
    assert folded.reach + folded.own.reach == reach
    torn = x.clone()
    torn[:, :, : 16 - reach] = math.nan
    torn[:, :, 20 + reach :] = math.nan
    assert torch.equal(folded(torn, None, 16, 20, 40), expected)


@pytest.mark.parametrize(
    "network",
    [
        Conditioner(4, 4, 4, pooled=True),
        Conditioner(4, 4, 4, edge="ones"),
        Conditioner(4, 4, 4, edge="flag"),
        PlainConditioner(4, 4, 4, edge="ones"),
        ScaledConv(4, 4, edge="flag"),
        ScaledConv(0, 4),
        DenseConditioner(4, 4, 4),
        ResidualConditioner(4, 4, 4, blocks=1, double=False, rescale=1.0),
    ],
    ids=["pooled", "ones", "flag", "plain ones", "prior flag", "constant", "dense", "residual"],
)
def test_what_sees_more_than_zeros_beyond_the_border_is_not_folded(network):
    assert folded_weights(network) is None


def test_folded_weights_are_in_float64_whatever_the_network_is_in():
    found = folded_weights(network_of("usual").float())
    assert len(found) == 3
    assert {t.dtype for pair in found for t in pair} == {torch.float64}


WHOLE = {
    "pooled": lambda: Conditioner(4, 5, OUT, pooled=True),
    "ones": lambda: Conditioner(4, 5, OUT, edge="ones"),
    "flag": lambda: Conditioner(4, 5, OUT, edge="flag"),
    "deep flag": lambda: Conditioner(4, 5, OUT, layers=2, kernel=3, edge="flag"),
    "plain": lambda: PlainConditioner(4, 5, OUT),
    "plain ones": lambda: PlainConditioner(4, 5, OUT, edge="ones"),
    "prior flag": lambda: ScaledConv(4, OUT, edge="flag"),
    "dense": lambda: DenseConditioner(4 * 18 * 3, 5, OUT * 18 * 3),
    "residual": lambda: ResidualConditioner(4, 5, OUT // 2, blocks=2, double=True, rescale=0.5),
}


def whole_of(name):
    torch.manual_seed(3)
    return perturbed(WHOLE[name](), 0.3).double().eval()


@pytest.mark.parametrize("strip_bytes", [1, 1500, 2**30], ids=["low", "some", "whole"])
@pytest.mark.parametrize("offset", [None, 0.0, 2.0], ids=str)
@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_any_conditioner_is_itself_when_it_takes_everything_together(name, offset, strip_bytes):
    network = whole_of(name)
    if name == "residual" and offset is not None:
        pytest.skip("goes into a checkerboard coupling, which does without")
    x = random(5, 4, 18, 3)  # strips have 8 rows and more
    if name == "dense":
        x = x.reshape(5, -1, 1, 1)
    given = x.clone()
    expected = network(x) if name == "residual" else expected_of(network, x, offset)
    folded = (
        fold.folded_residual(network, torch.float64, strip_bytes)
        if name == "residual"
        else UnsplitConditioner(network, offset, torch.float64, strip_bytes)
    )
    close(folded(x), expected)
    assert torch.equal(x, given)


@pytest.mark.parametrize("name", ["pooled", "flag", "dense"])
@torch.no_grad()
def test_in_low_precision_it_is_near(name):
    network = whole_of(name).float()
    x = random(2, 4, 18, 3).float()
    x = x.reshape(2, -1, 1, 1) if name == "dense" else x
    low, exact = UnsplitConditioner(network, 2.0, torch.bfloat16)(x), expected_of(network, x, 2.0)
    assert low.dtype == torch.float32
    assert 0 < float((low - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_networks_of_other_kinds_are_left_alone():
    other = torch.nn.Sequential(torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.Tanh())
    assert fold.folded_residual(other, torch.float64, 1) is other
    x = random(2, 4, 5, 3)
    with torch.no_grad():
        close(UnsplitConditioner(other.double(), None, torch.float64)(x), other(x))


def test_a_folded_convolution_pads_columns_and_not_rows():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1).double()
    x = random(2, 3, 6, 5)
    with torch.no_grad():
        close(FoldedConv.of(conv, torch.float64)(x), conv(x)[:, :, 1:-1])


# --- the encoder ------------------------------------------------------------------------------------------------------


def encoder_of(scale, stacked):
    torch.manual_seed(5)
    return perturbed(RRDBEncoder(scale, 3, 4, 3, stacked), 0.1).double()


@pytest.mark.parametrize("picture", [True, False], ids=["picture", "features only"])
@pytest.mark.parametrize("low", [True, False], ids=["low strips", "whole"])
@pytest.mark.parametrize("stacked", [(), (2, 0)], ids=str)
@pytest.mark.parametrize("scale", [2, 4, 8])
@torch.no_grad()
def test_the_folded_encoder_is_the_encoder(scale, stacked, low, picture, monkeypatch):
    monkeypatch.setattr(fold, "DENSE_BYTES", 1 if low else 2**40)
    encoder = encoder_of(scale, stacked)
    folded = FoldedEncoder(encoder, torch.float64, 1 if low else 2**40)
    lr = random(2, 3, 82, 4).sigmoid()  # dense blocks take 40 rows and more: two strips and two rows
    given = lr.clone()
    for levels in range(1, round(math.log2(scale)) + 2):
        features, enlarged = encoder(lr, levels, with_enlargement=picture)
        came, painted = folded(lr, levels, with_enlargement=picture)
        assert len(came) == levels
        for one, two in zip(came, features, strict=True):
            close(one.whole(), two)
            assert one.told is None
        if picture:
            close(painted, enlarged)
        else:
            assert painted is None
    assert torch.equal(lr, given)


@torch.no_grad()
def test_the_folded_encoder_works_in_strips_where_it_says_so(monkeypatch):
    """What lies far above or below cannot reach a strip: a wrong overlap would show, and a whole canvas would not."""
    encoder = encoder_of(2, (0,))
    lr = random(1, 3, 82, 4).sigmoid()
    seen = []
    conv2d = F.conv2d

    def watched(x, *arguments, **options):
        seen.append(x.shape[2])
        return conv2d(x, *arguments, **options)

    monkeypatch.setattr(fold.F, "conv2d", watched)
    heights = {}
    for size in (1, 2**40):
        monkeypatch.setattr(fold, "DENSE_BYTES", size)
        seen.clear()
        FoldedEncoder(encoder, torch.float64, 1)(lr, 1)
        heights[size] = sorted(set(seen))
    assert heights[1] != heights[2**40]
    assert {45, 47, 7} <= set(heights[1])  # 40 rows and 5 below; 5 above, 40 and the last 2; 5 above and 2
