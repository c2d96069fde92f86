"""Nodes that make several pictures, of which one may be picked, and that write into its PNG file what made it."""

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..flowcore import FlowError, ShapeError, provenance
from ..flowcore.device import free_memory
from ..flowcore.inference.condition_cache import RecentlyUsed
from ..flowcore.provenance import KEY, MAX_ENTRIES, Provenance
from ..flowcore.tasks.defaults import with_defaults
from .host.compat import components, io, log, video_of
from .host.memory import on_free
from .host.ui import GALLERY, Progress, from_canvas, gallery, of_image
from .live import LIVE
from .node import FlowNode
from .sockets import HostModel, Latents, ModelByPicture

MAX_RUNS = 8  # whose pictures are kept
MAX_REMEMBERED = 64  # prompts, and pictures, whose provenance is kept


class PickingNode(FlowNode):
    """A node of several pictures with the input `pick`: 0 passes on all of them, k the k-th alone.

    `run` makes all of them, its pick is 0; what was made last is kept, so that another pick is free.
    """

    IS_OUTPUT_NODE = True  # it shows its pictures, whether or not they go on
    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
    PICKED: ClassVar[tuple[int, ...]] = (0,)  # indices of outputs with an item per picture; the first is counted
    # Whether it writes the provenance of all pictures in its first output, whichever is picked: into the hidden
    # `extra_pnginfo`, which the host writes into every PNG file, and which does not decide whether a node runs again.
    RECORDS: ClassVar[bool] = False
    AS_CLIP: ClassVar[bool] = False  # whether its images are frames, all of which take one model

    def answer(self, values: dict[str, Any]) -> Any:
        pick, model, parts = values.pop("pick"), values.get("model"), list[Any]()
        if isinstance(model, ModelByPicture) and "image" in values:
            parts = model.parts(values["image"], as_clip=self.AS_CLIP)
            values["model"] = parts[0][0]
        output = self._by_picture(parts, values) if parts else self._every(values)
        count = len(output.args[self.PICKED[0]])
        if pick > count:
            raise FlowError(f"pick is {pick}, and this makes {count}. Choose 1 to {count}, or 0 for all.")
        args = self.picked(output, pick - 1) if pick else output.args
        ui = dict(output.ui) | self._sent()
        if from_canvas(self):
            ui |= LIVE.keep_source(type(self), values, self.LIVE)
        return io.NodeOutput(*args, ui=ui)

    def _by_picture(self, parts: list[tuple[HostModel, list[int], str]], values: dict[str, Any]) -> Any:
        """Make all pictures, those of each image by the model that suits it, in the order of the images."""
        if len(parts) == 1:
            return _saying(self._every(values), parts[0][2])
        outputs, whole, done, count = list[Any](), Progress(values["image"]), 0, len(values["image"])
        for model, places, why in parts:
            self.notes.progress = whole.part(done / count, len(places) / count)
            done += len(places)
            of_places = {name: share(value, places, count) for name, value in values.items()}
            outputs.append(_saying(self._every({**of_places, "model": model}), why))
        return self._joined(outputs, [places for _, places, _ in parts])

    def _joined(self, outputs: list[Any], every: list[list[int]]) -> Any:
        """Join what was made of shares of a batch, each with the places of its images."""
        args = [
            in_order(made, every) if isinstance(made[0], Tensor | list) else min(made)
            for made in zip(*(output.args for output in outputs), strict=True)
        ]
        pictures: dict[int, dict[str, Any]] = {}
        for output, places in zip(outputs, every, strict=True):
            each = len(output.args[self.PICKED[0]]) // len(places)
            for shown in output.ui["flowcore_gallery"]:
                image, k = divmod(shown["number"] - 1, each)
                number = places[image] * each + k + 1
                pictures[number] = {**shown, "number": number, "image": places[image]}
                pictures[number].pop("rows", None)  # of a table of one image
        ui: dict[str, list[Any]] = {}
        for name in outputs[0].ui:
            if name == "flowcore_gallery":
                ui[name] = [pictures[number] for number in sorted(pictures)][:GALLERY]
            elif name == "each":
                ui[name] = in_order([output.ui[name] for output in outputs], every)
            else:
                ui[name] = [*dict.fromkeys(fact for output in outputs for fact in output.ui[name])]
        texts = [output.ui["text"] for output in outputs]
        folds = [text.index("") if "" in text else len(text) for text in texts]  # what is below is folded on the node
        seen = [line for text, fold in zip(texts, folds, strict=True) for line in text[:fold]]
        folded = [line for text, fold in zip(texts, folds, strict=True) for line in text[fold:]]
        ui["text"] = [*dict.fromkeys([*ui["flowcore_notes"], *seen, *folded])]
        return io.NodeOutput(*args, ui=ui)

    def _every(self, values: dict[str, Any]) -> Any:
        """Make all pictures, or find them among what was made last."""
        model = values.get("model")
        used = with_defaults(model.flow, values) if isinstance(model, HostModel) else values  # as the task will
        described = {}  # by content: an image that was loaded again is the same image
        for name, value in used.items():
            is_image = isinstance(value, Tensor) and value.ndim == 4
            described[name] = _describe(value.permute(0, 2, 3, 1) if is_image else value)  # as the host has it
        key = _sha256([type(self).__name__, described])
        output = RUNS.get(key)
        if output is None:
            output = self.run(**values, pick=0)
            keep(key, output)
        if self.RECORDS:
            try:
                PROVENANCE_LOG.write(self, used, described, output.args[0])
            except Exception:  # the picture is worth more than its provenance
                log.exception("flowcore could not write the provenance of a picture")
        return output

    def made(self, pictures: Tensor, seed: int, samples: int, sources: Tensor | None, *more: Any, **ui: Any) -> Any:
        """Return and show pictures (N, C, H, W) whose seeds count up, anew for every source; see `gallery`."""
        count = len(pictures)
        facts = [{"seed": (seed + k % samples) % 2**64, **of_image(k, samples, count)} for k in range(count)]
        return self.output(pictures, *more, **gallery(self, pictures, facts, sources) | ui)

    def _sent(self) -> dict[str, Any]:
        """Return what the canvas sent for this node and all before it, which a pick brings back there."""
        prompt, name = self.hidden.prompt, str(self.hidden.unique_id)
        if not from_canvas(self) or not isinstance(prompt.get(name), dict):  # made by a loop
            return {}
        sent: dict[str, Any] = {}
        for node, kind, values in nodes_before(prompt, name):
            plain = {key: value for key, value in values.items() if not isinstance(value, list)}
            sent[node] = {"class_type": kind, "inputs": plain}
        sent[name]["inputs"].pop("pick", None)
        return {"flowcore_sent": [sent]}

    def picked(self, output: Any, place: int) -> tuple[Any, ...]:
        """Return the outputs for the picture of a place, from 0, of what `run` returned."""
        args, one = [*output.args], slice(place, place + 1)
        for k in self.PICKED:
            args[k] = args[k].part(one) if isinstance(args[k], Latents) else args[k][one]
            if isinstance(args[k], Tensor):
                args[k] = args[k].clone()  # not a view, which would hold all of them in the host's cache
        return tuple(args)


def _saying(output: Any, why: str) -> Any:
    """Say before the text of an output why its model was taken; no other is recommended."""
    notes, text = output.ui["flowcore_notes"], output.ui["text"]
    return io.NodeOutput(
        *output.args, ui=output.ui | {"text": [*notes, why, *text[len(notes) :]], "flowcore_better": []}
    )


def share(value: Any, places: list[int], count: int) -> Any:
    """Return what a value holds for the images of some places in a batch; all of it, if it holds the same for all."""
    if not isinstance(value, Tensor) or value.ndim < 3 or len(value) == 1 < count:
        return value
    if len(value) % count or len(value) == 0:
        raise ShapeError(f"Expected one image, or as many for each of {count}; got {len(value)}. Pass others.")
    return value.unflatten(0, (count, -1))[places].flatten(0, 1)


def in_order(made: Sequence[Any], every: list[list[int]]) -> Any:
    """Join tensors or lists made of shares of a batch, equally much of each image, in the order of the images."""
    of_images: dict[int, Any] = {}
    for part, places in zip(made, every, strict=True):
        each = len(part) // len(places)
        of_images |= {place: part[k * each : (k + 1) * each] for k, place in enumerate(places)}
    ordered = [of_images[place] for place in sorted(of_images)]
    return torch.cat(ordered) if isinstance(ordered[0], Tensor) else [one for part in ordered for one in part]


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
        wires = [value for value in values.values() if isinstance(value, list) and len(value) == 2]
        waiting += [wire[0] for wire in wires if isinstance(wire[0], str)]


def _size(output: Any) -> int:
    tensors = [value for value in output.args if isinstance(value, Tensor)]
    tensors += [level for value in output.args if isinstance(value, Latents) for level in value.levels]
    return sum(tensor.nbytes for tensor in tensors)


RUNS: RecentlyUsed[Any] = RecentlyUsed(MAX_RUNS, _size)
"""What the latest runs made."""


def keep(key: str, output: Any) -> None:
    """Keep what a run made, in half of the free memory, and with it those before, in an eighth; else nothing."""
    free = free_memory("cpu")
    free = 2**33 if free is None else free
    if _size(output) <= free // 2:
        RUNS.put(key, output, budget=free // 8)
    else:  # the host holds the pictures that go on; another pick makes them anew
        RUNS.clear()


on_free.append(RUNS.clear)


def _describe(value: Any) -> Any:
    """Describe a value by its content, in JSON; what has none that is known, by its type."""
    if isinstance(value, HostModel):
        return {"weights": value.sha256, "stated": repr(value.flow.config)}
    if isinstance(value, Tensor):
        return provenance.source(value)
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    if dataclasses.is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {name: _describe(part) for name, part in parts.items() if part is not None}
    return value if value is None or provenance.is_plain(value) else {"kind": type(value).__name__}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class ClipNode(PickingNode):
    """A node whose `image` may be a VIDEO of the host, and whose last output is a VIDEO of its pictures."""

    RECORDS = True
    AS_CLIP = True
    OF_VIDEO: ClassVar[dict[str, Any]] = {}  # values that a VIDEO sets

    @classmethod
    def execute(cls, **values: Any) -> Any:
        clip = components(values.get("image"))
        if clip is not None:
            values |= {"image": clip.images, **cls.OF_VIDEO}
        output = super().execute(**values)
        return io.NodeOutput(*output.args, video_of(output.args[0], clip), ui=output.ui)

    def film(self, frames: Tensor, sources: Tensor, **ui: Any) -> Any:
        """Return and show the frames of a clip, (N, C, H, W), by their numbers; see `gallery`."""
        facts = [{"frame": k + 1} for k in range(len(frames))]
        return self.output(frames, **gallery(self, frames, facts, sources) | ui)


class ProvenanceLog:
    """The provenance of the last runs, for prompts in which the host reuses a result.

    A node whose result is cached does not run, and its pictures may be saved again. So the provenance of a run is also
    written into all prompts in which the node has the same inputs, including those in the queue.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()  # by node and pictures
        self._posted: deque[tuple[str, str, dict[str, Any]]] = deque(maxlen=MAX_REMEMBERED)

    def write(self, node: PickingNode, values: dict[str, Any], described: dict[str, Any], images: Tensor) -> None:
        """Write the provenance of a run, its pictures (B, H, W, C), into its prompt, and those with the same inputs."""
        hidden, model, node_id = node.hidden, values["model"], str(node.hidden.unique_id)
        is_source = {name: isinstance(v, (Tensor, list)) or dataclasses.is_dataclass(v) for name, v in values.items()}
        entry = Provenance.of(
            values,
            model.flow,
            images.permute(0, 3, 1, 2),
            device=model.patcher.load_device,
            node_id=node_id,
            node=node.SCHEMA.node_id,
            model=model.name,
            model_sha256=model.sha256,
            sources={name: what for name, what in described.items() if name != "model" and is_source[name]},
        ).to_json()
        if isinstance(hidden.extra_pnginfo, dict):
            _put(hidden.extra_pnginfo, node_id, entry)
        if not isinstance(hidden.prompt, dict) or node_id not in hidden.prompt:
            return
        mark = _fingerprint(hidden.prompt, node_id, {})
        with self._lock:
            key = (mark, *entry.get("pictures", ()))  # over a list, a node runs several times
            self._written[key] = entry
            self._written.move_to_end(key)
            while len(self._written) > MAX_REMEMBERED:
                self._written.popitem(last=False)
            for other, name, pnginfo in self._posted:
                if other == mark:
                    _put(pnginfo, name, entry)

    def seeds(self, images: Tensor) -> list[int | None]:
        """Return the seed that made each of some pictures, (B, C, H, W), as far as the runs are remembered."""
        known: dict[str, int] = {}
        with self._lock:
            for entry in reversed(self._written.values()):
                for number, mark in enumerate(entry["pictures"]):
                    known.setdefault(mark, (entry["seed"] + number % entry["samples"]) % 2**64)
        return [known.get(provenance.fingerprint(image)) for image in images]

    def read_prompt(self, body: Any, kinds: set[str]) -> None:
        """Write what is known of nodes of some kinds into a posted prompt, whose body may be anything."""
        prompt, extra = (body.get("prompt"), body.get("extra_data")) if isinstance(body, dict) else (None, None)
        pnginfo = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
        if not isinstance(prompt, dict) or not isinstance(pnginfo, dict):
            return
        ours = [
            name for name, node in prompt.items() if isinstance(node, dict) and str(node.get("class_type")) in kinds
        ]
        if isinstance(held := pnginfo.get(KEY), list):  # of a canvas that has opened a picture
            pnginfo[KEY] = [e for e in held[-MAX_ENTRIES:] if isinstance(e, dict) and e.get("node_id") not in ours]
        digests: dict[str, str] = {}
        for node_id in ours[:MAX_ENTRIES]:  # the host waits for us
            try:
                mark = _fingerprint(prompt, node_id, digests)
            except RecursionError:  # nested values, which the host refuses next
                continue
            with self._lock:
                for entry in [entry for (node, *_), entry in self._written.items() if node == mark]:
                    _put(pnginfo, node_id, entry)
                self._posted.append((mark, node_id, pnginfo))


PROVENANCE_LOG = ProvenanceLog()


def _put(pnginfo: dict[str, Any], node_id: str, entry: dict[str, Any]) -> None:
    """Put the provenance of a node into the `extra_pnginfo` of a prompt, in place of one of the same pictures."""
    before = pnginfo.get(KEY)
    others = [other for other in before if isinstance(other, dict)] if isinstance(before, list) else []
    subject = node_id, entry.get("pictures")
    others = [other for other in others if (other.get("node_id"), other.get("pictures")) != subject]
    pnginfo[KEY] = [*others, {**entry, "node_id": node_id}][-MAX_ENTRIES:]


def _fingerprint(prompt: dict[str, Any], node_id: str, digests: dict[str, str]) -> str:
    """Fingerprint a node with its inputs and all nodes before it; `digests` keeps those of single nodes."""
    found: dict[str, str] = {}
    for name, kind, values in nodes_before(prompt, node_id):
        if name not in digests:
            # The host makes 1.0 of 1 where a number need not be whole.
            plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
            digests[name] = _sha256([kind, plain])
        found[name] = digests[name]
    return _sha256([node_id, found])
