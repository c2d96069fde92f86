"""Brighten: what a dark photograph shows, in one picture or many exposures."""

from typing import Annotated, Any

from torch import Tensor

from .. import flowcore
from ..flowcore.prior import masked_temperature
from ..flowcore.tasks.brighten import memory_required
from . import widgets
from .host.compat import io
from .picking import PickingNode
from .sockets import BrightenModel, Image, Mask, check_memory, from_mask

ORDINARY_TILE = 1024  # pixels


class FlowcoreBrighten(PickingNode):
    """Exposures of every image: all samples of the first image, then of the second."""

    ALIASES = "brighten, low light, dark photo, night, night photo, exposure, llflow, enhance, underexposed"
    OUTPUTS = (io.Image.Output("images"),)
    RECORDS = True
    LIVE = "small"

    def run(
        self,
        image: Image,
        model: BrightenModel,
        temperature: Annotated[float, widgets.temperature(0.0)],
        seed: widgets.Seed,
        samples: widgets.Samples,
        tile: Annotated[int, widgets.integer(0, 0, 8192, optional=True, advanced=True)],
        precision: widgets.Precision,
        mask: Mask | None,
        outside: Annotated[float, widgets.temperature(0.0, optional=True)],
        pick: widgets.Pick,
        exposure: Annotated[float, widgets.slider(0.0, -4.0, 4.0, 0.1, optional=True)],
        strength: Annotated[float, widgets.slider(1.0, 0.0, 1.0, optional=True)],
    ) -> Any:
        count, _, height, width = image.shape
        check_memory(count * samples, 3 * height * width, "pictures need", "Lower samples, or pass fewer images.")
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE))
        tau: float | Tensor = temperature
        if mask is not None:
            tau = masked_temperature(from_mask(mask, count), temperature, outside)
        lit = {"exposure": exposure, "strength": strength}
        how = self.notes.follow(sources=image, tile=tile, precision=precision)
        pictures = flowcore.brighten(flow, image, temperature=tau, seed=seed, samples=samples, **lit, **how)
        if samples > 1 and temperature == 0 and (mask is None or outside == 0):
            self.notes("At temperature 0 all samples are the same picture. Raise it for other exposures.")
        return self.made(pictures, seed, samples, image)
