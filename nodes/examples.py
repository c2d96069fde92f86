"""Examples: pictures that come with the pack, for the stories and for a first try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..flowcore.images.files import read
from .host.compat import io
from .node import FlowNode, schema
from .sockets import to_image

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
}
FILMS = {"black-and-white film"}
FRAMES, FRAME = 16, (192, 336)  # of a film, and height and width of a frame


class FlowcoreExample(FlowNode):
    """A picture, a batch, a film or a folder of pictures to try things with."""

    @classmethod
    def define_schema(cls) -> Any:
        picture = io.Combo.Input("picture", options=[*PICTURES], default="photograph")
        # host 0.3.75 takes them in no other way
        picture.extra_dict = {"flowcore_files": PICTURES, "flowcore_films": sorted(FILMS)}
        return schema(
            "FlowcoreExample",
            "loaders",
            aliases=["example", "sample image", "demo picture", "test image", "photograph", "load image", "flow"],
            inputs=[picture],
            outputs=[io.Image.Output("image"), io.Mask.Output("mask"), io.String.Output("folder")],
            reports=False,
        )

    @classmethod
    def run(cls, picture: str) -> Any:
        files = [FOLDER / name for name in PICTURES[picture]]
        pixels = torch.cat([_read(file) for file in files])  # (B, 4, H, W)
        if picture in FILMS:
            pixels = _pan(pixels)
        return io.NodeOutput(to_image(pixels[:, :3]), 1 - pixels[:, 3], str(files[0].parent))


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
