"""Flows among other upscaling models: SRFlow files in the host's own loader, and a flow as an UPSCALE_MODEL."""

from __future__ import annotations

from typing import Any

from ..flowcore import FlowError
from ..flowcore.checkpoints import catalog
from ..flowcore.integrations.spandrel import Upscaler, descriptor, register
from .host import (
    Notes,
    io,
    load_to_device,
    log,
    make,
    model_files,
    model_path,
    on_start,
    stop_if_cancelled,
    upscale_model_files,
)
from .sockets import FlowModel, flow_of, seed_input, temperature_input

SEAMS = (
    "Above temperature 0, upscale nodes that work in tiles (the host's in tiles of 512 pixels) show seams where tiles "
    "meet: each draws its own detail. Use 0, or Flow Upscale, whose tiles share their detail."
)


class FlowcoreAsUpscaleModel(io.ComfyNode):
    """A flow, a temperature and a seed, as an UPSCALE_MODEL."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreAsUpscaleModel",
            display_name="Flow As Upscale Model",
            category="flowcore/upscaling",
            description="Makes an ordinary upscale model of an upscaling flow, with a temperature and a seed baked in: "
            "for Upscale Image (using Model), Ultimate SD Upscale and all others that take one.",
            search_aliases=["upscale model", "srflow", "flow", "ultimate sd upscale", "esrgan", "convert model"],
            inputs=[
                make(FlowModel.Input, "model", tooltip="An upscaling flow from Load Flow Model."),
                temperature_input(
                    0.0,
                    "How lively the detail is. 0: the calm, most likely picture, and no seams. Above 0: upscale nodes "
                    "work in tiles, and each tile draws its own detail; pictures of one tile have no seams.",
                ),
                seed_input(
                    0,
                    "Which of the possible pictures, above temperature 0. The detail of a tile hangs on the seed and "
                    "on the tile's own pixels: the same picture gives the same result.",
                ),
            ],
            outputs=[
                make(
                    io.UpscaleModel.Output,
                    "upscale_model",
                    display_name="upscale_model",
                    tooltip="For Upscale Image (using Model) and whatever else takes an upscale model.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model: Any, temperature: float, seed: int) -> Any:
        """Put the flow into the shape of an upscale model; nothing is computed."""
        notes = Notes("Flow As Upscale Model", cls.hidden.unique_id)
        upscaler = Upscaler(flow_of(model), temperature=temperature, seed=seed, cancelled=stop_if_cancelled)
        if temperature:
            notes(SEAMS)
        return io.NodeOutput(in_care_of(model, descriptor(upscaler)), ui=notes.ui)


def in_care_of(model: Any, described: Any) -> Any:
    """Let the host go on to move a flow that is now an upscale model, too.

    Args:
        model: The FLOW_MODEL.
        described: The upscale model.

    Returns:
        The same upscale model.
    """

    def to(device: Any = None, dtype: Any = None) -> Any:
        # Old hosts move upscale models themselves, there and back. The host's own care for the model would not know.
        if device is not None and str(device) == str(model.load_device):
            load_to_device(model, 0)
        return described

    described.patcher = model  # by which newer hosts move it
    described.to = to
    return described


def _register() -> None:
    """Tell spandrel about SRFlow: by it the host loads upscale models."""
    try:
        register(_every_file, stop_if_cancelled)
    except FlowError as error:  # without spandrel the host has no such nodes
        log.info("flowcore: %s", error)
    except Exception:  # of a spandrel that has changed: the rest of the pack does not need it
        log.exception("flowcore could not make SRFlow known to Load Upscale Model")


def _every_file() -> list[Any]:
    """List all files that may hold the tensors that the host's loader has read; those of its own folder first."""
    ours = [path for name in model_files() if (path := model_path(name))]
    return [*upscale_model_files(), *ours, *map(catalog.path, catalog.names())]


on_start.append(_register)
