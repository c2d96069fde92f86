"""Training data of colorizers: crops of photographs, aged, with hints and palettes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.color import NEUTRAL, luma, merge, palette_from_chroma, split
from ..networks.luma import STRIDE
from .photographs import Entry, Photographs


class Colours:
    """Crops of photographs for colorizers: chroma, and the luma and the hints to make it from.

    Hints and palettes are taken from the crop's own colours, for a part of the crops each. Luma and chroma are varied
    as old photographs and cameras do: exposure, contrast and grain of the luma alone, saturation and white balance of
    the chroma alone. Held-out crops are not varied and have no hints.
    """

    def __init__(self, photographs: Photographs, *, hinted: float = 0.6, palettes: float = 0.15) -> None:
        """Hold the photographs.

        Args:
            photographs: Where crops come from; of scale 1.
            hinted: Part of the crops that come with hints.
            palettes: Part of the crops that come with a palette.
        """
        self.photographs = photographs
        self.hinted = hinted
        self.palettes = palettes
        self.skipped = photographs.skipped
        self.training = photographs.training
        self.held_out = photographs.held_out

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Cut the crops of one step.

        Args:
            size: B.
            crop: Side of the luma.
            seed: Of the run.
            step: Number of the step.
            held_out: Whether to cut from the validation photographs.

        Returns:
            Chroma as a colorizer takes it, ``(B, 2, crop / 4, crop / 4)``, and its source ``(B, 8, crop, crop)``.

        Raises:
            ImageError: If no image is as large as the crop.
        """
        rgb = self.photographs.batch(size, crop, seed, step, held_out=held_out)[0].contiguous()
        y, chroma = split(rgb)
        rng = np.random.default_rng([seed, step, int(held_out), 1])
        if not held_out:
            chroma = _recoloured(chroma, rng)
            y = _aged(luma(merge(y, chroma).clamp_(0, 1)), rng)
        coarse = F.avg_pool2d(chroma, STRIDE)  # (B, 2, crop / 4, crop / 4)
        source = torch.zeros(size, 8, crop, crop)  # luma, 3 planes of hints, 4 of the palette
        source[:, :1] = y
        for i in range(0 if held_out else size):
            if rng.random() < self.hinted:
                source[i, 1:4] = _hints(coarse[i], rng)
            if rng.random() < self.palettes:
                source[i, 4:] = palette_from_chroma(coarse[i : i + 1])[0][:, None, None]
        return coarse + NEUTRAL, source

    def fitting(self, crop: int, *, held_out: bool = False) -> list[Entry]:
        """List the images that a crop fits into.

        Args:
            crop: Side of the crops.
            held_out: Whether to look among the validation photographs.

        Returns:
            Entries with both sides at least as long as the crop.
        """
        return self.photographs.fitting(crop, held_out=held_out)


def _recoloured(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary saturation by a fifth, and the white balance a little."""
    size = len(chroma)
    saturation = torch.from_numpy(rng.uniform(0.8, 1.2, (size, 1, 1, 1))).float()
    balance = torch.from_numpy(rng.normal(0, 0.008, (size, 2, 1, 1))).float()
    return chroma * saturation + balance


def _aged(y: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary exposure and contrast; add grain to a third."""
    size = len(y)

    def numbers(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (size, 1, 1, 1))).float()

    y = y.clamp(0, 1).pow_(numbers(0.8, 1.25)).mul_(numbers(0.9, 1.0)).add_(numbers(0, 0.08))
    noise = torch.from_numpy(rng.standard_normal(y.shape, dtype=np.float32))
    return y.add_(noise.mul_(numbers(-0.1, 0.05).clamp_min(0))).clamp_(0, 1)


def _hints(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint 1 to 16 squares of the image's own colours: (3, H, W) at the luma's size."""
    height, width = chroma.shape[1:]
    largest = min(6, height, width)
    planes = torch.zeros(3, height, width)
    for _ in range(int(2 ** rng.uniform(0, 4))):
        side = int(rng.integers(1, largest + 1))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        square = slice(top, top + side), slice(left, left + side)
        planes[0][square] = 1
        planes[1:, square[0], square[1]] = chroma[:, square[0], square[1]].mean((1, 2), keepdim=True)
    return F.interpolate(planes[None], scale_factor=STRIDE, mode="nearest")[0]
