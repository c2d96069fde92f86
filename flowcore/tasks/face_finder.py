"""The face finder: faces in pictures, found in squares of every size, in three rotations."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from ..checkpoints import catalog
from ..checkpoints.file import open_safetensors
from ..errors import FlowError
from ..images.faces import EYE_LINE, LEFT, RIGHT, FacePlace, Point, cut_face
from ..images.resize import resize
from ..networks.blazeface import SIDE, BlazeFace
from ..networks.blazeface import places as positions
from .image_batch import ImageBatch
from .runner import Reporting, Runner, RunOptions, runs_with

SMALLEST = 12  # pixels: width of the smallest box that the network finds in a square of ``SIDE`` pixels
DOUBLINGS = 2  # of scale, at least: squares of the longest side, of its half, and of its quarter
STRIDE = 3 * SIDE // 4  # between squares, at most; faces larger than their overlap are found in larger squares
LESS = 0.6  # share of the score asked for that suffices for a second look
NEAR = 0.4  # share of the wider box: detections whose middles are nearer are one face
SEEN = 2.8  # side of the crop for the second look, in widths of the box
AT_ONCE = 4  # squares
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels of the picture


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face that was found; points are x, y in pixels from the picture's top left corner.

    Attributes:
        score: How sure the network is, in [0, 1].
        box: Left, top, right and bottom of the square from the eyebrows to the chin; may reach beyond the picture.
        eyes: Both, the one on the left in the picture first.
        nose: Its tip.
        mouth: Its middle.
    """

    score: float
    box: Box
    eyes: tuple[Point, Point]
    nose: Point
    mouth: Point

    @property
    def width(self) -> float:
        """Of the box, in pixels."""
        return self.box[2] - self.box[0]


@runs_with(Reporting)
def find_faces(
    image: Tensor, *, smallest: float = SMALLEST, score: float = 0.5, **options: Unpack[Reporting]
) -> list[list[Face]]:
    """Find the faces in images, upright ones, and those of people who lie on either side.

    Faces are found from the front and half from the side, hardly in profile. The network is small, runs on the CPU, and
    gives the same faces on every machine; no model has to be loaded.

    Args:
        image: ``(B, C, H, W)`` in [0, 1], C = 1, 3 or 4; alpha is dropped.
        smallest: Width in pixels of the smallest box that counts, at least 4. Half of it takes four times as long.
        score: In (0, 1): how sure the network must be.

    Returns:
        The faces of every image, the largest first; an image may have none.

    Raises:
        ImageError: If an image is not usable.
        FlowError: If another argument is out of its range.

    Source: Bazarevsky et al., "BlazeFace" (2019), with the published weights of MediaPipe's full-range model; pyramid,
        turns and the second look are ours.
    """
    if not 0 < score < 1:
        raise FlowError(f"score must lie between 0 and 1; got {score:g}. 0.5 finds what most people would call a face.")
    if not smallest >= 4:
        raise FlowError(f"smallest must be at least 4 pixels; got {smallest:g}. Enlarge the picture.")
    run = Runner(None, RunOptions(**options), "Pass fewer or smaller images.", image)

    def task() -> list[list[Face]]:
        pixels = ImageBatch(image).visible
        run.expect(len(pixels))
        found: list[list[Face]] = []
        for picture in pixels.cpu().split(1):
            found.append(_faces_of(picture, smallest, score, run))
            run.advance()
        return found

    return run(task)


# Found faces are rows of 12 numbers: score, width of the box, and x, y of its middle, both eyes, nose and mouth.


def _faces_of(picture: Tensor, smallest: float, score: float, run: Runner) -> list[Face]:
    height, width = picture.shape[-2:]
    parts: list[Tensor] = []
    for turns in (0, 1, 3):  # of 90 degrees, counterclockwise
        found = _search(picture.rot90(turns, (-2, -1)), smallest, LESS * score, run)
        x, y = found[:, 2::2], found[:, 3::2]
        back = {0: (x, y), 1: (width - y, x), 3: (y, height - x)}[turns]
        parts.append(torch.cat([found[:, :2], torch.stack(back, -1).flatten(1)], 1))
    found = _distinct(torch.cat(parts))
    if len(found):
        found = _distinct(torch.stack([_look_again(picture, one, run) for one in found]))
    found = found[(found[:, 0] >= score) & (found[:, 1] >= smallest)]
    faces: list[Face] = []
    for sureness, side, *numbers in found[found[:, 1].argsort(descending=True, stable=True)].tolist():
        (x, y), one, other, nose, mouth = zip(numbers[::2], numbers[1::2], strict=True)
        left, right = sorted((one, other))
        half = side / 2
        box = (x - half, y - half, x + half, y + half)
        faces.append(Face(score=sureness, box=box, eyes=(left, right), nose=nose, mouth=mouth))
    return faces


def _search(picture: Tensor, smallest: float, score: float, run: Runner) -> Tensor:
    """Look at squares of a picture ``(1, 3, H, W)``, from its longest side down to where the smallest face is seen."""
    height, width = picture.shape[-2:]
    longest, last = max(height, width), min(max(height, width) / 2**DOUBLINGS, SIDE * smallest / SMALLEST)
    steps = math.ceil(math.log2(longest / last) - 0.1)
    parts: list[Tensor] = []
    for step in range(steps + 1):
        scale = SIDE / longest * (longest / last) ** (step / steps)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        level = resize(picture, *size).clamp(0, 1)
        tops, lefts = (_starts(side) for side in size)
        missing = [max(0, SIDE - side) for side in size]  # pixels; half of them are added before the picture
        border = [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2]
        level = F.pad(level, border)
        ratio = torch.tensor([width / size[1], height / size[0]])
        corners = list(itertools.product(tops, lefts))
        for start in range(0, len(corners), AT_ONCE):
            run.check_cancelled()
            part = corners[start : start + AT_ONCE]
            squares = torch.cat([level[..., top : top + SIDE, left : left + SIDE] for top, left in part])
            logits, numbers = network()(squares)
            scores = logits.sigmoid()
            square, place = (scores > score).nonzero(as_tuple=True)
            offset = torch.tensor([(left - border[0], top - border[2]) for top, left in part])[square]
            points = (_points(numbers)[square, place] + offset[:, None]) * ratio
            widths = numbers[square, place, 2] * ratio[0]
            parts.append(torch.cat([scores[square, place, None], widths[:, None], points.flatten(1)], 1))
    return torch.cat(parts)


def _starts(side: int) -> list[int]:
    """Evenly spaced starts of overlapping squares along a side."""
    rest = max(0, side - SIDE)
    count = math.ceil(rest / STRIDE)
    return [round(rest * k / max(1, count)) for k in range(count + 1)]


def _points(numbers: Tensor) -> Tensor:
    """Middle of the box, eyes, nose and mouth, in pixels of the square: ``(B, 2304, 16)`` to ``(B, 2304, 5, 2)``."""
    points = torch.cat([numbers[..., :2], numbers[..., 4:12]], -1).unflatten(-1, (5, 2))
    return points + positions()[:, None]


def _look_again(picture: Tensor, found: Tensor, run: Runner) -> Tensor:
    """Run the network on an upright crop of a face and its mirror image: the mean of both, but the lower score."""
    run.check_cancelled()
    one, other = found[4:6], found[6:8]
    side = SEEN * float(found[1])
    along = other - one
    half = along / along.norm().clamp(min=1e-6) * side * (RIGHT - LEFT) / 2
    middle = (one + other) / 2
    left, right = ((float(x), float(y)) for x, y in (middle - half, middle + half))
    height, width = picture.shape[-2:]
    place = FacePlace(left_eye=left, right_eye=right, height=height, width=width)
    crop = cut_face(picture, place, SIDE)
    logits, numbers = network()(torch.cat([crop, crop.flip(-1)]))
    points = _points(numbers)
    points[1, ..., 0] = SIDE - points[1, ..., 0]
    points[1] = points[1][:, [0, 2, 1, 3, 4]]  # the mirror image swaps the eyes
    expected = torch.tensor([(LEFT + RIGHT) / 2, EYE_LINE]) * SIDE
    far = (points[:, :, 1:3].mean(2) - expected).norm(dim=-1) > SIDE / SEEN / 2
    best = logits.masked_fill(far, -math.inf).argmax(1)
    both = torch.arange(2)
    box = torch.stack([logits[both, best].sigmoid().min(), numbers[both, best, 2].mean() * side / SIDE])
    return torch.cat([box, place.to_picture(points[both, best].mean(0) / SIDE).float().flatten()])


def _distinct(found: Tensor) -> Tensor:
    """Keep the best of detections of the same face."""
    widths, middles = found[:, 1], found[:, 2:4]
    kept: list[int] = []
    for k in found[:, 0].argsort(descending=True, stable=True).tolist():
        near = NEAR * torch.maximum(widths[kept], widths[k])
        if not bool(((middles[kept] - middles[k]).norm(dim=-1) < near).any()):
            kept.append(k)
    return found[torch.tensor(kept, dtype=torch.long)]


@cache
def network() -> BlazeFace:
    """Load the shipped network once."""
    with open_safetensors(catalog.FOLDER / "face-finder.safetensors", "Install flowcore again.") as file:
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    finder = BlazeFace().requires_grad_(False)
    finder.load_state_dict(state)
    return finder.eval().to(memory_format=torch.channels_last)  # twice as fast  # pyright: ignore[reportCallIssue]
