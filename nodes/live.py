"""Live pictures: what a node of latents would make of other numbers, asked by the page while they are dragged.

After a run a `LiveNode` keeps what came along its wires. The page asks for a picture with other numbers, and gets it
from the model that the run has used, wherever the host keeps it; no model is loaded or moved for it. A run goes first:
while one waits or runs there is no picture, and one that is being made is stopped at the next layer. The next question
about a run stops the one before likewise.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..flowcore import FlowError, dequantization
from ..flowcore.tasks import Cancelled
from ..flowcore.tasks.sample import decode
from ..flowcore.tasks.subject import condition_for, source_for_latents
from .host.compat import io
from .host.memory import moving, on_free
from .host.routes import Answer, is_at_work
from .host.ui import png
from .node import FlowNode
from .sockets import LOADED, FlowModel, Latents

ROUTE = "/flowcore/live"
MOST_RUNS = 16
MOST_ITEMS = 16  # shown in one picture
MOST_VALUES = 3 * 2**16  # in one picture: 256x256 pixels in color

OK, WRONG, GONE, BUSY, IMPOSSIBLE = 200, 400, 404, 409, 422


class LiveNode(FlowNode):
    """A node of latents whose result can be seen while its numbers are dragged.

    `make` is what other nodes call `run`: it gets a value of every input, and `notify`, and returns the latents.
    """

    make: ClassVar[Callable[..., Latents]]

    @classmethod
    def run(cls, **values: Any) -> Any:
        notes = cls.notes()
        latents = cls.make(**values, notify=notes)
        return io.NodeOutput(latents, ui={"text": notes.lines, "flowcore_live": LIVE.keep(cls, values, latents)})


class LiveRuns:
    """What came along the wires of the latest runs, and the picture that was asked for last of each."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, tuple[type[LiveNode], dict[str, Any], str]] = OrderedDict()
        self._latest: dict[str, object] = {}
        self._lock = threading.Lock()

    def keep(self, node: type[LiveNode], values: dict[str, Any], made: Latents) -> list[str]:
        """Keep the values of a run, but for its model.

        Args:
            node: The node.
            values: Input name to value.
            made: What the node made of them.

        Returns:
            The name under which the page asks; none if a picture would be too large.
        """
        count = min(MOST_ITEMS, MOST_VALUES // sum(level[0].numel() for level in made.levels))
        if count == 0:
            return []
        kept = {
            name: value.first(count) if isinstance(value, Latents) else value
            for name, value in values.items()
            if not isinstance(value, FlowModel)
        }
        run = secrets.token_hex(8)
        with self._lock:
            self._runs[run] = node, kept, made.model_sha256
            while len(self._runs) > MOST_RUNS:
                self._latest.pop(self._runs.popitem(last=False)[0], None)
        return [run]

    def clear(self) -> None:
        """Forget all runs."""
        with self._lock:
            self._runs.clear()
            self._latest.clear()

    def prepare(self, body: Any) -> Callable[[], Answer]:
        """Take a question, which makes those before about the same run void; what is returned answers it.

        Args:
            body: `{"run": name, "values": {input: number}}`, or anything else.
        """
        run, given = (body.get("run"), body.get("values")) if isinstance(body, dict) else (None, None)
        if not isinstance(run, str) or not isinstance(given, dict):
            return lambda: (WRONG, b"")
        with self._lock:
            if run not in self._runs:
                return lambda: (GONE, b"")
            node, kept, sha256 = self._runs[run]
            self._latest[run] = question = object()

        def cancelled() -> bool:
            return self._latest.get(run) is not question or is_at_work()

        def answer() -> Answer:
            with moving:
                return _picture(node, kept, given, sha256, cancelled)

        return answer


LIVE = LiveRuns()
on_free.append(LIVE.clear)


def _picture(
    node: type[LiveNode], kept: dict[str, Any], given: dict[str, Any], sha256: str, cancelled: Callable[[], bool]
) -> Answer:
    described = node.define_schema().inputs
    if not given.keys() <= {each.id for each in described if str(each.get_io_type()) == "FLOAT"}:
        return WRONG, b""
    if cancelled():
        return BUSY, b""
    model = LOADED.get(sha256)
    if model is None:
        return GONE, b""
    models = {each.id: model for each in described if str(each.get_io_type()) == "FLOW_MODEL"}
    try:
        values = node.validated({**kept, **models, **given})
        with torch.inference_mode():  # as the host runs its nodes
            latents = node.make(**values, notify=_ignore)
            source = source_for_latents(model.flow, latents.levels, latents.source, _ignore)
            cond = condition_for(model.flow, latents.labels, source)
            images = decode(model.flow, latents.levels, cond, cancelled=cancelled, notify=_ignore)
            return OK, png(_side_by_side(dequantization.quantize(model.flow, images)))
    except Cancelled:
        return BUSY, b""
    except FlowError:
        return IMPOSSIBLE, b""


def _ignore(_: str) -> None:
    """Drop a sentence that the run has said, or will say."""


def _side_by_side(images: Tensor) -> Tensor:
    """Lay images out, (N, C, H, W) to (C, rows H, columns W), in full rows and no more rows than columns."""
    count = len(images)
    columns = next(n for n in range(math.isqrt(count - 1) + 1, count + 1) if count % n == 0)
    table = images.unflatten(0, (count // columns, columns))
    return table.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
