"""Repair: areas under scratches, dust and creases are redrawn; the rest of a picture stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.image_batch import ImageBatch, append_alpha, fit_mask
from ..engine.options import SEED, TEMPERATURE, BatchOptions, draws
from ..engine.progress import part_of
from ..engine.ranges import share
from ..engine.runner import Runner, runs_with
from ..errors import ImageError, say
from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..images.color import luma
from ..images.fill import extend_colors, fill
from ..images.resize import downsample, pad_symmetric
from .finders.scratches import find_scratches
from .task import Task
from .upscale import CALM_EDGES, upscale

AROUND = 32  # pixels around what is repaired that the model sees
WIDE = 24  # pixels; nothing convincing can be drawn across wider places
FILLING = 0.2  # share of the time that filling takes
ADVICE = say("Repair a smaller picture, ask for fewer samples, or free memory on the device.")


@dataclass(frozen=True, kw_only=True)
class RepairSettings(BatchOptions):
    """Options of ``repair``."""

    temperature: Annotated[Temperature | None, TEMPERATURE] = None
    calm_edges: Annotated[float | None, CALM_EDGES] = None
    guide_strength: Annotated[
        float,
        share(
            "0 ignores the guide, 1 keeps all of it.",
            help="How much of the filled picture's detail is kept, a in [0, 1]. 0 draws all of it.",
        ),
    ] = 0.5
    seed: Annotated[int, SEED] = 0
    samples: Annotated[int, draws("Repairs per image, at least 1.")] = 1


@runs_with(RepairSettings)
def repair(flow: FlowModel, image: Tensor, mask: Tensor, settings: RepairSettings) -> Tensor:
    """Redraw the areas under a mask, such as scratches and dust; every sample is another plausible repair.

        g   = the picture, filled from patches nearby that fit what surrounds the mask
        z_g = f(g | downsample(g))                    its latents, given its small version
        z   = a z_g + sqrt(1 - a^2) tau eps       under the mask; z_g elsewhere
        y   = f^-1(z | downsample(g))                 minus its difference from g around the mask, continued smoothly

    with the flow f, the guide strength a, the temperature tau, and Gaussian noise eps.

    >>> flow, image, mask = flowcore.load("srflow-x4"), torch.rand(1, 3, 40, 48), torch.zeros(1, 1, 40, 48)
    >>> mask[..., 20:23, 10:40] = 1
    >>> pictures = flowcore.repair(flow, image, mask, samples=2)
    >>> pictures.shape, torch.equal(pictures[:1, :, :20], image[:, :, :20])
    (torch.Size([2, 3, 40, 48]), True)

    Args:
        flow: An upscaling model.
        image: ``(B, C, H, W)`` as in ``upscale``. What is gray stays gray; alpha is kept.
        mask: ``(1 or B, 1, H, W)``: True, or at least 0.5, where the picture is repaired, as from ``find_scratches``.
            It should cover the damage with its soft edges. Lines and spots of up to 12 pixels are repaired well;
            places wider than 24 pixels, or 12 at an edge, stay as they are, and ``notify`` is called.
        settings: The options below, by name.

    Returns:
        ``(B * samples, C, H, W)`` float32 in [0, 1] on the device of ``image``: all samples of image 0, then of image
        1. Outside of the mask they are the images, bit for bit.

    Raises:
        ImageError: If the images are invalid, or the mask has not their proportions, within 2 %.
        FlowError: If the model does not upscale, another argument is out of its range, or memory does not suffice.

    Source: Lugmayr et al., "SRFlow" (2020), section 4.3, for latents of a picture under its own small version; see
    ``images.fill`` for the filling.
    """
    flow.require("upscale")
    guide_strength, count = settings.guide_strength, settings.samples
    run = Runner(None, settings, ADVICE, image)

    def task() -> Tensor:
        images = ImageBatch(image, run.notify)
        rgb = images.rgb
        holes = _holes(mask, rgb)
        narrow = holes & (opening(holes.float(), WIDE + 1) == 0)
        if not torch.equal(holes, narrow):
            run.notify(
                "Places of the mask wider than {pixels} pixels, or {half} at an edge of the picture, stay as they are: "
                "nothing convincing can be drawn there. Mask less, or repair a smaller version of the picture.",
                pixels=WIDE,
                half=WIDE // 2,
            )
        result, scale = rgb.repeat_interleave(count, 0), flow.condition_scale
        for item, (picture, hole, target) in enumerate(zip(rgb.split(1), holes.split(1), narrow.split(1), strict=True)):
            if not bool(target.any()):
                if report := part_of(settings.progress, item / len(rgb), 1 / len(rgb)):
                    report(1, 1)
                continue
            rows, columns = _box(target, scale)
            picture, hole, target = (t[..., rows, columns].cpu() for t in (picture, hole, target))
            height, width = target.shape[-2:]
            border = (0, -width % scale, 0, -height % scale)
            picture, hole, padded_target = (pad_symmetric(t, border) for t in (picture, hole, target))
            filled = fill(picture, hole, run.check_cancelled)
            part = settings.part((item + FILLING) / len(rgb), (1 - FILLING) / len(rgb))
            part["notify"] = _ignore  # what is said of the small picture does not concern the caller
            drawn = upscale(
                flow,
                downsample(filled, scale).clamp(0, 1),
                temperature=settings.temperature,
                calm_edges=settings.calm_edges,
                calm_faces=0.0,
                seed=settings.seed,
                samples=count,
                guide=filled,
                guide_strength=torch.where(padded_target, guide_strength, 1.0),
                **part,
            )
            # Latents under the mask also change its surroundings. These stay as they are, so subtract their change.
            offset = 2 * extend_colors((1 + drawn - filled) / 2, (~padded_target).float()) - 1
            repaired = (drawn - offset).clamp(0, 1)[..., :height, :width].to(result)
            if images.is_gray[item]:
                repaired[:, 1:] = repaired[:, :1]
            inside = result[item * count : (item + 1) * count, :, rows, columns]
            inside.copy_(torch.where(target.to(result.device), repaired, inside))
        return append_alpha(result[:, :1] if images.channels == 1 else result, images.alpha)

    return run.retry_on_oom(task)


def _ignore(_: str) -> None:
    pass


def opening(x: Tensor, window: int) -> Tensor:
    """Remove bright places that hold no square of an odd ``window``: a morphological opening."""
    return _dilate(-_dilate(-x, window), window)


def _dilate(x: Tensor, window: int) -> Tensor:
    rows = F.max_pool2d(x, (window, 1), 1, (window // 2, 0))
    return F.max_pool2d(rows, (1, window), 1, (0, window // 2))


def _holes(mask: Tensor, images: Tensor) -> Tensor:
    """Check a mask of images, and return where it is set, ``(B, 1, H, W)``."""
    count, _, height, width = images.shape
    if mask.ndim != 4 or mask.shape[0] not in (1, count) or mask.shape[1] != 1 or 0 in mask.shape:
        raise ImageError(
            f"Expected a mask of shape (1 or {count}, 1, {height}, {width}), as the images; got {tuple(mask.shape)}. "
            "Give one for all, or one per image."
        )
    return (fit_mask(mask, height, width) >= 0.5).to(images.device).expand(count, -1, -1, -1)


def _box(target: Tensor, multiple: int) -> tuple[slice, slice]:
    """Find the rows and columns around what is repaired, which start at multiples of a number."""
    places = target[0, 0].nonzero()
    first, last = (places.amin(0) - AROUND).clamp(min=0).tolist(), (places.amax(0) + AROUND).tolist()
    rows, columns = (slice(a // multiple * multiple, b + 1) for a, b in zip(first, last, strict=True))
    return rows, columns


def _of_file(flow: FlowModel, image: Tensor, _: bytes, values: dict[str, Any]) -> Tensor:
    """Repair what a picture of a mask covers, or the scratches that are found."""
    if "mask" in values:
        damage = luma(ImageBatch(values["mask"]).rgb)
    else:
        damage = find_scratches(image, sensitivity=values.get("sensitivity", 0.5))
    return repair(flow, image, damage, **TASK.chosen(values))


TASK = Task(
    name="repair",
    settings=RepairSettings,
    run=repair,
    needs="upscale",
    node="FlowcoreRepair",
    label="repaired",
    of_file=_of_file,
)
