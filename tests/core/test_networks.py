"""Networks: folded convolutions equal the plain ones, and the encoder hands out what SRFlow's paper and program do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flowcore.networks import Conditioner, RRDBEncoder, ScaledConv
from flowcore.networks.conditioner import NormalisedConv
from flowcore.resize import enlarge

from .laws import perturbed


def image(height=6, width=8, channels=3, batch=2):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def encoder(scale=4, stacked=(1, 0), blocks=2):
    return perturbed(RRDBEncoder(scale, blocks, 5, 3, stacked), 0.02).double()


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_normalised_convolution_is_a_convolution_and_an_actnorm(kernel):
    conv = perturbed(NormalisedConv(3, 5, kernel)).double()
    plain = conv.actnorm(F.conv2d(image(), conv.weight, padding=kernel // 2))[0]
    assert torch.allclose(conv(image()), plain, atol=1e-13)


def test_a_normalised_convolution_initialises_to_mean_0_and_variance_1():
    conv = NormalisedConv(3, 5, 3).double()
    y = conv.initialise(image())
    assert torch.allclose(conv(image()), y, atol=1e-12)
    assert torch.allclose(y.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(y.var(dim=(0, 2, 3), correction=0), torch.ones(5, dtype=torch.float64), atol=1e-3)


def test_a_scaled_convolution_starts_at_zero_and_scales_by_exp_of_three_log_scale():
    conv = ScaledConv(3, 4).double()
    assert conv(image()).abs().max() == 0
    conv = perturbed(conv)
    plain = F.conv2d(image(), conv.weight, conv.bias, padding=1)
    assert torch.allclose(conv(image()), plain * torch.exp(3 * conv.log_scale)[:, None, None], atol=1e-13)


def test_a_conditioner_initialises_every_hidden_layer_on_what_comes_before():
    network = Conditioner(3, 6, 4, layers=2, kernel=3).double()
    network.initialise(image())
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
    picture = network.picture(image())
    assert picture.shape == (2, 3, 6 * scale, 8 * scale)
    assert torch.allclose(network(image(), 1, with_picture=True)[1], picture, atol=1e-13)
    torch.nn.init.zeros_(network.conv_last.weight)
    torch.nn.init.zeros_(network.conv_last.bias)
    assert torch.equal(network.picture(image()), enlarge(image(), scale))


def test_no_stacked_blocks_leaves_the_native_features():
    assert [f.shape[1] for f in encoder(4, stacked=())(image(), 3)[0]] == [5, 5, 5]
