"""Recipes: what made a picture goes into its PNG file, and comes out again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .. import flowcore
from ..flowcore import provenance
from ..flowcore.provenance import KEY, MAX_ENTRIES, MAX_PICTURES, Provenance, ProvenanceError
from .host import Notes, input_files, input_path, io, log, make, on_prompt, on_start, wrap
from .inputs import shown
from .load import choices, locate
from .sockets import FlowModel, fingerprint, flow_of, model_name, name_model, to_image

if TYPE_CHECKING:
    from pathlib import Path

REMEMBERED = 64  # prompts, and pictures, whose recipes are kept at hand

# What a recipe says under a name of its own; all other values are its settings.
NAMED = ("model", "temperature", "seed", "samples")


# ---------------------------------------------------------------------------------------------------------------------
# writing


def recorded(node: type) -> type:
    """Let a node write a recipe for the pictures that it makes.

    It goes into the hidden `extra_pnginfo`, which the host writes into every PNG file, and which is no part of what
    decides whether a node runs again.

    Args:
        node: Its class, with the hidden inputs `unique_id`, `prompt` and `extra_pnginfo`, and pictures as its first
            output.

    Returns:
        The same class.
    """
    inner: Callable[..., Any] = vars(node)["execute"].__func__
    signature = inspect.signature(inner)
    _kinds.add(node.__name__)

    @functools.wraps(inner)
    def execute(cls: Any, /, **given: Any) -> Any:
        output = inner(cls, **given)
        bound = signature.bind(cls, **given)
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])  # without cls
        try:
            _write(cls.hidden, node.__name__, values, output)
        except Exception:  # the picture is worth more than its recipe
            log.exception("flowcore could not write a recipe")
        return output

    node.execute = classmethod(execute)  # pyright: ignore[reportAttributeAccessIssue]
    return node


_kinds: set[str] = set()
# A node whose result the host still has does not run, and its pictures may be saved once more: what was written when it
# did run is written for all prompts in which it stands with the same inputs, those that wait included.
_written: OrderedDict[str, dict[str, Any]] = OrderedDict()
_posted: deque[tuple[str, str, dict[str, Any]]] = deque(maxlen=REMEMBERED)


def _write(hidden: Any, kind: str, values: dict[str, Any], output: Any) -> None:
    """Write the recipe of one run into the prompt's `extra_pnginfo`, and into those of its like."""
    node_id = str(hidden.unique_id)
    entry = _recipe(node_id, kind, values, output.args[0]).to_json()
    if isinstance(hidden.extra_pnginfo, dict):
        put(hidden.extra_pnginfo, node_id, entry)
    if isinstance(hidden.prompt, dict) and node_id in hidden.prompt:
        mark = _mark(hidden.prompt, node_id, {})
        _written[mark] = entry
        _written.move_to_end(mark)
        while len(_written) > REMEMBERED:
            _written.popitem(last=False)
        for other, name, pnginfo in _posted:
            if other == mark:
                put(pnginfo, name, entry)


def _recipe(node_id: str, kind: str, values: dict[str, Any], images: torch.Tensor) -> Provenance:
    flow = flow_of(values["model"])
    pictures = images.permute(0, 3, 1, 2)
    return Provenance(
        node_id=node_id,
        node=kind,
        model=model_name(flow),
        model_sha256=fingerprint(flow),
        architecture=flow.architecture,
        temperature=values["temperature"],
        seed=values["seed"],
        samples=values["samples"],
        settings={name: value for name, value in values.items() if name not in NAMED and provenance.is_plain(value)},
        sources={name: _source(value) for name, value in values.items() if name != "model" and _is_source(value)},
        pictures=tuple(provenance.fingerprint(picture) for picture in pictures[:MAX_PICTURES]),
        version=flowcore.__version__,
    )


def _is_source(value: Any) -> bool:
    """Images and masks, latents and hints; what is left are pictures that only the canvas looks at."""
    return isinstance(value, (torch.Tensor, list)) or dataclasses.is_dataclass(value)


def _source(value: Any) -> Any:
    """Describe what came along a wire: images, latents and hints by their values, all else by its kind."""
    if isinstance(value, torch.Tensor):
        return provenance.source(value)
    if isinstance(value, list):
        return [_source(item) for item in value]
    if dataclasses.is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {name: _source(part) for name, part in parts.items() if part is not None}
    return value if provenance.is_plain(value) else {"kind": type(value).__name__}


def put(pnginfo: dict[str, Any], node_id: str, entry: dict[str, Any]) -> None:
    """Put the recipe of a node among those of a prompt, in place of an earlier one.

    Args:
        pnginfo: The prompt's `extra_pnginfo`.
        node_id: Of the node.
        entry: What `Provenance.to_json` gave.
    """
    before = pnginfo.get(KEY)
    kept = before if isinstance(before, list) else []
    kept = [other for other in kept if isinstance(other, dict) and other.get("node_id") != node_id]
    pnginfo[KEY] = [*kept, {**entry, "node_id": node_id}][-MAX_ENTRIES:]


def look_at(body: Any) -> None:
    """Write into a prompt what is known of its nodes already; those that run will replace it.

    Args:
        body: What was posted, whatever it is.
    """
    prompt, extra = (body.get("prompt"), body.get("extra_data")) if isinstance(body, dict) else (None, None)
    pnginfo = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    if not isinstance(prompt, dict) or not isinstance(pnginfo, dict):
        return
    ours = [name for name, node in prompt.items() if isinstance(node, dict) and str(node.get("class_type")) in _kinds]
    digests: dict[str, str] = {}
    for node_id in ours[:MAX_ENTRIES]:  # whatever is posted, the host does not wait for us
        try:
            mark = _mark(prompt, node_id, digests)
        except RecursionError:  # values within values, which the host refuses next
            continue
        if mark in _written:
            put(pnginfo, node_id, _written[mark])
        _posted.append((mark, node_id, pnginfo))


def _mark(prompt: dict[str, Any], node_id: str, digests: dict[str, str]) -> str:
    """Fingerprint a node, its inputs, and everything before it, as a prompt has it.

    Args:
        prompt: Node id to node.
        node_id: Of the node.
        digests: Of the prompt's nodes, where they have been computed; more are added.

    Returns:
        Hexadecimal digits.
    """
    found: dict[str, str] = {}
    waiting = [node_id]
    while waiting:
        name = waiting.pop()
        node = prompt.get(name)
        if name in found or not isinstance(node, dict):
            continue
        values = node.get("inputs")
        values = values if isinstance(values, dict) else {}
        if name not in digests:
            # The host makes 1.0 of 1 where a number need not be whole.
            plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
            text = json.dumps([node.get("class_type"), plain], sort_keys=True)
            digests[name] = hashlib.sha256(text.encode()).hexdigest()
        found[name] = digests[name]
        waiting += [value[0] for value in values.values() if isinstance(value, list) and _is_wire(value)]
    return hashlib.sha256(json.dumps([node_id, found], sort_keys=True).encode()).hexdigest()


def _is_wire(value: list[Any]) -> bool:
    return len(value) == 2 and isinstance(value[0], str)


on_start.append(lambda: on_prompt(look_at))


# ---------------------------------------------------------------------------------------------------------------------
# reading


class FlowcoreLoadRecipe(io.ComfyNode):
    """What made a PNG file: model, temperature, seed."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreLoadRecipe",
            display_name="Load Flow Recipe",
            category="flowcore/loaders",
            description="Reads from a PNG file what made it: the model, which is found by its fingerprint, the "
            "temperature and the seed. With the same source they give the same picture again, bit for bit.",
            search_aliases=["recipe", "metadata", "png info", "seed", "reproduce", "flow", "load image"],
            inputs=[
                make(
                    io.Combo.Input,
                    "image",
                    options=input_files("", ".png"),
                    upload=io.UploadType.image,
                    tooltip="A PNG file of the input folder, as Save Image has written it; upload one, or drop it on "
                    "the node. Programs that save it anew mostly leave the recipe out.",
                ),
            ],
            outputs=[
                make(FlowModel.Output, "model", display_name="model", tooltip="The model that made the picture."),
                make(
                    io.Float.Output,
                    "temperature",
                    display_name="temperature",
                    tooltip="The temperature that it was made with.",
                ),
                make(
                    io.Int.Output,
                    "seed",
                    display_name="seed",
                    tooltip="The seed of this very picture: of the third of several samples it is the seed that makes "
                    "it alone.",
                ),
                make(
                    io.String.Output,
                    "recipe",
                    display_name="recipe",
                    tooltip="The whole recipe as JSON, all other settings among it.",
                ),
                make(io.Image.Output, "picture", display_name="image", tooltip="The picture itself."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        """Say what is missing, instead of the host's "value not in list"."""
        if isinstance(image, str) and input_path(image) is not None:  # pyright: ignore[reportUnnecessaryIsInstance]
            return True
        return f"there is no file {shown(image)} in the input folder. Upload it, or choose one that is there."

    @classmethod
    def fingerprint_inputs(cls, image: str) -> list[Any]:
        """Read again when the file has changed."""
        path = input_path(image)
        if path is None:
            return [image]
        stat = path.stat()
        return [str(path), stat.st_size, stat.st_mtime_ns]

    @classmethod
    def execute(cls, image: str) -> Any:
        """Read the recipe, find its model and the seed of this picture."""
        notes = Notes("Load Flow Recipe", cls.hidden.unique_id)
        path = input_path(image)
        if path is None:
            raise ProvenanceError(f"{shown(image)} is gone from the input folder. Choose another picture.")
        every = provenance.read(path)
        picture = _opened(path)
        mark = provenance.fingerprint(picture)
        recipe = provenance.select(every, mark)
        if mark not in recipe.pictures:
            notes(
                "The picture was changed after it was made (resized, joined, retouched): the recipe makes what it was "
                "before."
            )
        others = [(name, found) for name in choices() if (found := locate(name)) is not None]
        name, flow = provenance.find_model(recipe, locate(recipe.model), others)
        name_model(flow, name)
        seed = recipe.seed_of(mark)
        text = json.dumps(recipe.to_json(), indent=2, ensure_ascii=False)
        facts = {"node": [recipe.node], "model": [name], "temperature": [recipe.temperature], "seed": [seed]}
        lines = [f"{key}: {value[0]}" for key, value in facts.items()]
        lines += [f"{key}: {shown(value)}" for key, value in recipe.settings.items() if provenance.is_plain(value)]
        return io.NodeOutput(
            wrap(flow),
            recipe.temperature,
            seed,
            text,
            to_image(picture[None].float() / 255),
            ui={"text": ["\n".join([*lines, *notes.lines])], **facts},
        )


def _opened(path: Path) -> torch.Tensor:
    """Open a PNG file: (3, H, W), uint8."""
    try:
        with Image.open(path, formats=["PNG"]) as file:
            pixels = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # of many classes, if the bytes are hostile
        raise ProvenanceError(f"{path.name} is damaged: {str(error)[:200]}. Use the file as it was saved.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
