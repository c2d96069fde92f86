"""Load a flow: a shipped one by name, or a file from models/flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import flowcore
from ..flowcore.checkpoints import catalog
from .host import io, make, model_files, model_folders, model_path, say, wrap
from .inputs import shown
from .sockets import FlowModel, name_model

if TYPE_CHECKING:
    from pathlib import Path


class FlowcoreLoadModel(io.ComfyNode):
    """A model file or a shipped model, as a FLOW_MODEL."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return make(
            io.Schema,
            node_id="FlowcoreLoadModel",
            display_name="Load Flow Model",
            category="flowcore/loaders",
            description="Loads a normalizing flow: one that comes with flowcore, or a file from models/flows.",
            search_aliases=[
                "flow",
                "srflow",
                "load srflow",
                "normalizing flow",
                "super resolution",
                "upscale model",
                "colorizer",
            ],
            inputs=[
                make(
                    io.Combo.Input,
                    "model_name",
                    options=choices(),
                    # What was first while it was the only one.
                    default="srflow-x4",
                    tooltip="Models that come with flowcore first, then the files in models/flows and in the folders "
                    "that extra_model_paths.yaml names `flows`.",
                ),
            ],
            outputs=[
                make(FlowModel.Output, "model", display_name="model", tooltip="The flow, for the nodes of flowcore."),
                make(
                    io.String.Output,
                    "info",
                    display_name="info",
                    tooltip="Architecture, scale or size, labels, styles, licence and source, one per line.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            # What the node says reaches the history of every run, also of those that find the model in the cache.
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        """Say where a missing model should be, instead of the host's "value not in list"."""
        if locate(model_name) is not None:
            return True
        return (
            f"there is no flow model {shown(model_name)}. Put the file into {' or '.join(model_folders())} and press "
            f"R, or choose one of: {', '.join(choices())}."
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str) -> list[Any]:
        """Load again when the file has changed."""
        path = locate(model_name)
        if path is None:
            return [model_name]
        stat = path.stat()
        return [str(path), stat.st_size, stat.st_mtime_ns]

    @classmethod
    def execute(cls, model_name: str) -> Any:
        """Load the model on the CPU; the host moves it when it is used."""
        path = locate(model_name)
        if path is None:
            raise flowcore.CheckpointError(f"the flow model '{model_name}' is gone; choose another one.")
        flow = flowcore.load(model_name if model_name in catalog.names() else path)
        name_model(flow, model_name)
        facts = _facts(flow)
        info = "\n".join(f"{name}: {value}" for name, value in facts.items())
        say(info.replace("\n", ", "), cls.hidden.unique_id)
        return io.NodeOutput(wrap(flow), info, ui={"text": [info], **{name: [value] for name, value in facts.items()}})


def choices() -> list[str]:
    """List the models that can be loaded: shipped ones first, then files."""
    shipped = catalog.names()
    return [*shipped, *(name for name in model_files() if name not in shipped)]


def locate(name: str) -> Path | None:
    """Find the file of a model.

    Args:
        name: One of `choices`.

    Returns:
        Its path, or None when there is no such model.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a prompt may hold anything
        return None
    return catalog.path(name) if name in catalog.names() else model_path(name)


def _facts(flow: flowcore.Flow) -> dict[str, str | int]:
    facts: dict[str, str | int] = {"architecture": flow.architecture}
    scale = getattr(flow.config, "scale", None)
    if scale is not None:
        facts["scale"] = scale
    if flow.image_size is not None:
        facts["size"] = "{}x{}".format(*flow.image_size)
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
