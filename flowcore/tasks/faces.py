"""Faces out of pictures, upright and of one size, and back into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ImageError, ShapeError
from ..images.faces import FacePlace, Point, cut_face, eyes_from_landmarks, is_profile, locate_face, paste_face
from .runner import validate_image, with_alpha

Eyes = tuple[Point, Point]
Notify = Callable[[str], None]

LEANING = 45  # degrees beyond which a note asks whether the points are eyes
WHOLE = 0.995  # of a face inside the picture; less is noted


def align_faces(
    image: Tensor, eyes: Sequence[Eyes], *, size: int = 0, notify: Notify | None = None
) -> tuple[Tensor, tuple[FacePlace, ...]]:
    """Cut the face at two eye points out of every image; see ``images.faces``.

    Args:
        image: ``(B, 1, 3 or 4, H, W)`` in [0, 1]; alpha is dropped.
        eyes: The irises of every image, or of one for all.
        size: Side of the results; 0 for about as many pixels as the first face has in its image.
        notify: Called with a sentence on every face that is not as those that models learn from.

    Returns:
        ``(B, 3, size, size)`` in [0, 1], and where each was.

    Raises:
        ImageError: If an image or a point is not usable.
        ShapeError: If there are neither one pair of eyes nor one for every image.
    """
    pixels, _ = validate_image(image)
    if len(eyes) not in (1, len(pixels)):
        raise ShapeError(f"Expected the eyes of one or all of {len(pixels)} images; got those of {len(eyes)}.")
    places = tuple(locate_face(one, other, *pixels.shape[-2:]) for one, other in eyes)
    for place in places:
        if notify is not None and place.inside < WHOLE:
            notify(f"{1 - place.inside:.0%} of the face lies outside the picture, whose edge is continued there.")
        if notify is not None and abs(place.roll) > LEANING:
            notify(f"The head leans by {place.roll:.0f} degrees: check that the points are its two eyes.")
    size = size or max(1, round(places[0].side))
    faces = [cut_face(pixels[k : k + 1], places[k % len(places)], size) for k in range(len(pixels))]
    return torch.cat(faces), places


def paste_faces(image: Tensor, faces: Tensor, places: Sequence[FacePlace], *, feather: float = 0.15) -> Tensor:
    """Paste faces where they were cut out.

    Args:
        image: The pictures that they were cut out of, ``(B, 1, 3 or 4, H, W)`` in [0, 1], or those enlarged.
        faces: ``(N, 1, 3 or 4, S, S)``; N is a multiple of B: all samples of the first picture, then of the second.
        places: Of one face, or of every picture's.
        feather: Width of the soft border, as a share of the face's side.

    Returns:
        ``(N, 3, H, W)`` in [0, 1], with alpha if the pictures have it.

    Raises:
        ImageError: If an image is not usable.
        ShapeError: If numbers or proportions do not fit.
    """
    pixels, alpha = validate_image(image)
    cut, _ = validate_image(faces)
    count = len(cut)
    for number, what in ((len(pixels), "pictures"), (len(places), "places")):
        if count % number:
            raise ShapeError(
                f"Expected as many faces for each of {number} {what}; got {count} faces. Pass one picture, or the "
                "faces of all."
            )
    pasted = [
        paste_face(
            pixels[k * len(pixels) // count][None],
            cut[k : k + 1],
            places[k * len(places) // count],
            feather=feather,
        )
        for k in range(count)
    ]
    return with_alpha(torch.cat(pasted), alpha)


def eyes_from_meshes(frames: Sequence[Any], number: int = 1, *, notify: Notify | None = None) -> list[Eyes]:
    """Choose a face in every image by its size, and read its eyes from its mesh.

    Args:
        frames: For every image the faces that were found in it: mappings with ``landmarks_xy``, the points of
            MediaPipe's face mesh in pixels.
        number: Which face; 1 for the largest.
        notify: Called with a sentence if there are others, or a face is seen from the side.

    Returns:
        The irises of every image's face.

    Raises:
        ImageError: If an image has no such face.
    """
    eyes: list[Eyes] = []
    for frame in frames:
        try:
            meshes = [[(float(x), float(y)) for x, y, *_ in face["landmarks_xy"]] for face in frame]
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(
                f"Expected faces with landmarks_xy, pairs of numbers; got another thing ({error})."
            ) from error
        if len(meshes) < number:
            found = {0: "No face was", 1: "One face was"}.get(len(meshes), f"{len(meshes)} faces were")
            raise ImageError(
                f"{found} found; face {number} was asked for. Lower the detector's confidence, or give the eyes: two "
                "points, or a mask with a dot on each."
            )
        if len(meshes) > 1 and notify is not None:
            notify(f"{len(meshes)} faces were found; this is number {number}, the largest is 1.")
        mesh = sorted(meshes, key=_extent, reverse=True)[number - 1]
        one, other = eyes_from_landmarks(mesh)
        eyes.append((one, other))
        place = FacePlace(left_eye=min(one, other), right_eye=max(one, other), height=1, width=1)
        if notify is not None and (one == other or is_profile(mesh, place)):
            notify("The face is seen from the side. Models of faces learn from those that look at the camera.")
    return eyes


def _extent(mesh: Sequence[Point]) -> float:
    """Area of the box around a mesh."""
    columns, rows = zip(*mesh, strict=True)
    return (max(columns) - min(columns)) * (max(rows) - min(rows)) if mesh else 0.0
