"""Upscale: sharp, different enlargements of a photograph, several at a time, alone or inside other nodes."""

from __future__ import annotations

import math
from typing import Any

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
from ..flowcore.tasks.upscale import memory_required, sampling_settings, target_size
from . import widgets
from .host.compat import curve_input, curve_values, io, log
from .host.memory import load_to_device, on_release, stop_if_cancelled
from .host.paths import model_files, model_path, upscale_model_files
from .host.ui import Notes, Progress, gallery, of_image, seeds_in_turn
from .node import FlowNode, schema
from .picking import HIDDEN, PickingNode
from .recording import RecordingNode
from .sockets import FlowModel, check_memory, flow_model, from_image, from_mask, to_image

MOST_MEGAPIXELS = 400  # of a picture whose size nobody stated: 4.8 GB of memory
ORDINARY_TILE = 512  # pixels of the low-resolution image
STORE = ConditionStore()  # another seed or temperature skips the analysis of the image
on_release += [STORE.clear, forget_plan]

SEAMS = (
    "Above temperature 0, upscale nodes that work in tiles (the host's in tiles of 512 pixels) show seams where tiles "
    "meet: each draws its own detail. Use 0, or Flow Upscale, whose tiles share their detail."
)


class FlowcoreUpscale(RecordingNode):
    """Enlargements of every image: all samples of the first image, then of the second."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreUpscale",
            "upscaling",
            aliases=[
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
            ],
            inputs=[
                io.Image.Input("image"),
                flow_model("upscale"),
                widgets.temperature(widgets.OWN, own=True),
                widgets.seed(),
                io.Int.Input("samples", default=1, min=1, max=64, optional=True),
                io.Int.Input("tile", default=0, min=0, max=4096, optional=True),
                widgets.precision(),
                io.Mask.Input("mask", optional=True),
                widgets.temperature(0.3, "outside", optional=True),
                widgets.temperatures(),
                io.Float.Input("factor", default=0.0, min=0.0, max=16.0, step=0.05, optional=True),
                io.Int.Input("longest_side", default=0, min=0, max=16384, optional=True),
                io.Boolean.Input("match_source", default=False, optional=True),
                widgets.calm_edges(),
                widgets.pick(),
            ],
            outputs=[io.Image.Output("images"), io.Float.Output("consistency")],
            hidden=HIDDEN,
            advanced=("tile", "precision", "temperatures", "longest_side", "match_source", "calm_edges"),
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        model: FlowModel,
        temperature: float,
        seed: int,
        samples: int,
        tile: int,
        precision: Precision,
        mask: Tensor | None,
        outside: float,
        temperatures: str,
        factor: float,
        longest_side: int,
        match_source: bool,
        calm_edges: float,
    ) -> Any:
        tau, calm = _settings(model, temperature, calm_edges, temperatures)
        notes, pixels = cls.notes(), from_image(image)
        height, width = pixels.shape[-2:]
        sizes = [
            target_size(model.flow, height, width),
            target_size(model.flow, height, width, factor, longest_side),
        ]
        _refuse_huge(sizes[1], longest_side)
        advice = "Lower samples, factor or longest_side, or pass fewer or smaller images."
        check_memory(len(pixels) * samples, 3 * max(map(math.prod, sizes)), "pictures need", advice)
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE))
        if len(pixels) * samples * math.prod(sizes[1]) >= NOTEWORTHY * 1e6:
            sources, results = ([size] * len(pixels) for size in ((height, width), sizes[1]))
            coming = forecast(
                flow, sources, results, samples=samples, tile=tile, precision=precision, cancelled=stop_if_cancelled
            ).sentence()
            log.info("Flow Upscale: %s", coming)
            cls.show(coming)
        pictures = flowcore.upscale(
            flow,
            pixels,
            temperature=_temperature(tau, temperatures, mask, outside, len(pixels), notes),
            calm_edges=calm,
            seed=seed,
            samples=samples,
            tile=tile,
            precision=precision,
            factor=factor,
            longest_side=longest_side,
            match_source=match_source,
            progress=Progress(pixels),
            cancelled=stop_if_cancelled,
            notify=notes,
            store=STORE,
        )
        each = consistency(pictures, pixels).tolist()
        worst = min(each)
        drawn = [] if temperatures.strip() else [f"temperature {tau:g}, calm edges {calm:g}"]
        lines = [*notes.lines, *drawn, f"consistency {worst:.1f} dB"]
        return io.NodeOutput(
            to_image(pictures),
            worst,
            ui=gallery(pictures, seeds_in_turn(seed, samples, len(pictures)), notes, cls.hidden.extra_pnginfo, pixels)
            | {"text": lines, "consistency": [worst], "each": each, "temperature": [tau], "calm_edges": [calm]},
        )

    @classmethod
    def picked(cls, output: Any, place: int) -> tuple[Any, ...]:
        images, _ = super().picked(output, place)
        return images, output.ui["each"][place]

    @classmethod
    def recorded(cls, values: dict[str, Any]) -> dict[str, Any]:
        names = ("model", "temperature", "calm_edges", "temperatures")
        tau, calm = _settings(*(values[name] for name in names))
        return values | {"temperature": tau, "calm_edges": calm}


def _refuse_huge(size: tuple[int, int], longest_side: int) -> None:
    """Refuse pictures that fill memory and disk, unless their size was stated."""
    megapixels = math.prod(size) / 1e6
    if megapixels > MOST_MEGAPIXELS and not longest_side:
        raise FlowError(
            f"A picture would have {size[1]}x{size[0]} pixels, {megapixels:.0f} megapixels. Set longest_side to the "
            f"longer side that you want; without it, Flow Upscale makes at most {MOST_MEGAPIXELS} megapixels."
        )


def _settings(model: FlowModel, temperature: float, calm_edges: float, per_level: str) -> tuple[float, float]:
    """Fill in what the model's file states where the sliders follow the model; temperatures per level are stated."""
    flow, tau, calm = model.flow, widgets.own_or(temperature), widgets.own_or(calm_edges)
    stated = widgets.parse_numbers(per_level, "temperatures")
    _, share = sampling_settings(flow, tau if stated is None else stated, calm)
    return float(flow.config.temperature) if tau is None else tau, share


def _temperature(
    inside: float, per_level: str, mask: Tensor | None, outside: float, images: int, notes: Notes
) -> Temperature:
    """Combine the widgets and the mask: a number, one per level, or a map (per level)."""
    levels = widgets.parse_numbers(per_level, "temperatures")
    if mask is None:
        return levels or inside
    where = from_mask(mask, images)
    if not bool(where.any()):
        notes(
            f"The mask is black, so the temperature is {outside:g} everywhere. Paint where temperature shall hold: "
            "right-click Load Image, Open in MaskEditor."
        )
    return (
        [masked_temperature(where, tau, outside) for tau in levels]
        if levels
        else masked_temperature(where, inside, outside)
    )


class FlowcoreTemperatureGrid(PickingNode):
    """All temperatures with all seeds, on one sheet."""

    PICKED = (1, 2, 3)

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreTemperatureGrid",
            "upscaling",
            aliases=["temperature", "xy plot", "grid", "contact sheet", "compare seeds", "srflow", "upscale"],
            inputs=[
                io.Image.Input("image"),
                flow_model("upscale"),
                io.String.Input("temperatures", default="0, 0.4, 0.7, 0.9"),
                widgets.seed(),
                io.Int.Input("seeds", default=3, min=1, max=16, optional=True),
                io.Int.Input("tile", default=0, min=0, max=4096, optional=True),
                widgets.precision(),
                widgets.calm_edges(),
                widgets.pick(),
            ],
            outputs=[
                io.Image.Output("sheet"),
                io.Image.Output("images"),
                io.Float.Output("each_temperature", is_output_list=True),
                io.Int.Output("each_seed", is_output_list=True),
            ],
            hidden=HIDDEN,
            advanced=("tile", "precision", "calm_edges"),
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        model: FlowModel,
        temperatures: str,
        seed: int,
        seeds: int,
        tile: int,
        precision: Precision,
        calm_edges: float,
    ) -> Any:
        notes, pixels = cls.notes(), from_image(image)
        height, width = pixels.shape[-2:]
        taus = widgets.temperature_list(temperatures)
        needed = memory_required(model.flow, height, width, tile or ORDINARY_TILE)
        each = 3 * math.prod(target_size(model.flow, height, width))
        check_memory(len(pixels) * len(taus) * seeds, each, "pictures need", "Ask for fewer temperatures or seeds.")
        pictures = flowcore.temperature_grid(
            model.load(needed),
            pixels,
            [widgets.own_or(tau) for tau in taus],
            calm_edges=widgets.own_or(calm_edges),
            seed=seed,
            seeds=seeds,
            tile=tile,
            precision=precision,
            progress=Progress(pixels),
            cancelled=stop_if_cancelled,
            notify=notes,
            store=STORE,
        )
        taus = [float(model.flow.config.temperature) if tau < 0 else tau for tau in taus]  # below OWN is refused
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
            | {"temperatures": taus, "seeds": drawn},
        )


class FlowcoreTemperatureCurve(FlowNode):
    """A temperature per level, along a curve."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreTemperatureCurve",
            "upscaling",
            aliases=["temperature", "curve", "per level", "levels", "schedule", "flow"],
            inputs=[
                curve_input("curve"),
                widgets.temperature(0.6, "fine"),
                widgets.temperature(0.9, "coarse"),
                io.Int.Input("levels", default=2, min=1, max=8),
            ],
            outputs=[io.String.Output("temperatures")],
        )

    @classmethod
    def run(cls, curve: Any, fine: float, coarse: float, levels: int) -> Any:
        heights = curve_values(curve, [level / max(1, levels - 1) for level in range(levels)])
        text = ", ".join(f"{max(0.0, fine + (coarse - fine) * height):.4g}" for height in heights)
        return io.NodeOutput(text, ui={"text": [text]})


class FlowcoreMatchSource(FlowNode):
    """Enlargements that equal their source when they are shrunk."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreMatchSource",
            "upscaling",
            aliases=["back projection", "consistency", "color fix", "colour fix", "lr consistency", "color match"],
            inputs=[io.Image.Input("images"), io.Image.Input("source")],
            outputs=[io.Image.Output("matched"), io.Float.Output("consistency")],
        )

    @classmethod
    def run(cls, images: Tensor, source: Tensor) -> Any:
        notes, pixels, small = cls.notes(), from_image(images), from_image(source)
        matched = flowcore.match_source(pixels, small, progress=Progress(), cancelled=stop_if_cancelled, notify=notes)
        before, after = (float(consistency(each, small).min()) for each in (pixels, matched))
        text = f"consistency {before:.1f} dB before, {after:.1f} dB after"
        return io.NodeOutput(
            to_image(matched), after, ui={"text": [text, *notes.lines], "before": [before], "consistency": [after]}
        )


class FlowcoreAsUpscaleModel(FlowNode):
    """A flow, a temperature and a seed, as an UPSCALE_MODEL."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FlowcoreAsUpscaleModel",
            "upscaling",
            aliases=["upscale model", "srflow", "flow", "ultimate sd upscale", "esrgan", "convert model"],
            inputs=[
                flow_model("upscale"),
                widgets.temperature(0.0, own=True),
                widgets.seed(),
                widgets.calm_edges(),
            ],
            outputs=[io.UpscaleModel.Output("upscale_model")],
            advanced=("calm_edges",),
        )

    @classmethod
    def run(cls, model: FlowModel, temperature: float, seed: int, calm_edges: float) -> Any:
        notes = cls.notes()
        upscaler = Upscaler(
            model.flow,
            temperature=widgets.own_or(temperature),
            calm_edges=widgets.own_or(calm_edges),
            seed=seed,
            cancelled=stop_if_cancelled,
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
