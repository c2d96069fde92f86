"""Rescale: photographs as small ordinary pictures, and back."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from .. import flowcore
from ..flowcore.tasks import Precision
from ..flowcore.tasks.upscale import memory_required
from . import widgets
from .host.compat import io
from .host.ui import Progress, gallery, seeds_in_turn
from .node import FlowNode
from .picking import PickingNode
from .sockets import FlowModel, check_memory, flow_model, from_image, to_image

ORDINARY_TILE = 512  # pixels of the small picture


class FlowcoreShrink(FlowNode):
    """Small pictures of photographs, which the same model restores."""

    MENU = "upscaling"
    ALIASES = ("shrink", "downscale", "rescale", "hcflow", "compress", "thumbnail", "flow shrink")
    OUTPUTS = (io.Image.Output("small"), io.Int.Output("width"), io.Int.Output("height"))

    @classmethod
    def run(cls, image: Annotated[Tensor, io.Image.Input], model: Annotated[FlowModel, flow_model("rescale")]) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        model.flow.require("rescale")
        height, width = pixels.shape[-2:]
        scale = model.flow.condition_scale
        flow = model.load(memory_required(model.flow, -(-height // scale), -(-width // scale)))
        small = flowcore.shrink(flow, pixels, **notes.follow())
        return io.NodeOutput(to_image(small), width, height, ui=notes.ui)


class FlowcoreRestore(PickingNode):
    """Photographs from their small pictures: all samples of the first, then of the second."""

    MENU = "upscaling"
    ALIASES = ("restore", "rescale", "hcflow", "enlarge", "upscale", "decompress", "flow restore")
    OUTPUTS = (io.Image.Output("images"),)

    @classmethod
    def run(
        cls,
        small: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel, flow_model("rescale")],
        temperature: Annotated[float, widgets.temperature(widgets.OWN, own=True)],
        seed: Annotated[int, widgets.seed()],
        samples: Annotated[int, widgets.samples],
        width: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        height: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        tile: Annotated[int, widgets.tile],
        precision: Annotated[Precision, widgets.precision],
        pick: Annotated[int, widgets.pick],
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
            **notes.follow(Progress(pixels)),
        )
        facts = seeds_in_turn(seed, samples, len(pictures))
        return io.NodeOutput(to_image(pictures), ui=gallery(pictures, facts, notes, cls.hidden.extra_pnginfo, pixels))
