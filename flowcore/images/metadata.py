"""What an image file contains besides its pixels: EXIF, XMP, resolution and color profile, as Pillow reads them."""

import io
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import Image, ImageCms
from PIL import TiffImagePlugin as tiff

EXIF, GPS, ORIENTATION, XMP = 0x8769, 0x8825, 0x0112, 700
UNIQUE_ID, EXIF_SIZES = 0xA420, (0xA002, 0xA003)
# TIFF tags that describe how the file's own samples are stored, or that are written in another way.
STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, ORIENTATION, 277, 278, 279, 280, 281, 282, 283, 284),
    *(288, 289, 290, 291, 292, 293, 296, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336),
    *(337, 338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, XMP, 34675),
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
    return metadata.icc is None or color_space(metadata.icc) == ("GRAY" if channels == 1 else "RGB")


def lost_on_save(metadata: Metadata, channels: int, before: int, after: int) -> list[str]:
    """Say what a result with ``channels`` loses of its file, with so many bits per channel before and after."""
    sentences = [f"It has {before} bits per channel, and its result has {after}."] if before > after else []
    if not fits_profile(metadata, channels):
        sentences.append("Its gray color profile does not fit a result of several channels and is dropped.")
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


def read_metadata(opened: Image.Image) -> Metadata:
    """Read what results keep of a file."""
    xmp = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp")
    if xmp is None and opened.format == "TIFF":
        xmp = cast("Any", opened).tag_v2.get(XMP)
    if xmp:
        xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
        xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp)
    return Metadata(tags_and_orientation(opened)[0], xmp or None, usable_profile(opened), _pixels_per_inch(opened))


def _pixels_per_inch(opened: Image.Image) -> tuple[float, float] | None:
    if opened.format == "TIFF" and tiff.X_RESOLUTION not in cast("Any", opened).tag_v2:
        return None  # Pillow would say 1
    try:
        exif = opened.getexif() if opened.format == "WEBP" else {}
        x, y = (float(n) for n in opened.info.get("dpi") or (exif[tiff.X_RESOLUTION], exif[tiff.Y_RESOLUTION]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e5 and 0 < y < 1e5 else None


def usable_profile(opened: Image.Image) -> bytes | None:
    """Return the profile of a file if it fits the RGB or gray pixels that are read from it."""
    icc, mode = opened.info.get("icc_profile"), opened.mode
    expected = "RGB" if mode.startswith(("RGB", "P")) else "GRAY" if mode[0] in "1I" or mode in ("L", "LA") else None
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


def lost_on_read(opened: Image.Image, *, all_frames: bool) -> tuple[str, ...]:
    """Say what of a decoded file is dropped or changed; with ``all_frames``, its further frames are not dropped."""
    sentences: list[str] = []
    if opened.mode == "CMYK":
        managed = cmyk_to_srgb(opened.resize((1, 1))) is not None
        how = "converted to sRGB by its color profile" if managed else "approximate: it has no usable color profile"
        sentences.append(f"It is a CMYK file, and its colors are {how}.")
    elif (icc := opened.info.get("icc_profile")) and usable_profile(opened) is None:
        sentences.append(
            f"Its color profile, for {color_space(icc) or 'nothing'}, does not fit its pixels and is dropped."
        )
    try:
        frames = int(getattr(opened, "n_frames", 1))
    except Exception:  # damaged files make Pillow raise almost anything
        frames = 1
    if frames > 1 and not all_frames and opened.format != "MPO":  # a JPEG whose further frames are data of the camera
        sentences.append(f"It has {frames} frames or pages; only the first is used.")
    return tuple(sentences)


# --- writing ----------------------------------------------------------------------------------------------------------


def tags_for_size(tags: dict[int, Any], width: int, height: int, unique_id: str | None) -> dict[int, Any]:
    """Copy the tags for an image of another size."""
    exif = dict(tags.get(EXIF, {}))
    exif |= {tag: size for tag, size in zip(EXIF_SIZES, (width, height), strict=True) if tag in exif}
    if unique_id is not None:
        exif[UNIQUE_ID] = unique_id
    return _writable({**tags, EXIF: exif} if exif else tags)


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
