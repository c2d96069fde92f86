"""EfficientNet-Lite0: shapes and padding; benchmarks/read_efficientnet.py checks the published weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowcore.networks.efficientnet import CHANNELS, EfficientNetLite0


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    network = EfficientNetLite0().eval()
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel())
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return network.requires_grad_(False)


def test_features_lie_at_strides_8_16_and_32(network):
    features = network(torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1)))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, (8, 16, 32), strict=True)
    ]
    assert all(f.isfinite().all() and f.std() > 0 for f in features)


def test_its_size_is_that_of_the_trunk_alone(network):
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.94e6, rel=0.01)
    assert not list(network.buffers())


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_that_of_tensorflow(network, kernel, stride):
    """At stride 2, an even side gets more padding after it than before it."""
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    conv = next(m for m in convs if m.kernel_size[0] == kernel and m.stride[0] == stride)
    x = torch.rand(1, conv.groups, 12, 16, generator=torch.Generator().manual_seed(2))
    before = (kernel - stride) // 2
    padded = F.pad(x, (before, kernel, before, kernel))
    expected = F.conv2d(padded, conv.weight, conv.bias, stride, groups=conv.groups)[..., : 12 // stride, : 16 // stride]
    assert torch.allclose(conv(x), expected, atol=1e-6)
