"""A person's folder of images, checked before hours of training begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..images.files import IMAGE_SUFFIXES

MOST_LOOKED_AT = 100_000  # files and folders, before the first image


def training_files(folder: Path, *, digits: bool | None) -> list[Path]:
    """List the files of a folder that can be trained on, sorted.

    Args:
        folder: The folder; images may lie at any depth, files of MNIST directly in it.
        digits: True for files of MNIST, False for images, None for both.
    """
    return sorted(filter(_fits(folder, digits), folder.rglob("*")))


def folder_problem(folder: Path, *, digits: bool | None) -> str | None:
    """Check that a folder holds something to train on.

    Only as far as the first such file, and never for ever: a server waits for the answer.

    Args:
        folder: The folder, which exists.
        digits: As in ``training_files``.

    Returns:
        What is wrong, in a sentence; None if nothing is.
    """
    sought = (
        "file of MNIST (train-images-idx3-ubyte and the other three, gzipped or not), which this recipe needs"
        if digits
        else f"image ({', '.join(sorted(IMAGE_SUFFIXES))})"
    )
    fits, files = _fits(folder, digits), 0
    for looked_at, entry in enumerate(folder.rglob("*")):
        if looked_at == MOST_LOOKED_AT:
            return f"the first {looked_at} things in {folder} are no {sought}. Choose a folder inside it."
        if fits(entry):
            return None
        files += entry.is_file()
    return f"{folder} holds {files} files and no {sought}, at any depth."


def _fits(folder: Path, digits: bool | None) -> Callable[[Path], bool]:
    def fits(file: Path) -> bool:
        is_image = digits is not True and file.suffix.lower() in IMAGE_SUFFIXES
        is_digits = digits is not False and "-idx" in file.name and file.parent == folder
        return (is_image or is_digits) and file.is_file()

    return fits
