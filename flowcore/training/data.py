"""The training data that a recipe asks for.

Whatever the kind, ``batch(size, crop, seed, step)`` is a function of its arguments alone and may be called from any
thread; ``training``, ``held_out`` and ``skipped`` list what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FlowError
from ..models.colorizer import ColorizerConfig
from ..tasks import Progress
from .colors import ColorPhotographs, is_gray
from .digits import Digits
from .photographs import Photographs
from .pixel_cache import Entry
from .recipe import Recipe

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
