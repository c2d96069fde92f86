"""Colorize: many colorings of a photograph, hints for them, and exact luma for the colors of any other node."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from .. import flowcore
from ..flowcore import ColorMemory, FlowError, Hints
from ..flowcore.tasks import Precision
from ..flowcore.tasks.chroma import Gamut
from ..flowcore.tasks.colorize import memory_required
from ..flowcore.tasks.hints import combine_hints, hints_from_points, hints_from_strokes, palette_from, parse_points
from ..flowcore.training.image_sources import folder_stamp
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.paths import inside
from .host.ui import Progress
from .node import FlowNode
from .picking import ClipNode
from .sockets import (
    CLIP,
    FLOW_HINTS,
    FLOW_LATENTS,
    FLOW_MEMORY,
    FlowModel,
    Latents,
    check_memory,
    flow_model,
    from_image,
    to_image,
)

REMEMBERING = 2**28  # bytes that one photograph takes


class FlowcoreColorize(ClipNode):
    """All colorings of the first image, then of the second; or those of a clip."""

    ALIASES = (
        "colorize",
        "colourize",
        "colorise",
        "colorization",
        "black and white",
        "restore old photo",
        "color",
        "ddcolor",
    )
    ESSENTIALS = "Image Tools"
    OUTPUTS = (io.Image.Output("images"), io.Video.Output("video"))
    OF_VIDEO: ClassVar[dict[str, Any]] = {"frames": "video"}

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, CLIP],
        model: Annotated[FlowModel, flow_model("colorize")],
        temperature: Annotated[float | None, widgets.own_temperature()],
        seed: Annotated[int, widgets.seed()],
        samples: Annotated[int, widgets.samples],
        detail: Annotated[float | None, widgets.own_temperature(optional=True, advanced=True)],
        saturation: Annotated[float | None, widgets.slider(widgets.OWN, widgets.OWN, 3.0, optional=True)],
        working_size: Annotated[int, widgets.working_size],
        hints: Annotated[Hints | None, partial(FLOW_HINTS.Input, optional=True)],
        hint_steps: Annotated[int, widgets.integer(20, 0, 200, optional=True, advanced=True)],
        latents: Annotated[Latents | None, partial(FLOW_LATENTS.Input, optional=True)],
        latents_strength: Annotated[float, widgets.slider(1.0, 0.0, 1.0, optional=True, advanced=True)],
        latents_levels: Annotated[int, widgets.integer(2, 0, 8, optional=True, advanced=True)],
        frames: Annotated[Literal["images", "video"], widgets.choice("images", "video", optional=True)],
        carry: Annotated[float, widgets.number(0.0, 0.0, 0.95, 0.01, optional=True, advanced=True)],
        gamut: Annotated[Gamut, widgets.gamut],
        precision: Annotated[Precision, widgets.precision],
        pick: Annotated[int, widgets.pick],
        reference: Annotated[Tensor | None, partial(io.Image.Input, optional=True)],
        coherence: Annotated[float | None, widgets.slider(widgets.OWN, widgets.OWN, 1.0, optional=True, advanced=True)],
        memory: Annotated[ColorMemory | None, partial(FLOW_MEMORY.Input, optional=True)],
        cast: Annotated[float, widgets.slider(1.0, -1.0, 1.0, optional=True, advanced=True)],
        vivid: Annotated[float, widgets.slider(1.0, 0.0, 2.0, optional=True, advanced=True)],
    ) -> Any:
        notes, pixels, video = cls.notes(), from_image(image), frames == "video"
        sources = pixels
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
            "temperature": temperature,
            "detail": detail,
            "coherence": coherence,
            "seed": seed,
            "saturation": saturation,
            "working_size": working_size or None,
            "hints": hints,
            "latents": levels,
            "latents_strength": latents_strength,
            "latents_levels": latents_levels,
            "gamut": gamut,
            "precision": precision,
            **notes.follow(Progress(pixels)),
        }
        if video:
            if samples > 1:
                notes("samples is ignored: a clip is colored once. Other seeds give it other colors.")
            if hints is not None and hints.coverage is not None and hint_steps:
                notes("hint_steps is ignored: in a clip strokes and points guide the model, and are not spread.")
            if memory is not None or cast != 1 or vivid != 1:
                notes("memory, cast and vivid are ignored: they are for frames = images.")
            pictures = flowcore.colorize_video(flow, pixels, carry=carry, **options)
        else:
            if carry:
                notes("carry is ignored: it is for frames = video.")
            options |= {"memory": memory, "cast": cast, "vivid": vivid, "hint_steps": hint_steps}
            pictures = flowcore.colorize(flow, pixels, samples=samples, **options)
        return cls.made(pictures, seed, 1 if video else samples, notes, sources)


class FlowcoreColorHints(FlowNode):
    """Which colors are wanted, and where."""

    ALIASES = ("color hints", "strokes", "scribble", "palette", "hex color", "color picker", "colorize")
    OUTPUTS = (FLOW_HINTS.Output("all_hints"),)

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        strokes: Annotated[Tensor | None, partial(io.Image.Input, optional=True)],
        mask: Annotated[Tensor | None, partial(io.Mask.Input, optional=True)],
        points: Annotated[str, partial(io.String.Input, default="", multiline=True, optional=True)],
        radius: Annotated[int, widgets.integer(12, 0, 512, optional=True)],
        palette: Annotated[str, widgets.text],
        palette_image: Annotated[Tensor | None, partial(io.Image.Input, optional=True)],
        lock: Annotated[bool, partial(widgets.switch, advanced=True)],
        hints: Annotated[Hints | None, partial(FLOW_HINTS.Input, optional=True)],
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


class FlowcoreColorMemory(FlowNode):
    """The colors of photographs of one's own."""

    ALIASES = ("color memory", "album", "reference colors", "exemplar", "family photos", "remember", "color transfer")
    OUTPUTS = (FLOW_MEMORY.Output("all_memory"),)
    IS_INPUT_LIST = True

    @classmethod
    def fingerprint_inputs(cls, folder: Sequence[str | None] = (), **_: Any) -> list[str]:
        return [folder_stamp(Path(inside("input", name))) for name in folder if name and name.strip()]

    @classmethod
    def run(
        cls,
        model: Annotated[list[FlowModel], flow_model("colorize")],
        images: Annotated[list[Tensor] | None, partial(io.Image.Input, optional=True)],
        folder: Annotated[list[str], widgets.text],
        memory: Annotated[list[ColorMemory] | None, partial(FLOW_MEMORY.Input, optional=True)],
    ) -> Any:
        notes = cls.notes()
        known: list[ColorMemory] = [*(memory or [])]
        given: list[Any] = [[from_image(batch) for batch in images]] if images else []
        given += [Path(inside("input", name)) for name in folder if name.strip()]
        if not given and not known:
            raise FlowError(
                "A memory needs photographs in color: connect images, or name a folder in the input folder."
            )
        flow = model[0].load(REMEMBERING)
        known += [flowcore.remember(flow, photographs, **notes.follow()) for photographs in given]
        every = reduce(ColorMemory.merge, known)
        every.check(flow)
        lines = [f"{every.places.cells} places of {every.photographs} photographs"]
        return io.NodeOutput(every, ui={"text": ["\n".join([*lines, *notes.lines])]})


class FlowcoreEncodeColor(FlowNode):
    """The latents of a picture's own colors."""

    ALIASES = ("encode color", "palette transfer", "color transfer", "reference colors", "color latents")
    OUTPUTS = (FLOW_LATENTS.Output("latents"),)
    REPORTS = False

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel, flow_model("colorize")],
        working_size: Annotated[int, widgets.working_size],
    ) -> Any:
        pixels = from_image(image)
        count, _, height, width = pixels.shape
        flow = model.load(memory_required(model.flow, height, width, count, working_size=working_size))
        levels = flowcore.encode_colors(flow, pixels, working_size=working_size or None, cancelled=stop_if_cancelled)
        return io.NodeOutput(model.latents(levels))


class FlowcoreApplyChroma(FlowNode):
    """The colors of one picture on the exact luma of another, without a model."""

    ALIASES = ("apply chroma", "luma", "luminance", "color blend", "desaturate", "grayscale", "ycbcr")
    OUTPUTS = (io.Image.Output("merged"),)
    REPORTS = False

    @classmethod
    def run(
        cls,
        luma_from: Annotated[Tensor, io.Image.Input],
        colors_from: Annotated[Tensor, io.Image.Input],
        saturation: Annotated[float, widgets.saturation],
        gamut: Annotated[Gamut, widgets.gamut],
    ) -> Any:
        luma, colors = from_image(luma_from), from_image(colors_from)
        return io.NodeOutput(to_image(flowcore.apply_chroma(luma, colors, saturation=saturation, gamut=gamut)))
