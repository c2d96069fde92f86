"""The encoder of a colorizer: features of the luma, of color hints and of a palette."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConditionError
from ...flows.networks.conditioner import start_at_zero
from .color_index import CELL
from .efficientnet import CHANNELS, EfficientNetLite0

STRIDE = 4  # luma pixels per position of the finest grid
HINT_PLANES, PALETTE_PLANES = 3, 4
CHROMA_UNIT = 0.1  # chroma that counts as 1 in the planes of hints and palette
MAX_ASPECT = 4  # the longer side of a working image is at most so many times ``working_size``


def working_sides(height: int, width: int, short: int) -> tuple[int, int]:
    """Compute the working size of an image: its proportions, ``short`` as shorter side, in multiples of ``STRIDE``."""
    factor = min(short / min(height, width), MAX_ASPECT * short / max(height, width))
    rows, columns = (max(1, round(side * factor / STRIDE)) * STRIDE for side in (height, width))
    return rows, columns


class LumaEncoder(nn.Module):
    """A feature pyramid of luma and hints: down to a coarse grid with attention between all positions, and up again.

    Hints enter at every grid, pooled to it, and the palette at every position. Features of a backbone are added on the
    way down, at strides 8, 16 and 32, and their average over the photograph at the coarsest grid.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection" (2017); pre-trained to predict colors as in
    Ardizzone et al. 2019.
    """

    def __init__(
        self,
        widths: Sequence[int],
        merged: int,
        features: int,
        *,
        dropout: float = 0.0,
        backbone: bool = False,
        predicts_chroma: bool = False,
        smooth: bool = False,
    ) -> None:
        """Build the network; the backbone's weights are zero until loaded.

        ``widths`` are channels at strides 4, 8, 16, ...; all but the first are of grids. ``merged`` are channels of the
        upward path, ``features`` those of each grid's output before predicted chroma, hints and palette. ``dropout``
        hides channels of the backbone and of the coarser half of the grids, which memorize photographs first.
        ``smooth`` enlarges bilinearly on the upward path.
        """
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        planes = HINT_PLANES + PALETTE_PLANES
        self.outputs = features + 2 * predicts_chroma + planes
        self.upsampling = "bilinear" if smooth else "nearest"
        self.stem = nn.Conv2d(STRIDE**2 + planes, widths[0], 3, padding=1)
        self.first = _Residual(widths[0])
        self.down = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for before, width in pairwise(widths):
            self.down.append(nn.Conv2d(before + planes, width, 3, stride=2, padding=1))
            self.blocks.append(_Residual(width))
        self.attention = _Attention(widths[-1])
        self.lateral = nn.ModuleList(nn.Conv2d(width, merged, 1) for width in widths[1:])
        self.merge = nn.ModuleList(_Residual(merged) for _ in widths[1:])
        self.heads = nn.ModuleList(nn.Conv2d(merged, features, 1) for _ in widths[1:])
        self.backbone = EfficientNetLite0() if backbone else None
        self.taps = nn.ModuleList()
        self.average = nn.Conv2d(CHANNELS[-1], widths[-1], 1) if backbone else None
        self.chroma = nn.ModuleList(nn.Conv2d(merged, 2, 1) for _ in widths[1:]) if predicts_chroma else None
        if backbone:
            self.taps.extend(nn.Conv2d(tapped, width, 1) for tapped, width in zip(CHANNELS, widths[1:], strict=False))
        if self.chroma is not None:
            start_at_zero(self.chroma)

    def forward(self, luma: Tensor, hints: Tensor, palette: Tensor) -> list[Tensor]:
        """Compute features, predicted chroma over ``CHROMA_UNIT``, hints and palette on each grid, finest first.

        ``luma`` is ``(B, 1, H, W)`` in [0, 1], sides multiples of ``4 * 2^grids`` and, with a backbone, of 32.
        ``hints`` is ``(B, 3, H, W)``: coverage in [0, 1], and coverage times Cb and Cr, centered on 0. ``palette`` is
        ``(B, 4)``: whether there is one (0 or 1), mean Cb, mean Cr and colorfulness, all times that.
        """
        results: list[Tensor] = []
        for number, x in enumerate(self._pyramid(luma, hints, palette)):
            features = self.heads[number](x)
            if self.chroma is not None:
                features = torch.cat([features, self.chroma[number](x)], dim=1)
            results.append(_append_hints(features, hints, palette))
        return results

    def predict_chroma(self, luma: Tensor, hints: Tensor, palette: Tensor) -> list[Tensor]:
        """Predict mean Cb and Cr over ``CHROMA_UNIT``, centered on 0, of each grid; arguments as for ``forward``."""
        assert self.chroma is not None
        grids = self._pyramid(luma, hints, palette)
        return [head(x) for head, x in zip(self.chroma, grids, strict=True)]

    def describe(self, luma: Tensor) -> Tensor:
        """Describe the cells of photographs ``(B, 1, H, W)``, to be looked up; see the function ``describe``."""
        if self.backbone is None:
            raise ConditionError("A memory of colors needs a colorizer with a backbone, such as color-photos.")
        return describe(self.backbone(luma), luma)

    def _pyramid(self, luma: Tensor, hints: Tensor, palette: Tensor) -> list[Tensor]:
        """The upward path, finest first: (B, merged, H / stride, W / stride)."""
        features = [] if self.backbone is None else self.backbone(luma)
        tapped = [self.dropout(F.group_norm(x, 1)) for x in features]  # each image's of mean 0 and variance 1
        x = F.pixel_unshuffle((luma - 0.45) / 0.25, STRIDE)  # (B, 16, H/4, W/4)
        x = self.first(self.stem(_append_hints(x, hints, palette)))
        skips: list[Tensor] = []  # features of the downward path, finest first
        for number, (down, block) in enumerate(zip(self.down, self.blocks, strict=True)):
            x = down(_append_hints(x, hints, palette))  # half the sides of the one before
            if number < len(self.taps):
                x = x + self.taps[number](tapped[number])
            x = block(F.leaky_relu(x, 0.1))
            skips.append(x)
        if self.average is not None:
            skips[-1] = skips[-1] + self.average(tapped[-1].mean((2, 3), keepdim=True))
        skips[-1] = self.dropout(self.attention(skips[-1]))
        grids: list[Tensor] = []  # features of the upward path, finest first
        for number in reversed(range(len(skips))):
            x = self.lateral[number](skips[number])
            if grids:
                x = F.interpolate(grids[0], scale_factor=2.0, mode=self.upsampling) + x
            grids.insert(0, self.merge[number](x))
        return [x if number < len(grids) // 2 else self.dropout(x) for number, x in enumerate(grids)]


class _Residual(nn.Module):
    """Two convolutions with a residual connection; the second starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = start_at_zero(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.1)), 0.1))


class _Attention(nn.Module):
    """Self-attention over all positions of a grid, without position embeddings, so that any size fits."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.normalise = nn.GroupNorm(1, width)  # these three names are keys of stored weights
        self.ask = nn.Conv2d(width, 3 * width, 1)
        self.answer = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.ask(self.normalise(x)).flatten(2)  # (B, 3C, N)
        projected = projected.unflatten(1, (3, self.heads, -1)).transpose(-1, -2)  # (B, 3, heads, N, C / heads)
        attended = F.scaled_dot_product_attention(*projected.unbind(1))  # (B, heads, N, C / heads)
        return x + self.answer(attended.transpose(-1, -2).flatten(1, 2).unflatten(-1, x.shape[2:]))


def _append_hints(x: Tensor, hints: Tensor, palette: Tensor) -> Tensor:
    """Append the hints, pooled to the grid of ``x``, and the palette: (B, C + 7, h, w)."""
    pooled = F.adaptive_avg_pool2d(hints, (x.shape[2], x.shape[3]))
    coverage = pooled[:, :1]
    color = pooled[:, 1:] / coverage.clamp_min(1e-6) / CHROMA_UNIT
    strength = coverage.clamp_min(0) ** 0.25  # a stroke is small in a coarse cell, and must be visible there
    scaled = torch.cat([palette[:, :1], palette[:, 1:] / CHROMA_UNIT], dim=1)[:, :, None, None]
    planes = [strength, strength * color, scaled.expand(-1, -1, *x.shape[2:])]
    return torch.cat([x, *(plane.to(x.dtype) for plane in planes)], dim=1)


def split_source(source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split a colorizer's source ``(B, 1, 4 or 8, H, W)`` into arguments of ``LumaEncoder``; missing are zero."""
    planes = 1 + HINT_PLANES + PALETTE_PLANES
    missing = planes - source.shape[1]
    padded = torch.cat([source, source.new_zeros(source.shape[0], missing, *source.shape[2:])], dim=1)
    return padded[:, :1], padded[:, 1 : 1 + HINT_PLANES], padded[:, 1 + HINT_PLANES :].mean((2, 3))


def describe(features: Sequence[Tensor], luma: Tensor) -> Tensor:
    """Describe the cells of photographs ``(B, 1, H, W)`` in [0, 1]: ``(B, WIDTH, H / 16, W / 16)``.

    With the features f8, f16 and f32 of ``EfficientNetLite0`` at strides 8, 16 and 32, and n dividing by the norm over
    channels: ``[n(f16), n(f32 enlarged), n(f8 halved) / 2, 1.05 n(mean of f32 over the photograph), luma / 2]``.
    """
    fine, middle, coarse = features
    size = middle.shape[2:]
    overall = F.normalize(coarse.mean((2, 3), keepdim=True)).expand(-1, -1, *size)
    enlarged = F.normalize(F.interpolate(coarse, size, mode="bilinear"))
    halved = F.normalize(F.avg_pool2d(fine, 2))
    return torch.cat(
        [F.normalize(middle), enlarged, 0.5 * halved, 1.05 * overall, 0.5 * F.avg_pool2d(luma, CELL)], dim=1
    )
