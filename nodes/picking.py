"""Nodes that make several pictures, of which one may be picked. What they made last is kept: another pick is free."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from ..flowcore import FlowError, provenance
from ..flowcore.device import free_memory
from ..flowcore.inference.recently_used import RecentlyUsed
from ..flowcore.tasks.model_defaults import resolve
from .host.compat import io
from .host.memory import on_free
from .host.ui import from_canvas
from .node import FlowNode
from .sockets import FlowModel, Latents
from .widgets import own_or

MAX_RUNS = 8


class PickingNode(FlowNode):
    """A node of several pictures with the input `pick`: 0 passes on all of them, k the k-th alone.

    `run` makes all of them: its pick is 0.

    Attributes:
        PICKED: Places of the outputs with one item per picture; the first of them counts.
    """

    IS_OUTPUT_NODE = True  # it shows its pictures, whether or not they go on
    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
    PICKED: ClassVar[tuple[int, ...]] = (0,)

    @classmethod
    def run_validated(cls, values: dict[str, Any]) -> Any:
        pick = values.pop("pick")
        used = cls.resolved(values)
        key = _key(cls, used)
        output = RUNS.get(key)
        if output is None:
            output = cls.run(**values, pick=0)
            free = free_memory("cpu")
            RUNS.put(key, output, budget=2**30 if free is None else free // 8)
        cls.finished(used, output)
        count = len(output.args[cls.PICKED[0]])
        if pick > count:
            raise FlowError(f"pick is {pick}, and this makes {count}. Choose 1 to {count}, or 0 for all.")
        args = cls.picked(output, pick - 1) if pick else output.args
        return io.NodeOutput(*args, ui=dict(output.ui) | cls._sent())

    @classmethod
    def resolved(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values that the run uses: what the model's file states in place of those that follow it."""
        model = values.get("model")
        if not isinstance(model, FlowModel):
            return values
        return resolve(model.flow, {k: own_or(v) if isinstance(v, float) else v for k, v in values.items()})

    @classmethod
    def _sent(cls) -> dict[str, Any]:
        """Return what the canvas sent for this node and all before it, which a pick brings back there."""
        if not from_canvas(cls.hidden.extra_pnginfo):
            return {}
        name = str(cls.hidden.unique_id)
        sent = before(cls.hidden.prompt, name)
        if name not in sent:  # a node that a loop has made
            return {}
        sent[name]["inputs"].pop("pick", None)
        return {"flowcore_sent": [sent]}

    @classmethod
    def finished(cls, values: dict[str, Any], output: Any) -> None:
        """Called with the values that were used, and all that was made of them, now or earlier."""

    @classmethod
    def picked(cls, output: Any, place: int) -> tuple[Any, ...]:
        """Return the outputs for the picture of a place, from 0, of what `run` returned."""
        return tuple(_one(value, place) if k in cls.PICKED else value for k, value in enumerate(output.args))


def before(prompt: dict[str, Any], node_id: str) -> dict[str, dict[str, Any]]:
    """Find a node and all nodes before it in a prompt: each one's class, and its inputs but for the wires."""
    found = {}
    for name, kind, values in nodes_before(prompt, node_id):
        plain = {key: value for key, value in values.items() if not isinstance(value, list)}
        found[name] = {"class_type": kind, "inputs": plain}
    return found


def nodes_before(prompt: dict[str, Any], node_id: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Walk through a node and all nodes before it in a prompt, which may hold anything: name, class, and inputs."""
    seen: set[str] = set()
    waiting = [node_id]
    while waiting:
        name = waiting.pop()
        node = prompt.get(name)
        if name in seen or not isinstance(node, dict):
            continue
        seen.add(name)
        values = node.get("inputs")
        values = values if isinstance(values, dict) else {}
        yield name, node.get("class_type"), values
        waiting += [value[0] for value in values.values() if _is_wire(value)]


def _is_wire(value: Any) -> bool:
    """Whether an input of a prompt comes from another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _one(value: Any, place: int) -> Any:
    if isinstance(value, Tensor):
        return value[place : place + 1].clone()  # not a view, which would hold all of them in the host's cache
    if isinstance(value, Latents):
        return value.part(slice(place, place + 1))
    return value[place : place + 1]


def _size(output: Any) -> int:
    tensors = [value for value in output.args if isinstance(value, Tensor)]
    tensors += [level for value in output.args if isinstance(value, Latents) for level in value.levels]
    return sum(tensor.nbytes for tensor in tensors)


RUNS: RecentlyUsed[Any] = RecentlyUsed(MAX_RUNS, _size)
"""What the latest runs made. The last one is kept whatever its size: the host keeps it, too, until the next."""

on_free.append(RUNS.clear)


def _key(node: type, values: dict[str, Any]) -> str:
    """Fingerprint what decides on the pictures, so that an image that was loaded again is the same image."""
    described = [node.__name__, {name: describe(value) for name, value in values.items()}]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def describe(value: Any) -> Any:
    """Describe a value by its content, in JSON; what has none that is known, by its type."""
    if isinstance(value, FlowModel):
        return {"model": value.sha256}
    if isinstance(value, Tensor):
        return provenance.source(value)
    if isinstance(value, list):
        return [describe(item) for item in value]
    if dataclasses.is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {name: describe(part) for name, part in parts.items() if part is not None}
    return value if value is None or provenance.is_plain(value) else {"kind": type(value).__name__}
