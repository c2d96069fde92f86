"""How small a picture becomes without loss: a measure of its complexity."""

import functools
import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

WEBP_SIDE = 16383  # longest side of the format


def lossless_bits(integers: Tensor) -> float:
    """Measure how many bits ``(C, H, W)`` of 0 to 255 takes beyond black, by the best of PNG, WebP and JPEG 2000.

    Source: Serra et al., "Input complexity and out-of-distribution detection with likelihood-based generative models",
    section 3, with more compressors and without their containers.
    """
    pixels = integers.to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
    if pixels.shape[2] != 3:  # one plane; other numbers of channels one below the other
        pixels = pixels.transpose(2, 0, 1).reshape(-1, pixels.shape[1])
    return 8.0 * max(0, min(a - b for a, b in zip(_file_sizes(pixels), _black_sizes(pixels.shape), strict=True)))


@functools.lru_cache(maxsize=64)
def _black_sizes(shape: tuple[int, ...]) -> list[int]:
    return _file_sizes(np.zeros(shape, np.uint8))


def _file_sizes(pixels: np.ndarray[Any, Any]) -> list[int]:
    """Bytes by compressor, for those that this Pillow has and that take such an image."""
    sides = pixels.shape[:2]
    options: dict[str, dict[str, Any]] = {"PNG": {"optimize": True}}
    if features.check("webp") and max(sides) <= WEBP_SIDE:
        options["WEBP"] = {"lossless": True, "quality": 80, "method": 4, "exact": True}
    if features.check("jpg_2000"):
        resolutions = min(6, int(math.log2(min(sides))) + 1)
        options["JPEG2000"] = {"irreversible": False, "no_jp2": True, "num_resolutions": resolutions}
    sizes: list[int] = []
    for name, choices in options.items():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name, **choices)
        sizes.append(file.tell())
    return sizes
