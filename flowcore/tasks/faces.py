"""Faces out of pictures, upright and of one size, and back into them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import ImageError, ShapeError
from ..flow import Flow
from ..images.color import luma
from ..images.faces import (
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
from .face_finder import SMALLEST, find_faces
from .intake import validate_image, with_alpha
from .runner import Reporting, Running, part_of_run, runs_with
from .upscale import upscale

Eyes = tuple[Point, Point]
Notify = Callable[[str], None]

LEANING = 45  # degrees beyond which a note asks whether the points are eyes, and faces are always turned
COMPARED = 16  # side at which a picked face is compared with the faces of a picture
WHOLE = 0.995  # of a face inside the picture; less is noted


def align_faces(
    image: Tensor, eyes: Sequence[Sequence[Eyes]], *, size: int = 0, notify: Notify | None = None
) -> tuple[Tensor, tuple[FacePlace, ...]]:
    """Cut the faces at pairs of eye points out of every image; see ``images.faces``.

    ``eyes`` are the irises of every image's faces; or those of one image, for all. ``size`` is the side of the results,
    0 for as many pixels as the largest face has: then faces are windows of the images' own pixels, which models enlarge
    far better than resampled ones; only those that lie are turned. ``notify`` is told what is not as the faces that
    models learn from. ``(N, 3, size, size)`` in [0, 1], all of image 0, then of image 1; and where each was.
    """
    pixels, _ = validate_image(image)
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
    of = [pixels[place.image][None] for place in places]
    if notify is not None:
        for sentence in _oddities(of, places):
            notify(sentence)
    if not size:
        size = max(1, math.ceil(max(place.face for place in places) - 0.01))
        places = [place.along_pixels(size) if abs(place.roll) <= LEANING else place for place in places]
    faces = [cut_face(picture, place, size) for picture, place in zip(of, places, strict=True)]
    return torch.cat(faces), tuple(places)


def _oddities(pictures: Sequence[Tensor], places: Sequence[FacePlace]) -> Iterator[str]:
    """Say what is not as faces are, once each."""
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
    image: Tensor, *, smallest: float = 0, number: int = 0, **options: Unpack[Reporting]
) -> list[list[Eyes]]:
    """Find faces, see ``find_faces``, and return the eyes of every image's: at most a number, the largest; 0 for all.

    ``smallest`` is the side in pixels of the smallest face that counts, hair included.
    """
    boxes = max(SMALLEST, smallest / 2)  # a box has three fifths of the side, more or less
    return [
        [face.eyes for face in faces if math.dist(*face.eyes) / (RIGHT - LEFT) >= smallest][: number or None]
        for faces in find_faces(image, smallest=boxes, **options)
    ]


def paste_faces(image: Tensor, faces: Tensor, places: Sequence[FacePlace], *, feather: float = 0.15) -> Tensor:
    """Paste faces where they were cut out, all of a picture's into it: all samples of picture 0, then of picture 1.

    ``image`` are the pictures that they were cut out of, ``(B, C, H, W)``, or those enlarged, or as many samples of
    each. ``faces`` are ``(N, C, S, S)``: all samples of face 0, then of face 1; if N is no multiple of the places, some
    were picked, and each goes where the picture looks most like it. ``feather`` is the width of the soft border, as a
    share of the face's side.
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
    for k, place in enumerate(places):
        for sample in range(count):
            at = place.image * count + sample
            face = cut[k * samples + sample * samples // count][None]
            result[at] = paste_face(result[at][None], face, place, feather=feather)[0]
    return with_alpha(result, alpha)


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
    **options: Unpack[Running],
) -> Tensor:
    """Enlarge photographs by a model at its own temperature, and the faces that are found in them by a model of faces.

    Sample s of every face is drawn with ``seed + s``, at the faces' temperature, None for their model's own; the rest
    of the picture with ``seed``. ``smallest`` and ``number`` as in ``found_eyes``; ``factor`` is the total enlargement.
    All samples of image 0, then of image 1. An image without a face is enlarged as it is, and ``notify`` is called.
    """
    notify, reporting = options.get("notify"), {name: options.get(name) for name in ("cancelled", "notify")}
    drawing: Any = {"seed": seed, "tile": tile}
    large = upscale(flow, image, factor=factor, **drawing, **part_of_run(options, 0.0, 0.6))
    eyes = found_eyes(image, smallest=smallest, number=number, **reporting)  # pyright: ignore[reportArgumentType]
    missing = sum(not one for one in eyes)
    if missing and notify is not None:
        which = "No face was found" if len(eyes) == 1 else f"No face was found in {missing} of {len(eyes)} pictures"
        notify(f"{which}: enlarged without. Lower smallest, or mark the eyes in ComfyUI.")
    if not any(eyes):
        return large.repeat_interleave(samples, 0)
    cut, places = align_faces(image, eyes, notify=notify)
    drawing |= {"temperature": temperature, "samples": samples}
    faces = upscale(face_flow, cut, **drawing, **part_of_run(options, 0.6, 0.4))
    return paste_faces(large, faces, places)


def _most_alike(face: Tensor, pictures: Tensor, places: Sequence[FacePlace]) -> FacePlace:
    """Find the place of a picked face (1, C, S, S) by comparing it with what is there."""
    scaled = [place.scaled(*pictures.shape[-2:]) for place in places]
    there = torch.cat([cut_face(pictures[place.image][None], place, COMPARED) for place in scaled])  # (P, 3, s, s)
    differences = (luma(there) - luma(resize(face, COMPARED, COMPARED))).abs().flatten(1).mean(1)
    return places[int(differences.argmin())]


def eyes_from_meshes(
    frames: Sequence[Any], number: int = 1, *, smallest: float = 0, notify: Notify | None = None
) -> list[list[Eyes]]:
    """Choose faces in every image by their size, and read their irises from their meshes.

    ``frames`` are for every image mappings with ``landmarks_xy``, the points of MediaPipe's face mesh in pixels.
    ``number`` says which face, 1 for the largest; ImageError if there is none. 0 for all; there may be none.
    ``notify`` is told of others, and of a face that is seen from the side.
    """
    eyes: list[list[Eyes]] = []
    for frame in frames:
        try:
            meshes = [[(float(x), float(y)) for x, y, *_ in face["landmarks_xy"]] for face in frame]
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(
                f"Expected faces with landmarks_xy, pairs of numbers; got another thing ({error})."
            ) from error
        faces = [(mesh, _place(mesh)) for mesh in sorted(meshes, key=_extent, reverse=True)]
        faces = [(mesh, place) for mesh, place in faces if place.face >= smallest]
        if len(faces) < number:
            found = {0: "No face was", 1: "One face was"}.get(len(faces), f"{len(faces)} faces were")
            raise ImageError(
                f"{found} found; face {number} was asked for. Lower the detector's confidence, or give the eyes: two "
                "points, or a mask with a dot on each."
            )
        if len(faces) > 1 and number and notify is not None:
            notify(f"{len(faces)} faces were found; this is number {number}, the largest is 1.")
        chosen = faces[number - 1 : number] if number else faces
        for mesh, place in chosen:
            if notify is not None and (not place.face or is_profile(mesh, place)):
                notify("The face is seen from the side. Models of faces learn from those that look at the camera.")
        eyes.append([(place.left_eye, place.right_eye) for _, place in chosen])
    return eyes


def _place(mesh: Sequence[Point]) -> FacePlace:
    one, other = sorted(eyes_from_landmarks(mesh))
    return FacePlace(left_eye=one, right_eye=other, height=1, width=1)


def _extent(mesh: Sequence[Point]) -> float:
    """Area of the box around a mesh."""
    columns, rows = zip(*mesh, strict=True)
    return (max(columns) - min(columns)) * (max(rows) - min(rows)) if mesh else 0.0
