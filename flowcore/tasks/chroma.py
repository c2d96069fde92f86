"""From luma and hints to chroma at the working size, and from there to pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from ..condition import Condition
from ..errors import FlowError, ShapeError
from ..flow import Flow
from ..images import color
from ..images.color import NEUTRAL
from ..images.resize import pad_symmetric, resize_bilinear
from ..likelihood import select_items
from ..networks.luma import STRIDE
from ..prior import Shape
from . import Cancelled, Precision, Progress, overflow
from .hints import Hints
from .runner import plan_for, validate_image, watched

Gamut = Literal["compress", "clip"]
AT_ONCE = 8  # colourings decoded together
LONGEST = 4  # a working image is at most so many times longer than it is wide
GUARD_REACH = 2.0  # of chroma; at temperature 1 no colouring of the shipped model goes beyond 0.6
COLOURED = 2 / 255  # chroma above which a picture is said to be in colour
HINT_SPREAD = 0.01  # chroma by which a hint may be missed: standard deviation, in the refinement
HINT_RATE = 0.08  # of Adam, in the refinement
MOST = 0.501  # chroma of the most colourful colours, and rounding
COVERED = 0.999  # of a cell or pixel, from which on a locked hint is met exactly
log = logging.getLogger("flowcore")


def schedule(palette: float, detail: float, levels: int) -> list[float]:
    """Spread temperatures over the levels of a colorizer, geometrically from the finest to the coarsest.

    Args:
        palette: Temperature of the coarsest level, where colours are decided.
        detail: Temperature of the finest.
        levels: Their number.

    Returns:
        A temperature per level, finest first.
    """
    if levels == 1:
        return [palette]
    parts = [k / (levels - 1) for k in range(levels)]  # 0 at the finest
    return [detail ** (1 - part) * palette**part for part in parts]


Between = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class _Wanted:
    """Hints of some images at the working size: planes (B, 3, h, w), palette (B, 4), and whether they are locked."""

    planes: Tensor
    palette: Tensor
    lock: bool


class Colorization:
    """Some images on their way through a colorizer."""

    def __init__(
        self,
        flow: Flow,
        image: Tensor,
        working_size: int | None,
        saturation: float,
        gamut: Gamut,
        precision: Precision,
        notify: Callable[[str], None] | None,
        *,
        encoding: bool = False,
    ) -> None:
        flow.require("colorize")
        _check_finish(saturation, gamut)
        size = flow.config.working_size if working_size is None else working_size
        if not 16 <= size <= 4096:
            raise FlowError(f"working_size must lie between 16 and 4096 pixels; got {size}.")
        say = notify or log.warning
        self.say = say
        self.repairs = overflow.Repairs()
        self.flow = flow
        self.device = next(flow.parameters()).device
        self.home = image.device
        self.saturation = saturation
        self.gamut: Gamut = gamut
        self.plan = plan_for(flow, precision, say)  # hints are refined with gradients, by the flow itself
        rgb, self.alpha = validate_image(image)
        self.y = color.luma(rgb)
        if not encoding and image.shape[1] > 1 and float(color.split(rgb)[1].abs().max()) > COLOURED:
            say("The picture is in colour: its luma is used, its colours are not.")
        working = working_sides(self.y.shape[-2], self.y.shape[-1], size)
        multiple = flow.config.source_multiple
        self.padded = tuple(-(-side // multiple) * multiple for side in working)
        self.grid = cast(tuple[int, int], tuple(side // STRIDE for side in self.padded))
        self.chroma_size = cast(tuple[int, int], tuple(side // STRIDE for side in working))
        self.working = working
        self.small_y = resize_bilinear(self.y, working)  # (B, 1, h, w)
        self.shapes: list[Shape] = flow.latent_shapes(*self.grid)
        self._progress: Progress | None = None
        self._done = self._total = 0

    def temperatures(self, palette: float | None, detail: float | None) -> list[float]:
        """Return a temperature per level, finest first; None is what the model was made for."""
        usual: tuple[float, float] = self.flow.config.temperatures
        palette = usual[0] if palette is None else palette
        detail = usual[1] if detail is None else detail
        for name, tau in (("temperature", palette), ("detail", detail)):
            if not (math.isfinite(tau) and tau >= 0):
                raise FlowError(f"{name} must be a finite number >= 0; got {tau}.")
        return schedule(palette, detail, len(self.shapes))

    @contextmanager
    def reporting(
        self, progress: Progress | None, cancelled: Callable[[], bool] | None, total: int
    ) -> Generator[None, None, None]:
        """Report progress, and raise Cancelled before a layer once the caller asks for it."""
        self._progress, self._total = progress, total

        def stop(_: object) -> None:
            if cancelled is not None and cancelled():
                raise Cancelled("colorize was cancelled")

        with watched(self.flow, stop), watched(self.plan, stop):
            yield

    def step(self, preview: Tensor | None = None) -> None:
        """Count one finished unit of work."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, None if preview is None else preview[:3])

    def fitting(self, hints: Hints | None) -> Hints | None:
        """Check that hints are for these images, and give coverage and chroma as many items as the other has."""
        if hints is None:
            return None
        coverage, chroma, told = hints.coverage, hints.chroma, hints.palette
        if (coverage is None) != (chroma is None):
            raise ShapeError("Hints need coverage and chroma, or neither of the two.")
        if coverage is not None and chroma is not None:
            same = coverage.ndim == chroma.ndim == 4 and coverage.shape[2:] == chroma.shape[2:]
            if not same or coverage.shape[1] != 1 or chroma.shape[1] != 2:
                raise ShapeError(
                    f"Expected hints of coverage (B, 1, H, W) and chroma (B, 2, H, W); got {tuple(coverage.shape)} and "
                    f"{tuple(chroma.shape)}."
                )
            for items in (len(coverage), len(chroma)):
                self._check_items("hints", items)
            count = max(len(coverage), len(chroma))
            coverage, chroma = (t.expand(count, -1, -1, -1) for t in (coverage, chroma))
        if told is not None:
            if told.ndim != 2 or told.shape[1] != 4:
                raise ShapeError(f"Expected a palette of shape (B, 4); got {tuple(told.shape)}.")
            self._check_items("palettes", len(told))
        return Hints(coverage=coverage, chroma=chroma, palette=told, lock=hints.lock)

    def wanted(self, hints: Hints | None, part: slice) -> _Wanted | None:
        """Bring the hints of some images to the working size."""
        if hints is None:
            return None
        count = len(self.y[part])
        planes = torch.zeros(count, 3, *self.padded, device=self.device)
        wanted_palette = torch.zeros(count, 4, device=self.device)
        if hints.coverage is not None and hints.chroma is not None:
            covered = torch.cat([hints.coverage, hints.coverage * hints.chroma], dim=1).float()
            covered = covered[part] if len(covered) > 1 else covered
            planes[..., : self.working[0], : self.working[1]] = resize_bilinear(covered, self.working).to(self.device)
        if hints.palette is not None:
            wanted_palette[:] = (hints.palette[part] if len(hints.palette) > 1 else hints.palette).to(self.device)
        return _Wanted(planes, wanted_palette, hints.lock)

    def _check_items(self, what: str, count: int) -> None:
        if count not in (1, len(self.y)):
            raise ShapeError(f"Expected {what} for 1 or {len(self.y)} images; got {count}.")

    def given(self, latents: Sequence[Tensor], number: int) -> list[Tensor]:
        """Bring one item of latents of any size to this size, by the nearest position of every level."""
        if [z.ndim for z in latents] != [4] * len(self.shapes) or any(
            z.shape[1] != shape[0] for z, shape in zip(latents, self.shapes, strict=True)
        ):
            raise ShapeError(
                f"Expected {len(self.shapes)} levels of latents with {', '.join(str(s[0]) for s in self.shapes)} "
                f"channels; got {[tuple(z.shape) for z in latents]}. Encode them with this model."
            )
        for level in latents:
            self._check_items("latents", len(level))
            if len(level) != len(latents[0]):
                raise ShapeError(f"Expected latents of as many items on every level; got {[len(z) for z in latents]}.")
        item = number if len(latents[0]) > 1 else 0
        return [
            F.interpolate(z[item : item + 1].float(), (shape[1], shape[2]), mode="nearest").to(self.device)
            for z, shape in zip(latents, self.shapes, strict=True)
        ]

    def condition(self, part: slice, wanted: _Wanted | None) -> Condition:
        """Encode luma and hints of some images."""
        source = pad(self.small_y[part].to(self.device), self.padded)
        if wanted is not None:
            planes = wanted.palette[:, :, None, None].expand(-1, -1, *self.padded)
            source = torch.cat([source, wanted.planes, planes], dim=1)
        cond = self.plan.encode_condition(source)
        self.step()
        return Condition(features=tuple(f.float() if isinstance(f, Tensor) else f for f in cond.features))

    def decode(self, z: Sequence[Tensor], cond: Condition, *changes: Between | None) -> Tensor:
        """From latents to chroma, centred on 0, at a quarter of the working size; with changes between the levels."""

        def between(number: int, x: Tensor) -> Tensor:
            for change in changes:
                x = x if change is None else change(number, x)
            return x

        decoded = self.plan.inverse(z, cond, between)
        return (decoded - NEUTRAL)[..., : self.chroma_size[0], : self.chroma_size[1]]

    def guarded(self, first: int, z: Sequence[Tensor], cond: Condition, wanted: _Wanted | None) -> Tensor:
        """Decode with the guard: what is bounded, but would have been far off, is drawn calmer."""

        def attempt(latents: Sequence[Tensor], items: Tensor | None) -> tuple[Tensor, Tensor | None]:
            wild: list[Tensor] = []

            def look(number: int, x: Tensor) -> Tensor:
                wild.append(~(_chroma_seen(self.flow, number, x).abs() <= GUARD_REACH).all(1, keepdim=True))
                return x

            told = cond if items is None else select_items(cond, items)
            chroma = self.decode(latents, told, look, self.bounded, self.locking(wanted))
            if not torch.stack([mark.any() for mark in wild]).any():
                return chroma, None
            whole = torch.stack([F.interpolate(mark.float(), self.grid) for mark in wild]).amax(0) > 0
            return chroma, whole[..., : self.chroma_size[0], : self.chroma_size[1]]

        decoded = overflow.decode_with_backoff(attempt, z, lambda: torch.zeros(1, 2, 1, 1))
        self.repairs.add(first, decoded.attenuated, decoded.filled)
        return decoded.images

    def report(self) -> None:
        """Say what the guard has done."""
        for sentence in self.repairs.sentences(self.chroma_size[0] * self.chroma_size[1], "left grey"):
            self.say(sentence)

    def bounded(self, number: int, x: Tensor) -> Tensor:
        """Clamp what a level decodes to; see ``bounded``."""
        return bounded(self.flow, number, x)

    def locking(self, wanted: _Wanted | None) -> Between | None:
        """Make what puts locked colours into the image between levels: where a cell is covered, its mean is known."""
        if wanted is None or not wanted.lock:
            return None

        def between(number: int, x: Tensor) -> Tensor:
            covered, chroma = _pooled(wanted.planes, x.shape[-2:])
            target = _seen(self.flow, number, chroma)
            return torch.where(covered > COVERED, target.to(x), x)

        return between

    def refined(self, z: Sequence[Tensor], cond: Condition, wanted: _Wanted, steps: int) -> list[Tensor]:
        """Move latents until the covered places have the wanted colours, as little as that takes."""
        with torch.inference_mode(False), torch.enable_grad():
            # copies, since what was loaded in inference mode can have no gradient
            weights = {f"flow.{name}": t.detach().clone() for name, t in _tensors(self.flow)}
            features = (f.detach().clone() if isinstance(f, Tensor) else f for f in cond.features)
            given = Condition(features=tuple(features))
            covered, chroma = (t.detach().clone() for t in _pooled(wanted.planes, self.grid))
            drawn = [part.detach().clone() for part in z]
            moved = [part.clone().requires_grad_() for part in drawn]
            optimiser = torch.optim.Adam(moved, lr=HINT_RATE)
            inverse = _Inverse(self.flow, self.bounded)
            for _ in range(steps):
                optimiser.zero_grad()
                decoded = cast(Tensor, functional_call(inverse, weights, (moved, given)))
                missed = (covered * (decoded - NEUTRAL - chroma).square()).sum() / (2 * HINT_SPREAD**2)
                loss = missed + sum(((a - b).square().sum() / 2 for a, b in zip(moved, drawn, strict=True)), missed * 0)
                loss.backward()
                for part in moved:
                    assert part.grad is not None
                    part.grad.nan_to_num_(0, 0, 0)  # of what was out of bounds
                optimiser.step()
                self.step()
            return [part.detach() for part in moved]

    def finish(self, chroma: Tensor, part: slice, hints: Hints | None) -> Tensor:
        """From chroma at the working size to pictures at the size of the image."""
        y = self.y[part].to(self.device)
        small = resize_bilinear(y, self.chroma_size)
        full = enlarge_chroma(chroma, small, y)
        alpha = None if self.alpha is None else self.alpha[part].to(self.device)
        if hints is not None and hints.lock and hints.coverage is not None and hints.chroma is not None:
            one = len(hints.coverage) == 1
            coverage, target = (t if one else t[part] for t in (hints.coverage, hints.chroma))
            full = _locked(full * self.saturation, coverage.to(full), target.to(full))
            return merge(y, full, alpha, 1.0, self.gamut).to(self.home)
        return merge(y, full, alpha, self.saturation, self.gamut).to(self.home)


def bounded(flow: Flow, number: int, x: Tensor) -> Tensor:
    """Keep means of chroma among those of colours: for the argument ``between`` of a colorizer's inverse.

    Every picture is there already. What the flow makes of hints or temperatures unlike all it was trained on may not
    be, and each level that starts from it would be further off, up to infinity.

    Args:
        flow: A colorizer.
        number: Of the level, 0 for the finest.
        x: What it has been decoded to, ``(B, 2, h, w)``.

    Returns:
        The same where it is possible, else the nearest that is.
    """
    chroma = _chroma_seen(flow, number, x)
    possible = chroma.nan_to_num(0, MOST, -MOST).clamp(-MOST, MOST)
    return torch.where((possible == chroma).all(1, keepdim=True), x, _seen(flow, number, possible).to(x))


def _chroma_seen(flow: Flow, number: int, x: Tensor) -> Tensor:
    """Give means of chroma that the flow has between its levels; the inverse of ``_seen``."""
    assert flow.prelude is not None
    return flow.prelude.inverse(x / 2**number) - NEUTRAL


def _seen(flow: Flow, number: int, chroma: Tensor) -> Tensor:
    """Give means of chroma as the flow has them: whitened, and doubled by every Haar step still to be undone."""
    assert flow.prelude is not None
    return flow.prelude(chroma + NEUTRAL)[0] * 2**number


class _Inverse(nn.Module):
    """A flow whose call is its inverse, for ``functional_call``."""

    def __init__(self, flow: Flow, between: Between) -> None:
        super().__init__()
        self.flow = flow
        self.between = between

    def forward(self, z: Sequence[Tensor], cond: Condition) -> Tensor:
        return self.flow.inverse(z, cond, self.between)


def _tensors(flow: Flow) -> list[tuple[str, Tensor]]:
    return [*flow.named_parameters(), *flow.named_buffers()]


def blend_latents(drawn: Sequence[Tensor], given: Sequence[Tensor], strength: float, levels: int) -> list[Tensor]:
    """Mix drawn latents with given ones on the coarsest levels, with the same variance in all."""
    first = len(drawn) - levels
    return [
        z if number < first else math.sqrt(strength) * other.to(z) + math.sqrt(1 - strength) * z
        for number, (z, other) in enumerate(zip(drawn, given, strict=True))
    ]


def _locked(chroma: Tensor, coverage: Tensor, target: Tensor) -> Tensor:
    """Meet the wanted chroma where it is covered, and let the correction fade out around."""
    size = (chroma.shape[-2], chroma.shape[-1])
    covered = resize_bilinear(torch.cat([coverage, coverage * target], dim=1), size).expand(len(chroma), -1, -1, -1)
    coverage, target = covered[:, :1], covered[:, 1:] / covered[:, :1].clamp_min(1e-6)
    reach = max(1, min(size) // 64)  # a pixel of the finest grid or two
    # the correction, times how much of the neighbourhood is covered
    around = F.avg_pool2d(coverage * (target - chroma), 2 * reach + 1, 1, reach)
    return torch.where(coverage > COVERED, target, chroma + around)


def merge(y: Tensor, chroma: Tensor, alpha: Tensor | None, saturation: float, gamut: Gamut) -> Tensor:
    """Combine luma and chroma of one size into RGB, with alpha if there is one."""
    _check_finish(saturation, gamut)
    count = max(len(y), len(chroma))
    y, chroma = y.expand(count, -1, -1, -1), chroma.expand(count, -1, -1, -1) * saturation
    rgb = color.compress(y, chroma) if gamut == "compress" else color.clip(y, chroma)
    return rgb if alpha is None else torch.cat([rgb, alpha.to(rgb).expand(count, -1, -1, -1)], dim=1)


def enlarge_chroma(chroma: Tensor, small: Tensor, y: Tensor) -> Tensor:
    """Bring chroma to the size of an image, larger or smaller."""
    if chroma.shape[-2] > y.shape[-2] or chroma.shape[-1] > y.shape[-1]:
        return resize_bilinear(chroma, y.shape[-2:])
    return color.enlarge_chroma(chroma, small, y)


def _pooled(planes: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Coverage and mean wanted chroma by cell of a grid."""
    pooled = F.adaptive_avg_pool2d(planes, (size[0], size[1]))
    return pooled[:, :1], pooled[:, 1:] / pooled[:, :1].clamp_min(1e-6)


def pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Continue an image symmetrically at its right and at its bottom."""
    height, width = size
    border = max(height - image.shape[-2], width - image.shape[-1])
    return pad_symmetric(image, border)[..., border : border + height, border : border + width]


def working_sides(height: int, width: int, short: int) -> tuple[int, int]:
    """Give the sides a length on the finest grid: the shorter one as asked, unless the other becomes too long."""
    factor = min(short / min(height, width), LONGEST * short / max(height, width))
    rows, columns = (max(1, round(side * factor / STRIDE)) * STRIDE for side in (height, width))
    return rows, columns


def _check_finish(saturation: float, gamut: str) -> None:
    if not (math.isfinite(saturation) and saturation >= 0):
        raise FlowError(f"saturation must be a finite number >= 0; got {saturation}.")
    if gamut not in ("compress", "clip"):
        raise FlowError(f"gamut must be compress or clip; got {gamut!r}.")


def items_at_once(batch: int | None) -> int:
    """Return how many colorings are decoded together."""
    if batch is not None and batch < 0:
        raise FlowError(f"batch must not be negative; got {batch}. 0 chooses.")
    return batch or AT_ONCE


def check_draw(seed: int, strength: float, levels: int) -> None:
    """Raise FlowError if a seed or a blend of latents is out of range."""
    if not 0 <= seed < 2**64:
        raise FlowError(f"A seed must be a whole number in [0, 2^64); got {seed!r}.")
    if not 0 <= strength <= 1:
        raise FlowError(f"latents_strength must lie in [0, 1]; got {strength}.")
    if levels < 0:
        raise FlowError(f"latents_levels must be at least 0, which means all; got {levels}.")
