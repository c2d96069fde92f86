"""Brighten: what a dark photograph shows, in one picture or many exposures."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from torch import Tensor

from .. import flowcore
from ..flowcore.prior import masked_temperature
from ..flowcore.tasks import Precision
from ..flowcore.tasks.brighten import memory_required
from . import widgets
from .host.compat import io
from .host.ui import Progress
from .picking import RecordingNode
from .sockets import FlowModel, check_memory, flow_model, from_image, from_mask

ORDINARY_TILE = 1024  # pixels


class FlowcoreBrighten(RecordingNode):
    """Exposures of every image: all samples of the first image, then of the second."""

    ALIASES = ("brighten", "low light", "dark photo", "night", "exposure", "llflow", "enhance", "underexposed")
    OUTPUTS = (io.Image.Output("images"),)

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel, flow_model("brighten")],
        temperature: Annotated[float, widgets.temperature(0.0)],
        seed: Annotated[int, widgets.seed()],
        samples: Annotated[int, widgets.samples],
        tile: Annotated[int, widgets.integer(0, 0, 8192, optional=True, advanced=True)],
        precision: Annotated[Precision, widgets.precision],
        mask: Annotated[Tensor | None, partial(io.Mask.Input, optional=True)],
        outside: Annotated[float, widgets.temperature(0.0, optional=True)],
        pick: Annotated[int, widgets.pick],
        exposure: Annotated[float, widgets.slider(0.0, -4.0, 4.0, 0.1, optional=True)],
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
            exposure=exposure,
            **notes.follow(Progress(pixels)),
        )
        if samples > 1 and temperature == 0 and (mask is None or outside == 0):
            notes("At temperature 0 all samples are the same picture. Raise it for other exposures.")
        return cls.made(pictures, seed, samples, notes, pixels)
