"""Faces in pictures of any size, found in squares of every size, at three turns, and looked at a second time."""

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
from ..networks.blazeface import SIDE, BlazeFace, places
from .intake import validate_image
from .runner import Reporting, Runner, RunOptions, runs_with

SMALLEST = 12  # pixels of a box that is found in a square of as many pixels as the network reads
DOUBLINGS = 2  # at least: the whole, halves, and quarters of the longest side
STRIDE = 3 * SIDE // 4  # of neighboring squares, at most: larger faces than their overlap are found in larger ones
LESS = 0.6  # of the score suffices for a second look
NEAR = 0.4  # of the wider box, between the middles of two faces that are one
SEEN = 2.8  # widths of a box are the side of what the second look sees
AT_ONCE = 4  # squares


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
    box: tuple[float, float, float, float]
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
        options: How to run, see ``RunOptions``.

    Returns:
        The faces of every image, the largest first; an image may have none.

    Raises:
        ImageError: If an image is not usable.
        FlowError: If another argument is out of its range.
        Cancelled: If stopped.

    Source: Bazarevsky et al., "BlazeFace" (2019), with the published weights of MediaPipe's full-range model; pyramid,
        turns and the second look are ours.
    """
    if not 0 < score < 1:
        raise FlowError(f"score must lie between 0 and 1; got {score:g}. 0.5 finds what most people would call a face.")
    if not smallest >= 4:
        raise FlowError(f"smallest must be at least 4 pixels; got {smallest:g}. Enlarge the picture.")
    run = Runner(None, RunOptions(**options), "Pass fewer or smaller images.", image)

    def task() -> list[list[Face]]:
        pixels, _ = validate_image(image)
        run.expect(len(pixels))
        found: list[list[Face]] = []
        for picture in pixels.cpu().split(1):
            found.append(_faces_of(picture, smallest, score, run))
            run.advance()
        return found

    return run(task)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """N faces: scores and widths ``(N,)``; middle of the box, eyes, nose and mouth ``(N, 5, 2)``, in pixels."""

    scores: Tensor
    widths: Tensor
    points: Tensor

    def __getitem__(self, which: Tensor | slice) -> _Found:
        return _Found(scores=self.scores[which], widths=self.widths[which], points=self.points[which])


def _together(parts: list[_Found]) -> _Found:
    return _Found(**{name: torch.cat([getattr(part, name) for part in parts]) for name in _Found.__annotations__})


def _faces_of(picture: Tensor, smallest: float, score: float, run: Runner) -> list[Face]:
    height, width = picture.shape[-2:]
    parts: list[_Found] = []
    for turns in (0, 1, 3):  # of 90 degrees, counterclockwise
        found = _search(picture.rot90(turns, (-2, -1)), smallest, LESS * score, run)
        x, y = found.points.unbind(-1)
        back = {0: (x, y), 1: (width - y, x), 3: (y, height - x)}[turns]
        parts.append(_Found(scores=found.scores, widths=found.widths, points=torch.stack(back, -1)))
    found = _distinct(_together(parts))
    if len(found.scores):
        seen = [_look_again(picture, found[k : k + 1], run) for k in range(len(found.scores))]
        found = _distinct(_together(seen))
    found = found[(found.scores >= score) & (found.widths >= smallest)]
    return [_face(found[k]) for k in found.widths.argsort(descending=True, stable=True)]


def _face(found: _Found) -> Face:
    (x, y), *points = [(float(x), float(y)) for x, y in found.points]
    half = float(found.widths) / 2
    one, other = sorted(points[:2])
    box = (x - half, y - half, x + half, y + half)
    return Face(score=float(found.scores), box=box, eyes=(one, other), nose=points[2], mouth=points[3])


def _search(picture: Tensor, smallest: float, score: float, run: Runner) -> _Found:
    """Look at squares of a picture ``(1, 3, H, W)``, from its longest side down to where the smallest face is seen."""
    height, width = picture.shape[-2:]
    longest, last = max(height, width), min(max(height, width) / 2**DOUBLINGS, SIDE * smallest / SMALLEST)
    steps = math.ceil(math.log2(longest / last) - 0.1)
    parts: list[_Found] = []
    for step in range(steps + 1):
        scale = SIDE / longest * (longest / last) ** (step / steps)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        level = resize(picture, *size).clamp(0, 1)
        tops, lefts = (_starts(side) for side in size)
        before = [max(0, SIDE - side) for side in size]  # of the rest, half goes before the picture
        border = [before[1] // 2, before[1] - before[1] // 2, before[0] // 2, before[0] - before[0] // 2]
        level = F.pad(level, border)
        corners = list(itertools.product(tops, lefts))
        for some in range(0, len(corners), AT_ONCE):
            run.check_cancelled()
            part = corners[some : some + AT_ONCE]
            squares = torch.cat([level[..., top : top + SIDE, left : left + SIDE] for top, left in part])
            logits, numbers = network()(squares)
            square, place = (logits.sigmoid() > score).nonzero(as_tuple=True)
            offset = torch.tensor([(left - border[0], top - border[2]) for top, left in part])[square]
            points = _points(numbers)[square, place] + offset[:, None]
            ratio = torch.tensor([width / size[1], height / size[0]])
            widths = numbers[square, place, 2] * ratio[0]
            parts.append(_Found(scores=logits.sigmoid()[square, place], widths=widths, points=points * ratio))
    return _together(parts)


def _starts(side: int) -> list[int]:
    """Where squares begin along a side, evenly."""
    rest = max(0, side - SIDE)
    count = math.ceil(rest / STRIDE)
    return [round(rest * k / max(1, count)) for k in range(count + 1)]


def _points(numbers: Tensor) -> Tensor:
    """Middle of the box, eyes, nose and mouth, in pixels of the square: ``(B, 2304, 16)`` to ``(B, 2304, 5, 2)``."""
    points = torch.cat([numbers[..., :2], numbers[..., 4:12]], -1).unflatten(-1, (5, 2))
    return points + places()[:, None]


def _look_again(picture: Tensor, found: _Found, run: Runner) -> _Found:
    """Look at a face upright, from near by, and in the mirror: the mean of both, but the lower score."""
    run.check_cancelled()
    one, other = found.points[0, 1], found.points[0, 2]
    side = SEEN * float(found.widths)
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
    points[1] = points[1][:, [0, 2, 1, 3, 4]]
    expected = torch.tensor([(LEFT + RIGHT) / 2, EYE_LINE]) * SIDE
    far = (points[:, :, 1:3].mean(2) - expected).norm(dim=-1) > SIDE / SEEN / 2
    best = logits.masked_fill(far, -math.inf).argmax(1)
    both = torch.arange(2)
    seen = points[both, best].mean(0)
    widths = numbers[both, best, 2].mean() * side / SIDE
    return _Found(
        scores=logits[both, best].sigmoid().min()[None],
        widths=widths[None],
        points=place.to_picture(seen / SIDE).float()[None],
    )


def _distinct(found: _Found) -> _Found:
    """Take the best of faces that are one."""
    kept: list[int] = []
    for k in found.scores.argsort(descending=True, stable=True).tolist():
        near = NEAR * torch.maximum(found.widths[kept], found.widths[k])
        if not bool(((found.points[kept, 0] - found.points[k, 0]).norm(dim=-1) < near).any()):
            kept.append(k)
    return found[torch.tensor(kept, dtype=torch.long)]


@cache
def network() -> BlazeFace:
    """The shipped network, which nothing changes."""
    with open_safetensors(catalog.FOLDER / "face-finder.safetensors", "Install flowcore again.") as file:
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    finder = BlazeFace().requires_grad_(False)
    finder.load_state_dict(state)
    return finder.eval().to(memory_format=torch.channels_last)  # twice as fast  # pyright: ignore[reportCallIssue]
