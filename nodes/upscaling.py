"""Upscale: several sharp, different enlargements of a photograph, with our nodes or inside those of others."""

import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

import flowcore
from flowcore import FlowError, FlowModel
from flowcore.engine.compiled import drop_compiled
from flowcore.engine.condition_cache import ConditionStore
from flowcore.engine.defaults import guide_share, with_defaults
from flowcore.engine.image_batch import ImageBatch
from flowcore.engine.looks import looks
from flowcore.engine.memory import memory_in_tiles, memory_required
from flowcore.engine.progress import part_of
from flowcore.errors import Argument, joined, say
from flowcore.flows.prior import Temperature, masked_temperature
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.metrics import diversity
from flowcore.models import catalog
from flowcore.tasks.calm_faces import KEPT_CALM
from flowcore.tasks.consistency import consistency
from flowcore.tasks.integrations import Upscaler, descriptor, register
from flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED, better_model
from flowcore.tasks.rescale import RestoreSettings
from flowcore.tasks.upscale import UpscaleSettings, target_size
from flowcore.tasks.video import STEADINESS, UpscaleVideoSettings

from . import widgets
from .host.compat import curve_values, io, log
from .host.memory import load_to_device, release_callbacks, stop_if_cancelled
from .host.paths import model_files, model_path, upscale_model_files
from .host.ui import Notes, canvas_pictures, gallery, sample_facts
from .node import FlowNode
from .picking import ClipNode, PickingNode, Recipe
from .sampling import GRID_OUTPUTS
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

MAX_MEGAPIXELS = 400  # largest picture without longest_side: 4.8 GB of memory
MIN_DIVERSITY = 0.4  # 1/255; samples that differ less look alike. At the defaults, smooth photographs have 0.5
SAME, NEARLY_SAME = 48, 32  # decibels from which a picture shrunk again is called so
ORDINARY_TILE = 512  # pixels of the low-resolution image
STORE = ConditionStore()  # another seed or temperature does not encode the image again
release_callbacks += [STORE.clear, drop_compiled]

ALL_LOOKS = say("all looks")  # of the input: a picture of each
LOOKS = {name: name for name in (say("faithful"), say("natural"), say("crisp"), say("lively"))}
NUMBERS = ("temperature", "calm_edges", "guide_strength", "calm_faces")  # in the output, what was used

LOOK_ALIKE = say(
    "The samples look alike: with these settings the model has little to choose. Move faithful to bold to the right "
    "for more variety."
)
SEAMS = say(
    "Above temperature 0, upscale nodes that work in tiles (ComfyUI's own uses 512 pixels) show seams between tiles, "
    "because each tile gets detail of its own. Use 0, or Flow Upscale, whose tiles share their detail."
)
PIECES = say(
    "{model}: nodes that take an upscale model see only pieces of a picture, which is not enough to choose the model "
    "that suits it. For clean pictures choose {clean} in Load Flow Model.",
    model=FOR_DAMAGED,
    clean=FOR_CLEAN,
)


class FlowcoreUpscale(PickingNode):
    """Enlarge images: all samples of the first image, then of the second."""

    MENU = "enlarge"
    ALIASES = (
        "upscale, super resolution, srflow, flow upscale, enlarge, 4x, upscale image, temperature, restore, "
        "restore old photo, sharpen, dejpeg, denoise, clean up, enhance"
    )
    OUTPUTS = (io.Image.Output("images"), io.Float.Output("consistency"))
    RECORDS = True
    PREVIEW = "detail"

    def run(
        self,
        image: Image,
        model: UpscaleModel,
        settings: UpscaleSettings,
        mask: Mask | None,
        outside: Annotated[float, widgets.temperature(0.3, optional=True)],
        temperatures: Annotated[str, widgets.text(optional=True, advanced=True)],
        pick: widgets.Pick,
        look: Annotated[str, widgets.choice(*looks, ALL_LOOKS, default="natural", optional=True)],
    ) -> Any:
        per_level = widgets.parse_numbers(temperatures, "temperatures")
        if per_level and settings.calm_faces is None:  # same as for any temperature that is given
            settings = replace(settings, calm_faces=0.0)
        names: list[Any] = [*looks] if look == ALL_LOOKS else [look]
        each_look: list[Any] = [replace(settings, look=name).resolved(model.flow) for name in names]
        (count, _, height, width), samples = image.shape, settings.samples
        _check_size(model.flow, image, len(names), settings)
        guided = any(one.guide_strength for one in each_look)
        flow = load_upscaler(model, height, width, settings.tile, guided=guided)
        marks = None if mask is None else from_mask(mask, count, (height, width))
        progress, kept_calm = self.notes.progress or self.notes.start(image), list[str]()

        def tell(line: str) -> None:
            (kept_calm.append if getattr(line, "template", "") in KEPT_CALM else self.notes)(line)

        def draw(one: Any, number: int) -> Tensor:
            inside: Any = per_level or one.temperature
            inside = inside if marks is None else _masked(inside, marks, outside, self.notes)
            options = self.notes.task_options(part_of(progress, number / len(names), 1 / len(names)))
            settings = replace(one, temperature=inside, store=STORE, **options | {"notify": tell})
            return flowcore.upscale(flow, image, settings=settings).unflatten(0, (count, samples))

        made = [draw(one, number) for number, one in enumerate(each_look)]
        pictures = (torch.cat(made, 1) if len(made) > 1 else made[0]).flatten(0, 1)
        each = consistency(pictures, image).tolist()
        worst = min(each)
        details = [] if per_level else _describe_looks(names, each_look, model.flow)
        details.append(say("shrunk to the size of the input, {distance} from it", distance=_distance(worst)))
        look_alike = [LOOK_ALIKE] if samples > 1 and diversity(made[-1][0]) < MIN_DIVERSITY else []
        return self.show_samples(
            pictures,
            settings.seed,
            samples,
            image,
            worst,
            looks=names if look == ALL_LOOKS else (),
            text=[_describe_match(worst), *dict.fromkeys(kept_calm), *look_alike, "", *details],
            consistency=[worst],
            each=each,
            **{name: [getattr(one, name) for one in each_look] for name in NUMBERS},
            flowcore_better=_better_model(model, image),
        )

    @classmethod
    def alone(cls, values: dict[str, Any], place: int) -> dict[str, Any]:
        look, sample = divmod(place, values["samples"])
        drawn = [*looks][look] if values["look"] == ALL_LOOKS else values["look"]
        return super().alone(values, sample) | {"look": drawn}

    def recipes(self, model: HostModel, values: dict[str, Any], pictures: Tensor) -> list[Recipe]:
        names = [*looks] if values["look"] == ALL_LOOKS else [values["look"]]
        by_look = pictures.unflatten(0, (-1, len(names), values["samples"])).unbind(1)
        return [
            (with_defaults(model.flow, {**values, "look": name, "sharpness": None}), part.flatten(0, 1))
            for name, part in zip(names, by_look, strict=True)
        ]

    def picked(self, output: Any, place: int) -> tuple[Any, ...]:
        images, _ = super().picked(output, place)
        return images, output.ui["each"][place]


def _check_size(flow: FlowModel, image: Tensor, count: int, settings: UpscaleSettings) -> None:
    """Raise FlowError if the pictures, ``count`` per sample, would be too large."""
    (height, width), scale = image.shape[-2:], flow.condition_scale
    size = target_size(scale, height, width, settings.factor, settings.longest_side)
    megapixels = math.prod(size) / 1e6
    if megapixels > MAX_MEGAPIXELS and not settings.longest_side:
        raise FlowError(
            "A picture would have {size} pixels, {megapixels} megapixels. Without {longest_side}, Flow Upscale makes "
            "at most {most} megapixels. Set it to the longer side that you want.",
            size=f"{size[1]}x{size[0]}",
            megapixels=f"{megapixels:.0f}",
            most=MAX_MEGAPIXELS,
            longest_side=Argument("longest_side"),
        )
    largest = max(math.prod(size), math.prod(target_size(scale, height, width)))
    advice = say(
        "Lower samples, {factor} or {longest_side}, or pass fewer or smaller images.",
        factor=Argument("factor"),
        longest_side=Argument("longest_side"),
    )
    check_memory(len(image) * count * settings.samples, 3 * largest, "pictures", advice)


def _describe_looks(names: list[Any], settings: list[Any], flow: FlowModel) -> list[str]:
    """Describe the numbers of pictures; of several looks, a line each."""
    numbers = [_describe_numbers(one, flow) for one in settings]
    if len(names) == 1:
        return numbers[0]
    pairs = zip(names, numbers, strict=True)
    return [say("{look}: {numbers}", look=LOOKS[name], numbers=joined(each, ", ")) for name, each in pairs]


def _describe_numbers(settings: Any, flow: FlowModel) -> list[str]:
    """Describe the numbers of pictures, such as "temperature 0.6, 0.3 calmer at edges"."""
    calm, strength = settings.calm_edges, settings.guide_strength
    even, calmer = say("temperature {temperature}"), say("temperature {temperature}, {calm} calmer at edges")
    numbers: list[str] = [say(calmer if calm else even, temperature=f"{settings.temperature:g}", calm=f"{calm:g}")]
    is_guided = strength and (settings.guide is not None or flow.guide is not None)
    return numbers + ([say("guided, {strength}", strength=f"{strength:g}")] if is_guided else [])


def load_upscaler(model: HostModel, height: int, width: int, tile: int = 0, *, guided: bool = False) -> FlowModel:
    """Load a model with free memory for one tile (0: of 512 pixels): more would push other models off the device."""
    return model.load(memory_in_tiles(model.flow, height, width, tile or ORDINARY_TILE, guided=guided))


def _masked(inside: float | list[float], mask: Tensor, outside: float, notes: Notes) -> Temperature:
    """Make a map, or one per level: the temperature is `inside` where the mask is white, and `outside` elsewhere."""
    if not bool(mask.any()):
        notes(
            "The mask is black, so the temperature is {temperature} everywhere. Paint where temperature should "
            "apply: in Flow Paint Temperature, or right-click Load Image, Open in MaskEditor.",
            temperature=f"{outside:g}",
        )
    if isinstance(inside, list):
        return [masked_temperature(mask, tau, outside) for tau in inside]
    return masked_temperature(mask, inside, outside)


def _better_model(model: HostModel, image: Tensor) -> list[str]:
    """List the model that suits images better, if any; web/js/models.js offers to switch to it."""
    return [name] if (name := better_model(model.flow, image)) else []


def _describe_match(decibels: float) -> str:
    if decibels < NEARLY_SAME:
        return say(
            "Not quite the original: made as small as it was again, it differs, because noise and blocks were removed, "
            "or a guide changed it."
        )
    if decibels < SAME:
        return say("True to the original: made as small as it was again, it is nearly the same picture.")
    return say("True to the original: made as small as it was again, it is the same picture.")


def _distance(decibels: float) -> str:
    """Convert a PSNR to the rms difference, in 8-bit steps."""
    return f"{255 * 10 ** (-decibels / 20):.2g}/255"


class FlowcoreUpscaleVideo(ClipNode):
    """Enlarge a clip as a whole."""

    MENU = "enlarge"
    ALIASES = "upscale video, video, clip, flicker, steady, temporal consistency, frames, deflicker"
    OUTPUTS = (io.Image.Output("images"), io.Video.Output("video"))

    def run(
        self,
        image: Clip,
        model: UpscaleModel,
        settings: UpscaleVideoSettings,
        steadiness: Annotated[float, widgets.slider(STEADINESS, 0.0, 1.0)],
        pick: widgets.Pick,
    ) -> Any:
        count, _, height, width = image.shape
        size = target_size(model.flow.condition_scale, height, width)
        check_memory(count, 3 * math.prod(size), "pictures", say("Pass fewer or smaller frames."))
        flow = load_upscaler(model, height, width, settings.tile, guided=steadiness > 0)
        settings = replace(settings, steadiness=steadiness, **self.notes.task_options(sources=image))
        pictures = flowcore.upscale_video(flow, image, settings=settings)
        return self.show_frames(pictures, image, flowcore_better=_better_model(model, image[:1]))


class FlowcoreTemperatureGrid(PickingNode):
    """Show all temperatures with all seeds, on one sheet."""

    PICKED = (1, 2, 3)
    ALIASES = "temperature, xy plot, grid, contact sheet, compare seeds, srflow, upscale"
    OUTPUTS = GRID_OUTPUTS

    def run(
        self,
        image: Image,
        model: UpscaleModel,
        temperatures: Annotated[str, widgets.text("0, 0.4, 0.7, 0.9")],
        seed: widgets.Seed,
        seeds: Annotated[int, widgets.integer(3, 1, 16, optional=True)],
        tile: widgets.Tile,
        precision: widgets.Precision,
        calm_edges: widgets.CalmEdges,
        pick: widgets.Pick,
    ) -> Any:
        count, _, height, width = image.shape
        default = with_defaults(model.flow, {"temperature": None})["temperature"]
        stated = [None if widgets.FROM_MODEL <= tau < 0 else tau for tau in widgets.temperature_list(temperatures)]
        taus = [default if tau is None else tau for tau in stated]
        per_image = len(taus) * seeds
        values = 3 * math.prod(target_size(model.flow.condition_scale, height, width))
        check_memory(count * per_image, values, "pictures", say("Ask for fewer temperatures or seeds."))
        guided = model.flow.guide is not None and guide_share(model.flow.recommended, taus) > 0
        flow = load_upscaler(model, height, width, tile, guided=guided)
        options: Any = {"tile": tile, "precision": precision, "store": STORE, **self.notes.task_options(sources=image)}
        options |= {"calm_edges": calm_edges, "seed": seed, "seeds": seeds}
        pictures = flowcore.temperature_grid(flow, image, stated, **options)  # None keeps faces calm
        row_seeds = [(seed + k) % 2**64 for k in range(seeds)]
        rows, columns = [f"seed {k}" for k in row_seeds], [f"temperature {tau:g}" for tau in taus]
        sheets = [
            contact_sheet(table.transpose(0, 1).flatten(0, 1), rows, columns)  # (seeds * taus, 3, H, W)
            for table in pictures.unflatten(0, (count, len(taus), seeds))
        ]
        cells = [(tau, k) for tau in taus for k in row_seeds] * count
        shape = {"rows": seeds} if count == 1 else {}  # a table of several images would be too wide
        facts = [
            {**fact, **shape, "temperature": tau}
            for fact, (tau, _) in zip(sample_facts([k for _, k in cells], per_image), cells, strict=True)
        ]
        return self.output(
            torch.stack(sheets),
            pictures,
            [tau for tau, _ in cells],
            [k for _, k in cells],
            **gallery(self, pictures, facts, image),
            temperatures=taus,
            seeds=row_seeds,
            flowcore_better=_better_model(model, image),
        )


class FlowcoreTemperatureCurve(FlowNode):
    """Take a temperature per level from a curve."""

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
    """Make enlargements match their source when they are shrunk."""

    MENU = "enlarge"
    ALIASES = "back projection, consistency, color fix, colour fix, lr consistency, color match"
    OUTPUTS = (io.Image.Output("matched"), io.Float.Output("consistency"))

    def run(self, images: Image, source: Image) -> Any:
        matched = flowcore.match_source(images, source, **self.notes.task_options())
        before, after = (float(consistency(each, source).min()) for each in (images, matched))
        text = say(
            "shrunk to the size of the source, {after} from it; before, {before}",
            after=_distance(after),
            before=_distance(before),
        )
        return self.output(
            matched, after, text=[_describe_match(after), "", text], before=[before], consistency=[after]
        )


class FlowcoreAsUpscaleModel(FlowNode):
    """Make an UPSCALE_MODEL of a flow, a temperature and a seed."""

    MENU = "enlarge"
    ALIASES = "upscale model, srflow, flow, ultimate sd upscale, esrgan, convert model"
    OUTPUTS = (io.UpscaleModel.Output("upscale_model"),)

    def run(
        self,
        model: AnyUpscaleModel,
        temperature: widgets.ModelTemperature,
        seed: widgets.Seed,
        calm_edges: widgets.CalmEdges,
    ) -> Any:
        text: list[str] = []
        if isinstance(model, ModelByPicture):
            model, text = model.load(FOR_DAMAGED), [PIECES]
        upscaler = Upscaler(
            model.flow, temperature=temperature, calm_edges=calm_edges, seed=seed, cancelled=stop_if_cancelled
        )
        if upscaler.temperature:
            self.notes(SEAMS)
        upscale_model: Any = descriptor(upscaler)
        patcher = model.patcher

        def to(device: Any = None, dtype: Any = None) -> Any:
            # Old hosts move upscale models to and fro by themselves, without telling the patcher.
            if device is not None and str(device) == str(patcher.load_device):
                load_to_device(patcher, 0)
            return upscale_model

        upscale_model.patcher, upscale_model.to = patcher, to  # newer hosts use the patcher
        return self.output(upscale_model, text=text)


class FlowcoreShrink(FlowNode):
    """Shrink photographs to small pictures, from which the same model restores them."""

    ALIASES = "shrink, downscale, rescale, hcflow, compress, thumbnail, flow shrink"
    OUTPUTS = (io.Image.Output("small"), io.Int.Output("width"), io.Int.Output("height"))
    HIDDEN = (io.Hidden.extra_pnginfo,)

    def run(self, image: Image, model: RescaleModel) -> Any:
        model.flow.require("rescale")
        height, width = image.shape[-2:]
        flow = model.load(memory_required(model.flow, 1, height, width))
        if any(ImageBatch(image).is_gray):
            self.notes("The photograph is gray: switch on gray in Flow Restore.")
        small = flowcore.shrink(flow, image, **self.notes.task_options())
        return self.output(small, width, height, **canvas_pictures(self, small))


class FlowcoreRestore(PickingNode):
    """Restore photographs from their small pictures: all samples of the first, then of the second."""

    ALIASES = "rescale, hcflow, unshrink, decompress, flow restore"
    OUTPUTS = (io.Image.Output("images"),)

    def run(
        self,
        small: Image,
        model: RescaleModel,
        settings: RestoreSettings,
        width: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        height: Annotated[int, widgets.integer(0, 0, 65536, optional=True, advanced=True)],
        pick: widgets.Pick,
    ) -> Any:
        model.flow.require("rescale")
        count, _, rows, columns = small.shape
        scale = model.flow.condition_scale
        values = 3 * scale**2 * rows * columns
        check_memory(count * settings.samples, values, "pictures", say("Lower samples, or pass fewer images."))
        flow = load_upscaler(model, rows, columns, settings.tile)
        size = height or rows * scale, width or columns * scale
        settings = replace(settings, size=size, **self.notes.task_options(sources=small))
        pictures = flowcore.restore(flow, small, settings=settings)
        return self.show_samples(pictures, settings.seed, settings.samples, small)


def register_srflow() -> None:
    """Register SRFlow with spandrel, the package through which the host loads upscale models."""

    def candidates() -> list[Any]:  # files that may be the one the host has read, those of its own folder first
        flows = [path for name in model_files() if (path := model_path(name))]
        return [*upscale_model_files(), *flows, *map(catalog.path, catalog.names())]

    try:
        register(candidates, stop_if_cancelled)
    except FlowError as error:  # the host has no nodes that load upscale models unless it has spandrel
        log.info("flowcore: %s", error)
    except Exception:  # the rest of the pack must load even if spandrel has changed
        log.exception("flowcore could not register SRFlow with spandrel for Load Upscale Model")
