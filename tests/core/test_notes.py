"""Every note of a task is true of the picture that it is about, and what must be said of one is said."""

import io
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from builders import build_hcflow, build_tiny, build_upscaler
from PIL import Image
from torch import Tensor

import flowcore
from flowcore.images.color import luma, to_uint8
from flowcore.images.files import read
from flowcore.tasks.consistency import GOAL

from .golden_pictures import photo


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, and what is known of it."""

    pixels: Tensor
    quality: int | None = None  # of the JPEG file that it was
    noise: int = 0  # standard deviation, in 1/255
    is_color: bool = True
    has_border: bool = False


def jpeg(image: Tensor, quality: int) -> Tensor:
    Image.fromarray(to_uint8(image[0]).permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=quality)
    return read(file.getvalue(), "x").pixels


PHOTO, RANDOM = photo(96, 80), torch.Generator().manual_seed(3)
FRAMED = torch.nn.functional.pad(luma(PHOTO), (12, 12, 12, 12), value=1).expand(-1, 3, -1, -1)
SEPIA = luma(PHOTO) * torch.tensor([1.0, 0.9, 0.75]).view(1, 3, 1, 1)
PICTURES = {
    "clean": Picture(PHOTO),
    "quality 50": Picture(jpeg(PHOTO, 50), quality=50),
    "quality 85": Picture(jpeg(PHOTO, 85), quality=85),
    "noisy": Picture((PHOTO + 9 / 255 * torch.randn(PHOTO.shape, generator=RANDOM)).clamp(0, 1), noise=9),
    "bright": Picture(0.5 + PHOTO / 2),
    "dark": Picture(PHOTO / 8),
    "gray": Picture(luma(PHOTO), is_color=False),
    "sepia": Picture(SEPIA, is_color=False),
    "framed": Picture(FRAMED, is_color=False, has_border=True),
    "tiny": Picture(PHOTO[..., 40:54, 30:44]),
    "signed": Picture(PHOTO * 2 - 1),
}
FLOWS = {
    "upscale": lambda: build_upscaler(4),
    "brighten": lambda: build_tiny("llflow", perturb=0.02),
    "colorize": lambda: build_tiny("colorizer", hidden=(4, 4), widths=(4, 4, 8)),
    "shrink": lambda: build_hcflow(rescaling=True, temperature=0.05),
}
TASKS = {
    "upscale": lambda x, **run: flowcore.upscale(flow("upscale"), x, temperature=0.2, **run),
    "upscale to 5 times": lambda x, **run: flowcore.upscale(flow("upscale"), x, temperature=0.2, factor=5, **run),
    "upscale by a guide": lambda x, **run: flowcore.upscale(
        flow("upscale"), x, guide=1 - photo(90, 90), guide_strength=0.5, **run
    ),
    "temperature_grid": lambda x, **run: flowcore.temperature_grid(flow("upscale"), x, [0.0, 0.2], **run),
    "brighten": lambda x, **run: flowcore.brighten(flow("brighten"), x, **run),
    "colorize": lambda x, **run: flowcore.colorize(flow("colorize"), x, temperature=0.2, memory=None, **run),
    "find_scratches": flowcore.find_scratches,
    "find_faces": flowcore.find_faces,
    "match_source": lambda x, **run: flowcore.match_source(x, (1 - x[..., ::4, ::4]).clamp(0, 1), **run),
    "repair": lambda x, **run: flowcore.repair(flow("upscale"), x, torch.ones_like(x[:, :1]), **run),
    "shrink": lambda x, **run: flowcore.shrink(flow("shrink"), x[..., :-1], **run),
}
flow = cache(lambda name: FLOWS[name]())
# What notes say of a picture, by template, and whether that is true of it, given the values.
RULES = {
    "{which} has {damage}; {model} is made for it.": lambda p, damage, **_: DAMAGES[damage.template](
        p, **damage.values
    ),
    "The picture is in color: its luma is used, its colors are not.": lambda p: p.is_color,
    "The picture has a plain border: it stays gray, and colors are decided without it.": lambda p: p.has_border,
    "{which} is not dark: half of it is above {percent} % of white.": lambda p, percent, **_: (
        float((luma(p.pixels) > (float(percent) - 0.6) / 100).float().mean()) >= 0.5
    ),
    "The model enlarges {scale} times; the rest, to {size}, is an ordinary resize (bicubic).": lambda p, size, **_: (
        size == sides(p.pixels, 5)
    ),
    "The guide has {size} pixels, and the model draws {drawn}: it was resized (bicubic).": lambda p, size, drawn: (
        (size, drawn) == ("90x90", sides(p.pixels, 4))
    ),
    "The guide shows something other than the image: shrunk, it is {decibels} dB from it, and an enlargement of the "
    "image would be {expected} or more. It is used all the same.": lambda _, decibels, expected: (
        float(decibels) < float(expected)
    ),
    "The source could be matched to {decibels} dB only: black or white limit the correction, or the images show "
    "something else.": lambda _, decibels: float(decibels) < GOAL,
    "Places of the mask wider than {pixels} pixels, or {half} at an edge of the picture, stay as they are: nothing "
    "convincing can be drawn there. Mask less, or repair a smaller version of the picture.": lambda p, half, **_: (
        min(p.pixels.shape[-2:]) > int(half)
    ),
    "The image was extended from {size} to {extended}: its sides must be divisible by {scale}. Crop what comes back to "
    "{size}.": lambda p, size, **_: size == sides(p.pixels[..., :-1], 1),
    "The image's floats go from {low} to {high}; expected [0, 1]. If they are in [-1, 1], pass (image + 1) / 2.": (
        lambda p, low, high: (
            (float(low), float(high)) == pytest.approx((float(p.pixels.min()), float(p.pixels.max())), abs=0.01)
        )
    ),
}
DAMAGES = {
    "JPEG blocks (about quality {quality})": lambda p, quality: (
        p.quality is not None and abs(int(quality) - p.quality) <= 5
    ),
    "noise (about {noise}/255)": lambda p, noise: abs(int(noise) - p.noise) <= 2,
}
MUST = {  # parts of notes that a task must give of a picture
    ("upscale", "quality 50"): "JPEG blocks",
    ("upscale", "noisy"): "noise",
    ("upscale by a guide", "clean"): "something other",
    ("brighten", "bright"): "is not dark",
    ("colorize", "clean"): "in color",
    ("colorize", "framed"): "plain border",
    ("upscale to 5 times", "clean"): "the rest",
    ("find_faces", "signed"): "floats go from",
    ("match_source", "clean"): "dB only",
    ("repair", "clean"): "wider than",
    ("shrink", "clean"): "was extended",
}


def sides(image: Tensor, scale: int) -> str:
    """Width and height of an enlargement, as notes state them."""
    return f"{scale * image.shape[-1]}x{scale * image.shape[-2]}"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", PICTURES)
def test_every_note_is_true_of_its_picture(task, name):
    picture, notes = PICTURES[name], []
    TASKS[task](picture.pixels, notify=notes.append)
    for note in notes:
        assert note.template in RULES, f"no rule tells whether this is true: {note}"
        assert RULES[note.template](picture, **note.values), note
    assert MUST.get((task, name), "") in " ".join(notes)
