"""Upscale: one LR image, many sharp HR images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from ..engine.defaults import GUIDED_IN_FACES
from ..engine.guide import Guide, prepare_guide
from ..engine.image_batch import ImageBatch
from ..engine.looks import Name as LookName
from ..engine.options import (
    GUIDE_STRENGTH,
    TEMPERATURE,
    DrawSettings,
    Strength,
    python,
)
from ..engine.ranges import Setting, count, nonnegative, share
from ..engine.runner import Runner, runs_with
from ..engine.tiles import TiledDecoder, Tiling
from ..errors import Argument, FlowError, say
from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..images.edges import sharpen_edges
from ..images.resize import resize
from . import consistency
from .calm_faces import face_map, limit_within, lower_within
from .model_choice import notify_of_damage
from .task import Size, Task

MAX_DEVIATION = 2.0  # largest |value - 0.5| that is no overflow; temperature 1 stays within 1.6: docs/decisions/0013
MAX_SIDE = 2**16  # pixels of a side of the result
ADVICE = say(
    "Set {tile} to 32, ask for fewer samples, enlarge a smaller image, or free memory on the device.",
    tile=Argument("tile"),
)
ENLARGED = say("enlarged by a bicubic resize")  # where the model overflows
FACTOR = nonnegative(
    "0 leaves it to the model.",
    label="x",
    most=16,
    step=0.05,
    help="Total enlargement: one bicubic resize, up or down, follows the model's scale. 0 for that scale.",
)
LONGEST_SIDE = count(
    0,
    note="0 leaves it to the model.",
    label="side",
    unit="pixels",
    most=16384,
    advanced=True,
    help="Longest side of the result in pixels, reached the same way; 0 for no limit. Overrides ``factor``.",
)
CALM_EDGES = share(
    "0 is off, 1 leaves no temperature at strong edges.",
    label="calm",
    advanced=True,
    help="How much lower any ``temperature`` is at edges, in [0, 1], where samples break lines into specks. 0 for off; "
    "None for the model's default, whatever the temperature.",
)


@dataclass(frozen=True, kw_only=True)
class UpscaleSettings(DrawSettings):
    """Options of ``upscale``."""

    temperature: Annotated[Temperature | None, TEMPERATURE._replace(advanced=True)] = None
    boldness: Annotated[
        float | None,
        share(
            "0 is faithful, 0.5 the model's default, 1 bold.",
            help="How much the model invents, from faithful to bold: the temperature is 0 at 0, the model's at 0.5, "
            "and its boldest at 1. ``temperature`` overrides it.",
        ),
    ] = None
    calm_edges: Annotated[float | None, CALM_EDGES] = None
    calm_faces: Annotated[
        float | None,
        share(
            "0 is off, 1 leaves no temperature within faces.",
            label="faces",
            advanced=True,
            help="How much lower the temperature is within faces of 24 to 120 pixels, in [0, 1], where samples garble "
            "lips and lashes; the model's own guide is kept to at most 0.3 there. 0 for off; None for off if "
            "``temperature`` is given, else for what lowers it to 0.4.",
        ),
    ] = None
    guide: Annotated[
        Tensor | None,
        Setting(
            help="Another enlargement of the same images, whose latents are blended in. See ``guide.Guide``. ``(B "
            "or 1, C, s * h, s * w)`` in [0, 1]; alpha is ignored, other sizes are resized. It is first "
            "changed to match ``lr`` when shrunk, as far as ``guide_match`` in the model file says (1, the "
            "default: fully)."
        ),
    ] = None
    guide_strength: Annotated[Strength | None, GUIDE_STRENGTH] = None
    guide_bounded: Annotated[
        bool,
        python(
            "Whether the guide's latents are scaled down where they deviate more than those that are drawn. Needed "
            "when results become guides again and again, because their detail would otherwise build up."
        ),
    ] = False
    advise: Annotated[bool, python("Whether to say which model suits the images better, if they are damaged.")] = True
    factor: Annotated[float, FACTOR] = 0.0
    longest_side: Annotated[int, LONGEST_SIDE] = 0
    match_source: Annotated[
        bool,
        Setting(
            label="matched",
            advanced=True,
            help="Whether to change the pictures so that they shrink to the LR image again. See the task of that name.",
        ),
    ] = False
    look: Annotated[
        LookName,
        Setting(
            node=False,
            help="How the pictures look: the likeliest, the model's default, with sharp lines, or with much texture. "
            "A row of ``flowcore.looks``, which holds where ``temperature`` and ``sharpness`` are not set.",
        ),
    ] = "natural"
    sharpness: Annotated[
        float | None,
        nonnegative(
            "0 is off, 1.5 as crisp as lines can be.",
            label="sharp",
            node=False,
            help="How much edges are sharpened after the model has drawn, 0 to about 2. None for that of the ``look``.",
        ),
    ] = None


@runs_with(UpscaleSettings)
def upscale(flow: FlowModel, lr: Tensor, settings: UpscaleSettings) -> Tensor:
    """Enlarge images; every sample is another plausible enlargement of the same LR image.

    The whole image is processed in strips of rows, which is exact; tiles are used only if memory does not suffice, or
    ``tile`` asks for them. Latents are drawn for the whole image: a seed gives the same picture whatever the tile size,
    batch position and device. Where the model overflows, the temperature is lowered, and ``notify`` is called.

    Args:
        flow: An upscaling model. Samples share most of the work in an SRFlow, a fifth of it in an HCFlow at 4x.
        lr: ``(B, C, h, w)`` in [0, 1], any size from 1x1, float of any precision, uint8 or uint16; values outside are
            clamped. C is 3; or 1 (gray); or 4, whose alpha is enlarged by a bicubic resize. Gray images, also in three
            equal channels, give gray results: the luma of what the model draws.
        settings: The options below, by name.

    Returns:
        ``(B * samples, C, s * h, s * w)`` float32 in [0, 1] on the device of ``lr``: all samples of image 0, then of
        image 1. With ``factor`` or ``longest_side``, the sides are those of ``target_size``.

    Raises:
        ImageError: If images or guides are invalid: not tensors, without pixels, with a wrong number of channels, or
            with values that are not numbers; or there is neither one guide nor one for each image.
        ShapeError: If there are not as many temperatures as levels, or a map has another shape.
        FlowError: If the model does not upscale, another argument is out of its range, or memory does not suffice for
            the smallest tile.

    Source: Lugmayr et al., "SRFlow", sections 3 and 4; the tiling is ours, and so is the guide.
    """
    flow.require("upscale")
    settings = settings.resolved(flow)
    run = Runner(flow, settings, ADVICE, lr)
    decoder = TiledDecoder(TILING, run, flow, settings)

    def task() -> Tensor:
        images = ImageBatch(lr, run.notify)
        rgb = images.extended_rgb
        height, width = rgb.shape[-2:]
        size = target_size(flow.condition_scale, height, width, settings.factor, settings.longest_side)
        shown = {"size": f"{size[1]}x{size[0]}", "match_source": Argument("match_source")}
        if min(size[0] - height * flow.condition_scale, size[1] - width * flow.condition_scale) > 0:
            run.notify(
                "The model enlarges {scale} times; the rest, to {size}, is an ordinary resize (bicubic).",
                scale=flow.condition_scale,
                **shown,
            )
        if settings.advise:
            notify_of_damage(flow, rgb, run.notify)
        calm = with_calm_faces(run, rgb, [settings])
        pictures = decoder(rgb, calm, images.is_gray, guides_of(run, flow, rgb, calm))
        for picture in pictures.split(1):
            run.check_cancelled()
            picture[:] = sharpen_edges(picture, settings.sharpness or 0.0)
        if size != tuple(pictures.shape[-2:]):
            pictures = _resize_each(run, pictures, size)
        if settings.match_source and (size[0] < height or size[1] < width):
            run.notify("{match_source} is ignored: at {size} the result is smaller than the image.", **shown)
        elif settings.match_source:
            pictures = consistency.match_source(pictures, rgb, cancelled=settings.cancelled, notify=run.notify)
        return images.to_input_layout(pictures)

    return run.retry_on_oom(task, decoder.halve)


def guides_of(run: Runner, flow: FlowModel, rgb: Tensor, settings: Sequence[UpscaleSettings]) -> Guide | None:
    """Prepare the guide of images ``(B, 3, h, w)`` for several settings; see ``prepare_guide``."""
    strengths = [0.0 if each.guide_strength is None else each.guide_strength for each in settings]
    return prepare_guide(run, flow, rgb, strengths, settings[0].guide, bounded=settings[0].guide_bounded)


def with_calm_faces(run: Runner, rgb: Tensor, settings: Sequence[UpscaleSettings]) -> list[UpscaleSettings]:
    """Lower temperatures and the guide's share of resolved settings within the faces of images ``(B, 3, h, w)``."""
    faces = face_map(run, rgb) if any(each.calm_faces for each in settings) else None
    return [*settings] if faces is None else [_calmed(each, faces) for each in settings]


def _calmed(settings: UpscaleSettings, faces: Tensor) -> UpscaleSettings:
    if not settings.calm_faces:
        return settings
    strength = settings.guide_strength
    if settings.guide is None and strength is not None:
        strength = limit_within(strength, faces, GUIDED_IN_FACES)
    temperature = lower_within(settings.tau, faces, settings.calm_faces)
    return replace(settings, temperature=temperature, guide_strength=strength)


def target_size(scale: int, height: int, width: int, factor: float = 0.0, longest_side: int = 0) -> tuple[int, int]:
    """Compute height and width of the pictures that ``upscale`` returns for an LR image with a model of a scale."""
    FACTOR.check("factor", factor)
    LONGEST_SIDE.check("longest_side", longest_side)
    ratio = factor or scale
    if longest_side:
        ratio = longest_side / max(height, width, 1)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    if max(size) > MAX_SIDE:
        raise FlowError(
            "A side of the result may have at most {most} pixels; got {side}. Ask for less.",
            most=MAX_SIDE,
            side=max(size),
        )
    return size


def _resize_each(run: Runner, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    result = pictures.new_empty((*pictures.shape[:2], *size))
    for resized, picture in zip(result, pictures, strict=True):
        run.check_cancelled()
        resized[:] = resize(picture[None], *size)[0].clamp(0, 1)
    return result


TILING = Tiling(smallest=32, unit=say("LR pixels"), max_deviation=MAX_DEVIATION, filled=ENLARGED, shares=True)


def size_of_result(scale: int, size: Size, settings: Mapping[str, Any], _: bytes | Path) -> Size:
    """Compute the size of an enlargement with the settings of a task; see ``target_size``."""
    return target_size(scale, *size, settings.get("factor", 0.0), settings.get("longest_side", 0))


TASK = Task(
    name="upscale",
    settings=UpscaleSettings,
    run=upscale,
    needs="upscale",
    node="FlowcoreUpscale",
    traced=True,
    enlarges=True,
    size=size_of_result,
)
