"""Examples: the pictures of the stories, which come with the pack, and a person's own in their place."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..flowcore.images.files import read
from . import widgets
from .host.compat import io
from .host.paths import input_path, input_pictures
from .host.ui import png
from .live import side_by_side
from .node import FileNode
from .sockets import shown, to_image

FOLDER = Path(__file__).parents[1] / "workflows"  # which the host serves, too: web/js/picture.js finds them
TEN = [f"pictures/bread/{number:02}.jpg" for number in range(1, 11)]

# Name in the menu to the files of its batch. Append only: workflows hold the names.
PICTURES: dict[str, list[str]] = {
    "photograph": ["photo.png"],
    "painted photograph": ["painted.png"],
    "second photograph": ["pictures/lake.jpg"],
    "three landscapes": ["pictures/lake.jpg", "pictures/desert.jpg", "pictures/canyon.jpg"],
    "black-and-white people": ["mill.jpg"],
    "black-and-white mountains": ["alps.jpg"],
    "black-and-white house": ["house.jpg"],
    "black-and-white film": ["alps.jpg"],
    "small face": ["pictures/face.png"],
    "ten photographs": TEN,
    "photographs, two odd ones": [
        f"pictures/odd-{name}.jpg" for name in ("negative", "opera", "bee", "noise", "wall", "lake")
    ],
    "original and retouched": ["pictures/original.jpg", "pictures/retouched.jpg"],
    "pasted piece": ["pictures/pasted.jpg"],
    "few colors": ["pictures/poor.png"],
    "four portraits": [f"pictures/portrait-{number}.jpg" for number in range(1, 5)],
    "two portraits": ["pictures/portrait-4.jpg", "pictures/portrait-3.jpg"],
    "bad JPEG": ["pictures/parrots.jpg"],
    "group photograph": ["pictures/group.png"],
}
FILMS = {"black-and-white film"}
FRAMES, FRAME = 16, (192, 336)  # of a film, and height and width of a frame


CHOICE = widgets.file_choice(
    lambda: [*PICTURES, *input_pictures()],
    lambda: {"flowcore_files": PICTURES, "flowcore_films": sorted(FILMS)},
    default="photograph",
    upload=io.UploadType.image,
)


class FlowcoreExample(FileNode):
    """A picture, a batch, a film or a folder of pictures to try things with; or a file of the input folder."""

    MENU = "loaders"
    ALIASES = ("example", "sample image", "demo picture", "test image", "photograph", "load image", "flow")
    OUTPUTS = (io.Image.Output("image"), io.Mask.Output("mask"), io.String.Output("folder"))
    REPORTS = False

    @classmethod
    def locate(cls, name: str) -> Path | None:
        return next(iter(_files(name)), None)

    @classmethod
    def missing(cls, name: Any) -> str:
        return (
            f"there is no file {shown(name)} in the input folder. Upload it, or choose one that is there or one of: "
            f"{', '.join(PICTURES)}."
        )

    @classmethod
    def run(cls, picture: Annotated[str, CHOICE], path: Path) -> Any:
        pixels = torch.cat([_read(file) for file in _files(picture)])  # (B, 4, H, W)
        if picture in FILMS:
            pixels = _pan(pixels)
        return io.NodeOutput(to_image(pixels[:, :3]), 1 - pixels[:, 3], str(path.parent))


@lru_cache(maxsize=len(PICTURES))
def preview(name: str) -> tuple[bytes, str] | None:
    """Return what the page shows of one of our pictures, and the type of that file: of a batch, all of it."""
    files = _files(name) if name in PICTURES else []
    if len(files) > 1:
        return png(side_by_side(torch.cat([_read(file) for file in files]))), "image/png"
    return (files[0].read_bytes(), "image/png" if files[0].suffix == ".png" else "image/jpeg") if files else None


def _files(picture: str) -> list[Path]:
    """Find the files of a picture: ours, or the one of that name in the input folder; none if there is none."""
    if picture in PICTURES:
        return [FOLDER / name for name in PICTURES[picture]]
    path = input_path(picture)
    return [] if path is None else [path]


def _read(file: Path) -> Tensor:
    """Read a picture: (1, 4, H, W) in [0, 1]."""
    pixels = read(file.read_bytes(), file.name).pixels
    return pixels if pixels.shape[1] == 4 else torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)


def _pan(picture: Tensor) -> Tensor:
    """Pan from left to right over a picture: (FRAMES, C, *FRAME)."""
    height, width = FRAME
    wide = round(picture.shape[-1] * height / picture.shape[-2])
    small = torch.nn.functional.interpolate(picture, (height, wide), mode="area")
    lefts = [round(step * (wide - width) / (FRAMES - 1)) for step in range(FRAMES)]
    return torch.cat([small[..., left : left + width] for left in lefts])
