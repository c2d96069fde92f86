"""Finding and decoding the images of folders and ZIP archives, and the cache of their pixels.

Of each set of images ``HASH.u8`` holds the pixels, which are mapped into memory, and ``HASH.json`` the index, which is
written last. Processes may write the same cache at once: each replaces its files by others of the same content.
"""

import json
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from ..engine.progress import Progress
from ..errors import ImageError
from ..images.color import to_uint8
from ..images.files import decode_rgb
from ..images.folders import image_files, is_image_name
from ..images.opening import IMAGE_SUFFIXES, open_image, read_image_bytes
from ..images.resize import downsample
from ..models.identity import fingerprint
from ..models.writing import SavingError, clear_abandoned, replacing, write_atomic
from .recipe import Recipe

MAX_MEMBER_BYTES = 2**28  # size of an archive's member, unpacked
MAX_PIXELS_IN_FLIGHT = 2**25  # sum over images that are decoded at the same time, unless a single one has more
MAX_THREADS = 4
SMALL_IMAGE = 2**14  # pixels; handing such an image to a thread takes longer than decoding it

Folders = Path | Sequence[Path]  # folders of images, or ZIP archives
Processed = TypeVar("Processed")


@dataclass(frozen=True)
class ImageSource:
    """Where an image is stored."""

    name: str  # relative to its folder or archive; unique among all that were found
    path: Path  # its file, or the archive that it is a member of
    member: str  # its name within the archive; empty for a file
    size: int  # size in bytes
    stamp: int  # changes when the content does: a file's time of modification in ns, a member's checksum


def find_images(folders: Folders, cancelled: Callable[[], object] = bool) -> list[ImageSource]:
    """List the images of folders, archives (``photos.zip``) and folders in these (``photos.zip/train``), at any depth.

    With several, names begin with the folder's (``2-holiday/a.jpg``), and an image in two of them is listed once.
    ``cancelled`` is called for every file of a folder, and stops the search by raising.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    if not folders:
        raise ImageError("There is nothing to train on. Name at least one folder, or ZIP archive, of images.")
    if len(folders) == 1:
        return _images_of(folders[0], cancelled)
    sources, known = list[ImageSource](), set[tuple[Path, str]]()
    for number, folder in enumerate(folders, start=1):
        new = [
            source for source in _images_of(folder, cancelled) if (source.path.resolve(), source.member) not in known
        ]
        known |= {(source.path.resolve(), source.member) for source in new}
        sources += [replace(source, name=f"{number}-{folder.resolve().name}/{source.name}") for source in new]
    return sources


def _images_of(folder: Path, cancelled: Callable[[], object]) -> list[ImageSource]:
    archive = next((p for p in (folder, *folder.parents) if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is not None:
        return _members(archive, folder.relative_to(archive).as_posix())
    if folder.is_file() and folder.suffix.lower() in IMAGE_SUFFIXES:
        return [ImageSource(folder.name, folder, "", folder.stat().st_size, folder.stat().st_mtime_ns)]
    if not folder.is_dir():
        raise ImageError(f"There is no folder {folder}. Name a folder of images, or a ZIP archive (photos.zip/train).")
    stats = [(file, file.stat()) for file in image_files(folder, cancelled)]
    return [ImageSource(str(file.relative_to(folder)), file, "", s.st_size, s.st_mtime_ns) for file, s in stats]


def _members(archive: Path, folder: str) -> list[ImageSource]:
    """List the images in one of an archive's folders, "." for all."""
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = {info.filename: info for info in opened.infolist()}  # the last one of a name counts
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ImageError(f"{archive} is not a ZIP archive, or damaged ({error}). Download it again.") from error
    prefix = "" if folder == "." else f"{folder}/"
    sources = [
        ImageSource(member.removeprefix(prefix), archive, member, info.file_size, info.CRC)
        for member, info in infos.items()
        if member.startswith(prefix) and not member.startswith("__MACOSX/") and not info.is_dir()
        if is_image_name(PurePosixPath(member).name)
    ]
    if not sources:
        tops = sorted({PurePosixPath(member).parts[0] for member in infos if PurePosixPath(member).parts})
        raise ImageError(
            f"No images in {folder if folder != '.' else 'the archive'} of {archive}, which holds "
            f"{', '.join(tops[:8]) or 'nothing'}. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return sorted(sources, key=lambda source: source.name.split("/"))


def decode_each(
    sources: Iterable[ImageSource], process: Callable[[Image.Image], Processed]
) -> Generator[tuple[ImageSource, Processed | None, str], None, None]:
    """Decode images in threads; yield each source, in order, with what ``process`` returns, or why it failed."""

    def decode(data: bytes, reason: str) -> tuple[Processed | None, str]:
        if reason:
            return None, reason
        try:
            with open_image(data) as opened:
                image = decode_rgb(opened, data)
        except ImageError as error:
            return None, str(error)
        return process(image), ""

    threads = min(MAX_THREADS, os.cpu_count() or 1)
    # source, its pixels, and a function that returns or awaits the result
    pending: deque[tuple[ImageSource, int, Callable[[], tuple[Processed | None, str]]]] = deque()
    archives: dict[Path, zipfile.ZipFile] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for source in sources:
            if source.member and source.path not in archives:
                archives[source.path] = stack.enter_context(zipfile.ZipFile(source.path))
            pixels, data, reason = _read(source, archives.get(source.path))
            while pending and (
                len(pending) >= 2 * threads or pixels + sum(n for _, n, _ in pending) > MAX_PIXELS_IN_FLIGHT
            ):
                first, _, result = pending.popleft()
                yield first, *result()
            is_small = pixels <= SMALL_IMAGE  # ``result()`` decodes a small one in this thread
            result = partial(decode, data, reason) if is_small else pool.submit(decode, data, reason).result
            pending.append((source, pixels, result))
        for first, _, result in pending:
            yield first, *result()


def _read(source: ImageSource, archive: zipfile.ZipFile | None) -> tuple[int, bytes, str]:
    """Read a file, or a member of an archive: how many pixels it has, its content, and why it cannot be used."""
    try:
        if archive is None:
            data = read_image_bytes(source.path)
        elif source.size > MAX_MEMBER_BYTES:
            raise ImageError(f"it unpacks to {source.size} bytes, more than {MAX_MEMBER_BYTES}")
        else:
            data = archive.read(source.member)  # zipfile reads no more than the size it states
        with open_image(data) as opened:
            return opened.width * opened.height, data, ""
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # ImageError, or the archive's
        return 0, b"", str(error)


# --- cache ------------------------------------------------------------------------------------------------------------


CACHED = re.compile(r"[0-9a-f]{16}\.(u8|json)")


@dataclass(frozen=True)
class Entry:
    """One image of the cache."""

    name: str  # path relative to the data folder
    height: int  # HR rows
    width: int  # HR columns
    offset: int  # byte offset of its HR pixels in the cache; its LR pixels follow
    factor: float  # its size relative to the file's


@dataclass(frozen=True)
class PixelCache:
    """Decoded images: HR, and LR if there is a scale, both 8 bit as the papers' PNG files are."""

    entries: list[Entry]  # entries in the order of the files
    skipped: list[str]  # files that could not be used, each with the reason
    pixels: np.ndarray  # all bytes, mapped into memory
    scale: int  # factor from LR to HR; 1 if there is no LR
    file: Path  # file of the pixels

    def images(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        """Look up an image: HR ``(H, W, 3)`` and LR ``(H / scale, W / scale, 3)``, uint8; of scale 1 the same twice."""
        height, width, pixels = entry.height, entry.width, self.pixels[entry.offset :]
        hr = pixels[: height * width * 3].reshape(height, width, 3)
        if self.scale == 1:
            return hr, hr
        height, width = height // self.scale, width // self.scale
        return hr, pixels[hr.size :][: height * width * 3].reshape(height, width, 3)

    def remove_others(self) -> None:
        """Remove caches of other sets of images, and files of killed processes, unless runs share the folder by links.

        A file that another process has mapped stays usable there; some systems do not let it be removed.
        """
        folder = self.file.parent
        if folder.is_symlink():
            return
        clear_abandoned(folder)
        for file in folder.glob("*"):
            if CACHED.fullmatch(file.name) and file.name not in (self.file.name, self.file.with_suffix(".json").name):
                with suppress(OSError):
                    file.unlink()


def open_pixel_cache(folders: Folders, cache: Path, recipe: Recipe, progress: Progress | None = None) -> PixelCache:
    """Open the cache of the images in folders and archives, or decode them into it at the sizes of the recipe.

    LR images are made from entire images, so crops have no border effects. If ``progress`` raises, no cache is left.
    """
    sources = find_images(folders)
    described = [[source.name, source.size, source.stamp] for source in sources]
    sizes = [f"short side {side}" for side in recipe.short_sides] or recipe.pyramid
    sizes = [*sizes, f"enlarged {recipe.enlarge:g}"] if recipe.enlarge > 1 else sizes
    key = fingerprint([described, recipe.scale, sizes])[:16]
    pixels, index = cache / f"{key}.u8", cache / f"{key}.json"
    if (content := _read_index(pixels, index, recipe.scale)) is None:
        try:
            _write(sources, recipe, pixels, index, progress)
        except SavingError:  # Windows does not replace what another process has written meanwhile and is reading
            if _read_index(pixels, index, recipe.scale) is None:
                raise
        content = _read_index(pixels, index, recipe.scale)
        assert content is not None
    entries, skipped = content
    if not entries:
        raise ImageError(
            f"None of the {len(sources)} files in {describe(folders)} could be used. Skipped: {'; '.join(skipped[:3])}."
        )
    return PixelCache(entries, skipped, np.memmap(pixels, dtype=np.uint8, mode="r"), recipe.scale, pixels)


def describe(folders: Folders) -> str:
    """Name folders in a message."""
    return str(folders) if isinstance(folders, Path) else ", ".join(map(str, folders))


def _read_index(pixels: Path, index: Path, scale: int) -> tuple[list[Entry], list[str]] | None:
    """Read entries and skipped files; None if there is no cache, or an incomplete one."""
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        entries = [Entry(*row) for row in content["entries"]]
        skipped: list[str] = content["skipped"]
        pairs = ((e.offset, e.height * e.width, (e.height // scale) * (e.width // scale)) for e in entries)
        size = max((offset + 3 * (hr + lr if scale > 1 else hr) for offset, hr, lr in pairs), default=0)
        return (entries, skipped) if pixels.stat().st_size == size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(sources: list[ImageSource], recipe: Recipe, pixels: Path, index: Path, progress: Progress | None) -> None:
    entries, skipped = list[tuple[str, int, int, int, float]](), list[str]()
    with replacing(pixels) as new, new.open("wb") as out:
        for done, (source, sizes, reason) in enumerate(decode_each(sources, partial(_at_all_sizes, recipe)), 1):
            if sizes is None:
                skipped.append(f"{source.name}: {reason}")
            for height, width, factor, content in sizes or ():
                if content is None:
                    skipped.append(f"{source.name}: {width}x{height} is too small")
                    continue
                entries.append((source.name, height, width, out.tell(), factor))
                out.write(content)
            if progress is not None:
                progress(done, len(sources))
    write_atomic(index, json.dumps({"entries": entries, "skipped": skipped}).encode())


def _at_all_sizes(recipe: Recipe, image: Image.Image) -> list[tuple[int, int, float, bytes | None]]:
    """Height, width and factor at each size, and HR pixels followed by LR pixels, or None if it is too small."""
    results, scale = list[tuple[int, int, float, bytes | None]](), recipe.scale
    multiple = 2 * scale if scale > 1 else 1
    for factor in [min(recipe.enlarge, side / min(image.size)) for side in recipe.short_sides] or recipe.pyramid:
        width, height = round(image.width * factor), round(image.height * factor)
        if min(width, height) < multiple:
            results.append((height, width, factor, None))
            continue
        resized = image if factor == 1 else image.resize((width, height), Image.Resampling.BICUBIC)
        width, height = width // multiple * multiple, height // multiple * multiple
        hr = np.asarray(resized.crop((0, 0, width, height)))
        content = hr.tobytes()
        if scale > 1:
            lr = downsample(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None].float().div_(255), scale)[0]
            content += to_uint8(lr).permute(1, 2, 0).contiguous().numpy().tobytes()
        results.append((height, width, factor, content))
    return results
