"""Brighten: what a dark photograph shows, in one picture or many exposures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import flowcore
from ..flowcore.prior import masked_temperature
from ..flowcore.tasks import Precision
from ..flowcore.tasks.brighten import memory_required
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.ui import Progress, gallery, seeds_in_turn
from .node import schema
from .picking import HIDDEN
from .recording import RecordingNode
from .sockets import FlowModel, check_memory, flow_model, from_image, from_mask, to_image

ORDINARY_TILE = 1024  # pixels


class FlowcoreBrighten(RecordingNode):
    """Exposures of every image: all samples of the first image, then of the second."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreBrighten",
            "light",
            aliases=["brighten", "low light", "dark photo", "night", "exposure", "llflow", "enhance", "underexposed"],
            inputs=[
                io.Image.Input("image"),
                flow_model("brighten"),
                widgets.temperature(0.0),
                widgets.seed(),
                io.Int.Input("samples", default=1, min=1, max=64, optional=True),
                io.Int.Input("tile", default=0, min=0, max=8192, optional=True),
                widgets.precision(),
                io.Mask.Input("mask", optional=True),
                widgets.temperature(0.0, "outside", optional=True),
                widgets.pick(),
            ],
            outputs=[io.Image.Output("images")],
            hidden=HIDDEN,
            advanced=("tile", "precision"),
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        model: FlowModel,
        temperature: float,
        seed: int,
        samples: int,
        tile: int,
        precision: Precision,
        mask: Tensor | None,
        outside: float,
    ) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        count, _, height, width = pixels.shape
        check_memory(count * samples, 3 * height * width, "pictures need", "Lower samples, or pass fewer images.")
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE))
        tau: float | Tensor = temperature
        if mask is not None:
            tau = masked_temperature(from_mask(mask, count), temperature, outside)
        pictures = flowcore.brighten(
            flow,
            pixels,
            temperature=tau,
            seed=seed,
            samples=samples,
            tile=tile,
            precision=precision,
            progress=Progress(pixels),
            cancelled=stop_if_cancelled,
            notify=notes,
        )
        if samples > 1 and temperature == 0 and (mask is None or outside == 0):
            notes("At temperature 0 all samples are the same picture. Raise it for other exposures.")
        facts = seeds_in_turn(seed, samples, len(pictures))
        return io.NodeOutput(to_image(pictures), ui=gallery(pictures, facts, notes, cls.hidden.extra_pnginfo, pixels))
