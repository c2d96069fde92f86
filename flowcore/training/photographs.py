"""Training data: photographs, decoded once into a file that is mapped into memory, and cut into crops."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from ..images.resize import shrink
from ..tasks import Progress
from .degradation import DegradationKind, degrade, draw_degradation
from .pictures import Picture, find_pictures, from_each, strictly


@dataclass(frozen=True)
class Entry:
    """One image of the cache.

    Attributes:
        name: File it came from, relative to the data folder.
        height: HR rows.
        width: HR columns.
        offset: Where its HR pixels start in the cache, in bytes; its LR pixels follow.
        factor: Its size relative to the file's.
    """

    name: str
    height: int
    width: int
    offset: int
    factor: float


class Photographs:
    """Images, memory-mapped, 8 bit; for upscalers pairs of HR and LR, both 8 bit as the papers' PNG files are.

    LR images are made from whole images (antialiased bicubic, rounded to 8 bits), so crops have no border effects.
    With realistic degradation they are made anew for every crop instead, with blur, noise and JPEG; HR stays the same.
    Which crops a training step sees is a function of (seed, step) alone: that is what makes resuming exact.
    """

    def __init__(
        self,
        folder: Path | Sequence[Path],
        cache: Path,
        *,
        scale: int,
        pyramid: tuple[float, ...] = (1.0,),
        validation: int = 0,
        held_out: frozenset[str] = frozenset(),
        turn: bool = True,
        short_sides: tuple[int, ...] = (),
        degradation: DegradationKind = "bicubic",
        degradation_strength: float = 1.0,
        progress: Progress | None = None,
    ) -> None:
        """Open the cache, or decode the folder into it. Several processes may do so at the same time.

        Args:
            folder: One or several trees of images, or ZIP archives of them (see ``find_pictures``); what cannot be
                decoded is skipped and listed in ``skipped``, with the reason.
            cache: Folder to keep the decoded pixels in.
            scale: Factor between HR and LR; 1 for images alone.
            pyramid: Sizes at which every photograph is used, 1 for its own; shrunk copies are sharper than their
                originals.
            validation: How many photographs to keep out of training, spread evenly over the sorted names; of few
                photographs at most half of them, but one if there are two or three.
            held_out: File names, without folders, of photographs to keep out of training. Where there is any of them,
                these are held out instead of ``validation`` others.
            turn: Whether crops are turned by quarters at random; they are mirrored in any case.
            short_sides: Instead of the pyramid: lengths in pixels of the shorter side to which every photograph is
                shrunk; those that are smaller keep their size.
            degradation: How LR crops are made of HR ones: "bicubic", or "realistic", as ``degradation.py`` describes.
            degradation_strength: Factor on the amounts of the latter, in (0, 1].
            progress: Called with every picture that is decoded; what it raises leaves no cache.

        Raises:
            ImageError: If the folder holds no image, or the cache cannot be written.
        """
        pictures = find_pictures(folder)
        described = [[picture.name, picture.size, picture.stamp] for picture in pictures]
        sizes = [f"short side {side}" for side in short_sides] or pyramid
        key = hashlib.sha256(json.dumps([described, scale, sizes]).encode()).hexdigest()[:16]
        pixels, index = cache / f"{key}.u8", cache / f"{key}.json"
        content = _read_index(pixels, index, scale)
        if content is None:
            try:
                cache.mkdir(parents=True, exist_ok=True)
                _decode(pictures, scale, pyramid, short_sides, pixels, index, progress)
            except OSError as error:
                raise ImageError(
                    f"The decoded images could not be kept in {cache} ({error}). Make room there, or choose another "
                    "folder for the run."
                ) from error
            content = _read_index(pixels, index, scale)
            assert content is not None
        entries, self.skipped = content
        self.scale = scale
        self.turn = turn
        self.degradation: DegradationKind = degradation
        self.degradation_strength = degradation_strength
        self._fitting: dict[tuple[int, bool], list[Entry]] = {}
        self._chances: dict[tuple[int, bool], np.ndarray] = {}
        if not entries:
            raise ImageError(
                f"None of the {len(pictures)} files in {_named(folder)} could be used. Skipped: "
                f"{'; '.join(self.skipped[:3])}."
            )
        self._pixels = np.memmap(pixels, dtype=np.uint8, mode="r")
        names = sorted({entry.name for entry in entries})
        held = {name for name in names if PurePosixPath(name).name in held_out}
        if not held:
            count = min(validation, max(1, len(names) // 2), len(names) - 1)
            held = {names[round(k * len(names) / count)] for k in range(count)}
        if len(held) == len(names):
            raise ImageError(
                f"All {len(names)} images in {_named(folder)} are on the list of images that are held out of training. "
                "Add others, or leave held_out out of the recipe."
            )
        self.training = [entry for entry in entries if entry.name not in held]
        self.held_out = [entry for entry in entries if entry.name in held]

    def batch(
        self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Cut the crops of one step, turned and mirrored at random.

        Args:
            size: B.
            crop: Side of the HR crops, a multiple of the scale.
            seed: Of the run.
            step: Number of the step.
            held_out: Whether to cut from the validation photographs.

        Returns:
            HR ``(B, 3, crop, crop)`` and LR ``(B, 3, crop / scale, crop / scale)``, float32 in [0, 1]; with scale 1,
            None for LR.

        Raises:
            ImageError: If no image is as large as the crop.
        """
        entries = self.fitting(crop, held_out=held_out)
        if not entries:
            raise ImageError(
                f"No image has both sides of at least {crop} pixels, the crop of this stage. Use larger images or a "
                "smaller crop."
            )
        rng = np.random.default_rng([seed, step, int(held_out)])
        chosen = rng.choice(len(entries), size, p=self._chances_of(entries, (crop, held_out)))
        chance = np.random.default_rng([seed, step, int(held_out), 2])  # of the degradation: HR is the same without
        pairs = [self._crop(entries[i], crop, rng, chance) for i in chosen]
        return _batch([hr for hr, _ in pairs]), _batch([lr for _, lr in pairs]) if self.scale > 1 else None

    def _chances_of(self, entries: list[Entry], key: tuple[int, bool]) -> np.ndarray:
        if key not in self._chances:
            # in proportion to the file's own area: all sizes of a photograph are equally likely
            areas = np.array([e.height * e.width / e.factor**2 for e in entries], dtype=np.float64)
            self._chances[key] = areas / areas.sum()
        return self._chances[key]

    def fitting(self, crop: int, *, held_out: bool = False) -> list[Entry]:
        """List the images that a crop fits into.

        Args:
            crop: Side of the HR crops.
            held_out: Whether to look among the validation photographs.

        Returns:
            Entries with both sides at least as long as the crop.
        """
        key = crop, held_out
        if key not in self._fitting:
            entries = self.held_out if held_out else self.training
            self._fitting[key] = [e for e in entries if min(e.height, e.width) >= crop]
        return self._fitting[key]

    def _crop(
        self, entry: Entry, crop: int, rng: np.random.Generator, chance: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        hr, lr = self._images(entry)
        s, small = self.scale, crop // self.scale
        top = int(rng.integers(0, lr.shape[0] - small + 1))
        left = int(rng.integers(0, lr.shape[1] - small + 1))
        turn, mirror = int(rng.integers(4)) if self.turn else 0, bool(rng.integers(2))
        if self.degradation == "realistic" and s > 1:
            way = draw_degradation(chance, self.degradation_strength)
            lr = degrade(hr, s, top, left, small, way, chance)
        else:
            lr = lr[top : top + small, left : left + small]
        crops = hr[top * s : top * s + crop, left * s : left * s + crop], lr
        turned = [np.rot90(c, turn) for c in crops]
        return tuple(c[:, ::-1] if mirror else c for c in turned)  # pyright: ignore[reportReturnType]

    def _images(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        hr = self._pixels[entry.offset : entry.offset + entry.height * entry.width * 3]
        hr = hr.reshape(entry.height, entry.width, 3)
        if self.scale == 1:
            return hr, hr
        small = entry.height // self.scale, entry.width // self.scale
        middle = entry.offset + hr.size
        lr = self._pixels[middle : middle + small[0] * small[1] * 3]
        return hr, lr.reshape(*small, 3)


def _batch(crops: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(crops))  # (B, H, W, 3) uint8
    return stacked.permute(0, 3, 1, 2).float().div_(255)  # stays channels-last in memory


def _named(folder: Path | Sequence[Path]) -> str:
    return str(folder) if isinstance(folder, Path) else ", ".join(str(one) for one in folder)


def _read_index(pixels: Path, index: Path, scale: int) -> tuple[list[Entry], list[str]] | None:
    """Read what a cache holds and what was skipped; None if there is no cache, or only a part of one."""
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        entries = [Entry(*row) for row in content["entries"]]
        skipped: list[str] = content["skipped"]
        whole = max((e.offset + _bytes_of(e.height, e.width, scale) for e in entries), default=0)
        return (entries, skipped) if pixels.stat().st_size == whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _bytes_of(height: int, width: int, scale: int) -> int:
    return 3 * height * width + (3 * (height // scale) * (width // scale) if scale > 1 else 0)


def _decode(
    pictures: list[Picture],
    scale: int,
    pyramid: tuple[float, ...],
    short_sides: tuple[int, ...],
    pixels: Path,
    index: Path,
    progress: Progress | None,
) -> None:
    """Write the pixels of all pictures, then the index: a cache without an index does not exist.

    Others may be doing the same. Each writes files of its own and puts them in place at once; they are alike.
    """
    entries: list[tuple[str, int, int, int, float]] = []
    skipped: list[str] = []
    mine = uuid.uuid4().hex
    partial, partial_index = pixels.with_suffix(f".{mine}.partial"), index.with_suffix(f".{mine}.index.partial")
    make = functools.partial(_in_all_sizes, scale=scale, pyramid=pyramid, short_sides=short_sides)
    try:
        with strictly(), partial.open("wb") as out:
            for done, (picture, sizes, reason) in enumerate(from_each(pictures, make), start=1):
                if sizes is None:
                    skipped.append(f"{picture.name}: {reason}")
                for size in sizes or ():
                    if size.content is None:
                        skipped.append(f"{picture.name}: {size.width}x{size.height} is too small")
                        continue
                    entries.append((picture.name, size.height, size.width, out.tell(), size.factor))
                    out.write(size.content)
                if progress is not None:
                    progress(done, len(pictures))
        partial_index.write_text(json.dumps({"entries": entries, "skipped": skipped}))
        if _read_index(pixels, index, scale) is None:  # or else another process was faster, and may be reading its own
            os.replace(partial, pixels)
            os.replace(partial_index, index)
    finally:
        partial.unlink(missing_ok=True)
        partial_index.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Size:
    """A photograph at one size: HR pixels followed by LR pixels, or None if it is too small."""

    height: int
    width: int
    factor: float
    content: bytes | None


def _in_all_sizes(
    image: Image.Image, *, scale: int, pyramid: tuple[float, ...], short_sides: tuple[int, ...]
) -> list[_Size]:
    sizes: list[_Size] = []
    multiple = 2 * scale if scale > 1 else 1
    for factor in [min(1.0, side / min(image.size)) for side in short_sides] or pyramid:
        sides = round(image.width * factor), round(image.height * factor)
        if min(sides) < multiple:
            sizes.append(_Size(sides[1], sides[0], factor, None))
            continue
        sized = image if factor == 1 else image.resize(sides, Image.Resampling.BICUBIC)
        height, width = sized.height // multiple * multiple, sized.width // multiple * multiple
        hr = np.asarray(sized.crop((0, 0, width, height)))
        content = hr.tobytes()
        if scale > 1:
            lr = shrink(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None].float().div_(255), scale)[0]
            content += (lr.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy().tobytes()
        sizes.append(_Size(height, width, factor, content))
    return sizes
