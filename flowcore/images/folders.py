"""Folders of files, linked ones included, but not those that lead back; and the images in them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ImageError
from .files import IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder, at any depth, sorted; ImageError if there are none.

    Broken links, and folders that cannot be opened or lead back, are named in the log.
    """
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
    """List the folders of a folder at any depth, itself and linked ones included, with the names of their files.

    ``left_out`` gets what is not listed, and why: links that lead back, and folders that cannot be opened.
    """

    def skip(error: OSError) -> None:
        left_out[Path(error.filename).absolute()] = "a folder that cannot be opened"

    for here, folders, names in os.walk(top, followlinks=True, onerror=skip):
        folders[:] = sorted(name for name in folders if not _leads_back(Path(here, name), left_out))
        yield here, names


def _leads_back(folder: Path, left_out: dict[Path, str]) -> bool:
    """Whether a folder is a link to one of the folders on the way to it, or to one that holds these."""
    if not folder.is_symlink():
        return False
    real, way = folder.resolve(), [above.resolve() for above in folder.absolute().parents]
    back = any(real == above or real in above.parents for above in way)
    if back:
        left_out[folder.absolute()] = "a link that leads back"
    return back
