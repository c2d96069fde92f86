"""Overflow: where decoded values are implausibly large, latents are scaled towards zero and decoded again.

A flow's inverse divides by learned scales; far from the training data, which zero is closer to, the quotients grow from
step to step. Hong et al., "On the Robustness of Normalizing Flows for Inverse Problems in Imaging" (ICCV 2023),
describe these explosions; the remedy is ours. They begin as noise of full color, for example on small letters of
saturated color, which no low temperature explains: up to ``CALM`` values must be plausible, too, if the model's file
states its ``plausible_deviation``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import say
from ..flows.condition import Condition
from ..flows.likelihood import select_items
from .compiled import CompiledFlow

BACKOFF_SCALES = (1.0, 0.6, 0.3, 0.0)  # factors on a cell's latents: at first, after one overflow, after two, ...
ATTEMPTS = len(BACKOFF_SCALES) + 1  # one more for cells that overflow only because of others
CALM = 0.8  # temperature up to which photographs stay within 0.61 of mid gray: docs/decisions/0013
FADE = 8  # pixels over which the fallback blends into the decoded picture

Decoder = Callable[[Sequence[Tensor], Tensor | None], tuple[Tensor, Tensor | None]]
"""Decodes latents of all images, or of the images with the given indices, to images ``(B, C, H, W)`` and a mask of
where they overflow, ``(B, 1, H, W)``, or None for nowhere. It is 1 or True where values overflow, and where they are
implausible the number of steps to the last of ``BACKOFF_SCALES``."""


class Decoded(NamedTuple):
    """Decoded images, and masks ``(B, 1, H, W)`` of repaired pixels, None for none."""

    images: Tensor  # finite
    attenuated: Tensor | None = None  # latents were scaled down
    filled: Tensor | None = None  # no scale helped, and the fallback was taken


class OverflowCounts:
    """Counts repaired pixels by picture."""

    def __init__(self) -> None:
        self.attenuated: Counter[int] = Counter()
        self.filled: Counter[int] = Counter()

    def add(self, first: int, attenuated: Tensor | None, filled: Tensor | None) -> None:
        """Count the masks of consecutive pictures, or of a tile of each, from number ``first`` on; see ``Decoded``."""
        for counts, mask in ((self.attenuated, attenuated), (self.filled, filled)):
            for number, pixels in enumerate([] if mask is None else mask.flatten(1).sum(1).tolist(), start=first):
                if pixels:
                    counts[number] += pixels

    def report(self, notify: Callable[[str], None], pixels: int, fallback: str) -> None:
        """Tell the caller, relative to the pixels of a picture; ``fallback`` is text such as "left gray"."""
        if self.attenuated:
            notify(
                say(
                    "The model overflowed in {extent}: drawn there at a lower temperature. Lower the temperature, or "
                    "the strength of a change, to have it the same everywhere.",
                    extent=_extent(self.attenuated, pixels),
                )
            )
        if self.filled:
            notify(
                say(
                    "The model overflows at any temperature in {extent}: {fallback} there. The image is unlike the "
                    "training data (noise, dithering, fine patterns), the precision too low, or the model unstable.",
                    extent=_extent(self.filled, pixels),
                    fallback=fallback,
                )
            )


def bounded_decoder(
    compiled: CompiledFlow, cond: Condition | None, max_deviation: float, plausible: Sequence[float] = ()
) -> Decoder:
    """Make a decoder of a flow and a condition of 1 or B images; beyond ``max_deviation`` from 0.5 values overflow.

    Beyond ``plausible``, one number per image, or none for ``max_deviation``, they are implausible.
    """
    smallest = min([max_deviation, *plausible])

    def decode(latents: Sequence[Tensor], items: Tensor | None) -> tuple[Tensor, Tensor | None]:
        of_items = cond if items is None or cond is None or cond.batch == 1 else select_items(cond, items)
        images = compiled.inverse(latents, of_items)
        low, high = images.aminmax()  # both are NaN if a value is
        if (low >= 0.5 - smallest) & (high <= 0.5 + smallest):
            return images, None
        deviation = (images - 0.5).abs().amax(1, keepdim=True)
        mask = (~(deviation <= max_deviation)).byte()
        if plausible:
            limits = images.new_tensor(plausible).view(-1, 1, 1, 1)
            implausible = (deviation > (limits if items is None else limits[items])) & (mask == 0)
            mask[implausible] = len(BACKOFF_SCALES) - 1
        return images, mask if mask.any() else None

    return decode


def decode_with_backoff(decode: Decoder, latents: Sequence[Tensor], fallback: Callable[[], Tensor]) -> Decoded:
    """Decode latents to images, unchanged if none overflows; where no scale helps, a finite fallback is shown."""
    images, overflowed = decode(latents, None)
    if overflowed is None:
        return Decoded(images)
    affected = overflowed.flatten(1).any(1).nonzero()[:, 0]  # indices of images
    z = [level[affected] for level in latents]
    grid = z[-1].shape[-2:]
    failures = torch.zeros(len(affected), 1, *grid, device=images.device)  # failures per cell of the coarsest latents
    scales = torch.tensor(BACKOFF_SCALES, device=images.device)
    repaired, remaining = images[affected], overflowed[affected]
    attempts = ATTEMPTS if any(bool(level.any()) for level in z) else 0  # zeros cannot be scaled down
    for _ in range(attempts):
        # the cells that hold an overflow, and their neighbors
        touched = F.max_pool2d(F.adaptive_max_pool2d(remaining.float(), (grid[0], grid[1])), 3, stride=1, padding=1)
        before, failures = failures, (failures + touched).clamp(max=len(BACKOFF_SCALES) - 1)
        if torch.equal(failures, before):  # all that can be lowered is
            break
        repaired, mask = decode([_scale(level, scales[failures.long()]) for level in z], affected)
        if mask is None:
            remaining = torch.zeros_like(remaining)
            break
        remaining = mask
    attenuated, filled = torch.zeros_like(overflowed, dtype=torch.bool), torch.zeros_like(overflowed, dtype=torch.bool)
    remaining = remaining == 1  # what is implausible even at temperature 0 is shown
    attenuated[affected] = (_resize(failures, repaired, "nearest") > 0) & ~remaining
    filled[affected] = remaining
    if remaining.any():
        replacement = fallback().to(repaired)
        replacement = replacement if len(replacement) == 1 else replacement[affected]
        repaired = _blend(repaired, replacement.expand_as(repaired), remaining)
    return Decoded(images.index_copy(0, affected, repaired), attenuated, filled)


def _scale(z: Tensor, factor: Tensor) -> Tensor:
    """Scale latents by cell; factor 0 gives 0, even for infinities."""
    factor = _resize(factor, z).to(z)
    return torch.where(factor == 0, 0, z * factor)


def _resize(cells: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    return cells if cells.shape[-2:] == like.shape[-2:] else F.interpolate(cells, like.shape[-2:], mode=mode)


def _blend(images: Tensor, replacement: Tensor, mask: Tensor) -> Tensor:
    """Replace images under a mask, with a soft edge outside of it."""
    side = 2 * FADE + 1
    near = F.max_pool2d(mask.float(), side, stride=1, padding=FADE)
    weight = F.avg_pool2d(near, side, stride=1, padding=FADE, count_include_pad=False)
    weight = torch.where(mask, 1.0, weight).to(images)
    return torch.where(weight > 0, torch.lerp(torch.where(mask, replacement, images), replacement, weight), images)


def _extent(counts: Counter[int], pixels: int) -> str:
    thousandths = 1000 * counts.total() // (len(counts) * pixels)  # rounded down: 100 % is all of it
    percent = f"{thousandths / 10:.1f} %" if thousandths else say("less than 0.1 %")
    if len(counts) == 1:
        return say("1 picture, {percent} of it", percent=percent)
    return say("{count} pictures, {percent} of them", count=len(counts), percent=percent)
