"""Load a flow by its name, or the flow and settings that made a picture."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch

from .. import flowcore
from ..flowcore import CheckpointError, ImageError, provenance
from ..flowcore.checkpoints import catalog, read_config
from ..flowcore.images.files import read
from ..flowcore.images.rounding import truncate_16_bits
from ..flowcore.provenance import ProvenanceError
from . import widgets
from .host.compat import io
from .host.paths import input_files, input_path, model_files, model_folders, model_path
from .node import TEXTS, FlowNode
from .sockets import FLOW_MODEL, TASKS, FlowModel, shown, to_image

# What each shipped model is for, and each task of the others.
USES: dict[str, str] = TEXTS["uses"]

# Inputs that can follow the model, and where its configuration holds their numbers.
OWN_FIELDS = {name: name for name in ("temperature", "calm_edges", "coherence", "saturation")} | {"factor": "scale"}


def _choice(name: str) -> Any:
    """Describe the choice of a model, with what the file of each states, for web/js/models.js."""
    names = model_choices()
    described = io.Combo.Input(name, options=names, default="srflow-x4")
    stated = {model: facts for model in names if (facts := _stated(model))}
    # Host 0.3.75 takes them in no other way.
    described.extra_dict = {TASKS: {model: facts["tasks"] for model, facts in stated.items()}, "flowcore_facts": stated}
    return described


class FlowcoreLoadModel(FlowNode):
    """A model file or a shipped model, as a FLOW_MODEL."""

    ALIASES = ("flow", "srflow", "load srflow", "normalizing flow", "super resolution", "upscale model", "colorizer")
    OUTPUTS = (FLOW_MODEL.Output("model"), io.String.Output("info"))

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        if locate_model(model_name) is not None:
            return True
        return (
            f"there is no flow model {shown(model_name)}. Put the file into {' or '.join(model_folders())} and press "
            f"R, or choose one of: {', '.join(model_choices())}."
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str) -> list[Any]:
        return file_fingerprint(locate_model(model_name), model_name)

    @classmethod
    def run(cls, model_name: Annotated[str, _choice]) -> Any:
        path = locate_model(model_name)
        if path is None:
            raise CheckpointError(f"the flow model '{model_name}' is gone; choose another one.")
        flow = flowcore.load(model_name if model_name in catalog.names() else path)
        facts = {"use": _use(model_name, flow), **_facts(flow)}
        info = "\n".join(f"{name}: {value}" for name, value in facts.items())
        return io.NodeOutput(FlowModel.of(flow, model_name), info, ui={name: [value] for name, value in facts.items()})


def _pictures() -> list[str]:
    return input_files("", ".png")


class FlowcoreLoadRecipe(FlowNode):
    """What made a PNG file: model, temperature, seed."""

    ALIASES = ("recipe", "metadata", "png info", "seed", "reproduce", "flow", "load image")
    OUTPUTS = (
        FLOW_MODEL.Output("model"),
        io.Float.Output("temperature"),
        io.Int.Output("seed"),
        io.String.Output("recipe"),
        io.Image.Output("picture"),
        io.Float.Output("calm_edges"),
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
    def run(cls, image: Annotated[str, widgets.listed(_pictures, upload=io.UploadType.image)]) -> Any:
        notes = cls.notes()
        path = input_path(image)
        if path is None:
            raise ProvenanceError(f"{shown(image)} is gone from the input folder. Choose another picture.")
        every = provenance.read(path)
        picture = _read_png(path)
        mark = provenance.fingerprint(truncate_16_bits(picture))
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
            to_image(picture[None]),
            _calm_edges(recipe),
            ui={"text": ["\n".join([*lines, *notes.lines])], **facts},
        )


# ---------------------------------------------------------------------------------------------------------------------
# files


def model_choices() -> list[str]:
    """List the models that can be loaded: shipped ones first, then files."""
    shipped = catalog.names()
    return [*shipped, *(name for name in model_files() if name not in shipped)]


def _stated(name: str) -> dict[str, Any]:
    """Return what a model's file states before it is loaded; nothing if it does not tell what it is made for."""
    path = locate_model(name)
    return {} if path is None else _stated_by(path, *file_fingerprint(path, name))


@lru_cache(maxsize=1024)
def _stated_by(path: Path, *_: Any) -> dict[str, Any]:
    config = read_config(path)
    tasks = sorted(getattr(config, "tasks", None) or ())
    if not tasks:
        return {}
    own = {name: getattr(config, field) for name, field in OWN_FIELDS.items() if hasattr(config, field)}
    own |= zip(("temperature", "detail"), getattr(config, "temperatures", ()), strict=False)
    return {"tasks": tasks, "styles": list(getattr(config, "styles", ())), "own": own}


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
    """Return the calm_edges of a picture; 0 if its recipe has none, as those of colorings."""
    value = recipe.settings.get("calm_edges", 0.0)
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else 0.0


def _read_png(path: Path) -> torch.Tensor:
    """Read a PNG file of 8 or 16 bits: (3, H, W) in [0, 1]."""
    try:
        return read(path.read_bytes(), path.name).pixels[0, :3]
    except (ImageError, OSError) as error:
        raise ProvenanceError(f"{error} Either it is damaged, or no PNG file; use the file as it was saved.") from error
