"""Paint: color hints and temperature, with a brush on the picture itself."""

from typing import Annotated, Any

from ..flowcore import Hints
from ..flowcore.images.strokes import paint_colors, paint_mask, parse_strokes
from ..flowcore.tasks.hints import combine_hints, hints_from_strokes
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.ui import canvas_pictures
from .node import FlowNode
from .sockets import FLOW_HINTS, Image

CANVAS = "flowcore_canvas"  # for web/js/brush.js


class FlowcorePaintHints(FlowNode):
    """Colors painted on a picture, as hints."""

    ALIASES = "brush, paint, color brush, color hints, scribble, strokes, color picker, colorize"
    OUTPUTS = (FLOW_HINTS.Output("all_hints"), io.Image.Output("painted"))
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(self, image: Image, painting: widgets.Painting, lock: widgets.Switch, hints: Hints | None) -> Any:
        strokes, (height, width) = parse_strokes(painting), image.shape[-2:]
        coverage, rgb = paint_colors(strokes, (height, width), cancelled=stop_if_cancelled)
        text = f"strokes cover {100 * float(coverage.mean()):.3g} % of the picture{', locked' if lock else ''}"
        if not strokes:
            self.notes("Nothing is painted yet: choose a color and paint on the picture.")
        made = hints_from_strokes(rgb, coverage, lock=lock) if strokes else None
        painted = image[:, :3] + coverage.to(image) * (rgb.to(image) - image[:, :3])
        return self.output(
            combine_hints(made, hints) or Hints(),
            painted,
            text=[text],
            **canvas_pictures(self, image[:1], CANVAS),
        )


class FlowcorePaintTemperature(FlowNode):
    """Where a picture shall be calm and where lively, painted on it, as a mask."""

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
        if not strokes:
            self.notes("Nothing is painted yet: paint on the picture where it shall be livelier or calmer.")
        mask = paint_mask(strokes, (height, width), ground=ground, cancelled=stop_if_cancelled)
        amounts = f"mask from {float(mask.min()):.2g} to {float(mask.max()):.2g}, {float(mask.mean()):.2g} on average"
        text = f"{float((mask != ground).float().mean()):.0%} of the picture is painted.\n\n{amounts}"
        shown = canvas_pictures(self, image[:1], CANVAS)
        return self.output(mask, text=[text], **shown)
