"""What travels along wires, also as annotations of inputs: values of ours, and the host's IMAGE, VIDEO and MASK."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..flowcore import ColorMemory, FlowError, FlowModel, Hints, ImageError
from ..flowcore.checkpoints.latents_file import model_sha256
from ..flowcore.device import free_memory
from ..flowcore.images.faces import FacePlace
from ..flowcore.model import Task
from ..flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED, describe_damage
from .host.compat import io
from .host.memory import load_to_device, to_host_image

MAX_SHOWN = 80  # characters of a value in an error message
COPIES = 3  # of a result while a node ends: the result, its latents, and the host's image
TASKS = "flowcore_tasks"  # of an input, for web/js/models.js
BY_PICTURE = "by picture"  # among these tasks: the input also takes a `ModelByPicture`


@dataclass(frozen=True, eq=False)
class HostModel:
    """A flow in the care of the host, see `host.memory.wrap`, and its name in the loader."""

    patcher: Any
    name: str

    @property
    def flow(self) -> FlowModel:
        """The flow, on the device where the host keeps it now."""
        return self.patcher.model

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the parameters; takes a second per few hundred megabytes, once."""
        sha256 = model_sha256(self.flow)
        LOADED[sha256] = self
        return sha256

    def load(self, working_memory: int) -> FlowModel:
        """Load the flow onto its device, with so many bytes to work, and return it."""
        load_to_device(self.patcher, working_memory)
        return self.flow

    def latents(self, levels: list[Tensor], *, labels: Tensor | None = None, source: Tensor | None = None) -> Latents:
        """Put latents of the flow on a wire; see `Latents` for the arguments."""
        return Latents(
            levels=[z.to("cpu", torch.float32) for z in levels],
            model_sha256=self.sha256,
            model_name=self.name,
            architecture=self.flow.architecture,
            labels=labels,
            source=None if source is None else source.cpu(),
        )

    def check_latents(self, latents: Latents) -> None:
        """Raise a FlowError that names both models if latents were made with another model."""
        if latents.model_sha256 != self.sha256:
            theirs, ours = _distinct((latents.model_name, latents.model_sha256), (self.name, self.sha256))
            raise FlowError(
                f"These latents were made with {theirs}, the model given is {ours}. Load the model that they were made "
                "with."
            )


LOADED: WeakValueDictionary[str, HostModel] = WeakValueDictionary()
"""The models that have made or met latents, by fingerprint, as long as the host keeps them."""


@dataclass(frozen=True, eq=False)
class ModelByPicture:
    """The upscaler that suits the picture: of two shipped ones, each of which `load` loads once, by its name."""

    load: Callable[[str], HostModel]

    def parts(self, images: Tensor, *, as_clip: bool = False) -> list[tuple[HostModel, list[int], str]]:
        """Divide images (B, C, h, w) among the models: of each the places of its images, and why it suits them.

        The frames of a clip take one model.
        """
        chosen: dict[str, dict[int, str]] = {}  # model to the places of its images, and their damage
        for place, image in enumerate([images] if as_clip else images.split(1)):
            damage = describe_damage(image)
            chosen.setdefault(FOR_DAMAGED if damage else FOR_CLEAN, {})[place] = damage
        parts: list[tuple[HostModel, list[int], str]] = []
        for name, found in chosen.items():
            which = "this clip" if as_clip else "this picture" if len(images) == 1 else f"image {next(iter(found))}"
            if several := len(found) > 1:
                all_of_them = len(found) == len(images)
                which = f"all {len(found)} images" if all_of_them else f"images {', '.join(map(str, found))}"
            damages = ", ".join(dict.fromkeys(found.values()))
            what = f"{'have' if several else 'has'} {damages}" if damages else f"{'are' if several else 'is'} clean"
            places = [*range(len(images))] if as_clip else [*found]
            parts.append((self.load(name), places, f"{name}: {which} {what}"))
        return parts


@dataclass(frozen=True, eq=False, kw_only=True)
class Latents:
    """Latents on a wire, with all that decoding needs. Nodes make new ones and never write into these."""

    levels: list[Tensor]  # finest first, each (B, C, H, W), float32, on the CPU
    model_sha256: str  # fingerprint of the model that they belong to
    model_name: str  # of that model, for messages
    architecture: str  # of that model, such as "glow"
    labels: Tensor | None = None  # what each item shows, integers (B,); None if the model has none, or they were lost
    source: Tensor | None = None  # of an upscaling model: the LR image (1 or B, 3, h, w), on the CPU; None likewise

    @property
    def items(self) -> int:
        return self.levels[0].shape[0]

    def part(self, part: slice) -> Latents:
        """Return copies of some of the items."""
        source = self.source
        return replace(
            self,
            levels=[level[part].clone() for level in self.levels],
            labels=None if self.labels is None else self.labels[part],
            source=source if source is None or len(source) == 1 else source[part],
        )

    def check_same_model(self, other: Latents) -> None:
        """Raise a FlowError that names both models if two latents belong to different models."""
        if self.model_sha256 != other.model_sha256:
            one, two = _distinct((self.model_name, self.model_sha256), (other.model_name, other.model_sha256))
            raise FlowError(
                f"Latents of different models do not go together: these were made with {one}, those with {two}. Make "
                "both with the same model."
            )


def _distinct(one: tuple[str, str], other: tuple[str, str]) -> list[str]:
    """Name two models; with their fingerprints if the names are the same."""
    return [name if one[0] != other[0] else f"{name} (sha {sha[:12]})" for name, sha in (one, other)]


# Annotations of inputs; `| None` makes one optional.

FLOW_MODEL, FLOW_LATENTS = io.Custom("FLOW_MODEL"), io.Custom("FLOW_LATENTS")
FLOW_HINTS, FLOW_MEMORY = io.Custom("FLOW_HINTS"), io.Custom("FLOW_MEMORY")
FLOW_FACE = io.Custom("FLOW_FACE")  # a tuple of FacePlace, one for every face

Image = Annotated[Tensor, io.Image.Input]  # (B, C, H, W), float32
Clip = Annotated[Tensor, partial(io.MultiType.Input, types=[io.Image, io.Video])]  # its frames, likewise
Mask = Annotated[Tensor, io.Mask.Input]  # as the host has it; see `from_mask`
Face = Annotated[tuple[FacePlace, ...], FLOW_FACE.Input]
Landmarks = Annotated[list[Any], io.Custom("FACE_LANDMARKS").Input]  # of the host's face detector, since 0.30
Boxes = Annotated[list[Any], partial(io.BoundingBox.Input, force_input=True)]  # see `_boxes`
WIRES: dict[Any, Any] = {Latents: FLOW_LATENTS, Hints: FLOW_HINTS, ColorMemory: FLOW_MEMORY}  # other classes


def _model(*tasks: Task | Literal["by picture"]) -> Callable[[str], Any]:
    """Describe a model that is made for one of some tasks: in the canvas, a loader offers no other to this input."""
    return partial(FLOW_MODEL.Input, extra_dict={TASKS: list(tasks)})


SampleModel = Annotated[HostModel, _model("sample")]
UpscaleModel = Annotated[HostModel, _model("upscale", BY_PICTURE)]  # as a `PickingNode` has resolved it
HarmonizeModel = Annotated[HostModel, _model("upscale")]
AnyUpscaleModel = Annotated[HostModel | ModelByPicture, _model("upscale", BY_PICTURE)]
ColorizeModel = Annotated[HostModel, _model("colorize")]
BrightenModel = Annotated[HostModel, _model("brighten")]
RescaleModel = Annotated[HostModel, _model("rescale")]
PhotoModel = Annotated[HostModel | ModelByPicture, _model("upscale", "colorize", BY_PICTURE)]
EncodingModel = Annotated[HostModel, _model("sample", "upscale", "rescale")]


def to_image(pixels: Tensor) -> Tensor:
    """Convert (B, C, H, W) in [0, 1] to an IMAGE of the host; gray images get three channels, as other nodes expect."""
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1)
    return to_host_image(pixels.permute(0, 2, 3, 1)).contiguous()


def from_mask(mask: Tensor, items: int) -> Tensor:
    """Convert a MASK of the host, (B, H, W) or (H, W), to (1 or items, 1, H, W) float32 in [0, 1] on the CPU."""
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or mask.shape[0] not in (1, items) or 0 in mask.shape:
        raise ImageError(
            f"expected a MASK of shape (1 or {items}, height, width); got {tuple(mask.shape)}. Connect one mask, or as "
            "many as there are images."
        )
    if not bool(mask.isfinite().all()):
        raise ImageError("The mask holds values that are not finite numbers. Check the node or file it comes from.")
    return mask[:, None].to("cpu", torch.float32).clamp(0, 1)


def check_memory(count: int, values: int, what: str, advice: str) -> None:
    """Refuse a count of things, such as "pictures need", of so many values each, that do not fit into main memory."""
    required, free = COPIES * 4 * count * values, free_memory("cpu")
    if free is not None and required > free:
        raise FlowError(f"{count} {what} {required / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. {advice}")


def shown(value: Any) -> str:
    """Format any value for an error message: short, and printable everywhere."""
    if isinstance(value, str):
        return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r} and so on"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a very large number"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _expect(is_valid: Callable[[Any], bool], expected: str, advice: str = "Connect that node.") -> Any:
    def check(value: Any, _: str) -> Any:
        if not is_valid(value):
            raise FlowError(f"Expected {expected}; got {type(value).__name__}. {advice}")
        return value

    return check


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ImageError(f"{name} must be an image; got {shown(value)}. Connect a node that makes one.")
    return value


def _image(value: Any, name: str) -> Tensor:
    """Convert an IMAGE of the host, (B, H, W, C) in any dtype, to (B, C, H, W) float32 on the same device."""
    image = _tensor(value, name)
    if image.ndim != 4:
        raise ImageError(
            f"expected an IMAGE of shape (batch, height, width, channels); got {tuple(image.shape)}. "
            "For a video, pass its frames as a batch."
        )
    return image.to(torch.float32).permute(0, 3, 1, 2).contiguous()


def _landmarks(value: Any, name: str) -> list[Any]:
    frames = value.get("frames") if isinstance(value, dict) else None
    if not isinstance(frames, list):
        raise FlowError(f"{name} must come from Detect Face Landmarks; got {type(value).__name__}. Connect that node.")
    return frames


def _boxes(value: Any, name: str) -> list[list[tuple[float, float, float, float]]]:
    """Convert a BOUNDING_BOX, a list of them for all images, or one for each, to left, top, right and bottom."""
    several = [value] if isinstance(value, dict) else value
    try:
        lists = several if several and not isinstance(several[0], dict) else [several]
        sides = [[[float(box[side]) for side in ("x", "y", "width", "height")] for box in boxes] for boxes in lists]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FlowError(
            f"{name} must be bounding boxes of x, y, width and height; got {shown(value)}. Connect a node that finds "
            "or draws boxes."
        ) from None
    return [[(x, y, x + width, y + height) for x, y, width, height in boxes] for boxes in sides]


def _is_places(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(one, FacePlace) for one in value)


SOCKETS: dict[str, Callable[[Any, str], Any]] = {
    "IMAGE": _image,
    "IMAGE,VIDEO": _image,  # whose frames `ClipNode` has taken
    "MASK": _tensor,
    "FLOW_MODEL": _expect(lambda value: isinstance(value, HostModel | ModelByPicture), "a model of Load Flow Model"),
    "FLOW_LATENTS": _expect(
        lambda value: isinstance(value, Latents),
        "latents of a flow, as Flow Sample and Flow Encode make them",
        "Connect one of those.",
    ),
    "FLOW_HINTS": _expect(lambda value: isinstance(value, Hints), "hints of Flow Color Hints"),
    "FLOW_MEMORY": _expect(lambda value: isinstance(value, ColorMemory), "a memory of Flow Color Memory"),
    "FLOW_FACE": _expect(_is_places, "the place of Flow Align Face"),
    "FACE_LANDMARKS": _landmarks,
    "BOUNDING_BOX": _boxes,
}
"""Socket type to what takes a value and the name of the input, and returns what `run` gets, or raises a FlowError."""
