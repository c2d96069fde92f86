"""Load a flow by its name, or the flow and settings that made a picture."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .. import flowcore
from ..flowcore import CheckpointError, provenance
from ..flowcore.checkpoints import catalog, read_tasks
from ..flowcore.provenance import ProvenanceError
from .host.compat import io
from .host.paths import input_files, input_path, model_files, model_folders, model_path
from .node import TEXTS, FlowNode, schema
from .sockets import FLOW_MODEL, TASKS, FlowModel, shown, to_image

# What each shipped model is for, and each task of the others.
USES: dict[str, str] = TEXTS["uses"]


class FlowcoreLoadModel(FlowNode):
    """A model file or a shipped model, as a FLOW_MODEL."""

    @classmethod
    def define_schema(cls) -> Any:
        names = model_choices()
        models = io.Combo.Input("model_name", options=names, default="srflow-x4")
        # Host 0.3.75 takes it in no other way.
        models.extra_dict = {TASKS: {name: tasks for name in names if (tasks := _tasks(name))}}
        return schema(
            "FlowcoreLoadModel",
            "loaders",
            aliases=[
                "flow",
                "srflow",
                "load srflow",
                "normalizing flow",
                "super resolution",
                "upscale model",
                "colorizer",
            ],
            inputs=[models],
            outputs=[FLOW_MODEL.Output("model"), io.String.Output("info")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        if locate_model(_current(model_name)) is not None:
            return True
        return (
            f"there is no flow model {shown(model_name)}. Put the file into {' or '.join(model_folders())} and press "
            f"R, or choose one of: {', '.join(model_choices())}."
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str) -> list[Any]:
        return file_fingerprint(locate_model(_current(model_name)), model_name)

    @classmethod
    def run(cls, model_name: str) -> Any:
        notes, asked, model_name = cls.notes(), model_name, _current(model_name)
        if model_name != asked:
            notes(f"{asked} is no longer shipped: {model_name} takes its place, and its pictures are others.")
        path = locate_model(model_name)
        if path is None:
            raise CheckpointError(f"the flow model '{model_name}' is gone; choose another one.")
        flow = flowcore.load(model_name if model_name in catalog.names() else path)
        facts = {"use": _use(model_name, flow), **_facts(flow)}
        info = "\n".join(f"{name}: {value}" for name, value in facts.items())
        ui = {"text": ["\n".join([*notes.lines, info])], **{name: [value] for name, value in facts.items()}}
        return io.NodeOutput(FlowModel.of(flow, model_name), info, ui=ui)


class FlowcoreLoadRecipe(FlowNode):
    """What made a PNG file: model, temperature, seed."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreLoadRecipe",
            "loaders",
            aliases=["recipe", "metadata", "png info", "seed", "reproduce", "flow", "load image"],
            inputs=[io.Combo.Input("image", options=input_files("", ".png"), upload=io.UploadType.image)],
            outputs=[
                FLOW_MODEL.Output("model"),
                io.Float.Output("temperature"),
                io.Int.Output("seed"),
                io.String.Output("recipe"),
                io.Image.Output("picture"),
                io.Float.Output("calm_edges"),
            ],
        )

    @classmethod
    def validate_inputs(cls, image: Any) -> bool | str:
        if isinstance(image, str) and input_path(image) is not None:
            return True
        return f"there is no file {shown(image)} in the input folder. Upload it, or choose one that is there."

    @classmethod
    def fingerprint_inputs(cls, image: str) -> list[Any]:
        return file_fingerprint(input_path(image), image)

    @classmethod
    def run(cls, image: str) -> Any:
        notes = cls.notes()
        path = input_path(image)
        if path is None:
            raise ProvenanceError(f"{shown(image)} is gone from the input folder. Choose another picture.")
        every = provenance.read(path)
        picture = _read_png(path)
        mark = provenance.fingerprint(picture)
        recipe = provenance.select(every, mark)
        if mark not in recipe.pictures:
            notes(
                "The picture was changed after it was made (resized, joined, retouched): the recipe makes what it was "
                "before."
            )
        others = [(name, found) for name in model_choices() if (found := locate_model(name)) is not None]
        name, flow = provenance.find_model(recipe, locate_model(recipe.model), others)
        seed = recipe.seed_of(mark)
        text = json.dumps(recipe.to_json(), indent=2, ensure_ascii=False)
        facts = {"node": [recipe.node], "model": [name], "temperature": [recipe.temperature], "seed": [seed]}
        lines = [f"{key}: {value[0]}" for key, value in facts.items()]
        lines += [f"{key}: {shown(value)}" for key, value in recipe.settings.items() if provenance.is_plain(value)]
        return io.NodeOutput(
            FlowModel.of(flow, name),
            recipe.temperature,
            seed,
            text,
            to_image(picture[None].float() / 255),
            _calm_edges(recipe),
            ui={"text": ["\n".join([*lines, *notes.lines])], **facts},
        )


# ---------------------------------------------------------------------------------------------------------------------
# files


def model_choices() -> list[str]:
    """List the models that can be loaded: shipped ones first, then files."""
    shipped = catalog.names()
    return [*shipped, *(name for name in model_files() if name not in shipped)]


def _current(name: Any) -> Any:
    """Name the model that takes the place of one that is no longer shipped, unless there is a file of that name."""
    return catalog.REPLACED.get(name, name) if isinstance(name, str) and locate_model(name) is None else name


def _tasks(name: str) -> list[str]:
    """List what a model is made for; nothing if its file does not tell."""
    path = locate_model(name)
    return [] if path is None else _tasks_of(path, *file_fingerprint(path, name))


@lru_cache(maxsize=1024)
def _tasks_of(path: Path, *_: Any) -> list[str]:
    return sorted(read_tasks(path) or ())


def locate_model(name: Any) -> Path | None:
    """Find the file of a model.

    Args:
        name: One of `model_choices`; a prompt may hold anything.

    Returns:
        The path, or None if there is no such model.
    """
    if not isinstance(name, str):
        return None
    return catalog.path(name) if name in catalog.names() else model_path(name)


def file_fingerprint(path: Path | None, name: str) -> list[Any]:
    """Return what makes a node run again when its file has changed."""
    if path is None:
        return [name]
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def _use(name: str, flow: flowcore.Flow) -> str:
    return USES.get(name) or "; ".join(USES[task] for task in sorted(flow.capabilities.tasks))


def _facts(flow: flowcore.Flow) -> dict[str, str | float]:
    facts: dict[str, str | float] = {"architecture": flow.architecture}
    scale = getattr(flow.config, "scale", None)
    if scale is not None:
        facts["scale"] = scale
    if flow.image_size is not None:
        facts["size"] = "{}x{}".format(*flow.image_size)
    for name in ("temperature", "calm_edges"):
        if hasattr(flow.config, name):
            facts[name] = getattr(flow.config, name)
    working_size = getattr(flow.config, "working_size", None)
    if working_size is not None:
        facts["working_size"] = working_size
    if flow.classes:
        facts["labels"] = f"0 to {flow.classes - 1}"
    if flow.styles:
        facts["styles"] = ", ".join(flow.styles)
    facts["licence"] = str(flow.provenance.get("licence", "not stated"))
    facts["source"] = str(flow.provenance.get("source", "not stated"))
    return facts


def _calm_edges(recipe: provenance.Provenance) -> float:
    """Return the calm_edges of a picture; a recipe from before there were any has 0."""
    value = recipe.settings.get("calm_edges", 0.0)
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else 0.0


def _read_png(path: Path) -> torch.Tensor:
    """Read a PNG file: (3, H, W), uint8."""
    try:
        with Image.open(path, formats=["PNG"]) as file:
            pixels = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # of many classes, if the bytes are hostile
        raise ProvenanceError(f"{path.name} is damaged: {str(error)[:200]}. Use the file as it was saved.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
