"""Nodes that make several pictures, one of which may be picked, and that record in its PNG file what made it."""

import dataclasses
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor

from flowcore import FlowError
from flowcore.batch import provenance
from flowcore.batch.provenance import KEY, MAX_ENTRIES, Provenance
from flowcore.device import free_memory
from flowcore.engine.condition_cache import RecentlyUsed
from flowcore.engine.defaults import with_defaults
from flowcore.errors import say
from flowcore.models.identity import describe, fingerprint

from .by_picture import join_outputs, part_for, with_reason, with_sentence
from .files import transparent_picture
from .host.compat import components, io, log, video_of
from .host.memory import free_callbacks
from .host.ui import from_canvas, gallery, sample_facts
from .live import LIVE_RUNS
from .node import FlowNode
from .sockets import HostModel, Latents, ModelByPicture, SuitedImages, held_bytes

Recipe: TypeAlias = tuple[dict[str, Any], Tensor]

MAX_RUNS = 8  # runs whose pictures are kept
MAX_REMEMBERED = 64  # runs, and posted prompts, whose provenance is kept


class PickingNode(FlowNode):
    """A node of several pictures with the input `pick`: 0 passes on all of them, k only the k-th.

    `run` always makes all of them, with `pick` 0. The latest results are kept, so another pick computes nothing.
    """

    IS_OUTPUT_NODE = True  # it shows its pictures even if nothing is connected to its outputs
    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)
    PICKED: ClassVar[tuple[int, ...]] = (0,)  # indices of the outputs that have an item per picture
    # Whether it records the provenance of all pictures in its first output, whichever is picked: in the hidden
    # `extra_pnginfo`, which the host writes into every PNG file, and which does not make a node run again.
    RECORDS: ClassVar[bool] = False
    AS_CLIP: ClassVar[bool] = False  # whether its images are frames, which all go to one model

    def answer(self, values: dict[str, Any]) -> Any:
        pick, model, image = values.pop("pick"), values.get("model"), values.get("image")
        if isinstance(model, ModelByPicture) and image is not None:
            parts = model.divide(image, as_clip=self.AS_CLIP)
            values["model"] = parts[0].model  # live pictures are of a single image
            output, models = self._run_per_model(parts, values), [part.model.name for part in parts]
        else:
            output, models = self._run_cached(values), [model.name] if isinstance(model, HostModel) else []
        count = len(output.args[self.PICKED[0]])
        if pick > count:
            raise FlowError(
                "pick is {pick}, but this run made only {count}. Choose 1 to {count}, or 0 for all.",
                pick=pick,
                count=count,
            )
        args = self.picked(output, pick - 1) if pick else output.args
        ui = dict(output.ui) | self._snapshot()
        ui |= {"flowcore_models": models} if models else {}
        if from_canvas(self):
            ui |= LIVE_RUNS.keep_source(type(self), values, self.PREVIEW)
        output = io.NodeOutput(*args, ui=ui)
        if name := transparent_picture(self.hidden.prompt, self.hidden.unique_id, "image"):
            # Said whatever is wired to what, because the host repeats the text when it reuses the result.
            note = say("It has transparent parts. Save Flow Picture keeps them if their mask is connected to it.")
            output = with_sentence(output, say("{name}: {note}", name=name, note=note))
        return output

    def _run_per_model(self, parts: list[SuitedImages], values: dict[str, Any]) -> Any:
        """Make all pictures, each with the model that suits it, in the order of the images."""
        if len(parts) == 1:
            return with_reason(self._run_cached(values), parts[0].reason)
        outputs, progress, done, count = list[Any](), self.notes.start(values["image"]), 0, len(values["image"])
        for model, places, reason in parts:
            self.notes.progress = progress.part(done / count, len(places) / count)
            done += len(places)
            part_values = {name: part_for(value, places, count) for name, value in values.items()}
            outputs.append(with_reason(self._run_cached({**part_values, "model": model}), reason))
        return join_outputs(outputs, [part.places for part in parts], self.PICKED[0])

    @classmethod
    def run_key(cls, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the key of a run among the latest, and the description of its inputs that the key is made of."""
        described = describe(settings)
        return fingerprint([cls.__name__, described]), described

    def _run_cached(self, values: dict[str, Any]) -> Any:
        """Make all pictures, or take them from the latest runs."""
        model = values.get("model")
        # resolved like in the task
        settings = with_defaults(model.flow, values) if isinstance(model, HostModel) else values
        key, described = self.run_key(settings)
        output = RUNS.get(key)
        if output is None:
            output = self.run(**self.arguments(values), pick=0)
            keep(key, output)
        if self.RECORDS:
            try:
                for recipe, pictures in self.recipes(values["model"], values, output.args[0]):
                    PROVENANCE_LOG.write(self, recipe, described, pictures)
            except Exception:  # better a picture without provenance than none
                log.exception("flowcore could not record the provenance of a picture")
        return output

    def recipes(self, model: HostModel, values: dict[str, Any], pictures: Tensor) -> list[Recipe]:
        """List what made the pictures (B, H, W, C) of a run: values of inputs, and the pictures that they make."""
        return [(with_defaults(model.flow, values), pictures)]

    @classmethod
    def alone(cls, values: dict[str, Any], place: int) -> dict[str, Any]:
        """Return the values of inputs that make one picture of a run alone, by its place in the gallery from 0."""
        return {"samples": 1, "seed": (values["seed"] + place) % 2**64} if "seed" in values else {}

    def show_samples(
        self,
        pictures: Tensor,
        seed: int | None,
        samples: int,
        sources: Tensor | None,
        *more: Any,
        looks: Sequence[str] = (),
        **ui: Any,
    ) -> Any:
        """Return and show pictures (N, C, H, W) whose seeds, if any, count up, starting over for every source.

        With several looks, these are the samples of the first, then of the second, for every source.
        """
        seeds = [None if seed is None else (seed + k % samples) % 2**64 for k in range(len(pictures))]
        facts = sample_facts(seeds, samples * max(1, len(looks)))
        if looks:
            facts = [{**fact, "look": looks[k // samples % len(looks)]} for k, fact in enumerate(facts)]
        return self.output(pictures, *more, **gallery(self, pictures, facts, sources) | ui)

    def _snapshot(self) -> dict[str, Any]:
        """Return what the canvas sent for this node and all nodes before it, which a pick restores there."""
        prompt, name = self.hidden.prompt, str(self.hidden.unique_id)
        if not from_canvas(self) or not isinstance(prompt.get(name), dict):  # a loop made this node
            return {}
        sent: dict[str, Any] = {}
        for node, kind, values in upstream_nodes(prompt, name):
            plain = {key: value for key, value in values.items() if not isinstance(value, list)}
            sent[node] = {"class_type": kind, "inputs": plain}
        sent[name]["inputs"].pop("pick", None)
        return {"flowcore_sent": [sent]}

    def picked(self, output: Any, place: int) -> tuple[Any, ...]:
        """Reduce the outputs of `run` to those of one picture, by its place from 0."""
        args, one = [*output.args], slice(place, place + 1)
        for k in self.PICKED:
            args[k] = args[k].select(one) if isinstance(args[k], Latents) else args[k][one]
            if isinstance(args[k], Tensor):
                args[k] = args[k].clone()  # a view would keep all of them in the host's cache
        return tuple(args)


def upstream_nodes(prompt: dict[str, Any], node_id: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the id, class and inputs of a node, then of all nodes before it, in a prompt, which may be malformed."""
    visited: set[str] = set()
    waiting = [node_id]
    while waiting:
        name = waiting.pop()
        node = prompt.get(name)
        if name in visited or not isinstance(node, dict):
            continue
        visited.add(name)
        inputs = node.get("inputs")
        inputs = inputs if isinstance(inputs, dict) else {}
        yield name, node.get("class_type"), inputs
        wires = [value for value in inputs.values() if isinstance(value, list) and len(value) == 2]
        waiting += [wire[0] for wire in wires if isinstance(wire[0], str)]


RUNS: RecentlyUsed[Any] = RecentlyUsed(MAX_RUNS, lambda output: held_bytes(output.args))
"""Outputs of the latest runs."""
free_callbacks.append(RUNS.clear)


def keep(key: str, output: Any) -> None:
    """Keep an output if it fits into half of the free memory, and earlier ones with it if all fit into an eighth."""
    free = free_memory("cpu")
    free = 2**33 if free is None else free
    if held_bytes(output.args) <= free // 2:
        RUNS.put(key, output, budget=free // 8)
    else:  # another pick makes the pictures again
        RUNS.clear()


class ClipNode(PickingNode):
    """A node that also takes a VIDEO as `image`, and whose last output is a VIDEO of its pictures."""

    RECORDS = True
    AS_CLIP = True
    OF_VIDEO: ClassVar[dict[str, Any]] = {}  # values of other inputs if `image` is a VIDEO

    @classmethod
    def execute(cls, **values: Any) -> Any:
        clip = components(values.get("image"))
        if clip is not None:
            values |= {"image": clip.images, **cls.OF_VIDEO}
        output = super().execute(**values)
        return io.NodeOutput(*output.args, video_of(output.args[0], clip), ui=output.ui)

    def show_frames(self, frames: Tensor, sources: Tensor, **ui: Any) -> Any:
        """Return and show the frames of a clip, (N, C, H, W), by number; see `gallery`."""
        facts = [{"frame": k + 1} for k in range(len(frames))]
        return self.output(frames, **gallery(self, frames, facts, sources) | ui)


class Origin(NamedTuple):
    """What made a picture."""

    entry: Provenance
    seed: int
    size: tuple[int, int]  # height and width as the model made it


class ProvenanceLog:
    """Provenance of the latest runs, for prompts in which the host reuses a result.

    A node whose result is cached does not run, but its pictures may be saved again. So the provenance of a run is also
    written into every prompt in which the node has the same inputs, including those in the queue.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # keyed by node and pictures: what made them, and their height and width
        self._written: OrderedDict[tuple[str, ...], tuple[Provenance, tuple[int, int]]] = OrderedDict()
        self._posted: deque[tuple[str, str, dict[str, Any]]] = deque(maxlen=MAX_REMEMBERED)

    def write(self, node: PickingNode, values: dict[str, Any], described: dict[str, Any], images: Tensor) -> None:
        """Write the provenance of a run's pictures (B, H, W, C) into its prompt and others with the same inputs."""
        hidden, model, node_id = node.hidden, values["model"], str(node.hidden.unique_id)
        is_source = {name: isinstance(v, (Tensor, list)) or dataclasses.is_dataclass(v) for name, v in values.items()}
        made = Provenance.of(
            values,
            model.flow,
            images.permute(0, 3, 1, 2),
            device=model.patcher.load_device,
            node_id=node_id,
            node=node.SCHEMA.node_id,
            model=model.name,
            model_sha256=model.sha256,
            sources={name: what for name, what in described.items() if name != "model" and is_source[name]},
        )
        entry = made.to_json()
        if isinstance(hidden.extra_pnginfo, dict):
            _put(hidden.extra_pnginfo, node_id, entry)
        if not isinstance(hidden.prompt, dict) or node_id not in hidden.prompt:
            return
        mark = _prompt_fingerprint(hidden.prompt, node_id, {})
        with self._lock:
            key = (mark, *made.pictures)  # a node runs several times over a list
            self._written[key] = made, (images.shape[1], images.shape[2])
            self._written.move_to_end(key)
            while len(self._written) > MAX_REMEMBERED:
                self._written.popitem(last=False)
            for other, name, pnginfo in self._posted:
                if other == mark:
                    _put(pnginfo, name, entry)

    def seeds(self, images: Tensor) -> list[int | None]:
        """Return the seed of each picture (B, C, H, W), found by its fingerprint; None if its run is not remembered."""
        return [None if origin is None else origin.seed for origin in self.origins(images)]

    def origins(self, images: Tensor, prompt: Any = None, node_id: Any = None) -> list[Origin | None]:
        """Find what made pictures (B, C, H, W), by their fingerprints; None if their run is not remembered.

        Given a node, pictures that were changed on the way to it are found, too, by their places among as many.
        """
        with self._lock:
            written = [*reversed(self._written.items())]
        known = dict[str, Origin]()
        for _, (entry, size) in written:
            for number, mark in enumerate(entry.pictures):
                known.setdefault(mark, Origin(entry, entry.seed_at(number), size))
        found = [known.get(provenance.picture_fingerprint(image)) for image in images]
        if any(found) or not isinstance(prompt, dict):
            return found
        for name, *_ in upstream_nodes(prompt, str(node_id)):
            mark = _prompt_fingerprint(prompt, name, {})
            for (node, *marks), _ in written:
                if node == mark and len(marks) == len(images):
                    return [known.get(each) for each in marks]
        return found

    def annotate_prompt(self, body: Any, kinds: set[str]) -> None:
        """Write what is known of nodes of some kinds into a posted prompt, whose body may be malformed."""
        prompt, extra = (body.get("prompt"), body.get("extra_data")) if isinstance(body, dict) else (None, None)
        pnginfo = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
        if not isinstance(prompt, dict) or not isinstance(pnginfo, dict):
            return
        ours = [
            name for name, node in prompt.items() if isinstance(node, dict) and str(node.get("class_type")) in kinds
        ]
        if isinstance(entries := pnginfo.get(KEY), list):  # sent by a canvas that has opened a picture
            pnginfo[KEY] = [e for e in entries[-MAX_ENTRIES:] if isinstance(e, dict) and e.get("node_id") not in ours]
        digests: dict[str, str] = {}
        for node_id in ours[:MAX_ENTRIES]:  # the host waits for us
            try:
                mark = _prompt_fingerprint(prompt, node_id, digests)
            except RecursionError:  # deeply nested values, which the host refuses next
                continue
            with self._lock:
                for entry in [entry for (node, *_), (entry, _) in self._written.items() if node == mark]:
                    _put(pnginfo, node_id, entry.to_json())
                self._posted.append((mark, node_id, pnginfo))


PROVENANCE_LOG = ProvenanceLog()


def _put(pnginfo: dict[str, Any], node_id: str, entry: dict[str, Any]) -> None:
    """Put the provenance of a node into the `extra_pnginfo` of a prompt, replacing that of the same pictures."""
    entries = pnginfo.get(KEY)
    others = [other for other in entries if isinstance(other, dict)] if isinstance(entries, list) else []
    subject = node_id, entry.get("pictures")
    others = [other for other in others if (other.get("node_id"), other.get("pictures")) != subject]
    pnginfo[KEY] = [*others, {**entry, "node_id": node_id}][-MAX_ENTRIES:]


def _prompt_fingerprint(prompt: dict[str, Any], node_id: str, digests: dict[str, str]) -> str:
    """Fingerprint a node with its inputs and all nodes before it; `digests` caches those of single nodes."""
    fingerprints: dict[str, str] = {}
    for name, kind, inputs in upstream_nodes(prompt, node_id):
        if name not in digests:
            # The host turns 1 into 1.0 for inputs of type FLOAT.
            plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in inputs.items()}
            digests[name] = fingerprint([kind, plain])
        fingerprints[name] = digests[name]
    return fingerprint([node_id, fingerprints])
