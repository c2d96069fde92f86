"""The values that nodes pass to each other, the annotations that declare such inputs, and checks of what arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from flowcore import ColorMemory, FlowError, FlowModel, Hints, ImageError
from flowcore.device import free_memory
from flowcore.engine.image_batch import check_proportions
from flowcore.errors import Message, say
from flowcore.flows.model import Task
from flowcore.images.damage import MIN_SIDE
from flowcore.images.faces import FacePlace
from flowcore.models import catalog
from flowcore.models.identity import fingerprint, model_fingerprint, model_sha256
from flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED, describe_damage

from .host.compat import io
from .host.memory import load_to_device, to_host_image

MAX_SHOWN = 80  # characters of a value in an error message
COPIES = 3  # copies of a result when a node ends: the result, its latents, and the host's image
TASKS = "flowcore_tasks"  # key in an input's options, for web/js/models.js: the tasks its model may be made for
COUNTED = {"pictures": say("{count} pictures"), "faces": say("{count} faces"), "frames": say("{count} frames")}
BY_PICTURE = "by picture"  # one of these tasks: the input also takes a `ModelByPicture`


@dataclass(frozen=True, eq=False)
class HostModel:
    """A flow that the host moves between devices (see `host.memory.wrap`), and its name in the loader."""

    patcher: Any
    name: str

    def __post_init__(self) -> None:
        LOADED[id(self)] = self

    @property
    def flow(self) -> FlowModel:
        """The flow, on whatever device the host keeps it now."""
        return self.patcher.model

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the bijection, to which latents and recipes belong; a second per few hundred megabytes."""
        return model_sha256(self.flow)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of everything in it, of which `sha256` leaves out what the latents do not depend on."""
        return model_fingerprint(self.flow, self.sha256)

    def load(self, working_memory: int) -> FlowModel:
        """Load the flow onto its device, with this many free bytes to work in, and return it."""
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
            theirs, ours = _name_both((latents.model_name, latents.model_sha256), (self.name, self.sha256))
            raise FlowError(
                "These latents were made with {theirs}, but the connected model is {ours}. Load the model that they "
                "were made with.",
                theirs=theirs,
                ours=ours,
            )


LOADED: WeakValueDictionary[int, HostModel] = WeakValueDictionary()
"""All models, as long as the host keeps them."""


def find_loaded(known: str) -> HostModel | None:
    """Find a model that is still loaded by its `fingerprint` or `sha256`, whichever loader it came from."""
    models = (found() for found in LOADED.valuerefs())  # a list, to which another thread may add
    return next((model for model in models if model and known in (model.fingerprint, model.sha256)), None)


class SuitedImages(NamedTuple):
    """Images of a batch that one model suits: their places, and a sentence that says why."""

    model: HostModel
    places: list[int]
    reason: str


@dataclass(frozen=True, eq=False)
class ModelByPicture:
    """The upscaler that suits the picture: `load` loads either of two shipped ones by name, once."""

    load: Callable[[str], HostModel]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([catalog.path(name) for name in (FOR_CLEAN, FOR_DAMAGED)])

    def divide(self, images: Tensor, *, as_clip: bool = False) -> list[SuitedImages]:
        """Divide images (B, C, h, w) among the models; the frames of a clip all go to one model."""
        damages: dict[str, dict[int, str]] = {}  # damages of the images, by model and place
        for place, image in enumerate([images] if as_clip else images.split(1)):
            damage = describe_damage(image)
            damages.setdefault(FOR_DAMAGED if damage else FOR_CLEAN, {})[place] = damage
        result: list[SuitedImages] = []
        for name, by_place in damages.items():
            places = [*range(len(images))] if as_clip else [*by_place]
            reason = say("{model}: too small to measure JPEG blocks or noise", model=name)
            if min(images.shape[-2:]) >= MIN_SIDE:
                reason = _reason(name, by_place, len(images), as_clip=as_clip)
            result.append(SuitedImages(self.load(name), places, reason))
        return result


def _reason(model: str, damages: dict[int, str], count: int, *, as_clip: bool) -> Message:
    """Say why a model suits images, some of `count`: their damages by place, "" for none."""
    if as_clip:
        clean = say("{model}: no JPEG blocks and no noise in this clip")
        damaged = say("{model}: this clip has {damage}")
    elif count == 1:
        clean = say("{model}: no JPEG blocks and no noise in this picture")
        damaged = say("{model}: this picture has {damage}")
    elif len(damages) == count:
        clean = say("{model}: no JPEG blocks and no noise in any of {count} images")
        damaged = say("{model}: all {count} images have {damage}")
    elif len(damages) == 1:
        clean = say("{model}: no JPEG blocks and no noise in image {number}")
        damaged = say("{model}: image {number} has {damage}")
    else:
        clean = say("{model}: no JPEG blocks and no noise in images {numbers}")
        damaged = say("{model}: images {numbers} have {damage}")
    numbers, kinds = ", ".join(str(place + 1) for place in damages), [*filter(None, dict.fromkeys(damages.values()))]
    return say(damaged if kinds else clean, model=model, count=count, number=numbers, numbers=numbers, damage=kinds)


@dataclass(frozen=True, eq=False, kw_only=True)
class Latents:
    """Latents on a wire, with everything that decoding needs. Nodes make new ones and never write into these."""

    levels: list[Tensor]  # finest first, each (B, C, H, W), float32, on the CPU
    model_sha256: str  # fingerprint of the model that made them
    model_name: str  # name for messages
    architecture: str  # such as "glow"
    labels: Tensor | None = None  # what each item shows, integers (B,); None if the model has none, or they were lost
    source: Tensor | None = None  # the LR image of an upscaling model, (1 or B, 3, h, w), on the CPU; else None

    @property
    def items(self) -> int:
        return self.levels[0].shape[0]

    def select(self, items: slice) -> Latents:
        """Return copies of some of the items."""
        source = self.source
        return replace(
            self,
            levels=[level[items].clone() for level in self.levels],
            labels=None if self.labels is None else self.labels[items],
            source=source if source is None or len(source) == 1 else source[items],
        )

    def check_same_model(self, other: Latents) -> None:
        """Raise a FlowError that names both models if two latents belong to different models."""
        if self.model_sha256 != other.model_sha256:
            one, two = _name_both((self.model_name, self.model_sha256), (other.model_name, other.model_sha256))
            raise FlowError(
                "Latents of different models cannot be combined: these were made with {one}, those with {other}. Make "
                "both with the same model.",
                one=one,
                other=two,
            )


def _name_both(one: tuple[str, str], other: tuple[str, str]) -> list[str]:
    """Name two models, with their fingerprints if the names are the same."""
    return [name if one[0] != other[0] else f"{name} (sha {sha[:12]})" for name, sha in (one, other)]


# Annotations of inputs; `| None` makes one optional.

FLOW_MODEL, FLOW_LATENTS = io.Custom("FLOW_MODEL"), io.Custom("FLOW_LATENTS")
FLOW_HINTS, FLOW_MEMORY = io.Custom("FLOW_HINTS"), io.Custom("FLOW_MEMORY")
FLOW_FACE = io.Custom("FLOW_FACE")  # a tuple of FacePlace, one per face

Image = Annotated[Tensor, io.Image.Input]  # (B, C, H, W), float32
Clip = Annotated[Tensor, partial(io.MultiType.Input, types=[io.Image, io.Video])]  # its frames, in the same form
Mask = Annotated[Tensor, io.Mask.Input]  # the host's mask; see `from_mask`
Face = Annotated[tuple[FacePlace, ...], FLOW_FACE.Input]
Landmarks = Annotated[list[Any], io.Custom("FACE_LANDMARKS").Input]  # landmarks of the host's face detector, since 0.30
Boxes = Annotated[list[Any], partial(io.BoundingBox.Input, force_input=True)]  # see `_boxes`
WIRES: dict[Any, Any] = {Latents: FLOW_LATENTS, Hints: FLOW_HINTS, ColorMemory: FLOW_MEMORY}  # other classes


def _model(*tasks: Task | Literal["by picture"]) -> Callable[[str], Any]:
    """Describe a model made for one of these tasks; on the canvas, a loader offers no others to this input."""
    return partial(FLOW_MODEL.Input, extra_dict={TASKS: list(tasks)})


SampleModel = Annotated[HostModel, _model("sample")]
UpscaleModel = Annotated[HostModel, _model("upscale", BY_PICTURE)]  # `PickingNode` replaces a `ModelByPicture`
HarmonizeModel = Annotated[HostModel, _model("upscale")]
AnyUpscaleModel = Annotated[HostModel | ModelByPicture, _model("upscale", BY_PICTURE)]
ColorizeModel = Annotated[HostModel, _model("colorize")]
BrightenModel = Annotated[HostModel, _model("brighten")]
RescaleModel = Annotated[HostModel, _model("rescale")]
PhotoModel = Annotated[HostModel | ModelByPicture, _model("upscale", "colorize", BY_PICTURE)]
TracedModel = Annotated[HostModel | ModelByPicture, _model("upscale", "colorize", "sample", "rescale", BY_PICTURE)]
EncodingModel = Annotated[HostModel, _model("sample", "upscale", "rescale")]


def to_image(pixels: Tensor) -> Tensor:
    """Convert (B, C, H, W) in [0, 1] to an IMAGE of the host; gray images get three channels, as other nodes expect."""
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1)
    return to_host_image(pixels.permute(0, 2, 3, 1)).contiguous()


def from_mask(mask: Tensor, items: int, size: tuple[int, int]) -> Tensor:
    """Convert a MASK of the host, (B, H, W) or (H, W), to (1 or items, 1, H, W) float32 in [0, 1] on the CPU.

    `size` is the height and width of its images, whose proportions it must have; see `check_proportions`.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or mask.shape[0] not in (1, items) or 0 in mask.shape:
        raise ImageError(
            "expected a MASK of shape (1 or {count}, height, width); got {shape}. Connect one mask, or one per image.",
            count=items,
            shape=tuple(mask.shape),
        )
    if not bool(mask.isfinite().all()):
        raise ImageError("The mask contains values that are not finite numbers. Check the node or file it comes from.")
    check_proportions(mask[:, None], *size)
    return mask[:, None].to("cpu", torch.float32).clamp(0, 1)


def check_memory(count: int, values: int, what: str, advice: str) -> None:
    """Raise a FlowError if `count` things, such as "pictures", of this many values each do not fit into main memory."""
    required, free = COPIES * 4 * count * values, free_memory("cpu")
    if free is not None and required > free:
        raise FlowError(
            "{results} need {needed} GB of memory, but only {free} GB is free. {advice}",
            results=say(COUNTED[what], count=count),
            needed=f"{required / 1e9:.1f}",
            free=f"{free / 1e9:.1f}",
            advice=advice,
        )


def held_bytes(value: Any) -> int:
    """Sum the bytes that the tensors in a value keep in memory: in sequences, mappings, dataclasses and modules."""
    storages: dict[int, int] = {}
    waiting = [value]
    while waiting:
        match waiting.pop():
            case Tensor() as tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            case list() | tuple() as items:
                waiting += items
            case dict() as named:
                waiting += named.values()
            case torch.nn.Module() as module:
                waiting += module.state_dict().values()
            case other if is_dataclass(other):
                waiting += [getattr(other, part.name) for part in fields(other)]
            case _:
                pass
    return sum(storages.values())


def shown(value: Any) -> str:
    """Format any value for an error message, short and printable."""
    if isinstance(value, str):
        return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r} and so on"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a very large number"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _expect(is_valid: Callable[[Any], Any], expected: str, advice: str = "Connect that node.") -> Any:
    """Return a function for `SOCKETS` that refuses values that are not valid."""

    def check(value: Any, _: str) -> Any:
        if not is_valid(value):
            raise FlowError(f"Expected {expected}; got {type(value).__name__}. {advice}")
        return value

    return check


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ImageError(f"{name} must be an image; got {shown(value)}. Connect a node that outputs one.")
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
    """Convert a BOUNDING_BOX, a list of them for all images, or a list per image, to left, top, right and bottom."""
    boxes = [value] if isinstance(value, dict) else value
    try:
        lists = boxes if boxes and not isinstance(boxes[0], dict) else [boxes]
        sides = [[[float(box[side]) for side in ("x", "y", "width", "height")] for box in each] for each in lists]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FlowError(
            f"{name} must be bounding boxes of x, y, width and height; got {shown(value)}. Connect a node that finds "
            "or draws boxes."
        ) from None
    return [[(x, y, x + width, y + height) for x, y, width, height in each] for each in sides]


SOCKETS: dict[str, Callable[[Any, str], Any]] = {
    "IMAGE": _image,
    "IMAGE,VIDEO": _image,  # `ClipNode` has replaced a video by its frames
    "MASK": _tensor,
    "FLOW_MODEL": _expect(lambda value: isinstance(value, HostModel | ModelByPicture), "a model of Load Flow Model"),
    "FLOW_LATENTS": _expect(
        lambda value: isinstance(value, Latents),
        "latents of a flow, such as those of Flow Sample or Flow Encode",
        "Connect one of those nodes.",
    ),
    "FLOW_HINTS": _expect(lambda value: isinstance(value, Hints), "hints of Flow Color Hints"),
    "FLOW_MEMORY": _expect(lambda value: isinstance(value, ColorMemory), "a memory of Flow Color Memory"),
    "FLOW_FACE": _expect(
        lambda value: isinstance(value, tuple) and bool(value) and all(isinstance(one, FacePlace) for one in value),
        "the place of Flow Align Face",
    ),
    "FACE_LANDMARKS": _landmarks,
    "BOUNDING_BOX": _boxes,
}
"""By socket type, a function of a value and its input's name that returns what `run` gets, or raises a FlowError."""
