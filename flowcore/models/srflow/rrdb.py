"""LR encoders, and residual-in-residual dense blocks, of which HCFlow and LLFlow are made, too."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...flows.transforms import MultiScaleFeatures, ScaledFeatures
from ...images.resize import enlarge


class LREncoder(nn.Module):
    """Features of an LR image on every grid of a flow, and an ordinary enlargement of it, by the integer ``scale``."""

    scale: int

    @abstractmethod
    def residual_blocks(self) -> nn.ModuleList:
        """Return the blocks in series that are most of the work."""

    @abstractmethod
    def forward(
        self, lr: Tensor, grids: Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute the features of LR images ``(B, 3, h, w)`` in [0, 1] and, on request, ``enlargement(lr)``.

        Grid k, from 1, has ``scale / 2^k`` times the sides of LR: at scale 4, grid 1 has twice its sides, grid 2 its
        sides, grid 3 half. The features of a grid are its own, then those that all grids share.
        """

    @abstractmethod
    def enlargement(self, lr: Tensor) -> Tensor:
        """Enlarge ``(B, 3, h, w)`` in [0, 1] deterministically, as trained with L1; not clamped."""

    def by_grid(self, native: dict[int, Tensor], shared: Tensor, grids: Sequence[int]) -> list[Tensor]:
        """Join the features of every grid; arguments as for ``sources_by_grid``."""
        by_grid = sources_by_grid(native, shared, grids, self.scale)
        return [MultiScaleFeatures(sources=sources).merged() for sources in by_grid]


class DenseConvs(nn.Module):
    """Five 3x3 convolutions, each of which sees the input and all outputs before it; leaky ReLU between."""

    def __init__(self, inputs: int, growth: int, outputs: int) -> None:
        """Draw the weights as ESRGAN does: Kaiming normal times 0.1, biases zero; each layer adds ``growth`` maps."""
        super().__init__()
        widths = [growth] * 4 + [outputs]
        self.convs = nn.ModuleList(conv3x3(inputs + growth * k, widths[k]) for k in range(5))
        for name, parameter in self.convs.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter).data.mul_(0.1)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x]
        for conv in self.convs[:-1]:
            inputs.append(activate(conv(torch.cat(inputs, dim=1))))
        return self.convs[-1](torch.cat(inputs, dim=1))


class DenseBlock(DenseConvs):
    """Dense convolutions as a residual scaled by 0.2."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__(width, growth, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * super().forward(x)


class RRDB(nn.Module):
    """Three dense blocks in series, as a residual scaled by 0.2. Source: Wang et al., "ESRGAN", section 3.1."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.dense(x)


class RRDBEncoder(LREncoder):
    """Features of an LR image on every grid of the flow, and an ordinary enlargement of it.

    Unlike in ESRGAN, and as in the published SRFlow, the long skip starts at the last block's output instead of the
    first convolution's, features are taken after the activation, and there is also a half-resolution grid. The outputs
    of ``stacked_blocks`` are part of every grid's features, in this order.

    Source: Lugmayr et al., "SRFlow", section 3.4. The enlargement, bicubic plus a learned residual, is ours.
    """

    def __init__(self, scale: int, blocks: int, width: int, growth: int, stacked_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.stacked_blocks = scale, stacked_blocks
        self.conv_first = conv3x3(3, width)
        self.blocks = nn.ModuleList(RRDB(width, growth) for _ in range(blocks))
        self.conv_trunk = conv3x3(width, width)
        self.conv_up = nn.ModuleList(conv3x3(width, width) for _ in range(round(math.log2(scale))))
        self.conv_hr = conv3x3(width, width)
        self.conv_last = conv3x3(width, 3)

    def forward(
        self, lr: Tensor, grids: Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        features, stack = self._trunk(lr)
        native = {1: features}  # keys: factors from the LR grid
        count = len(self.conv_up) - 1 if with_enlargement else doublings(grids, self.scale)
        for k in range(count):
            native[2 ** (k + 1)] = features = _upsample(self.conv_up[k], features)
        enlarged = self._enlarge(lr, features) if with_enlargement else None
        return self.by_grid(native, stack, grids), enlarged

    def enlargement(self, lr: Tensor) -> Tensor:
        features = self._trunk(lr)[0]
        for conv in self.conv_up[:-1]:
            features = _upsample(conv, features)
        return self._enlarge(lr, features)

    def residual_blocks(self) -> nn.ModuleList:
        return self.blocks

    def _enlarge(self, lr: Tensor, features: Tensor) -> Tensor:
        features = _upsample(self.conv_up[-1], features)
        residual = self.conv_last(activate(self.conv_hr(features)))
        return enlarge(lr, self.scale) + residual.to(lr.dtype)

    def _trunk(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        features, stack = run_blocks(self.blocks, self.conv_first(lr), self.stacked_blocks)
        return features + self.conv_trunk(features), stack


def run_blocks(blocks: nn.ModuleList, x: Tensor, stacked_blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Run RRDBs: the output of the last one, and those of ``stacked_blocks``, ``(B, stacked * width, h, w)``."""
    outputs: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        x = block(x)
        if number in stacked_blocks:
            outputs[number] = x
    return x, torch.cat([outputs[i] for i in stacked_blocks], dim=1) if stacked_blocks else x[:, :0]


def sources_by_grid(
    native: dict[int, Tensor], shared: Tensor, grids: Sequence[int], scale: int
) -> Iterator[tuple[ScaledFeatures, ...]]:
    """Yield ``native`` features, by factor from the LR grid, and ``shared`` ones of LR, for every grid."""
    for grid in grids:
        if 2**grid <= scale:
            factor = scale // 2**grid
            sources = (native[factor], 1), (shared, factor)
        else:  # the half-resolution grid; this bilinear resize is the mean of 2x2 pixels
            half = F.interpolate(native[1], scale_factor=0.5, mode="bilinear", align_corners=False)
            sources = (half, 1), (shared[:, :, ::2, ::2], 1)
        yield sources if shared.shape[1] else sources[:1]


def doublings(grids: Sequence[int], scale: int) -> int:
    """Count how often the LR grid must be doubled for the finest of some grids."""
    return max(0, scale.bit_length() - 1 - min(grids))


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Build a 3x3 convolution with padding 1, which keeps the grid."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def activate(x: Tensor) -> Tensor:
    """Apply the leaky ReLU of these encoders, of slope 0.2."""
    return F.leaky_relu(x, 0.2)


def _upsample(conv: nn.Module, x: Tensor) -> Tensor:
    return activate(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
