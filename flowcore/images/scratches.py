"""Find scratches and dust in scans: thin lines and small spots, brighter or darker than all that is wider nearby."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import pad_symmetric

WIDEST = 9  # pixels; what is wider is no scratch
LENGTH, DIRECTIONS, COMPLETE = 13, 12, 0.9  # of lines, in halved pixels; the share of a line that must be there
FURTHER = 32  # halved pixels that a line goes on where something nearby is as bright
NEARBY = 21  # pixels of the window in which a scratch is brighter or darker than all that is wider
CROWD, SPOT, RING = 41, 17, 37  # pixels of windows: around a line; that hold a spot, and what is around it
CONTRAST = 0.3, 0.03  # least contrast, at sensitivity 0 and 1
CROWDED = 0.1, 0.21  # largest mean contrast around a line, of its own, likewise; railings and hair have more
BUSY = 0.01, 0.06  # the same of a spot

OF_NOISE = 2.5  # standard deviations that noise is above its opening, about


def find(luma: Tensor, sensitivity: float, noise: float, check: Callable[[], None]) -> Tensor:
    """Find scratches and dust in a picture's luma ``(1, 1, H, W)`` in [0, 1]: True where they are.

    ``noise`` is the standard deviation of noise, which is thin, too.
    """
    crowded, busy = (low + (high - low) * sensitivity for low, high in (CROWDED, BUSY))
    contrast = CONTRAST[0] * (CONTRAST[1] / CONTRAST[0]) ** sensitivity
    height, width = luma.shape[-2:]
    luma = pad_symmetric(luma, WIDEST)  # or a strip at the picture's edge would be thin
    marks = torch.zeros_like(luma, dtype=torch.bool)
    for y in (luma, 1 - luma):  # bright ones, then dark ones
        wide = _largest(_smallest(y, WIDEST), WIDEST)  # without what is thin: an opening
        candidates = y - wide > contrast
        thin = (y - wide - min(OF_NOISE * noise, contrast / 3)).relu()
        extreme = candidates & (y > _largest(wide, NEARBY) + contrast / 3)
        around = (RING**2 * _mean(thin, RING) - SPOT**2 * _mean(thin, SPOT)) / (RING**2 - SPOT**2)
        spot = _largest(thin, SPOT)
        marks |= extreme & (busy * spot > around) & (thin > spot / 2)
        straight = candidates & (crowded * thin > _mean(thin, CROWD))
        if bool((straight & extreme).any()):
            found, goes_on = _lines(straight & extreme, check), _lines(straight, check)
            for _ in range(FURTHER):
                found = _largest(found, 3) * goes_on
            marks |= straight & (F.interpolate(found, scale_factor=2)[..., : y.shape[-2], : y.shape[-1]] > 0)
    inner = marks[..., WIDEST : WIDEST + height, WIDEST : WIDEST + width]
    return _largest(inner.float(), 3) > 0  # with their soft edges


def _lines(candidates: Tensor, check: Callable[[], None]) -> Tensor:
    """Find where long straight lines of candidates ``(1, 1, H, W)`` lie, in any direction: 1 in halved pixels."""
    halved = F.max_pool2d(candidates.float(), 2, ceil_mode=True)
    found = torch.zeros_like(halved)
    reach = LENGTH // 2
    for k in range(DIRECTIONS):
        check()
        kernel = torch.zeros(1, 1, LENGTH, LENGTH, device=candidates.device)
        angle = math.pi * k / DIRECTIONS
        for step in range(-reach, reach + 1):
            kernel[..., reach + round(step * math.sin(angle)), reach + round(step * math.cos(angle))] = 1 / LENGTH
        complete = (F.conv2d(halved, kernel, padding=reach) >= COMPLETE).float()
        found = found.maximum(F.conv2d(complete, kernel, padding=reach))
    return (found > 0).float()


def _largest(x: Tensor, window: int) -> Tensor:
    rows = F.max_pool2d(x, (window, 1), 1, (window // 2, 0))
    return F.max_pool2d(rows, (1, window), 1, (0, window // 2))


def _smallest(x: Tensor, window: int) -> Tensor:
    return -_largest(-x, window)


def _mean(x: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(F.avg_pool2d(x, (window, 1), 1, (window // 2, 0)), (1, window), 1, (0, window // 2))
