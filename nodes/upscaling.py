"""Upscale: sharp, different enlargements of a photograph, several at a time, alone or inside other nodes."""

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
from ..flowcore.quality.metrics import diversity
from ..flowcore.tasks.consistency import consistency
from ..flowcore.tasks.defaults import with_defaults
from ..flowcore.tasks.forecast import NOTEWORTHY, forecast
from ..flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED, recommended_model
from ..flowcore.tasks.upscale import memory_required, target_size
from ..flowcore.tasks.video import STEADINESS
from . import widgets
from .host.compat import curve_values, io, log
from .host.memory import load_to_device, on_release, stop_if_cancelled
from .host.paths import model_files, model_path, upscale_model_files
from .host.ui import Notes, gallery, of_image
from .node import FlowNode
from .picking import ClipNode, PickingNode
from .sampling import grid_outputs
from .sockets import (
    AnyUpscaleModel,
    Clip,
    HostModel,
    Image,
    Mask,
    ModelByPicture,
    RescaleModel,
    UpscaleModel,
    check_memory,
    from_mask,
)

MAX_MEGAPIXELS = 400  # of a picture whose size nobody stated: 4.8 GB of memory
OPEN = 1.0  # of 255, the deviation among samples below which they look alike
SAME, ALIKE = 48, 32  # decibels from which a picture is told to be the same, and nearly so
ORDINARY_TILE = 512  # pixels of the low-resolution image
STORE = ConditionStore()  # another seed or temperature does not encode the image again
on_release += [STORE.clear, forget_plan]

CLOSED = (
    "The samples look alike: at these numbers this picture leaves little open. Move faithful to bold to the right for "
    "more."
)
SEAMS = (
    "Above temperature 0, upscale nodes that work in tiles (the host's in tiles of 512 pixels) show seams where tiles "
    "meet: each draws its own detail. Use 0, or Flow Upscale, whose tiles share their detail."
)
PIECES = (
    f"{FOR_DAMAGED}: nodes with an upscale model show it pieces of a picture, by which the model that suits the whole "
    f"cannot be told. For clean pictures choose {FOR_CLEAN} in Load Flow Model."
)


class FlowcoreUpscale(PickingNode):
    """Enlargements of every image: all samples of the first image, then of the second."""

    ALIASES = (
        "upscale, super resolution, srflow, flow upscale, enlarge, 4x, upscale image, temperature, restore, "
        "restore old photo, sharpen, unblur, deblur, dejpeg, denoise, clean up, enhance"
    )
    ESSENTIALS = "Image Tools"
    OUTPUTS = (io.Image.Output("images"), io.Float.Output("consistency"))
    RECORDS = True
    LIVE = "detail"

    def run(
        self,
        image: Image,
        model: UpscaleModel,
        temperature: widgets.OwnTemperature,
        seed: widgets.Seed,
        samples: widgets.Samples,
        tile: widgets.Tile,
        precision: widgets.Precision,
        mask: Mask | None,
        outside: Annotated[float, widgets.temperature(0.3, optional=True)],
        temperatures: Annotated[str, partial(widgets.text, advanced=True)],
        factor: Annotated[float, widgets.number(0.0, 0.0, 16.0, 0.05, optional=True)],
        longest_side: Annotated[int, widgets.integer(0, 0, 16384, optional=True, advanced=True)],
        match_source: Annotated[bool, partial(widgets.switch, advanced=True)],
        calm_edges: widgets.CalmEdges,
        pick: widgets.Pick,
        guide: Image | None,
        guide_strength: Annotated[float | None, widgets.slider(widgets.OWN, widgets.OWN, 1.0, optional=True)],
        boldness: Annotated[float | None, widgets.slider(widgets.OWN, widgets.OWN, 1.0, optional=True)],
    ) -> Any:
        per_level = widgets.parse_numbers(temperatures, "temperatures")
        own = {"temperature": temperature, "calm_edges": calm_edges, "guide_strength": guide_strength, "guide": guide}
        used = with_defaults(model.flow, own | {"boldness": boldness})
        tau, calm, strength = (used[name] for name in ("temperature", "calm_edges", "guide_strength"))
        count, _, height, width = image.shape
        size = target_size(model.flow, height, width, factor, longest_side)
        megapixels = math.prod(size) / 1e6
        if megapixels > MAX_MEGAPIXELS and not longest_side:
            raise FlowError(
                f"A picture would have {size[1]}x{size[0]} pixels, {megapixels:.0f} megapixels. Set longest_side to "
                f"the longer side that you want; without it, Flow Upscale makes at most {MAX_MEGAPIXELS} megapixels."
            )
        largest = max(math.prod(size), math.prod(target_size(model.flow, height, width)))
        advice = "Lower samples, factor or longest_side, or pass fewer or smaller images."
        check_memory(count * samples, 3 * largest, "pictures need", advice)
        # Room for a tile of ordinary size; asking for the whole picture would push every other model out.
        guided = guide is not None
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE, guided=guided))
        how: Any = {"samples": samples, "tile": tile, "precision": precision}
        if count * samples * megapixels >= NOTEWORTHY:
            sources, results = [(height, width)] * count, [size] * count
            expected = forecast(flow, sources, results, **how, guided=guided, cancelled=stop_if_cancelled).sentence()
            log.info("Flow Upscale: %s", expected)
            self.notes.show(expected)
        chosen: Any = per_level or tau
        if mask is not None:
            chosen = _masked(chosen, from_mask(mask, count), outside, self.notes)
        wanted: Any = {"factor": factor, "longest_side": longest_side, "match_source": match_source}
        wanted |= {"calm_edges": calm, "guide": guide, "guide_strength": strength}
        how = self.notes.follow(sources=image, **how, store=STORE)
        pictures = flowcore.upscale(flow, image, temperature=chosen, seed=seed, **wanted, **how)
        each = consistency(pictures, image).tolist()
        worst = min(each)
        edges = f", {calm:g} calmer at edges" if calm else ""
        stated = [] if per_level else [f"temperature {tau:g}{edges}"]
        stated += [f"guided, {strength:g}"] if strength and (guided or flow.guide is not None) else []
        stated.append(f"shrunk to the size of the input, {_distance(worst)} from it")
        open_places = [] if samples == 1 or diversity(pictures[:samples]) >= OPEN else [CLOSED]
        facts: Any = {"text": [_faithful(worst), *open_places, "", *stated], "consistency": [worst], "each": each}
        facts |= {"temperature": [tau], "calm_edges": [calm], "guide_strength": [strength]}
        better = _better_model(model, self.notes)
        return self.made(pictures, seed, samples, image, worst, flowcore_better=better, **facts)

    def picked(self, output: Any, place: int) -> tuple[Any, ...]:
        images, _ = super().picked(output, place)
        return images, output.ui["each"][place]


def _masked(inside: float | list[float], mask: Tensor, outside: float, notes: Notes) -> Temperature:
    """Make a map, or one per level, of the temperature `inside` where a mask is white, and of `outside` elsewhere."""
    if not bool(mask.any()):
        notes(
            f"The mask is black, so the temperature is {outside:g} everywhere. Paint where temperature shall hold: in "
            "Flow Paint Temperature, or right-click Load Image, Open in MaskEditor."
        )
    if isinstance(inside, list):
        return [masked_temperature(mask, tau, outside) for tau in inside]
    return masked_temperature(mask, inside, outside)


def _better_model(model: HostModel, notes: Notes) -> list[str]:
    """List the model that a run's notes recommend, if any, to which web/js/models.js switches at a click."""
    return [name] if (name := recommended_model(model.flow, notes.lines)) else []


def _faithful(decibels: float) -> str:
    """Say how much like its source an enlargement is once it is shrunk again."""
    if decibels < ALIKE:
        return "Shrunk again, it differs from its source: noise and blocks were left out, or a guide changed it."
    return f"Shrunk again, it is {'nearly ' * (decibels < SAME)}the picture that it was made from."


def _distance(decibels: float) -> str:
    """Convert a PSNR to the rms difference that it stands for, in steps of 8 bits."""
    return f"{255 * 10 ** (-decibels / 20):.2g}/255"


class FlowcoreUpscaleVideo(ClipNode):
    """A clip whose frames are enlarged as one."""

    ALIASES = "upscale video, video, clip, flicker, steady, temporal consistency, frames, deflicker"
    OUTPUTS = (io.Image.Output("images"), io.Video.Output("video"))

    def run(
        self,
        image: Clip,
        model: UpscaleModel,
        temperature: widgets.OwnTemperature,
        seed: widgets.Seed,
        steadiness: Annotated[float, widgets.slider(STEADINESS, 0.0, 1.0)],
        calm_edges: widgets.CalmEdges,
        tile: widgets.Tile,
        precision: widgets.Precision,
        pick: widgets.Pick,
    ) -> Any:
        count, _, height, width = image.shape
        size = target_size(model.flow, height, width)
        check_memory(count, 3 * math.prod(size), "pictures need", "Pass fewer or smaller frames.")
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE, guided=steadiness > 0))
        how = self.notes.follow(sources=image, tile=tile, precision=precision)
        pictures = flowcore.upscale_video(
            flow, image, temperature=temperature, calm_edges=calm_edges, seed=seed, steadiness=steadiness, **how
        )
        return self.film(pictures, image, flowcore_better=_better_model(model, self.notes))


class FlowcoreTemperatureGrid(PickingNode):
    """All temperatures with all seeds, on one sheet."""

    PICKED = (1, 2, 3)
    ALIASES = "temperature, xy plot, grid, contact sheet, compare seeds, srflow, upscale"
    OUTPUTS = grid_outputs()

    def run(
        self,
        image: Image,
        model: UpscaleModel,
        temperatures: Annotated[str, partial(io.String.Input, default="0, 0.4, 0.7, 0.9")],
        seed: widgets.Seed,
        seeds: Annotated[int, widgets.integer(3, 1, 16, optional=True)],
        tile: widgets.Tile,
        precision: widgets.Precision,
        calm_edges: widgets.CalmEdges,
        pick: widgets.Pick,
    ) -> Any:
        count, _, height, width = image.shape
        own = with_defaults(model.flow, {"temperature": None})["temperature"]
        taus = [own if widgets.OWN <= tau < 0 else tau for tau in widgets.temperature_list(temperatures)]
        per_image = len(taus) * seeds
        values = 3 * math.prod(target_size(model.flow, height, width))
        check_memory(count * per_image, values, "pictures need", "Ask for fewer temperatures or seeds.")
        flow = model.load(memory_required(model.flow, height, width, tile or ORDINARY_TILE))
        how = self.notes.follow(sources=image, tile=tile, precision=precision, store=STORE)
        pictures = flowcore.temperature_grid(flow, image, taus, calm_edges=calm_edges, seed=seed, seeds=seeds, **how)
        drawn_seeds = [(seed + k) % 2**64 for k in range(seeds)]
        rows, columns = [f"seed {k}" for k in drawn_seeds], [f"temperature {tau:g}" for tau in taus]
        sheets = [
            contact_sheet(table.transpose(0, 1).flatten(0, 1), rows, columns)  # (seeds * taus, 3, H, W)
            for table in pictures.unflatten(0, (count, len(taus), seeds))
        ]
        each = [(tau, k) for tau in taus for k in drawn_seeds] * count
        shape = {"rows": seeds} if count == 1 else {}  # a table of several images would be too wide
        facts = [
            {"seed": k, "temperature": tau, **shape, **of_image(place, per_image, len(each))}
            for place, (tau, k) in enumerate(each)
        ]
        return self.output(
            torch.stack(sheets),
            pictures,
            [tau for tau, _ in each],
            [k for _, k in each],
            **gallery(self, pictures, facts, image),
            temperatures=taus,
            seeds=drawn_seeds,
            flowcore_better=_better_model(model, self.notes),
        )


class FlowcoreTemperatureCurve(FlowNode):
    """A temperature per level, along a curve."""

    ALIASES = "temperature, curve, per level, levels, schedule, flow"
    OUTPUTS = (io.String.Output("temperatures"),)

    def run(
        self,
        curve: Annotated[Any, partial(io.Curve.Input, optional=True, socketless=False)],
        fine: Annotated[float, widgets.temperature(0.6)],
        coarse: Annotated[float, widgets.temperature(0.9)],
        levels: Annotated[int, widgets.integer(2, 1, 8)],
    ) -> Any:
        heights = curve_values(curve, [level / max(1, levels - 1) for level in range(levels)])
        text = ", ".join(f"{max(0.0, fine + (coarse - fine) * height):.4g}" for height in heights)
        return self.output(text, text=[text])


class FlowcoreMatchSource(FlowNode):
    """Enlargements that equal their source when they are shrunk."""

    ALIASES = "back projection, consistency, color fix, colour fix, lr consistency, color match"
    OUTPUTS = (io.Image.Output("matched"), io.Float.Output("consistency"))

    def run(self, images: Image, source: Image) -> Any:
        matched = flowcore.match_source(images, source, **self.notes.follow())
        before, after = (float(consistency(each, source).min()) for each in (images, matched))
        text = f"shrunk to the size of the source, {_distance(after)} from it; before, {_distance(before)}"
        return self.output(matched, after, text=[_faithful(after), "", text], before=[before], consistency=[after])


class FlowcoreAsUpscaleModel(FlowNode):
    """A flow, a temperature and a seed, as an UPSCALE_MODEL."""

    ALIASES = "upscale model, srflow, flow, ultimate sd upscale, esrgan, convert model"
    OUTPUTS = (io.UpscaleModel.Output("upscale_model"),)

    def run(
        self,
        model: AnyUpscaleModel,
        temperature: widgets.OwnTemperature,
        seed: widgets.Seed,
        calm_edges: widgets.CalmEdges,
    ) -> Any:
        why: list[str] = []
        if isinstance(model, ModelByPicture):
            model, why = model.load(FOR_DAMAGED), [PIECES]
        upscaler = Upscaler(
            model.flow, temperature=temperature, calm_edges=calm_edges, seed=seed, cancelled=stop_if_cancelled
        )
        if upscaler.temperature:
            self.notes(SEAMS)
        made: Any = descriptor(upscaler)
        patcher = model.patcher

        def to(device: Any = None, dtype: Any = None) -> Any:
            # Old hosts move upscale models themselves, there and back, without the patcher's knowledge.
            if device is not None and str(device) == str(patcher.load_device):
                load_to_device(patcher, 0)
            return made

        made.patcher, made.to = patcher, to  # newer hosts move it by the patcher
        return self.output(made, text=why)


class FlowcoreShrink(FlowNode):
    """Small pictures of photographs, which the same model restores."""

    ALIASES = "shrink, downscale, rescale, hcflow, compress, thumbnail, flow shrink"
    OUTPUTS = (io.Image.Output("small"), io.Int.Output("width"), io.Int.Output("height"))

    def run(self, image: Image, model: RescaleModel) -> Any:
        model.flow.require("rescale")
        height, width = image.shape[-2:]
        scale = model.flow.condition_scale
        flow = model.load(memory_required(model.flow, -(-height // scale), -(-width // scale)))
        return self.output(flowcore.shrink(flow, image, **self.notes.follow()), width, height)


class FlowcoreRestore(PickingNode):
    """Photographs from their small pictures: all samples of the first, then of the second."""

    ALIASES = "rescale, hcflow, unshrink, decompress, flow restore"
    OUTPUTS = (io.Image.Output("images"),)

    def run(
        self,
        small: Image,
        model: RescaleModel,
        temperature: widgets.OwnTemperature,
        seed: widgets.Seed,
        samples: widgets.Samples,
        width: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        height: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        tile: widgets.Tile,
        precision: widgets.Precision,
        pick: widgets.Pick,
    ) -> Any:
        model.flow.require("rescale")
        count, _, rows, columns = small.shape
        scale = model.flow.condition_scale
        advice = "Lower samples, or pass fewer or smaller pictures."
        check_memory(count * samples, 3 * scale**2 * rows * columns, "pictures need", advice)
        flow = model.load(memory_required(model.flow, rows, columns, tile or ORDINARY_TILE))
        size = height or rows * scale, width or columns * scale
        how = self.notes.follow(sources=small, tile=tile, precision=precision)
        pictures = flowcore.restore(flow, small, temperature=temperature, seed=seed, samples=samples, size=size, **how)
        return self.made(pictures, seed, samples, small)


def register_srflow() -> None:
    """Register SRFlow with spandrel, the package through which the host loads upscale models."""

    def candidates() -> list[Any]:  # all files that may hold what the host has read; those of its own folder first
        ours = [path for name in model_files() if (path := model_path(name))]
        return [*upscale_model_files(), *ours, *map(catalog.path, catalog.names())]

    try:
        register(candidates, stop_if_cancelled)
    except FlowError as error:  # without spandrel the host has no such nodes
        log.info("flowcore: %s", error)
    except Exception:  # a changed spandrel must not stop the rest of the pack
        log.exception("flowcore could not make SRFlow known to Load Upscale Model")
