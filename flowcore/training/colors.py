"""Training data of colorizers: photographs with their luma aged, and with hints and palettes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.color import NEUTRAL, luma, merge, palette_from_chroma, split
from ..networks.luma import STRIDE
from ..networks.memory import CELL
from .photographs import Photographs
from .recall import Recall

GRAY = 0.008  # standard deviation of a channel's difference from gray, below which a photograph counts as uncolored


class ColorPhotographs(Photographs):
    """Crops of photographs for colorizers: chroma, and the luma and hints to predict it from.

    Hints and palettes are taken from the crop's own colors, for a share of the crops each. Luma and chroma are varied
    as old photographs and cameras do: exposure, contrast and grain of the luma alone, saturation and white balance of
    the chroma alone. Held-out crops are not varied and have no hints.
    """

    hinted = 0.5  # share of the crops that have hints
    palettes = 0.1  # likewise
    recall: Recall | None = None  # of the model that is trained, if it has a memory

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Cut the crops of one step, see ``Photographs.batch``; ``crop`` is the side of the luma.

        Chroma as a colorizer takes it, ``(B, 2, crop / 4, crop / 4)``, and its source ``(B, 8, crop, crop)``; with a
        memory to recall from ``(B, 13, crop, crop)``.
        """
        rgb = super().batch(size, crop, seed, step, held_out=held_out)[0].contiguous()
        y, chroma = split(rgb)
        rng = np.random.default_rng([seed, step, int(held_out), 1])
        if not held_out:
            chroma = _vary_chroma(chroma, rng)
            y = _vary_luma(luma(merge(y, chroma).clamp_(0, 1)), rng)
        coarse = F.avg_pool2d(chroma, STRIDE)  # (B, 2, crop / 4, crop / 4)
        source = torch.zeros(size, 8, crop, crop)  # luma, 3 planes of hints, 4 of the palette
        source[:, :1] = y
        for i in range(0 if held_out else size):
            if rng.random() < self.hinted:
                source[i, 1:4] = _draw_hints(coarse[i], rng)
            if rng.random() < self.palettes:
                source[i, 4:] = palette_from_chroma(coarse[i : i + 1])[0][:, None, None]
        if self.recall is not None:
            names = self.names(size, crop, seed, step, held_out=held_out)
            recalled = self.recall(y, names, None if held_out else rng)
            blocks = recalled.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
            source = torch.cat([source, blocks], dim=1)
        return coarse + NEUTRAL, source


def is_gray(pixels: np.ndarray) -> bool:
    """Tell whether an image, ``(H, W, 3)`` uint8, has one tint at most, as scans of old photographs do."""
    sample = pixels[::8, ::8].astype(np.float32) / 255
    differences = sample - sample.mean(2, keepdims=True)
    return float(differences.std((0, 1)).max()) < GRAY


def _vary_chroma(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary saturation by up to a fifth, and white balance slightly."""
    size = len(chroma)
    saturation = torch.from_numpy(rng.uniform(0.8, 1.2, (size, 1, 1, 1))).float()
    balance = torch.from_numpy(rng.normal(0, 0.008, (size, 2, 1, 1))).float()
    return chroma * saturation + balance


def _vary_luma(y: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary exposure and contrast; add grain to a third of the crops."""
    size = len(y)

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (size, 1, 1, 1))).float()

    y = y.clamp(0, 1).pow_(uniform(0.8, 1.25)).mul_(uniform(0.9, 1.0)).add_(uniform(0, 0.08))
    noise = torch.from_numpy(rng.standard_normal(y.shape, dtype=np.float32))
    return y.add_(noise.mul_(uniform(-0.1, 0.05).clamp_min(0))).clamp_(0, 1)


def _draw_hints(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint 1 to 16 squares of the image's own colors: coverage and chroma, (3, H, W) at the size of the luma."""
    height, width = chroma.shape[1:]
    largest = min(6, height, width)
    planes = torch.zeros(3, height, width)
    for _ in range(int(2 ** rng.uniform(0, 4))):
        side = int(rng.integers(1, largest + 1))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        rows, columns = slice(top, top + side), slice(left, left + side)
        planes[0, rows, columns] = 1
        planes[1:, rows, columns] = chroma[:, rows, columns].mean((1, 2), keepdim=True)
    return F.interpolate(planes[None], scale_factor=STRIDE, mode="nearest")[0]
