"""Training data: photographs, decoded once and cut into crops, for upscalers and colorizers; or labelled digits."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..color import NEUTRAL, luma, merge, palette_of, split
from ..networks.luma import STRIDE
from ..resize import shrink
from ..tasks import image_files
from ..transforms import ImageError


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
    Which crops a training step sees is a function of (seed, step) alone: that is what makes resuming exact.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *,
        scale: int,
        pyramid: tuple[float, ...] = (1.0,),
        validation: int = 0,
        turn: bool = True,
        short_sides: tuple[int, ...] = (),
    ) -> None:
        """Open the cache, or decode the folder into it.

        Args:
            folder: Any tree of images; files that cannot be decoded are skipped and listed in ``skipped``.
            cache: Folder to keep the decoded pixels in.
            scale: Factor between HR and LR; 1 for images alone.
            pyramid: Sizes at which every photograph is used, 1 for its own; shrunk copies are sharper than their
                originals.
            validation: How many photographs to keep out of training, spread evenly over the sorted names; at least one
                is always trained on.
            turn: Whether crops are turned by quarters at random; they are mirrored in any case.
            short_sides: Instead of the pyramid: lengths in pixels of the shorter side to which every photograph is
                shrunk; those that are smaller keep their size.

        Raises:
            ImageError: If the folder holds no image.
        """
        files = image_files(folder)
        described = [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        sizes = [f"short side {side}" for side in short_sides] or pyramid
        key = hashlib.sha256(json.dumps([described, scale, sizes]).encode()).hexdigest()[:16]
        pixels, index = cache / f"{key}.u8", cache / f"{key}.json"
        if not index.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _decode(folder, files, scale, pyramid, short_sides, pixels, index)
        content: dict[str, Any] = json.loads(index.read_text())
        entries = [Entry(*row) for row in content["entries"]]
        self.scale = scale
        self.turn = turn
        self._fitting: dict[tuple[int, bool], list[Entry]] = {}
        self.skipped: list[str] = content["skipped"]
        if not entries:
            raise ImageError(
                f"None of the {len(files)} files in {folder} could be used. Skipped: {'; '.join(self.skipped[:3])}."
            )
        self._pixels = np.memmap(pixels, dtype=np.uint8, mode="r")
        names = sorted({entry.name for entry in entries})
        kept_out = min(validation, len(names) - 1)
        held = {names[round(k * len(names) / kept_out)] for k in range(kept_out)}
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
        # in proportion to the file's own area: all sizes of a photograph are equally likely
        areas = np.array([e.height * e.width / e.factor**2 for e in entries], dtype=np.float64)
        rng = np.random.default_rng([seed, step, int(held_out)])
        pairs = [self._crop(entries[i], crop, rng) for i in rng.choice(len(entries), size, p=areas / areas.sum())]
        return _batch([hr for hr, _ in pairs]), _batch([lr for _, lr in pairs]) if self.scale > 1 else None

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

    def _crop(self, entry: Entry, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        hr, lr = self._images(entry)
        s, small = self.scale, crop // self.scale
        top = int(rng.integers(0, lr.shape[0] - small + 1))
        left = int(rng.integers(0, lr.shape[1] - small + 1))
        turn, mirror = int(rng.integers(4)) if self.turn else 0, bool(rng.integers(2))
        crops = hr[top * s : top * s + crop, left * s : left * s + crop], lr[top : top + small, left : left + small]
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


class Colours:
    """Crops of photographs for colorizers: chroma, and the luma and the hints to make it from.

    Hints and palettes are taken from the crop's own colours, for a part of the crops each. Luma and chroma are varied
    as old photographs and cameras do: exposure, contrast and grain of the luma alone, saturation and white balance of
    the chroma alone. Held-out crops are not varied and have no hints.
    """

    def __init__(self, photographs: Photographs, *, hinted: float = 0.6, palettes: float = 0.15) -> None:
        """Hold the photographs.

        Args:
            photographs: Where crops come from; of scale 1.
            hinted: Part of the crops that come with hints.
            palettes: Part of the crops that come with a palette.
        """
        self.photographs = photographs
        self.hinted = hinted
        self.palettes = palettes
        self.skipped = photographs.skipped
        self.training = photographs.training
        self.held_out = photographs.held_out

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Cut the crops of one step.

        Args:
            size: B.
            crop: Side of the luma.
            seed: Of the run.
            step: Number of the step.
            held_out: Whether to cut from the validation photographs.

        Returns:
            Chroma as a colorizer takes it, ``(B, 2, crop / 4, crop / 4)``, and its source ``(B, 8, crop, crop)``.

        Raises:
            ImageError: If no image is as large as the crop.
        """
        rgb = self.photographs.batch(size, crop, seed, step, held_out=held_out)[0].contiguous()
        y, chroma = split(rgb)
        rng = np.random.default_rng([seed, step, int(held_out), 1])
        if not held_out:
            chroma = _recoloured(chroma, rng)
            y = _aged(luma(merge(y, chroma).clamp(0, 1)), rng)
        coarse = F.avg_pool2d(chroma, STRIDE)  # (B, 2, crop / 4, crop / 4)
        hints, palette = torch.zeros(size, 3, crop, crop), torch.zeros(size, 4)
        for i in range(0 if held_out else size):
            if rng.random() < self.hinted:
                hints[i] = _hints(coarse[i], rng)
            if rng.random() < self.palettes:
                palette[i] = palette_of(coarse[i : i + 1])[0]
        planes = palette[:, :, None, None].expand(-1, -1, crop, crop)
        return coarse + NEUTRAL, torch.cat([y, hints, planes], dim=1)

    def fitting(self, crop: int, *, held_out: bool = False) -> list[Entry]:
        """List the images that a crop fits into.

        Args:
            crop: Side of the crops.
            held_out: Whether to look among the validation photographs.

        Returns:
            Entries with both sides at least as long as the crop.
        """
        return self.photographs.fitting(crop, held_out=held_out)


def _recoloured(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary saturation by a fifth, and the white balance a little."""
    size = len(chroma)
    saturation = torch.from_numpy(rng.uniform(0.8, 1.2, (size, 1, 1, 1))).float()
    balance = torch.from_numpy(rng.normal(0, 0.008, (size, 2, 1, 1))).float()
    return chroma * saturation + balance


def _aged(y: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary exposure and contrast; add grain to a third."""
    size = len(y)

    def numbers(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (size, 1, 1, 1))).float()

    y = y.clamp(0, 1) ** numbers(0.8, 1.25) * numbers(0.9, 1.0) + numbers(0, 0.08)
    noise = torch.from_numpy(rng.standard_normal(y.shape, dtype=np.float32))
    return (y + noise * numbers(-0.1, 0.05).clamp_min(0)).clamp(0, 1)


def _hints(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint 1 to 16 squares of the image's own colours: (3, H, W) at the luma's size."""
    height, width = chroma.shape[1:]
    largest = min(6, height, width)
    planes = torch.zeros(3, height, width)
    for _ in range(int(2 ** rng.uniform(0, 4))):
        side = int(rng.integers(1, largest + 1))
        top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        square = slice(top, top + side), slice(left, left + side)
        planes[0][square] = 1
        planes[1:, square[0], square[1]] = chroma[:, square[0], square[1]].mean((1, 2), keepdim=True)
    return F.interpolate(planes[None], scale_factor=STRIDE, mode="nearest")[0]


class Digits:
    """Labelled grey images in the four files of MNIST: ``train-`` and ``t10k-``, ``images-idx3-ubyte`` and ``labels-``.

    Which digits a training step sees is a function of (seed, step) alone.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998).
    """

    skipped: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, validation: int = 0, unlabelled: float = 0.0) -> None:
        """Read the training files.

        Args:
            folder: Where they are, gzipped or not.
            validation: How many digits, the last ones, to keep out of training.
            unlabelled: Part of the digits that are shown with the label "none given".

        Raises:
            ImageError: If a file is missing or damaged.
        """
        self.images = read_idx(folder, "train-images-idx3-ubyte")  # (N, 28, 28)
        self.labels = read_idx(folder, "train-labels-idx1-ubyte")
        self.classes = int(self.labels.max()) + 1
        self.unlabelled = unlabelled
        kept = len(self.images) - min(validation, len(self.images) - 1)
        self.training, self.held_out = np.arange(kept), np.arange(kept, len(self.images))

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Draw the digits of one step.

        Args:
            size: B.
            crop: Not used: digits are shown whole.
            seed: Of the run.
            step: Number of the step.
            held_out: Whether to draw from those kept out of training; all of these keep their labels.

        Returns:
            Images ``(B, 1, 28, 28)``, float32 in [0, 1], and labels ``(B,)``.
        """
        rng = np.random.default_rng([seed, step, int(held_out)])
        chosen = rng.choice(self.held_out if held_out else self.training, size)
        labels = self.labels[chosen].astype(np.int64)
        if not held_out:
            labels[rng.random(size) < self.unlabelled] = self.classes
        return torch.from_numpy(self.images[chosen])[:, None].float() / 255, torch.from_numpy(labels)

    def fitting(self, crop: int, *, held_out: bool = False) -> np.ndarray:
        """List the digits: all of them fit.

        Args:
            crop: Not used.
            held_out: Whether to list those kept out of training.

        Returns:
            Their numbers.
        """
        return self.held_out if held_out else self.training


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one of MNIST's files.

    Args:
        folder: Where it is.
        name: Its name, without ``.gz``.

    Returns:
        Its numbers, uint8.

    Raises:
        ImageError: If it is missing or damaged.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ImageError(f"There is no {name} or {name}.gz in {folder}. Expected the four files of MNIST.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, dimensions = content[2], content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
        if content[:2] != b"\0\0" or kind != 8:
            raise ValueError(f"it starts with {content[:4]!r}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ImageError(f"{path.name} is no file of MNIST, or damaged ({error}). Fetch it again.") from error


def _batch(crops: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(crops))  # (B, H, W, 3) uint8
    return stacked.permute(0, 3, 1, 2).float() / 255  # stays channels-last in memory


def _decode(
    folder: Path,
    files: list[Path],
    scale: int,
    pyramid: tuple[float, ...],
    short_sides: tuple[int, ...],
    pixels: Path,
    index: Path,
) -> None:
    """Write the pixels of all files, then the index: a cache without an index does not exist."""
    entries: list[tuple[str, int, int, int, float]] = []
    skipped: list[str] = []
    partial = pixels.with_suffix(f".{os.getpid()}.partial")
    multiple = 2 * scale if scale > 1 else 1
    with partial.open("wb") as out:
        for file in files:
            name = str(file.relative_to(folder))
            try:
                with Image.open(file) as opened:
                    image = ImageOps.exif_transpose(opened).convert("RGB")
            except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                skipped.append(f"{name}: {error}")
                continue
            for factor in [min(1.0, side / min(image.size)) for side in short_sides] or pyramid:
                sides = round(image.width * factor), round(image.height * factor)
                sized = image if factor == 1 else image.resize(sides, Image.Resampling.BICUBIC)
                height, width = sized.height // multiple * multiple, sized.width // multiple * multiple
                if min(height, width) < multiple:
                    skipped.append(f"{name}: {sized.width}x{sized.height} is too small")
                    continue
                hr = np.asarray(sized.crop((0, 0, width, height)))
                entries.append((name, height, width, out.tell(), factor))
                out.write(hr.tobytes())
                if scale == 1:
                    continue
                lr = shrink(torch.from_numpy(hr.copy()).permute(2, 0, 1)[None].float() / 255, scale)[0]
                out.write((lr.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy().tobytes())
    os.replace(partial, pixels)
    index.with_suffix(".partial").write_text(json.dumps({"entries": entries, "skipped": skipped}))
    os.replace(index.with_suffix(".partial"), index)
