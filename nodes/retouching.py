"""Retouch: paint color hints and temperature with a brush, find scratches in a scan, and repair them."""

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

import flowcore
from flowcore import Hints
from flowcore.engine.condition_cache import RecentlyUsed
from flowcore.errors import Message, on_lines, say
from flowcore.images.damage import MIN_SIDE
from flowcore.images.strokes import paint_colors, paint_mask, parse_strokes
from flowcore.tasks.clean import memory_to_clean
from flowcore.tasks.finders.scratches import find_damage, mark_damage
from flowcore.tasks.hints import combine_hints, hints_from_strokes
from flowcore.tasks.model_choice import describe_damage
from flowcore.tasks.repair import RepairSettings

from . import widgets
from .host.compat import io
from .host.memory import release_callbacks, stop_if_cancelled
from .host.ui import canvas_pictures
from .live import LIVE_RUNS, RedrawnNode
from .node import FlowNode
from .picking import PickingNode
from .sockets import FLOW_HINTS, Image, Mask, UpscaleModel, check_memory, from_mask, held_bytes
from .upscaling import load_upscaler

CANVAS = "flowcore_canvas"  # key of the painted picture, for web/js/brush.js
CLEANED: RecentlyUsed[torch.Tensor] = RecentlyUsed(4, held_bytes)  # makes another strength take no time
release_callbacks.append(CLEANED.clear)
RED = torch.tensor([1.0, 0.1, 0.1])[:, None, None]
LIVE_SIDE = 1024  # pixels of the longer side of a live picture


class FlowcorePaintHints(FlowNode):
    """Paint colors on a picture, as hints."""

    MENU = "color"
    ALIASES = "brush, paint, color brush, color hints, scribble, strokes, color picker, colorize"
    OUTPUTS = (FLOW_HINTS.Output("all_hints"), io.Image.Output("painted"))
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(self, image: Image, painting: widgets.Painting, lock: widgets.Switch, hints: Hints | None) -> Any:
        strokes, (height, width) = parse_strokes(painting), image.shape[-2:]
        coverage, rgb = paint_colors(strokes, (height, width), cancelled=stop_if_cancelled)
        locked = say("strokes cover {percent} % of the picture, locked")
        free = say("strokes cover {percent} % of the picture")
        text = say(locked if lock else free, percent=f"{100 * float(coverage.mean()):.3g}")
        if not strokes:
            self.notes("Nothing is painted yet: choose a color and paint on the picture.")
        painted_hints = hints_from_strokes(rgb, coverage, lock=lock) if strokes else None
        painted = image[:, :3] + coverage.to(image) * (rgb.to(image) - image[:, :3])
        shown = canvas_pictures(self, image[:1], CANVAS)
        return self.output(combine_hints(painted_hints, hints) or Hints(), painted, text=[text], **shown)


class FlowcorePaintTemperature(FlowNode):
    """Paint a mask on a picture: where it should be calm and where lively."""

    MENU = "enlarge"
    ALIASES = "brush, paint, paint temperature, paint mask, mask editor, draw mask, local detail"
    OUTPUTS = (io.Mask.Output("mask"),)
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(
        self,
        image: Image,
        painting: widgets.Painting,
        ground: Annotated[float, widgets.slider(0.0, 0.0, 1.0, optional=True)],
    ) -> Any:
        strokes, (height, width) = parse_strokes(painting), image.shape[-2:]
        mask = paint_mask(strokes, (height, width), ground=ground, cancelled=stop_if_cancelled)
        amounts = say(
            "mask from {least} to {most}, {mean} on average",
            least=f"{float(mask.min()):.2g}",
            most=f"{float(mask.max()):.2g}",
            mean=f"{float(mask.mean()):.2g}",
        )
        painted = say(
            "{percent}% of the picture is painted.", percent=f"{100 * float((mask != ground).float().mean()):.0f}"
        )
        text = on_lines(painted, "", amounts) if strokes else say("Nothing is painted yet: paint on the picture.")
        return self.output(mask, text=[text], **canvas_pictures(self, image[:1], CANVAS))


class FlowcoreFindScratches(RedrawnNode):
    """Find scratches and dust in a scan, as a mask."""

    MENU = "repair"
    ALIASES = "scratches, dust, detect scratches, old photo, scan, film, spots, mask"
    OUTPUTS = (io.Mask.Output("mask"),)
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(self, image: Image, sensitivity: Annotated[float, widgets.slider(0.5, 0.0, 1.0)]) -> Any:
        damage = find_damage(image, **self.notes.task_options())
        mask = mark_damage(damage, sensitivity)
        text = say("{percent} % of the picture is marked, in red", percent=f"{100 * float(mask.mean()):.2g}")
        shown = canvas_pictures(self, torch.where(mask[:1] > 0, RED.to(image), image[:1, :3]))
        if shown:
            height, width = image.shape[-2:]
            scale = max(1, max(height, width) / LIVE_SIDE)
            size = max(1, round(height / scale)), max(1, round(width / scale))
            small = {"image": functional.adaptive_avg_pool2d(image[:1, :3].cpu(), size)}
            small["damage"] = functional.adaptive_max_pool2d(damage[:1].cpu(), size)
            shown |= LIVE_RUNS.keep_redrawn(type(self), small | {"sensitivity": sensitivity})
        return self.output(mask[:, 0], text=[text], **shown)

    def redraw(self, *, image: Tensor, damage: Tensor, sensitivity: float) -> Tensor:
        return torch.where(mark_damage(damage, sensitivity) > 0, RED, image)[0]


class FlowcoreClean(PickingNode):
    """Remove noise and JPEG artifacts from images, at their size."""

    MENU = "repair"
    ALIASES = "clean, denoise, dejpeg, deblock, jpeg, artifact, artifacts, noise, grain, compression, restore old photo"
    OUTPUTS = (io.Image.Output("images"),)
    RECORDS = True
    PREVIEW = "whole"

    def run(
        self,
        image: Image,
        model: UpscaleModel,
        strength: Annotated[float, widgets.slider(0.5, 0.0, 1.0)],
        precision: widgets.Precision,
        pick: widgets.Pick,
    ) -> Any:
        flow = model.load(memory_to_clean(model.flow, image.shape[-1]))
        options: Any = {"precision": precision, "store": CLEANED, **self.notes.task_options(sources=image)}
        pictures = flowcore.clean(flow, image, strength=strength, **options)
        return self.show_samples(pictures, None, 1, image, text=_measured(image))


def _measured(images: Tensor) -> list[Message]:
    """Say which damage images show, those of one batch that show the same together."""
    if min(images.shape[-2:]) < MIN_SIDE:
        return [say("Too small to measure JPEG blocks or noise.")]
    damages = [*dict.fromkeys(describe_damage(image) for image in images.split(1))]
    found = [*filter(None, damages)]
    said = [say("Measured: {damage}.", damage=found)] if found else []
    return said + ([say("No JPEG blocks and no noise were measured.")] if "" in damages else [])


class FlowcoreRepair(PickingNode):
    """Repair images: all samples of the first image, then of the second."""

    MENU = "repair"
    ALIASES = "repair, inpaint, scratches, dust, old photo, restore, heal, spot removal, clone, remove scratches"
    OUTPUTS = (io.Image.Output("images"),)
    RECORDS = True

    def run(self, image: Image, model: UpscaleModel, mask: Mask, settings: RepairSettings, pick: widgets.Pick) -> Any:
        (count, _, height, width), samples = image.shape, settings.samples
        check_memory(count * samples, 3 * height * width, "pictures", say("Lower samples, or pass fewer images."))
        scale = model.flow.condition_scale
        flow = load_upscaler(model, -(-height // scale), -(-width // scale))
        damage = from_mask(mask, count, (height, width))
        if not bool((damage >= 0.5).any()):
            self.notes("The mask is black, so nothing is repaired. Paint on the damage, or use Flow Find Scratches.")
        settings = replace(settings, **self.notes.task_options(sources=image))
        pictures = flowcore.repair(flow, image, damage, settings=settings)
        return self.show_samples(pictures, settings.seed, samples, image)
