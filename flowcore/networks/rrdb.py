"""Residual-in-residual dense blocks: SRFlow's LR encoder, HCFlow's feature extractors, and dense couplings."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..images.resize import enlarge
from .lr_encoder import LREncoder, activate, conv3x3, doublings, grids_wanted


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
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(activate(conv(torch.cat(seen, dim=1))))
        return self.convs[-1](torch.cat(seen, dim=1))


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
    first convolution's; the features are the activated tensors; there is a half-resolution grid. The outputs of
    ``stacked_blocks`` are part of every grid's features, in this order.

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
        self, lr: Tensor, levels: int | Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        wanted = grids_wanted(levels)
        features, stack = self._trunk(lr)
        native = {1: features}  # by factor from the LR grid
        for k in range(len(self.conv_up) - 1 if with_enlargement else doublings(wanted, self.scale)):
            native[2 ** (k + 1)] = features = _upsample(self.conv_up[k], features)
        enlarged = self._enlarge(lr, features) if with_enlargement else None
        return self.by_grid(native, stack, wanted), enlarged

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


class HierarchicalExtractor(nn.Module):
    """Features of one level of an HCFlow, from its kept channels and the features of all deeper levels.

    ``f0 = conv([kept, up(deeper)...])``, ``f1 = blocks(f0)``, ``f2 = conv(blocks(f1)) + f0``; the features are ``[f1,
    f2]``, ``2 * width`` channels, if ``both``, else ``f2``.

    Source: Liang et al., "Hierarchical Conditional Flow" (2021), section 3 and its program.
    """

    def __init__(
        self, kept: int, deeper: int, blocks: tuple[int, int], width: int, growth: int, *, both: bool = True
    ) -> None:
        super().__init__()
        self.both = both
        self.features = width * (2 if both else 1)
        self.conv_first = conv3x3(kept + deeper * self.features, width)
        self.first, self.second = (nn.Sequential(*(RRDB(width, growth) for _ in range(count))) for count in blocks)
        self.conv_last = conv3x3(width, width)

    def forward(self, kept: Tensor, deeper: Sequence[Tensor]) -> Tensor:
        """Compute ``(B, features, H, W)``; ``deeper`` lists the next level first, at half the sides, and so on."""
        enlarged = [F.interpolate(f, scale_factor=2 ** (k + 1), mode="nearest") for k, f in enumerate(deeper)]
        start = self.conv_first(torch.cat([kept, *enlarged], dim=1))
        middle = self.first(start)
        end = self.conv_last(self.second(middle)) + start
        return torch.cat([middle, end], dim=1) if self.both else end


def _upsample(conv: nn.Module, x: Tensor) -> Tensor:
    return activate(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
