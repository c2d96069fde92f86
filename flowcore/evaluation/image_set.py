"""The images of a test set, reading them as models take them, and tables of results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.files import fit, read_bytes, read_rgb
from ..images.folders import image_files

Content = TypeVar("Content")


def list_images(
    folders: Path | Sequence[Path], only: Collection[str] | None = None, limit: int | None = None
) -> list[Path]:
    """List the images of folders, at any depth and sorted, first those of the first.

    ``only`` has file names without folders; of more than ``limit`` images, so many, evenly spread over the sorted
    names.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    files = [file for folder in folders for file in image_files(folder)]
    if only is not None:
        files = [file for file in files if file.name in only]
        if not files:
            names = ", ".join(map(str, folders))
            raise ImageError(f"None of the images in {names} is on the list of held-out images. Measure all of them.")
    return files if limit is None else files[:: max(1, -(-len(files) // limit))]


def read_each(
    files: Sequence[Path], read: Callable[[Path], Content], log: Callable[[str], None] | None = None
) -> Generator[tuple[int, Path, Content], None, None]:
    """Yield number, file and ``read(file)`` of the images of a test set, without those for which it raises ImageError.

    ``log``, or the process's own log, names each of these. If all were skipped, ImageError is raised at the end.
    """
    skipped: list[str] = []
    for position, file in enumerate(files):
        try:
            result = read(file)
        except ImageError as error:
            skipped.append(f"{file.name}: {error}")
            (log or logging.getLogger("flowcore").warning)(f"Skipped {skipped[-1]}")
        else:
            yield position - len(skipped), file, result
    if len(skipped) == len(files):
        raise ImageError(f"None of the {len(files)} images can be measured. Skipped: {'; '.join(skipped[:3])}")


def resize_to_own(flow: Flow, image: Image.Image) -> Tensor:
    """Resize an RGB image to cover a model's own size, and crop its middle: ``(C, H, W)`` uint8."""
    if flow.image_size is None:
        raise FlowError("This model does not state its image size. Load it with image_size=..., e.g. 32.")
    return fit(image, flow.image_size, flow.channels)


def read_upright(file: Path) -> Image.Image:
    """Read an image as 8-bit RGB, see ``files.decode_rgb``."""
    return read_rgb(read_bytes(file), file.name)


def read_cropped(file: Path, multiple: int) -> Tensor:
    """Read an RGB image ``(1, 3, H, W)`` in [0, 1], cropped at the right and bottom to multiples of a number."""
    array = np.asarray(read_upright(file))
    height, width = (side // multiple * multiple for side in array.shape[:2])
    if min(height, width) < multiple:
        raise ImageError(
            f"It is too small: expected sides of at least {multiple}; got {array.shape[1]}x{array.shape[0]}."
        )
    return torch.from_numpy(array[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join([f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *(f"| {' | '.join(r)} |" for r in rows)])
