"""Folders of files, linked ones included, but not those that lead back; and the images in them."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ImageError
from .files import IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder, at any depth, sorted; log what is left out. ImageError if there are none."""
    left_out = dict[Path, str]()
    paths = [path for path in walk_files(folder, left_out) if path.suffix.lower() in IMAGE_SUFFIXES]
    files = sorted(path for path in paths if path.is_file())
    left_out |= {path: "a broken link" for path in paths if not path.exists()}
    for path, reason in left_out.items():
        logging.getLogger("flowcore").warning("Left out: %s, %s.", path, reason)
    if not files:
        raise ImageError(
            f"No images in {folder}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, at any depth."
        )
    return files


def walk_files(folder: Path, left_out: dict[Path, str]) -> Iterator[Path]:
    """List the files of a folder at any depth; see ``walk_folders``."""
    return (Path(here, name) for here, names in walk_folders(folder, left_out) for name in names)


def walk_folders(top: Path, left_out: dict[Path, str]) -> Iterator[tuple[str, list[str]]]:
    """List a folder and those in it at any depth, linked ones too, with the names of their files.

    ``left_out`` gets what is not listed, and why: links to a folder on the way to them, folders that cannot be opened.
    """

    def skip(error: OSError) -> None:
        left_out[Path(error.filename).absolute()] = "a folder that cannot be opened"

    for here, folders, names in os.walk(top, followlinks=True, onerror=skip):
        for folder in [Path(here, name) for name in sorted(folders) if Path(here, name).is_symlink()]:
            real = folder.resolve()
            if any(above.resolve().is_relative_to(real) for above in folder.absolute().parents):
                left_out[folder.absolute()] = "a link that leads back"
                folders.remove(folder.name)
        folders.sort()
        yield here, names
