"""Every rewrite is exact: folded parts against what they stand for, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from builders import move_buffers

from flowcore.inference.conditioners import UnsplitConditioner, folded_conditioner
from flowcore.inference.convolutions import ConditionConv, Conv, StreamedConditionConv, convolve_enlarged
from flowcore.inference.encoders import FoldedDenseBlock
from flowcore.inference.fold import Mixing, PixelMap, conv_weights, pixel_map
from flowcore.inference.strips import StripBudget, canvas, minimum_memory, strips
from flowcore.networks import Conditioner
from flowcore.networks.rrdb import DenseBlock
from flowcore.testing import close, perturbed
from flowcore.transforms import (
    ActNorm,
    BatchNorm,
    Chain,
    ChannelWhitening,
    Coupling,
    InvertibleConv,
    MultiScaleFeatures,
    Permutation,
    SignedActNorm,
    Squeeze,
)

LIKE = torch.zeros((), dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sources_of(factors, height=72, width=8):
    return tuple((random(2, 2, height // f, width // f, seed=f), f) for f in factors)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_enlarged_features_are_convolved_without_enlarging(factor):
    weight = random(4, 3, 3, 3, seed=1)
    for size, bias in (
        ((5, 3), random(4, seed=2)), ((5, 3), None), ((4, 1), None), ((1, 1), None), ((1, 4), None), ((2, 7), None),
    ):  # fmt: skip
        x = random(2, 3, *size)
        expected = F.conv2d(F.interpolate(x, scale_factor=factor, mode="nearest"), weight, bias, padding=1)
        for top, bottom in strips_of_any_height(size[0]):
            strip = convolve_enlarged(x, weight, factor, factor * top, factor * bottom, bias)
            close(strip, expected[:, :, factor * top : factor * bottom])
        assert torch.equal(x, random(2, 3, *size))
    assert torch.equal(weight, random(4, 3, 3, 3, seed=1))


def strips_of_any_height(height):
    return [(top, bottom) for top in range(height) for bottom in range(top + 1, height + 1)]


@pytest.mark.parametrize(
    ("factors", "strip_bytes"), [((8, 1), 1), ((8, 1), 3000), ((8, 1), 2**30), ((1,), 1), ((2, 4), 3000)], ids=str
)
def test_streamed_rows_are_computed_about_once(factors, strip_bytes):
    height, reach = 72, 2
    features, calls = MultiScaleFeatures(sources=sources_of(factors, height)), []
    conv = ConditionConv(random(5, 2 * len(factors), 3, 3, seed=3), random(5, seed=4), torch.float64)
    expected = conv.on_canvas(features, StripBudget(2**30))[0]
    conv.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[1:3]))
    for each in (1, 5, 72):
        streamed = StreamedConditionConv(conv, features, StripBudget(strip_bytes))
        calls.clear()
        for top, bottom in strips(height, each):
            start, stop = max(0, top - reach), min(height, bottom + reach)
            close(streamed(start, stop), expected[:, :, start:stop])
        assert sum(bottom - top for top, bottom in calls) <= height + len(calls) * 2 * (reach + max(factors))
        assert len(calls) == 1 or strip_bytes < 2**30
        close(streamed(3, 9), expected[:, :, 3:9])  # up again


@pytest.mark.parametrize("height", [1, 7, 8, 9, 16, 17, 100])
def test_strips_and_tiles_cover_everything_once(height):
    budgets = [StripBudget(size) for size in (1, 900, 5000, 2**30)]
    for split in (split for budget in budgets for split in (budget.strips, budget.tiles)):
        covered = torch.zeros(5, height)
        for items, top, bottom in split(5, height, 100):
            covered[items, top:bottom] += 1
        assert (covered == 1).all()


def test_strips_and_canvas_follow_the_budget_and_the_model():
    assert StripBudget(10_000).rows(100) == StripBudget(10_099).rows(100) == 100
    assert StripBudget(1).rows(100) == 8
    assert StripBudget(50).rows(0) == 50
    budget, small = StripBudget(), StripBudget(1, 1)
    with minimum_memory():
        assert budget.strip == budget.dense == 2**18
        assert small.strip == small.dense == 1
    assert budget.strip == 2**23
    empty = canvas(random(2, 3, 4, 5).float(), 7)
    assert (empty.shape, empty.dtype) == ((2, 7, 4, 5), torch.float32)


def pixelwise():
    """One of every transform that treats all pixels alike."""
    norms = (ActNorm(4), ActNorm(4, log_factor=3.0), SignedActNorm(4), BatchNorm(4), BatchNorm(4, eps=0.1))
    mixings = (InvertibleConv(4), InvertibleConv(4, lu=True), ChannelWhitening(4))
    return *norms, *mixings, Permutation(torch.tensor([2, 0, 3, 1]))


@torch.no_grad()
def test_mixing_equals_the_transforms_it_stands_for():
    parts, x = [move_buffers(perturbed(part, 0.2).double()) for part in pixelwise()], random(2, 4, 5, 3)
    parts[2].scale[1] *= -1
    for chain in (*([part] for part in parts), parts[:3], parts[3:]):
        mixing = Mixing([pixel_map(part) for part in chain], LIKE)
        z, logdet = Chain(*chain)(x)
        close(mixing(x)[0], z)
        close(mixing(x)[1], logdet.expand(2))
        close(mixing.inverse(z), x, tolerance=1e-11)


def test_mixing_is_multiplied_and_inverted_in_float64_and_rounded_once():
    matrix = torch.eye(6, dtype=torch.float64) + 0.3 * random(6, 6)
    one = PixelMap(matrix, random(6, seed=1), torch.linalg.slogdet(matrix)[1])
    exact, rounded = Mixing([one, one], LIKE), Mixing([one, one], LIKE.float())
    for wide, narrow in zip((*exact.to_latent, *exact.to_data), (*rounded.to_latent, *rounded.to_data), strict=True):
        assert torch.equal(wide.float(), narrow)


def test_other_transforms_are_no_mixings():
    for part in (Squeeze(), Coupling(Conditioner(2, 3, 4)), Chain(ActNorm(4))):
        assert pixel_map(part) is None


OUT = 6


def folded(network, inputs, offset=None, dtype=torch.float64, strip_bytes=2**30):
    with torch.no_grad():
        return folded_conditioner(network, inputs, offset, dtype, StripBudget(strip_bytes))


def test_conditioner_reads_no_row_that_it_does_not_need():
    conditioner = folded(perturbed(Conditioner(7, 5, OUT, layers=2, kernel=3), 0.3).double(), 7, 2.0)
    x = random(1, 7, 40, 3)
    expected = conditioner.strip(x, None, 16, 20, 40)
    reach = 4  # four 3x3 convolutions
    torn = x.clone()
    torn[:, :, : 16 - reach] = math.nan
    torn[:, :, 20 + reach :] = math.nan
    assert torch.equal(conditioner.strip(torn, None, 16, 20, 40), expected)


def test_weights_are_folded_in_float64():
    weights = conv_weights(Conditioner(7, 5, OUT))
    assert len(weights) == 3
    assert {t.dtype for conv in weights for t in conv[:2]} == {torch.float64}


@torch.no_grad()
def test_a_network_of_ones_own_runs_whole():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, OUT, 3, padding=1), torch.nn.Tanh()).double()
    conditioner, x = folded(network, 4, 2.0, strip_bytes=1), random(5, 4, 18, 3)
    assert isinstance(conditioner, UnsplitConditioner)
    raw = network(x)
    close(conditioner(x), torch.cat([raw[:, 0::2], raw[:, 1::2] + 2.0], dim=1))
    low = folded(network.float(), 4, None, torch.bfloat16)(x.float())
    assert low.dtype == torch.float32
    assert float((low - raw).abs().max()) < 0.1


@torch.no_grad()
def test_a_dense_block_runs_in_strips_that_compute_no_row_twice(monkeypatch):
    """What lies far above or below cannot reach a strip: wrong rows would show, and a whole canvas would not."""
    rows, convolve = [], Conv.forward

    def recorded(self, x, top, bottom, height):
        rows.append(bottom - top)
        return convolve(self, x, top, bottom, height)

    monkeypatch.setattr(Conv, "forward", recorded)
    block, x = perturbed(DenseBlock(4, 3)).double(), random(1, 4, 82, 4)
    close(FoldedDenseBlock(block, StripBudget(1, 1))(x), block(x))
    assert max(rows) == 16 + 4  # the first convolution runs four rows ahead of the last
    assert sum(rows) == 82 * 5  # the convolutions of a block
