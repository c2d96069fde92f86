"""Networks: each computes what its docstring says, and the encoder hands out what SRFlow's paper and program do."""

import pytest
import torch
import torch.nn.functional as F
from flowcore.testing import perturbed
from torch import nn

from flowcore.flows.networks.conditioner import Conditioner, MLPConditioner, PlainConditioner, TopPrior, ZeroConv
from flowcore.flows.networks.residual import AffineBatchNorm, ResidualConditioner, WeightNormConv
from flowcore.flows.transforms import BatchNorm
from flowcore.images.resize import enlarge
from flowcore.models.colorizer.efficientnet import EfficientNetLite0
from flowcore.models.colorizer.luma import CHROMA_UNIT, LumaEncoder
from flowcore.models.srflow.rrdb import RRDBEncoder


def image(height=6, width=8, channels=3, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def encoder(scale=4, stacked=(1, 0), blocks=2):
    return perturbed(RRDBEncoder(scale, blocks, 5, 3, stacked), 0.02).double()


def test_networks_of_couplings_and_priors_start_at_zero():
    for edge in ("zeros", "ones", "flag"):
        assert ZeroConv(3, 4, edge=edge)(image().float()).abs().max() == 0
        assert TopPrior(3, edge=edge)(grid().float()).abs().max() == 0
    for network in (Conditioner(3, 6, 4), PlainConditioner(3, 6, 4), PlainConditioner(3, 6, 4, scaled=False)):
        assert network(image().float()).abs().max() == 0
    assert MLPConditioner(5, 6, 4)(torch.randn(2, 5, 1, 1)).abs().max() == 0


def test_a_weight_normalized_convolution_starts_at_the_kernels_it_drew():
    conv = WeightNormConv(3, 5, 3, bias=False).double()
    assert torch.allclose(conv(image()), F.conv2d(image(), conv.direction, padding=1), atol=1e-6)


def test_a_conditioner_initializes_every_hidden_layer_on_what_comes_before():
    network = Conditioner(3, 6, 4, layers=2, kernel=3, global_context=True).double()
    network.initialize(image())
    means = []
    for conv in network.hidden:
        conv.register_forward_hook(lambda module, arguments, result: means.append(result.mean((0, 2, 3)).abs().max()))
    network(image())
    assert len(means) == 3
    assert max(means) < 1e-12


def test_a_pooled_conditioner_adds_a_linear_map_of_the_first_layers_mean_to_every_position():
    network = perturbed(Conditioner(3, 6, 4, global_context=True)).double()
    first, second = network.hidden
    y = F.relu(first(image()))
    mean = y.mean((2, 3)) @ network.pool.weight.T + network.pool.bias
    expected = network.last(F.relu(second(y + mean[:, :, None, None])))
    assert torch.allclose(network(image()), expected, atol=1e-13)


def test_a_residual_conditioner_initializes_every_norm_on_what_comes_before():
    network = perturbed(ResidualConditioner(3, 4, 2, blocks=2, double=False, rescale=1.0)).double()
    network.initialize(image())
    seen = []

    def note(part, arguments, result):
        seen.append((result - part.bias[:, None, None]) / part.weight[:, None, None])
        assert (part.norm.momentum, part.norm.uses_batch) == (0.05, False)

    for part in network.modules():
        if isinstance(part, AffineBatchNorm):
            part.register_forward_hook(note)
    network(image())
    assert len(seen) == sum(isinstance(part, BatchNorm) for part in network.modules()) == 6
    for y in seen:
        assert y.mean((0, 2, 3)).abs().max() < 1e-9
        assert (y.var((0, 2, 3), correction=0) - 1).abs().max() < 0.01


def grid(height=4, width=5, channels=3, batch=2):
    return torch.full((batch, channels, height, width), float("nan"), dtype=torch.float64)  # values are not to be read


@pytest.mark.parametrize(("scale", "levels"), [(2, 2), (4, 3), (8, 4)])
def test_the_encoder_gives_every_level_its_grid_and_a_picture_that_is_bicubic_plus_a_residual(scale, levels):
    for stacked in ((1, 0), ()):
        features, picture = encoder(scale, stacked)(image(), range(1, levels + 1))
        channels = 5 * (1 + len(stacked))
        expected = [(2, channels, 6 * scale // 2**k, 8 * scale // 2**k) for k in range(1, levels + 1)]
        assert [f.shape for f in features] == expected
        assert picture is None
    network = encoder(scale)
    picture = network.enlargement(image())
    assert picture.shape == (2, 3, 6 * scale, 8 * scale)
    assert torch.allclose(network(image(), [1], with_enlargement=True)[1], picture, atol=1e-13)
    torch.nn.init.zeros_(network.conv_last.weight)
    torch.nn.init.zeros_(network.conv_last.bias)
    assert torch.equal(network.enlargement(image()), enlarge(image(), scale))


def luma_encoder(widths=(4, 4, 6, 8), merged=8, features=3):
    return perturbed(LumaEncoder(widths, merged, features), 0.1).double()


def asked(height=64, width=96, batch=2, hinted=True, palette=True):
    """Luma, hints and a palette: one red square of 8 pixels, and a cool palette."""
    luma = image(height, width, 1, batch)
    hints, wanted = luma.new_zeros(batch, 3, height, width), luma.new_zeros(batch, 4)
    if hinted:
        hints[:, :, 8:16, 16:24] = torch.tensor([1.0, -0.1, 0.3], dtype=torch.float64)[:, None, None]
    if palette:
        wanted[:] = torch.tensor([1.0, 0.08, -0.05, 0.12], dtype=torch.float64)
    return luma, hints, wanted


@pytest.mark.parametrize(("widths", "height", "width"), [((4, 4, 6, 8), 64, 96), ((4, 8), 256, 192)], ids=str)
def test_every_feature_sees_all_luma_hints_and_palette(widths, height, width):
    """Farther than convolutions reach: down to the coarsest grid, across it by attention, and up again."""
    network = luma_encoder(widths)
    before = network(*asked(height, width, hinted=False, palette=False))
    brighter = asked(height, width, hinted=False, palette=False)
    brighter[0][:, :, :8, :8] += 0.2
    for other in (brighter, asked(height, width, palette=False), asked(height, width, hinted=False)):
        for one, two in zip(before, network(*other), strict=True):
            assert ((one - two)[:, :3].abs().amax(1) > 1e-9).all()  # the features, without the planes behind them


def test_hints_and_palette_stand_behind_the_features_in_units_of_a_color():
    planes = [f[:, 3:] for f in luma_encoder()(*asked())]
    wanted = torch.tensor([1.0, 0.8, -0.5, 1.2], dtype=torch.float64)
    assert CHROMA_UNIT == 0.1
    for number, plane in enumerate(planes):
        assert torch.allclose(plane[:, 3:], wanted[:, None, None].expand_as(plane[:, 3:]), atol=1e-12)
        stride = 8 * 2**number
        row, column, covered = 8 // stride, 16 // stride, (8 / stride) ** 2
        # a square that fills a cell is there in full; in larger cells the fourth root keeps it visible
        expected = covered**0.25 * torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64)
        assert torch.allclose(plane[:, :3, row, column], expected.expand(2, 3), atol=1e-9)
        elsewhere = plane[:, :3].clone()
        elsewhere[:, :, row, column] = 0
        assert elsewhere.abs().max() == 0


def test_hints_weigh_as_much_as_they_cover():
    network = luma_encoder()
    luma, hints, palette = asked(hinted=False, palette=False)
    expected = network(luma, hints, palette)
    hints[:, 1:] = 0.3  # colors where nothing is covered are no hints
    for one, two in zip(expected, network(luma, hints, palette), strict=True):
        assert (one[:, 3:] == 0).all()
        assert one.isfinite().all()  # nothing is divided by a coverage of 0
        assert torch.equal(one, two)
    luma, hints, wanted = asked()
    for one, two in zip(network(luma, hints, wanted), network(luma, hints / 2, wanted), strict=True):
        assert torch.allclose(two[:, 3:6], one[:, 3:6] * 0.5**0.25, atol=1e-9)  # half: the same color, weaker


def test_dropout_hides_channels_from_the_coarser_half_in_training_only():
    plain = luma_encoder()
    dropping = LumaEncoder((4, 4, 6, 8), 8, 3, dropout=0.5).double()
    dropping.load_state_dict(plain.state_dict())
    given = asked()
    for one, two in zip(plain(*given), dropping.eval()(*given), strict=True):
        assert torch.equal(one, two)
    hidden = []
    dropping.train().dropout.register_forward_hook(lambda module, arguments, result: hidden.append(result.shape[2:]))
    one, two = (dropping(*given) for _ in range(2))
    # what attention found, then the second and the third grid of three
    assert hidden == [(2, 3), (4, 6), (2, 3)] * 2
    assert not torch.equal(one[1], two[1])  # by chance 2^-31: 16 channels hidden here, and 16 before
    assert not torch.equal(one[2], two[2])
    assert all(torch.equal(a[:, 3:], b[:, 3:]) for a, b in zip(one, two, strict=True))  # hints are not hidden


def test_padding_is_that_of_tensorflow():
    """At stride 2, an even side gets more padding after it than before it."""
    convs = [m for m in EfficientNetLite0().modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    kinds = {(conv.kernel_size[0], conv.stride[0]): conv for conv in convs}
    assert kinds.keys() == {(3, 1), (3, 2), (5, 1), (5, 2)}
    for (kernel, stride), conv in kinds.items():
        x = torch.rand(1, conv.groups, 12, 16)
        before = (kernel - stride) // 2
        padded = F.pad(x, (before, kernel, before, kernel))
        expected = F.conv2d(padded, conv.weight, conv.bias, stride, groups=conv.groups)
        assert torch.allclose(conv(x), expected[..., : 12 // stride, : 16 // stride], atol=1e-6)
