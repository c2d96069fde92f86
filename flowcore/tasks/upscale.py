"""Upscale: one LR image, many sharp HR images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from ..errors import FlowError
from ..images.resize import resize
from ..inference.condition_cache import ConditionStore
from ..model import FlowModel
from ..runtime.guide import prepare_guide
from ..runtime.image_batch import ImageBatch
from ..runtime.runner import Runner, Running, runs_with
from ..runtime.settings import HALO, Strength, UpscaleSettings, check_setting
from ..runtime.tiles import TiledDecoder, Tiling
from . import consistency
from .calm_faces import with_calm_faces
from .model_choice import notify_of_damage

MAX_DEVIATION = 2.0  # largest |value - 0.5| that is no overflow; temperature 1 stays within 1.6: docs/decisions/0013
MAX_SIDE = 2**16  # pixels of a side of the result
ADVICE = "Set tile to 32, ask for fewer samples, enlarge a smaller image, or free memory on the device."


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
        if min(size[0] - height * flow.condition_scale, size[1] - width * flow.condition_scale) > 0:
            run.notify(
                f"The model enlarges {flow.condition_scale} times; the rest, to {size[1]}x{size[0]}, is an ordinary "
                "resize (bicubic)."
            )
        if not settings.guide_bounded:  # bounded for frames of a clip: ``upscale_video`` examines the first
            notify_of_damage(flow, rgb, run.notify)
        guides = prepare_guide(run, flow, rgb, [settings])
        pictures = decoder(rgb, with_calm_faces(run, rgb, [settings]), images.is_gray, guides)
        if size != tuple(pictures.shape[-2:]):
            pictures = _resize_each(run, pictures, size)
        if settings.match_source and (size[0] < height or size[1] < width):
            run.notify(f"match_source is ignored: at {size[1]}x{size[0]} the result is smaller than the image.")
        elif settings.match_source:
            pictures = consistency.match_source(pictures, rgb, cancelled=settings.cancelled, notify=run.notify)
        return images.to_input_layout(pictures)

    return run.retry_on_oom(task, decoder.halve)


@runs_with(Running)
def temperature_grid(  # noqa: D417
    flow: FlowModel,
    lr: Tensor,
    temperatures: Sequence[float | None],
    *,
    calm_edges: float | None = None,
    seed: int = 0,
    seeds: int = 1,
    tile: int = 0,
    halo: int = HALO,
    store: ConditionStore | None = None,
    guide: Tensor | None = None,
    guide_strength: Strength | None = None,
    **options: Unpack[Running],
) -> Tensor:
    """Enlarge images with several temperatures and several seeds; every image and guide is encoded once.

    Args:
        flow: As in ``upscale``; so are the arguments that are not named here.
        lr: ``(B, C, h, w)``; an alpha channel is dropped.
        temperatures: Each gives one picture per seed; None is the model's default.
        seed: The first.
        seeds: How many, counted up from ``seed``.

    Returns:
        ``(B * temperatures * seeds, 1 or 3, s * h, s * w)``, on the device of ``lr``: of image 0 all seeds of the first
        temperature, then of the second. Each equals the result of ``upscale``.

    Raises:
        FlowError: If there are no temperatures, or as in ``upscale``.
        ImageError: As in ``upscale``.
    """
    flow.require("upscale")
    if not temperatures or seeds < 1:
        raise FlowError(f"Expected at least one temperature and one seed; got {len(temperatures)} and {seeds}.")
    given: dict[str, Any] = {"calm_edges": calm_edges, "seed": seed, "samples": seeds, "tile": tile, "halo": halo}
    given |= {"store": store, "guide": guide, "guide_strength": guide_strength, **options}
    settings = [UpscaleSettings(temperature=tau, **given).resolved(flow) for tau in temperatures]
    run = Runner(flow, settings[0], ADVICE.replace("samples", "seeds"), lr)
    decoder = TiledDecoder(TILING, run, flow, settings[0])

    def task() -> Tensor:
        images = ImageBatch(lr, run.notify)
        rgb = images.extended_rgb
        notify_of_damage(flow, rgb, run.notify)
        guides = prepare_guide(run, flow, rgb, settings)
        calm = with_calm_faces(run, rgb, settings)
        return images.to_input_layout(decoder(rgb, calm, images.is_gray, guides), alpha=False)

    return run.retry_on_oom(task, decoder.halve)


def target_size(scale: int, height: int, width: int, factor: float = 0.0, longest_side: int = 0) -> tuple[int, int]:
    """Compute height and width of the pictures that ``upscale`` returns for an LR image with a model of a scale."""
    check_setting("factor", factor)
    check_setting("longest_side", longest_side)
    ratio = factor or scale
    if longest_side:
        ratio = longest_side / max(height, width, 1)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    if max(size) > MAX_SIDE:
        raise FlowError(f"A side of the result may have at most {MAX_SIDE} pixels; got {max(size)}. Ask for less.")
    return size


def _resize_each(run: Runner, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    result = pictures.new_empty((*pictures.shape[:2], *size))
    for resized, picture in zip(result, pictures, strict=True):
        run.check_cancelled()
        resized[:] = resize(picture[None], *size)[0].clamp(0, 1)
    return result


TILING = Tiling(
    smallest=32, unit="LR pixels", max_deviation=MAX_DEVIATION, filled="enlarged by a bicubic resize", shares=True
)
