"""Compare one picture with the noise of a seed or mark: as it is, and in other sizes and places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.options import HALO
from ..engine.runner import Runner
from ..engine.tiles import pad_by_reflection, tile_grid
from ..errors import FlowError
from ..flows.condition import Condition
from ..flows.mark import mark_noise
from ..flows.model import FlowModel
from ..flows.prior import Shape, height_and_width, sample_latents
from ..images.color import NEUTRAL
from ..images.motion import blur
from ..images.resize import downsample, resize, resize_bilinear
from .chroma import Colorization
from .edits import SMOOTH, edited_map, local_statistics
from .seeds import likely
from .upscale import MAX_SIDE

VERIFIED = 6.0  # z from which on a picture counts as verified; by chance one in a billion is beyond
CLAMP = 4.0  # largest latent that counts: JPEG and other pictures have outliers
TILE = 1024  # pixels, side of the tiles in which a large picture is encoded
PART = 96  # pixels, side of the four parts by which sizes are tried
PROMISING, SURE = 2.0, 8.0  # z of those parts: below, no size is right, and above, no other one is tried
CROP = 512  # pixels of a cropped picture by which its place is found
SMALLEST_CROP = 128  # pixels of its shorter side
MAX_SIZES, MAX_MIRRORED = 24, 6  # how many sizes are tried, and of mirrored pictures
# How large pictures often are that were resized, relative to what they were: the commonest first.
RATIOS = ("3/4", "1/2", "2/3", "4/5", "9/10", "3/5", "7/10", "5/8", "5/6", "7/8", "17/20", "19/20", "3/2", "2", "5/4")
# Longest sides that pictures often have before they are enlarged.
SIDES = (
    *(64, 128, 160, 192, 200, 240, 256, 300, 320, 384, 400, 480, 500, 512, 600, 640, 720, 750, 768, 800, 900, 960),
    *(1000, 1024, 1080, 1200, 1280, 1440, 1500, 1536, 1600, 1920, 2000, 2048, 2400, 2560, 3000, 3840, 4096),
)
SMALLEST_RATIO, LARGEST_RATIO = 0.4, 2.0  # resized pictures; smaller ones have lost too much


class Place(NamedTuple):
    """How a picture relates to the picture as it was made."""

    size: tuple[int, int]  # the other picture's size
    crop: tuple[int, int] | None = None  # row and column of the first pixel in it; None for all of it, perhaps resized
    mirrored: bool = False


class Match(NamedTuple):
    """How well a picture agrees with the noise of a seed, or of the key of a mark."""

    z: float
    agreement: Tensor  # (1, 1, H, W)
    edited: Tensor  # likewise
    place: Place
    seed: int | bytes


class _Encoded(NamedTuple):
    x: Tensor  # the picture, from the first pixel on that lies on the grid of the latents
    latents: list[Tensor]  # each level scaled to an rms of 1
    covered: tuple[int, int]  # positions of the finest that lie in the picture
    margin: tuple[int, int]  # rows and columns before that pixel


class Examination:
    """Compares one picture ``(1, 3, H, W)`` with the noise of one seed, or of the key of a mark."""

    def __init__(
        self, run: Runner, flow: FlowModel, picture: Tensor, seed: int | bytes, size: tuple[int, int] | None
    ) -> None:
        self._run, self._flow, self._picture, self._seed = run, flow, picture, seed
        self._colors, samples = (flow.capabilities.source == kind for kind in ("luma", "none"))
        self._multiple = math.lcm(flow.size_multiple, flow.condition_scale)  # unit of sides it encodes
        self._unit = 1 if self._colors else self._multiple if samples else flow.condition_scale  # and of sides it makes
        side = flow.image_size[0] if flow.fixed_size and flow.image_size is not None else self._multiple
        self._factors = [side // shape[1] for shape in flow.latent_shapes(side, side)]  # pixels per position, by level
        self._known = self._check(size) if size is not None else flow.image_size if flow.fixed_size else None
        height, width = picture.shape[-2:]
        # what ``restore`` makes is larger than the photograph by a border that it crops, at the right and below
        ceiled = height + -height % self._unit, width + -width % self._unit
        is_restored = "rescale" in flow.capabilities.tasks and self._known in (None, ceiled)
        self._first = Place(ceiled, (0, 0)) if is_restored else Place(self._known or self._rounded(height, width))
        self._tries = 1
        self._drawn: tuple[list[Shape], int | bytes, list[Tensor]] = [], 0, []
        self._encoded: dict[Place, _Encoded] = {}

    def __call__(self, *, search: bool) -> Match:
        """Compare the picture with the noise as it is and, if they do not agree, in other sizes and places."""
        best = self._compare(self._first)
        if best.z < VERIFIED and search:
            for place in filter(None, (self._crop(), self._other_size())):
                best = max(best, self._compare(place), key=lambda match: match.z)
        return best._replace(z=bonferroni(best.z, self._tries))

    def among(self, seeds: Sequence[int], *, search: bool, report: Callable[[int], None]) -> Match:
        """Find the seed that agrees best with the picture as it is or, with ``search``, mirrored.

        ``report`` is called with numbers of seeds that were compared.
        """
        places = [self._first, self._first._replace(mirrored=True)] if search else [self._first]
        self._tries = len(places) * len(seeds)

        def count(compared: int) -> None:
            self._run.check_cancelled()
            report(compared)

        best, highest = (0, seeds[0]), -math.inf
        for number, self._seed in likely([self._whole(place).latents for place in places], seeds, count):
            self._run.check_cancelled()
            z = statistic(self._pairs(places[number]))
            if z > highest:
                best, highest = (number, self._seed), z
        number, self._seed = best
        match = self._compare(places[number])
        return match._replace(z=bonferroni(match.z, self._tries))

    def _check(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = height_and_width(size)
        if min(height, width) < 1 or max(height, width) > MAX_SIDE or height % self._unit or width % self._unit:
            raise FlowError(
                f"size must be that of a picture of this model, with sides divisible by {self._unit}; got "
                f"{height}x{width} (height x width). Give the size before the picture was resized or cropped."
            )
        return height, width

    def _rounded(self, height: float, width: float) -> tuple[int, int]:
        return max(1, round(height / self._unit)) * self._unit, max(1, round(width / self._unit)) * self._unit

    # --- one place ----------------------------------------------------------------------------------------------------

    def _compare(self, place: Place) -> Match:
        """Compare all of the picture with the noise."""
        (height, width), (x, _, covered, margin) = self._picture.shape[-2:], self._whole(place)
        pairs = self._pairs(place)
        local = local_statistics(pairs)
        agreement, rms = (plane[..., : covered[0], : covered[1]] for plane in (local.agreement, local.rms))
        detail = F.interpolate((x - blur(x, SMOOTH[0])).square().mean(1, keepdim=True), covered, mode="area")
        edited = edited_map(local._replace(agreement=agreement, rms=rms), blur(detail, local.window))
        maps = torch.cat([agreement, edited], 1)
        maps = resize_bilinear(maps, (height - margin[0], width - margin[1]))
        maps = F.pad(maps, (margin[1], 0, margin[0], 0), mode="replicate").clamp(-1, 1)
        maps = maps.flip(-1) if place.mirrored else maps
        return Match(statistic(pairs), maps[:, :1], maps[:, 1:], place, self._seed)

    def _whole(self, place: Place) -> _Encoded:
        """Encode all of the picture, once for each place."""
        if place not in self._encoded:
            top, left = (-start % self._multiple for start in place.crop or (0, 0))
            x = self._placed(place)[..., top:, left:]
            latents, covered = self._encode(x)
            self._encoded[place] = _Encoded(x, latents, covered, (top, left))
        return self._encoded[place]

    def _pairs(self, place: Place) -> list[tuple[Tensor, Tensor]]:
        """Pair the latents of all of the picture with the noise."""
        start = (a + b for a, b in zip(place.crop or (0, 0), self._whole(place).margin, strict=True))
        return self._paired(self._whole(place).latents, place, *start)

    def _placed(self, place: Place) -> Tensor:
        """Give the picture the size and orientation in which it was made."""
        x = self._picture.flip(-1) if place.mirrored else self._picture
        return x if place.crop is not None or x.shape[-2:] == place.size else resize(x, *place.size).clamp(0, 1)

    def _paired(self, latents: list[Tensor], place: Place, top: int, left: int) -> list[tuple[Tensor, Tensor]]:
        """Pair latents of a part that begins at (top, left) with the noise there."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for z, n, factor in zip(latents, self._noise(place.size, latents), self._factors, strict=False):
            row, column = top // factor, left // factor
            pairs.append((z, n[..., row : row + z.shape[-2], column : column + z.shape[-1]]))
        return pairs

    def _noise(self, size: tuple[int, int], latents: list[Tensor]) -> list[Tensor]:
        """Draw the noise of a picture of that size, as tasks do; colorings are encoded as a whole."""
        shapes: list[Shape] = [(z.shape[1], z.shape[2], z.shape[3]) for z in latents]
        if not self._colors:
            height, width = (math.ceil(side / self._multiple) * self._multiple for side in size)
            shapes = self._flow.latent_shapes(height, width)[: len(latents)]
        if self._drawn[:2] != (shapes, self._seed):
            seed, check = self._seed, self._run.check_cancelled
            is_key = isinstance(seed, bytes)
            noise = mark_noise(seed, shapes, check) if is_key else sample_latents(shapes, 1, 1.0, seed, check=check)
            self._drawn = shapes, seed, noise
        return self._drawn[2]

    def _encode(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Encode a picture to the latents that are drawn, each level scaled to an rms of 1.

        The second result is how many of the finest positions it covers.
        """
        run, compiled, m = self._run, self._run.compiled, self._multiple
        if self._colors:
            job = Colorization(run, self._flow, x, None, notes=False)
            cond = job.condition(slice(0, 1), None)
            latents = compiled.encode(job.chroma_on_grid(x, slice(0, 1)) + NEUTRAL, cond)
            rows, columns = (math.ceil(side * latents[0].shape[-1] / job.grid[1]) for side in job.chroma_size)
            return [*map(_scaled, latents)], (rows, columns)
        padded = pad_by_reflection(x, (0, -x.shape[-1] % m, 0, -x.shape[-2] % m))
        shapes = compiled.latent_shapes(*padded.shape[-2:])
        result = [torch.empty(1, *shape) for shape in (shapes[:-1] if compiled.predicts_lr else shapes)]
        tile, halo = math.ceil(TILE / m) * m, HALO * self._flow.condition_scale
        for rows, columns in tile_grid(*padded.shape[-2:], tile=tile, halo=halo, multiple=m):
            run.check_cancelled()
            part = padded[..., rows.halo_start : rows.halo_end, columns.halo_start : columns.halo_end]
            part = part.to(run.device, run.dtype)
            # the last latents of a flow that predicts the LR image are not drawn
            for whole, z, f in zip(result, compiled.encode(part, self._condition(part)), self._factors, strict=False):
                top, left = (rows.start - rows.halo_start) // f, (columns.start - columns.halo_start) // f
                target = whole[..., rows.start // f : rows.end // f, columns.start // f : columns.end // f]
                target[:] = z[..., top : top + target.shape[-2], left : left + target.shape[-1]].cpu().float()
        rows, columns = (math.ceil(side / self._factors[0]) for side in x.shape[-2:])
        return [*map(_scaled, result)], (rows, columns)

    def _condition(self, x: Tensor) -> Condition | None:
        """Encode the condition that a picture tells of itself: the picture, shrunk."""
        compiled = self._run.compiled
        if self._flow.capabilities.source != "low_resolution":
            return None
        rescales = "rescale" in self._flow.capabilities.tasks
        small = compiled.reduce(x) if rescales else downsample(x, self._flow.condition_scale)
        return compiled.encode_condition(small.clamp(0, 1))

    # --- other places -------------------------------------------------------------------------------------------------

    def _other_size(self) -> Place | None:
        """Try other sizes and mirrored pictures by parts of the picture, and return the best place."""
        is_known = self._known is not None or self._colors
        sizes = [self._first.size] if is_known else self._usual_sizes()[:MAX_SIZES]
        best, highest = None, -math.inf
        places = [*map(Place, sizes), *(Place(size, mirrored=True) for size in sizes[:MAX_MIRRORED])]
        for place in (place for place in places if place != self._first):
            self._run.check_cancelled()
            self._tries += 1
            z = self._parts(place)
            if z > highest:
                best, highest = place, z
            if z > SURE:
                break
        return best if highest > PROMISING else None

    def _parts(self, place: Place) -> float:
        """Compare a part of every quarter of the picture: one of them may have been edited."""
        x, m = self._placed(place), self._multiple
        if self._colors or self._flow.fixed_size:
            return statistic(self._paired(self._encode(x)[0], place, 0, 0))
        corners = product(*((side // 4 - PART // 2, 3 * side // 4 - PART // 2) for side in x.shape[-2:]))
        corners = dict.fromkeys((max(0, top) // m * m, max(0, left) // m * m) for top, left in corners)
        parts = [
            self._paired(self._encode(x[..., top : top + PART, left : left + PART])[0], place, top, left)
            for top, left in corners
        ]
        scores = [statistic(pairs) for pairs in parts]
        return sum(scores) / math.sqrt(len(scores))

    def _usual_sizes(self) -> list[tuple[int, int]]:
        """List sizes that the picture may have been made in, the commonest first, the present one included."""
        height, width = self._picture.shape[-2:]
        longest = max(height, width)
        scale = self._flow.condition_scale
        ratios = [1.0, *map(float, map(Fraction, RATIOS)), *(longest / (scale * side) for side in SIDES)]
        sizes = dict[tuple[int, int], None]()
        for ratio in ratios:
            size = self._rounded(height / ratio, width / ratio)
            same_shape = all(abs(a * ratio - b) <= 1 for a, b in zip(size, (height, width), strict=True))
            if SMALLEST_RATIO <= ratio <= LARGEST_RATIO and same_shape and max(size) <= MAX_SIDE:
                sizes[size] = None
        return [*sizes]

    def _crop(self) -> Place | None:
        """Find a cropped picture in the picture of known size, by the cross-correlation of the finest latents.

        These depend on where the grid of the squeeze lies, whose phases are tried, but hardly on that of the condition.
        """
        if self._known is None or self._colors:
            return None
        (height, width), shape, f, m = self._known, self._picture.shape[-2:], self._factors[0], self._multiple
        if min(shape) < SMALLEST_CROP or shape[0] > height or shape[1] > width or tuple(shape) == self._known:
            return None
        best, highest = None, -math.inf
        for mirrored, top, left in product((False, True), range(f), range(f)):
            self._run.check_cancelled()
            x = self._placed(Place(self._known, (0, 0), mirrored))[..., top:, left:]
            rows, columns = (min(CROP, side // m * m) for side in x.shape[-2:])
            latents = self._encode(x[..., :rows, :columns])[0]
            z = self._paired(latents, self._first, 0, 0)[0][0]
            correlation = cross_correlation(z, self._noise(self._known, latents)[0])
            # where all of the picture would lie within the other
            correlation = correlation[: (height - shape[0] + top) // f + 1, : (width - shape[1] + left) // f + 1]
            self._tries += correlation.numel()
            peak = int(correlation.argmax())
            if float(correlation.flatten()[peak]) > highest:
                highest, (row, column) = float(correlation.flatten()[peak]), divmod(peak, correlation.shape[1])
                best = Place(self._known, (max(0, row * f - top), max(0, column * f - left)), mirrored)
        return best


def _scaled(z: Tensor) -> Tensor:
    z = z.cpu().float().nan_to_num(0.0).clamp(-CLAMP, CLAMP)
    return z / z.square().mean().sqrt().clamp_min(1e-6)


def statistic(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Compute z from pairs of latents and noise, see ``verify``."""
    levels = [
        float((z * n).sum(dtype=torch.float64) / z.square().sum(dtype=torch.float64).sqrt().clamp_min(1e-6))
        for z, n in pairs
    ]
    return sum(levels) / math.sqrt(len(levels))


def bonferroni(z: float, tries: int) -> float:
    """Bonferroni-correct the maximum z of several tries: what is as unlikely for one try, or less likely than that."""
    return z if tries == 1 else math.sqrt(max(0.0, z * abs(z) - 2 * math.log(tries)))


def cross_correlation(z: Tensor, n: Tensor) -> Tensor:
    """Correlate latents ``(1, C, h, w)`` with noise ``(1, C, H, W)`` at every shift, as z-scores: ``(H, W)``."""
    size = n.shape[-2:]
    total = torch.zeros(size[0], size[1] // 2 + 1, dtype=torch.complex64)
    for a, b in zip(z[0], n[0], strict=True):  # channel by channel, for the memory
        total += torch.fft.rfft2(b) * torch.fft.rfft2(a, s=size).conj()
    return torch.fft.irfft2(total, s=size) / z.square().sum().sqrt()
