"""Repair: find scratches and dust in a scan, and draw what they cover anew."""

from typing import Annotated, Any

import torch

from .. import flowcore
from ..flowcore.tasks.upscale import memory_required
from . import widgets
from .host.compat import io
from .host.ui import canvas_pictures
from .node import FlowNode
from .picking import PickingNode
from .sockets import Image, Mask, UpscaleModel, check_memory, from_mask
from .upscaling import ORDINARY_TILE

RED = torch.tensor([1.0, 0.1, 0.1])[:, None, None]


class FlowcoreFindScratches(FlowNode):
    """Where a scan has scratches and dust, as a mask."""

    ALIASES = "scratches, dust, detect scratches, old photo, scan, film, spots, mask"
    OUTPUTS = (io.Mask.Output("mask"),)
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(self, image: Image, sensitivity: Annotated[float, widgets.slider(0.5, 0.0, 1.0)]) -> Any:
        mask = flowcore.find_scratches(image, sensitivity=sensitivity, **self.notes.follow())
        text = f"{100 * float(mask.mean()):.2g} % of the picture marked, in red"
        marked = torch.where(mask[:1] > 0, RED.to(image), image[:1, :3])
        return self.output(mask[:, 0], text=[text], **canvas_pictures(self, marked))


class FlowcoreRepair(PickingNode):
    """Repairs of every image: all samples of the first image, then of the second."""

    ALIASES = "repair, inpaint, scratches, dust, old photo, restore, heal, spot removal, clone, remove scratches"
    OUTPUTS = (io.Image.Output("images"),)
    RECORDS = True

    def run(
        self,
        image: Image,
        model: UpscaleModel,
        mask: Mask,
        temperature: widgets.OwnTemperature,
        seed: widgets.Seed,
        samples: widgets.Samples,
        guide_strength: Annotated[float, widgets.slider(0.5, 0.0, 1.0, optional=True)],
        calm_edges: widgets.CalmEdges,
        pick: widgets.Pick,
    ) -> Any:
        count, _, height, width = image.shape
        check_memory(count * samples, 3 * height * width, "pictures need", "Lower samples, or pass fewer images.")
        scale = model.flow.condition_scale
        flow = model.load(memory_required(model.flow, -(-height // scale), -(-width // scale), ORDINARY_TILE))
        drawing = {"temperature": temperature, "guide_strength": guide_strength, "calm_edges": calm_edges}
        how: Any = {**drawing, "seed": seed, "samples": samples, **self.notes.follow(sources=image)}
        marked = from_mask(mask, count)
        if not bool((marked >= 0.5).any()):
            self.notes("The mask is black, so nothing is repaired. Paint on the damage, or use Flow Find Scratches.")
        return self.made(flowcore.repair(flow, image, marked, **how), seed, samples, image)
