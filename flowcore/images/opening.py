"""The one place where image files are opened, since they may come from strangers.

Before a file is read, its kind (a regular file), its size and its first bytes are looked at, whatever its name says.
Pillow is given the one format that these bytes are of: of its other readers, that of EPS starts an interpreter.
"""

import io
import os
import re
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image, ImageFile, UnidentifiedImageError

from ..device import free_memory
from ..errors import ImageError

# The formats that are read, by Pillow's names: how such a file begins, and the suffixes of its name.
SIGNATURES: dict[str, tuple[re.Pattern[bytes], tuple[str, ...]]] = {
    "AVIF": (re.compile(rb"....ftyp(avi[fs]|m[is]f1)", re.DOTALL), (".avif",)),
    "BMP": (re.compile(rb"BM"), (".bmp",)),
    "GIF": (re.compile(rb"GIF8[79]a"), (".gif",)),
    "JPEG": (re.compile(rb"\xff\xd8\xff"), (".jpeg", ".jpg")),
    "JPEG2000": (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), (".j2k", ".jp2", ".jpx")),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), (".png",)),
    "PPM": (re.compile(rb"P[1-6]\s"), (".pbm", ".pgm", ".pnm", ".ppm")),
    "TIFF": (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), (".tif", ".tiff")),
    "WEBP": (re.compile(rb"RIFF....WEBP", re.DOTALL), (".webp",)),
    "TGA": (re.compile(rb".[\0\1][\1\2\3\x09\x0a\x0b]", re.DOTALL), (".tga",)),  # its signature is at the end
}
IMAGE_SUFFIXES = {suffix for _, suffixes in SIGNATURES.values() for suffix in suffixes}
TGA_END = b"TRUEVISION-XFILE.\0"  # version 2; a file of version 1 has no signature
HEAD = 16  # bytes at the beginning of a file that tell its format

MAX_BYTES = 2**31  # file size; the largest image takes 1.4 GB without compression in 16 bits with alpha
MAX_PIXELS = 178_956_970  # Pillow's own limit for decompression bombs, which other code may have changed
BYTES_PER_PIXEL = 64  # memory to decode an image, at most
SMALL = 2**28  # bytes for which free memory is not looked up

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_image(data: bytes | Path) -> Generator[Image.Image]:
    """Open an image file, its contents or its path, for the block; only its header is decoded.

    Any failure inside raises ImageError. Its text is a reason, such as "it is empty", to which callers add the name.
    """
    try:
        with (
            open_regular(data) if isinstance(data, Path) else io.BytesIO(data) as file,
            refuse_truncated(),
            Image.open(file, formats=[check_format_of(file)]) as opened,
        ):
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(
                    "{size} are more than {most} pixels", size=f"{opened.width}x{opened.height}", most=MAX_PIXELS
                )
            yield opened
    except UnidentifiedImageError as error:
        raise ImageError("its header is damaged, or of a kind that Pillow does not read") from error
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ImageError(f"{type(error).__name__}: {error}") from error


def read_image_bytes(path: Path) -> bytes:
    """Read the contents of an image file, after a look at its first bytes; ImageError says why it is not one."""
    try:
        with open_regular(path) as file:
            check_format_of(file)
            size = file.seek(0, os.SEEK_END)
            if size > MAX_BYTES:
                raise ImageError(f"its {size} bytes are more than {MAX_BYTES}")
            check_free(size, f"its {size} bytes")
            file.seek(0)
            return file.read(size)
    except (OSError, ValueError) as error:  # ImageError is one, and so is that of a zero byte in the name
        raise ImageError(getattr(error, "strerror", None) or str(error)) from error


def is_transparent(path: Path) -> bool:
    """Tell whether parts of an image file are transparent; False if it cannot be decoded."""
    try:
        with open_image(path) as opened:
            has_alpha = "A" in opened.getbands() or "transparency" in opened.info
            return has_alpha and any(opened.convert("RGBA").getchannel("A").histogram()[:255])
    except ImageError:
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a file to be read; ImageError, with the reason, if it is no regular file, nor a link to one.

    Pipes are not opened, because that waits until somebody writes into them, and devices may never end.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ImageError(f"it is {KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")
    return path.open("rb")


def check_format_of(file: BinaryIO) -> str:
    """Return Pillow's name of a file's format; ImageError, with the reason, if ``SIGNATURES`` has none."""
    head, size = file.read(HEAD), file.seek(0, os.SEEK_END)
    file.seek(-min(size, len(TGA_END)), os.SEEK_END)
    end = file.read(len(TGA_END))
    file.seek(0)
    for format, (signature, _) in SIGNATURES.items():
        if signature.match(head) and (format != "TGA" or end == TGA_END):
            if format not in Image.OPEN:
                Image.init()
            if format not in Image.OPEN:
                raise ImageError(f"this version of Pillow reads no {format}. Install a newer one, or convert the file")
            return format
    if not size:
        raise ImageError("it is empty")
    raise ImageError("its contents are of none of the formats {formats}", formats=", ".join(SIGNATURES))


def check_decodable(opened: Image.Image, frames: int = 1) -> None:
    """Raise ImageError, with the reason, if memory cannot hold the pixels of so many frames while they are decoded."""
    size = f"{opened.width}x{opened.height} pixels" if frames == 1 else f"{frames} frames"
    check_free(opened.width * opened.height * frames * BYTES_PER_PIXEL, f"its {size}")


def check_free(required: int, what: str) -> None:
    """Raise ImageError, with the reason, if less memory is free."""
    free = free_memory(torch.device("cpu")) if required > SMALL else None
    if free is not None and required > free:
        raise ImageError(f"{what} take up to {required / 1e9:.1f} GB to read, and {free / 1e9:.1f} GB are free")


# --- truncated files --------------------------------------------------------------------------------------------------


class _Truncated:
    """Stands in for Pillow's setting that accepts truncated files: false for the threads that refuse them."""

    def __init__(self, before: object) -> None:
        self.before = before
        self.refusing = set[int]()  # threads

    def __bool__(self) -> bool:
        return bool(self.before) and threading.get_ident() not in self.refusing


_LOCK = threading.Lock()


@contextmanager
def refuse_truncated() -> Generator[None]:
    """Make Pillow refuse truncated files in this thread, where other code has made it accept them.

    ComfyUI changes the setting while it reads a file again, in another thread, and nodes change it for good: for other
    threads it stays as it is, and what was set meanwhile is kept.
    """
    with _LOCK:
        setting: object = ImageFile.LOAD_TRUNCATED_IMAGES
        flag = None
        if setting:  # outermost block of this thread
            flag = setting if isinstance(setting, _Truncated) else _Truncated(setting)
            flag.refusing.add(threading.get_ident())
            ImageFile.LOAD_TRUNCATED_IMAGES = flag  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        if flag is not None:
            with _LOCK:
                flag.refusing.remove(threading.get_ident())
                if not flag.refusing and ImageFile.LOAD_TRUNCATED_IMAGES is flag:
                    ImageFile.LOAD_TRUNCATED_IMAGES = flag.before  # pyright: ignore[reportAttributeAccessIssue]
