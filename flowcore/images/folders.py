"""Walk folders, through links except cycles of them, and list their files and images."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import ImageError, printable
from .opening import IMAGE_SUFFIXES

JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT


def image_files(folder: Path, cancelled: Callable[[], object] = bool) -> list[Path]:
    """List the image files in a folder, at any depth, sorted; log what is skipped. ImageError if there are none.

    ``cancelled`` is called for every file, and stops the search by raising.
    """
    skipped = dict[Path, str]()
    paths = [path for path in walk_files(folder, skipped) if not cancelled() and is_image_name(path.name)]
    for path in paths:
        if not cancelled() and not path.is_file():
            skipped[path] = "neither a file nor a link to one" if path.exists() else "a broken link"
    for path, reason in skipped.items():
        logging.getLogger("flowcore").warning("Skipped: %s, %s.", printable(str(path)), reason)
    if files := sorted(path for path in paths if path.is_file()):
        return files
    raise ImageError(
        "No images in {folder}. Expected files ending in {suffixes}, at any depth.",
        folder=folder,
        suffixes=", ".join(sorted(IMAGE_SUFFIXES)),
    )


def is_image_name(name: str) -> bool:
    """Tell whether a file's name ends as those of images, and is not hidden: macOS writes ``._a.jpg`` beside a.jpg."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def walk_files(folder: Path, skipped: dict[Path, str]) -> Iterator[Path]:
    """List the files of a folder at any depth; see ``walk_folders``."""
    return (Path(parent, name) for parent, names in walk_folders(folder, skipped) for name in names)


def walk_folders(top: Path, skipped: dict[Path, str]) -> Iterator[tuple[str, list[str]]]:
    """List a folder and those in it at any depth, linked ones too, with the names of their files.

    ``skipped`` gets the folders that are not listed, and why: they cannot be opened, or are links to a parent.
    """

    def skip(error: OSError) -> None:
        skipped[Path(error.filename).absolute()] = "a folder that cannot be opened"

    for parent, folders, names in os.walk(top, followlinks=True, onerror=skip):
        folders.sort()
        for folder in [Path(parent, name).absolute() for name in folders if _is_link(os.path.join(parent, name))]:
            if any(above.resolve().is_relative_to(folder.resolve()) for above in folder.parents):  # a cycle
                skipped[folder] = "a link that leads back"
                folders.remove(folder.name)
        yield parent, names


def folder_stamp(folder: Path) -> str:
    """Digest the times at which a folder and those in it, or a file, changed: asking every file may take minutes."""
    paths = [folder] if folder.is_file() else [here for here, _ in walk_folders(folder, {})]
    return hashlib.sha256("".join(f"{path} {os.stat(path).st_mtime_ns}\n" for path in paths).encode()).hexdigest()


def _is_link(folder: str) -> bool:
    return os.path.islink(folder) or getattr(os.lstat(folder), "st_reparse_tag", 0) == JUNCTION
