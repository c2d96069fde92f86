"""Finding scratches and dust in scans, with a small network."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.image_batch import ImageBatch
from ...engine.options import ReportOptions
from ...engine.ranges import share
from ...engine.runner import Runner, runs_with
from ...errors import say
from ...images.color import luma
from ...images.resize import pad_symmetric, resize
from ...models import catalog
from ...models.model_file import read_network
from .faces import Face, faces_of
from .unet import MULTIPLE, REACH, UNet

TILE = 768  # pixels that the network marks at once, a multiple of ``UNIT``
UNIT = 2 * MULTIPLE  # pixels that the sides of tiles are divisible by, so that those of the enlarged ones fit, too
ENLARGED = 1.5  # scale of the second look, in which dust and thin lines are seen better
LEAST, MOST = 0.05, 0.95  # probabilities of damage from which a pixel is marked, at sensitivities of 1 and 0
EYE = 0.45  # radius of an eye with its lids and glasses, in distances between the eyes
SMALLEST_FACE, FACES_ACROSS = 16, 64  # smallest face whose eyes are spared: pixels, and how many fill the picture


@dataclass(frozen=True, kw_only=True)
class ScratchSettings(ReportOptions):
    """Options of ``find_scratches``."""

    sensitivity: Annotated[
        float,
        share(
            "Higher finds more.", help="Sensitivity to scratches, in [0, 1]: higher marks more damage, true and false."
        ),
    ] = 0.5


@runs_with(ScratchSettings)
def find_scratches(image: Tensor, *, settings: ScratchSettings) -> Tensor:
    """Find scratches, hairs, dust, tears and creases in scans, up to about 9 pixels wide.

    The network is small, runs on the CPU, and gives the same marks on every machine; no model has to be loaded. It
    learned from damage that was drawn onto photographs. In the eyes of faces only what comes from outside is marked, so
    that they keep their highlights. A lone wire in the sky may look like a scratch to the network, so look at the mask.

    >>> image = 0.4 + 0.02 * torch.rand(1, 1, 96, 96)
    >>> image[..., 20:80, 40:42] = 0.9
    >>> mask = flowcore.find_scratches(image)
    >>> bool(mask[..., 20:80, 40:42].all()), float(mask.mean()) < 0.05
    (True, True)

    Args:
        image: ``(B, C, H, W)`` as in ``upscale``; alpha is ignored.
        settings: The options below, by name.

    Returns:
        ``(B, 1, H, W)`` float32, 1 where the picture is damaged, with a pixel around it, else 0; on the device of
        ``image``.

    Raises:
        ImageError: If the images are invalid.
        FlowError: If ``sensitivity`` is out of its range.

    Source: Ronneberger et al., "U-Net" (2015), trained by ``benchmarks/scratches.py``.
    """
    return mark_damage(find_damage(image, settings=settings), settings.sensitivity)


def mark_damage(damage: Tensor, sensitivity: float) -> Tensor:
    """Mark where the probability of damage ``(B, 1, H, W)`` is high enough for a sensitivity, with a pixel around."""
    return F.max_pool2d((damage >= LEAST + (MOST - LEAST) * (1 - sensitivity)).float(), 3, 1, 1)


@runs_with(ReportOptions)
def find_damage(image: Tensor, *, settings: ReportOptions) -> Tensor:
    """Compute the probability of damage of every pixel: ``(B, 1, H, W)`` in [0, 1]; see ``find_scratches``."""
    run = Runner(None, settings, say("Pass fewer or smaller images."), image)

    def task() -> Tensor:
        images = ImageBatch(image, run.notify).rgb
        run.expect(len(images))
        damage: list[Tensor] = []
        for rgb in images.split(1):
            picture = rgb.cpu().float()
            smallest = max(SMALLEST_FACE, max(picture.shape) / FACES_ACROSS)
            damage.append(_spare_eyes(_damage(luma(picture), run), faces_of(picture, run, smallest, doublings=1)))
            run.advance()
        return torch.cat(damage).to(image.device)

    return run.retry_on_oom(task)


def _damage(y: Tensor, run: Runner) -> Tensor:
    """Compute the probability of damage of every pixel of luma ``(1, 1, H, W)``, in tiles that overlap."""
    height, width = y.shape[-2:]
    after = (REACH + -width % UNIT, REACH + -height % UNIT)
    padded = pad_symmetric(y, (REACH, after[0], REACH, after[1]))
    result = torch.empty_like(padded[..., 2 * REACH :, 2 * REACH :])
    for top in range(0, result.shape[-2], TILE):
        for left in range(0, result.shape[-1], TILE):
            run.check_cancelled()
            part = padded[..., top : top + TILE + 2 * REACH, left : left + TILE + 2 * REACH]
            marked = look_twice(part)[..., REACH:-REACH, REACH:-REACH].sigmoid()
            result[..., top : top + TILE, left : left + TILE] = marked
    return result[..., :height, :width]


def look_twice(part: Tensor) -> Tensor:
    """Return the mean of the network's logits for a picture and for an enlarged copy that lies on its side."""
    height, width = part.shape[-2:]
    larger = resize(part.rot90(1, (-2, -1)), round(ENLARGED * width), round(ENLARGED * height))
    return (network()(part) + resize(network()(larger), width, height).rot90(-1, (-2, -1))) / 2


def _spare_eyes(damage: Tensor, faces: list[Face]) -> Tensor:
    """Keep of the damage in eyes, ``(1, 1, H, W)``, what is connected with damage around them, such as a scratch."""
    for x, y, radius in ((x, y, EYE * math.dist(*face.eyes)) for face in faces for x, y in face.eyes):
        top, left = max(0, round(y - radius) - 1), max(0, round(x - radius) - 1)
        part = damage[0, 0, top : max(0, round(y + radius) + 1), left : max(0, round(x + radius) + 1)]
        rows, columns = (torch.arange(side) + 0.5 for side in part.shape)
        eye = ((rows + top - y)[:, None].square() + (columns + left - x).square()).sqrt() < radius
        part.copy_(reconstruct(part.masked_fill(eye, 0), part))
    return damage


def reconstruct(seeds: Tensor, limit: Tensor) -> Tensor:
    """Let seeds ``(H, W)`` spread to all 8 neighbors as far as a limit allows: a reconstruction by dilation.

    Source: Vincent, "Morphological grayscale reconstruction in image analysis" (1993), section IV: sweeps over the
    rows, here from all four sides, until nothing changes.
    """
    before = None
    while seeds.numel() and (before is None or not torch.equal(before, seeds)):
        before = seeds
        for _ in range(4):
            seeds, limit = seeds.rot90(), limit.rot90()
            for above, row, bound in zip(seeds[:-1], seeds[1:], limit[1:], strict=True):
                spread = F.max_pool1d(above[None], 3, 1, 1)[0]
                row.copy_(torch.minimum(torch.maximum(row, spread), bound))
    return seeds


@cache
def network() -> UNet:
    """Load the shipped network once."""
    finder = UNet()
    read_network(catalog.FOLDER / "scratch-finder.safetensors", finder)
    return finder
