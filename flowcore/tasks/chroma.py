"""From the luma of photographs to their chroma, at the working size, and back to pictures.

luma -> working size -> condition (+ hints) -> flow: latents <-> chroma -> size of the image, beside the luma
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.color_memory import ColorMemory
from ..condition import Condition
from ..device import float64
from ..errors import FlowError, ShapeError
from ..images import color
from ..images.color import NEUTRAL
from ..images.resize import limit_shorter_side, pad_symmetric, resize_bilinear
from ..likelihood import select_items
from ..model import FlowModel
from ..networks import LumaEncoder
from ..networks.luma import STRIDE
from ..networks.memory import CELL
from ..prior import Shape
from . import overflow
from .defaults import with_defaults
from .hints import Hints, average_covered, check_items, covered_planes, spread_hints
from .image_batch import ImageBatch
from .runner import Runner
from .scans import clear_borders, fill_borders, find_border, is_tinted

Gamut = Literal["compress", "clip"]
Change = Callable[[Condition, int, Tensor], Tensor]
"""Changes what a level decodes to, given the condition; see ``between`` of ``Flow.inverse``."""

MAX_ASPECT = 4  # the longer side of a working image is at most so many times ``working_size``
MAX_DEVIATION = 2.0  # of chroma; at temperature 1 no coloring of the shipped model goes beyond 0.6
COLORED = 2 / 255  # chroma above which a picture counts as colored
MAX_CHROMA = 0.501  # no color in the RGB cube has more, but for rounding
TINT_SIDE = 64  # shorter side of the image that is checked for a tint
SIMILAR = 0.6, 0.85  # similarity at which colors of a memory that was given begin to count, and count fully
COVERED = 0.999  # coverage from which on a locked hint is met exactly
MAX_POSITIONS = 4096  # of a grid with coherent noise: its Cholesky factor takes time by the cube of their number
JITTER = 1e-4  # added to the diagonal of that noise's covariance, so that the factor exists


def schedule(palette: float, detail: float, levels: int) -> list[float]:
    """Interpolate temperatures geometrically from ``detail``, at the finest level, to ``palette``, at the coarsest."""
    if levels == 1:
        return [palette]
    parts = [k / (levels - 1) for k in range(levels)]  # 0 at the finest
    return [detail ** (1 - part) * palette**part for part in parts]


def working_sides(height: int, width: int, short: int) -> tuple[int, int]:
    """Compute the working size of an image: its proportions, ``short`` as shorter side, in multiples of ``STRIDE``."""
    factor = min(short / min(height, width), MAX_ASPECT * short / max(height, width))
    rows, columns = (max(1, round(side * factor / STRIDE)) * STRIDE for side in (height, width))
    return rows, columns


@dataclass(frozen=True)
class HintPlanes:
    """Hints of B images at the padded working size (h, w): what the encoder reads."""

    planes: Tensor  # see ``covered_planes``, (B, 3, h, w)
    palette: Tensor  # (B, 4)
    lock: bool

    def pooled(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Average coverage and wanted chroma over the cells of a grid."""
        return average_covered(F.adaptive_avg_pool2d(self.planes, (size[0], size[1])))


class Colorization:
    """Photographs, or frames, on their way through a colorizer.

    With ``encoding``, their own colors are used; with ``decoding``, those of latents, whatever colors they have.
    """

    def __init__(
        self,
        run: Runner,
        flow: FlowModel,
        image: Tensor,
        working_size: int | None,
        *,
        encoding: bool = False,
        decoding: bool = False,
        frames: bool = False,
        memory: ColorMemory | None = None,
    ) -> None:
        flow.require("colorize")
        size = flow.config.working_size if working_size is None else working_size
        if not 16 <= size <= 4096:
            raise FlowError(f"working_size must lie between 16 and 4096 pixels; got {size}.")
        self.run, self.flow, self._image_device = run, flow, image.device
        self.clamp: Change = partial(clamp_level, flow)
        images = ImageBatch(image)
        rgb, self._alpha = images.visible, images.alpha
        self.y = color.luma(images.rgb)  # (B, 1, H, W)
        self._inside = [None if frames else find_border(one) for one in rgb.split(1)]  # photographs within borders
        self._guide = fill_borders(color.luma(rgb), self._inside)  # the luma that colors are decided and enlarged by
        if not encoding:
            self._notify_of_scans(None if decoding or image.shape[1] == 1 else rgb)
        rows, columns = self._working = working_sides(self.y.shape[-2], self.y.shape[-1], size)
        multiple = flow.config.source_multiple
        self._padded = -(-rows // multiple) * multiple, -(-columns // multiple) * multiple
        self.grid = self._padded[0] // STRIDE, self._padded[1] // STRIDE
        self.chroma_size = rows // STRIDE, columns // STRIDE
        self._small_y = resize_bilinear(self._guide, self._working)  # (B, 1, h, w)
        self.shapes: list[Shape] = flow.latent_shapes(*self.grid)
        self.repairs = overflow.OverflowCounts()
        encoder = flow.encoder
        own = encoder.memory if isinstance(encoder, LumaEncoder) else None
        self.has_parts = own is not None and memory is None  # whether every seed remembers another part
        self._places = own if memory is None else copy.deepcopy(memory.places).to(run.device)
        self._cells = None if self._places is None else self._places.all_cells()
        self._sees_recalled = own is not None  # the encoder has input channels for what was recalled

    def resolve(self, **settings: Any) -> tuple[list[float], float, float]:
        """Fill in what the model states: temperatures by level, coherence, and a factor on the chroma before hints."""
        own = with_defaults(self.flow, settings)
        for name in ("temperature", "detail"):
            if not (math.isfinite(own[name]) and own[name] >= 0):
                raise FlowError(f"{name} must be a finite number >= 0; got {own[name]}.")
        if not 0 <= own["coherence"] <= 1:
            raise FlowError(f"coherence must lie in [0, 1]; got {own['coherence']}. 0 draws every place for itself.")
        taus = schedule(own["temperature"], own["detail"], len(self.shapes))
        return taus, own["coherence"], own["saturation"] if settings["saturation"] is None else 1.0

    def hint_planes(self, hints: Hints | None, part: slice) -> HintPlanes | None:
        """Resize the hints of some images to the working size."""
        if hints is None:
            return None
        count = len(self.y[part])
        planes = torch.zeros(count, 3, *self._padded, device=self.run.device)
        palette = torch.zeros(count, 4, device=self.run.device)
        if hints.coverage is not None and hints.chroma is not None:
            covered = covered_planes(hints.coverage, hints.chroma).float()
            covered = covered[part] if len(covered) > 1 else covered
            height, width = self._working
            planes[..., :height, :width] = resize_bilinear(covered, self._working).to(self.run.device)
        if hints.palette is not None:
            palette[:] = (hints.palette[part] if len(hints.palette) > 1 else hints.palette).to(self.run.device)
        return HintPlanes(planes, palette, hints.lock)

    def resize_latents(self, latents: Sequence[Tensor], number: int) -> list[Tensor]:
        """Bring the latents of image ``number``, of any size, to this size: the nearest position of every level."""
        if [(z.ndim, *z.shape[1:2]) for z in latents] != [(4, shape[0]) for shape in self.shapes]:
            raise ShapeError(
                f"Expected {len(self.shapes)} levels of latents with {', '.join(str(s[0]) for s in self.shapes)} "
                f"channels; got {[tuple(z.shape) for z in latents]}. Encode them with this model."
            )
        items = [len(z) for z in latents]
        check_items("latents", items[0], len(self.y))
        if len(set(items)) > 1:
            raise ShapeError(f"Expected latents of as many items on every level; got {items}.")
        item = number if items[0] > 1 else 0
        return [
            F.interpolate(z[item : item + 1].to(self.run.dtype), shape[1:], mode="nearest").to(self.run.device)
            for z, shape in zip(latents, self.shapes, strict=True)
        ]

    def condition(self, part: slice, hints: HintPlanes | None, seeds: Sequence[int] = ()) -> Condition:
        """Encode luma and hints of some images; with seeds, of one, with what each seed's part of memory recalls."""
        source = _pad(self._small_y[part].to(self.run.device), self._padded)
        recalled, config = None, self.flow.config
        if seeds or (self._sees_recalled and not self.has_parts):
            recalled = self._recall(source, seeds, config.memory_share, config.memory_neighbors)
        if hints is not None or recalled is not None:
            given = hints or HintPlanes(source.new_zeros(1, 3, 1, 1), source.new_zeros(1, 4), lock=False)
            planes = given.planes.expand(len(source), -1, *self._padded)
            palette = given.palette[:, :, None, None].expand(len(source), -1, *self._padded)
            source = torch.cat([source, planes, palette], dim=1)  # (B, 1 + 3 + 4, h, w)
        if recalled is not None:
            blocks = recalled.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
            source = torch.cat([source.expand(len(blocks), -1, -1, -1), blocks], dim=1)  # (B, 8 + 5, h, w)
        cond = self.run.plan.encode_condition(source.to(self.run.dtype))
        self.run.advance()
        return cond.map_tensors(lambda t: t.to(self.run.dtype))

    def _recall(self, y: Tensor, seeds: Sequence[int], share: float, neighbors: int) -> Tensor:
        """Look up padded luma ``(B, 1, h, w)`` in all of the memory; with seeds, one image in each seed's part."""
        assert self._places is not None
        assert self._cells is not None
        assert isinstance(self.flow.encoder, LumaEncoder)
        described = self.flow.encoder.describe(y.to(self.run.dtype)).float()
        if not seeds:
            return self._places.look_up(described, self._cells)
        parts = (self._cells.among(self._places.part(seed, share)) for seed in seeds)
        return torch.cat([self._places.look_up(described, part, neighbors) for part in parts])

    def chroma_on_grid(self, image: Tensor, part: slice) -> Tensor:
        """Resize the chroma of colored images, as many as the part, to the padded finest grid, centered on 0."""
        rgb = fill_borders(ImageBatch(image).visible, self._inside[part])
        chroma = resize_bilinear(color.split(rgb)[1], self.chroma_size)
        return _pad(chroma.to(self.run.device, self.run.dtype), self.grid)

    def luma_on_grid(self, part: slice) -> Tensor:
        """Resize the luma of some images to the finest grid, ``(B, 1, h, w)``."""
        return resize_bilinear(self._small_y[part], self.chroma_size).to(self.run.device)

    def decode(self, z: Sequence[Tensor], cond: Condition, *changes: Change | None) -> Tensor:
        """Decode latents to chroma of ``chroma_size``, centered on 0, with changes between the levels."""

        def between(level: int, x: Tensor) -> Tensor:
            for change in filter(None, changes):
                x = change(cond, level, x)
            return x

        decoded = self.run.plan.inverse([level.to(self.run.dtype) for level in z], cond, between)
        return (decoded - NEUTRAL)[..., : self.chroma_size[0], : self.chroma_size[1]]

    def decode_guarded(self, first: int, z: Sequence[Tensor], cond: Condition, hints: HintPlanes | None) -> Tensor:
        """Decode pictures, from number ``first`` on, with latents scaled down where they overflow; see ``overflow``."""

        def attempt(latents: Sequence[Tensor], items: Tensor | None) -> tuple[Tensor, Tensor | None]:
            overflows: list[Tensor] = []  # by level

            def mark(cond: Condition, level: int, x: Tensor) -> Tensor:
                chroma = _chroma_of_level(self.flow, cond, level, x)
                overflows.append(~(chroma.abs() <= MAX_DEVIATION).all(1, keepdim=True))
                return x

            shared = cond if items is None else select_items(cond, items)
            chroma = self.decode(latents, shared, mark, self.clamp, self.locking(hints))
            if not torch.stack([mask.any() for mask in overflows]).any():
                return chroma, None
            anywhere = torch.stack([F.interpolate(mask.float(), self.grid) for mask in overflows]).amax(0) > 0
            return chroma, anywhere[..., : self.chroma_size[0], : self.chroma_size[1]]

        decoded = overflow.decode_with_backoff(attempt, z, lambda: torch.zeros(1, 2, 1, 1))
        self.repairs.add(first, decoded.attenuated, decoded.filled)
        return decoded.images

    def remembered(self, memory: ColorMemory, part: slice, seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Look up, in the given memory or each seed's part, coverage and wanted chroma on the padded finest grid."""
        y = _pad(self._small_y[part].to(self.run.device), self._padded)
        found = self._recall(y, seeds, memory.share, memory.neighbors)
        found = F.interpolate(found, self.grid, mode="bilinear")
        low, high = SIMILAR
        trust = ((found[:, 4:] - low) / (high - low)).clamp(0, 1)
        return list(zip((memory.weight * trust).split(1), found[:, :2].split(1), strict=True))

    def follow(self, drawn: Tensor, part: slice, cond: Condition, asked: tuple[Tensor, Tensor], steps: float) -> Tensor:
        """Spread ``asked`` colors, coverage and chroma on a padded finest grid, over drawn chroma ``(B, 2, h, w)``."""
        height, width = self.chroma_size
        covered, wanted = (plane[..., :height, :width] for plane in asked)
        features = cond.features[0]
        assert isinstance(features, Tensor)
        f = features[:1, : self.flow.config.features].float()
        f = (f - f.mean((2, 3), keepdim=True)) / f.std((2, 3), keepdim=True).clamp_min(1e-6)
        f = F.interpolate(f, self.grid, mode="bilinear")[..., :height, :width]
        small_y = self.luma_on_grid(part)
        return drawn + spread_hints(wanted - drawn, covered, f, small_y, steps, self.run.check_cancelled)

    def locking(self, hints: HintPlanes | None) -> Change | None:
        """Make the change between levels that puts locked colors in place of decoded ones in cells covered by hints."""
        if hints is None or not hints.lock:
            return None

        def change(cond: Condition, level: int, x: Tensor) -> Tensor:
            covered, chroma = hints.pooled(x.shape[-2:])
            return torch.where(covered > COVERED, _level_of_chroma(self.flow, cond, level, chroma).to(x), x)

        return change

    def finish(self, drawn: Tensor, part: slice, hints: Hints | None, saturation: float | None, gamut: Gamut) -> Tensor:
        """Enlarge drawn chroma to the size of the images, and merge it with their luma."""
        y, guide = self.y[part].to(self.run.device), self._guide[part].to(self.run.device)
        full = enlarge(drawn.float(), resize_bilinear(guide, self.chroma_size), guide)
        full = full if saturation is None else full * saturation
        if hints is not None and hints.lock and hints.coverage is not None and hints.chroma is not None:
            one = len(hints.coverage) == 1
            coverage, target = (t if one else t[part] for t in (hints.coverage, hints.chroma))
            full = _lock(full, coverage.to(full), target.to(full))
        full = clear_borders(full, self._inside[part])
        alpha = None if self._alpha is None else self._alpha[part].to(self.run.device)
        return merge(y, full, alpha, gamut).to(self._image_device)

    def _notify_of_scans(self, rgb: Tensor | None) -> None:
        """Tell the caller what is ignored of the images: colors, a tint, a border."""
        tinted = False
        for one, inside in zip(() if rgb is None else rgb.split(1), self._inside, strict=False):
            photograph = one if inside is None else one[inside]
            if float(color.split(photograph)[1].abs().max()) > COLORED:
                if is_tinted(limit_shorter_side(photograph, TINT_SIDE)):
                    tinted = True
                else:
                    self.run.notify("The picture is in color: its luma is used, its colors are not.")
        if tinted:
            self.run.notify("The picture is a tinted gray one, such as sepia: its luma is used, the tint is ignored.")
        if any(self._inside):
            self.run.notify("The picture has a plain border: it stays gray, and colors are decided without it.")


def clamp_level(flow: FlowModel, cond: Condition, level: int, x: Tensor) -> Tensor:
    """Clamp a level's means of chroma to what RGB colors have; beyond, each level would go further, up to infinity."""
    chroma = _chroma_of_level(flow, cond, level, x)
    possible = chroma.nan_to_num(0, MAX_CHROMA, -MAX_CHROMA).clamp(-MAX_CHROMA, MAX_CHROMA)
    changed = _level_of_chroma(flow, cond, level, possible).to(x)
    return torch.where((possible == chroma).all(1, keepdim=True), x, changed)


def _chroma_of_level(flow: FlowModel, cond: Condition, level: int, x: Tensor) -> Tensor:
    """Convert what a level decodes to into means of chroma: the inverse of ``_level_of_chroma``."""
    assert flow.prelude is not None
    return flow.prelude.inverse(x / 2**level + _origin_of_level(cond, level)) - NEUTRAL


def _level_of_chroma(flow: FlowModel, cond: Condition, level: int, chroma: Tensor) -> Tensor:
    """Convert means of chroma as the flow has them: whitened, relative to the origin, doubled by every Haar step."""
    assert flow.prelude is not None
    return (flow.prelude(chroma + NEUTRAL)[0] - _origin_of_level(cond, level)) * 2**level


def _origin_of_level(cond: Condition, level: int) -> Tensor | float:
    return 0.0 if cond.origin is None else F.avg_pool2d(cond.origin, 2**level)


def blend_latents(drawn: Sequence[Tensor], given: Sequence[Tensor], strength: float, levels: int) -> list[Tensor]:
    """Mix given latents into the ``levels`` coarsest drawn ones, 0 for all; ``strength`` is their share of variance."""
    first = len(drawn) - (levels or len(drawn))
    return [
        z if number < first else math.sqrt(strength) * other.to(z) + math.sqrt(1 - strength) * z
        for number, (z, other) in enumerate(zip(drawn, given, strict=True))
    ]


def enlarge(chroma: Tensor, small_y: Tensor, y: Tensor) -> Tensor:
    """Resize chroma (h, w) to the luma of an image (H, W), along its edges; ``small_y`` is that luma at (h, w)."""
    if chroma.shape[-2] > y.shape[-2] or chroma.shape[-1] > y.shape[-1]:
        return resize_bilinear(chroma, y.shape[-2:])
    return color.enlarge_chroma(chroma, small_y, y)


def merge(y: Tensor, chroma: Tensor, alpha: Tensor | None, gamut: Gamut) -> Tensor:
    """Merge luma, chroma and alpha of 1 or B pictures each into colors of the RGB cube: ``(B, C, H, W)``, C 3 or 4."""
    count = max(len(y), len(chroma))
    y, chroma = y.expand(count, -1, -1, -1), chroma.expand(count, -1, -1, -1)
    rgb = color.compress(y, chroma) if gamut == "compress" else color.clip(y, chroma)
    return rgb if alpha is None else torch.cat([rgb, alpha.to(rgb).expand(count, -1, -1, -1)], dim=1)


def check_colors(saturation: float | None, gamut: str, latents_strength: float = 0.0, latents_levels: int = 0) -> None:
    """Raise FlowError if saturation, gamut, or how latents are blended is out of its range."""
    if not 0 <= latents_strength <= 1:
        raise FlowError(f"latents_strength must lie in [0, 1]; got {latents_strength}.")
    if latents_levels < 0:
        raise FlowError(f"latents_levels must be at least 0, which means all; got {latents_levels}.")
    if saturation is not None and not (math.isfinite(saturation) and saturation >= 0):
        raise FlowError(f"saturation must be a finite number >= 0; got {saturation}.")
    if gamut not in ("compress", "clip"):
        raise FlowError(f"gamut must be compress or clip; got {gamut!r}.")


def _lock(chroma: Tensor, coverage: Tensor, target: Tensor) -> Tensor:
    """Replace chroma by the wanted one where it is covered, and let the correction fade out around."""
    planes = resize_bilinear(covered_planes(coverage, target), chroma.shape[-2:])
    coverage, target = average_covered(planes.expand(len(chroma), -1, -1, -1))
    reach = max(1, min(chroma.shape[-2:]) // 64)  # a pixel of the finest grid or two
    # the mean correction, weighted by how much of the neighborhood is covered
    around = F.avg_pool2d(coverage * (target - chroma), 2 * reach + 1, 1, reach)
    return torch.where(coverage > COVERED, target, chroma + around)


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Continue an image symmetrically on the right and at the bottom."""
    height, width = size
    return pad_symmetric(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def coherent_factor(features: Tensor, coherence: float, scales: tuple[float, float]) -> Tensor | None:
    """Factorize the covariance of noise that similar places share, so that what belongs together gets one color.

    The noise of the coarsest grid is a Gaussian process over its positions, each standard normal, with the covariance

        K_ij = rho exp(-|f_i - f_j|^2 / (2 s^2 C)) exp(-|p_i - p_j|^2 / (2 l^2)) + (1 - rho) delta_ij

    of the C features f ``(1, C, h, w)``, standardized over the photograph, and places p in cells; s and l are the
    scales, rho the coherence. Lower triangular, ``(h * w, h * w)``; None if the noise stays independent.

    Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2 and 4; Ardizzone et al.
    2019, section 4.2, whose dense tail shares one draw over the picture. That the features tell what belongs together
    is ours.
    """
    _, channels, height, width = features.shape
    if coherence == 0 or not 1 < height * width <= MAX_POSITIONS:
        return None
    f = float64(features[0].flatten(1)).cpu().T  # (positions, C)
    f = (f - f.mean(0)) / f.std(0, correction=0).clamp_min(1e-6)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).double()
    length, reach = scales
    exponent = _squared_distances(f) / (2 * length**2 * channels) + _squared_distances(places) / (2 * reach**2)
    covariance = coherence * torch.exp(-exponent)
    covariance.diagonal().fill_(1 + JITTER)
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor / factor.norm(dim=1, keepdim=True)


def make_coherent(noise: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply independent noise ``(B, C, h, w)`` by a factor, which keeps the distribution at every position."""
    if factor is None:
        return noise
    return (float64(noise).flatten(2) @ factor.to(noise.device).T).view(noise.shape).to(noise.dtype)


def share_noise(flow: FlowModel, noise: Tensor, cond: Condition, coherence: float) -> Tensor:
    """Let similar places share the coarsest noise ``(B, C, h, w)``, with the scales that the colorizer states."""
    features, config = cond.features[-1], flow.config
    assert isinstance(features, Tensor)
    return make_coherent(noise, coherent_factor(features[:, : config.features], coherence, config.coherence_scales))


def _squared_distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
