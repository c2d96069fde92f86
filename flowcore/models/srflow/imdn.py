"""Published upscalers, local and small: IMDN, the LR encoder of a flow, and a plain one, which may guide a flow."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device import no_autocast
from ...images.resize import enlarge
from .rrdb import LREncoder, activate, conv3x3, doublings


class DistillationBlock(nn.Module):
    """Three convolutions that keep a quarter of their channels and pass the rest on, a last one, and a skip.

    Source: Hui et al., "Lightweight Image Super-Resolution with Information Multi-distillation Network" (2019), section
    3.2, without its attention over the whole image, as in the baseline of the NTIRE 2022 challenge.
    """

    def __init__(self, distilled: int) -> None:
        super().__init__()
        self.distilled = distilled
        d = distilled
        widths = [(4 * d, 4 * d), (3 * d, 4 * d), (3 * d, 4 * d), (3 * d, d)]
        self.convs = nn.ModuleList(conv3x3(*width) for width in widths)
        self.fuse = nn.Conv2d(4 * distilled, 4 * distilled, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        rest = x
        for conv in self.convs[:-1]:
            part, rest = F.leaky_relu(conv(rest), 0.05).split([self.distilled, 3 * self.distilled], dim=1)
            parts.append(part)
        return x + self.fuse(torch.cat([*parts, self.convs[-1](rest)], dim=1))


class IMDN(nn.Module):
    """An upscaler with a finite receptive field: every output pixel reads a window of the image.

    A factor of 8 is one of 4, and then bicubic resize. Each convolution of a block keeps ``distilled`` channels; the
    trunk is four times as wide. The image itself passes along the skips, which stay in float32 under autocast.

    Source: Hui et al. 2019, figure 2, in the form of the baseline of the NTIRE 2022 challenge on efficient
    super-resolution: the long skip starts at the first convolution, and there is no bicubic part.
    """

    def __init__(self, scale: int, blocks: int, distilled: int) -> None:
        super().__init__()
        self.scale, self.network_scale = scale, min(scale, 4)
        self.conv_first = conv3x3(3, 4 * distilled)
        self.blocks = nn.ModuleList(DistillationBlock(distilled) for _ in range(blocks))
        self.conv_trunk = conv3x3(4 * distilled, 4 * distilled)
        self.conv_last = conv3x3(4 * distilled, 3 * self.network_scale**2)

    def features(self, lr: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the trunk's features, and the outputs of all blocks, ``(B, 4 * distilled, h, w)`` each."""
        with no_autocast(lr.device):
            first = x = self.conv_first(lr)
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return first + self.conv_trunk(x), outputs

    def enlarge(self, trunk: Tensor) -> Tensor:
        """Map the trunk's features to the enlargement, ``(B, 3, scale * h, scale * w)``."""
        with no_autocast(trunk.device):
            return self.at_scale(F.pixel_shuffle(self.conv_last(trunk), self.network_scale))

    def at_scale(self, picture: Tensor) -> Tensor:
        """Enlarge from ``network_scale``, at most 4, to ``scale``."""
        return picture if self.scale == self.network_scale else enlarge(picture, self.scale // self.network_scale)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge images ``(B, 3, h, w)`` in [0, 1] to ``(B, 3, scale * h, scale * w)``, not clamped."""
        return self.enlarge(self.features(lr)[0])


class IMDNEncoder(LREncoder):
    """An IMDN, and an adapter that turns its features into those that a flow expects.

    The adapter reads the trunk and the outputs of ``stacked_blocks``, in this order: a 1x1 convolution, two 3x3
    convolutions beside the identity, and for every grid that is finer than LR a 3x3 convolution, pixel shuffle and
    another one. ``width`` channels are native to each grid, and ``width`` on the LR grid are shared by all.

    Source: ours; see docs/decisions/0017. The features imitate those of the flow's original encoder, as in Romero et
    al., "FitNets" (2015), section 2.2.
    """

    def __init__(self, scale: int, blocks: int, width: int, distilled: int, stacked_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.stacked_blocks = scale, stacked_blocks
        self.backbone = IMDN(scale, blocks, distilled)
        self.gather = nn.Conv2d(4 * distilled * (1 + len(stacked_blocks)), 2 * width, 1)
        self.mix = nn.ModuleList(conv3x3(2 * width, 2 * width) for _ in range(2))
        finer = range(scale.bit_length() - 2)
        self.conv_up = nn.ModuleList(conv3x3(width if k else 2 * width, 4 * width) for k in finer)
        self.conv_fine = nn.ModuleList(conv3x3(width, width) for _ in finer)

    def forward(
        self, lr: Tensor, grids: Sequence[int], *, with_enlargement: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        trunk, outputs = self.backbone.features(lr)
        x = activate(self.gather(torch.cat([trunk, *(outputs[k] for k in self.stacked_blocks)], dim=1)))
        x = x + self.mix[1](activate(self.mix[0](x)))
        native_lr, shared = x.chunk(2, dim=1)
        native = {1: native_lr}  # keys: factors from the LR grid
        for k in range(doublings(grids, self.scale)):
            x = activate(F.pixel_shuffle(self.conv_up[k](x), 2))
            native[2 ** (k + 1)] = x = activate(self.conv_fine[k](x))
        return self.by_grid(native, shared, grids), self.backbone.enlarge(trunk) if with_enlargement else None

    def enlargement(self, lr: Tensor) -> Tensor:
        return self.backbone(lr)

    def residual_blocks(self) -> nn.ModuleList:
        return self.backbone.blocks


class CompactUpscaler(nn.Module):
    """3x3 convolutions, each but the last followed by a PReLU of every channel, then pixel shuffle.

    They add to the image, enlarged by repeating its pixels. Nothing is global: an output pixel sees as many LR pixels
    around it as there are convolutions.

    Source: the compact network of Wang, Xie, Dong, Shan, "Real-ESRGAN" (2021), in its repository's release 0.2.5.
    """

    def __init__(self, scale: int, layers: int, width: int) -> None:
        super().__init__()
        self.scale, self.width = scale, width
        widths = [3, *[width] * (layers - 1), 3 * scale**2]
        self.convs = nn.ModuleList(conv3x3(*pair) for pair in pairwise(widths))
        self.activations = nn.ModuleList(nn.PReLU(width) for _ in range(layers - 1))

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge images ``(B, 3, h, w)`` in [0, 1] to ``(B, 3, scale * h, scale * w)``, not clamped."""
        x = lr
        for conv, activation in zip(self.convs, self.activations, strict=False):
            x = activation(conv(x))
        repeated = F.interpolate(lr, scale_factor=self.scale, mode="nearest")
        return F.pixel_shuffle(self.convs[-1](x), self.scale) + repeated
