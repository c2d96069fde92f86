"""Images of test sets: reading them at a model's input size, and their bits per dimension; and tables of results."""

import logging
import math
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...engine.model_input import resize_to_own
from ...errors import FlowError, ImageError, printable
from ...flows.dequantization import quantization
from ...flows.model import FlowModel
from ...images.files import read_bytes, read_rgb
from ...images.folders import image_files
from ...tasks.score import Dequantization, score
from ..data import read_idx

Content = TypeVar("Content")


def list_images(
    folders: Path | Sequence[Path], only: Collection[str] | None = None, limit: int | None = None
) -> list[Path]:
    """List the images of folders one after the other, at any depth and sorted.

    ``only`` has file names without folders. If there are more than ``limit`` images, every n-th is taken, so that at
    most ``limit`` remain.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    files = [file for folder in folders for file in image_files(folder)]
    if only is not None:
        files = [file for file in files if file.name in only]
        if not files:
            names = ", ".join(map(str, folders))
            raise ImageError(f"None of the images in {names} is on the list of held-out images. Measure all of them.")
    return files if limit is None else files[:: max(1, math.ceil(len(files) / limit))]


def read_each(
    files: Sequence[Path], read: Callable[[Path], Content], log: Callable[[str], None] | None = None
) -> Generator[tuple[int, Path, Content], None, None]:
    """Yield number, file and ``read(file)`` of the images of a test set; log and skip those that raise ImageError."""
    skipped: list[str] = []
    for position, file in enumerate(files):
        try:
            content = read(file)
        except ImageError as error:
            skipped.append(f"{file.name}: {error}")
            (log or logging.getLogger("flowcore").warning)(printable(f"Skipped {skipped[-1]}"))
            continue
        yield position - len(skipped), file, content
    if len(skipped) == len(files):
        raise ImageError(f"None of the {len(files)} images can be measured. Skipped: {'; '.join(skipped[:3])}")


def read_upright(file: Path) -> Image.Image:
    """Read an image as 8-bit RGB, turned upright, see ``files.decode_rgb``."""
    return read_rgb(read_bytes(file), file.name)


def read_cropped(file: Path, multiple: int) -> Tensor:
    """Read an RGB image ``(1, 3, H, W)`` in [0, 1], cropped at the right and bottom to multiples of a number."""
    rgb = np.asarray(read_upright(file))
    height, width = (side // multiple * multiple for side in rgb.shape[:2])
    if min(height, width) < multiple:
        raise ImageError(f"It is too small: expected sides of at least {multiple}; got {rgb.shape[1]}x{rgb.shape[0]}.")
    return torch.from_numpy(rgb[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """Format a table in Markdown."""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(map(printable, lines))


def evaluate_density(
    flow: FlowModel,
    data: Path,
    *,
    dequantization: Dequantization = "uniform",
    samples: int = 1,
    seed: int = 0,
    limit: int = 10_000,
    batch: int = 50,
    only: Collection[str] | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Measure the bits per dimension of images under a model that has an ``image_size``: mean and standard error.

    ``data`` is a folder: of images at any depth, see ``list_images`` for ``limit``; or, for models of digits, of the
    test files of MNIST. With several ``samples`` the result is the importance-weighted bound. It also has what the
    numbers depend on: bits per channel, channels, and size of the images as the model takes them.
    """
    labels = None
    if flow.channels == 1 and (flow.classes or any(data.glob("t10k-images-idx3-ubyte*"))):
        if only is not None:
            raise FlowError("Digits have no file names to hold out: MNIST has a test set. Measure all of it.")
        images = torch.from_numpy(read_idx(data, "t10k-images-idx3-ubyte")[:limit])[:, None]
        if flow.classes:
            labels = torch.from_numpy(read_idx(data, "t10k-labels-idx1-ubyte")[:limit]).long()
    else:
        each = read_each(list_images(data, only, limit), lambda file: resize_to_own(flow, read_upright(file)), log)
        images = torch.stack([image for _, _, image in each])
    how: dict[str, Any] = {"dequantization": dequantization, "samples": samples, "seed": seed, "complexity": False}
    values: list[Tensor] = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        cond = None if labels is None else flow.encode_condition(labels[part])
        values.append(score(flow, images[part], cond, **how).bits_per_dim)
    bits = torch.cat(values).double()
    return {
        "images": len(bits),
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std()) / len(bits) ** 0.5 if len(bits) > 1 else math.nan,
        "n_bits": quantization(flow).n_bits,
        **dict(zip(("channels", "height", "width"), images.shape[1:], strict=True)),
    }


def size_of(row: Mapping[str, float]) -> str:
    """Describe the size of the images of a row of results."""
    return f"{row['height']:.0f}x{row['width']:.0f}{', gray' if row['channels'] == 1 else ''}"


def density_table(results: dict[str, dict[str, float]]) -> str:
    """Format densities, set name to what ``evaluate_density`` returned, with a note unless all rows are comparable."""
    styles = {"images": ".0f", "bits_per_dim": ".4f", "standard_error": ".4f", "n_bits": ".0f"}
    rows: list[list[str]] = []
    for name, row in results.items():
        rows.append([name, *(format(row[key], style) for key, style in styles.items()), size_of(row)])
    table = markdown(["set", "images", "bits per dimension", "standard error", "bits", "size"], rows)
    if len({(bits, size) for *_, bits, size in rows}) == 1:
        return table
    return f"{table}\n\nOnly rows of the same bits and size compare: images of fewer bits, or enlarged, need fewer."
