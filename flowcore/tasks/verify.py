"""Verify: was a picture made by this model from this seed, and where was it changed since?

A flow is inverted exactly, so a picture leads back to the noise that it was drawn from, and the seed draws that noise
again. Nothing is embedded in pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.image_batch import ImageBatch
from ..engine.options import HALO, SEED, ReportOptions, python
from ..engine.ranges import Setting
from ..engine.runner import Runner, runs_with
from ..engine.tiles import pad_by_reflection, tile_grid
from ..errors import FlowError, say
from ..flows.condition import Condition
from ..flows.mark import mark_key, mark_noise
from ..flows.model import FlowModel
from ..flows.prior import Shape, check_seed, height_and_width, sample_latents
from ..images.color import NEUTRAL
from ..images.motion import blur
from ..images.resize import downsample, resize, resize_bilinear
from .chroma import Colorization
from .edits import SMOOTH, Box, edited_map, largest_boxes, least_share, local_statistics
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

REFUSED = {
    "labels": "A picture of a model with labels is verified by `score` and `encode` with its label only.",
    "low_light": "A brightened picture lacks what its condition, the dark photograph, shows.",
}
COLD = "A picture drawn at temperature 0 depends on no seed, so it cannot be verified."


@dataclass(frozen=True, eq=False, kw_only=True)
class Verification:
    """Whether pictures were made from a seed, or bear a mark. All tensors are on the CPU.

    Attributes:
        z: Agreement of the latents with the noise, ``(B,)``, float64: standard normal for pictures of any other origin,
            after allowance for the sizes and places that were tried (Bonferroni); 0 where that leaves nothing.
        verified: Whether z is at least 6, ``(B,)``, bool.
        agreement: Correlation of latents and noise near every pixel, ``(B, 1, H, W)`` in [-1, 1]: near 0 where a
            picture was edited. It is the more blurred, the weaker the agreement is.
        edited: How far agreement is below what is usual for such detail in the picture, ``(B, 1, H, W)`` in [0, 1]: 1
            where a picture was edited, 0 where nothing speaks for that; 1 all over pictures that are not verified.
        offset: Row and column of the picture's first pixel in the picture as it was made, ``(B, 2)``; 0 unless it is a
            crop.
        size: Height and width of the picture as it was made, ``(B, 2)``.
        mirrored: Whether it was mirrored since, left to right, ``(B,)``, bool.
    """

    z: Tensor
    verified: Tensor
    agreement: Tensor
    edited: Tensor
    offset: Tensor
    size: Tensor
    mirrored: Tensor

    @property
    def edited_share(self) -> Tensor:
        """Share of the pixels where ``edited`` is above 0.5, ``(B,)``, float64."""
        return (self.edited > 0.5).double().mean((1, 2, 3))

    @property
    def is_edited(self) -> Tensor:
        """Whether a verified picture has more of that than most unedited ones, see ``edits.EDITED``; ``(B,)``, bool."""
        least = [least_share(level) for level in self.agreement.mean((1, 2, 3)).tolist()]
        return self.verified & (self.edited_share >= torch.tensor(least, dtype=torch.float64))

    @property
    def boxes(self) -> list[list[Box]]:
        """The three most edited places of each edited picture: left, top, right and bottom in its pixels."""
        height, width = self.edited.shape[-2:]
        maps = zip((self.edited[:, 0] > 0.5).float(), self.is_edited.tolist(), strict=True)
        return [largest_boxes(each, (height, width)) if is_edited else [] for each, is_edited in maps]


@dataclass(frozen=True, kw_only=True)
class VerifySettings(ReportOptions):
    """Options of ``verify``."""

    seed: Annotated[
        int | Sequence[int],
        SEED._replace(
            help="One for all pictures, or a list with that of each; sample s of an image was drawn with ``seed + s``."
        ),
    ] = 0
    mark: Annotated[
        str | None,
        Setting(
            unit="phrase",
            help="A phrase that the pictures are thought to bear, see ``prior.sample_latents``; ``seed`` is then "
            "ignored.",
        ),
    ] = None
    source: Annotated[
        Tensor | None,
        python(
            "What the pictures were made from, one or B images: their size tells that of the pictures. Needed for "
            "crops, unless ``size`` is given."
        ),
    ] = None
    size: Annotated[
        tuple[int, int] | None,
        python(
            "Height and width of the pictures as the model made them, before they were resized or cropped. None for "
            "their present size, and for usual ones."
        ),
    ] = None
    search: Annotated[
        bool,
        python("Whether to try other sizes, crops and mirrored pictures if the pictures as they are do not agree."),
    ] = True


@runs_with(VerifySettings)
def verify(flow: FlowModel, pictures: Tensor, settings: VerifySettings) -> Verification:
    """Verify that pictures were made by a model from a seed, however they were stored, and show where they were edited.

    A picture is encoded, an enlargement given its own shrunk version, a coloring given its luma. For every level of the
    latents z, clamped to 4, and the noise n of the seed::

        z_level = sum(z n) / sqrt(sum(z^2))        z = sum over levels of z_level / sqrt(levels)

    which is standard normal if z and n are independent. Pictures may have been recompressed, resized, mirrored, or
    edited in part; cropped, too, if their size before is known. Settings other than the seed need not be known, but at
    temperature 0 there is no noise to verify.

    >>> flow = flowcore.load("glow-photos")
    >>> pictures = flowcore.sample(flow, 2, size=(64, 96), seed=7)
    >>> flowcore.verify(flow, pictures, seed=[7, 8]).verified.tolist()
    [True, True]

    Args:
        flow: The model that is thought to have made them: one that enlarges, colorizes, restores (``restore``, at a
            temperature above 0) or samples, without labels.
        pictures: ``(B, C, H, W)`` in [0, 1], as in ``upscale``.
        settings: The options below, by name.

    Returns:
        The verification.

    Raises:
        FlowError: If the model makes no such pictures, the size is not one that it makes, or there is neither one seed
            nor one for each picture.
        ImageError: If the batch is empty, has a wrong number of channels, or values that are not numbers.

    Source: ours.
    """
    kind = flow.capabilities.source
    if kind in REFUSED or not flow.capabilities.tasks & {"upscale", "colorize", "sample", "rescale"}:
        raise FlowError(
            f"verify is for models that enlarge, colorize, restore, or sample without labels; got a "
            f"{flow.architecture} model. {REFUSED.get(kind, '')}".rstrip()
        )
    seed, mark, source, size = settings.seed, settings.mark, settings.source, settings.size
    seeds = [*map(check_seed, seed if isinstance(seed, Sequence) else [seed])]
    key = None if mark is None else mark_key(mark)
    if source is not None and size is None:
        height, width = source.shape[-2:]
        size = height * flow.condition_scale, width * flow.condition_scale
    run = Runner(flow, settings, say("Pass fewer or smaller images."), pictures)

    def task() -> Verification:
        rgb = ImageBatch(pictures, run.notify).extended_rgb.cpu()
        run.expect(len(rgb))
        if len(seeds) not in (1, len(rgb)):
            raise FlowError(f"seed must be one, or one for each of {len(rgb)} pictures; got {len(seeds)} seeds.")
        results: list[_Match] = []
        sources = seeds * (len(rgb) // len(seeds)) if key is None else [key] * len(rgb)
        for picture, drawn_with in zip(rgb.split(1), sources, strict=True):
            results.append(_Examination(run, flow, picture, drawn_with, size)(search=settings.search))
            run.advance()
        z = torch.tensor([result.z for result in results], dtype=torch.float64)
        return Verification(
            z=z,
            verified=z >= VERIFIED,
            agreement=torch.cat([result.agreement for result in results]),
            edited=torch.cat([each.edited if each.z >= VERIFIED else torch.ones_like(each.edited) for each in results]),
            offset=torch.tensor([result.place.crop or (0, 0) for result in results]),
            size=torch.tensor([result.place.size for result in results]),
            mirrored=torch.tensor([result.place.mirrored for result in results]),
        )

    return run.retry_on_oom(task)


def may_be_crops(flow: FlowModel, pictures: Tensor) -> bool:
    """Tell whether ``verify`` would find where pictures ``(B, C, H, W)`` were cropped, if their size were given."""
    return min(pictures.shape[-2:]) >= SMALLEST_CROP and flow.capabilities.source != "luma"


class _Place(NamedTuple):
    """How a picture relates to the picture as it was made."""

    size: tuple[int, int]  # the other picture's size
    crop: tuple[int, int] | None = None  # row and column of the first pixel in it; None for all of it, perhaps resized
    mirrored: bool = False


class _Match(NamedTuple):
    z: float
    agreement: Tensor  # (1, 1, H, W)
    edited: Tensor  # likewise
    place: _Place


class _Examination:
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
        self._first = _Place(ceiled, (0, 0)) if is_restored else _Place(self._known or self._rounded(height, width))
        self._tries = 1
        self._drawn: tuple[list[Shape], list[Tensor]] = [], []

    def __call__(self, *, search: bool) -> _Match:
        best = self._compare(self._first)
        if best.z < VERIFIED and search:
            for place in filter(None, (self._crop(), self._other_size())):
                best = max(best, self._compare(place), key=lambda match: match.z)
        return best._replace(z=bonferroni(best.z, self._tries))

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

    def _compare(self, place: _Place) -> _Match:
        """Compare all of the picture with the noise."""
        height, width = self._picture.shape[-2:]
        margin = tuple(-start % self._multiple for start in place.crop or (0, 0))  # the latents' grid starts there
        x = self._placed(place)[..., margin[0] :, margin[1] :]
        latents, covered = self._encode(x)
        pairs = self._paired(latents, place, *(a + b for a, b in zip(place.crop or (0, 0), margin, strict=True)))
        local = local_statistics(pairs)
        agreement, rms = (plane[..., : covered[0], : covered[1]] for plane in (local.agreement, local.rms))
        detail = F.interpolate((x - blur(x, SMOOTH[0])).square().mean(1, keepdim=True), covered, mode="area")
        edited = edited_map(local._replace(agreement=agreement, rms=rms), blur(detail, local.window))
        maps = torch.cat([agreement, edited], 1)
        maps = resize_bilinear(maps, (height - margin[0], width - margin[1]))
        maps = F.pad(maps, (margin[1], 0, margin[0], 0), mode="replicate").clamp(-1, 1)
        maps = maps.flip(-1) if place.mirrored else maps
        return _Match(statistic(pairs), maps[:, :1], maps[:, 1:], place)

    def _placed(self, place: _Place) -> Tensor:
        """Give the picture the size and orientation in which it was made."""
        x = self._picture.flip(-1) if place.mirrored else self._picture
        return x if place.crop is not None or x.shape[-2:] == place.size else resize(x, *place.size).clamp(0, 1)

    def _paired(self, latents: list[Tensor], place: _Place, top: int, left: int) -> list[tuple[Tensor, Tensor]]:
        """Pair latents of a part that begins at (top, left), scaled to an rms of 1, with the noise there."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for z, n, factor in zip(latents, self._noise(place.size, latents), self._factors, strict=False):
            row, column = top // factor, left // factor
            z = z.nan_to_num(0.0).clamp(-CLAMP, CLAMP)
            z = z / z.square().mean().sqrt().clamp_min(1e-6)
            pairs.append((z, n[..., row : row + z.shape[-2], column : column + z.shape[-1]]))
        return pairs

    def _noise(self, size: tuple[int, int], latents: list[Tensor]) -> list[Tensor]:
        """Draw the noise of a picture of that size, as tasks do; colorings are encoded as a whole."""
        shapes: list[Shape] = [(z.shape[1], z.shape[2], z.shape[3]) for z in latents]
        if not self._colors:
            height, width = (math.ceil(side / self._multiple) * self._multiple for side in size)
            shapes = self._flow.latent_shapes(height, width)[: len(latents)]
        if self._drawn[0] != shapes:
            seed, check = self._seed, self._run.check_cancelled
            is_key = isinstance(seed, bytes)
            noise = mark_noise(seed, shapes, check) if is_key else sample_latents(shapes, 1, 1.0, seed, check=check)
            self._drawn = shapes, noise
        return self._drawn[1]

    def _encode(self, x: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Encode a picture to the latents that are drawn; and say how many of the finest positions it covers."""
        run, compiled, m = self._run, self._run.compiled, self._multiple
        if self._colors:
            job = Colorization(run, self._flow, x, None, notes=False)
            cond = job.condition(slice(0, 1), None)
            latents = compiled.encode(job.chroma_on_grid(x, slice(0, 1)) + NEUTRAL, cond)
            rows, columns = (math.ceil(side * latents[0].shape[-1] / job.grid[1]) for side in job.chroma_size)
            return [z.cpu().float() for z in latents], (rows, columns)
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
        return result, (math.ceil(x.shape[-2] / self._factors[0]), math.ceil(x.shape[-1] / self._factors[0]))

    def _condition(self, x: Tensor) -> Condition | None:
        """Encode the condition that a picture tells of itself: the picture, shrunk."""
        compiled = self._run.compiled
        if self._flow.capabilities.source != "low_resolution":
            return None
        rescales = "rescale" in self._flow.capabilities.tasks
        small = compiled.reduce(x) if rescales else downsample(x, self._flow.condition_scale)
        return compiled.encode_condition(small.clamp(0, 1))

    # --- other places -------------------------------------------------------------------------------------------------

    def _other_size(self) -> _Place | None:
        """Try other sizes and mirrored pictures by parts of the picture, and return the best place."""
        is_known = self._known is not None or self._colors
        sizes = [self._first.size] if is_known else self._usual_sizes()[:MAX_SIZES]
        best, highest = None, -math.inf
        places = [*map(_Place, sizes), *(_Place(size, mirrored=True) for size in sizes[:MAX_MIRRORED])]
        for place in (place for place in places if place != self._first):
            self._run.check_cancelled()
            self._tries += 1
            z = self._parts(place)
            if z > highest:
                best, highest = place, z
            if z > SURE:
                break
        return best if highest > PROMISING else None

    def _parts(self, place: _Place) -> float:
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

    def _crop(self) -> _Place | None:
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
            x = self._placed(_Place(self._known, (0, 0), mirrored))[..., top:, left:]
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
                best = _Place(self._known, (max(0, row * f - top), max(0, column * f - left)), mirrored)
        return best


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
