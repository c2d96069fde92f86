"""Live pictures: what a node would make of other numbers, which the page asks while sliders are dragged.

They come from what a run has kept, and from its model, wherever the host keeps that. Nodes of latents decode them;
nodes of one picture make it again, small where that shows what changes, else a detail around the place that is looked
at. Runs go first: while one waits or runs there is no picture, and one that is being made is stopped, as by the page's
next question about the same run.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..flowcore import FlowError, dequantization
from ..flowcore.images.resize import resize
from ..flowcore.inference.condition_cache import RecentlyUsed
from ..flowcore.tasks import Cancelled
from ..flowcore.tasks.model_input import condition_for, source_for_latents
from ..flowcore.tasks.sample import decode
from .host.memory import moving, on_free
from .host.routes import Answer, is_at_work
from .host.ui import Notes, png
from .node import FlowNode
from .sockets import LOADED, HostModel, Latents

ROUTE = "/flowcore/live"
MAX_RUNS = 16
MAX_ITEMS = 16  # shown in one picture
MAX_VALUES = 3 * 2**16  # in one picture: 256x256 pixels in color
MAX_SOURCE = 2**22  # values of a picture that is kept to be made again
SMALL, DETAIL = 384, 48  # pixels of the longer side of a picture that is made again, and of a detail's sides

Place = tuple[float, float]  # in shares of width and height
OK, WRONG, GONE, BUSY, IMPOSSIBLE = 200, 400, 404, 409, 422


class LiveNode(FlowNode):
    """A node of latents whose result can be seen while its numbers are dragged; `run` returns the latents."""

    def answer(self, values: dict[str, Any]) -> Any:
        latents = self.run(**values)
        return self.output(latents, text=[], flowcore_live=LIVE.keep(type(self), values, latents))


@dataclass(eq=False)
class LiveRun:
    """What came along the wires of a run: input name to value, but for the model; and what was asked for last."""

    node: type[FlowNode]
    values: dict[str, Any]
    model_sha256: str
    latest: object = None


class LiveRuns(RecentlyUsed[LiveRun]):
    """The latest runs, by the names under which the page asks."""

    def keep(self, node: type[LiveNode], values: dict[str, Any], made: Latents) -> list[str]:
        """Keep the values of a run, but for its model; return the name for the page, none if a picture is too large."""
        count = min(MAX_ITEMS, MAX_VALUES // sum(level[0].numel() for level in made.levels))
        if count == 0:
            return []
        kept = {
            name: value.part(slice(count)) if isinstance(value, Latents) else value
            for name, value in values.items()
            if not isinstance(value, HostModel)
        }
        name = secrets.token_hex(8)
        self.put(name, LiveRun(node, kept, made.model_sha256))
        return [name]

    def keep_source(self, node: type[FlowNode], values: dict[str, Any], how: str) -> dict[str, list[str]]:
        """Keep the values of a run with one picture, for "small" pictures or a "detail"; return what tells the page."""
        image, model = values.get("image"), values.get("model")
        if not (how and isinstance(model, HostModel) and isinstance(image, Tensor)):
            return {}
        if len(image) > 1 or image.numel() > MAX_SOURCE:
            return {}
        kept = {key: value for key, value in values.items() if not isinstance(value, HostModel)}
        if how == "small":
            kept = {key: _small(value) for key, value in kept.items()}
        name = secrets.token_hex(8)
        self.put(name, LiveRun(node, kept, model.sha256))
        return {"flowcore_live": [name]}

    def prepare(self, body: Any) -> Callable[[], Answer]:
        """Cancel earlier requests; return what answers this, `{"run": name, "values": {input: number}}` or anything.

        Beside them, "number" says which sample is asked for, and "at" which place of it, in shares of the sides.
        """
        name, given = (body.get("run"), body.get("values")) if isinstance(body, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(given, dict):
            return lambda: (WRONG, b"")
        run = self.get(name)
        if run is None:
            return lambda: (GONE, b"")
        number, at = body.get("number", 0), body.get("at", [0.5, 0.5])
        try:
            number, at = int(number), (min(1.0, max(0.0, float(at[0]))), min(1.0, max(0.0, float(at[1]))))
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            return lambda: (WRONG, b"")
        run.latest = question = object()

        def cancelled() -> bool:
            return self.get(name) is not run or run.latest is not question or is_at_work()

        def answer() -> Answer:
            with moving:
                return _picture(run, given, cancelled, number, at)

        return answer


LIVE = LiveRuns(MAX_RUNS)
on_free.append(LIVE.clear)


def _picture(run: LiveRun, given: dict[str, Any], cancelled: Callable[[], bool], number: int, at: Place) -> Answer:
    try:
        numbers = run.node.validated_numbers(given)
        model = LOADED.get(run.model_sha256)
        if numbers is None:
            return WRONG, b""
        if cancelled():
            return BUSY, b""
        if model is None:
            return GONE, b""
        models = {each.id: model for each in run.node.SCHEMA.inputs if str(each.get_io_type()) == "FLOW_MODEL"}
        values, node = {**run.values, **models, **numbers}, run.node()
        node.__dict__["notes"] = _Silent(cancelled)  # the host's clone of a class locks attributes
        with torch.inference_mode():  # as the host runs its nodes
            if not isinstance(node, LiveNode):
                return OK, _again(node, values, number, at)
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
    """Drops sentences that the run has said, or will say, and stops where no picture is wanted any more."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        super().__init__("", None)
        self._cancelled = cancelled

    def __call__(self, message: str) -> None:
        pass

    def follow(self, progress: Any = None, sources: Any = None, **more: Any) -> Any:
        return {"cancelled": self._cancelled, "notify": self, **more}


class _InPlace(HostModel):
    """A model that stays where the host keeps it."""

    def load(self, working_memory: int) -> Any:
        return self.flow


def _again(node: FlowNode, values: dict[str, Any], number: int, at: Place) -> bytes:
    """Make one picture of a run again, or a detail of it, which is transparent elsewhere."""
    model, image = values["model"], cast(Tensor, values["image"])
    there = _InPlace(model.patcher, model.name)
    there.__dict__["sha256"] = model.sha256
    values |= {"model": there, "samples": 1, "seed": (values["seed"] + number) % 2**64, "pick": 0}
    node.__dict__["made"] = _pictures_alone
    if node.LIVE != "detail":
        return png(node.run(**values)[0])
    (top, bottom), (left, right) = (_span(*each) for each in zip(image.shape[-2:], reversed(at), strict=True))
    height, width = image.shape[-2:]
    box = top / height, bottom / height, left / width, right / width
    if longest := values.get("longest_side"):
        values |= {"longest_side": 0, "factor": longest / max(height, width)}
    picture = node.run(**{key: _cut(value, *box) for key, value in values.items()})[0]
    scale = picture.shape[-1] / (right - left)
    return png(picture, tuple(round(scale * side) for side in (left, top, width - right, height - bottom)))


def _pictures_alone(pictures: Tensor, *_: Any, **_facts: Any) -> Tensor:
    """Stand in for `PickingNode.made`, which saves what the canvas shows."""
    return pictures


def _span(side: int, at: float) -> tuple[int, int]:
    """Return where a detail begins and ends, in pixels."""
    start = min(max(0, round(at * side) - DETAIL // 2), max(0, side - DETAIL))
    return start, min(side, start + DETAIL)


def _cut(value: Any, top: float, bottom: float, left: float, right: float) -> Any:
    """Cut a detail, in shares of the sides, out of a picture or a mask of any size; all else is as it is."""
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    rows, columns = (
        slice(math.floor(a * n), math.ceil(b * n))
        for a, b, n in zip((top, left), (bottom, right), value.shape[-2:], strict=True)
    )
    return value[..., rows, columns]


def _small(value: Any) -> Any:
    """Shrink a picture, (B, C, H, W), whose longer side is long; all else is as it is."""
    if not isinstance(value, Tensor) or value.ndim != 4 or max(value.shape[-2:]) <= SMALL:
        return value
    scale = SMALL / max(value.shape[-2:])
    return resize(value, *(max(1, round(side * scale)) for side in value.shape[-2:])).clamp(0, 1)


def side_by_side(images: Tensor) -> Tensor:
    """Lay images out, (N, C, H, W) to (C, rows H, columns W), in full rows and no more rows than columns."""
    count = len(images)
    columns = next(n for n in range(math.isqrt(count - 1) + 1, count + 1) if count % n == 0)
    table = images.unflatten(0, (count // columns, columns))
    return table.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
