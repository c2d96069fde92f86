"""Rescale: ``shrink`` encodes photographs and keeps only their LR images; ``restore`` draws the other latents."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.options import TEMPERATURE, DrawSettings, ReportOptions, python
from ..engine.ranges import Setting
from ..engine.runner import Runner, runs_with
from ..engine.tiles import TiledDecoder, pad_by_reflection
from ..errors import Argument, ImageError, say
from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..images import files
from ..images.color import as_stored
from ..images.resize import resize
from .task import Size, Task
from .upscale import TILING, target_size

SHRINK_ADVICE = say("Shrink a smaller image, or free memory on the device.")
SIZE = "flowcore-size"  # text chunk of a picture that was shrunk: width and height of the photograph, and if it is gray
NOT_SHRUNK = "Its file does not say that shrink made it. If so, it is enlarged, but not well: use upscale instead."
RESTORE_ADVICE = say(
    "Set {tile} to 32, ask for fewer samples, restore a smaller image, or free memory on the device.",
    tile=Argument("tile"),
)


@dataclass(frozen=True, kw_only=True)
class RestoreSettings(DrawSettings):
    """Options of ``restore``."""

    temperature: Annotated[
        Temperature | None,
        TEMPERATURE._replace(
            help="Standard deviation of the latents: 0 gives the mean of all possible photographs. None for the "
            "model's default. A number, one per level or maps, as in ``upscale``."
        ),
    ] = None
    size: Annotated[
        tuple[int, int] | None,
        python("Height and width of the original, whose extension is cropped away; None keeps all."),
    ] = None
    gray: Annotated[
        bool, Setting(command=False, help="Whether the original was gray, so that what comes back is gray, too.")
    ] = False


@runs_with(ReportOptions)
def shrink(flow: FlowModel, image: Tensor, settings: ReportOptions) -> Tensor:
    """Shrink photographs to small pictures that ``restore`` brings back.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> flowcore.shrink(flow, torch.rand(1, 3, 48, 64)).shape
    torch.Size([1, 3, 12, 16])

    Args:
        flow: A rescaling model.
        image: As in ``upscale``, ``(B, C, H, W)``. Sides that the model's scale does not divide are extended to the
            right and below. Small pictures of gray images have color, too, which carries detail: ``restore`` them with
            ``gray=True``.
        settings: The options below, by name.

    Returns:
        ``(B, 3 or 4, ceil(H / s), ceil(W / s))`` float32 in [0, 1], rounded to 8 bits, on the device of ``image``.
        Store it without loss: JPEG destroys what it holds.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If the model does not rescale, or memory does not suffice.

    Source: Xiao et al., "Invertible Image Rescaling" (ECCV 2020); Liang et al., "Hierarchical Conditional Flow" (2021),
    section 3.
    """
    flow.require("rescale")
    run = Runner(flow, settings, SHRINK_ADVICE, image)

    def task() -> Tensor:
        images = ImageBatch(image, run.notify)
        scale, (height, width) = flow.condition_scale, images.rgb.shape[-2:]
        right, below = -width % scale, -height % scale
        border = (0, right, 0, below)
        if right or below:
            run.notify(
                "The image was extended from {size} to {extended}: its sides must be divisible by {scale}. Crop "
                "what comes back to {size}.",
                size=f"{width}x{height}",
                extended=f"{width + right}x{height + below}",
                scale=scale,
            )
        run.expect(len(images.rgb))
        small: list[Tensor] = []
        for item in images.extended_rgb.split(1):
            run.check_cancelled()
            padded = pad_by_reflection(item, border).to(run.device, run.dtype)
            small.append(as_stored(run.compiled.reduce(padded).to(image.device, torch.float32)))
            run.advance(preview=small[-1][0])
        result = torch.cat(small)
        if images.alpha is None:
            return result
        alpha = resize(pad_by_reflection(images.alpha, border), *result.shape[-2:])
        return torch.cat([result, as_stored(alpha)], dim=1)

    return run.retry_on_oom(task)


@runs_with(RestoreSettings)
def restore(flow: FlowModel, small: Tensor, settings: RestoreSettings) -> Tensor:
    """Restore photographs from the small pictures that ``shrink`` made of them.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> small = flowcore.shrink(flow, torch.rand(1, 3, 45, 64))
    >>> flowcore.restore(flow, small, size=(45, 64)).shape
    torch.Size([1, 3, 45, 64])

    Args:
        flow: The rescaling model that shrank them; another gives a wrong picture.
        small: ``(B, C, h, w)`` in [0, 1], as ``shrink`` returns it or uint8. A picture that was shrunk otherwise is
            enlarged, but not well. Pictures that are gray stay gray.
        settings: The options below, by name.

    Returns:
        ``(B * samples, C, s * h, s * w)``, or of ``size``, float32 in [0, 1] on the device of ``small``: all
        samples of picture 0, then of picture 1.

    Raises:
        ImageError: As in ``upscale``; or if ``size`` is not what shrinks to the picture's size.
        FlowError: If the model does not rescale, or as in ``upscale``.
    """
    flow.require("rescale")
    settings, size = settings.resolved(flow), settings.size
    run = Runner(flow, settings, RESTORE_ADVICE, small)
    decoder = TiledDecoder(TILING, run, flow, settings)

    def task() -> Tensor:
        images = ImageBatch(small, run.notify)
        rgb = images.rgb
        scale, sides = flow.condition_scale, tuple(rgb.shape[-2:])
        height, width = (side * scale for side in sides) if size is None else size
        if (math.ceil(height / scale), math.ceil(width / scale)) != sides:
            raise ImageError(
                f"size must be that of an image which shrinks {scale} times to {sides[0]}x{sides[1]} (height x width), "
                f"such as {sides[0] * scale}x{sides[1] * scale}; got {height}x{width}."
            )
        is_gray = [settings.gray or gray for gray in images.is_gray]
        pictures = decoder(rgb, [settings], is_gray)
        return images.to_input_layout(pictures)[..., :height, :width]

    return run.retry_on_oom(task, decoder.halve)


def original_size(picture: bytes | Path) -> Size | None:
    """Height and width of the photograph that a picture was shrunk from, if its file states them."""
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})( gray)?", files.text(picture, SIZE))
    return None if size is None else (int(size[2]), int(size[1]))


def size_text(photograph: Tensor) -> dict[str, str]:
    """Write what ``restore`` needs to know of a photograph ``(1, C, H, W)``."""
    return {SIZE: f"{photograph.shape[-1]}x{photograph.shape[-2]}{' gray' * all(ImageBatch(photograph).is_gray)}"}


def _of_file(flow: FlowModel, image: Tensor, content: bytes, values: dict[str, Any]) -> Tensor:
    """Restore a picture in the size that its file states."""
    if (size := original_size(content)) is None:
        values["notify"](NOT_SHRUNK)
    return restore(flow, image, size=size, gray=files.text(content, SIZE).endswith(" gray"), **RESTORE.chosen(values))


SHRINK = Task(
    name="shrink",
    settings=ReportOptions,
    run=shrink,
    needs="rescale",
    node="FlowcoreShrink",
    model="rescale-x4",
    label="small",
    lossless=(8,),
    draws=False,
    keeps_gray=False,
    text=size_text,
    size=lambda scale, size, _, __: (-(-size[0] // scale), -(-size[1] // scale)),
)
RESTORE = Task(
    name="restore",
    settings=RestoreSettings,
    run=restore,
    needs="rescale",
    node="FlowcoreRestore",
    model="rescale-x4",
    label="restored",
    undoes="small",
    lossless=(8, 16),
    traced=True,
    enlarges=True,
    size=lambda scale, size, settings, picture: original_size(picture) or target_size(scale, *size),
    of_file=_of_file,
)
