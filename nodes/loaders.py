"""Load a flow by name, or the flow and settings that made a picture."""

import json
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import flowcore
from flowcore import ImageError
from flowcore.batch import provenance
from flowcore.batch.provenance import ProvenanceError
from flowcore.engine.model_input import label_names
from flowcore.errors import say
from flowcore.flows.stated import Facts
from flowcore.images.files import read, read_bytes
from flowcore.models import catalog
from flowcore.models.model_file import read_config
from flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED

from . import widgets
from .host import paths
from .host.compat import io
from .host.memory import wrap
from .node import TEXTS, FileNode, file_fingerprint
from .sockets import BY_PICTURE, FLOW_MODEL, TASKS, HostModel, ModelByPicture, shown

USES: dict[str, str] = TEXTS["uses"]  # what each shipped model is for, and each task of other models
AUTO_MODEL = str(say("upscaler that suits the picture"))  # its entry in the menu, in workflows and in web/js/models.js


def model_choices() -> list[str]:
    """List the models that can be loaded: shipped ones first, then files."""
    shipped = catalog.names()
    return [*shipped, *(name for name in paths.model_files() if name not in shipped)]


def _model_files() -> list[tuple[str, Path]]:
    return [(name, path) for name in model_choices() if (path := locate_model(name)) is not None]


def _facts_for_page() -> dict[str, Any]:
    """Collect what the file of each model states, for web/js/models.js."""
    stated = {name: Facts.of(stated_config(path, file_fingerprint(path))) for name, path in _model_files()}
    facts = {name: {"tasks": sorted(of.tasks), "styles": list(of.styles)} for name, of in stated.items() if of.tasks}
    facts[AUTO_MODEL] = {"tasks": [BY_PICTURE], "styles": []}
    return {TASKS: {name: of_file["tasks"] for name, of_file in facts.items()}, "flowcore_facts": facts}


@lru_cache(maxsize=1024)
def stated_config(path: Path, _fingerprint: str) -> Any:
    """Read the configuration that a model's file states, again when the file has changed; None if it states none."""
    return read_config(path)


def locate_model(name: str) -> Path | None:
    """Find the file of one of `model_choices`; None if there is no such model."""
    return catalog.path(name) if name in catalog.names() else paths.model_path(name)


MODELS = widgets.file_choice(lambda: [AUTO_MODEL, *model_choices()], _facts_for_page, default=AUTO_MODEL)


class FlowcoreLoadModel(FileNode):
    """Load a model file or a shipped model, as a FLOW_MODEL."""

    MENU = "files"
    ALIASES = "flow, srflow, load srflow, normalizing flow, super resolution, upscale model, colorizer"
    OUTPUTS = (FLOW_MODEL.Output("model"), io.String.Output("info"))

    @classmethod
    def locate(cls, name: str) -> Path | None:
        return locate_model(FOR_CLEAN if name == AUTO_MODEL else name)

    @classmethod
    def fingerprint_inputs(cls, **named: Any) -> Any:
        other = FOR_DAMAGED if named.get("model_name") == AUTO_MODEL else ""
        return super().fingerprint_inputs(**named) + file_fingerprint(locate_model(other))

    @classmethod
    def missing_message(cls, name: Any) -> str:
        if catalog.is_shipped(shipped := FOR_CLEAN if name == AUTO_MODEL else str(name)):
            return str(catalog.unusable(shipped, "is missing"))
        place, models = " or ".join(paths.model_folders()), ", ".join(model_choices())
        return (
            f"there is no flow model {shown(name)}. Put the file into {place}, and press R; or choose one of: {models}."
        )

    def run(self, model_name: Annotated[str, MODELS]) -> Any:
        if model_name == AUTO_MODEL:
            facts = {"use": USES[AUTO_MODEL], "models": f"{FOR_CLEAN}, {FOR_DAMAGED}"}
            model = ModelByPicture(cache(load_model))
        else:
            model = load_model(model_name, self.require_file(model_name))
            use = USES.get(model_name) or "; ".join(USES[task] for task in sorted(model.flow.capabilities.tasks))
            facts = {"use": use, **_describe(model.flow)}
        info = "\n".join(f"{name}: {value}" for name, value in facts.items())
        return self.output(model, info, **{name: [value] for name, value in facts.items()})


def load_model(name: str, path: Path | None = None) -> HostModel:
    """Load one of `model_choices`, a shipped model or the file at a path."""
    return HostModel(wrap(flowcore.load(name if path is None or name in catalog.names() else path)), name)


class FlowcoreLoadRecipe(FileNode):
    """Load the model, temperature and seed that made a PNG file."""

    MENU = "trace"
    ALIASES = "recipe, metadata, png info, seed, reproduce, flow, load image"
    OUTPUTS = (
        FLOW_MODEL.Output("model"),
        io.Float.Output("temperature"),
        io.Int.Output("seed"),
        io.String.Output("recipe"),
        io.Image.Output("picture"),
        io.Float.Output("calm_edges"),
        io.Float.Output("guide_strength"),
        io.Float.Output("calm_faces"),
    )

    @classmethod
    def missing_message(cls, name: Any) -> str:
        return f"there is no file {shown(name)} in the input folder. Upload it, or choose one that is there."

    def run(
        self,
        image: Annotated[str, widgets.file_choice(partial(paths.input_files, "", ".png"), upload=io.UploadType.image)],
    ) -> Any:
        path = self.require_file(image)
        entries = provenance.read(path)
        try:
            picture = read(read_bytes(path), path.name).pixels[0, :3]
        except (ImageError, OSError) as error:
            raise ProvenanceError(
                "{error} The file is damaged or not a PNG file; use the file as it was saved.", error=error
            ) from error
        digest = provenance.picture_fingerprint(picture)
        entry = provenance.select(entries, digest)
        if digest not in entry.pictures:
            self.notes(
                "The picture was changed after it was made (resized, joined, retouched): the recipe makes it as it "
                "was before."
            )
        name, flow = provenance.find_model(entry, locate_model(entry.model), _model_files())
        if not provenance.is_same(entry, flow):
            self.notes(
                "{model} is another version, with another guide or other defaults: the picture may differ.", model=name
            )
        if otherwise := provenance.drawn_otherwise(entry):
            self.notes(otherwise)
        seed = entry.seed_of(digest)
        text = json.dumps(entry.to_json(), indent=2, ensure_ascii=False)
        facts = {"node": [entry.node], "model": [name], "temperature": [entry.temperature], "seed": [seed]}
        lines = [f"{key}: {value[0]}" for key, value in facts.items()]
        lines += [f"{key}: {shown(value)}" for key, value in entry.settings.items() if provenance.is_plain(value)]
        strengths = (_setting(entry, name) for name in ("calm_edges", "guide_strength", "calm_faces"))
        model, text_shown = HostModel(wrap(flow), name), ["\n".join(lines)]
        return self.output(model, entry.temperature, seed, text, picture[None], *strengths, text=text_shown, **facts)


def _describe(flow: flowcore.FlowModel) -> dict[str, Any]:
    """Describe a flow for the node and its output `info`."""
    stated, own = flow.facts, flow.recommended
    labels = ", ".join(f"{number} {name}" for number, name in enumerate(label_names(flow)))
    facts = {
        "architecture": flow.architecture,
        "scale": stated.scale,
        "size": "{}x{}".format(*flow.image_size) if flow.image_size else None,
        "temperature": own.temperature,
        "calm_edges": own.calm_edges,
        "working_size": stated.working_size,
        "labels": labels or (f"0 to {flow.classes - 1}" if flow.classes else None),
        "styles": ", ".join(flow.styles) or None,
        "licence": str(flow.provenance.get("licence", "not stated")),
        "source": str(flow.provenance.get("source", "not stated")),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _setting(entry: provenance.Provenance, name: str) -> float:
    """Return the calm_edges, guide_strength or calm_faces of a picture; 0 if its provenance has none."""
    value = entry.settings.get(name, 0.0)
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else 0.0
