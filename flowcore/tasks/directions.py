"""Directions among latents: attributes measured on folders, and styles that a model carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..device import is_out_of_memory
from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.files import image_files
from ..inference.plan import planned
from ..latents import Direction, add, attribute_direction, scale
from . import Progress
from .passes import (
    SMALLER,
    Meter,
    check_labels,
    check_size,
    encode_batches,
    finite_items,
    home_of,
    label_condition,
)
from .runner import images_at_once, retry_on_oom

TEMPER = 0.15  # how much of a temperature messiness is: 2 units are a factor of 1.35


@dataclass(frozen=True, kw_only=True)
class FolderDirection:
    """A direction that was measured on two folders.

    Attributes:
        direction: Latents of batch 1, float32, on the CPU.
        counts: Images that were used with the attribute, and without.
        skipped: Files that could not be used, and why.
    """

    direction: Direction
    counts: tuple[int, int]
    skipped: list[str]


@retry_on_oom(SMALLER)
@torch.no_grad()
def attribute_direction_from_folders(
    flow: Flow,
    positives: str | Path,
    negatives: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    label: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> FolderDirection:
    """Find the direction of an attribute from a folder of images that have it and one of images that do not.

    Images are read, resized to cover the size, cropped to its middle, encoded and added up batch by batch: the folders
    may be of any size.

    Args:
        flow: An unconditional model, or one that is conditioned on labels.
        positives: Folder of images with the attribute, at any depth.
        negatives: Folder of images without.
        size: Height and width, or the side of a square; None for the size that the model was made for.
        label: For conditioned models what all of these images show.
        batch: Images at once; None or 0 chooses by their size.
        progress: Called with ``(done, total)``.
        cancelled: Asked before every network layer; returns True (or raises) to stop.

    Returns:
        The direction, how many images it rests on, and what was skipped.

    Raises:
        ImageError: If a folder holds no image that can be used.
        FlowError: If the model makes images from an image, or the size is missing.
        ConditionError: If the label is missing or superfluous.
        Cancelled: If stopped.

    Source: as for ``latents.attribute_direction``.
    """
    flow.require("sample")
    if flow.channels not in (1, 3):
        raise FlowError(f"Image files have 1 or 3 channels; this model takes {flow.channels}.")
    dtype = home_of(flow)[1]
    height, width = check_size(flow, size)
    flow.latent_shapes(height, width)  # refuses a size that does not fit, before anything is read
    wanted = check_labels(flow, label, 1)
    cond = None if wanted is None else label_condition(flow, wanted)
    folders = Path(positives), Path(negatives)
    files = [image_files(folder) for folder in folders]
    at_once = batch or images_at_once(height, width)
    skipped: list[str] = []
    counts = [0, 0]
    meter = Meter(planned(flow), sum(map(len, files)), progress, cancelled)

    def batches(side: int) -> Generator[list[Tensor], None, None]:
        for start in range(0, len(files[side]), at_once):
            images: list[Tensor] = []
            names: list[str] = []
            for file in files[side][start : start + at_once]:
                try:
                    images.append(_read(file, flow.channels, height, width))
                    names.append(file.name)
                except Exception as error:  # of many classes, if the bytes are damaged
                    if isinstance(error, MemoryError) or is_out_of_memory(error):
                        raise
                    skipped.append(f"{file.name}: {error}")
                    meter.skip()
            if not images:
                continue
            latents = encode_batches(flow, torch.stack(images).to(dtype), cond, at_once, meter, strict=False)
            sound = finite_items(latents)
            skipped.extend(
                f"{name}: its latents are not finite" for name, good in zip(names, sound, strict=True) if not good
            )
            counts[side] += int(sound.sum())
            if sound.any():
                yield [z[sound] for z in latents]
        if not counts[side]:
            raise ImageError(
                f"None of the {len(files[side])} images in {folders[side]} could be used. Skipped: "
                f"{'; '.join(skipped[-3:])}."
            )

    direction = attribute_direction(batches(0), batches(1))
    return FolderDirection(direction=direction, counts=(counts[0], counts[1]), skipped=skipped)


def apply_style(flow: Flow, latents: Sequence[Tensor], styles: Mapping[str, float | Sequence[float]]) -> list[Tensor]:
    """Move latents along directions that the model carries, by name: ``z + sum over styles of strength d``.

    A hand is messy in all its details at once, so "messy" is a temperature as well: it multiplies the latents by
    ``exp(TEMPER * strength)`` first.

    Args:
        flow: The model; ``flow.styles`` are its directions.
        latents: Finest first.
        styles: Name to strength, one or one per level; negative for the opposite.

    Returns:
        The moved latents.

    Raises:
        FlowError: If the model has no such style.
        ShapeError: If the latents are not of the size that the styles were measured at.
    """
    known: dict[str, list[Tensor]] = flow.styles
    unknown = [name for name in styles if name not in known]
    if unknown:
        raise FlowError(
            f"This model has no style {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(known)) or 'none at all'}."
        )
    temper = styles.get("messy", 0.0)
    factor = math.exp(TEMPER * temper) if isinstance(temper, (int, float)) else [math.exp(TEMPER * s) for s in temper]
    result = scale(latents, factor)
    for name, strength in styles.items():
        result = add(result, known[name], strength)
    return result


def _read(path: Path, channels: int, height: int, width: int) -> Tensor:
    """Read an image as (C, H, W) in [0, 1]: turned as its camera says, resized to cover the size, and cropped to it."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
    fitted = np.array(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(fitted.reshape(height, width, channels)).permute(2, 0, 1).float() / 255
