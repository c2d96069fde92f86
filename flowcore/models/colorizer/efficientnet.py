"""EfficientNet-Lite0 up to stride 32: what a photograph shows, as features of its luma."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from ...flows.networks.conditioner import start_at_zero

# Stages of table 1 with the Lite variant's first stage: repeats, kernel, stride, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),  # stride 8
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),  # stride 16
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),  # stride 32
)
STEM = 32
TAPPED = (2, 4, 6)  # stages whose outputs are returned
CHANNELS = tuple(STAGES[stage][-1] for stage in TAPPED)


class EfficientNetLite0(nn.Module):
    """The convolutional trunk of EfficientNet-Lite0 as a feature extractor for luma.

    Batch norms are folded into the convolutions before them, and the stem's three input channels into one.

    Source: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), table 1 and
    section 4, in the Lite variant; Sandler et al., "MobileNetV2" (2018), section 3.3.
    """

    def __init__(self) -> None:
        """Build the network with all weights zero; ``load_state_dict`` fills them."""
        super().__init__()
        self.stem = _SameConv(1, STEM, kernel=3, stride=2)
        channels, self.stages = STEM, nn.ModuleList()
        for repeats, kernel, stride, expansion, width in STAGES:
            first = _Bottleneck(channels, width, kernel, stride, expansion)
            others = (_Bottleneck(width, width, kernel, 1, expansion) for _ in range(repeats - 1))
            self.stages.append(nn.Sequential(first, *others))
            channels = width

    def forward(self, luma: Tensor) -> list[Tensor]:
        """Compute 40, 112 and 320 channels at strides 8, 16 and 32 of luma in [0, 1], sides multiples of 32."""
        return [x for stage, x in enumerate(self.outputs(luma), start=-1) if stage in TAPPED]

    def outputs(self, luma: Tensor) -> Iterator[Tensor]:
        """Yield the output of the stem, ``(B, 32, H / 2, W / 2)``, and then of every stage."""
        x = F.relu6(self.stem((255 * luma - 127) / 128))
        yield x
        for stage in self.stages:
            yield (x := stage(x))


class _Bottleneck(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, project back; beside the identity where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _SameConv(inputs, hidden, kernel=1) if expansion > 1 else None
        self.depthwise = _SameConv(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self.project = _SameConv(hidden, outputs, kernel=1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding (more after even sides than before), all weights zero at first."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        start_at_zero(self)
        total = kernel - stride
        self.border = (total // 2, total - total // 2) * 2

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.border) if any(self.border) else input)
