"""Directions among latents: attributes measured on folders of images, and styles that a model carries."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.files import fit, image_files, read_bytes, read_rgb
from ..latents import Direction, add, attribute_direction, scale
from .passes import ADVICE, Passes, check_labels, check_size, finite_items
from .runner import Runner, RunOptions, images_at_once

MESSY_RATE = 0.15  # of the temperature's logarithm per unit of the style "messy": 2 units are a factor of 1.35


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


def attribute_direction_from_folders(
    flow: Flow,
    positives: str | Path,
    negatives: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    label: int | None = None,
    **options: Any,
) -> FolderDirection:
    """Measure the direction of an attribute on a folder of images that have it and one of images that do not.

    Images are read, resized to cover the size, cropped to its middle, encoded and averaged batch by batch: the folders
    may be of any size.

    Args:
        flow: An unconditional model, or one that is conditioned on labels.
        positives: Folder of images with the attribute, at any depth.
        negatives: Folder of images without.
        size: Height and width, or the side of a square; None for the size that the model was made for.
        label: For conditioned models what all of these images show.
        options: batch, progress, cancelled and notify, as in ``encode``.

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
    height, width = check_size(flow, size)
    flow.latent_shapes(height, width)  # raises ShapeError for a size that does not fit, before anything is read
    labels = check_labels(flow, label, 1)
    folders = Path(positives), Path(negatives)
    files = [image_files(folder) for folder in folders]
    run = Runner(flow, RunOptions(**options), ADVICE)

    def task() -> FolderDirection:
        passes = Passes(run, sum(map(len, files)))
        cond = passes.encode_labels(labels)
        at_once = run.at_once(images_at_once(height, width))
        skipped: list[str] = []
        counts = [0, 0]

        def batches(side: int) -> Generator[list[Tensor], None, None]:
            for start in range(0, len(files[side]), at_once):
                images: dict[str, Tensor] = {}
                for file in files[side][start : start + at_once]:
                    try:
                        image = read_rgb(read_bytes(file), file.name)
                        images[str(file)] = fit(image, (height, width), flow.channels).float() / 255
                    except ImageError as error:
                        skipped.append(f"{file.name}: {error}")
                        passes.skip()
                if not images:
                    continue
                latents = passes.encode(torch.stack(list(images.values())).to(run.dtype), cond, strict=False)
                finite = finite_items(latents)
                names = [Path(name).name for name, good in zip(images, finite, strict=True) if not good]
                skipped.extend(f"{name}: its latents are not finite" for name in names)
                counts[side] += int(finite.sum())
                if finite.any():
                    yield [z[finite] for z in latents]
            if not counts[side]:
                raise ImageError(
                    f"None of the {len(files[side])} images in {folders[side]} could be used. Skipped: "
                    f"{'; '.join(skipped[-3:])}."
                )

        direction = attribute_direction(batches(0), batches(1))
        return FolderDirection(direction=direction, counts=(counts[0], counts[1]), skipped=skipped)

    return run(task)


def apply_style(flow: Flow, latents: Sequence[Tensor], styles: Mapping[str, float | Sequence[float]]) -> list[Tensor]:
    """Move latents along directions that the model carries, by name: ``z + sum over styles of strength d``.

    A messy hand is messy in all its details at once, so "messy" is also a temperature: it multiplies the latents by
    ``exp(MESSY_RATE * strength)`` first.

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
    messy = styles.get("messy", 0.0)
    strengths = [messy] * len(latents) if isinstance(messy, (int, float)) else messy
    result = scale(latents, [math.exp(MESSY_RATE * strength) for strength in strengths])
    for name, strength in styles.items():
        result = add(result, known[name], strength)
    return result
