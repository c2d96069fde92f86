"""Digits for the tests: bars that are thick or thin, leaning or upright, in MNIST's file format."""

import gzip
import struct

import numpy as np


def digit(label, thickness, slant, rng, side=28):
    """Draw `label` strokes of a thickness that lean to the right by `slant` pixels per pixel."""
    rows, columns = np.mgrid[0:side, 0:side].astype(float)
    image = np.zeros((side, side))
    for stroke in range(label + 1):
        centre = side / 2 + 8 * (stroke - label / 2) - slant * (rows - side / 2) + rng.normal(0, 0.3)
        image = np.maximum(image, np.clip(thickness / 2 + 0.5 - abs(columns - centre), 0, 1))
    image[:5] = image[-5:] = 0
    return (image * 255).round().astype(np.uint8)


def digits(count, classes=3, seed=0):
    """Return images (N, 28, 28), labels (N,), and the thickness and slant that each was drawn with."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    thickness, slant = rng.uniform(1.5, 4.5, count), rng.uniform(-0.5, 0.5, count)
    drawn = [digit(*values, rng) for values in zip(labels, thickness, slant, strict=True)]
    return np.stack(drawn), labels.astype(np.uint8), thickness, slant


def write_mnist(folder, count=64, classes=3, *, zipped=True):
    """Write the four files of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, n, seed in (("train", count, 0), ("t10k", count // 2, 1)):
        images, labels = digits(n, classes, seed)[:2]
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images, zipped=zipped)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels, zipped=zipped)
    return folder


def write_idx(path, array, *, zipped=True):
    """Write one file: two zero bytes, the type, the number of dimensions, the dimensions, the numbers."""
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)
