"""Colorize: many colorings of a photograph, hints for them, and exact luma for the colors of any other node."""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import Tensor

from .. import flowcore
from ..flowcore import Hints
from ..flowcore.tasks import Precision
from ..flowcore.tasks.chroma import Gamut
from ..flowcore.tasks.colorize import memory_required
from ..flowcore.tasks.hints import combine_hints, hints_from_points, hints_from_strokes, palette_from, parse_points
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.ui import Progress, gallery, seeds_in_turn
from .node import FlowNode, schema
from .picking import HIDDEN
from .recording import RecordingNode
from .sockets import (
    FLOW_HINTS,
    FLOW_LATENTS,
    FlowModel,
    Latents,
    check_memory,
    flow_model,
    from_image,
    to_image,
)


class FlowcoreColorize(RecordingNode):
    """All colorings of the first image, then of the second; or those of a clip."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreColorize",
            "color",
            aliases=["colorize", "colourize", "colorise", "black and white", "restore old photo", "color", "ddcolor"],
            inputs=[
                io.Image.Input("image"),
                flow_model("colorize"),
                widgets.temperature(widgets.OWN, own=True),
                widgets.seed(),
                io.Int.Input("samples", default=1, min=1, max=64, optional=True),
                widgets.temperature(widgets.OWN, "detail", own=True, optional=True),
                widgets.saturation(),
                widgets.working_size(),
                FLOW_HINTS.Input("hints", optional=True),
                io.Int.Input("hint_steps", default=20, min=0, max=200, optional=True),
                FLOW_LATENTS.Input("latents", optional=True),
                widgets.slider("latents_strength", 1.0, 0.0, 1.0, optional=True),
                io.Int.Input("latents_levels", default=2, min=0, max=8, optional=True),
                io.Combo.Input("frames", options=["images", "video"], default="images", optional=True),
                io.Float.Input("carry", default=0.0, min=0.0, max=0.95, step=0.01, optional=True),
                widgets.gamut(),
                widgets.precision(),
                widgets.pick(),
                io.Image.Input("reference", optional=True),
            ],
            outputs=[io.Image.Output("images")],
            hidden=HIDDEN,
            advanced=(
                "detail",
                "working_size",
                "hint_steps",
                "latents_strength",
                "latents_levels",
                "carry",
                "gamut",
                "precision",
            ),
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        model: FlowModel,
        temperature: float,
        seed: int,
        samples: int,
        detail: float,
        saturation: float,
        working_size: int,
        hints: Hints | None,
        hint_steps: int,
        latents: Latents | None,
        latents_strength: float,
        latents_levels: int,
        frames: Literal["images", "video"],
        carry: float,
        gamut: Gamut,
        precision: Precision,
        reference: Tensor | None,
    ) -> Any:
        notes, pixels, video = cls.notes(), from_image(image), frames == "video"
        count, _, height, width = pixels.shape
        made = count if video else count * samples
        check_memory(made, 3 * height * width, "pictures need", "Lower samples, or pass fewer images.")
        at_once = count if video else samples
        flow = model.load(memory_required(model.flow, height, width, at_once, working_size=working_size))
        levels: list[Tensor] | None = None
        if latents is not None:
            model.check_latents(latents)
            levels = latents.levels
            if reference is not None:
                notes("reference is ignored: latents are connected.")
        elif reference is not None:
            levels = flowcore.encode_colors(
                flow, from_image(reference), working_size=working_size or None, cancelled=stop_if_cancelled
            )
        if levels is not None and not video and count == 1:
            pixels = pixels.expand(len(levels[0]), -1, -1, -1)
        options: dict[str, Any] = {
            "temperature": widgets.own_or(temperature),
            "detail": widgets.own_or(detail),
            "seed": seed,
            "saturation": saturation,
            "working_size": working_size or None,
            "hints": hints,
            "latents": levels,
            "latents_strength": latents_strength,
            "latents_levels": latents_levels,
            "gamut": gamut,
            "precision": precision,
            "progress": Progress(pixels),
            "cancelled": stop_if_cancelled,
            "notify": notes,
        }
        if video:
            if samples > 1:
                notes("samples is ignored: a clip is colored once. Other seeds give it other colors.")
            if hints is not None and hints.coverage is not None and hint_steps:
                notes("hint_steps is ignored: in a clip strokes and points guide the model, and are not refined.")
            pictures = flowcore.colorize_video(flow, pixels, carry=carry, **options)
        else:
            if carry:
                notes("carry is ignored: it is for frames = video.")
            pictures = flowcore.colorize(flow, pixels, samples=samples, hint_steps=hint_steps, **options)
        facts = seeds_in_turn(seed, 1 if video else samples, len(pictures))
        return io.NodeOutput(
            to_image(pictures),
            ui=gallery(pictures, facts, notes, cls.hidden.extra_pnginfo, from_image(image)),
        )

    @classmethod
    def recorded(cls, values: dict[str, Any]) -> dict[str, Any]:
        own: dict[str, float] = dict(
            zip(("temperature", "detail"), values["model"].flow.config.temperatures, strict=True)
        )
        stated = {name: widgets.own_or(values[name]) for name in own}
        return values | {name: own[name] if tau is None else tau for name, tau in stated.items()}


class FlowcoreColorHints(FlowNode):
    """Which colors are wanted, and where."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreColorHints",
            "color",
            aliases=["color hints", "strokes", "scribble", "palette", "hex color", "color picker", "colorize"],
            inputs=[
                io.Image.Input("image"),
                io.Image.Input("strokes", optional=True),
                io.Mask.Input("mask", optional=True),
                io.String.Input("points", default="", multiline=True, optional=True),
                io.Int.Input("radius", default=12, min=0, max=512, optional=True),
                io.String.Input("palette", default="", optional=True),
                io.Image.Input("palette_image", optional=True),
                io.Boolean.Input("lock", default=False, optional=True),
                FLOW_HINTS.Input("hints", optional=True),
            ],
            outputs=[FLOW_HINTS.Output("all_hints")],
            advanced=("lock",),
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        strokes: Tensor | None,
        mask: Tensor | None,
        points: str,
        radius: int,
        palette: str,
        palette_image: Tensor | None,
        lock: bool,
        hints: Hints | None,
    ) -> Any:
        notes = cls.notes()
        height, width = from_image(image[:1]).shape[-2:]
        size = height, width
        parts: list[Hints | None] = []
        if strokes is not None:
            where = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
            parts.append(hints_from_strokes(from_image(strokes).cpu(), where, size=size, lock=lock))
        elif mask is not None:
            notes("mask is ignored: it says where strokes are, and none are connected.")
        if points.strip():
            parts.append(hints_from_points(parse_points(points), size, radius=radius, lock=lock))
        colors = [word for word in re.split(r"[,;\s]+", palette) if word]
        if colors or palette_image is not None:
            picture = None if palette_image is None else from_image(palette_image).cpu()
            parts.append(Hints(palette=palette_from(colors, picture)))
        combined = combine_hints(*parts, hints)
        if combined is None:
            notes("There are no hints yet: connect strokes, or write points or a palette.")
            combined = Hints()
        lines = _facts(combined)
        return io.NodeOutput(combined, ui={"text": ["\n".join([*lines, *notes.lines])]})


def _facts(hints: Hints) -> list[str]:
    lines: list[str] = []
    if hints.coverage is not None:
        locked = ", locked" if hints.lock else ""
        lines.append(f"hints cover {100 * float(hints.coverage.mean()):.3g} % of the picture{locked}")
    if hints.palette is not None:
        blue, red, strength = (float(value) for value in hints.palette.mean(0)[1:])
        lines.append(f"palette: mean Cb {blue:+.3f}, mean Cr {red:+.3f}, colorfulness {strength:.3f}")
    return lines


class FlowcoreEncodeColor(FlowNode):
    """The latents of a picture's own colors."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreEncodeColor",
            "color",
            aliases=["encode color", "palette transfer", "color transfer", "reference colors", "color latents"],
            inputs=[io.Image.Input("image"), flow_model("colorize"), widgets.working_size()],
            outputs=[FLOW_LATENTS.Output("latents")],
            reports=False,
            advanced=("working_size",),
        )

    @classmethod
    def run(cls, image: Tensor, model: FlowModel, working_size: int) -> Any:
        pixels = from_image(image)
        count, _, height, width = pixels.shape
        flow = model.load(memory_required(model.flow, height, width, count, working_size=working_size))
        levels = flowcore.encode_colors(flow, pixels, working_size=working_size or None, cancelled=stop_if_cancelled)
        return io.NodeOutput(model.latents(levels))


class FlowcoreApplyChroma(FlowNode):
    """The colors of one picture on the exact luma of another, without a model."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreApplyChroma",
            "color",
            aliases=["apply chroma", "luma", "luminance", "color blend", "desaturate", "grayscale", "ycbcr"],
            inputs=[
                io.Image.Input("luma_from"),
                io.Image.Input("colors_from"),
                widgets.saturation(),
                widgets.gamut(),
            ],
            outputs=[io.Image.Output("merged")],
            reports=False,
            advanced=("gamut",),
        )

    @classmethod
    def run(cls, luma_from: Tensor, colors_from: Tensor, saturation: float, gamut: Gamut) -> Any:
        luma, colors = from_image(luma_from), from_image(colors_from)
        return io.NodeOutput(to_image(flowcore.apply_chroma(luma, colors, saturation=saturation, gamut=gamut)))
