"""Load a flow by its name, or the flow and settings that made a picture."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch

from .. import flowcore
from ..flowcore import ImageError, provenance
from ..flowcore.checkpoints import catalog, read_config
from ..flowcore.images.files import read
from ..flowcore.images.rounding import truncate_16_bits
from ..flowcore.provenance import ProvenanceError
from . import widgets
from .host.compat import io
from .host.paths import input_files, model_files, model_folders, model_path
from .node import TEXTS, FileNode, file_fingerprint
from .sockets import FLOW_MODEL, TASKS, FlowModel, shown, to_image

# What each shipped model is for, and each task of the others.
USES: dict[str, str] = TEXTS["uses"]

# Inputs that can follow the model, and where its configuration holds their numbers.
OWN_FIELDS = {name: name for name in ("temperature", "calm_edges", "coherence", "saturation")} | {"factor": "scale"}


def model_choices() -> list[str]:
    """List the models that can be loaded: shipped ones first, then files."""
    shipped = catalog.names()
    return [*shipped, *(name for name in model_files() if name not in shipped)]


def _models() -> list[tuple[str, Path]]:
    return [(name, path) for name in model_choices() if (path := locate_model(name)) is not None]


def _facts_for_page() -> dict[str, Any]:
    """Collect what the file of each model states, for web/js/models.js."""
    stated = {name: facts for name, path in _models() if (facts := _stated(path, *file_fingerprint(path)))}
    return {TASKS: {name: facts["tasks"] for name, facts in stated.items()}, "flowcore_facts": stated}


@lru_cache(maxsize=1024)
def _stated(path: Path, *_: Any) -> dict[str, Any]:
    """Read what a model's file states before it is loaded; nothing if it does not tell what it is made for."""
    config = read_config(path)
    tasks = sorted(getattr(config, "tasks", None) or ())
    if not tasks:
        return {}
    own = {name: getattr(config, field) for name, field in OWN_FIELDS.items() if hasattr(config, field)}
    own |= zip(("temperature", "detail"), getattr(config, "temperatures", ()), strict=False)
    return {"tasks": tasks, "styles": list(getattr(config, "styles", ())), "own": own}


def locate_model(name: str) -> Path | None:
    """Find the file of one of `model_choices`; None if there is no such model."""
    return catalog.path(name) if name in catalog.names() else model_path(name)


class FlowcoreLoadModel(FileNode):
    """A model file or a shipped model, as a FLOW_MODEL."""

    ALIASES = ("flow", "srflow", "load srflow", "normalizing flow", "super resolution", "upscale model", "colorizer")
    OUTPUTS = (FLOW_MODEL.Output("model"), io.String.Output("info"))

    @classmethod
    def locate(cls, name: str) -> Path | None:
        return locate_model(name)

    @classmethod
    def missing(cls, name: Any) -> str:
        return (
            f"there is no flow model {shown(name)}. Put the file into {' or '.join(model_folders())} and press R, or "
            f"choose one of: {', '.join(model_choices())}."
        )

    @classmethod
    def run(
        cls,
        model_name: Annotated[str, widgets.file_choice(model_choices, _facts_for_page, default="srflow-x4")],
        path: Path,
    ) -> Any:
        flow = flowcore.load(model_name if model_name in catalog.names() else path)
        facts = {"use": _use(model_name, flow), **_facts(flow)}
        info = "\n".join(f"{name}: {value}" for name, value in facts.items())
        return io.NodeOutput(FlowModel.of(flow, model_name), info, ui={name: [value] for name, value in facts.items()})


class FlowcoreLoadRecipe(FileNode):
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
    def missing(cls, name: Any) -> str:
        return f"there is no file {shown(name)} in the input folder. Upload it, or choose one that is there."

    @classmethod
    def run(
        cls,
        image: Annotated[str, widgets.file_choice(partial(input_files, "", ".png"), upload=io.UploadType.image)],
        path: Path,
    ) -> Any:
        notes = cls.notes()
        every = provenance.read(path)
        picture = _read_png(path)
        mark = provenance.fingerprint(truncate_16_bits(picture))
        recipe = provenance.select(every, mark)
        if mark not in recipe.pictures:
            notes(
                "The picture was changed after it was made (resized, joined, retouched): the recipe makes what it was "
                "before."
            )
        name, flow = provenance.find_model(recipe, locate_model(recipe.model), _models())
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


def _use(name: str, flow: flowcore.Flow) -> str:
    return USES.get(name) or "; ".join(USES[task] for task in sorted(flow.capabilities.tasks))


def _facts(flow: flowcore.Flow) -> dict[str, Any]:
    config, provenance = flow.config, flow.provenance
    facts = {
        "architecture": flow.architecture,
        "scale": getattr(config, "scale", None),
        "size": "{}x{}".format(*flow.image_size) if flow.image_size else None,
        "temperature": getattr(config, "temperature", None),
        "calm_edges": getattr(config, "calm_edges", None),
        "working_size": getattr(config, "working_size", None),
        "labels": f"0 to {flow.classes - 1}" if flow.classes else None,
        "styles": ", ".join(flow.styles) or None,
        "licence": str(provenance.get("licence", "not stated")),
        "source": str(provenance.get("source", "not stated")),
    }
    return {name: value for name, value in facts.items() if value is not None}


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
