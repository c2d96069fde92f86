"""Remember the colors of photographs, to color others with them; see ``color_index``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.options import ReportOptions, python
from ..engine.ranges import count
from ..engine.runner import Runner, runs_with
from ..errors import ImageError, say
from ..flows.model import FlowModel
from ..images import color, files
from ..images.folders import image_files
from ..images.resize import limit_shorter_side, resize_bilinear
from ..images.scans import find_border, is_tinted
from ..models.colorizer.color_index import CELL, MAX_CELLS, PHOTOGRAPH_SIDE, CellMemory, evenly_spaced, renumber
from ..models.colorizer.color_memory import ColorMemory, backbone_sha256
from ..models.colorizer.luma import LumaEncoder

MULTIPLE = 32  # sides that a backbone takes are multiples of it
MAX_ASPECT = 4  # longer over shorter side, at most
COLORED = 4 / 255  # chroma that a photograph in color exceeds somewhere
ADVICE = say("Remember fewer photographs at once, or free memory on the device.")

Photographs = Tensor | Sequence[Tensor] | str | Path


@dataclass(frozen=True, kw_only=True)
class RememberSettings(ReportOptions):
    """Options of ``remember``."""

    cells: Annotated[
        int,
        count(1, MAX_CELLS, help="Maximum number of places to keep, shared about equally among the photographs."),
    ] = 100_000
    provenance: Annotated[
        dict[str, Any] | None, python("Notes on their origin, such as their license, for the file.")
    ] = None


@runs_with(RememberSettings)
def remember(flow: FlowModel, photographs: Photographs, settings: RememberSettings) -> ColorMemory:
    """Remember the colors of things in photographs, so that ``colorize`` gives similar things these colors.

    For every 16x16 pixels of a photograph, resized to a shorter side of 192, the memory holds 48 bytes of features of
    the model's backbone and two of color, from which no picture can be made.

    >>> flow = flowcore.load("color-photos")
    >>> memory = flowcore.remember(flow, torch.rand(1, 3, 64, 96))
    >>> flowcore.colorize(flow, torch.rand(1, 1, 48, 64), memory=memory).shape
    torch.Size([1, 3, 48, 64])

    Args:
        flow: A colorizer with a backbone, such as color-photos.
        photographs: In color, of any size: a batch ``(B, 3 or 4, H, W)`` in [0, 1], a list of such, a file, or a
            folder, whose files without a color image are skipped. Plain borders are ignored.
        settings: The options below, by name.

    Returns:
        The memory; see ``ColorMemory``.

    Raises:
        ImageError: If there is no photograph in color.
        FlowError: If the model has no backbone.
    """
    cells = settings.cells
    backbone = backbone_sha256(flow)
    run = Runner(flow, settings, ADVICE)
    encoder = flow.encoder
    assert isinstance(encoder, LumaEncoder)

    def task() -> ColorMemory:
        named = _named(photographs)
        run.expect(len(named))
        features, chroma, gray = list[Tensor](), list[Tensor](), list[str]()
        for name, source in named:
            try:
                pixels = source if isinstance(source, Tensor) else files.read(files.read_bytes(source), name).pixels
                rgb = ImageBatch(pixels).extended_rgb
            except ImageError as error:
                run.notify("Skipped {name}: {reason}", name=name, reason=error)
                continue
            run.check_cancelled()
            rgb = rgb if (inside := find_border(rgb)) is None else rgb[inside]
            small = limit_shorter_side(rgb, PHOTOGRAPH_SIDE)
            if float(color.split(small)[1].abs().max()) > COLORED and not is_tinted(small):
                of_cells, colors = cells_of(encoder, rgb.to(run.device, run.dtype))
                chosen = evenly_spaced(len(of_cells), max(1, cells // len(named)))
                features.append(of_cells[chosen].float().cpu())
                chroma.append(colors[chosen].float().cpu())
            else:
                gray.append(name)
            run.advance()
        if not features:
            raise ImageError(
                "A memory needs photographs in color, and none of the {count} is: they are gray, or have one tint. "
                "Pass others.",
                count=len(named),
            )
        if gray:
            few = say("{gray} of {count} photographs have no colors to remember: {names}.")
            many = say("{gray} of {count} photographs have no colors to remember: {names} and others.")
            names = ", ".join(gray[:3])
            run.notify(many if len(gray) > 3 else few, gray=len(gray), count=len(named), names=names)
        sources = torch.cat([torch.full((len(part),), number) for number, part in enumerate(features)])
        chosen = evenly_spaced(len(sources), cells)  # fewer than there are if photographs outnumber cells
        memory = CellMemory(len(chosen))
        memory.fill(torch.cat(features)[chosen], torch.cat(chroma)[chosen], renumber(sources[chosen]))
        return ColorMemory(memory, backbone, settings.provenance or {})

    return run.retry_on_oom(task)


def open_memory(flow: FlowModel, source: str | Path, **options: Any) -> ColorMemory:
    """Load a memory's file, or remember the photographs of a folder or of one image file."""
    path = Path(source)
    if path.suffix == ".safetensors":
        memory = ColorMemory.load(path)
        memory.check(flow)
        return memory
    return remember(flow, path, provenance={"source": f"photographs of {path.name}"}, **options)


@torch.no_grad()
def cells_of(encoder: LumaEncoder, rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Describe the cells of a photograph in color, ``(1, 3, H, W)``: ``(N, WIDTH)``, and their chroma ``(N, 2)``."""
    height, width = rgb.shape[-2:]
    factor = min(PHOTOGRAPH_SIDE / min(height, width), MAX_ASPECT * PHOTOGRAPH_SIDE / max(height, width))
    sides = [max(1, round(side * factor / MULTIPLE)) * MULTIPLE for side in (height, width)]
    y, chroma = color.split(resize_bilinear(rgb, sides))
    return encoder.describe(y)[0].flatten(1).T, F.avg_pool2d(chroma, CELL)[0].flatten(1).T


def _named(photographs: Photographs) -> list[tuple[str, Tensor | Path]]:
    """List photographs, pixels ``(1, 3, H, W)`` or the path of a file, by names for messages."""
    if isinstance(photographs, str | Path):
        path = Path(photographs).expanduser()
        if not path.exists():
            raise ImageError(f"There is no folder or file {path} to remember.")
        return [(file.name, file) for file in (image_files(path) if path.is_dir() else [path])]
    batches = photographs if isinstance(photographs, Sequence) else [photographs]
    if not batches:
        raise ImageError("A memory needs photographs in color; got none.")
    pictures = [one for batch in batches for one in ImageBatch(batch).extended_rgb.split(1)]
    return [(f"photograph {number}", one) for number, one in enumerate(pictures, start=1)]
