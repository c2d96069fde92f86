"""Training data: photographs for upscalers and flows without a condition, colours for colorizers, labelled digits.

Whatever it is, ``batch(size, crop, seed, step)`` is a function of what it is given alone and may be called from any
thread, and ``training``, ``held_out`` and ``skipped`` say what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import FlowError
from ..tasks import Progress
from .colors import Colours
from .digits import Digits, read_idx
from .photographs import Entry, Photographs
from .pictures import Picture, find_pictures
from .recipe import Recipe, held_out_names

__all__ = ["Colours", "Data", "Digits", "Entry", "Photographs", "Picture", "find_pictures", "open_data", "read_idx"]

Data = Photographs | Colours | Digits


def open_data(recipe: Recipe, data: Path | Sequence[Path], cache: Path, progress: Progress | None = None) -> Data:
    """Open what a recipe trains on.

    Args:
        recipe: The recipe.
        data: Folders of images at any depth, or ZIP archives; for class-conditional models one folder, of the four
            files of MNIST.
        cache: Where decoded pixels are kept.
        progress: Called with every picture that is decoded for the first time.

    Returns:
        The data.

    Raises:
        FlowError: If there are several folders for a model that takes one.
    """
    if recipe.architecture == "class_conditional":
        if not isinstance(data, Path):
            raise FlowError("Labelled digits come from one folder, that of the four files of MNIST; got several.")
        return Digits(data, validation=recipe.validation, unlabelled=recipe.unlabelled)
    photographs = Photographs(
        data,
        cache,
        scale=getattr(recipe.model, "scale", 1),
        pyramid=recipe.pyramid,
        validation=recipe.validation,
        held_out=held_out_names(recipe.held_out),
        turn=recipe.turn,
        short_sides=recipe.short_sides,
        degradation=recipe.degradation,
        degradation_strength=recipe.degradation_strength,
        progress=progress,
    )
    return Colours(photographs) if recipe.architecture == "colorizer" else photographs
