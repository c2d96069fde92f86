"""Find faces: a small network looks at squares of every size, in three rotations."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.image_batch import ImageBatch
from ...engine.options import ReportOptions
from ...engine.ranges import Setting
from ...engine.runner import Runner, runs_with
from ...errors import FlowError, say
from ...images.color import luma
from ...images.faces import EYE_LINE, LEFT, RIGHT, FacePlace, Point, cut_face
from ...images.resize import resize
from ...models import catalog
from ...models.fields import Range
from ...models.model_file import read_network
from .blazeface import SQUARE, BlazeFace, anchors

SMALLEST = 8  # pixels: width of the smallest box that is looked for by default
IN_SQUARE = 12  # pixels: width of the smallest box that the network finds in a square of ``SQUARE`` pixels
DOUBLINGS = 2  # at least, these sides of squares: the longest side, its half, and its quarter
STRIDE = 3 * SQUARE // 4  # largest step between squares; faces larger than their overlap are found in larger squares
SURE = 0.5  # score required by default
SECOND_LOOK = 0.6  # share of the required score that suffices for a second look
NEAR = 0.4  # share of the wider box: detections whose middles are nearer are one face
CROP = 2.8  # side of the crop for the second look, in widths of the box
AT_ONCE = 4  # squares
# The left half of 8x8 cells from (0.2, 0.275) to (0.8, 0.875) of the crop: weights of brightness that separate faces
# from other places, by ridge regression of 586 training faces and 73 of snapshots against misplaced crops. Correlations
# below ALIKE have 1 % of other portraits, 87 % of misplaced crops of portraits, and 76 % of those of other photographs.
TEMPLATE = (
    (-33, -9, 41, 66),
    (-24, -36, -18, 15),
    (-6, -20, -99, 13),
    (-27, 32, 71, 19),
    (11, -1, -16, -20),
    (17, 1, -9, -7),
    (7, -12, 3, 44),
    (-2, 8, 5, -15),
)
ALIKE = 0.08
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels of the picture


class Oval(NamedTuple):
    """An upright oval in a picture: its middle and radii, in parts of the picture's height and width."""

    y: float
    x: float
    high: float
    wide: float

    def distances(self, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """Return how far the pixels of a picture are from the middle, ``(height, width)``: 1 on the oval's border."""
        rows, columns = (torch.arange(side, device=device) + 0.5 for side in (height, width))
        dy, dx = (rows / height - self.y) / self.high, (columns / width - self.x) / self.wide
        return (dy[:, None].square() + dx.square()).sqrt()


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face in a picture; points are x, y in pixels from the picture's top left corner.

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
        """Width of the box, in pixels."""
        return self.box[2] - self.box[0]

    def oval(self, height: int, width: int, *, high: float, wide: float, rise: float) -> Oval:
        """Return an oval around the face in a picture of a size; radii, and how far it rises, in widths of the box."""
        left, top, right, bottom = self.box
        y, x = (top + bottom) / 2 - rise * self.width, (left + right) / 2
        return Oval(y / height, x / width, high * self.width / height, wide * self.width / width)


@dataclass(frozen=True, kw_only=True)
class FaceFinderSettings(ReportOptions):
    """Options of ``find_faces``."""

    smallest: Annotated[
        float,
        Setting(
            float,
            Range(4, math.inf),
            "It is in pixels. Enlarge the picture.",
            help="Width in pixels of the smallest box that counts, at least 4. Half of it takes four times as long.",
        ),
    ] = SMALLEST
    score: Annotated[float, Setting(float, Range(0, 1), help="How sure the network must be, in (0, 1).")] = SURE
    turned: Annotated[
        bool,
        Setting(help="Whether people who lie on either side are looked for as well, which takes three times as long."),
    ] = True


@runs_with(FaceFinderSettings)
def find_faces(image: Tensor, *, settings: FaceFinderSettings) -> list[list[Face]]:
    """Find the faces in images, upright ones, and those of people who lie on either side.

    Faces are found from the front and half from the side, hardly in profile. The network is small, runs on the CPU, and
    gives the same faces on every machine; no model has to be loaded.

    Args:
        image: ``(B, C, H, W)`` in [0, 1], C = 1, 3 or 4; alpha is dropped.
        settings: The options below, by name.

    Returns:
        The faces of every image, the largest first; an image may have none.

    Raises:
        ImageError: If an image is not usable.
        FlowError: If another argument is out of its range.

    Source: Bazarevsky et al., "BlazeFace" (2019), with the published weights of MediaPipe's full-range model; pyramid,
        turns and the second look are ours.
    """
    smallest, score, turned = settings.smallest, settings.score, settings.turned
    if not 0 < score < 1:
        raise FlowError(f"score must lie between 0 and 1; got {score:g}. 0.5 finds what most people would call a face.")
    run = Runner(None, settings, say("Pass fewer or smaller images."), image)

    def task() -> list[list[Face]]:
        images = ImageBatch(image, run.notify).extended_rgb.cpu()
        run.expect(len(images))
        faces: list[list[Face]] = []
        for picture in images.split(1):
            faces.append(faces_of(picture, run, smallest, score, turned=turned))
            run.advance()
        return faces

    return run.retry_on_oom(task)


# A detection is a row of 12 numbers: score, width of the box, and x, y of its middle, both eyes, nose and mouth.


def _points_of(detections: Tensor) -> Tensor:
    """Return the points of detections, ``(..., 5, 2)``: the middle of the box, both eyes, nose and mouth."""
    return detections[..., 2:].unflatten(-1, (5, 2))


def faces_of(
    picture: Tensor,
    run: Runner,
    smallest: float,
    score: float = SURE,
    *,
    turned: bool = False,
    doublings: int = DOUBLINGS,
) -> list[Face]:
    """Find the faces in one picture ``(1, 3, H, W)`` on the CPU; see ``find_faces``."""
    height, width = picture.shape[-2:]
    parts: list[Tensor] = []
    for turns in (0, 1, 3) if turned else (0,):  # quarter turns, counterclockwise
        rotated = _scan_pyramid(picture.rot90(turns, (-2, -1)), smallest, SECOND_LOOK * score, doublings, run)
        x, y = _points_of(rotated).unbind(-1)
        upright = {0: (x, y), 1: (width - y, x), 3: (y, height - x)}[turns]
        parts.append(torch.cat([rotated[:, :2], torch.stack(upright, -1).flatten(1)], 1))
    detections = _distinct(torch.cat(parts))
    if len(detections):
        detections = _distinct(torch.stack([_look_again(picture, one, run) for one in detections]))
    detections = detections[(detections[:, 0] >= score) & (detections[:, 1] >= smallest)]
    detections = detections[detections[:, 1].argsort(descending=True, stable=True)]
    return [_face(one) for one in detections]


def _face(detection: Tensor) -> Face:
    score, width = detection[:2].tolist()
    (x, y), *eyes, nose, mouth = (tuple(point) for point in _points_of(detection).tolist())
    box = (x - width / 2, y - width / 2, x + width / 2, y + width / 2)
    return Face(score=score, box=box, eyes=(min(eyes), max(eyes)), nose=nose, mouth=mouth)


def _scan_pyramid(picture: Tensor, smallest: float, score: float, doublings: int, run: Runner) -> Tensor:
    """Look at squares of a picture ``(1, 3, H, W)``, from its longest side down to where the smallest face is seen."""
    height, width = picture.shape[-2:]
    coarsest = max(height, width)  # side of the first square, in pixels of the picture
    finest = min(coarsest / 2**doublings, SQUARE * smallest / IN_SQUARE)  # side of the last squares
    steps = math.ceil(math.log2(coarsest / finest) - 0.1)  # each about twice as fine
    parts: list[Tensor] = []
    for step in range(steps + 1):
        scale = SQUARE / coarsest * (coarsest / finest) ** (step / steps)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        above, before = max(0, SQUARE - rows) // 2, max(0, SQUARE - columns) // 2  # centers it in a square
        border = (before, max(0, SQUARE - columns) - before, above, max(0, SQUARE - rows) - above)
        level = F.pad(resize(picture, rows, columns).clamp(0, 1), border)
        ratio = torch.tensor([width / columns, height / rows])
        corners = list(itertools.product(_starts(rows), _starts(columns)))
        for batch in (corners[start : start + AT_ONCE] for start in range(0, len(corners), AT_ONCE)):
            run.check_cancelled()
            logits, numbers = network()(torch.cat([level[..., y : y + SQUARE, x : x + SQUARE] for y, x in batch]))
            scores = logits.sigmoid()
            square, place = (scores > score).nonzero(as_tuple=True)
            offset = torch.tensor([(x - before, y - above) for y, x in batch])[square]
            points = (_network_points(numbers)[square, place] + offset[:, None]) * ratio
            widths = numbers[square, place, 2] * ratio[0]
            parts.append(torch.cat([scores[square, place, None], widths[:, None], points.flatten(1)], 1))
    return torch.cat(parts)


def _starts(side: int) -> list[int]:
    """Evenly spaced starts of overlapping squares along a side."""
    rest = max(0, side - SQUARE)
    count = math.ceil(rest / STRIDE)
    return [round(rest * k / max(1, count)) for k in range(count + 1)]


def _network_points(numbers: Tensor) -> Tensor:
    """Middle of the box, eyes, nose and mouth, in pixels of the square: ``(B, 2304, 16)`` to ``(B, 2304, 5, 2)``."""
    points = torch.cat([numbers[..., :2], numbers[..., 4:12]], -1).unflatten(-1, (5, 2))
    return points + anchors()[:, None]


def _look_again(picture: Tensor, detection: Tensor, run: Runner) -> Tensor:
    """Run the network on an upright crop of a face and its mirror image, and return the mean of both."""
    run.check_cancelled()
    eyes = _points_of(detection)[1:3]
    side = CROP * float(detection[1])  # side of the crop, in pixels of the picture
    along = eyes[1] - eyes[0]
    half = along / along.norm().clamp(min=1e-6) * side * (RIGHT - LEFT) / 2  # step from the middle to an eye of a crop
    middle = eyes.mean(0)
    left_eye, right_eye = ((float(x), float(y)) for x, y in (middle - half, middle + half))
    height, width = picture.shape[-2:]
    place = FacePlace(left_eye=left_eye, right_eye=right_eye, height=height, width=width)
    crop = cut_face(picture, place, SQUARE)
    logits, numbers = network()(torch.cat([crop, crop.flip(-1)]))
    points = _network_points(numbers)
    points[1, ..., 0] = SQUARE - points[1, ..., 0]
    points[1] = points[1][:, [0, 2, 1, 3, 4]]  # the mirror image swaps the eyes
    expected = torch.tensor([(LEFT + RIGHT) / 2, EYE_LINE]) * SQUARE
    far = (points[:, :, 1:3].mean(2) - expected).norm(dim=-1) > SQUARE / CROP / 2  # half a box off: another face
    best = logits.masked_fill(far, -math.inf).argmax(1)  # best box of the crop, and of its mirror image
    both = torch.arange(2)
    score_and_width = torch.stack([logits[both, best].sigmoid().mean(), numbers[both, best, 2].mean() * side / SQUARE])
    return torch.cat([score_and_width, place.to_picture(points[both, best].mean(0) / SQUARE).float().flatten()])


def _distinct(detections: Tensor) -> Tensor:
    widths, middles = detections[:, 1], detections[:, 2:4]
    best: list[int] = []
    for k in detections[:, 0].argsort(descending=True, stable=True).tolist():
        near = NEAR * torch.maximum(widths[best], widths[k])
        if not bool(((middles[best] - middles[k]).norm(dim=-1) < near).any()):
            best.append(k)
    return detections[torch.tensor(best, dtype=torch.long)]


def looks_like_face(picture: Tensor, place: FacePlace) -> bool:
    """Tell whether a place of a picture ``(1, 3, H, W)`` has the brightness pattern of a face; see ``TEMPLATE``."""
    crop = cut_face(luma(picture), replace(place, window=None), 40)
    cells = F.avg_pool2d(crop[..., 11:35, 8:32].double(), 3).flatten()
    half = torch.tensor(TEMPLATE, dtype=torch.float64)
    template = torch.cat([half, half.flip(1)], 1).flatten().to(cells.device)
    together = torch.stack([cells, template])
    return float(torch.corrcoef(together)[0, 1]) >= ALIKE  # a flat crop gives NaN, for which this is False


@cache
def network() -> BlazeFace:
    """Load the shipped network once."""
    finder = BlazeFace()
    read_network(catalog.FOLDER / "face-finder.safetensors", finder)
    return finder.to(memory_format=torch.channels_last)  # twice as fast  # pyright: ignore[reportCallIssue]
