"""Paint: color hints and temperature, with a brush on the picture itself."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from torch import Tensor

from ..flowcore import Hints
from ..flowcore.images.strokes import paint_colors, paint_mask, parse_strokes
from ..flowcore.tasks.hints import combine_hints, hints_from_strokes
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.ui import canvas_pictures
from .node import FlowNode
from .sockets import FLOW_HINTS, from_image, to_image


class FlowcorePaintHints(FlowNode):
    """Colors painted on a picture, as hints."""

    ALIASES = ("brush", "paint", "color brush", "color hints", "scribble", "strokes", "color picker", "colorize")
    OUTPUTS = (FLOW_HINTS.Output("all_hints"), io.Image.Output("painted"))
    HIDDEN = (io.Hidden.extra_pnginfo,)

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        painting: Annotated[str, widgets.painting],
        lock: Annotated[bool, widgets.switch],
        hints: Annotated[Hints | None, partial(FLOW_HINTS.Input, optional=True)],
    ) -> Any:
        notes, pixels, strokes = cls.notes(), from_image(image), parse_strokes(painting)
        height, width = pixels.shape[-2:]
        coverage, rgb = paint_colors(strokes, (height, width), cancelled=stop_if_cancelled)
        text = f"strokes cover {100 * float(coverage.mean()):.3g} % of the picture{', locked' if lock else ''}"
        if not strokes:
            notes("Nothing is painted yet: choose a color and paint on the picture.")
        made = hints_from_strokes(rgb, coverage, lock=lock) if strokes else None
        painted = pixels[:, :3] + coverage.to(pixels) * (rgb.to(pixels) - pixels[:, :3])
        ui = canvas_pictures(pixels[:1], cls.hidden.extra_pnginfo, "flowcore_canvas")
        ui["text"] = ["\n".join([text, *notes.lines])]
        return io.NodeOutput(combine_hints(made, hints) or Hints(), to_image(painted), ui=ui)


class FlowcorePaintTemperature(FlowNode):
    """Where a picture shall be calm and where lively, painted on it, as a mask."""

    ALIASES = ("brush", "paint", "paint temperature", "paint mask", "mask editor", "draw mask", "local detail")
    OUTPUTS = (io.Mask.Output("mask"),)
    HIDDEN = (io.Hidden.extra_pnginfo,)

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        painting: Annotated[str, widgets.painting],
        ground: Annotated[float, widgets.slider(0.0, 0.0, 1.0, optional=True)],
    ) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        strokes = parse_strokes(painting)
        if not strokes:
            notes("Nothing is painted yet: paint on the picture where it shall be livelier or calmer.")
        height, width = pixels.shape[-2:]
        mask = paint_mask(strokes, (height, width), ground=ground, cancelled=stop_if_cancelled)
        text = f"mask from {float(mask.min()):.2g} to {float(mask.max()):.2g}, {float(mask.mean()):.2g} on average"
        ui = canvas_pictures(pixels[:1], cls.hidden.extra_pnginfo, "flowcore_canvas")
        ui["text"] = ["\n".join([text, *notes.lines])]
        return io.NodeOutput(mask, ui=ui)
