"""Make the color memory that is shipped with color-photos.

    python -m benchmarks.starter_memory shared/data/photos shared/data/photos-large shared/data/photos-small
        shared/data/photos-more --basis color-photos-memory.safetensors -o new.safetensors

Uses all photographs that are neither held out nor under a share-alike license, shrunk to a shorter side of 256.
``CELLS`` is the number of cells per photograph, by folder. Cells are drawn with a probability that grows with the
distance of their color from the mean of the photograph. That distance is multiplied by ``VIVID``, because means of
neighbors are pale. Principal components are those of the memory ``--basis``, or else of these cells.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import flowcore
from flowcore import ColorMemory
from flowcore.engine.image_batch import ImageBatch
from flowcore.images import color, files
from flowcore.images.resize import limit_shorter_side
from flowcore.images.scans import find_border, is_tinted
from flowcore.models import catalog
from flowcore.models.colorizer.color_index import PHOTOGRAPH_SIDE, CellMemory
from flowcore.models.colorizer.color_memory import backbone_sha256
from flowcore.models.colorizer.luma import LumaEncoder
from flowcore.tasks.remember import COLORED, cells_of
from flowcore.training.recipe import held_out_names

CELLS = {"photos": 100, "photos-large": 100, "photos-small": 22, "photos-more": 8}
VIVID = 1.15
COMMON = 4 / 255  # distance from the mean at which a color is drawn twice as often as the mean
SOURCE = (
    "the training photographs of photos, photos-large, photos-small and photos-more, less those under a share-alike "
    "license; flowcore/weights/SOURCES.tsv names author, origin and license of each"
)
LICENCE = "MIT; no photograph can be made of what is stored"


def main() -> None:
    """Remember the photographs, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help=f"named {', '.join(CELLS)}")
    parser.add_argument("--basis", type=Path, metavar="MEMORY", help="whose principal components to use")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the file")
    options = parser.parse_args()
    flow = flowcore.load("color-photos")
    encoder = flow.encoder
    assert isinstance(encoder, LumaEncoder)
    names, described, colors, numbers = list[str](), list[Tensor](), list[Tensor](), list[Tensor]()
    for path in photographs(options.folders):
        rgb = limit_shorter_side(ImageBatch(files.read(path.read_bytes(), path.name).pixels).extended_rgb, 256)
        inside = find_border(rgb)
        rgb = rgb if inside is None else rgb[inside]
        small = limit_shorter_side(rgb, PHOTOGRAPH_SIDE)
        if float(color.split(small)[1].abs().max()) <= COLORED or is_tinted(small):
            continue
        seen, chroma = cells_of(encoder, rgb)
        chosen, chroma = choose(chroma, CELLS[path.parent.name], len(names))
        described.append(seen[chosen])
        colors.append(chroma)
        numbers.append(torch.full((len(chosen),), len(names)))
        names.append(path.name)
    places = CellMemory(sum(map(len, numbers)))
    basis = ColorMemory.load(options.basis).places if options.basis else None
    places.fill(torch.cat(described), torch.cat(colors), torch.cat(numbers), basis)
    provenance = {"source": SOURCE, "licence": LICENCE, "photographs": names}
    backbone = backbone_sha256(flow)
    memory = ColorMemory(places, backbone, provenance, share=0.12, neighbors=15, strength=0.8, weight=0.003)
    memory.save(options.out)


def photographs(folders: list[Path]) -> Iterator[Path]:
    """List the photographs that may be remembered."""
    with (catalog.FOLDER / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        classes = {row["file"]: row["class"] for row in csv.DictReader(file, delimiter="\t")}
    held = held_out_names("standard")
    for folder in folders:
        for path in sorted(folder.glob("*.jpg")):
            if path.name not in held and classes[path.name] != "share-alike":
                yield path


def choose(chroma: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose cells of a photograph by their chroma ``(N, 2)``; return their indices and more vivid chroma."""
    mean = chroma.mean(0)
    chances = (chroma - mean).norm(dim=1) + COMMON
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(chances, min(most, len(chroma)), generator=generator).sort()[0]
    return chosen, mean + VIVID * (chroma[chosen] - mean)


if __name__ == "__main__":
    main()
