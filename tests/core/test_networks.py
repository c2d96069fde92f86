"""Networks: each computes what its docstring says, and the encoder hands out what SRFlow's paper and program do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flowcore.images.resize import enlarge
from flowcore.networks import (
    Conditioner,
    DenseConditioner,
    LumaEncoder,
    PlainConditioner,
    ResidualConditioner,
    RRDBEncoder,
    ScaledConv,
    TablePrior,
    TopPrior,
)
from flowcore.networks.conditioner import NormalizedConv, convolve
from flowcore.networks.luma import CHROMA_UNIT
from flowcore.networks.residual import NetworkNorm, WeightNormConv
from flowcore.transforms import BatchNorm

from .laws import perturbed


def image(height=6, width=8, channels=3, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def encoder(scale=4, stacked=(1, 0), blocks=2):
    return perturbed(RRDBEncoder(scale, blocks, 5, 3, stacked), 0.02).double()


# --- convolutions and what they see beyond the border -----------------------------------------------------------------


def around(x, edge):
    """The image with a ring of one pixel around it, made by hand."""
    batch, channels, height, width = x.shape
    ring = x.new_full((batch, channels, height + 2, width + 2), 1.0 if edge == "ones" else 0.0)
    ring[:, :, 1:-1, 1:-1] = x
    if edge != "flag":
        return ring
    flag = x.new_ones(batch, 1, height + 2, width + 2)
    flag[:, :, 1:-1, 1:-1] = 0
    return torch.cat([ring, flag], dim=1)


@pytest.mark.parametrize("edge", ["zeros", "ones", "flag"])
def test_convolutions_see_what_is_said_beyond_the_border(edge):
    weight = torch.randn(4, 3 + (edge == "flag"), 3, 3, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    actual = convolve(image(), weight, bias, edge)
    assert torch.allclose(actual, F.conv2d(around(image(), edge), weight, bias), atol=1e-13)
    # inside, no edge differs from another
    assert torch.allclose(actual[..., 1:-1, 1:-1], F.conv2d(image(), weight[:, :3], bias), atol=1e-13)


@pytest.mark.parametrize("edge", ["zeros", "ones", "flag"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_normalized_convolution_is_a_convolution_and_an_actnorm(kernel, edge):
    conv = perturbed(NormalizedConv(3, 5, kernel, edge=edge, log_factor=3.0)).double()
    plain = F.conv2d(image() if kernel == 1 else around(image(), edge), conv.weight)
    expected = (plain + conv.actnorm.bias[:, None, None]) * torch.exp(3 * conv.actnorm.log_scale)[:, None, None]
    assert torch.allclose(conv(image()), expected, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"edge": "ones", "log_factor": 3.0}, {"edge": "flag"}], ids=str)
def test_a_normalized_convolution_initializes_to_mean_0_and_variance_1(options):
    conv = NormalizedConv(3, 5, 3, **options).double()
    y = conv.initialize(image())
    assert torch.allclose(conv(image()), y, atol=1e-12)
    assert torch.allclose(y.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(y.var(dim=(0, 2, 3), correction=0), torch.ones(5, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("edge", ["zeros", "ones", "flag"])
def test_a_scaled_convolution_starts_at_zero_and_scales_by_exp_of_three_log_scale(edge):
    conv = ScaledConv(3, 4, edge=edge).double()
    assert conv(image()).abs().max() == 0
    conv = perturbed(conv)
    plain = F.conv2d(around(image(), edge), conv.weight, conv.bias)
    assert torch.allclose(conv(image()), plain * torch.exp(3 * conv.log_scale)[:, None, None], atol=1e-13)


def test_a_scaled_convolution_of_nothing_is_a_constant():
    conv = perturbed(ScaledConv(0, 4)).double()
    assert conv.weight is None
    y = conv(image()[:, :0])
    assert torch.allclose(y, (conv.bias * torch.exp(3 * conv.log_scale))[:, None, None].expand(2, 4, 6, 8), atol=1e-13)


# --- conditioners -----------------------------------------------------------------------------------------------------


def test_a_conditioner_initializes_every_hidden_layer_on_what_comes_before():
    network = Conditioner(3, 6, 4, layers=2, kernel=3).double()
    network.initialize(image())
    x = image()
    for conv in network.hidden:
        y = conv(x)
        assert y.mean(dim=(0, 2, 3)).abs().max() < 1e-12
        x = F.relu(y)


@pytest.mark.parametrize(("layers", "kernel"), [(0, 1), (1, 1), (1, 3), (3, 3)])
def test_a_conditioner_keeps_the_grid(layers, kernel):
    network = Conditioner(3, 6, 4, layers=layers, kernel=kernel).double()
    assert len(network.hidden) == layers + 1
    assert network(image(5, 7)).shape == (2, 4, 5, 7)


def test_a_pooled_conditioner_adds_a_linear_map_of_the_first_layers_mean_to_every_position():
    network = perturbed(Conditioner(3, 6, 4, pooled=True)).double()
    first, second = network.hidden
    y = F.relu(first(image()))
    mean = y.mean((2, 3)) @ network.pool.weight.T + network.pool.bias
    expected = network.last(F.relu(second(y + mean[:, :, None, None])))
    assert torch.allclose(network(image()), expected, atol=1e-13)


@pytest.mark.parametrize("pooled", [False, True])
def test_only_a_pooled_conditioner_sees_the_whole_grid(pooled):
    network = perturbed(Conditioner(3, 6, 4, pooled=pooled)).double()
    x = image(9, 11)
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    far = (network(x) - network(moved))[:, :, 5:, 5:].abs()
    assert bool((far > 0).all()) == pooled
    assert bool((far == 0).all()) != pooled
    assert network(image(5, 7)).shape == (2, 4, 5, 7)


def test_a_pooled_conditioner_initializes_on_what_it_then_computes():
    network = Conditioner(3, 6, 4, layers=2, pooled=True).double()
    network.initialize(image())
    x = image()
    for number, conv in enumerate(network.hidden):
        y = conv(x)
        assert y.mean(dim=(0, 2, 3)).abs().max() < 1e-12
        x = F.relu(y)
        if number == 0:
            x = x + network.pool(x.mean((2, 3)))[:, :, None, None]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("edge", ["zeros", "ones"])
def test_a_plain_conditioner_is_three_convolutions_with_biases(edge, scaled):
    network = PlainConditioner(3, 6, 4, edge=edge, scaled=scaled).double()
    assert network(image()).abs().max() == 0
    assert not hasattr(network, "initialize")
    network = perturbed(network)
    first, second = network.hidden
    y = F.relu(F.conv2d(around(image(), "zeros"), first.weight, first.bias))
    y = F.relu(F.conv2d(y, second.weight, second.bias))
    y = F.conv2d(around(y, edge if scaled else "zeros"), network.last.weight, network.last.bias)
    factor = torch.exp(3 * network.last.log_scale)[:, None, None] if scaled else 1
    assert torch.allclose(network(image()), y * factor, atol=1e-13)


def test_a_dense_conditioner_is_two_linear_maps():
    network = DenseConditioner(5, 6, 4).double()
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    assert network(x).shape == (2, 4, 1, 1)
    assert network(x).abs().max() == 0
    network = perturbed(network)
    hidden = (x[:, :, 0, 0] @ network.first.weight.T + network.first.bias).clamp(min=0)
    expected = hidden @ network.last.weight.T + network.last.bias
    assert torch.allclose(network(x)[:, :, 0, 0], expected, atol=1e-13)


# --- the residual conditioner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_weight_normalized_convolution_is_torchs(kernel):
    conv = perturbed(WeightNormConv(3, 5, kernel)).double()
    plain = torch.nn.Conv2d(3, 5, kernel, padding=kernel // 2, dtype=torch.float64)
    theirs = torch.nn.utils.parametrizations.weight_norm(plain)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(conv.length[:, None, None, None])
        theirs.parametrizations.weight.original1.copy_(conv.direction)
        theirs.bias.copy_(conv.bias)
    assert torch.allclose(conv(image()), theirs(image()), atol=1e-13)


def test_a_weight_normalized_convolution_starts_at_the_kernels_it_drew():
    conv = WeightNormConv(3, 5, 3, bias=False).double()
    assert conv.bias is None
    assert torch.allclose(conv(image()), F.conv2d(image(), conv.direction, padding=1), atol=1e-6)


def test_a_network_norm_is_torchs_in_evaluation_mode_and_has_no_training_mode():
    norm = perturbed(NetworkNorm(3)).double()
    norm.norm.mean.copy_(torch.tensor([0.3, -1.0, 2.0]))
    norm.norm.var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    expected = F.batch_norm(image(), norm.norm.mean, norm.norm.var, norm.weight, norm.bias, eps=1e-5)
    for training in (True, False):
        assert torch.allclose(norm.train(training)(image()), expected, atol=1e-12)


def residual(**options):
    options = {"blocks": 2, "double": True, "rescale": 0.7, **options}
    network = perturbed(ResidualConditioner(3, 4, 2, **options)).double()
    network.initialize(3 * image() - 1)  # moments that are not those of the batch it is asked about
    return network


@pytest.mark.parametrize("double", [True, False])
def test_a_residual_conditioner_computes_what_the_paper_says(double):
    network = residual(double=double)

    def normal(part, y):
        return F.batch_norm(y, part.norm.mean, part.norm.var, part.weight, part.bias, eps=1e-5)

    x = normal(network.norm_in, image())
    x = 2 * x if double else x
    x = network.conv_in(torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim=1))
    skips = [network.skips[0](x)]
    for k in range(2):
        block = network.blocks[k]
        y = block.convs[0](F.relu(normal(block.norms[0], x)))
        x = x + block.convs[1](F.relu(normal(block.norms[1], y)))
        skips.append(network.skips[k + 1](x))
    raw = network.conv_out(F.relu(normal(network.norm_out, sum(skips))))
    actual = network(image())
    assert torch.allclose(actual[:, 0::2], raw[:, 0::2], atol=1e-12)
    assert torch.allclose(actual[:, 1::2], network.rescale[:, None, None] * raw[:, 1::2].tanh(), atol=1e-12)


def test_a_residual_conditioner_bounds_its_log_scales():
    network = residual()
    with torch.no_grad():
        network.conv_out.length.fill_(1e4)
        network.rescale.copy_(torch.tensor([0.5, -2.0]))
    log_scale = network(image())[:, 1::2]
    assert (log_scale.abs().amax((0, 2, 3)) <= torch.tensor([0.5, 2.0])).all()
    assert (log_scale.abs().amax((0, 2, 3)) > torch.tensor([0.4, 1.6])).all()


def test_a_residual_conditioner_with_rescale_0_starts_without_scaling():
    network = ResidualConditioner(3, 4, 2, blocks=1, double=True, rescale=0.0).double()
    assert network(image())[:, 1::2].abs().max() == 0
    assert network(image())[:, 0::2].abs().max() > 0


def test_a_residual_conditioner_initializes_every_norm_on_what_comes_before():
    network = perturbed(ResidualConditioner(3, 4, 2, blocks=2, double=False, rescale=1.0)).double()
    network.initialize(image())
    seen = []
    norms = [part for part in network.modules() if isinstance(part, BatchNorm)]

    def note(part, arguments, result):
        seen.append((result - part.bias[:, None, None]) / part.weight[:, None, None])

    hooks = [part.register_forward_hook(note) for part in network.modules() if isinstance(part, NetworkNorm)]
    network(image())
    assert len(seen) == len(hooks) == len(norms) == 6
    for y in seen:
        assert y.mean((0, 2, 3)).abs().max() < 1e-9
        assert (y.var((0, 2, 3), correction=0) - 1).abs().max() < 0.01
    assert {(norm.momentum, norm.uses_batch) for norm in norms} == {(0.05, False)}


# --- priors -----------------------------------------------------------------------------------------------------------


def grid(height=4, width=5, channels=3, batch=2):
    return torch.full((batch, channels, height, width), float("nan"), dtype=torch.float64)  # values are not to be read


@pytest.mark.parametrize("edge", ["zeros", "ones", "flag"])
def test_a_top_prior_is_a_convolution_of_an_empty_grid(edge):
    prior = TopPrior(3, edge=edge).double()
    assert prior(grid()).abs().max() == 0
    prior = perturbed(prior)
    raw = prior(grid())
    constants = prior.constants
    weight = torch.zeros(6, 1, 3, 3, dtype=torch.float64) if constants.weight is None else constants.weight
    zeros = torch.zeros(1, weight.shape[1] - (edge == "flag"), 4, 5, dtype=torch.float64)
    expected = F.conv2d(around(zeros, edge), weight, constants.bias) * torch.exp(3 * constants.log_scale)[:, None, None]
    assert torch.allclose(raw, expected.expand(2, -1, -1, -1), atol=1e-13)
    inside = raw[:, :, 1:-1, 1:-1]
    assert torch.allclose(inside, inside[:, :, :1, :1].expand_as(inside), atol=1e-13)
    assert (raw[:, :, 0, 0] == raw[:, :, 1, 1]).all() == (edge == "zeros")


def test_a_top_prior_adds_what_the_label_says():
    prior = perturbed(TopPrior(3, classes=4)).double()
    condition_of = torch.eye(4, dtype=torch.float64)[[2, 0]]
    linear = prior.by_label
    added = (linear.weight[:, [2, 0]].T + linear.bias) * torch.exp(3 * linear.log_scale)
    alone = perturbed(TopPrior(3, classes=4)).double()
    alone.by_label = None
    expected = alone(grid()) + added[:, :, None, None]
    assert torch.allclose(prior(grid(), condition_of), expected, atol=1e-13)


def test_a_top_prior_that_learns_nothing_else_has_only_labels():
    prior = TopPrior(3, learned=False, classes=4)
    assert {name.split(".")[0] for name, _ in prior.named_parameters()} == {"by_label"}
    assert [p.numel() for p in prior.parameters()] == [24, 6, 6]


def test_a_table_prior_looks_up_the_label():
    prior = TablePrior(3, 4, 5, classes=4).double()
    condition_of = torch.eye(4, dtype=torch.float64)[[2, 0]]
    assert prior(grid(), condition_of).abs().max() == 0
    prior = perturbed(prior)
    raw = prior(grid(), condition_of)
    assert torch.equal(raw[:, 0::2], prior.mean[[2, 0]])
    assert torch.equal(raw[:, 1::2], prior.log_std[[2, 0]])
    mixed = prior(grid(), torch.tensor([[0.5, 0, 0.5, 0]]))
    assert torch.allclose(mixed, (raw[:1] + raw[1:]) / 2, atol=1e-13)


def test_a_table_prior_without_labels_is_one_for_all():
    prior = perturbed(TablePrior(3, 4, 5)).double()
    raw = prior(grid())
    assert raw.shape == (1, 6, 4, 5)
    assert torch.equal(raw[:, 0::2], prior.mean)


# --- the encoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "levels"), [(2, 2), (4, 3), (8, 4)])
def test_the_encoder_gives_every_level_its_grid(scale, levels):
    features, picture = encoder(scale)(image(), levels)
    assert [f.shape for f in features] == [(2, 15, 6 * scale // 2**k, 8 * scale // 2**k) for k in range(1, levels + 1)]
    assert picture is None


def test_native_features_come_first_and_the_stack_follows_in_the_order_given():
    network = encoder(4, stacked=(1, 0))
    trunk = network.conv_first(image())
    outputs = []
    for block in network.blocks:
        trunk = block(trunk)
        outputs.append(trunk)
    last = trunk + network.conv_trunk(trunk)
    features = network(image(), 3)[0]
    assert torch.allclose(features[1], torch.cat([last, outputs[1], outputs[0]], dim=1), atol=1e-13)


def test_the_half_resolution_grid_averages_native_features_and_picks_stacked_ones():
    features = encoder(4)(image(), 3)[0]
    assert torch.allclose(features[2][:, :5], F.avg_pool2d(features[1][:, :5], 2), atol=1e-13)
    assert torch.equal(features[2][:, 5:], features[1][:, 5:, ::2, ::2])


def test_enlarged_stacks_repeat_pixels_and_enlarged_native_features_are_activated():
    network = encoder(4)
    features = network(image(), 3)[0]
    assert torch.equal(features[0][:, 5:], features[1][:, 5:].repeat_interleave(2, 2).repeat_interleave(2, 3))
    before = network.conv_up[0](features[1][:, :5].repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(features[0][:, :5], F.leaky_relu(before, 0.2), atol=1e-13)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_picture_is_bicubic_plus_a_residual(scale):
    network = encoder(scale)
    picture = network.enlargement(image())
    assert picture.shape == (2, 3, 6 * scale, 8 * scale)
    assert torch.allclose(network(image(), 1, with_enlargement=True)[1], picture, atol=1e-13)
    torch.nn.init.zeros_(network.conv_last.weight)
    torch.nn.init.zeros_(network.conv_last.bias)
    assert torch.equal(network.enlargement(image()), enlarge(image(), scale))


def test_no_stacked_blocks_leaves_the_native_features():
    assert [f.shape[1] for f in encoder(4, stacked=())(image(), 3)[0]] == [5, 5, 5]


# --- the luma encoder -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("widths", [(4, 8), (4, 4, 8), (4, 4, 6, 8)], ids=str)
@pytest.mark.parametrize("multiples", [(1, 1), (2, 3), (5, 1)])
def test_the_luma_encoder_gives_every_grid_its_size_whatever_the_image(widths, multiples):
    grids = len(widths) - 1
    sides = [4 * 2**grids * k for k in multiples]
    network = luma_encoder(widths)
    grid = network(*asked(*sides, hinted=False))
    assert [f.shape for f in grid] == [(2, 3 + 7, *(side // (8 * 2**k) for side in sides)) for k in range(grids)]
    assert network.outputs == 3 + 7
    assert all(f.isfinite().all() for f in grid)


def test_luma_hints_and_palette_are_seen_by_the_features_of_every_grid():
    network = luma_encoder()
    before = network(*asked(hinted=False, palette=False))
    brighter = asked(hinted=False, palette=False)
    brighter[0][:, :, :8, :8] += 0.2
    for other in (brighter, asked(palette=False), asked(hinted=False)):
        for one, two in zip(before, network(*other), strict=True):
            moved = (one - two)[:, :3].abs().amax(1)  # the features, without the planes behind them
            # down to the coarsest grid and up again: there is no position that does not hear of it
            assert (moved > 1e-9).all()


def test_the_coarsest_grid_of_the_luma_encoder_sees_the_whole_image():
    """Farther than its convolutions reach."""
    network = luma_encoder((4, 8))
    luma, hints, palette = asked(256, 192, 1, hinted=False)
    brighter = luma.clone()
    brighter[..., :8, :8] += 0.2
    moved = (network(luma, hints, palette)[0] - network(brighter, hints, palette)[0])[:, :3].abs().amax(1)
    assert moved.shape == (1, 32, 24)
    assert (moved > 0).all()


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


def test_colors_where_nothing_is_covered_are_no_hints():
    network = luma_encoder()
    luma, hints, palette = asked(hinted=False, palette=False)
    expected = network(luma, hints, palette)
    assert all((f[:, 3:] == 0).all() for f in expected)
    assert all(f.isfinite().all() for f in expected)  # nothing is divided by a coverage of 0
    hints[:, 1:] = 0.3
    again = network(luma, hints, palette)
    assert all(torch.equal(one, two) for one, two in zip(expected, again, strict=True))


def test_half_covered_hints_say_the_same_color_more_quietly():
    full, half = (luma_encoder()(luma, hints * part, wanted) for part in (1, 0.5) for luma, hints, wanted in [asked()])
    for one, two in zip(full, half, strict=True):
        assert torch.allclose(two[:, 3:6], one[:, 3:6] * 0.5**0.25, atol=1e-9)


def test_dropout_hides_channels_from_the_coarser_half_in_training_only():
    plain = luma_encoder()
    dropping = LumaEncoder((4, 4, 6, 8), 8, 3, dropout=0.9).double()
    dropping.load_state_dict(plain.state_dict())
    given = asked()
    for one, two in zip(plain(*given), dropping.eval()(*given), strict=True):
        assert torch.equal(one, two)
    hidden = []
    dropping.train().dropout.register_forward_hook(lambda module, arguments, result: hidden.append(result.shape[2:]))
    one, two = (dropping(*given) for _ in range(2))
    # what attention found, then the second and the third grid of three
    assert hidden == [(2, 3), (4, 6), (2, 3)] * 2
    assert not torch.equal(one[1], two[1])
    assert not torch.equal(one[2], two[2])
    assert all(torch.equal(a[:, 3:], b[:, 3:]) for a, b in zip(one, two, strict=True))  # hints are not hidden


def test_the_encoders_attention_looks_at_all_positions_and_has_no_place_of_its_own():
    attention = luma_encoder((4, 8)).attention
    x = image(3, 5, 8)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(2)[..., order].view_as(x)
    assert torch.allclose(attention(shuffled).flatten(2), attention(x).flatten(2)[..., order], atol=1e-12)
    moved = x.clone()
    moved[:, 0, 0, 0] += 1
    assert (attention(moved) != attention(x)).any(1).all()
    assert attention(image(1, 1, 8)).shape == (2, 8, 1, 1)


def test_the_encoders_attention_is_that_of_the_paper():
    """With 4 heads, softmax of the scaled products, item by item, written out."""
    attention = luma_encoder((4, 8)).attention
    x = image(2, 3, 8)
    normal = (x - x.mean((1, 2, 3), keepdim=True)) / (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    normal = normal * attention.normalise.weight[:, None, None] + attention.normalise.bias[:, None, None]
    weight, bias = attention.ask.weight[:, :, 0, 0], attention.ask.bias
    query, key, value = (torch.einsum("oc,bcn->bon", weight, normal.flatten(2)) + bias[:, None]).chunk(3, dim=1)
    found = []
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        weights = torch.softmax(query[:, part].transpose(1, 2) @ key[:, part] / 2**0.5, dim=-1)
        found.append(value[:, part] @ weights.transpose(1, 2))
    expected = x + attention.answer(torch.cat(found, dim=1).view(2, 8, 2, 3))
    assert torch.allclose(attention(x), expected, atol=1e-12)


def test_an_item_of_the_luma_encoder_does_not_depend_on_the_others():
    network = luma_encoder()
    together = network(*asked())
    alone = network(*(part[1:] for part in asked()))
    for one, two in zip(together, alone, strict=True):
        assert torch.allclose(one[1:], two, atol=1e-12)


def test_the_luma_encoder_runs_in_bfloat16_under_autocast():
    network = luma_encoder().float()
    given = [part.float() for part in asked()]
    plain = network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(*given)
    for one, two in zip(plain, low, strict=True):
        assert two.dtype == torch.bfloat16
        assert (one - two).abs().max() < 0.05 * one.abs().max().clamp_min(1)
