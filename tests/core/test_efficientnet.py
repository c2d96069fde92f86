"""EfficientNet-Lite0: shapes, fixed weights, padding; benchmarks/read_efficientnet.py checks published weights."""

import pytest
import torch
import torch.nn.functional as F

from flowcore.networks.efficientnet import CHANNELS, EfficientNetLite0


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    network = EfficientNetLite0().eval()
    for buffer in network.buffers():
        fan_in = max(1, buffer[0].numel())
        buffer.copy_(torch.randn(buffer.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return network


def test_features_lie_at_strides_8_16_and_32(network):
    features = network(torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1)))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, (8, 16, 32), strict=True)
    ]
    assert all(f.isfinite().all() and f.std() > 0 for f in features)


def test_no_weight_can_be_trained(network):
    assert not list(network.parameters())
    luma = torch.rand(1, 1, 32, 32, requires_grad=True)
    assert not any(f.requires_grad for f in network(luma))
    assert sum(b.numel() for b in network.buffers()) == pytest.approx(2.94e6, rel=0.01)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_that_of_tensorflow(network, kernel, stride):
    """At stride 2, an even side gets more padding after it than before it."""
    convs = [m for m in network.modules() if getattr(m, "weight", None) is not None and m.groups > 1]
    conv = next(m for m in convs if m.weight.shape[-1] == kernel and m.stride == stride)
    x = torch.rand(1, conv.groups, 12, 16, generator=torch.Generator().manual_seed(2))
    before = (kernel - stride) // 2
    padded = F.pad(x, (before, kernel, before, kernel))
    expected = F.conv2d(padded, conv.weight, conv.bias, stride, groups=conv.groups)[..., : 12 // stride, : 16 // stride]
    assert torch.allclose(conv(x), expected, atol=1e-6)
