"""Which of many seeds may have made a picture, by a part of the numbers that each of them draws.

A seed draws the finest latents first, channel by channel, then the others. What survives JPEG is in the last channels
of the finest and in the next level, so the numbers around the end of the finest level are compared. In large pictures
it takes long to get there, and the first numbers are compared before: they suffice for pictures without damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..flows.prior import Shape

Floats = NDArray[np.float32]

FEW = 64  # so many seeds are all compared in full
LIKELY, CERTAIN = 2.5, 12.0  # z of that part: from there on all is compared, or no further seed is looked at
NUMBERS = 2**16  # of that part
FIRST, FAR = 2**14, 2**18  # numbers that are compared before, if so many are skipped
BLOCK = 32  # seeds between two looks at whether to stop


class _Window(NamedTuple):
    """A part of what a seed draws."""

    skipped: int  # numbers of the finest level before it, a multiple of the 16 that torch draws at once
    lengths: tuple[int, ...]  # numbers in it of each level, the finest first


def likely(
    places: Sequence[Sequence[Tensor]], seeds: Sequence[int], report: Callable[[int], None]
) -> list[tuple[int, int]]:
    """List pairs of a place's number and a seed that may have made the picture, the likeliest first.

    ``places`` are latents of one picture as it may lie, such as mirrored, all of one shape, finest level first, each
    scaled to an rms of 1. A certain match ends the search, and is all that is listed. ``report`` is called with the
    number of seeds that were compared last; it may raise to cancel.
    """
    if len(seeds) <= FEW:
        return [(place, seed) for place in range(len(places)) for seed in seeds]
    windows = _windows([(z.shape[1], z.shape[2], z.shape[3]) for z in places[0]])
    found = list[tuple[float, tuple[int, int]]]()
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for window in windows:
            rows = np.stack([_part(latents, window).numpy() for latents in places])
            noise = torch.empty(BLOCK, rows.shape[1])
            for start in range(0, len(seeds), BLOCK):
                block = seeds[start : start + BLOCK]
                z = torch.from_numpy(np.stack([*pool.map(partial(_compare, rows, window), noise, block)]))
                report(len(block) if window == windows[-1] else 0)
                found += [(float(z[i, k]), (k, block[i])) for i, k in (z > LIKELY).nonzero().tolist()]
                if float(z.max()) > CERTAIN:
                    return [max(found)[1]]
    return [pair for _, pair in sorted(found, reverse=True)]


def _windows(shapes: Sequence[Shape]) -> list[_Window]:
    """Choose what is compared: as many numbers before the end of the finest level as after it, or all."""
    numbers = [math.prod(shape) for shape in shapes]
    size = min(NUMBERS, sum(numbers))
    skipped = max(0, min(numbers[0] - size // 2, sum(numbers) - size)) // 16 * 16
    lengths, left = [numbers[0] - skipped], size - (numbers[0] - skipped)
    for number in numbers[1:]:
        taken = number if number <= left else max(0, left) // 16 * 16
        left = left - taken if taken == number else 0
        lengths += [taken] if taken else []
    return [*([_Window(0, (FIRST,))] if skipped > FAR else []), _Window(skipped, tuple(lengths))]


def _part(latents: Sequence[Tensor], window: _Window) -> Tensor:
    """Take the latents in a window, scaled so that their sum times noise is z: ``(N,)``."""
    starts = [window.skipped, *[0] * len(window.lengths)]
    parts = [z.flatten()[a : a + n] for z, a, n in zip(latents, starts, window.lengths, strict=False)]
    return torch.cat([z / (z.norm().clamp_min(1e-6) * math.sqrt(len(parts))) for z in parts])


def _compare(rows: Floats, window: _Window, noise: Tensor, seed: int) -> Floats:
    """Draw the numbers of a seed in a window, and compute z of each row of latents ``(P, N)``: ``(P,)``."""
    generator = torch.Generator("cpu").manual_seed(seed)
    unused = noise[: len(noise) // 2 * 2].view(torch.int64)  # each of which uses up two numbers, but faster
    for start in range(0, window.skipped // 2, len(unused)):
        unused[: window.skipped // 2 - start].random_(generator=generator)
    for level in noise.split(window.lengths):
        level.normal_(generator=generator)
    return np.einsum("pn,n->p", rows, noise.numpy())  # torch would start threads of its own within this one
