"""The images of a test set, and reading them as models take them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.files import image_files


def list_images(
    folders: Path | Sequence[Path], only: Collection[str] | None = None, limit: int | None = None
) -> list[Path]:
    """List the images of a folder, at any depth and sorted.

    Args:
        folders: The test set; of several folders, first those of the first.
        only: File names, without folders, to restrict it to; None for all.
        limit: At most so many, evenly spread over the sorted names; None for all.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    files = [file for folder in folders for file in image_files(folder)]
    if only is not None:
        files = [file for file in files if file.name in only]
        if not files:
            names = ", ".join(map(str, folders))
            raise ImageError(f"None of the images in {names} is on the list of held-out images. Measure all of them.")
    return files if limit is None else files[:: max(1, -(-len(files) // limit))]


def read_sized(flow: Flow, file: Path | IO[bytes], name: str | None = None) -> Tensor:
    """Read an image at a model's size: resized to cover it, and center-cropped.

    Args:
        flow: A model with an ``image_size``.
        file: A path or an open file.
        name: Of the file in error messages; None for that of the path.

    Returns:
        ``(C, H, W)`` uint8.

    Raises:
        FlowError: If the model has no size.
        ImageError: If the file cannot be read.
    """
    if flow.image_size is None:
        raise FlowError("This model does not state its image size. Load it with image_size=..., e.g. 32.")
    height, width = flow.image_size
    upright = _open(file, name, "L" if flow.channels == 1 else "RGB")
    pixels = torch.from_numpy(np.array(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)))
    return pixels.reshape(height, width, flow.channels).permute(2, 0, 1)


def read_upright(file: Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Read an RGB image, rotated as its EXIF data ask for; errors name it as in ``read_sized``."""
    return _open(file, name, "RGB")


def read_cropped(file: Path, multiple: int) -> Tensor:
    """Read an RGB image ``(1, 3, H, W)`` in [0, 1], cropped at the right and bottom to multiples of a number."""
    with Image.open(file) as opened:
        array = np.asarray(opened.convert("RGB"))
    height, width = (side // multiple * multiple for side in array.shape[:2])
    return torch.from_numpy(array[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255


def _open(file: Path | IO[bytes], name: str | None, mode: str) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened).convert(mode)
    except OSError as error:
        name = name or (file.name if isinstance(file, Path) else "the file")
        reason = "Pillow does not know its format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"Cannot read {name} as an image: {reason}.") from error
