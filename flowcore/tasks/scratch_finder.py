"""Finding scratches and dust in scans, with a small network."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from ..checkpoints import catalog
from ..checkpoints.model_file import read_network
from ..images.color import luma
from ..images.resize import pad_symmetric
from ..networks.unet import MULTIPLE, REACH, UNet
from ..runtime.image_batch import ImageBatch
from ..runtime.runner import Reporting, Runner, RunOptions, runs_with
from ..runtime.settings import check_setting

TILE = 768  # pixels that the network marks at once, a multiple of ``MULTIPLE``
LEAST, MOST = 0.05, 0.95  # probabilities of damage from which a pixel is marked, at sensitivities of 1 and 0


@runs_with(Reporting)
def find_scratches(image: Tensor, *, sensitivity: float = 0.5, **options: Unpack[Reporting]) -> Tensor:
    """Find scratches, hairs, dust, tears and creases in scans, up to about 9 pixels wide.

    The network is small, runs on the CPU, and gives the same marks on every machine; no model has to be loaded. It
    learned from damage that was drawn onto photographs. A lone wire in the sky may look like a scratch to it, so look
    at the mask.

    >>> image = 0.4 + 0.02 * torch.rand(1, 1, 96, 96)
    >>> image[..., 20:80, 40:42] = 0.9
    >>> mask = flowcore.find_scratches(image)
    >>> bool(mask[..., 20:80, 40:42].all()), float(mask.mean()) < 0.05
    (True, True)

    Args:
        image: ``(B, C, H, W)`` as in ``upscale``; alpha is ignored.
        sensitivity: In [0, 1]: how much damage is marked. Higher finds more, true and false.

    Returns:
        ``(B, 1, H, W)`` float32, 1 where the picture is damaged, with a pixel around it, else 0; on the device of
        ``image``.

    Raises:
        ImageError: If the images are invalid.
        FlowError: If ``sensitivity`` is out of its range.

    Source: Ronneberger et al., "U-Net" (2015), trained by ``benchmarks/scratches.py``.
    """
    check_setting("sensitivity", sensitivity)
    return mark_damage(find_damage(image, **options), sensitivity)


def mark_damage(damage: Tensor, sensitivity: float) -> Tensor:
    """Mark where the probability of damage ``(B, 1, H, W)`` is high enough for a sensitivity, with a pixel around."""
    return F.max_pool2d((damage >= LEAST + (MOST - LEAST) * (1 - sensitivity)).float(), 3, 1, 1)


def find_damage(image: Tensor, **options: Unpack[Reporting]) -> Tensor:
    """Compute the probability of damage of every pixel: ``(B, 1, H, W)`` in [0, 1]; see ``find_scratches``."""
    run = Runner(None, RunOptions(**options), "Pass fewer or smaller images.", image)

    def task() -> Tensor:
        y = luma(ImageBatch(image, run.notify).rgb)
        run.expect(len(y))
        damage: list[Tensor] = []
        for one in y.split(1):
            damage.append(_damage(one.cpu().float(), run))
            run.advance()
        return torch.cat(damage).to(image.device)

    return run.retry_on_oom(task)


def _damage(y: Tensor, run: Runner) -> Tensor:
    """Compute the probability of damage of every pixel of luma ``(1, 1, H, W)``, in tiles that overlap."""
    height, width = y.shape[-2:]
    after = (REACH + -width % MULTIPLE, REACH + -height % MULTIPLE)
    padded = pad_symmetric(y, (REACH, after[0], REACH, after[1]))
    result = torch.empty_like(padded[..., 2 * REACH :, 2 * REACH :])
    for top in range(0, result.shape[-2], TILE):
        for left in range(0, result.shape[-1], TILE):
            run.check_cancelled()
            part = padded[..., top : top + TILE + 2 * REACH, left : left + TILE + 2 * REACH]
            marked = network()(part)[..., REACH:-REACH, REACH:-REACH].sigmoid()
            result[..., top : top + TILE, left : left + TILE] = marked
    return result[..., :height, :width]


@cache
def network() -> UNet:
    """Load the shipped network once."""
    finder = UNet()
    read_network(catalog.FOLDER / "scratch-finder.safetensors", finder)
    return finder
