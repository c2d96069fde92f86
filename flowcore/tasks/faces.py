"""Faces in pictures: found in squares of every size, in three rotations, cut out upright in one size, pasted back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from ..checkpoints import catalog
from ..checkpoints.file import open_safetensors
from ..errors import FlowError, ImageError, ShapeError
from ..flow import Flow
from ..images.color import luma
from ..images.faces import (
    EYE_LINE,
    LEFT,
    RIGHT,
    FacePlace,
    Point,
    cut_face,
    eyes_from_landmarks,
    is_profile,
    locate_face,
    looks_like_face,
    paste_face,
)
from ..images.resize import resize
from ..networks.blazeface import SIDE, BlazeFace
from ..networks.blazeface import places as positions
from ..quality.metrics import added_specks, lr_psnr
from .intake import validate_image, visible_image, with_alpha
from .runner import Reporting, Runner, Running, RunOptions, part_of_run, runs_with
from .upscale import upscale

SMALLEST = 12  # pixels: width of the smallest box that the network finds in a square of ``SIDE`` pixels
DOUBLINGS = 2  # of scale, at least: squares of the longest side, of its half, and of its quarter
STRIDE = 3 * SIDE // 4  # between squares, at most; faces larger than their overlap are found in larger squares
LESS = 0.6  # share of the score asked for that suffices for a second look
NEAR = 0.4  # share of the wider box: detections whose middles are nearer are one face
SEEN = 2.8  # side of the crop for the second look, in widths of the box
AT_ONCE = 4  # squares
Eyes = tuple[Point, Point]
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels of the picture
Notify = Callable[[str], None]

LEANING = 45  # degrees beyond which a note asks whether the points are eyes, and faces are always turned
COMPARED = 16  # side at which a picked face is compared with the faces of a picture
LARGEST = 36  # pixels of a face's side up to which the shipped models of faces draw it better than those of photographs
SPECKS = 6.0  # per mille, added: up to 4.7 where a model of faces suits, from 7.4 where it meets noise unknown to it
FARTHER, NEAR_ENOUGH = 3.0, 30.0  # decibels: how much farther than the picture a face may be, or than near enough
WHOLE = 0.995  # share of a face inside the picture; the caller is told of less


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
        pixels, _ = visible_image(image)
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


def align_faces(
    image: Tensor,
    eyes: Sequence[Sequence[Eyes]],
    *,
    size: int = 0,
    largest: float = 0,
    notify: Notify | None = None,
) -> tuple[Tensor, tuple[FacePlace, ...]]:
    """Cut faces out of images at pairs of eye points, a list for each image or one for all: all of image 0 first.

    ``size`` is the side of the results, 0 for as many pixels as the largest face has: then faces are windows of the
    images' own pixels, which models enlarge far better than resampled ones; only faces that lie are rotated. Faces of
    more than ``largest`` pixels are left out; if there is no other, one is returned that is not pasted.
    """
    pixels, _ = visible_image(image)
    if len(eyes) not in (1, len(pixels)):
        raise ShapeError(f"Expected the eyes of one or all of {len(pixels)} images; got those of {len(eyes)}.")
    places = [
        replace(locate_face(one, other, *pixels.shape[-2:]), image=k, images=len(pixels))
        for k in range(len(pixels))
        for one, other in eyes[k % len(eyes)]
    ]
    if not places:
        raise ImageError(
            "No face was found that is large enough. Lower the detector's confidence or smallest, or give the eyes: "
            "two points, or a mask with a dot on each."
        )
    tell = RunOptions(notify=notify).tell
    fitting = [place for place in places if not largest or place.face <= largest]
    if larger := len(places) - len(fitting):
        which = f"Of {len(places)} faces, {larger} of more than {largest:g} pixels"
        tell(f"{which}: left to the upscaler of the picture, which draws large ones better.")
        places = fitting or [replace(min(places, key=lambda place: place.face), pasted=False)]
        size = size if fitting else min(size or LARGEST, LARGEST)
    pictures = [pixels[place.image][None] for place in places]
    for sentence in _oddities(pictures, places) if fitting else ():
        tell(sentence)
    if not size:
        size = max(1, math.ceil(max(place.face for place in places) - 0.01))
        places = [place.along_pixels(size) if abs(place.roll) <= LEANING else place for place in places]
    faces = torch.cat([cut_face(picture, place, size) for picture, place in zip(pictures, places, strict=True)])
    return faces[:, : image.shape[1]], tuple(places)


def _oddities(pictures: Sequence[Tensor], places: Sequence[FacePlace]) -> Iterator[str]:
    """Describe what is unusual for faces, once each."""
    strange = [place for picture, place in zip(pictures, places, strict=True) if not looks_like_face(picture, place)]
    if strange:
        (x, y), (u, v) = strange[0].left_eye, strange[0].right_eye
        others = f" (nor do {len(strange) - 1} more of {len(places)})" if len(strange) > 1 else ""
        yield (
            f"What is at the eyes {x:.0f}, {y:.0f} and {u:.0f}, {v:.0f} hardly looks like a face{others}. If the "
            "picture is another one now, mark the eyes anew."
        )
    for place in dict.fromkeys(replace(place, image=0) for place in places):
        if place.inside < WHOLE:
            yield f"{1 - place.inside:.0%} of the face lies outside the picture, whose edge is continued there."
        if abs(place.roll) > LEANING:
            yield f"The head leans by {place.roll:.0f} degrees: check that the points are its two eyes."


@runs_with(Reporting)
def found_eyes(
    image: Tensor,
    *,
    smallest: float = 0,
    number: int = 0,
    boxes: Sequence[Sequence[Box]] | None = None,
    **options: Unpack[Reporting],
) -> list[list[Eyes]]:
    """Find the eyes of every image's ``number`` largest faces, 0 for all, if ``smallest`` pixels wide with hair.

    With ``boxes``, a list for each image or one for all, only of faces whose middle lies in one of them.
    """
    widest = max(SMALLEST, smallest / 2)  # a face's box is about three fifths as wide as the face with hair
    found = find_faces(image, smallest=widest, **options)
    if boxes is not None:
        if len(boxes) not in (1, len(found)):
            raise ShapeError(f"Expected the boxes of one or all of {len(found)} images; got those of {len(boxes)}.")
        pairs = [(faces, boxes[k % len(boxes)]) for k, faces in enumerate(found)]
        empty = sum(not any(_is_in(face, box) for face in faces) for faces, regions in pairs for box in regions)
        if empty:
            count = sum(len(regions) for _, regions in pairs)
            RunOptions(**options).tell(f"No face was found in {empty} of {count} boxes.")
        found = [[face for face in faces if any(_is_in(face, box) for box in regions)] for faces, regions in pairs]
    return [
        [face.eyes for face in faces if math.dist(*face.eyes) / (RIGHT - LEFT) >= smallest][: number or None]
        for faces in found
    ]


def _is_in(face: Face, box: Box) -> bool:
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def paste_faces(
    image: Tensor,
    faces: Tensor,
    places: Sequence[FacePlace],
    *,
    feather: float = 0.15,
    photograph: Tensor | None = None,
    notify: Notify | None = None,
) -> Tensor:
    """Paste faces, all samples of face 0 first, into their pictures, or several samples of these, enlarged or not.

    If their number is no multiple of the places, some were picked, and each goes where the picture looks most like it.
    ``feather`` is the width of the soft border, as a share of the face's side. Gray ones make a gray picture. With the
    ``photograph`` that they were cut out of, those that came out worse than the picture there are left out.
    """
    pixels, alpha = validate_image(image)
    cut, _ = validate_image(faces)
    pictures = places[0].images
    if len(pixels) % pictures:
        raise ShapeError(f"Expected {pictures} pictures, as the faces were cut out of; got {len(pixels)}. Pass those.")
    own = len(pixels) // pictures
    if len(cut) % len(places):
        places = [_most_alike(face[None], pixels[::own], places) for face in cut]
    samples = len(cut) // len(places)
    count = max(own, samples)
    if count % samples or count % own:
        raise ShapeError(
            f"Expected one picture, or as many as samples of a face; got {own} pictures and {samples} samples of each "
            "face. Pass the one picture."
        )
    result = pixels.repeat_interleave(count // own, 0)
    before = None if photograph is None else visible_image(photograph)[0]
    worse = 0
    for k, place in enumerate(places if places[0].pasted else ()):
        for sample in range(count):
            at = place.image * count + sample
            plain, face = result[at][None], cut[k * samples + sample * samples // count][None]
            pasted = paste_face(plain, face, place, feather=feather)
            if before is not None and _is_worse(pasted, plain, before[place.image % len(before)][None], place):
                worse += 1
            else:
                result[at] = pasted[0]
    if worse:
        total = count // pictures * len(places)
        which = f"{worse} of {total} pasted faces had specks, or were unlike the photograph"
        RunOptions(notify=notify).tell(f"{which}: the picture was kept there.")
    is_gray = image.shape[1] == faces.shape[1] == 1
    return with_alpha(result[:, :1] if is_gray else result, alpha)


def _is_worse(pasted: Tensor, plain: Tensor, photograph: Tensor, place: FacePlace) -> bool:
    """Compare a pasted face with the picture before: whether it has specks, or is unlike the photograph."""
    window = replace(place, window=None).along_pixels(math.ceil(place.face))
    side = max(1, round(window.side / 2))  # pixels at which noise and blocks, which a model removes, hardly count
    photograph, scaled = cut_face(photograph, window, side), window.scaled(*plain.shape[-2:])
    pasted, plain = (cut_face(picture, scaled) for picture in (pasted, plain))
    far, near = (float(lr_psnr(picture, photograph)) for picture in (pasted, plain))
    return float(added_specks(pasted, plain)) > SPECKS or far < min(near, NEAR_ENOUGH) - FARTHER


@runs_with(Running)
def restore_faces(
    flow: Flow,
    face_flow: Flow,
    image: Tensor,
    *,
    temperature: float | None = None,
    seed: int = 0,
    samples: int = 1,
    factor: float = 8.0,
    smallest: float = 0,
    number: int = 0,
    tile: int = 0,
    largest: float = LARGEST,
    check: bool = True,
    **options: Unpack[Running],
) -> Tensor:
    """Enlarge photographs once, and the faces found in them by a model of faces, in samples at a temperature.

    Faces of more than ``largest`` pixels, 0 for no limit, and those that ``check`` finds worse, stay as enlarged.
    """
    tell = RunOptions(**options).tell
    large = upscale(flow, image, factor=factor, seed=seed, tile=tile, **part_of_run(options, 0.0, 0.6))
    eyes = found_eyes(image, smallest=smallest, number=number, cancelled=options.get("cancelled"), notify=tell)
    missing = sum(not one for one in eyes)
    if missing:
        which = "No face was found" if len(eyes) == 1 else f"No face was found in {missing} of {len(eyes)} pictures"
        tell(f"{which}: enlarged without. Lower smallest, or mark the eyes in ComfyUI.")
    if not any(eyes):
        return large.repeat_interleave(samples, 0)
    cut, places = align_faces(image, eyes, largest=largest, notify=tell)
    if not places[0].pasted:
        return large.repeat_interleave(samples, 0)
    rest = part_of_run(options, 0.6, 0.4)
    faces = upscale(face_flow, cut, temperature=temperature, seed=seed, samples=samples, tile=tile, **rest)
    return paste_faces(large, faces, places, photograph=image if check else None, notify=tell)


def _most_alike(face: Tensor, pictures: Tensor, places: Sequence[FacePlace]) -> FacePlace:
    """Find the place of a picked face (1, C, S, S) by comparing it with what is there."""
    scaled = [place.scaled(*pictures.shape[-2:]) for place in places]
    there = torch.cat([cut_face(pictures[place.image][None], place, COMPARED) for place in scaled])  # (P, 3, s, s)
    differences = (luma(there) - luma(resize(face, COMPARED, COMPARED))).abs().flatten(1).mean(1)
    return places[int(differences.argmin())]


def eyes_from_meshes(
    frames: Sequence[Any], number: int = 1, *, smallest: float = 0, notify: Notify | None = None
) -> list[list[Eyes]]:
    """Read the irises of a numbered face, 1 for the largest, 0 for all, in every image from MediaPipe's face meshes."""
    tell = RunOptions(notify=notify).tell
    eyes: list[list[Eyes]] = []
    for frame in frames:
        try:
            meshes = [[(float(x), float(y)) for x, y, *_ in face["landmarks_xy"]] for face in frame]
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(
                f"Expected faces with landmarks_xy, pairs of numbers; got another thing ({error})."
            ) from error
        faces: list[tuple[list[Point], FacePlace]] = []
        for mesh in sorted(meshes, key=_extent, reverse=True):
            one, other = sorted(eyes_from_landmarks(mesh))
            place = FacePlace(left_eye=one, right_eye=other, height=1, width=1)
            if place.face >= smallest:
                faces.append((mesh, place))
        if len(faces) < number:
            found = {0: "No face was", 1: "One face was"}.get(len(faces), f"{len(faces)} faces were")
            raise ImageError(
                f"{found} found; face {number} was asked for. Lower the detector's confidence, or give the eyes: two "
                "points, or a mask with a dot on each."
            )
        if len(faces) > 1 and number:
            tell(f"{len(faces)} faces were found; this is number {number}, the largest is 1.")
        chosen = faces[number - 1 : number] if number else faces
        for mesh, place in chosen:
            if not place.face or is_profile(mesh, place):
                tell("The face is seen from the side. Models of faces learn from those that look at the camera.")
        eyes.append([(place.left_eye, place.right_eye) for _, place in chosen])
    return eyes


def _extent(mesh: Sequence[Point]) -> float:
    """Area of the box around a mesh."""
    if not mesh:
        return 0.0
    columns, rows = zip(*mesh, strict=True)
    return (max(columns) - min(columns)) * (max(rows) - min(rows))
