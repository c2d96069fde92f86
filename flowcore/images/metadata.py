"""What an image file contains besides its pixels: EXIF, XMP, resolution and color profile, as Pillow reads them."""

import io
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from PIL import ExifTags, Image, ImageCms
from PIL import TiffImagePlugin as tiff

from ..errors import say

EXIF, GPS, ORIENTATION, XMP = 0x8769, 0x8825, 0x0112, 700
UNIQUE_ID, EXIF_SIZES = 0xA420, (0xA002, 0xA003)
MAX_SEGMENT = 65_500  # bytes of EXIF or XMP in a JPEG
MAX_CHUNKS = 100_000  # chunks read of a PNG; more than that is an attack
C2PA = b"c2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71"  # begins content credentials in a file of any format
NOT_SIGNED = say("Its content credentials (C2PA) are not in results: they are signed for this very file.")
# TIFF tags that describe how the file's own samples are stored, or that are written in another way.
STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, ORIENTATION, 277, 278, 279, 280, 281, 282, 283, 284),
    *(288, 289, 290, 291, 292, 293, 296, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336),
    *(337, 338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, XMP, 34675),
    52545,  # content credentials, which are not of another file
}


@dataclass(frozen=True)
class Metadata:
    """What an image file contains besides its pixels."""

    # tags by number, those of inner directories as dictionaries; without the orientation
    exif: dict[int, Any] = field(default_factory=dict[int, Any])
    xmp: bytes | None = None  # the packet, with the orientation reset
    icc: bytes | None = None  # the color profile, for RGB or gray as the pixels of the file are
    dpi: tuple[float, float] | None = None


def fits_profile(metadata: Metadata, channels: int) -> bool:
    """Tell whether the color profile, if any, is for images of so many channels."""
    return metadata.icc is None or color_space(metadata.icc) == ("GRAY" if channels < 3 else "RGB")


def lost_on_save(metadata: Metadata, channels: int, before: int, after: int, format: str) -> list[str]:
    """Say what a result with ``channels`` loses of its file, with so many bits per channel before and after."""
    sentences: list[str] = []
    if before > after:
        sentences.append(
            say("It has {bits} bits per channel, and its result has {result_bits}.", bits=before, result_bits=after)
        )
    if not fits_profile(metadata, channels):
        sentences.append(say("Its gray color profile does not fit a result of several channels and is dropped."))
    if format == "jpeg":
        kept = set(_flat(tags_for_jpeg(metadata.exif)))
        dropped = [ExifTags.TAGS.get(tag, str(tag)) for outer, tag in _flat(metadata.exif) if (outer, tag) not in kept]
        dropped += ["XMP"] if len(metadata.xmp or b"") > MAX_SEGMENT else []
        if dropped:
            names = ", ".join(dropped)
            sentences.append(
                say(
                    "A JPEG file holds {most} bytes of EXIF, and of XMP, so {names} is dropped.",
                    most=MAX_SEGMENT,
                    names=names,
                )
            )
    return sentences


def tags_and_orientation(opened: Image.Image) -> tuple[dict[int, Any], int]:
    """Read the tags without the orientation, and the orientation."""
    try:
        exif = opened.getexif()
        orientation = int(exif.get(ORIENTATION, 1))
        inner = {tag: directory for tag in (EXIF, GPS) if (directory := exif.get_ifd(tag))}
        tags = {tag: value for tag, value in exif.items() if tag not in STRUCTURE and tag not in inner}
    except Exception:  # damaged tags do not make the image unreadable
        return {}, 1
    return {**tags, **inner}, orientation


def orientation_in_header(opened: Image.Image) -> int:
    """Read the orientation; of a PNG, Pillow would decode the pixels to look for tags after them, also if none are."""
    if opened.format == "PNG":
        file = cast("Any", opened).fp
        place = file.tell()
        kinds = [kind for kind, _ in itertools.islice(_png_chunks(file), MAX_CHUNKS)]
        file.seek(place)
        after_pixels = {*kinds[kinds.index(b"IDAT") if b"IDAT" in kinds else 0 :]}
        if len(kinds) < MAX_CHUNKS and not after_pixels & {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}:
            with suppress(Exception):  # damaged tags do not make the image unreadable
                return int(Image.Image.getexif(opened).get(ORIENTATION, 1))
            return 1
    return tags_and_orientation(opened)[1]


def is_complete(format: str | None, data: bytes) -> bool | None:
    """Tell whether a file is all there, by the checksums of a PNG, the end of JPEG or the length of WebP; else None."""
    match format:
        case "PNG":
            file = io.BytesIO(data)
            for kind, length in _png_chunks(file):
                content, checksum = file.read(length), file.read(4)
                if checksum != zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big"):
                    return False
                if kind == b"IEND":
                    return True
            return False
        case "JPEG":
            return data.endswith(b"\xff\xd9")
        case "WEBP":
            return len(data) == 8 + int.from_bytes(data[4:8], "little")
        case _:
            return None


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the kind and the length of each chunk of a PNG file, with the file at the start of its content."""
    place = 8
    while True:
        file.seek(place)
        if len(head := file.read(8)) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], length
        place += 12 + length


def read_metadata(opened: Image.Image, gray: bool) -> Metadata:
    """Read what results keep of a file, which may be ``gray``."""
    xmp = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp")
    if xmp is None and opened.format == "TIFF":
        xmp = cast("Any", opened).tag_v2.get(XMP)
    if xmp:
        xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
        xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp)
    tags, icc = tags_and_orientation(opened)[0], usable_profile(opened, gray)
    return Metadata(tags, xmp or None, icc, _pixels_per_inch(opened))


def _pixels_per_inch(opened: Image.Image) -> tuple[float, float] | None:
    if opened.format == "TIFF" and tiff.X_RESOLUTION not in cast("Any", opened).tag_v2:
        return None  # Pillow would say 1
    try:
        exif = opened.getexif() if opened.format == "WEBP" else {}
        x, y = (float(n) for n in opened.info.get("dpi") or (exif[tiff.X_RESOLUTION], exif[tiff.Y_RESOLUTION]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e5 and 0 < y < 1e5 else None


def usable_profile(opened: Image.Image, gray: bool) -> bytes | None:
    """Return the profile of a file if it fits the RGB or gray pixels that are read from it."""
    icc = opened.info.get("icc_profile")
    expected = "GRAY" if gray else "RGB" if opened.mode.startswith(("RGB", "P")) else None
    return icc if icc and color_space(icc) == expected else None


def color_space(icc: bytes) -> str:
    """Return the color space of a profile's device as its header states it: RGB, GRAY, CMYK, ..."""
    return icc[16:20].decode("latin-1").strip()


def cmyk_to_srgb(opened: Image.Image) -> Image.Image | None:
    """Convert CMYK by the file's profile; None if it has no usable one."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(opened.info.get("icc_profile") or b""))
        return ImageCms.profileToProfile(opened, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def read_warnings(opened: Image.Image, data: bytes, *, gray: bool, all_frames: bool) -> tuple[str, ...]:
    """Say what of a decoded file is dropped or changed; with ``all_frames``, its further frames are not dropped."""
    sentences: list[str] = []
    if C2PA in data:
        sentences.append(NOT_SIGNED)
    if (bits := stated_bits(opened, data)) > 8:
        sentences.append(say("It has {bits} bits per channel, of which 8 are read.", bits=bits))
    if opened.mode == "CMYK":
        managed = cmyk_to_srgb(opened.resize((1, 1))) is not None
        profiled = say("converted to sRGB by its color profile")
        guessed = say("approximate: it has no usable color profile")
        sentences.append(say("It is a CMYK file, and its colors are {how}.", how=profiled if managed else guessed))
    elif (icc := opened.info.get("icc_profile")) and usable_profile(opened, gray) is None:
        sentences.append(
            say(
                "Its color profile, for {space}, does not fit its pixels and is dropped.",
                space=color_space(icc) or "nothing",
            )
        )
    try:
        frames = int(getattr(opened, "n_frames", 1))
    except Exception:  # damaged files make Pillow raise almost anything
        frames = 1
    if frames > 1 and not all_frames and opened.format != "MPO":  # a JPEG whose further frames are data of the camera
        sentences.append(say("It has {frames} frames or pages; only the first is used.", frames=frames))
    return tuple(sentences)


def lost_frames(sentences: Iterable[str]) -> int:
    """Return how many frames were dropped, by what ``read_warnings`` said."""
    found = (re.fullmatch(r"It has (\d+) frames or pages; only the first is used\.", text) for text in sentences)
    return sum(int(each[1]) - 1 for each in found if each)


def stated_bits(opened: Image.Image, data: bytes) -> int:
    """Return the bits per channel of colors that Pillow decodes to 8; 0 if unknown, or a file of another kind."""
    if opened.mode not in ("RGB", "RGBA"):
        return 0
    if opened.format == "AVIF" and (start := data.find(b"pixi", 0, 2**16)) >= 0:
        return int.from_bytes(data[start + 9 : start + 10], "big")
    if opened.format == "JPEG2000" and (start := data.find(b"\xff\x4f\xff\x51", 0, 2**16)) >= 0:
        return (int.from_bytes(data[start + 42 : start + 43], "big") & 127) + 1
    if opened.format == "PPM" and (header := re.match(rb"P[36](?:\s+|#[^\n]*\n)+\d+\s+\d+\s+(\d{1,5})\s", data)):
        return int(header[1]).bit_length()
    return 0


# --- writing ----------------------------------------------------------------------------------------------------------


def tags_for_size(tags: dict[int, Any], width: int, height: int, unique_id: str | None) -> dict[int, Any]:
    """Copy the tags for an image of another size."""
    exif = dict(tags.get(EXIF, {}))
    exif |= {tag: size for tag, size in zip(EXIF_SIZES, (width, height), strict=True) if tag in exif}
    if unique_id is not None:
        exif[UNIQUE_ID] = unique_id
    return _writable({**tags, EXIF: exif} if exif else tags)


def tags_for_jpeg(tags: dict[int, Any]) -> dict[int, Any]:
    """Drop the largest tags, such as MakerNote, as far as a JPEG file cannot hold all."""
    while tags and len(tiff_directory(tags)) > MAX_SEGMENT:
        sizes = {place: len(tiff_directory({place[1]: value})) for place, value in _flat(tags).items()}
        outer, tag = max(sizes, key=sizes.__getitem__)
        inner = {other: value for other, value in (tags[outer] if outer else tags).items() if other != tag}
        tags = {**tags, outer: inner} if outer else inner
    return tags


def _flat(tags: dict[int, Any]) -> dict[tuple[int, int], Any]:
    """List tags by the tag of their inner directory, or 0, and their number."""
    inner = {(outer, tag): value for outer in (EXIF, GPS) for tag, value in tags.get(outer, {}).items()}
    return {(0, tag): value for tag, value in tags.items() if tag not in (EXIF, GPS)} | inner


def _writable(tags: dict[int, Any]) -> dict[int, Any]:
    """Drop the tags that Pillow can read but not write: a single one would keep it from writing the others."""
    result: dict[int, Any] = {}
    for tag, value in tags.items():
        entry = {tag: _writable(cast("dict[int, Any]", value)) if isinstance(value, dict) else value}
        with suppress(Exception):
            tiff_directory(entry)
            result |= entry
    return result


def tiff_directory(tags: dict[int, Any]) -> bytes:
    """Encode tags as a TIFF header and directory, little-endian."""
    exif = Image.Exif()
    exif.endian = "<"
    for tag, value in tags.items():
        exif[tag] = value
    return exif.tobytes().removeprefix(b"Exif\0\0")


def resolution_tags(dpi: tuple[float, float]) -> dict[int, Any]:
    """Return the tags of a resolution in pixels per inch."""
    return {tiff.X_RESOLUTION: dpi[0], tiff.Y_RESOLUTION: dpi[1], tiff.RESOLUTION_UNIT: 2}
