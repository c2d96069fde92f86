"""Faces: cut out of photographs, upright, for the models of faces, and pasted back."""

import re
from typing import Annotated, Any

from ..flowcore import FlowError, ImageError
from ..flowcore.images.faces import FacePlace, Point, eyes_from_mask
from ..flowcore.images.resize import resize
from ..flowcore.tasks.faces import Eyes, align_faces, eyes_from_meshes, found_eyes, paste_faces
from . import widgets
from .host.compat import io
from .host.ui import gallery, of_image
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode
from .sockets import FLOW_FACE, Boxes, Face, Image, Landmarks, Mask, check_memory, from_mask

NO_FACE = (
    "No face was found{}. Lower smallest; or click both eyes of every face in the picture on the node; or type left_eye"
    " and right_eye, such as `120, 88`, in pixels from the top left corner; or paint a dot on each (right-click Load "
    "Image, Open in MaskEditor) and connect its mask."
)


class FlowcoreAlignFace(FlowNode):
    """The faces that are found, or those at pairs of eye points; web/js/eyes.js shows and changes them."""

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
        notes, shown = self.notes, dict[str, Any]()
        found = _typed(left_eye, right_eye)
        if found is None and eyes is not None and bool((marks := from_mask(eyes, len(image))).any()):
            found = [[eyes_from_mask(each[0], *image.shape[-2:])] for each in marks]
        if found is None and landmarks is not None:
            found = eyes_from_meshes(landmarks, face, smallest=smallest, notify=notes)
        if found is not None:
            largest = 0  # these were asked for
            if boxes is not None:
                notes("boxes is ignored: eyes or landmarks say which faces.")
        else:
            found = found_eyes(image, smallest=smallest, number=number, boxes=boxes, **notes.follow())
            if not any(found):
                raise ImageError(NO_FACE.format("" if boxes is None else " in the boxes"))
            if len(found) == 1:
                shown["eyes"] = [list(side) for side in zip(*found[0], strict=True)]
        if size:
            count = sum(len(found[k % len(found)]) for k in range(len(image)))
            check_memory(count, 3 * size * size, "faces need", "Lower size, or pass fewer images.")
        faces, places = align_faces(image, found, size=size, largest=largest, notify=notes)
        (x, y), (u, v) = places[0].left_eye, places[0].right_eye
        text = f"eyes at {x:.1f}, {y:.1f} and {u:.1f}, {v:.1f}; the face has {places[0].face:.0f} pixels"
        if len({place.left_eye for place in places}) > 1:
            sides = sorted(place.face for place in places)
            text = f"{len(places)} faces of {sides[0]:.0f} to {sides[-1]:.0f} pixels"
        found_boxes = [[_as_box(place) for place in places if place.image == k] for k in range(len(image))]
        return self.output(faces, places, found_boxes, text=[text], **shown)


class FlowcorePasteFace(PickingNode):
    """Faces back in their pictures."""

    IS_OUTPUT_NODE = False  # it runs only where its pictures go on, as it always did

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
        advice = "Pass fewer faces, or a smaller picture."
        check_memory(len(face), 3 * image.shape[-1] * image.shape[-2], "pictures need", advice)
        pictures = paste_faces(image, face, place, feather=feather, photograph=photograph, notify=self.notes)
        count, each = len(pictures), len(pictures) // place[0].images
        seeds = PROVENANCE_LOG.seeds(face[:each])  # of the samples of the first face
        known = len(seeds) == each and None not in seeds
        facts = [{"seed": seeds[k % each], **of_image(k, each, count)} if known else {"image": k} for k in range(count)]
        return self.output(pictures, **gallery(self, pictures, facts, image if photograph is None else photograph))


def _as_box(place: FacePlace) -> dict[str, Any]:
    """Make a BOUNDING_BOX of the host, as its detectors do."""
    left, top, right, bottom = place.box
    return {"x": left, "y": top, "width": right - left, "height": bottom - top, "label": "face"}


def _typed(left: str, right: str) -> list[list[Eyes]] | None:
    """Read the eyes that were typed or clicked; None if none were."""
    if not left.strip() and not right.strip():
        return None
    ones, others = _points(left, "left_eye"), _points(right, "right_eye")
    if len(ones) != len(others):
        raise FlowError(
            f"Every face has two eyes; left_eye has {len(ones)}, and right_eye {len(others)}. Mark the other, too."
        )
    return [list(zip(ones, others, strict=True))]


def _points(text: str, name: str) -> list[Point]:
    words = re.split(r"[(),;\s]+", text.strip("(),; \n\t"))
    if len(words) % 2 or not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{0,9})?", word) for word in words):
        raise FlowError(
            f"{name} must be a point `x, y` in pixels from the picture's top left corner, such as `120, 88`, or one of "
            f"every face, such as `120, 88; 240, 90`; got `{text[:60]}`. Give both eyes."
        )
    numbers = [float(word) for word in words]
    return list(zip(numbers[::2], numbers[1::2], strict=True))
