"""Color and light: colorings, hints and memories for them, colors on exact luma, and exposures of dark photographs."""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

import flowcore
from flowcore import ColorMemory, FlowError, Hints, remember
from flowcore.engine.memory import memory_in_tiles, memory_required
from flowcore.errors import Argument, say
from flowcore.flows.prior import masked_temperature
from flowcore.images.color import parse_color
from flowcore.images.folders import folder_stamp
from flowcore.tasks.chroma import ColorSettings
from flowcore.tasks.colorize import ColorizeSettings
from flowcore.tasks.hints import combine_hints, hints_from_points, hints_from_strokes, palette_from, parse_points

from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled
from .host.paths import inside
from .node import FlowNode
from .picking import ClipNode, PickingNode
from .sockets import (
    FLOW_HINTS,
    FLOW_LATENTS,
    FLOW_MEMORY,
    BrightenModel,
    Clip,
    ColorizeModel,
    Image,
    Latents,
    Mask,
    check_memory,
    from_mask,
)

REMEMBERING = 2**28  # bytes that it takes to remember one photograph
BRIGHTENING_TILE = 1024  # pixels


class FlowcoreColorize(ClipNode):
    """Color images: all colorings of the first image, then of the second; or color a clip."""

    MENU = "color"
    ALIASES = "colorize, colourize, colorise, colorization, black and white, restore old photo, color, ddcolor"
    OUTPUTS = (io.Image.Output("images"), io.Video.Output("video"))
    PREVIEW = "small"
    OF_VIDEO: ClassVar[dict[str, Any]] = {"frames": "video"}

    def run(
        self,
        image: Clip,
        model: ColorizeModel,
        settings: ColorizeSettings,
        hints: Hints | None,
        latents: Latents | None,
        frames: Annotated[Literal["images", "video"], widgets.choice("images", "video", optional=True)],
        carry: Annotated[float, widgets.number(0.0, 0.0, 0.95, 0.01, optional=True, advanced=True)],
        pick: widgets.Pick,
        reference: Image | None,
        memory: ColorMemory | None,
        starter_memory: Annotated[bool, widgets.switch(default=True, advanced=True)],
    ) -> Any:
        notes, video = self.notes, frames == "video"
        (count, _, height, width), samples, size = image.shape, settings.samples, settings.working_size
        results = count if video else count * samples
        check_memory(results, 3 * height * width, "pictures", say("Lower samples, or pass fewer images."))
        at_once = count if video else samples
        flow = model.load(memory_required(model.flow, at_once, height, width, working_size=size))
        levels = None
        if latents is not None:
            model.check_latents(latents)
            levels = latents.levels
            if reference is not None:
                notes("reference is ignored: latents are connected.")
        elif reference is not None:
            levels = flowcore.encode_colors(flow, reference, working_size=size, cancelled=stop_if_cancelled)
        pixels = image
        if levels is not None and not video and count == 1:  # color it once with every item
            pixels = image.expand(len(levels[0]), -1, -1, -1)
        given: dict[str, Any] = {"hints": hints, "latents": levels, **notes.task_options(sources=pixels)}
        given["memory"] = memory or ("model" if starter_memory else None)
        settings = replace(settings, **given)
        if video:
            if samples > 1:
                notes("samples is ignored: a clip is colored once. Other seeds give it other colors.")
            if hints is not None and hints.coverage is not None and settings.hint_steps:
                notes(
                    "{hint_steps} is ignored: in a clip, strokes and points guide the model but do not spread.",
                    hint_steps=Argument("hint_steps"),
                )
            if memory is not None or settings.cast != 1 or settings.vivid != 1 or settings.mark:
                notes(
                    "memory, cast, vivid and mark are ignored: they work only if {frames} is images.",
                    frames=Argument("frames"),
                )
            shared = {field.name: getattr(settings, field.name) for field in fields(ColorSettings)}
            return self.show_frames(flowcore.colorize_video(flow, pixels, carry=carry, **shared), image)
        if carry:
            notes(
                "{carry} is ignored: it works only if {frames} is video.",
                carry=Argument("carry"),
                frames=Argument("frames"),
            )
        return self.show_samples(flowcore.colorize(flow, pixels, settings=settings), settings.seed, samples, image)


class FlowcoreColorHints(FlowNode):
    """Say which colors you want, and where."""

    MENU = "color"
    ALIASES = "color hints, strokes, scribble, palette, hex color, color picker, colorize"
    OUTPUTS = (FLOW_HINTS.Output("all_hints"),)

    def run(
        self,
        image: Image,
        strokes: Image | None,
        mask: Mask | None,
        points: Annotated[str, widgets.text(optional=True, multiline=True)],
        radius: Annotated[int, widgets.integer(12, 0, 512, optional=True)],
        palette: widgets.Text,
        palette_image: Image | None,
        lock: Annotated[bool, widgets.switch(advanced=True)],
        hints: Hints | None,
        color: Annotated[str, partial(io.Color.Input, default="#808080", optional=True, socketless=False)],
    ) -> Any:
        size = image.shape[2], image.shape[3]
        parts: list[Hints | None] = []
        color = color.strip()[:7]  # removes the alpha of the host's picker
        rgb = torch.tensor(parse_color(color)).view(1, 3, 1, 1)
        chosen = color if len(rgb.unique()) > 1 else None  # any gray, such as the default, means no color
        where = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
        if strokes is None and where is not None and chosen:
            strokes = rgb.expand(len(where), -1, *where.shape[-2:])
        if strokes is not None:
            parts.append(hints_from_strokes(strokes.cpu(), where, size=size, lock=lock))
        elif mask is not None:
            self.notes("mask is ignored: connect strokes, or choose a color.")
        if points.strip():
            parts.append(hints_from_points(parse_points(points, chosen), size, radius=radius, lock=lock))
        colors = [word for word in re.split(r"[,;\s]+", palette) if word]
        if colors or palette_image is not None:
            picture = None if palette_image is None else palette_image.cpu()
            parts.append(Hints(palette=palette_from(colors, picture)))
        combined = combine_hints(*parts, hints)
        if combined is None:
            self.notes("There are no hints yet: connect strokes, or write points or a palette.")
            combined = Hints()
        lines: list[str] = []
        if combined.coverage is not None:
            locked = say("hints cover {percent} % of the picture, locked")
            free = say("hints cover {percent} % of the picture")
            percent = f"{100 * float(combined.coverage.mean()):.3g}"
            lines.append(say(locked if combined.lock else free, percent=percent))
        if combined.palette is not None:
            blue, red, strength = (float(value) for value in combined.palette.mean(0)[1:])
            lines += [say("The whole picture gets a palette."), ""]
            lines.append(f"palette: mean Cb {blue:+.3f}, mean Cr {red:+.3f}, colorfulness {strength:.3f}")
        return self.output(combined, text=lines)


class FlowcoreColorMemory(FlowNode):
    """Remember the colors of your own photographs."""

    MENU = "color"
    ALIASES = "color memory, album, reference colors, exemplar, family photos, remember, color transfer"
    OUTPUTS = (FLOW_MEMORY.Output("all_memory"),)

    @classmethod
    def fingerprint_inputs(cls, folder: Sequence[str | None] = (), **_: Any) -> list[str]:
        return [folder_stamp(Path(inside("input", name))) for name in folder if name and name.strip()]

    def run(
        self,
        model: ColorizeModel,
        images: list[Image] | None,
        folder: list[widgets.Text],
        memory: list[ColorMemory] | None,
    ) -> Any:
        sources: list[Any] = [images] if images else []
        sources += [Path(inside("input", name)) for name in folder if name.strip()]
        if not sources and not memory:
            raise FlowError(
                "A memory needs color photographs: connect Flow Example, which takes those that you upload or drop at "
                "once, or name a folder in the input folder."
            )
        flow = model.load(REMEMBERING)
        options = self.notes.task_options()
        combined = reduce(ColorMemory.merge, [*(memory or []), *(remember(flow, each, **options) for each in sources)])
        combined.check(flow)
        count = combined.photographs
        one = say("{places} places of {photographs} photograph")
        several = say("{places} places of {photographs} photographs")
        text = say(one if count == 1 else several, places=combined.places.cells, photographs=count)
        return self.output(combined, text=[text])


class FlowcoreEncodeColor(FlowNode):
    """Encode a picture's own colors as latents."""

    ALIASES = "encode color, palette transfer, color transfer, reference colors, color latents"
    OUTPUTS = (FLOW_LATENTS.Output("latents"),)
    REPORTS = False

    def run(self, image: Image, model: ColorizeModel, working_size: widgets.WorkingSize) -> Any:
        count, _, height, width = image.shape
        flow = model.load(memory_required(model.flow, count, height, width, working_size=working_size))
        levels = flowcore.encode_colors(flow, image, working_size=working_size or None, cancelled=stop_if_cancelled)
        return self.output(model.latents(levels))


class FlowcoreApplyChroma(FlowNode):
    """Put the colors of one picture on the exact luma of another, without a model."""

    MENU = "color"
    ALIASES = "apply chroma, luma, luminance, color blend, desaturate, grayscale, ycbcr"
    OUTPUTS = (io.Image.Output("merged"),)
    REPORTS = False

    def run(
        self,
        luma_from: Image,
        colors_from: Image,
        saturation: Annotated[float, widgets.slider(1.0, 0.0, 3.0, optional=True)],
        gamut: widgets.Gamut,
    ) -> Any:
        return self.output(flowcore.apply_chroma(luma_from, colors_from, saturation=saturation, gamut=gamut))


class FlowcoreBrighten(PickingNode):
    """Brighten images: all samples of the first image, then of the second."""

    MENU = "repair"
    ALIASES = "brighten, low light, dark photo, night, night photo, exposure, llflow, enhance, underexposed"
    OUTPUTS = (io.Image.Output("images"),)
    RECORDS = True
    PREVIEW = "small"

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
        check_memory(count * samples, 3 * height * width, "pictures", say("Lower samples, or pass fewer images."))
        # Room for one tile: room for the whole picture would push out other models.
        flow = model.load(memory_in_tiles(model.flow, height, width, tile or BRIGHTENING_TILE))
        pictures = flowcore.brighten(
            flow,
            image,
            temperature=temperature
            if mask is None
            else masked_temperature(from_mask(mask, count, (height, width)), temperature, outside),
            seed=seed,
            samples=samples,
            tile=tile,
            precision=precision,
            exposure=exposure,
            strength=strength,
            **self.notes.task_options(sources=image),
        )
        if samples > 1 and temperature == 0 and (mask is None or outside == 0):
            self.notes("At temperature 0 all samples are the same picture. Raise it for other exposures.")
        return self.show_samples(pictures, seed, samples, image)
