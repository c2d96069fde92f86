"""The guard: a decoding that overflows is drawn again, calmer, where it did; no black square leaves a task.

A flow's inverse divides by learned scales. Far from what it was trained on (a high temperature, an image unlike all it
has seen) the quotients feed the next step's networks, grow, and end in infinities that cover as much as the networks
see. The same latents nearer to zero are less far away. Where nothing overflows the guard reads the smallest and the
largest value, and hands on what the flow has decoded, bit for bit.

Source: Hong et al., "On the Robustness of Normalizing Flows for Inverse Problems in Imaging" (ICCV 2023), where the
explosions of conditional flows are described; the remedy is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..condition import Condition
from ..inference.plan import Plan
from ..likelihood import select_items

BACKOFF_SCALES = (1.0, 0.6, 0.3, 0.0)
"""Factors on the latents of a cell, before it overflows, after it has once, twice, ..."""
ATTEMPTS = len(BACKOFF_SCALES) + 1  # one more for cells that overflow only since others do not
FADE = 8  # pixels over which a fallback passes into the decoded picture


class Decoded(NamedTuple):
    """What was decoded, and where the guard had to help.

    Attributes:
        images: ``(B, C, H, W)``, finite.
        attenuated: Where they were drawn at a lower temperature, bool ``(B, 1, H, W)``; None if nothing had to be done.
        filled: Where no temperature helped and the fallback was taken, likewise.
    """

    images: Tensor
    attenuated: Tensor | None = None
    filled: Tensor | None = None


class Repairs:
    """Counts what the guard has done in a run, and says it."""

    def __init__(self) -> None:
        """Start with nothing done."""
        self.attenuated: Counter[int] = Counter()  # number of a picture to pixels of it
        self.filled: Counter[int] = Counter()

    def add(self, first: int, attenuated: Tensor | None, filled: Tensor | None) -> None:
        """Count pixels.

        Args:
            first: Number of the first picture; the others follow.
            attenuated: As in ``Decoded``, of these pictures or of a part of each.
            filled: Likewise.
        """
        for counts, where in ((self.attenuated, attenuated), (self.filled, filled)):
            for number, pixels in enumerate([] if where is None else where.flatten(1).sum(1).tolist(), start=first):
                if pixels:
                    counts[number] += pixels

    def sentences(self, pixels: int, instead: str) -> list[str]:
        """Say what there is to say.

        Args:
            pixels: Of a picture.
            instead: What the fallback is, as a clause: "enlarged the ordinary way (bicubic)".

        Returns:
            Up to two sentences.
        """
        said: list[str] = []
        if self.attenuated:
            said.append(
                f"The model overflowed in {_extent(self.attenuated, pixels)}: drawn there at a lower temperature. "
                "Lower "
                "the temperature to have it the same everywhere."
            )
        if self.filled:
            said.append(
                f"The model overflows at any temperature in {_extent(self.filled, pixels)}: {instead} there. The image "
                "is unlike all that the model has learnt (noise, dithering, fine patterns), the precision too low, or "
                "the model unstable."
            )
        return said


Attempt = Callable[[Sequence[Tensor], Tensor | None], tuple[Tensor, Tensor | None]]
"""Decodes latents: of all images, or of those whose numbers come along. Gives images ``(B, C, H, W)``, and where they
are wild, bool ``(B, 1, H, W)``; None for nowhere."""


def within(plan: Plan, cond: Condition | None, reach: float) -> Attempt:
    """Decode with a plan, and call wild what cannot be part of an image.

    Args:
        plan: The model.
        cond: Of 1 or B images, or None.
        reach: How far from 0.5, the middle of the range, values may lie.

    Returns:
        For ``decode``.
    """

    def attempt(latents: Sequence[Tensor], items: Tensor | None) -> tuple[Tensor, Tensor | None]:
        told = cond if items is None or cond is None or cond.batch == 1 else select_items(cond, items)
        images = plan.inverse(latents, told)
        low, high = images.aminmax()  # both are NaN if there is one
        if (low >= 0.5 - reach) & (high <= 0.5 + reach):
            return images, None
        return images, ~((images - 0.5).abs() <= reach).all(1, keepdim=True)

    return attempt


def decode(attempt: Attempt, latents: Sequence[Tensor], fallback: Callable[[], Tensor]) -> Decoded:
    """Decode latents to images that are wild nowhere.

    Args:
        attempt: How to decode, and what is wild.
        latents: Finest first, of batch B.
        fallback: Called for what to show where no temperature helps, finite, ``(1 or B, C, H or 1, W or 1)``.

    Returns:
        The images; of the first attempt, if nothing is wild in it.
    """
    images, wild = attempt(latents, None)
    if wild is None:
        return Decoded(images)
    affected = wild.flatten(1).any(1).nonzero()[:, 0]  # numbers of the images
    theirs = [z[affected] for z in latents]
    grid = theirs[-1].shape[-2:]
    rung = torch.zeros(len(affected), 1, *grid, device=images.device)
    factors = torch.tensor(BACKOFF_SCALES, device=images.device)
    again, left = images[affected], wild[affected]
    for _ in range(ATTEMPTS if any(bool(z.any()) for z in theirs) else 0):
        rung = (rung + _cells(left, grid)).clamp(max=len(BACKOFF_SCALES) - 1)
        again, still = attempt([_scaled(z, factors[rung.long()]) for z in theirs], affected)
        left = torch.zeros_like(left) if still is None else still
        if still is None:
            break
    attenuated, filled = torch.zeros_like(wild), torch.zeros_like(wild)
    attenuated[affected] = (_onto(rung, again, "nearest") > 0) & ~left
    filled[affected] = left
    if left.any():
        instead = fallback().to(again)
        instead = instead if len(instead) == 1 else instead[affected]
        again = _faded(again, instead.expand_as(again), left)
    images = images.clone()
    images[affected] = again
    return Decoded(images, attenuated, filled)


def _cells(wild: Tensor, grid: Sequence[int]) -> Tensor:
    """Mark the cells of the coarsest latents that hold something wild, or touch one that does."""
    cells = F.adaptive_max_pool2d(wild.float(), (grid[0], grid[1]))
    return F.max_pool2d(cells, 3, stride=1, padding=1)


def _scaled(z: Tensor, factor: Tensor) -> Tensor:
    """Scale latents by cell; zero is zero, also of what is not finite."""
    factor = _onto(factor, z).to(z)
    return torch.where(factor == 0, 0, z * factor)


def _onto(cells: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    """Bring a grid of cells to the size of something finer."""
    if cells.shape[-2:] == like.shape[-2:]:
        return cells
    return F.interpolate(cells, like.shape[-2:], mode=mode)


def _faded(images: Tensor, instead: Tensor, where: Tensor) -> Tensor:
    """Put something else where it is needed, with a soft edge outside of that."""
    side = 2 * FADE + 1
    near = F.max_pool2d(where.float(), side, stride=1, padding=FADE)
    weight = F.avg_pool2d(near, side, stride=1, padding=FADE, count_include_pad=False)
    weight = torch.where(where, 1.0, weight)
    return torch.where(weight > 0, torch.lerp(torch.where(where, instead, images), instead, weight), images)


def _extent(counts: Counter[int], pixels: int) -> str:
    share = counts.total() / (len(counts) * pixels)
    percent = f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"
    return f"1 picture, {percent} of it" if len(counts) == 1 else f"{len(counts)} pictures, {percent} of them"
