"""Live pictures: rerun a node with other numbers while sliders are dragged on the page.

They reuse the inputs of the node's last run, and its model on whatever device that is now. Nodes of latents decode
them; nodes of one picture make it again: all of it, or a small copy if that shows what changes, or a detail at the
place in view. Nodes without a model draw it from what they have kept.
Queued runs go first, and a newer request for the same run cancels an older one.
"""

import math
import secrets
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from flowcore import FlowError
from flowcore.engine.condition_cache import RecentlyUsed
from flowcore.engine.model_input import condition_for, source_for_latents
from flowcore.engine.progress import Cancelled
from flowcore.flows import dequantization
from flowcore.images.resize import resize
from flowcore.tasks.sample import decode

from .host.memory import free_callbacks, model_lock
from .host.routes import Answer, is_at_work
from .host.ui import Notes, png
from .node import FlowNode
from .sockets import HostModel, Latents, find_loaded, held_bytes

ROUTE = "/flowcore/live"
MAX_RUNS = 16
MAX_BYTES = 2**28  # inputs of all runs together
MAX_ITEMS = 16  # shown in one picture
MAX_VALUES = 3 * 2**16  # numbers in one picture: 256x256 pixels in color
MAX_SOURCE = 2**22  # values of a source picture that is kept
SMALL, DETAIL = 384, 48  # pixels: the longer side of a small copy, and the side of a detail

OK, WRONG, GONE, BUSY, IMPOSSIBLE = 200, 400, 404, 409, 422  # HTTP statuses


class LiveNode(FlowNode):
    """A node of latents whose result is shown while its numbers are dragged; `run` returns the latents."""

    def answer(self, values: dict[str, Any]) -> Any:
        latents = self.run(**values)
        return self.output(latents, text=[], flowcore_live=LIVE_RUNS.keep(type(self), values, latents))


class RedrawnNode(FlowNode):
    """A node without a model whose picture is drawn again while its numbers are dragged, from what its run has kept."""

    redraw: Callable[..., Tensor]  # turns those values, by name, into the picture, (C, H, W) in [0, 1]


@dataclass(frozen=True, eq=False)
class Request:
    """What the page asks for: a run, numbers by input, which sample, and the place in view, in shares of the sides."""

    run: str
    numbers: dict[str, Any]
    sample: int
    at: tuple[float, float]  # x, y


@dataclass(eq=False)
class LiveRun:
    """The inputs of a run, except its model, and the latest request for it."""

    node: type[FlowNode]
    values: dict[str, Any]
    model: str  # fingerprint of its model; without that input, of the bijection that its latents belong to
    latest: Request | None = None


class LiveRuns(RecentlyUsed[LiveRun]):
    """The latest runs, by the names that the page uses for them."""

    def keep(self, node: type[LiveNode], values: dict[str, Any], latents: Latents) -> list[str]:
        """Keep the values of a run; return its name for the page, or nothing if its pictures are too large."""
        count = min(MAX_ITEMS, MAX_VALUES // sum(level[0].numel() for level in latents.levels))
        if count == 0:
            return []
        few = {key: each.select(slice(count)) if isinstance(each, Latents) else each for key, each in values.items()}
        return self._keep(node, few, latents.model_sha256)

    def keep_redrawn(self, node: type[RedrawnNode], values: dict[str, Any]) -> dict[str, list[str]]:
        """Keep the values from which a node is drawn again; return `ui` for the page."""
        return {"flowcore_live": self._keep(node, values)}

    def keep_source(self, node: type[FlowNode], values: dict[str, Any], preview: str) -> dict[str, list[str]]:
        """Keep the values of a run with one picture, to make it again as `PREVIEW` says; return `ui`."""
        image, model = values.get("image"), values.get("model")
        if not (preview and isinstance(model, HostModel) and isinstance(image, Tensor)):
            return {}
        if len(image) > 1 or image.numel() > MAX_SOURCE:
            return {}
        if preview == "small":
            values = {key: _shrink(value) for key, value in values.items()}
        names = self._keep(node, values)
        return {"flowcore_live": names} if names else {}

    def _keep(self, node: type[FlowNode], values: dict[str, Any], bijection: str = "") -> list[str]:
        model = next((value.fingerprint for value in values.values() if isinstance(value, HostModel)), bijection)
        values = {key: value for key, value in values.items() if not isinstance(value, HostModel)}
        if held_bytes(values) > MAX_BYTES:
            return []
        name = secrets.token_hex(8)
        self.put(name, LiveRun(node, values, model), MAX_BYTES)
        return [name]

    def answer(self, body: Any) -> Answer:
        """Answer a request, which may be malformed, and cancel the one before for the same run."""
        request = _parse(body)
        if request is None:
            return WRONG, b""
        run = self.get(request.run)
        if run is None:
            return GONE, b""
        run.latest = request

        def cancelled() -> bool:
            return self.get(request.run) is not run or run.latest is not request or is_at_work()

        with model_lock:
            return _answer(run, request, cancelled)


LIVE_RUNS = LiveRuns(MAX_RUNS, lambda run: held_bytes(run.values))
free_callbacks.append(LIVE_RUNS.clear)


def _parse(body: Any) -> Request | None:
    """Read `{"run": name, "values": {input: number}}`, with "number", of a sample, and "at" if the page sends them."""
    try:
        run, numbers, sample = body["run"], body["values"], int(body.get("number", 0))
        x, y = (min(1.0, max(0.0, float(share))) for share in body.get("at", (0.5, 0.5)))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    return Request(run, numbers, sample, (x, y)) if isinstance(run, str) and isinstance(numbers, dict) else None


def _answer(run: LiveRun, request: Request, cancelled: Callable[[], bool]) -> Answer:
    try:
        numbers = run.node.validated_numbers(request.numbers)
        if numbers is None:
            return WRONG, b""
        if cancelled():
            return BUSY, b""
        if issubclass(run.node, RedrawnNode):
            return OK, png(run.node().redraw(**run.values | numbers))
        model = find_loaded(run.model)
        if model is None:
            return GONE, b""
        models = {each.id: model for each in run.node.SCHEMA.inputs if str(each.get_io_type()) == "FLOW_MODEL"}
        values, node = {**run.values, **models, **numbers}, run.node()
        node.__dict__["notes"] = _Silent(cancelled)  # the host forbids setattr; the same below
        with torch.inference_mode():  # the mode in which the host runs its nodes
            if not isinstance(node, LiveNode):
                return OK, _rerun(node, values, request)
            latents = node.run(**values)
            source = source_for_latents(model.flow, latents.levels, latents.source, node.notes)
            cond = condition_for(model.flow, latents.labels, source, cancelled=cancelled, notify=node.notes)
            images = decode(model.flow, latents.levels, cond, cancelled=cancelled, notify=node.notes)
            return OK, png(side_by_side(dequantization.quantize(model.flow, images)))
    except Cancelled:
        return BUSY, b""
    except FlowError:
        return IMPOSSIBLE, b""


class _Silent(Notes):
    """Drops notes, which the run itself has shown or will show, and stops when the picture is no longer wanted."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        super().__init__("", None)
        self._cancelled = cancelled

    def __call__(self, template: str, /, **values: object) -> None:
        pass

    def task_options(self, progress: Any = None, sources: Any = None) -> dict[str, Any]:
        return {"cancelled": self._cancelled, "notify": self}


def _rerun(node: FlowNode, values: dict[str, Any], request: Request) -> bytes:
    """Make one picture of a run again; or a detail of it, with a transparent margin in place of the rest."""
    model, image = values["model"], cast(Tensor, values["image"])

    def load(_working_memory: int) -> Any:  # its device is the host's choice
        return model.flow

    in_place = copy(model)
    in_place.__dict__["load"] = load
    values |= {"model": in_place, "pick": 0}
    values |= node.alone(values, request.sample)
    node.__dict__["show_samples"] = _pictures_alone
    if node.PREVIEW != "detail":
        return png(node.run(**node.arguments(values))[0])
    height, width = image.shape[-2:]
    (left, right), (top, bottom) = (_span(*each) for each in zip((width, height), request.at, strict=True))
    if longest := values.get("longest_side"):
        values |= {"longest_side": 0, "factor": longest / max(height, width)}
    shares = left / width, top / height, right / width, bottom / height
    values = {key: _crop(value, *shares) for key, value in values.items()}
    picture = node.run(**node.arguments(values))[0]
    scale = picture.shape[-1] / (right - left)
    before, above, after, below = (round(scale * side) for side in (left, top, width - right, height - bottom))
    return png(picture, (before, above, after, below))


def _pictures_alone(pictures: Tensor, *_: Any, **_facts: Any) -> Tensor:
    """Stand in for `PickingNode.show_samples`, which saves pictures for the canvas."""
    return pictures


def _span(side: int, at: float) -> tuple[int, int]:
    start = min(max(0, round(at * side) - DETAIL // 2), max(0, side - DETAIL))
    return start, min(side, start + DETAIL)


def _crop(value: Any, left: float, top: float, right: float, bottom: float) -> Any:
    """Crop a picture or mask of any size to a box in shares of its sides; return other values as they are."""
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    height, width = value.shape[-2:]
    rows = slice(math.floor(top * height), math.ceil(bottom * height))
    return value[..., rows, math.floor(left * width) : math.ceil(right * width)]


def _shrink(value: Any) -> Any:
    """Shrink a large picture, (B, C, H, W); return other values as they are."""
    if not isinstance(value, Tensor) or value.ndim != 4 or max(value.shape[-2:]) <= SMALL:
        return value
    scale = SMALL / max(value.shape[-2:])
    return resize(value, *(max(1, round(side * scale)) for side in value.shape[-2:])).clamp(0, 1)


def side_by_side(images: Tensor) -> Tensor:
    """Lay out images (N, C, H, W) as (C, rows H, columns W), in full rows, and no more rows than columns."""
    count = len(images)
    columns = next(n for n in range(math.isqrt(count - 1) + 1, count + 1) if count % n == 0)
    table = images.unflatten(0, (count // columns, columns))
    return table.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
