"""Photographs for the tests: smooth, colored, textured, and the same every time."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from flowcore.training.data import Photographs
from flowcore.training.recipe import Recipe


def photograph(height, width, seed=0):
    """Draw a few waves and edges; compressible like a photograph, and different for every seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 16
    image = np.zeros((height, width, 3))
    for _ in range(5):
        direction, phase, colour = rng.normal(size=2) * 2, rng.uniform(0, 6), rng.uniform(-1, 1, size=3)
        wave = np.sin(direction[0] * rows + direction[1] * columns + phase)
        image += np.where(wave > 0.3, 1.0, wave)[..., None] * colour
    image = (image - image.min()) / (image.max() - image.min())
    return Image.fromarray((image * 255).round().astype(np.uint8))


def photographs(folder, sizes):
    """Fill a folder with one photograph per (height, width)."""
    folder.mkdir(parents=True)
    for k, (height, width) in enumerate(sizes):
        photograph(height, width, seed=k).save(folder / f"photo{k}.png")
    return folder


def open_photographs(folder, tmp_path, scale=2, progress=None, **options):
    """Open a folder to train on, decoded into a cache beside it."""
    return Photographs(folder, tmp_path / "cache", recipe_of_photographs(scale, **options), progress)


def recipe_of_photographs(scale, **options):
    """Make a recipe that says what is done with photographs, and nothing else."""
    model = SimpleNamespace(scale=scale)
    return Recipe(**{"name": "", "architecture": "", "model": model, "stages": (), "validation": 0, **options})
