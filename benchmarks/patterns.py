"""Make images of noise and dithering, which no photograph has, for upscalers to be trained on beside photographs.

    python -m benchmarks.patterns PHOTOGRAPHS [PHOTOGRAPHS ...] -o FOLDER [--count 120] [--scale 4]

A flow that has never seen patterns as fine as the pixels of the small image may divide by scales far from those that it
learned, and overflow. Each image is a crop of a photograph, or one color, with noise, dithering, stripes or stray
pixels, enlarged by nearest neighbor or bicubic resize, so that the small image is about the pattern. Photographs on the
list of held-out images are left out. Then:

    python -m flowcore train RECIPE --data PHOTOGRAPHS FOLDER --run RUN
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from flowcore.evaluation.image_set import list_images, read_upright
from flowcore.training.recipe import held_out_names

SIDE = 128  # of the pattern; of the image, times the scale
SHRUNK = (0.5, 0.25, 0.125)

Pattern = Callable[[Image.Image, np.random.Generator], np.ndarray]


def _uniform_noise(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 255, (SIDE, SIDE, 3))


def _gray_noise(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.normal(rng.uniform(60, 190), rng.uniform(10, 80), (SIDE, SIDE, 1)), 3, axis=2)


def _dithered(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    return np.array(image.convert("1").convert("RGB"), float)


def _dithered_colors(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    return np.stack([255.0 * np.array(channel.convert("1")) for channel in image.split()], axis=2)


def _stripes(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    rows, columns = (np.arange(SIDE) // rng.integers(1, 4) for _ in range(2))
    kind = rng.integers(3)  # a chessboard, or stripes of one direction
    index = (rows[:, None] * (kind != 1) + columns * (kind != 2)) % 2
    return rng.uniform(0, 255, (2, 3))[index]


def _noisy_photograph(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    return np.array(image, float) + rng.normal(0, rng.uniform(8, 60), (SIDE, SIDE, int(rng.choice([1, 3]))))


def _stray_pixels(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    stray = rng.random((SIDE, SIDE, 1)) < rng.uniform(0.01, 0.2)
    return np.where(stray, 255.0 * rng.integers(0, 2, (SIDE, SIDE, 1)), np.array(image, float))


PATTERNS: tuple[Pattern, ...] = (
    _uniform_noise,
    _gray_noise,
    _dithered,
    _dithered_colors,
    _stripes,
    _noisy_photograph,
    _stray_pixels,
)


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="photographs")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--scale", type=int, default=4, help="of the upscaler (default: 4)")
    options = parser.parse_args()
    held_out = held_out_names("standard")
    files = [file for file in list_images(options.folders) if file.name not in held_out]
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for k in range(options.count):
        crop = draw_crop(read_upright(files[rng.integers(len(files))]), rng)
        pattern = PATTERNS[k % len(PATTERNS)](crop, rng)
        image = Image.fromarray(pattern.clip(0, 255).round().astype(np.uint8))
        way = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)[rng.integers(2)]
        side = SIDE * options.scale
        image.resize((side, side), way).save(options.out / f"pattern-{k:03d}.png")


def draw_crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut a square out of a photograph, shrunk before by a random factor."""
    factor = max(SIDE / min(photograph.size), rng.choice(SHRUNK))
    width, height = (max(SIDE, round(side * factor)) for side in photograph.size)
    left, top = rng.integers(width - SIDE + 1), rng.integers(height - SIDE + 1)
    resized = photograph.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + SIDE, top + SIDE))


if __name__ == "__main__":
    main()
