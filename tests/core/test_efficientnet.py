"""EfficientNet-Lite0: shapes and padding; benchmarks/read_efficientnet.py checks the published weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowcore.networks.efficientnet import EfficientNetLite0


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    network = EfficientNetLite0().eval()
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel())
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return network.requires_grad_(False)


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
