"""The training data that a recipe asks for.

Whatever the kind, ``batch(size, crop, seed, step)`` is a function of its arguments alone and may be called from any
thread; ``training``, ``held_out`` and ``skipped`` list what there is.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FlowError, ImageError
from ..models.colorizer import ColorizerConfig
from ..tasks import Progress
from .image_sources import Entry
from .photographs import ColorPhotographs, Photographs, is_gray
from .recipe import Recipe


class Digits:
    """Labeled gray images of the files ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, gzipped or not.

    The last ones are held out for validation. With ``labeled``, the share ``unlabeled`` of the others has the label
    "not given", which is the number of classes; without, batches have no labels. The digits of a training step are a
    function of (seed, step) alone.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998).
    """

    skipped: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, validation: int = 0, labeled: bool = True, unlabeled: float = 0.0) -> None:
        self.images = read_idx(folder, "train-images-idx3-ubyte")  # (N, 28, 28)
        self.labels = read_idx(folder, "train-labels-idx1-ubyte")
        self.classes = int(self.labels.max()) + 1
        self.labeled, self.unlabeled = labeled, unlabeled
        count = len(self.images) - min(validation, len(self.images) - 1)
        self.training, self.held_out = np.arange(count), np.arange(count, len(self.images))

    def batch(
        self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Draw digits ``(B, 1, 28, 28)`` of one step in [0, 1], never cropped, and their labels ``(B,)``, if labeled.

        Held-out digits all have theirs.
        """
        rng = np.random.default_rng([seed, step, int(held_out)])
        chosen = rng.choice(self.held_out if held_out else self.training, size)
        labels = self.labels[chosen].astype(np.int64)
        if not held_out:
            labels[rng.random(size) < self.unlabeled] = self.classes
        images = torch.from_numpy(self.images[chosen])[:, None].float() / 255
        return images, torch.from_numpy(labels) if self.labeled else None

    def fitting(self, crop: int, *, held_out: bool = False) -> np.ndarray:
        return self.held_out if held_out else self.training


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one of MNIST's files, gzipped or not, as uint8; raise ImageError if it is missing or damaged."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ImageError(f"There is no {name} or {name}.gz in {folder}. Expected the four files of MNIST.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, dimensions = content[2], content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
        if content[:2] != b"\0\0" or kind != 8:
            raise ValueError(f"it starts with {content[:4]!r}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ImageError(f"{path.name} is not a file of MNIST, or damaged ({error}). Download it again.") from error


# --- of any recipe ----------------------------------------------------------------------------------------------------

Data = Photographs | Digits


def open_data(recipe: Recipe, data: Path | Sequence[Path], cache: Path, progress: Progress | None = None) -> Data:
    """Open the training data of a recipe, with decoded pixels in the cache folder.

    That is folders of images, or ZIP archives; for models of gray images one folder, of the files of MNIST.
    """
    if recipe.takes_digits:
        if not isinstance(data, Path):
            raise FlowError("Digits come from one folder, that of the four files of MNIST; got several.")
        labeled = getattr(recipe.model, "classes", 0) > 0
        return Digits(data, validation=recipe.validation, labeled=labeled, unlabeled=recipe.unlabelled)
    if not isinstance(recipe.model, ColorizerConfig):
        return Photographs(data, cache, recipe, progress)
    colors = ColorPhotographs(data, cache, recipe, progress)
    colors.leave_out(is_gray, "has no color")
    return colors


def count_images(entries: Sequence[Any]) -> str:
    """Count photographs, however many sizes there are of each; or digits."""
    names = {entry.name for entry in entries if isinstance(entry, Entry)}
    if not names:
        return f"{len(entries)} images"
    sizes = f" in {len(entries)} sizes" if len(entries) > len(names) else ""
    return f"{len(names)} photograph{'' if len(names) == 1 else 's'}{sizes}"
