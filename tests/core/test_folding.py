"""Every rewrite is exact: folded parts against what they stand for, in float64."""

import pytest
import torch
from flowcore.testing import close, perturbed

from flowcore.engine.conditioners import UnsplitConditioner, folded_conditioner
from flowcore.engine.fold import ChannelAffine, Mixing, conv_weights
from flowcore.flows.networks.conditioner import Conditioner
from flowcore.flows.networks.convolutions import ConditionConv, Conv, StreamedConditionConv
from flowcore.flows.networks.strips import StripBudget, canvas, minimum_memory, strips
from flowcore.flows.transforms import MultiScaleFeatures
from flowcore.models.srflow.folded import FoldedDenseBlock
from flowcore.models.srflow.rrdb import DenseBlock

LIKE = torch.zeros((), dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sources_of(factors, height=72, width=8):
    return tuple((random(2, 2, height // f, width // f, seed=f), f) for f in factors)


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


def test_strips_and_canvas_follow_the_budget_and_the_model():
    assert StripBudget(10_000).rows(100) == StripBudget(10_099).rows(100) == 100
    assert StripBudget(1).rows(100) == 8
    assert StripBudget(50).rows(0) == 50
    assert StripBudget(10_000).tiles(12, 10, 100) == [(slice(first, first + 5), 0, 10) for first in (0, 5, 10)]
    assert StripBudget(10_000).tiles(1, 70, 100) == [(slice(0, 1), 0, 50), (slice(0, 1), 50, 70)]
    budget, small = StripBudget(), StripBudget(1, 1)
    with minimum_memory():
        assert budget.strip == budget.dense == 2**18
        assert small.strip == small.dense == 1
    assert budget.strip == 2**23
    empty = canvas((2, 7, 4, 5), random(1).float())
    assert (empty.shape, empty.dtype) == ((2, 7, 4, 5), torch.float32)


def test_mixing_is_multiplied_and_inverted_in_float64_and_rounded_once():
    matrix = torch.eye(6, dtype=torch.float64) + 0.3 * random(6, 6)
    one = ChannelAffine(matrix, random(6, seed=1), torch.linalg.slogdet(matrix)[1])
    exact, rounded = Mixing([one, one], LIKE), Mixing([one, one], LIKE.float())
    for wide, narrow in zip((*exact.to_latent, *exact.to_data), (*rounded.to_latent, *rounded.to_data), strict=True):
        assert torch.equal(wide.float(), narrow)


OUT = 6


def folded(network, inputs, offset=None, dtype=torch.float64, strip_bytes=2**30):
    with torch.no_grad():
        return folded_conditioner(network, inputs, offset, dtype, StripBudget(strip_bytes))


def test_weights_are_folded_in_float64():
    weights = conv_weights(Conditioner(7, 5, OUT))
    assert len(weights) == 3
    assert {t.dtype for conv in weights for t in conv[:2]} == {torch.float64}


@torch.no_grad()
def test_a_custom_network_is_not_split_into_strips():
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
