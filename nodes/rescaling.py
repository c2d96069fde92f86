"""Rescale: photographs as small ordinary pictures, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import flowcore
from ..flowcore.tasks import Precision
from ..flowcore.tasks.upscale import memory_required
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.ui import Progress, gallery, seeds_in_turn
from .node import FlowNode, schema
from .picking import HIDDEN, PickingNode
from .sockets import FlowModel, check_memory, flow_model, from_image, to_image

ORDINARY_TILE = 512  # pixels of the small picture


class FlowcoreShrink(FlowNode):
    """Small pictures of photographs, which the same model restores."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreShrink",
            "upscaling",
            aliases=["shrink", "downscale", "rescale", "hcflow", "compress", "thumbnail", "flow shrink"],
            inputs=[io.Image.Input("image"), flow_model("rescale")],
            outputs=[io.Image.Output("small"), io.Int.Output("width"), io.Int.Output("height")],
        )

    @classmethod
    def run(cls, image: Tensor, model: FlowModel) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        model.flow.require("rescale")
        height, width = pixels.shape[-2:]
        scale = model.flow.condition_scale
        flow = model.load(memory_required(model.flow, -(-height // scale), -(-width // scale)))
        small = flowcore.shrink(flow, pixels, progress=Progress(), cancelled=stop_if_cancelled, notify=notes)
        return io.NodeOutput(to_image(small), width, height, ui=notes.ui)


class FlowcoreRestore(PickingNode):
    """Photographs from their small pictures: all samples of the first, then of the second."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreRestore",
            "upscaling",
            aliases=["restore", "rescale", "hcflow", "enlarge", "upscale", "decompress", "flow restore"],
            inputs=[
                io.Image.Input("small"),
                flow_model("rescale"),
                widgets.temperature(widgets.OWN, own=True),
                widgets.seed(),
                io.Int.Input("samples", default=1, min=1, max=64, optional=True),
                io.Int.Input("width", default=0, min=0, max=65536, optional=True),
                io.Int.Input("height", default=0, min=0, max=65536, optional=True),
                io.Int.Input("tile", default=0, min=0, max=4096, optional=True),
                widgets.precision(),
                widgets.pick(),
            ],
            outputs=[io.Image.Output("images")],
            hidden=HIDDEN,
            advanced=("width", "height", "tile", "precision"),
        )

    @classmethod
    def run(
        cls,
        small: Tensor,
        model: FlowModel,
        temperature: float,
        seed: int,
        samples: int,
        width: int,
        height: int,
        tile: int,
        precision: Precision,
    ) -> Any:
        notes, pixels = cls.notes(), from_image(small)
        model.flow.require("rescale")
        rows, columns = pixels.shape[-2:]
        scale = model.flow.condition_scale
        advice = "Lower samples, or pass fewer or smaller pictures."
        check_memory(len(pixels) * samples, 3 * scale**2 * rows * columns, "pictures need", advice)
        flow = model.load(memory_required(model.flow, rows, columns, tile or ORDINARY_TILE))
        pictures = flowcore.restore(
            flow,
            pixels,
            temperature=widgets.own_or(temperature),
            seed=seed,
            samples=samples,
            size=(height or rows * scale, width or columns * scale),
            tile=tile,
            precision=precision,
            progress=Progress(pixels),
            cancelled=stop_if_cancelled,
            notify=notes,
        )
        facts = seeds_in_turn(seed, samples, len(pictures))
        return io.NodeOutput(to_image(pictures), ui=gallery(pictures, facts, notes, cls.hidden.extra_pnginfo, pixels))
