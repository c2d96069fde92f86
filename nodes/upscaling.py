"""Upscale: sharp, different enlargements of a photograph, several at a time, alone or inside other nodes."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import flowcore
from ..flowcore import FlowError
from ..flowcore.checkpoints import catalog
from ..flowcore.images.contact_sheet import contact_sheet
from ..flowcore.inference.condition_cache import ConditionStore
from ..flowcore.inference.plan import forget_plan
from ..flowcore.integrations.spandrel import Upscaler, descriptor, register
from ..flowcore.prior import Temperature, masked_temperature
from ..flowcore.tasks import Precision
from ..flowcore.tasks.consistency import consistency
from ..flowcore.tasks.forecast import NOTEWORTHY, forecast
from ..flowcore.tasks.intake import advised, resolve
from ..flowcore.tasks.upscale import memory_required, target_size
from ..flowcore.tasks.video import STEADINESS
from . import widgets
from .host.compat import curve_values, io, log
from .host.memory import load_to_device, on_release, stop_if_cancelled
from .host.paths import model_files, model_path, upscale_model_files
from .host.ui import Notes, Progress, gallery, of_image
from .node import FlowNode
from .picking import ClipNode, PickingNode, RecordingNode
from .sampling import grid_outputs
from .sockets import CLIP, FlowModel, check_memory, flow_model, from_image, from_mask, to_image

MAX_MEGAPIXELS = 400  # of a picture whose size nobody stated: 4.8 GB of memory
ORDINARY_TILE = 512  # pixels of the low-resolution image
STORE = ConditionStore()  # another seed or temperature does not encode the image again
on_release += [STORE.clear, forget_plan]

SEAMS = (
    "Above temperature 0, upscale nodes that work in tiles (the host's in tiles of 512 pixels) show seams where tiles "
    "meet: each draws its own detail. Use 0, or Flow Upscale, whose tiles share their detail."
)


class FlowcoreUpscale(RecordingNode):
    """Enlargements of every image: all samples of the first image, then of the second."""

    ALIASES = (
        "upscale",
        "super resolution",
        "srflow",
        "flow upscale",
        "enlarge",
        "4x",
        "upscale image",
        "temperature",
        "restore old photo",
        "sharpen",
        "dejpeg",
        "denoise",
    )
    ESSENTIALS = "Image Tools"
    OUTPUTS = (io.Image.Output("images"), io.Float.Output("consistency"))

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel, flow_model("upscale")],
        temperature: Annotated[float | None, widgets.own_temperature()],
        seed: Annotated[int, widgets.seed()],
        samples: Annotated[int, widgets.samples],
        tile: Annotated[int, widgets.tile],
        precision: Annotated[Precision, widgets.precision],
        mask: Annotated[Tensor | None, partial(io.Mask.Input, optional=True)],
        outside: Annotated[float, widgets.temperature(0.3, optional=True)],
        temperatures: Annotated[str, partial(widgets.text, advanced=True)],
        factor: Annotated[float, widgets.number(0.0, 0.0, 16.0, 0.05, optional=True)],
        longest_side: Annotated[int, widgets.integer(0, 0, 16384, optional=True, advanced=True)],
        match_source: Annotated[bool, partial(widgets.switch, advanced=True)],
        calm_edges: Annotated[float | None, widgets.calm_edges],
        pick: Annotated[int, widgets.pick],
        guide: Annotated[Tensor | None, partial(io.Image.Input, optional=True)],
        guide_strength: Annotated[float | None, widgets.guide_strength],
    ) -> Any:
        levels = widgets.parse_numbers(temperatures, "temperatures")
        own = {"temperature": temperature, "calm_edges": calm_edges, "guide_strength": guide_strength, "guide": guide}
        tau, calm, strength, _ = resolve(model.flow, own).values()
        notes, pixels = cls.notes(), from_image(image)
        height, width = pixels.shape[-2:]
        size = target_size(model.flow, height, width, factor, longest_side)
        _refuse_huge(size, longest_side)
        largest = max(math.prod(size), math.prod(target_size(model.flow, height, width)))
        advice = "Lower samples, factor or longest_side, or pass fewer or smaller images."
        check_memory(len(pixels) * samples, 3 * largest, "pictures need", advice)
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        guided = guide is not None
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE, guided=guided))
        if len(pixels) * samples * math.prod(size) >= NOTEWORTHY * 1e6:
            sources, results = [(height, width)] * len(pixels), [size] * len(pixels)
            how: Any = {"tile": tile, "precision": precision, "guided": guided, "cancelled": stop_if_cancelled}
            coming = forecast(flow, sources, results, samples=samples, **how).sentence()
            log.info("Flow Upscale: %s", coming)
            cls.show(coming)
        drawn = levels or tau
        pictures = flowcore.upscale(
            flow,
            pixels,
            temperature=drawn if mask is None else _masked(drawn, from_mask(mask, len(pixels)), outside, notes),
            calm_edges=calm,
            seed=seed,
            samples=samples,
            tile=tile,
            precision=precision,
            factor=factor,
            longest_side=longest_side,
            match_source=match_source,
            guide=None if guide is None else from_image(guide),
            guide_strength=strength,
            **notes.follow(Progress(pixels)),
            store=STORE,
        )
        each = consistency(pictures, pixels).tolist()
        worst = min(each)
        edges = f", {calm:g} calmer at edges" if calm else ""
        stated = [] if levels else [f"temperature {tau:g}{edges}"]
        stated += [f"guided, {strength:g}"] if strength else []
        lines = [*notes.lines, *stated, f"shrunk to the input's size: {_distance(worst)} from the input"]
        facts: Any = {"text": lines, "consistency": [worst], "each": each, "temperature": [tau], "calm_edges": [calm]}
        facts |= {"guide_strength": [strength], "flowcore_better": _better_model(model, notes)}
        return cls.made(pictures, seed, samples, notes, pixels, worst, **facts)

    @classmethod
    def picked(cls, output: Any, place: int) -> tuple[Any, ...]:
        images, _ = super().picked(output, place)
        return images, output.ui["each"][place]


def _better_model(model: FlowModel, notes: Notes) -> list[str]:
    """What the page gets of a model that a run's notes recommend, to which web/js/models.js switches at a click."""
    return [name] if (name := advised(model.flow, notes.lines)) else []


def _distance(decibels: float) -> str:
    """Say how far apart pictures are, in steps of 8 bits."""
    return f"{255 * 10 ** (-decibels / 20):.2g}/255"


def _refuse_huge(size: tuple[int, int], longest_side: int) -> None:
    """Refuse pictures that fill memory and disk, unless their size was stated."""
    megapixels = math.prod(size) / 1e6
    if megapixels > MAX_MEGAPIXELS and not longest_side:
        raise FlowError(
            f"A picture would have {size[1]}x{size[0]} pixels, {megapixels:.0f} megapixels. Set longest_side to the "
            f"longer side that you want; without it, Flow Upscale makes at most {MAX_MEGAPIXELS} megapixels."
        )


def _masked(inside: float | list[float], mask: Tensor, outside: float, notes: Notes) -> Temperature:
    """Make a map of the temperature, or one per level, that holds where a mask is white."""
    if not bool(mask.any()):
        notes(
            f"The mask is black, so the temperature is {outside:g} everywhere. Paint where temperature shall hold: in "
            "Flow Paint Temperature, or right-click Load Image, Open in MaskEditor."
        )
    if isinstance(inside, list):
        return [masked_temperature(mask, tau, outside) for tau in inside]
    return masked_temperature(mask, inside, outside)


def _each_temperature(model: FlowModel, text: str) -> list[float]:
    """Parse the temperatures of a sheet, with the model's own where one follows it."""
    own = resolve(model.flow, {"temperature": None})["temperature"]
    return [own if widgets.OWN <= tau < 0 else tau for tau in widgets.temperature_list(text)]


class FlowcoreUpscaleVideo(ClipNode):
    """A clip whose frames are enlarged as one."""

    ALIASES = ("upscale video", "video", "clip", "flicker", "steady", "temporal consistency", "frames", "deflicker")
    OUTPUTS = (io.Image.Output("images"), io.Video.Output("video"))

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, CLIP],
        model: Annotated[FlowModel, flow_model("upscale")],
        temperature: Annotated[float | None, widgets.own_temperature()],
        seed: Annotated[int, widgets.seed()],
        steadiness: Annotated[float, widgets.slider(STEADINESS, 0.0, 1.0)],
        calm_edges: Annotated[float | None, widgets.calm_edges],
        tile: Annotated[int, widgets.tile],
        precision: Annotated[Precision, widgets.precision],
        pick: Annotated[int, widgets.pick],
    ) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        height, width = pixels.shape[-2:]
        size = target_size(model.flow, height, width)
        check_memory(len(pixels), 3 * math.prod(size), "pictures need", "Pass fewer or smaller frames.")
        pictures = flowcore.upscale_video(
            model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE, guided=steadiness > 0)),
            pixels,
            temperature=temperature,
            calm_edges=calm_edges,
            seed=seed,
            steadiness=steadiness,
            tile=tile,
            precision=precision,
            **notes.follow(Progress(pixels)),
        )
        better = _better_model(model, notes)
        return cls.made(pictures, seed, len(pictures), notes, pixels, flowcore_better=better)


class FlowcoreTemperatureGrid(PickingNode):
    """All temperatures with all seeds, on one sheet."""

    PICKED = (1, 2, 3)
    ALIASES = ("temperature", "xy plot", "grid", "contact sheet", "compare seeds", "srflow", "upscale")
    OUTPUTS = grid_outputs()

    @classmethod
    def resolved(cls, values: dict[str, Any]) -> dict[str, Any]:
        taus = _each_temperature(values["model"], values["temperatures"])
        return super().resolved(values) | {"temperatures": taus}

    @classmethod
    def run(
        cls,
        image: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel, flow_model("upscale")],
        temperatures: Annotated[str, partial(io.String.Input, default="0, 0.4, 0.7, 0.9")],
        seed: Annotated[int, widgets.seed()],
        seeds: Annotated[int, widgets.integer(3, 1, 16, optional=True)],
        tile: Annotated[int, widgets.tile],
        precision: Annotated[Precision, widgets.precision],
        calm_edges: Annotated[float | None, widgets.calm_edges],
        pick: Annotated[int, widgets.pick],
    ) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        height, width = pixels.shape[-2:]
        taus = _each_temperature(model, temperatures)
        needed = memory_required(model.flow, height, width, tile or ORDINARY_TILE)
        each = 3 * math.prod(target_size(model.flow, height, width))
        check_memory(len(pixels) * len(taus) * seeds, each, "pictures need", "Ask for fewer temperatures or seeds.")
        pictures = flowcore.temperature_grid(
            model.load(needed),
            pixels,
            taus,
            calm_edges=calm_edges,
            seed=seed,
            seeds=seeds,
            tile=tile,
            precision=precision,
            **notes.follow(Progress(pixels)),
            store=STORE,
        )
        drawn = [(seed + k) % 2**64 for k in range(seeds)]
        rows, columns = [f"seed {k}" for k in drawn], [f"temperature {tau:g}" for tau in taus]
        sheets = [
            contact_sheet(table.transpose(0, 1).flatten(0, 1), rows, columns)  # (seeds * taus, 3, H, W)
            for table in pictures.unflatten(0, (len(pixels), len(taus), seeds))
        ]
        each = [(tau, k) for tau in taus for k in drawn] * len(pixels)
        count = len(taus) * seeds
        # A table is shown of one image; of several it would be too wide.
        shape = {"rows": seeds} if len(pixels) == 1 else {}
        facts = [
            {"seed": k, "temperature": tau, **shape, **of_image(place, count, len(each))}
            for place, (tau, k) in enumerate(each)
        ]
        return io.NodeOutput(
            to_image(torch.stack(sheets)),
            to_image(pictures),
            [tau for tau, _ in each],
            [k for _, k in each],
            ui=gallery(pictures, facts, notes, cls.hidden.extra_pnginfo, pixels)
            | {"temperatures": taus, "seeds": drawn, "flowcore_better": _better_model(model, notes)},
        )


class FlowcoreTemperatureCurve(FlowNode):
    """A temperature per level, along a curve."""

    ALIASES = ("temperature", "curve", "per level", "levels", "schedule", "flow")
    OUTPUTS = (io.String.Output("temperatures"),)

    @classmethod
    def run(
        cls,
        curve: Annotated[Any, partial(io.Curve.Input, optional=True, socketless=False)],
        fine: Annotated[float, widgets.temperature(0.6)],
        coarse: Annotated[float, widgets.temperature(0.9)],
        levels: Annotated[int, widgets.integer(2, 1, 8)],
    ) -> Any:
        heights = curve_values(curve, [level / max(1, levels - 1) for level in range(levels)])
        text = ", ".join(f"{max(0.0, fine + (coarse - fine) * height):.4g}" for height in heights)
        return io.NodeOutput(text, ui={"text": [text]})


class FlowcoreMatchSource(FlowNode):
    """Enlargements that equal their source when they are shrunk."""

    ALIASES = ("back projection", "consistency", "color fix", "colour fix", "lr consistency", "color match")
    OUTPUTS = (io.Image.Output("matched"), io.Float.Output("consistency"))

    @classmethod
    def run(cls, images: Annotated[Tensor, io.Image.Input], source: Annotated[Tensor, io.Image.Input]) -> Any:
        notes, pixels, small = cls.notes(), from_image(images), from_image(source)
        matched = flowcore.match_source(pixels, small, **notes.follow())
        before, after = (float(consistency(each, small).min()) for each in (pixels, matched))
        text = f"Shrunk to the source's size: {_distance(after)} from the source; before, {_distance(before)}"
        return io.NodeOutput(
            to_image(matched), after, ui={"text": [text, *notes.lines], "before": [before], "consistency": [after]}
        )


class FlowcoreAsUpscaleModel(FlowNode):
    """A flow, a temperature and a seed, as an UPSCALE_MODEL."""

    ALIASES = ("upscale model", "srflow", "flow", "ultimate sd upscale", "esrgan", "convert model")
    OUTPUTS = (io.UpscaleModel.Output("upscale_model"),)

    @classmethod
    def run(
        cls,
        model: Annotated[FlowModel, flow_model("upscale")],
        temperature: Annotated[float | None, widgets.own_temperature()],
        seed: Annotated[int, widgets.seed()],
        calm_edges: Annotated[float | None, widgets.calm_edges],
    ) -> Any:
        notes = cls.notes()
        upscaler = Upscaler(
            model.flow, temperature=temperature, calm_edges=calm_edges, seed=seed, cancelled=stop_if_cancelled
        )
        if upscaler.temperature:
            notes(SEAMS)
        return io.NodeOutput(_with_patcher(descriptor(upscaler), model.patcher), ui=notes.ui)


def _with_patcher(upscale_model: Any, patcher: Any) -> Any:
    """Let the host move an upscale model by the patcher of its flow."""

    def to(device: Any = None, dtype: Any = None) -> Any:
        # Old hosts move upscale models themselves, there and back, without the patcher's knowledge.
        if device is not None and str(device) == str(patcher.load_device):
            load_to_device(patcher, 0)
        return upscale_model

    upscale_model.patcher = patcher  # newer hosts move it by this
    upscale_model.to = to
    return upscale_model


# ---------------------------------------------------------------------------------------------------------------------
# photographs as small ordinary pictures, and back


class FlowcoreShrink(FlowNode):
    """Small pictures of photographs, which the same model restores."""

    ALIASES = ("shrink", "downscale", "rescale", "hcflow", "compress", "thumbnail", "flow shrink")
    OUTPUTS = (io.Image.Output("small"), io.Int.Output("width"), io.Int.Output("height"))

    @classmethod
    def run(cls, image: Annotated[Tensor, io.Image.Input], model: Annotated[FlowModel, flow_model("rescale")]) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        model.flow.require("rescale")
        height, width = pixels.shape[-2:]
        scale = model.flow.condition_scale
        flow = model.load(memory_required(model.flow, -(-height // scale), -(-width // scale)))
        small = flowcore.shrink(flow, pixels, **notes.follow())
        return io.NodeOutput(to_image(small), width, height, ui=notes.ui)


class FlowcoreRestore(PickingNode):
    """Photographs from their small pictures: all samples of the first, then of the second."""

    ALIASES = ("restore", "rescale", "hcflow", "enlarge", "upscale", "decompress", "flow restore")
    OUTPUTS = (io.Image.Output("images"),)

    @classmethod
    def run(
        cls,
        small: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel, flow_model("rescale")],
        temperature: Annotated[float | None, widgets.own_temperature()],
        seed: Annotated[int, widgets.seed()],
        samples: Annotated[int, widgets.samples],
        width: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        height: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        tile: Annotated[int, widgets.tile],
        precision: Annotated[Precision, widgets.precision],
        pick: Annotated[int, widgets.pick],
    ) -> Any:
        notes, pixels = cls.notes(), from_image(small)
        model.flow.require("rescale")
        rows, columns = pixels.shape[-2:]
        scale = model.flow.condition_scale
        advice = "Lower samples, or pass fewer or smaller pictures."
        check_memory(len(pixels) * samples, 3 * scale**2 * rows * columns, "pictures need", advice)
        flow = model.load(memory_required(model.flow, rows, columns, tile or ORDINARY_TILE))
        pictures = flowcore.restore(
            flow,
            pixels,
            temperature=temperature,
            seed=seed,
            samples=samples,
            size=(height or rows * scale, width or columns * scale),
            tile=tile,
            precision=precision,
            **notes.follow(Progress(pixels)),
        )
        return cls.made(pictures, seed, samples, notes, pixels)


# ---------------------------------------------------------------------------------------------------------------------
# SRFlow files in the host's own loader


def register_srflow() -> None:
    """Register SRFlow with spandrel, through which the host loads upscale models."""
    try:
        register(_candidate_files, stop_if_cancelled)
    except FlowError as error:  # without spandrel the host has no such nodes
        log.info("flowcore: %s", error)
    except Exception:  # a changed spandrel must not stop the rest of the pack
        log.exception("flowcore could not make SRFlow known to Load Upscale Model")


def _candidate_files() -> list[Any]:
    """List all files that may hold the tensors that the host's loader has read; those of its own folder first."""
    ours = [path for name in model_files() if (path := model_path(name))]
    return [*upscale_model_files(), *ours, *map(catalog.path, catalog.names())]
