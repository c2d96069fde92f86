"""Brighten: turn a dark photograph into the picture that the model expects, or into many exposures of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.options import DrawSettings, draws
from ..engine.ranges import Setting, count, nonnegative, share
from ..engine.runner import Runner, runs_with
from ..engine.tiles import Border, TiledDecoder, Tiling
from ..errors import Argument, say
from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..images.color import luma
from ..images.gain_grid import MAX_CELLS, bilateral_gain
from ..images.resize import pad_symmetric
from ..models.fields import Range
from .sample import MAX_DEVIATION
from .task import Task

PADDING = 16  # each side is padded to the next larger multiple, as the published program does
GAMMA = 2.2  # exponent of the curve between light and pixels
BRIGHT = 0.4  # median luma above which a photograph is not dark
STEP = 1 / 255  # an 8-bit step, added to values that are mixed so that black is not 0
HALO = 96  # pixels read around a tile; brighten-photos sees no farther
ADVICE = say(
    "Set {tile} to 128, ask for fewer samples, brighten a smaller photograph, or free memory on the device.",
    tile=Argument("tile"),
)


@dataclass(frozen=True, kw_only=True)
class BrightenSettings(DrawSettings):
    """Options of ``brighten``."""

    WITHOUT = ("mark", "store")

    temperature: Annotated[
        Temperature | None,
        nonnegative(
            label="tau",
            help="Standard deviation of the noise around the mean of the prior: 0 is the expected picture, the "
            "published one, the same for every seed. A number, or a map as in ``upscale``. None for the "
            "model's default.",
        ),
    ] = None
    samples: Annotated[int, draws("Exposures per image, at least 1.")] = 1
    tile: Annotated[
        int,
        count(
            0,
            note="0 chooses by free memory.",
            unit="pixels",
            help="Side of the tiles in pixels, at least 128; 0 for the whole image if memory allows, else the largest "
            "tile that fits. The gain of the results is that of the whole image.",
        ),
    ] = 0
    halo: Annotated[
        int,
        count(
            0,
            node=False,
            command=False,
            help="Pixels read around every tile. With the default, tiles of ``brighten-photos`` are the whole image "
            "within 0.01/255; larger models see farther, and differ by what lies beyond.",
        ),
    ] = HALO
    exposure: Annotated[
        float,
        Setting(
            float,
            Range(-4, 4),
            "It is in stops.",
            label="exposure",
            help="Stops, -4 to 4, by which the results are lighter than the model draws them: 1 doubles their light.",
        ),
    ] = 0.0
    strength: Annotated[
        float,
        share(
            "0 is the photograph as it is, 1 as drawn.",
            label="strength",
            help="How far the photographs are brightened, in [0, 1]: 0 leaves them as they are, 1 is as drawn; values "
            "between are proportional in stops.",
        ),
    ] = 1.0
    gain_cells: Annotated[
        int | None,
        count(
            0,
            MAX_CELLS,
            node=False,
            command=False,
            help="Cells along the longer side of the grid that the gain of the results follows, at most 64. With it, "
            "neighboring pixels of equal luma stay equal (``images/gain_grid.py``); denoising and color stay those of "
            "the model. 0 for what the model draws, as published; None for the model's default.",
        ),
    ] = None


@runs_with(BrightenSettings)
def brighten(flow: FlowModel, image: Tensor, settings: BrightenSettings) -> Tensor:
    """Brighten dark photographs; above temperature 0, every sample is another exposure of the same scene.

    The model sees the histogram of the whole photograph, also in tiles. Noise is drawn for the whole photograph and
    cropped, so a seed gives the same picture whatever the batch position and the device.

    >>> flow = flowcore.load("llflow.safetensors")
    >>> flowcore.brighten(flow, 0.1 * torch.rand(1, 3, 40, 56)).shape
    torch.Size([1, 3, 40, 56])

    Args:
        flow: A low-light model, such as an LLFlow.
        image: As in ``upscale``, ``(B, C, H, W)``. The model was trained on 8-bit photographs.
        settings: The options below, by name.

    Returns:
        ``(B * samples, C, H, W)`` float32 in [0, 1] on the device of ``image``: all samples of image 0, then of
        image 1. The published program truncates the values to 8 bits; here they are not rounded.

    Raises:
        ImageError: As in ``upscale``.
        ShapeError: If a map of temperatures has another shape.
        FlowError: If the model does not brighten, a number is out of range, or as in ``upscale``.

    Source: Wang et al., "Low-Light Image Enhancement with Normalizing Flow" (AAAI 2022); noise and tiling are ours.
    """
    flow.require("brighten")
    settings = settings.resolved(flow)
    exposure, strength, cells = settings.exposure, settings.strength, settings.gain_cells
    run = Runner(flow, settings, ADVICE, image)
    decoder = TiledDecoder(TILING, run, flow, settings)

    def task() -> Tensor:
        images = ImageBatch(image, run.notify)
        rgb = images.extended_rgb
        _notify_of_light(rgb, run.notify)
        pictures = decoder(rgb, [settings], images.is_gray)
        if cells:
            for number, picture in enumerate(pictures.split(1)):
                picture.copy_(bilateral_gain(rgb[number // settings.samples, None].to(picture), picture, cells))
                run.check_cancelled()
        if exposure:
            pictures = (pictures * 2 ** (exposure / GAMMA)).clamp(0, 1)
        if strength < 1:
            pictures = _mix(rgb.to(pictures).repeat_interleave(settings.samples, 0), pictures, strength)
        return images.to_input_layout(pictures)

    return run.retry_on_oom(task, decoder.halve)


def _notify_of_light(photographs: Tensor, notify: Callable[[str], None]) -> None:
    """Tell the caller if one of the photographs is not dark."""
    for number, median in enumerate(luma(photographs).flatten(1).median(1).values.tolist()):
        if median > BRIGHT:
            which = say("Picture {number}", number=number + 1) if len(photographs) > 1 else say("This picture")
            percent = f"{100 * median:.0f}"
            notify(say("{which} is not dark: half of it is above {percent} % of white.", which=which, percent=percent))


def _mix(photographs: Tensor, pictures: Tensor, strength: float) -> Tensor:
    """Mix in stops: ``photographs^(1 - strength) pictures^strength``, of values to which ``STEP`` is added."""
    mixed = (photographs + STEP) * ((pictures + STEP) / (photographs + STEP)) ** strength - STEP
    return mixed.clamp(0, 1) if strength else photographs


def border(height: int, width: int, _multiple: int = PADDING) -> Border:
    """Compute the padding to the next larger multiple of 16, whatever the model's, as the published program does."""
    columns, rows = (PADDING - side % PADDING for side in (width, height))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


TILING = Tiling(
    smallest=128,
    unit=say("pixels"),
    border=border,
    pad=pad_symmetric,
    pad_map=pad_symmetric,
    max_deviation=MAX_DEVIATION,
    filled=say("left as dark as it was"),
    shares=False,
)


TASK = Task(
    name="brighten",
    settings=BrightenSettings,
    run=brighten,
    needs="brighten",
    node="FlowcoreBrighten",
    model="brighten-photos",
    label="light",
    traced=True,
)
