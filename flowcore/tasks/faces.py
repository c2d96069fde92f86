"""Faces in pictures: cut out in one size, restored, and pasted back where they improve the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from ..engine.image_batch import ImageBatch, append_alpha
from ..engine.options import SEED, ReportOptions, RunOptions, draws, python
from ..engine.ranges import Setting, count, nonnegative
from ..engine.runner import runs_with
from ..errors import Argument, ImageError, ShapeError, say
from ..flows.model import FlowModel
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
    paste_face,
)
from ..images.metrics import added_specks, lr_psnr
from ..images.resize import resize
from .finders.faces import SMALLEST, Box, Face, find_faces, looks_like_face
from .task import Task
from .upscale import size_of_result, upscale

Eyes = tuple[Point, Point]
Notify = Callable[[str], None]

LEANING = 45  # degrees beyond which a note asks whether the points are eyes, and faces are always turned
COMPARED = 16  # side at which a picked face is compared with the faces of a picture
LARGEST = 36  # pixels of a face's side up to which the shipped models of faces draw it better than those of photographs
CLEAR = 0.72  # score from which a face of up to so many pixels is seen well enough; turned and hidden ones have less
SPECKS = 6.0  # per mille added: up to 4.7 where a model of faces suits, from 7.4 where it meets noise unknown to it
PSNR_LOSS = 3.0  # decibels: how much less a pasted face may resemble the photograph than the picture does
SUFFICIENT_PSNR = 30.0  # decibels: more resemblance of the picture does not count
SMALLEST_SIDE = nonnegative(
    "It is in pixels.", unit="pixels", help="Side of the smallest face that counts, in pixels, hair included."
)
NUMBER = count(0, note="0 is all of them.", help="Most faces per picture, largest first; 0 for all.")
WHOLE = 0.995  # share of a face inside the picture; below, the caller is told


def align_faces(
    image: Tensor, eyes: Sequence[Sequence[Eyes]], *, size: int = 0, largest: float = 0, notify: Notify | None = None
) -> tuple[Tensor, tuple[FacePlace, ...]]:
    """Cut faces out of images at pairs of eye points, a list for each image or one for all: all of image 0 first.

    ``size`` is the side of the results, 0 for as many pixels as the largest face has: then faces are windows of the
    images' own pixels, which models enlarge far better than resampled ones; only faces tilted by more than
    45 degrees are rotated. Faces of more than ``largest`` pixels are left out. If there are no others, the smallest is
    returned, and without any face the middle of the first image, because a batch has at least one image; but with
    ``pasted=False``.
    """
    pixels = ImageBatch(image).extended_rgb
    if len(eyes) not in (1, len(pixels)):
        raise ShapeError(f"Expected the eyes of one or all of {len(pixels)} images; got those of {len(eyes)}.")
    places = [
        replace(locate_face(one, other, *pixels.shape[-2:]), image=k, images=len(pixels))
        for k in range(len(pixels))
        for one, other in eyes[k % len(eyes)]
    ]
    if not places:
        middle = _middle(len(pixels), *pixels.shape[-2:])
        return cut_face(pixels[:1, : image.shape[1]], middle), (middle,)
    tell = RunOptions(notify=notify).tell
    fitting = [place for place in places if not largest or place.face <= largest]
    if larger := len(places) - len(fitting):
        which = say(
            "Of {count} faces, {larger} of more than {largest} pixels",
            count=len(places),
            larger=larger,
            largest=f"{largest:g}",
        )
        tell("{which}: left to the upscaler of the picture, which draws large ones better.", which=which)
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


def _middle(images: int, height: int, width: int) -> FacePlace:
    """Return a place of at most ``LARGEST`` pixels in the middle of the first of some images, where none is pasted."""
    side = min(LARGEST, height, width)
    left, right = ((width / 2 + (x - 0.5) * side, height / 2 + (EYE_LINE - 0.5) * side) for x in (LEFT, RIGHT))
    return FacePlace(left_eye=left, right_eye=right, height=height, width=width, images=images, pasted=False)


def _oddities(pictures: Sequence[Tensor], places: Sequence[FacePlace]) -> Iterator[str]:
    """Describe what is unusual for faces, once each."""
    strange = [place for picture, place in zip(pictures, places, strict=True) if not looks_like_face(picture, place)]
    if strange:
        (x, y), (u, v) = strange[0].left_eye, strange[0].right_eye
        others = say(" (nor do {others} more of {count})", others=len(strange) - 1, count=len(places))
        yield say(
            "What is at the eyes {x}, {y} and {u}, {v} hardly looks like a face{others}. If the picture has changed, "
            "mark the eyes again.",
            x=f"{x:.0f}",
            y=f"{y:.0f}",
            u=f"{u:.0f}",
            v=f"{v:.0f}",
            others=others if len(strange) > 1 else "",
        )
    for place in dict.fromkeys(replace(place, image=0) for place in places):
        if place.inside < WHOLE:
            yield say(
                "{share} of the face lies outside the picture, whose edge is continued there.",
                share=f"{1 - place.inside:.0%}",
            )
        if abs(place.roll) > LEANING:
            yield say(
                "The head leans by {degrees} degrees: check that the points are its two eyes.",
                degrees=f"{place.roll:.0f}",
            )


@dataclass(frozen=True, kw_only=True)
class EyeSettings(ReportOptions):
    """Options of ``find_eyes``."""

    smallest: Annotated[float, SMALLEST_SIDE] = 0
    number: Annotated[int, NUMBER] = 0
    boxes: Annotated[
        Sequence[Sequence[Box]] | None,
        python("Where the middles of faces must lie, as a list for each image or for all."),
    ] = None


@runs_with(EyeSettings)
def find_eyes(image: Tensor, *, settings: EyeSettings) -> list[list[Eyes]]:
    """Find the eyes of the ``number`` largest faces of each image, 0 for all.

    Faces that are, with their hair, less than ``smallest`` pixels wide, or mostly outside of their image, do not count,
    nor do those of up to ``LARGEST`` pixels that are hardly seen, unless there are boxes.
    With ``boxes``, a list for each image or one for all, only of faces whose middle lies in one of them.
    """
    smallest, number, boxes = settings.smallest, settings.number, settings.boxes
    widest = max(SMALLEST, smallest / 2)  # a face's box is about three fifths as wide as the face with hair
    images = find_faces(image, smallest=widest, **settings.part(0.0, 1.0))
    if boxes is not None:
        if len(boxes) not in (1, len(images)):
            raise ShapeError(f"Expected the boxes of one or all of {len(images)} images; got those of {len(boxes)}.")
        pairs = [(faces, boxes[k % len(boxes)]) for k, faces in enumerate(images)]
        empty = sum(not any(_is_in(face, box) for face in faces) for faces, regions in pairs for box in regions)
        if empty:
            count = sum(len(regions) for _, regions in pairs)
            settings.tell("No face was found in {empty} of {count} boxes.", empty=empty, count=count)
        images = [[face for face in faces if any(_is_in(face, box) for box in regions)] for faces, regions in pairs]
    height, width = image.shape[-2:]
    least = CLEAR if boxes is None else 0.0
    return [
        [face.eyes for face in faces if _suits(face, height, width, smallest, least)][: number or None]
        for faces in images
    ]


def _suits(face: Face, height: int, width: int, smallest: float, least: float) -> bool:
    """Whether a face that was found is large enough, clear if it is small, and not cut off by the picture's border."""
    try:
        side = locate_face(*face.eyes, height, width).face
    except ImageError:
        return False
    return side >= smallest and (side > LARGEST or face.score >= least)


def tell_of_missing(eyes: Sequence[Sequence[Eyes]], smallest: float, advice: str, notify: Notify) -> None:
    """Say in how many pictures no face was found, which stay as they are, and how to get one."""
    if missing := sum(not pairs for pairs in eyes):
        which = "" if len(eyes) == 1 else say(" in {missing} of {count} pictures", missing=missing, count=len(eyes))
        if smallest:
            advice = say("lower {smallest}, or {advice}", smallest=Argument("smallest"), advice=advice)
        notify(
            say(
                "No face was found{which}, so none is restored there. If there is one, {advice}.",
                which=which,
                advice=advice,
            )
        )


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

    If their number is not a multiple of that of the places, some faces were picked, without places of their own: each
    is pasted where the picture looks most like it.
    ``feather`` is the width of the soft border, as a share of the face's side. Gray ones make a gray picture. With the
    ``photograph`` that they were cut out of, those that came out worse than the picture there are left out.
    """
    images, cuts = ImageBatch(image), ImageBatch(faces)
    pictures = places[0].images
    if len(images.rgb) % pictures:
        raise ShapeError(
            f"Expected {pictures} pictures, as the faces were cut out of; got {len(images.rgb)}. Pass those."
        )
    per_picture = len(images.rgb) // pictures
    if len(cuts.rgb) % len(places):
        places = [_most_alike(face, images.rgb[::per_picture], places) for face in cuts.rgb.split(1)]
    samples = len(cuts.rgb) // len(places)
    count = max(per_picture, samples)
    if count % samples or count % per_picture:
        raise ShapeError(
            "Expected one picture, or as many as samples of a face; got {pictures} pictures and {samples} samples of "
            "each face. Pass the one picture.",
            pictures=per_picture,
            samples=samples,
        )
    result = images.rgb.repeat_interleave(count // per_picture, 0)
    photographs = None if photograph is None else ImageBatch(photograph).extended_rgb
    worse = 0
    for k, place in enumerate(places if places[0].pasted else ()):
        original = None if photographs is None else photographs[place.image % len(photographs), None]
        for sample in range(count):  # each picture's samples; fewer samples of a face are used several times
            number, face_number = place.image * count + sample, k * samples + sample * samples // count
            plain, face = result[number, None], cuts.rgb[face_number, None]
            pasted = paste_face(plain, face, place, feather=feather)
            if images.is_gray[number * per_picture // count] and cuts.is_gray[face_number]:
                pasted = pasted[:, :1].expand(-1, 3, -1, -1)
            if original is None or not _is_worse(pasted, plain, original, place):
                result[number] = pasted[0]
            else:
                worse += 1
    if worse:
        which = say(
            "{worse} of {count} pasted faces had specks, or were unlike the photograph",
            worse=worse,
            count=count * len(places),
        )
        RunOptions(notify=notify).tell("{which}: the picture was kept there.", which=which)
    has_one_channel = images.channels == cuts.channels == 1
    return append_alpha(result[:, :1] if has_one_channel else result, images.alpha)


def _is_worse(pasted: Tensor, plain: Tensor, photograph: Tensor, place: FacePlace) -> bool:
    """Compare a picture with a pasted face and without: whether the face adds specks, or is unlike the photograph."""
    window = replace(place, window=None).along_pixels(math.ceil(place.face))
    side = max(1, round(window.side / 2))  # pixels at which noise and blocks, which a model removes, hardly count
    photograph_crop, scaled = cut_face(photograph, window, side), window.scaled(*plain.shape[-2:])
    pasted_crop, plain_crop = (cut_face(picture, scaled) for picture in (pasted, plain))
    pasted_psnr, plain_psnr = (float(lr_psnr(crop, photograph_crop)) for crop in (pasted_crop, plain_crop))
    unlike = pasted_psnr < min(plain_psnr, SUFFICIENT_PSNR) - PSNR_LOSS
    return float(added_specks(pasted_crop, plain_crop)) > SPECKS or unlike


@dataclass(frozen=True, kw_only=True)
class FacesSettings(RunOptions):
    """Options of ``restore_faces``."""

    temperature: Annotated[
        float | None,
        nonnegative(
            "0 is the calmest, 1 the model's own spread.",
            label="tau",
            help="Standard deviation of the latents of the faces. None for the default of their model.",
        ),
    ] = None
    seed: Annotated[int, SEED] = 0
    samples: Annotated[int, draws("Results per image, at least 1.")] = 1
    factor: Annotated[float, nonnegative("0 leaves it to the model.", help="Total enlargement.")] = 8.0
    smallest: Annotated[float, SMALLEST_SIDE] = 0
    number: Annotated[int, NUMBER] = 0
    tile: Annotated[
        int,
        count(0, note="0 chooses by free memory.", help="Side of the tiles in LR pixels; 0 chooses by free memory."),
    ] = 0
    largest: Annotated[
        float,
        nonnegative(
            "It is in pixels; 0 is no limit.",
            unit="pixels",
            help="Side of the largest face to redraw; 0 for no limit. Larger ones stay as enlarged.",
        ),
    ] = LARGEST
    check: Annotated[
        bool,
        Setting(help="Whether faces with specks, or unlike the photograph, stay as enlarged."),
    ] = True


@runs_with(FacesSettings)
def restore_faces(flow: FlowModel, face_flow: FlowModel, image: Tensor, settings: FacesSettings) -> Tensor:
    """Enlarge photographs, and the faces in them by a model of faces, of which samples are drawn at a temperature.

    Faces of more than ``largest`` pixels, and those that ``check`` finds worse, stay as enlarged.
    """
    tell, samples, drawn = settings.tell, settings.samples, {"seed": settings.seed, "tile": settings.tile}
    smallest, number = settings.smallest, settings.number
    eyes = find_eyes(image, smallest=smallest, number=number, cancelled=settings.cancelled, notify=tell)
    tell_of_missing(eyes, smallest, "mark the eyes in ComfyUI", tell)
    cut, places = align_faces(image, eyes, largest=settings.largest, notify=tell)
    share = 0.6 if places[0].pasted else 1.0
    large = upscale(flow, image, factor=settings.factor, **drawn, **settings.part(0.0, share))
    if not places[0].pasted:
        return large.repeat_interleave(samples, 0)
    rest = settings.part(0.6, 0.4)
    faces = upscale(face_flow, cut, temperature=settings.temperature, samples=samples, **drawn, **rest)
    return paste_faces(large, faces, places, photograph=image if settings.check else None, notify=tell)


def _most_alike(face: Tensor, pictures: Tensor, places: Sequence[FacePlace]) -> FacePlace:
    """Find the place of a picked face (1, C, S, S) by comparing it with what is there."""
    scaled = [place.scaled(*pictures.shape[-2:]) for place in places]
    there = torch.cat([cut_face(pictures[place.image][None], place, COMPARED) for place in scaled])  # (P, 3, s, s)
    differences = (luma(there) - luma(resize(face, COMPARED, COMPARED))).abs().flatten(1).mean(1)
    return places[int(differences.argmin())]


def eyes_from_meshes(
    frames: Sequence[Any], number: int = 1, *, smallest: float = 0, notify: Notify | None = None
) -> list[list[Eyes]]:
    """Read eyes from MediaPipe's face meshes of every image: of face ``number``, 1 for the largest, 0 for all.

    An image without faces has no eyes; one with fewer than ``number`` is an error.
    """
    tell = RunOptions(notify=notify).tell
    eyes: list[list[Eyes]] = []
    for frame in frames:
        try:
            meshes = [[(float(x), float(y)) for x, y, *_ in face["landmarks_xy"]] for face in frame]
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(f"Expected faces with landmarks_xy, pairs of numbers ({error}).") from error
        faces: list[tuple[list[Point], FacePlace]] = []
        for mesh in sorted(meshes, key=_extent, reverse=True):
            one, other = sorted(eyes_from_landmarks(mesh))
            place = FacePlace(left_eye=one, right_eye=other, height=1, width=1)
            if place.face >= smallest:
                faces.append((mesh, place))
        if 0 < len(faces) < number:
            one = say(
                "One face was found; face {number} was asked for. Lower the detector's confidence, or give the eyes: "
                "two points, or a mask with a dot on each."
            )
            several = say(
                "{count} faces were found; face {number} was asked for. Lower the detector's confidence, or give the "
                "eyes: two points, or a mask with a dot on each."
            )
            raise ImageError(several if len(faces) > 1 else one, count=len(faces), number=number)
        if len(faces) > 1 and number:
            tell(
                "{count} faces were found; this is number {number}, the largest is 1.", count=len(faces), number=number
            )
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


TASK = Task(
    name="faces",
    settings=FacesSettings,
    run=restore_faces,
    needs="upscale",
    node="FlowcorePasteFace",
    label="faces",
    enlarges=True,
    size=size_of_result,
    of_file=lambda flow, image, _, values: restore_faces(flow, values["face_flow"], image, **TASK.chosen(values)),
)
