"""The pixels of all training images, decoded once into a file that is mapped into memory.

Two files per set of images, named by a hash of what is in them: ``HASH.u8`` holds the pixels, ``HASH.json`` the index.
The index is written last: a cache without an index does not exist. Several processes may write the same cache at the
same time; each writes files of its own and renames them, and their contents are equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import ImageError
from ..images.resize import shrink
from ..images.rounding import to_uint8
from ..tasks import Progress
from .image_sources import ImageSource, decode_each, find_images, strict_decoding
from .recipe import Recipe


@dataclass(frozen=True)
class Entry:
    """One image of the cache."""

    name: str  # of its file, relative to the data folder
    height: int  # HR rows
    width: int  # HR columns
    offset: int  # of its HR pixels in the cache, in bytes; its LR pixels follow
    factor: float  # its size relative to the file's


@dataclass(frozen=True)
class PixelCache:
    """Decoded images: HR, and LR if there is a scale, both 8 bit as the papers' PNG files are."""

    entries: list[Entry]  # in the order of the files
    skipped: list[str]  # files that could not be used, each with the reason
    pixels: np.ndarray  # all bytes, mapped into memory
    scale: int  # between HR and LR; 1 if there is no LR

    def images(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        """Look up an image: HR ``(H, W, 3)`` and LR ``(H / scale, W / scale, 3)``, uint8; of scale 1 the same twice."""
        hr = self.pixels[entry.offset : entry.offset + entry.height * entry.width * 3]
        hr = hr.reshape(entry.height, entry.width, 3)
        if self.scale == 1:
            return hr, hr
        height, width = entry.height // self.scale, entry.width // self.scale
        start = entry.offset + hr.size
        return hr, self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def open_pixel_cache(
    folders: Path | Sequence[Path], cache: Path, recipe: Recipe, progress: Progress | None = None
) -> PixelCache:
    """Open the cache of the images in folders and archives, or decode them into it.

    ``scale``, ``pyramid``, ``short_sides`` and ``enlarge`` of the recipe say what is made of every image. LR images are
    made from entire images (antialiased bicubic, rounded to 8 bits), so crops have no border effects. If ``progress``
    raises, no cache is left.
    """
    sources = find_images(folders)
    described = [[source.name, source.size, source.stamp] for source in sources]
    sizes = [f"short side {side}" for side in recipe.short_sides] or recipe.pyramid
    sizes = [*sizes, f"enlarged {recipe.enlarge:g}"] if recipe.enlarge > 1 else sizes
    key = hashlib.sha256(json.dumps([described, recipe.scale, sizes]).encode()).hexdigest()[:16]
    pixels, index = cache / f"{key}.u8", cache / f"{key}.json"
    content = _read_index(pixels, index, recipe.scale)
    if content is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _write(sources, recipe, pixels, index, progress)
        except OSError as error:
            raise ImageError(
                f"The decoded images could not be stored in {cache} ({error}). Make room there, or choose another "
                "folder for the run."
            ) from error
        content = _read_index(pixels, index, recipe.scale)
        assert content is not None
    entries, skipped = content
    if not entries:
        raise ImageError(
            f"None of the {len(sources)} files in {describe(folders)} could be used. Skipped: {'; '.join(skipped[:3])}."
        )
    return PixelCache(entries, skipped, np.memmap(pixels, dtype=np.uint8, mode="r"), recipe.scale)


def describe(folders: Path | Sequence[Path]) -> str:
    """Name folders in a message."""
    return str(folders) if isinstance(folders, Path) else ", ".join(map(str, folders))


def _read_index(pixels: Path, index: Path, scale: int) -> tuple[list[Entry], list[str]] | None:
    """Read entries and skipped files; None if there is no cache, or an incomplete one."""
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        entries = [Entry(*row) for row in content["entries"]]
        skipped: list[str] = content["skipped"]
        size = max((e.offset + _bytes_of(e.height, e.width, scale) for e in entries), default=0)
        return (entries, skipped) if pixels.stat().st_size == size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _bytes_of(height: int, width: int, scale: int) -> int:
    return 3 * height * width + (3 * (height // scale) * (width // scale) if scale > 1 else 0)


def _write(sources: list[ImageSource], recipe: Recipe, pixels: Path, index: Path, progress: Progress | None) -> None:
    entries: list[tuple[str, int, int, int, float]] = []
    skipped: list[str] = []
    unique = uuid.uuid4().hex
    new, new_index = pixels.with_suffix(f".{unique}.partial"), index.with_suffix(f".{unique}.index.partial")
    try:
        with strict_decoding(), new.open("wb") as out:
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
        new_index.write_text(json.dumps({"entries": entries, "skipped": skipped}))
        if _read_index(pixels, index, recipe.scale) is None:  # or another process was faster, and may read its own
            os.replace(new, pixels)
            os.replace(new_index, index)
    finally:
        new.unlink(missing_ok=True)
        new_index.unlink(missing_ok=True)


def _at_all_sizes(recipe: Recipe, image: Image.Image) -> list[tuple[int, int, float, bytes | None]]:
    """Height, width and factor at each size, and HR pixels followed by LR pixels, or None if it is too small."""
    results: list[tuple[int, int, float, bytes | None]] = []
    scale = recipe.scale
    multiple = 2 * scale if scale > 1 else 1
    for factor in [min(recipe.enlarge, side / min(image.size)) for side in recipe.short_sides] or recipe.pyramid:
        sides = round(image.width * factor), round(image.height * factor)
        if min(sides) < multiple:
            results.append((sides[1], sides[0], factor, None))
            continue
        resized = image if factor == 1 else image.resize(sides, Image.Resampling.BICUBIC)
        height, width = resized.height // multiple * multiple, resized.width // multiple * multiple
        hr = np.asarray(resized.crop((0, 0, width, height)))
        content = hr.tobytes()
        if scale > 1:
            lr = shrink(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None].float().div_(255), scale)[0]
            content += to_uint8(lr).permute(1, 2, 0).contiguous().numpy().tobytes()
        results.append((height, width, factor, content))
    return results
