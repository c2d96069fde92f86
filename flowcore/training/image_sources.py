"""Finding and decoding the images of folders and ZIP archives, and checks before hours of training begin."""

from __future__ import annotations

import hashlib
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

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import ImageError
from ..images.files import IMAGE_SUFFIXES, decode_rgb
from ..images.folders import image_files, walk_folders

MAX_PIXELS = 178_956_970  # of an image: Pillow's own limit for decompression bombs, which other code may have changed
MAX_MEMBER_BYTES = 2**28  # of an archive's member, unpacked
MAX_PIXELS_IN_FLIGHT = 2**25  # of all images that are decoded at the same time, unless a single one has more
MAX_THREADS = 4
MAX_SEARCHED = 100_000  # files and folders, before the first image
SMALL_IMAGE = 2**14  # pixels; handing such an image to a thread takes longer than decoding it

Result = TypeVar("Result")
Read = TypeVar("Read")


@dataclass(frozen=True)
class ImageSource:
    """Where an image is stored."""

    name: str  # relative to its folder or archive; unique among all that were found
    path: Path  # its file, or the archive that it is a member of
    member: str  # its name within the archive; empty for a file
    size: int  # in bytes
    stamp: int  # changes when the content does: a file's time of modification in ns, a member's checksum


def find_images(folders: Path | Sequence[Path]) -> list[ImageSource]:
    """List the images of folders, archives (``photos.zip``) and folders in these (``photos.zip/train``), at any depth.

    None is opened, nor are archives inside folders. They are sorted by name within each folder. With several folders,
    names begin with the folder's number and name (``2-holiday/a.jpg``), and an image that is in two of them is listed
    once. A folder or archive that does not exist, is damaged or has no images is refused.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    if not folders:
        raise ImageError("There is nothing to train on. Name at least one folder, or ZIP archive, of images.")
    if len(folders) == 1:
        return _images_of(folders[0])
    found: list[ImageSource] = []
    for number, folder in enumerate(folders, start=1):
        known = {(source.path.resolve(), source.member) for source in found}
        found += [
            replace(source, name=f"{number}-{folder.resolve().name}/{source.name}")
            for source in _images_of(folder)
            if (source.path.resolve(), source.member) not in known
        ]
    return found


def _images_of(folder: Path) -> list[ImageSource]:
    archive = next((p for p in (folder, *folder.parents) if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is not None:
        return _members(archive, folder.relative_to(archive).as_posix())
    if folder.is_file() and folder.suffix.lower() in IMAGE_SUFFIXES:
        return [ImageSource(folder.name, folder, "", folder.stat().st_size, folder.stat().st_mtime_ns)]
    if not folder.is_dir():
        raise ImageError(f"There is no folder {folder}. Give a folder of images, or a ZIP archive (photos.zip/train).")
    stats = [(file, file.stat()) for file in image_files(folder)]
    return [ImageSource(str(file.relative_to(folder)), file, "", s.st_size, s.st_mtime_ns) for file, s in stats]


def _members(archive: Path, folder: str) -> list[ImageSource]:
    """List the images in one of an archive's folders, "." for all."""
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = {info.filename: info for info in opened.infolist()}  # of two with one name, the last one counts
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ImageError(f"{archive} is not a ZIP archive, or damaged ({error}). Download it again.") from error
    prefix = "" if folder == "." else f"{folder}/"
    sources = [
        ImageSource(member.removeprefix(prefix), archive, member, info.file_size, info.CRC)
        for member, info in infos.items()
        if member.startswith(prefix)
        and os.path.splitext(member)[1].lower() in IMAGE_SUFFIXES
        and not member.startswith("__MACOSX/")
        and not info.is_dir()
    ]
    if not sources:
        tops = sorted({PurePosixPath(member).parts[0] for member in infos if PurePosixPath(member).parts})
        raise ImageError(
            f"No images in {folder if folder != '.' else 'the archive'} of {archive}, which holds "
            f"{', '.join(tops[:8]) or 'nothing'}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return sorted(sources, key=lambda source: source.name.split("/"))


def folder_stamp(folder: Path) -> str:
    """Digest what changes when a file is added to a folder or removed from it, at any depth.

    Only folders are asked when they changed: asking every file takes minutes where a folder of many images lies on a
    network. So an image that was edited in place is not noticed. A folder that does not exist has a stamp, too.
    """
    digest = hashlib.sha256()
    if folder.is_file():
        digest.update(f"{folder} {folder.stat().st_mtime_ns}\n".encode())
    for path, _ in walk_folders(folder, {}):
        digest.update(f"{path} {os.stat(path).st_mtime_ns}\n".encode())
    return digest.hexdigest()


def folder_problem(folder: Path, *, digits: bool | None) -> str | None:
    """Say what is wrong with a folder, or file, to train on; None if nothing is.

    ``digits`` asks for files of MNIST directly in it, else for images at any depth; None accepts both. It looks as far
    as the first such file, and at ``MAX_SEARCHED`` things at most: a server waits for the answer.
    """
    sought = (
        "file of MNIST (train-images-idx3-ubyte and the other three, gzipped or not), which this recipe needs"
        if digits
        else f"image ({', '.join(sorted(IMAGE_SUFFIXES))})"
    )
    files = 0
    inside = (Path(here, name) for here, names in walk_folders(folder, {}) for name in (*names, ""))
    for number, path in enumerate([folder] if folder.is_file() else inside):
        if number == MAX_SEARCHED:
            return f"the first {number} things in {folder} are no {sought}. Choose a folder inside it."
        is_image = digits is not True and path.suffix.lower() in IMAGE_SUFFIXES
        is_digits = digits is not False and "-idx" in path.name and path.parent == folder
        is_file = path.is_file()
        if (is_image or is_digits) and is_file:
            return None
        files += is_file
    return f"{folder} holds {files} files and no {sought}, at any depth."


def decode_each(
    sources: Iterable[ImageSource], process: Callable[[Image.Image], Result]
) -> Generator[tuple[ImageSource, Result | None, str], None, None]:
    """Decode images, several at a time in threads, and call ``process`` with each, upright and RGB.

    It yields, in the order of the images: the source; the result, None if it could not be decoded; and why not. Only a
    few are in memory at once, see ``MAX_PIXELS_IN_FLIGHT``. What ``process`` raises ends the iteration.
    """
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    pending: deque[tuple[ImageSource, int, Future[tuple[Result | None, str]]]] = deque()
    archives: dict[Path, zipfile.ZipFile] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for source in sources:
            if source.member and source.path not in archives:
                archives[source.path] = stack.enter_context(zipfile.ZipFile(source.path))
            opened, reason = _attempt(lambda s=source: _open(s, archives.get(s.path)))
            pixels = opened[0].width * opened[0].height if opened is not None else 0
            while pending and (
                len(pending) >= 2 * threads or pixels + sum(n for _, n, _ in pending) > MAX_PIXELS_IN_FLIGHT
            ):
                first, _, future = pending.popleft()
                yield first, *future.result()
            future: Future[tuple[Result | None, str]] = Future()
            if pixels <= SMALL_IMAGE:
                future.set_result(_decode(opened, reason, process))
            else:
                future = pool.submit(_decode, opened, reason, process)
            pending.append((source, pixels, future))
        while pending:
            first, _, future = pending.popleft()
            yield first, *future.result()


@contextmanager
def strict_decoding() -> Generator[None, None, None]:
    """Silence Pillow's warnings, and make it raise on truncated files; both are settings of the process."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _open(source: ImageSource, archive: zipfile.ZipFile | None) -> tuple[Image.Image, bytes]:
    """Read a file, or a member of an archive, and its header."""
    if source.size == 0:
        raise ValueError("it is empty")
    if archive is not None and source.size > MAX_MEMBER_BYTES:
        raise ValueError(f"it unpacks to {source.size} bytes, more than {MAX_MEMBER_BYTES}")
    # zipfile reads no more than the size it states
    data = source.path.read_bytes() if archive is None else archive.read(source.member)
    opened = Image.open(io.BytesIO(data))
    if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(f"{opened.width}x{opened.height} are more than {MAX_PIXELS} pixels")
    return opened, data


def _decode(
    opened: tuple[Image.Image, bytes] | None, reason: str, process: Callable[[Image.Image], Result]
) -> tuple[Result | None, str]:
    if opened is None:
        return None, reason
    image, reason = _attempt(lambda: decode_rgb(*opened))
    return (None, reason) if image is None else (process(image), "")


def _attempt(read: Callable[[], Read]) -> tuple[Read | None, str]:
    """Return what was read, or the reason why it cannot be: damaged files make Pillow raise nearly anything."""
    try:
        return read(), ""
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return None, "Pillow does not know its format"
    except OSError as error:
        return None, error.strerror or str(error)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
