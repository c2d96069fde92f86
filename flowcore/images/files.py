"""Image files: all 16 bits, alpha, color profile, EXIF, XMP and resolution are read and written.

Pillow does all but three things, which are done here. It keeps only the high bytes of 16-bit colors, so these files are
decoded a second time with the byte order swapped, for the low bytes; it encodes no 16-bit colors; and it writes a
compressed TIFF without EXIF, GPS and XMP.
"""

import io
import re
import struct
import sys
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from PIL import TiffImagePlugin as tiff
from torch import Tensor

from ..errors import ImageError
from .color import to_levels, to_uint8
from .metadata import (
    EXIF,
    MAX_SEGMENT,
    UNIQUE_ID,
    XMP,
    Metadata,
    cmyk_to_srgb,
    fits_profile,
    is_complete,
    orientation_in_header,
    read_metadata,
    read_warnings,
    resolution_tags,
    tags_and_orientation,
    tags_for_jpeg,
    tags_for_size,
    tiff_directory,
)
from .opening import check_decodable, open_image, read_image_bytes

Format = Literal["png", "jpeg", "webp", "tiff"]
Pixels = npt.NDArray[Any]  # uint8 or uint16, (h, w, channels)
V = TypeVar("V")

SUFFIXES: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
FORMATS: dict[str, Format] = {**{suffix: name for name, suffix in SUFFIXES.items()}, ".jpeg": "jpeg", ".tiff": "tiff"}
DEEP: tuple[Format, ...] = ("png", "tiff")  # formats with 16 bits per channel
DEFAULT_QUALITY = {"jpeg": 95, "webp": 90}
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # byte orders, as Pillow names them
WHITE_IS_ZERO, SIGNED = 0, 2  # values of TIFF's tags PHOTOMETRIC_INTERPRETATION and SAMPLEFORMAT
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations whose rows and columns are swapped; ImageOps turns no arrays
FLIPPED = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}  # axes to flip after that
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # formats, as Pillow names them, whose further pictures are frames


@dataclass(frozen=True)
class DecodedImage:
    """An image file in memory."""

    pixels: Tensor  # (1, C, H, W) float32 in [0, 1], C = 3 or 4, upright
    metadata: Metadata
    gray: bool = False  # the file has no colors: ``pixels`` holds one channel three times, and alpha if it has any
    bits: int = 8  # bits per channel of the file, 8 or 16
    notes: tuple[str, ...] = ()  # sentences on what is dropped or changed, such as further frames


def read(data: bytes, name: str, *, all_frames: bool = False) -> DecodedImage:
    """Decode the contents of an image file (its first frame); raise ImageError, with its name, if that fails.

    With ``all_frames``, no note says that the others are dropped: the caller reads them, too.
    """
    with _opened(data, name) as opened:
        check_decodable(opened)
        # Pillow decodes gray with alpha of 16 bits as RGBA
        gray = opened.mode in ("1", "L", "LA", "I") or opened.mode.startswith("I;")
        gray = gray or _raw_mode(opened).partition(";")[0] == "LA"
        pixels, metadata = _decode(opened, data), read_metadata(opened, gray)
        sentences = read_warnings(opened, data, gray=gray, all_frames=all_frames)
    return DecodedImage(_to_tensor(pixels).contiguous(), metadata, gray, 8 * pixels.itemsize, sentences)


def read_middle(data: bytes, name: str, side: int) -> Tensor:
    """Decode the square in the middle of an image, of ``pixels`` as in ``read``."""
    with _opened(data, name) as opened:
        check_decodable(opened)
        pixels = _decode(opened, data)
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return _to_tensor(pixels[top : top + side, left : left + side])


def frame_count(data: bytes) -> int:
    """Count the frames of an animated GIF, WebP or PNG; 1 for other files, whose further pages are not frames."""
    return _read_from(data, lambda opened: getattr(opened, "n_frames", 1) if opened.format in ANIMATED else 1) or 1


def read_frames(data: bytes, name: str) -> Tensor:
    """Decode all frames of a file, see ``frame_count``: ``(T, 4, H, W)`` in [0, 1], with alpha."""
    with _opened(data, name) as opened:
        count, size = frame_count(data), opened.size
        check_decodable(opened, count)
        frames: list[Pixels] = []
        for number in range(count):
            opened.seek(number)
            if opened.size != size:  # a GIF's may exceed its screen
                raise ValueError("its frames differ in size")
            frames.append(np.asarray(opened.convert("RGBA")))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255


def frame_times(data: bytes) -> dict[str, Any]:
    """Read the milliseconds for which each frame is shown, and how often the animation repeats; for ``encode``."""

    def read_times(opened: Image.Image) -> dict[str, Any]:
        loop, durations = opened.info.get("loop", 1), list[float]()
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            opened.load()  # WebP states its duration only then
            durations.append(opened.info.get("duration", 100))
        return {"duration": durations, "loop": loop}

    return _read_from(data, read_times) or {}


def read_rgb(data: bytes, name: str, *, side: int | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, as ``decode_rgb`` does; see ``read``.

    With ``side``, a JPEG is decoded at a reduced size, with sides of at least as many pixels: for thumbnails.
    """
    with _opened(data, name) as opened:
        if side is not None:
            opened.draft(None, (side, side))
        return decode_rgb(opened, data)


def decode_rgb(opened: Image.Image, data: bytes) -> Image.Image:
    """Decode a file that Pillow has opened to upright 8-bit RGB: the pixels of ``read``, rounded and without alpha.

    ValueError for values of unknown range, such as floats; damaged files make Pillow raise almost anything.
    """
    pixels = _decode(opened, data)[:, :, :3]
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def fit(image: Image.Image, size: tuple[int, int], channels: int) -> Tensor:
    """Resize an RGB image to cover a height and width, and crop its middle: uint8 of 3 channels, or 1 for the luma."""
    image = image.convert("L") if channels == 1 else image
    fitted = np.array(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC))
    return torch.from_numpy(fitted.reshape(*size, channels)).permute(2, 0, 1)


def read_bytes(path: Path) -> bytes:
    """Read the contents of an image file; ImageError if it is not one, or cannot be read, see ``opening``."""
    try:
        return read_image_bytes(path)
    except ImageError as error:
        raise ImageError("Cannot read {file} as an image: {reason}.", file=path.name, reason=error) from error


def encode(
    picture: Tensor,
    metadata: Metadata | None = None,
    *,
    format: Format = "png",
    bits: int = 8,
    quality: int | None = None,
    unique_id: str | None = None,
    text: dict[str, str] | None = None,
    more_frames: Tensor | None = None,
    times: dict[str, Any] | None = None,
) -> bytes:
    """Encode an image ``(C, H, W)`` in [0, 1], C = 1 to 4, as a file; ImageError if the format cannot hold it.

    Two channels are gray and alpha. ``unique_id`` is EXIF's ImageUniqueID, ``text`` goes into the chunks of a PNG. An
    animated PNG or WebP has further frames, ``(T, C, H, W)``, and the ``times`` of all, see ``frame_times``. WebP of
    quality 100 is lossless.
    """
    check_format(format, bits, quality, alpha=picture.shape[0] in (2, 4))
    metadata = metadata or Metadata()
    if not fits_profile(metadata, picture.shape[0]):
        metadata = replace(metadata, icc=None)
    levels = to_levels(picture.detach().cpu(), bits)
    pixels = levels.permute(1, 2, 0).numpy().astype(np.uint16 if bits == 16 else np.uint8)
    tags = tags_for_size(metadata.exif, pixels.shape[1], pixels.shape[0], unique_id)
    animation: dict[str, Any] = {}
    if more_frames is not None:
        if format not in ("png", "webp") or bits == 16:
            raise ImageError(f"Animated results are PNG of 8 bits or WebP; got {format} of {bits}. Choose one of them.")
        frames = [Image.fromarray(to_uint8(frame).permute(1, 2, 0).cpu().squeeze(2).numpy()) for frame in more_frames]
        animation = {"save_all": True, "append_images": frames, **(times or {})}
    try:
        if format == "tiff":
            return _tiff(pixels, metadata, tags)
        if bits == 16:
            return _png16(pixels, metadata, tags, text or {})
        return _encode_with_pillow(pixels, metadata, tags, text or {}, format, quality, animation)
    except (ValueError, OSError) as error:
        raise ImageError(
            f"A {format} file cannot hold this image of {pixels.shape[1]}x{pixels.shape[0]} pixels: {error}. "
            "Choose another format."
        ) from error


def check_format(format: str, bits: int = 8, quality: int | None = None, *, alpha: bool = False) -> None:
    """Raise ImageError if ``encode`` can write no file with these settings."""
    if format not in get_args(Format):
        raise ImageError(f"An image file's format is one of {', '.join(get_args(Format))}; got {format!r}.")
    if bits not in (8, 16):
        raise ImageError(f"Image files have 8 or 16 bits per channel; got {bits}.")
    if bits == 16 and format not in DEEP:
        raise ImageError(f"16 bits per channel go into PNG and TIFF; got {format}. Choose one of them, or 8 bits.")
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality is 1 to 100; got {quality}.")
    if alpha and format == "jpeg":
        raise ImageError("The image has an alpha channel, which a JPEG file cannot hold. Write a .png file.")


def unique_id(data: bytes) -> str | None:
    """Read EXIF's ImageUniqueID from a file's contents; None if there is none, or if it is not an image."""
    value = _read_from(data, lambda opened: opened.getexif().get_ifd(EXIF).get(UNIQUE_ID))
    return None if value is None else str(value)


def upright_size(data: bytes | Path) -> tuple[int, int] | None:
    """Read height and width of an image as it is to be shown, from the header of a file; None if it is not an image."""

    def size(opened: Image.Image) -> tuple[int, int]:
        transposed = orientation_in_header(opened) in TRANSPOSED
        return (opened.width, opened.height) if transposed else (opened.height, opened.width)

    return _read_from(data, size)


def bits_per_channel(data: bytes | Path) -> int:
    """Read from the header how many bits per channel ``read`` takes from a file, 8 or 16; 8 if it is not an image."""
    deep = _read_from(data, lambda opened: opened.mode.startswith("I") or ";16" in _raw_mode(opened))
    return 16 if deep else 8


def text(data: bytes | Path, key: str) -> str:
    """Read the text under a key in a PNG file's chunks before its pixels; "" if there is none."""
    return str(_read_from(data, lambda opened: opened.info.get(key)) or "")


def is_whole(data: bytes) -> bool:
    """Tell whether an image file is all there, by its checksums or its end, or else by decoding it."""

    def check(opened: Image.Image) -> bool:
        complete = is_complete(opened.format, data)
        return opened.load() is not None if complete is None else complete

    return bool(_read_from(data, check))


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(data: bytes | Path, name: str = "") -> Generator[Image.Image]:
    """Open a file, see ``open_image``; turn any failure inside into an ImageError with its name."""
    try:
        with open_image(data) as opened:
            yield opened
    except ImageError as error:
        raise ImageError("Cannot read {file} as an image: {reason}.", file=name, reason=error) from error


def _read_from(data: bytes | Path, read: Callable[[Image.Image], V]) -> V | None:
    """Read something from an image file; None if that is impossible."""
    try:
        with _opened(data) as opened:
            return read(opened)
    except (ImageError, MemoryError):
        return None


def _decode(opened: Image.Image, data: bytes) -> Pixels:
    """Decode the pixels, upright, (h, w, 3 or 4)."""
    _refuse_unknown_range(opened)
    low_bytes = _low_bytes(opened, data)
    opened.load()  # loading loses the file's raw mode
    pixels, orientation = _pixels(opened, low_bytes), tags_and_orientation(opened)[1]
    return np.flip(pixels.swapaxes(0, 1) if orientation in TRANSPOSED else pixels, FLIPPED.get(orientation, ()))


def _refuse_unknown_range(opened: Image.Image) -> None:
    """Raise ValueError for floating-point numbers, and a TIFF of signed or 32-bit integers, which would be clipped."""
    kind = "floating-point numbers" if opened.mode == "F" else ""
    if opened.format == "TIFF" and not kind:
        bits, signed = max(_tiff_tag(opened, tiff.BITSPERSAMPLE)), SIGNED in _tiff_tag(opened, tiff.SAMPLEFORMAT)
        kind = f"{'signed ' * signed}{bits}-bit integers" if signed or bits > 16 else ""
    if kind:
        raise ValueError(f"it holds {kind} of unknown range; scale them to all of 8 or 16 bits per channel")


def _tiff_tag(opened: Image.Image, tag: int) -> tuple[int, ...]:
    value = cast("Any", opened).tag_v2.get(tag, 1)
    return value if isinstance(value, tuple) else (value,)


def _raw_mode(opened: Image.Image) -> str:
    """Return how a file stores its samples, as Pillow names it, e.g. "RGB;16B"."""
    if not isinstance(opened, ImageFile.ImageFile) or not opened.tile:
        return ""
    arguments = opened.tile[0][3] or ""
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _low_bytes(opened: Image.Image, data: bytes) -> Pixels | None:
    """Decode the lower bytes of 16-bit colors; None if there are none."""
    deep = re.fullmatch(r"(RGB|RGBX|RGBA|LA);16([LBN])", _raw_mode(opened))
    if deep is None or opened.format not in ("PNG", "TIFF"):
        return None
    gray = deep[1] == "LA"  # a gray PNG, reopened as 8-bit RGBA: gray high, gray low, alpha high, alpha low
    raw = "RGBA" if gray else f"{deep[1]};16{OTHER_ORDER[deep[2]]}"
    with open_image(data) as reopened:
        swapped = cast("Any", reopened)
        for number, tile in enumerate(swapped.tile):  # a plain tuple before Pillow 11
            arguments = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
            swapped.tile[number] = tuple.__new__(type(tile), (*tile[:3], arguments))
        low_bytes = np.asarray(swapped)
    return low_bytes[:, :, [1, 1, 1, 3]] if gray else low_bytes


def _pixels(opened: Image.Image, low_bytes: Pixels | None) -> Pixels:
    """Return the decoded image as an array, (h, w, 3 or 4)."""
    if opened.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        gray = np.asarray(opened).clip(0, 65535).astype(np.uint32)
        if opened.format == "TIFF":  # Pillow gives the numbers in the file
            white = 2 ** _tiff_tag(opened, tiff.BITSPERSAMPLE)[0] - 1
            gray = (gray * 65535 + white // 2) // white
            gray = 65535 - gray if WHITE_IS_ZERO in _tiff_tag(opened, tiff.PHOTOMETRIC_INTERPRETATION) else gray
        return _mark_transparent(opened, np.repeat(gray[:, :, None].astype(np.uint16), 3, axis=2))
    if low_bytes is not None and opened.mode in ("RGB", "RGBA"):
        upper = np.asarray(opened).astype(np.uint16)
        if upper.shape == low_bytes.shape:
            return _mark_transparent(opened, upper << 8 | low_bytes)
    if opened.mode == "CMYK" and (managed := cmyk_to_srgb(opened)) is not None:
        return np.asarray(managed)
    has_alpha = "A" in opened.getbands()[-1:] or "transparency" in opened.info  # that of Lab is a color
    return np.asarray(opened.convert("RGBA" if has_alpha else "RGB"))


def _to_tensor(pixels: Pixels) -> Tensor:
    """Convert pixels (h, w, channels) to ``(1, C, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / (2 ** (8 * pixels.itemsize) - 1)


def _mark_transparent(opened: Image.Image, pixels: Pixels) -> Pixels:
    """Add an alpha channel to 16-bit colors of a PNG in which one color is transparent (tRNS)."""
    color = opened.info.get("transparency")
    if color is None or pixels.shape[2] == 4:
        return pixels
    alpha = np.where((pixels == np.array(color, np.uint16)).all(2), 0, 65535).astype(np.uint16)
    return np.dstack([pixels, alpha])


# --- writing ----------------------------------------------------------------------------------------------------------


def _encode_with_pillow(
    pixels: Pixels,
    metadata: Metadata,
    tags: dict[int, Any],
    text: dict[str, str],
    format: Format,
    quality: int | None,
    options: dict[str, Any],
) -> bytes:
    if metadata.dpi and format == "webp":  # it has no other field for the resolution
        tags = {**tags, **resolution_tags(metadata.dpi)}
    xmp = metadata.xmp or b""
    if format == "jpeg":
        tags, xmp = tags_for_jpeg(tags), xmp if len(xmp) <= MAX_SEGMENT else b""
    exif = b"Exif\0\0" + tiff_directory(tags) if tags else b""
    options |= {"exif": exif, "icc_profile": metadata.icc}
    if format == "png":
        options |= {"pnginfo": _png_info(text, metadata), "dpi": metadata.dpi}
    else:
        quality = quality or DEFAULT_QUALITY[format]
        options |= {"quality": quality, "xmp": xmp}
    if format == "webp":
        options["lossless"] = options["exact"] = quality == 100
    if format == "jpeg":
        options |= {"subsampling": 0 if options["quality"] >= 90 else 2, "dpi": metadata.dpi or (0, 0)}
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format, **options)
    return file.getvalue()


def _png_info(text: dict[str, str], metadata: Metadata) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)  # tEXt if possible: what most programs look for
    if metadata.xmp:
        chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    return chunks


def _png16(pixels: Pixels, metadata: Metadata, tags: dict[int, Any], text: dict[str, str]) -> bytes:
    """Write a PNG of 16 bits: rows as differences from the row above (filter 2), deflated."""
    height, width, channels = pixels.shape
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, width * channels * 2)
    differences = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    filtered = np.pad(differences, ((0, 0), (1, 0)), constant_values=2)
    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    PngImagePlugin.putchunk(file, b"IHDR", header)
    if metadata.icc:
        PngImagePlugin.putchunk(file, b"iCCP", b"ICC Profile\0\0", zlib.compress(metadata.icc))
    if metadata.dpi:
        dots_per_meter = (round(n / 0.0254) for n in metadata.dpi)
        PngImagePlugin.putchunk(file, b"pHYs", struct.pack(">IIB", *dots_per_meter, 1))
    for kind, body, *_ in _png_info(text, metadata).chunks:
        PngImagePlugin.putchunk(file, kind, body)
    if tags:
        PngImagePlugin.putchunk(file, b"eXIf", tiff_directory(tags))
    PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(filtered.tobytes(), 6))
    PngImagePlugin.putchunk(file, b"IEND")
    return file.getvalue()


def _tiff(pixels: Pixels, metadata: Metadata, tags: dict[int, Any]) -> bytes:
    """Write a TIFF: horizontal differencing (predictor 2), deflate, and all tags, which Pillow's own would omit."""
    height, width, channels = pixels.shape
    per_strip = max(1, 2**18 // (width * channels * pixels.itemsize))
    differences = np.diff(pixels, axis=1, prepend=np.zeros_like(pixels[:, :1]))
    little = differences.astype(pixels.dtype.newbyteorder("<"))
    strips = [zlib.compress(little[top : top + per_strip].tobytes(), 6) for top in range(0, height, per_strip)]
    starts = np.cumsum([0, *(len(strip) + len(strip) % 2 for strip in strips)]).tolist()  # Pillow adds the directory
    directory = {
        **tags,
        tiff.IMAGEWIDTH: width,
        tiff.IMAGELENGTH: height,
        tiff.BITSPERSAMPLE: (pixels.itemsize * 8,) * channels,
        tiff.COMPRESSION: 8,  # deflate
        tiff.PHOTOMETRIC_INTERPRETATION: 1 if channels < 3 else 2,
        tiff.STRIPOFFSETS: tuple(starts[:-1]),
        tiff.SAMPLESPERPIXEL: channels,
        tiff.ROWSPERSTRIP: per_strip,
        tiff.STRIPBYTECOUNTS: tuple(len(strip) for strip in strips),
        tiff.PLANAR_CONFIGURATION: 1,
        tiff.PREDICTOR: 2,
        **({tiff.EXTRASAMPLES: 2} if channels in (2, 4) else {}),
        **(resolution_tags(metadata.dpi) if metadata.dpi else {}),
        **({XMP: metadata.xmp} if metadata.xmp else {}),
        **({tiff.ICCPROFILE: metadata.icc} if metadata.icc else {}),
    }
    return tiff_directory(directory) + b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
