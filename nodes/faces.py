"""Faces: cut them out of photographs for models of faces, and paste them back."""

import re
from typing import Annotated, Any

from flowcore import FlowError
from flowcore.errors import Argument, say
from flowcore.images.faces import FacePlace, Point, eyes_from_mask
from flowcore.images.resize import resize
from flowcore.tasks.faces import Eyes, align_faces, eyes_from_meshes, find_eyes, paste_faces, tell_of_missing

from . import widgets
from .host.compat import io
from .host.ui import gallery, sample_facts
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode
from .sockets import FLOW_FACE, Boxes, Face, Image, Landmarks, Mask, check_memory, from_mask

MARK_EYES = say(
    "click both its eyes in the picture on the node; or type {left_eye} and {right_eye}, such as `120, 88`, in pixels "
    "from the top left corner; or paint a dot on each eye (right-click Load Image, Open in MaskEditor) and connect its "
    "mask",
    left_eye=Argument("left_eye"),
    right_eye=Argument("right_eye"),
)


class FlowcoreAlignFace(FlowNode):
    """Cut out faces: those detected, or those at given pairs of eyes, which web/js/eyes.js shows and changes."""

    MENU = "repair"
    ALIASES = "align face, crop face, face crop, face detailer, face restore, portrait, eyes"
    OUTPUTS = (io.Image.Output("aligned"), FLOW_FACE.Output("place"), io.BoundingBox.Output("face_boxes"))

    def run(
        self,
        image: Image,
        size: Annotated[int, widgets.integer(0, 0, 2048)],
        left_eye: widgets.Text,
        right_eye: widgets.Text,
        eyes: Mask | None,
        landmarks: Landmarks | None,
        face: Annotated[int, widgets.integer(1, 0, 64, optional=True)],
        smallest: Annotated[int, widgets.integer(0, 0, 2048, optional=True)],
        number: Annotated[int, widgets.integer(0, 0, 64, optional=True)],
        largest: Annotated[int, widgets.integer(0, 0, 2048, optional=True)],
        boxes: Boxes | None,
    ) -> Any:
        notes, ui = self.notes, dict[str, Any]()
        eye_pairs = _typed(left_eye, right_eye)  # one pair for every image, or one for all
        sides = image.shape[-2], image.shape[-1]
        if eye_pairs is None and eyes is not None and bool((marks := from_mask(eyes, len(image), sides)).any()):
            eye_pairs = [[eyes_from_mask(each[0], *sides)] for each in marks]
        if eye_pairs is None and landmarks is not None:
            eye_pairs = eyes_from_meshes(landmarks, face, smallest=smallest, notify=notes)
        if eye_pairs is not None:
            largest = 0  # no limit for faces that were asked for
            if boxes is not None:
                notes("boxes is ignored: eyes or landmarks say which faces.")
        else:
            options = notes.task_options()
            eye_pairs = find_eyes(image, smallest=smallest, number=number, boxes=boxes, **options)
            if len(eye_pairs) == 1:
                ui["eyes"] = [[pair[side] for pair in eye_pairs[0]] for side in (0, 1)]
        tell_of_missing(eye_pairs, smallest, MARK_EYES, notes)
        if size:
            count = sum(len(eye_pairs[k % len(eye_pairs)]) for k in range(len(image)))
            check_memory(count, 3 * size * size, "faces", say("Lower size, or pass fewer images."))
        faces, places = align_faces(image, eye_pairs, size=size, largest=largest, notify=notes)
        (left_x, left_y), (right_x, right_y) = places[0].left_eye, places[0].right_eye
        text = say(
            "eyes at {left} and {right}; the face has {pixels} pixels",
            left=f"{left_x:.1f}, {left_y:.1f}",
            right=f"{right_x:.1f}, {right_y:.1f}",
            pixels=f"{places[0].face:.0f}",
        )
        if not any(eye_pairs):
            text = say("no face: the picture stays as it is")
        elif len({place.left_eye for place in places}) > 1:
            sides = sorted(place.face for place in places)
            text = say(
                "{count} faces of {smallest} to {largest} pixels",
                count=len(places),
                smallest=f"{sides[0]:.0f}",
                largest=f"{sides[-1]:.0f}",
            )
        boxed = places if any(eye_pairs) else ()
        face_boxes = [[_as_box(place) for place in boxed if place.image == k] for k in range(len(image))]
        return self.output(faces, places, face_boxes, text=[text], **ui)


class FlowcorePasteFace(PickingNode):
    """Paste faces back into their pictures."""

    MENU = "repair"
    IS_OUTPUT_NODE = False  # unlike other nodes that show pictures, as ever
    ALIASES = "paste face, put face back, blend face, composite face, face restore, uncrop"
    OUTPUTS = (io.Image.Output("pasted"),)

    def run(
        self,
        image: Image,
        face: Image,
        place: Face,
        feather: Annotated[float, widgets.slider(0.15, 0.0, 0.5, optional=True, advanced=True)],
        enlarge: widgets.Switch,
        photograph: Image | None,
        pick: widgets.Pick,
    ) -> Any:
        if enlarge:
            factor = face.shape[-1] / max(one.side for one in place)
            image = resize(image, *(max(side, round(side * factor)) for side in image.shape[-2:])).clamp(0, 1)
        advice = say("Pass fewer faces, or a smaller picture.")
        check_memory(len(face), 3 * image.shape[-1] * image.shape[-2], "pictures", advice)
        pictures = paste_faces(image, face, place, feather=feather, photograph=photograph, notify=self.notes)
        per_image = len(pictures) // place[0].images
        seeds = PROVENANCE_LOG.seeds(face[:per_image])  # seeds of the samples of the first face
        known = len(seeds) == per_image and None not in seeds  # the faces come from a run that is remembered
        facts = sample_facts([seeds[k % per_image] if known else None for k in range(len(pictures))], per_image)
        return self.output(pictures, **gallery(self, pictures, facts, image if photograph is None else photograph))


def _as_box(place: FacePlace) -> dict[str, Any]:
    """Make a BOUNDING_BOX of the host, as its detectors do."""
    left, top, right, bottom = place.box
    return {"x": left, "y": top, "width": right - left, "height": bottom - top, "label": "face"}


def _typed(left: str, right: str) -> list[list[Eyes]] | None:
    """Read the eyes that were typed or clicked; None if there are none."""
    if not left.strip() and not right.strip():
        return None
    left_eyes, right_eyes = _points(left, "left_eye"), _points(right, "right_eye")
    if len(left_eyes) != len(right_eyes):
        raise FlowError(
            "Every face needs two eyes; {left_eye} has {left} and {right_eye} has {right}. Mark both eyes of each "
            "face.",
            left_eye=Argument("left_eye"),
            right_eye=Argument("right_eye"),
            left=len(left_eyes),
            right=len(right_eyes),
        )
    return [list(zip(left_eyes, right_eyes, strict=True))]


def _points(text: str, name: str) -> list[Point]:
    words = re.split(r"[(),;\s]+", text.strip("(),; \n\t"))
    if len(words) % 2 or not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{0,9})?", word) for word in words):
        raise FlowError(
            "{name} must be a point `x, y` in pixels from the picture's top left corner, such as `120, 88`, or one for "
            "each face, such as `120, 88; 240, 90`; got `{text}`. Give both eyes.",
            name=Argument(name),
            text=text[:60],
        )
    numbers = [float(word) for word in words]
    return list(zip(numbers[::2], numbers[1::2], strict=True))
