"""Faces: cut out of photographs, upright, for the models of faces, and pasted back."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..flowcore import FlowError, ImageError
from ..flowcore.images.faces import FacePlace, Point, eyes_from_mask
from ..flowcore.images.resize import resize
from ..flowcore.tasks.faces import Eyes, align_faces, eyes_from_meshes, paste_faces
from . import widgets
from .host.compat import io
from .host.ui import Notes
from .node import FlowNode, schema
from .sockets import FACE_LANDMARKS, FLOW_FACE, check_memory, from_image, from_mask, to_image


class FlowcoreAlignFace(FlowNode):
    """The face at two eye points, upright."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreAlignFace",
            "faces",
            aliases=["align face", "crop face", "face crop", "face detailer", "portrait", "eyes", "face alignment"],
            inputs=[
                io.Image.Input("image"),
                io.Int.Input("size", default=0, min=0, max=2048),
                io.String.Input("left_eye", default="", optional=True),
                io.String.Input("right_eye", default="", optional=True),
                io.Mask.Input("eyes", optional=True),
                FACE_LANDMARKS.Input("landmarks", optional=True),
                io.Int.Input("face", default=1, min=1, max=64, optional=True),
            ],
            outputs=[io.Image.Output("aligned"), FLOW_FACE.Output("place")],
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        size: int,
        left_eye: str,
        right_eye: str,
        eyes: Tensor | None,
        landmarks: list[Any] | None,
        face: int,
    ) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        found = _eyes(pixels, left_eye, right_eye, eyes, landmarks, face, notes)
        if size:
            check_memory(len(pixels), 3 * size * size, "faces need", "Lower size, or pass fewer images.")
        faces, places = align_faces(pixels, found, size=size, notify=notes)
        (x, y), (u, v) = places[0].left_eye, places[0].right_eye
        text = f"eyes at {x:.1f}, {y:.1f} and {u:.1f}, {v:.1f}; the face has {places[0].side:.0f} pixels"
        return io.NodeOutput(to_image(faces), places, ui={"text": [text, *notes.lines]})


class FlowcorePasteFace(FlowNode):
    """A face back in its picture."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcorePasteFace",
            "faces",
            aliases=["paste face", "put face back", "blend face", "composite face", "face detailer", "uncrop"],
            inputs=[
                io.Image.Input("image"),
                io.Image.Input("face"),
                FLOW_FACE.Input("place"),
                widgets.slider("feather", 0.15, 0.0, 0.5, optional=True),
                io.Boolean.Input("enlarge", default=False, optional=True),
            ],
            outputs=[io.Image.Output("pasted")],
            reports=False,
            advanced=("feather",),
        )

    @classmethod
    def run(cls, image: Tensor, face: Tensor, place: tuple[FacePlace, ...], feather: float, enlarge: bool) -> Any:
        pixels, faces = from_image(image), from_image(face)
        if enlarge:
            factor = faces.shape[-1] / place[0].side
            pixels = resize(pixels, *(max(side, round(side * factor)) for side in pixels.shape[-2:])).clamp(0, 1)
        advice = "Pass fewer faces, or a smaller picture."
        check_memory(len(faces), 3 * pixels.shape[-1] * pixels.shape[-2], "pictures need", advice)
        return io.NodeOutput(to_image(paste_faces(pixels, faces, place, feather=feather)))


def _eyes(
    pixels: Tensor, left: str, right: str, mask: Tensor | None, frames: list[Any] | None, face: int, notes: Notes
) -> list[Eyes]:
    """Find the eyes: typed, else marked, else detected."""
    height, width = pixels.shape[-2:]
    if left.strip() or right.strip():
        return [(_point(left, "left_eye"), _point(right, "right_eye"))]
    if mask is not None and bool((marks := from_mask(mask, len(pixels))).any()):
        return [eyes_from_mask(each[0], height, width) for each in marks]
    if frames is not None:
        return eyes_from_meshes(frames, face, notify=notes)
    raise ImageError(
        "The eyes are missing. Paint a dot on each (right-click Load Image, Open in MaskEditor) and connect its mask; "
        "or type left_eye and right_eye, such as `120, 88`, in pixels from the top left corner; or connect the "
        "landmarks of Detect Face Landmarks, which newer versions of ComfyUI have."
    )


def _point(text: str, name: str) -> Point:
    found = re.fullmatch(
        r"\s*\(?\s*([0-9]{1,6}(?:\.[0-9]{0,9})?)\s*[,;\s]\s*([0-9]{1,6}(?:\.[0-9]{0,9})?)\s*\)?\s*", text
    )
    if found is None:
        raise FlowError(
            f"{name} must be a point `x, y` in pixels from the picture's top left corner, such as `120, 88`; got "
            f"`{text[:60]}`. Type both eyes."
        )
    return float(found[1]), float(found[2])
