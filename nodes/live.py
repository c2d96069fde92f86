"""Live pictures: what a node of latents would make of other numbers, which the page asks while sliders are dragged.

They come from what a run has kept, and from its model, wherever the host keeps that. Runs go first: while one waits or
runs there is no picture, and one that is being made is stopped, as by the page's next question about the same run.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..flowcore import FlowError, dequantization
from ..flowcore.inference.condition_cache import RecentlyUsed
from ..flowcore.tasks import Cancelled
from ..flowcore.tasks.sample import decode
from ..flowcore.tasks.subject import condition_for, source_for_latents
from .host.memory import moving, on_free
from .host.routes import Answer, is_at_work
from .host.ui import png
from .node import FlowNode
from .sockets import LOADED, FlowModel, Latents

ROUTE = "/flowcore/live"
MAX_RUNS = 16
MAX_ITEMS = 16  # shown in one picture
MAX_VALUES = 3 * 2**16  # in one picture: 256x256 pixels in color

OK, WRONG, GONE, BUSY, IMPOSSIBLE = 200, 400, 404, 409, 422


class LiveNode(FlowNode):
    """A node of latents whose result can be seen while its numbers are dragged; `run` returns the latents."""

    def answer(self, values: dict[str, Any]) -> Any:
        latents = self.run(**values)
        return self.output(latents, text=[], flowcore_live=LIVE.keep(type(self), values, latents))


@dataclass(eq=False)
class LiveRun:
    """What came along the wires of a run: input name to value, but for the model; and what was asked for last."""

    node: type[LiveNode]
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
            if not isinstance(value, FlowModel)
        }
        name = secrets.token_hex(8)
        self.put(name, LiveRun(node, kept, made.model_sha256))
        return [name]

    def prepare(self, body: Any) -> Callable[[], Answer]:
        """Cancel earlier requests; return what answers this, `{"run": name, "values": {input: number}}` or anything."""
        name, given = (body.get("run"), body.get("values")) if isinstance(body, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(given, dict):
            return lambda: (WRONG, b"")
        run = self.get(name)
        if run is None:
            return lambda: (GONE, b"")
        run.latest = question = object()

        def cancelled() -> bool:
            return self.get(name) is not run or run.latest is not question or is_at_work()

        def answer() -> Answer:
            with moving:
                return _picture(run, given, cancelled)

        return answer


LIVE = LiveRuns(MAX_RUNS)
on_free.append(LIVE.clear)


def _picture(run: LiveRun, given: dict[str, Any], cancelled: Callable[[], bool]) -> Answer:
    described = run.node.SCHEMA.inputs
    if not given.keys() <= {each.id for each in described if str(each.get_io_type()) == "FLOAT"}:
        return WRONG, b""
    if cancelled():
        return BUSY, b""
    model = LOADED.get(run.model_sha256)
    if model is None:
        return GONE, b""
    models = {each.id: model for each in described if str(each.get_io_type()) == "FLOW_MODEL"}
    try:
        values = run.node.validated({**run.values, **models, **given})
        node = run.node()
        node.__dict__["notes"] = _ignore  # the host's clone of a class locks attributes
        with torch.inference_mode():  # as the host runs its nodes
            latents = node.run(**values)
            source = source_for_latents(model.flow, latents.levels, latents.source, _ignore)
            cond = condition_for(model.flow, latents.labels, source, cancelled=cancelled, notify=_ignore)
            images = decode(model.flow, latents.levels, cond, cancelled=cancelled, notify=_ignore)
            return OK, png(side_by_side(dequantization.quantize(model.flow, images)))
    except Cancelled:
        return BUSY, b""
    except FlowError:
        return IMPOSSIBLE, b""


def _ignore(_: str) -> None:
    """Drop a sentence that the run has said, or will say."""


def side_by_side(images: Tensor) -> Tensor:
    """Lay images out, (N, C, H, W) to (C, rows H, columns W), in full rows and no more rows than columns."""
    count = len(images)
    columns = next(n for n in range(math.isqrt(count - 1) + 1, count + 1) if count % n == 0)
    table = images.unflatten(0, (count // columns, columns))
    return table.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
