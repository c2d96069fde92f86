"""Training data of upscalers and unconditional flows: random crops of photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError
from ..tasks import Progress
from .degradation import darken, degrade, draw_degradation
from .pixel_cache import Entry, describe, open_pixel_cache
from .recipe import Recipe, held_out_names


class Photographs:
    """Crops of 8-bit images; for upscalers pairs of HR and LR crops, for low-light models of bright and dark ones.

    The recipe says at which sizes images are used, what is held out, and how crops are cut and degraded. With realistic
    degradation LR crops are made anew every time, with blur, noise and JPEG; HR crops stay the same. The crops of a
    training step are a function of (seed, step) alone: that is what makes resuming exact.
    """

    def __init__(
        self, folders: Path | Sequence[Path], cache: Path, recipe: Recipe, progress: Progress | None = None
    ) -> None:
        held_out = held_out_names(recipe.held_out)
        self.cache = open_pixel_cache(folders, cache, recipe, progress)
        self.recipe = recipe
        self.skipped = self.cache.skipped
        names = sorted({entry.name for entry in self.cache.entries})
        held = {name for name in names if PurePosixPath(name).name in held_out}
        if not held:
            count = min(recipe.validation, max(1, len(names) // 2), len(names) - 1)
            held = {names[round(k * len(names) / count)] for k in range(count)}
        if len(held) == len(names):
            raise ImageError(
                f"All {len(names)} images in {describe(folders)} are on the list of images that are held out of "
                "training. Add others, or leave held_out out of the recipe."
            )
        self.training = [entry for entry in self.cache.entries if entry.name not in held]
        self.held_out = [entry for entry in self.cache.entries if entry.name in held]
        self._candidates = lru_cache(maxsize=None)(self._list_candidates)

    def leave_out(self, unsuitable: Callable[[np.ndarray], bool], reason: str) -> None:
        """Leave out the images that a predicate of their pixels, ``(H, W, 3)`` uint8, is true for."""
        by_name: dict[str, bool] = {}
        for entry in self.cache.entries:
            if entry.name not in by_name:
                by_name[entry.name] = unsuitable(self.cache.images(entry)[0])
        self.skipped += [f"{name}: {reason}" for name, out in by_name.items() if out]
        self.training = [entry for entry in self.training if not by_name[entry.name]]
        self.held_out = [entry for entry in self.held_out if not by_name[entry.name]]
        if not self.training:
            raise ImageError(f"No image is left to train on: each one {reason}. Add others.")

    def batch(
        self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Cut the crops of one step, rotated and mirrored at random, from the training or the held-out photographs.

        HR ``(B, 3, crop, crop)`` and LR ``(B, 3, crop / scale, crop / scale)``, float32 in [0, 1]; of low-light models
        the dark crop for LR; of others with scale 1 None.
        """
        rng = np.random.default_rng([seed, step, int(held_out)])
        chosen = self._choose(size, crop, held_out, rng)
        # the degradation has a generator of its own, so that HR crops do not depend on it
        degradation_rng = np.random.default_rng([seed, step, int(held_out), 2])
        pairs = [self._crop(entry, crop, rng, degradation_rng) for entry in chosen]
        paired = self.recipe.scale > 1 or self.recipe.degradation == "dark"
        return _to_batch([hr for hr, _ in pairs]), _to_batch([lr for _, lr in pairs]) if paired else None

    def names(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> list[str]:
        """Name the photographs that the crops of a step are cut from; arguments as for ``batch``."""
        rng = np.random.default_rng([seed, step, int(held_out)])
        return [entry.name for entry in self._choose(size, crop, held_out, rng)]

    def fitting(self, crop: int, *, held_out: bool = False) -> list[Entry]:
        """List the training or held-out images whose sides are both at least as long as the crop."""
        return self._candidates(crop, held_out)[0]

    def _choose(self, size: int, crop: int, held_out: bool, rng: np.random.Generator) -> list[Entry]:
        entries, probabilities = self._candidates(crop, held_out)
        return [entries[i] for i in rng.choice(len(entries), size, p=probabilities)]

    def _list_candidates(self, crop: int, held_out: bool) -> tuple[list[Entry], np.ndarray]:
        """Images to cut from, and their probabilities."""
        entries = [e for e in (self.held_out if held_out else self.training) if min(e.height, e.width) >= crop]
        # all sizes of a photograph are equally likely
        if self.recipe.sampling == "photograph":
            sizes = Counter(e.name for e in entries)
            weights = np.array([1 / sizes[e.name] for e in entries])
        else:
            weights = np.array([e.height * e.width / e.factor**2 for e in entries], dtype=np.float64)
        return entries, weights / weights.sum() if entries else weights

    def _crop(
        self, entry: Entry, crop: int, rng: np.random.Generator, degradation_rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        hr, lr = self.cache.images(entry)
        recipe, s = self.recipe, self.recipe.scale
        small = crop // s
        top = int(rng.integers(0, lr.shape[0] - small + 1))
        left = int(rng.integers(0, lr.shape[1] - small + 1))
        turn, mirror = int(rng.integers(4)) if recipe.turn else 0, bool(rng.integers(2))
        if recipe.degradation == "realistic" and s > 1:
            way = draw_degradation(degradation_rng, recipe.degradation_strength)
            lr = degrade(hr, s, top, left, small, way, degradation_rng)
        else:
            lr = lr[top : top + small, left : left + small]
        hr = hr[top * s : top * s + crop, left * s : left * s + crop]
        if recipe.degradation == "dark":
            lr = darken(hr, degradation_rng)
        hr, lr = (np.rot90(x, turn) for x in (hr, lr))
        return (hr[:, ::-1], lr[:, ::-1]) if mirror else (hr, lr)


def _to_batch(crops: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(crops))  # (B, H, W, 3) uint8
    return stacked.permute(0, 3, 1, 2).float().div_(255)  # stays channels-last in memory
