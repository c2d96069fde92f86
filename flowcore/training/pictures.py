"""Pictures where they lie, and reading them: any tree of image files, or a ZIP archive of one."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import ImageError
from ..images.files import IMAGE_SUFFIXES, image_files

MOST_PIXELS = 178_956_970  # of a picture: what Pillow takes for a decompression bomb if nobody told it otherwise
MOST_BYTES = 2**28  # of a member of an archive, unpacked
PIXELS_IN_FLIGHT = 2**25  # of the pictures that are worked on at the same time, unless one alone has more
MOST_THREADS = 4
TINY = 2**14  # pixels of a picture that is decoded sooner than a thread would hear of it

Made = TypeVar("Made")


@dataclass(frozen=True)
class Picture:
    """A picture where it lies.

    Attributes:
        name: Relative to its folder or archive; unique among all that were found.
        path: Its file, or the archive that it is a member of.
        member: Its name within the archive; empty for a file.
        size: In bytes.
        stamp: Changes when its content does: a file's time of modification in ns, a member's checksum.
    """

    name: str
    path: Path
    member: str
    size: int
    stamp: int


def find_pictures(folders: Path | Sequence[Path]) -> list[Picture]:
    """List the pictures that folders and archives hold, at any depth, without opening one.

    Args:
        folders: One or several of: a folder, a ZIP archive (``photos.zip``), a folder in one (``photos.zip/train``).
            Archives inside folders are not looked into, and nothing is unpacked to disk.

    Returns:
        The pictures, sorted by name within each folder. With several folders, names begin with the folder's number
        and name (``2-holiday/a.jpg``), and what lies in two of them, one being within the other, comes once.

    Raises:
        ImageError: If one of them is not there, is damaged, or holds no pictures.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    if not folders:
        raise ImageError("There is nothing to train on. Name at least one folder, or ZIP archive, of images.")
    if len(folders) == 1:
        return _pictures_of(folders[0])
    found: list[Picture] = []
    for number, folder in enumerate(folders, start=1):
        before = {(picture.path.resolve(), picture.member) for picture in found}
        found += [
            replace(picture, name=f"{number}-{folder.resolve().name}/{picture.name}")
            for picture in _pictures_of(folder)
            if (picture.path.resolve(), picture.member) not in before
        ]
    return found


def _pictures_of(folder: Path) -> list[Picture]:
    archive = next((p for p in (folder, *folder.parents) if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is not None:
        return _members(archive, folder.relative_to(archive).as_posix())
    if not folder.is_dir():
        raise ImageError(f"There is no folder {folder}. Give a folder of images, or a ZIP archive (photos.zip/train).")
    stats = [(file, file.stat()) for file in image_files(folder)]
    return [Picture(str(file.relative_to(folder)), file, "", s.st_size, s.st_mtime_ns) for file, s in stats]


def _members(archive: Path, inside: str) -> list[Picture]:
    """List the pictures of an archive in one of its folders, "." for all."""
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = {info.filename: info for info in opened.infolist()}  # of two with one name, the last is meant
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ImageError(f"{archive} is no ZIP archive, or damaged ({error}). Fetch it again.") from error
    above = "" if inside == "." else f"{inside}/"
    pictures = [
        Picture(member.removeprefix(above), archive, member, info.file_size, info.CRC)
        for member, info in infos.items()
        if member.startswith(above)
        and os.path.splitext(member)[1].lower() in IMAGE_SUFFIXES
        and not member.startswith("__MACOSX/")
        and not info.is_dir()
    ]
    if not pictures:
        tops = sorted({PurePosixPath(member).parts[0] for member in infos if PurePosixPath(member).parts})
        raise ImageError(
            f"No images in {inside if inside != '.' else 'the archive'} of {archive}, which holds "
            f"{', '.join(tops[:8]) or 'nothing'}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return sorted(pictures, key=lambda picture: picture.name.split("/"))


def from_each(
    pictures: Iterable[Picture], make: Callable[[Image.Image], Made]
) -> Generator[tuple[Picture, Made | None, str], None, None]:
    """Decode pictures and make something of each, several at a time in threads; what is made comes in their order.

    Args:
        pictures: Of any number; a few are in memory at once, of ``PIXELS_IN_FLIGHT`` pixels together at most unless
            one alone has more.
        make: Called in a thread with a picture, RGB and upright; what it raises ends all.

    Yields:
        The picture; what was made of it, None if it could not be decoded; and why not.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[Picture, int, Future[tuple[Made | None, str]]]] = deque()
    archives: dict[Path, zipfile.ZipFile] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for picture in pictures:
            if picture.member and picture.path not in archives:
                archives[picture.path] = stack.enter_context(zipfile.ZipFile(picture.path))
            opened, reason = _attempt(lambda p=picture: _open(p, archives.get(p.path)))
            pixels = opened.width * opened.height if opened is not None else 0
            while waiting and (
                len(waiting) >= 2 * threads or pixels + sum(taken for _, taken, _ in waiting) > PIXELS_IN_FLIGHT
            ):
                first, _, future = waiting.popleft()
                yield first, *future.result()
            future: Future[tuple[Made | None, str]] = Future()
            if pixels <= TINY:
                future.set_result(_make(opened, reason, make))
            else:
                future = pool.submit(_make, opened, reason, make)
            waiting.append((picture, pixels, future))
        while waiting:
            first, _, future = waiting.popleft()
            yield first, *future.result()


@contextmanager
def strictly() -> Generator[None, None, None]:
    """Read pictures without Pillow's warnings, and without its taking half a picture for a whole one.

    Both are settings of the whole process, that other code in it may have changed; they come back at the end.

    Yields:
        Nothing.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _open(picture: Picture, archive: zipfile.ZipFile | None) -> Image.Image:
    """Read as far as the header; a member of an archive, into memory."""
    if picture.size == 0:
        raise ValueError("it is empty")
    source: Path | io.BytesIO = picture.path
    if archive is not None:
        if picture.size > MOST_BYTES:
            raise ValueError(f"it unpacks to {picture.size} bytes, more than {MOST_BYTES}")
        source = io.BytesIO(archive.read(picture.member))  # zipfile reads no more than the size it states
    opened = Image.open(source)
    if opened.width * opened.height > MOST_PIXELS:
        opened.close()
        raise ValueError(f"{opened.width}x{opened.height} are more than {MOST_PIXELS} pixels")
    return opened


def _make(opened: Image.Image | None, reason: str, make: Callable[[Image.Image], Made]) -> tuple[Made | None, str]:
    if opened is None:
        return None, reason
    with opened:
        image, reason = _attempt(lambda: upright_rgb(opened))
    return (None, reason) if image is None else (make(image), "")


def upright_rgb(opened: Image.Image) -> Image.Image:
    """Decode a picture as 8-bit RGB.

    Args:
        opened: Of any mode. Of 16 bits, the upper 8 are kept; colours below alpha are kept as they are, as tasks do.

    Returns:
        The picture, turned as its camera says it was held.

    Raises:
        ValueError: If its numbers have no stated range.
    """
    ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode == "F":
        raise ValueError("it holds floating-point numbers of unknown range")
    if opened.mode.startswith("I"):  # which Pillow, depending on its version, clips at 255
        return Image.fromarray((np.asarray(opened).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return opened.convert("RGB")


def _attempt(read: Callable[[], Image.Image]) -> tuple[Image.Image | None, str]:
    """Read; or say why it could not be done: damaged files make Pillow raise nearly anything."""
    try:
        return read(), ""
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return None, "it is no image of a kind that Pillow reads"
    except OSError as error:
        return None, error.strerror or str(error)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
