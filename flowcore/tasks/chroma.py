"""The steps of colorization: luma at the working size, chroma from a flow, and both merged into pictures.

luma -> working size -> condition (+ hints) -> flow: latents <-> chroma -> size of the image -> merged with the luma
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..engine import overflow
from ..engine.defaults import with_defaults
from ..engine.image_batch import ImageBatch
from ..engine.options import SEED, RunOptions, python
from ..engine.ranges import Setting, count, nonnegative, share
from ..engine.runner import Runner
from ..errors import ShapeError, say
from ..flows.condition import Condition
from ..flows.likelihood import select_items
from ..flows.model import FlowModel
from ..flows.prior import Shape
from ..images import color
from ..images.color import NEUTRAL
from ..images.files import fit
from ..images.resize import limit_shorter_side, pad_symmetric, resize_bilinear
from ..images.scans import clear_borders, fill_borders, find_border, is_tinted
from ..models.colorizer.color_index import NEIGHBORS, neighbors_among
from ..models.colorizer.color_memory import ColorMemory
from ..models.colorizer.luma import STRIDE, LumaEncoder, working_sides
from .hints import Hints, check_items, premultiply, spread_hints, unpremultiply

AT_ONCE = 8  # colorings decoded together
MAX_DEVIATION = 2.0  # largest chroma; at temperature 1 no coloring of the shipped model goes beyond 0.6
COLORED = 2 / 255  # chroma above which a picture counts as colored
MAX_CHROMA = 0.501  # no color in the RGB cube has more, but for rounding
TINT_SIDE = 64  # shorter side of the image that is checked for a tint
SIMILAR = 0.6, 0.85  # similarity from which on colors of a memory count, and from which on they count fully
ALIKE = 0.68, 0.8  # likewise of a second memory, which replaces colors of the first
COVERED = 0.999  # coverage from which on a locked hint is met exactly


Gamut = Literal["compress", "clip"]
WORKING_SIZE = count(
    16,
    4096,
    "It is in pixels.",
    unit="pixels",
    step=16,
    advanced=True,
    help="Shorter side in pixels of the image on which colors are decided. None for the model's default.",
)


def schedule(palette: float, detail: float, levels: int) -> list[float]:
    """Interpolate temperatures geometrically from ``detail``, at the finest level, to ``palette``, at the coarsest."""
    if levels == 1:
        return [palette]
    parts = [k / (levels - 1) for k in range(levels)]  # 0 at the finest
    return [detail ** (1 - part) * palette**part for part in parts]


@dataclass(frozen=True, kw_only=True)
class ColorSettings(RunOptions):
    """Options of ``colorize`` and of ``colorize_video``."""

    temperature: Annotated[
        float | None,
        nonnegative(
            "0 is the calmest, 1 the model's own spread.",
            help="Standard deviation of the coarsest latents, which decide on the colors. None for the model's "
            "default.",
        ),
    ] = None
    detail: Annotated[
        float | None,
        nonnegative(
            advanced=True,
            help="Standard deviation of the finest latents; those between are interpolated geometrically. None: the "
            "default.",
        ),
    ] = None
    coherence: Annotated[
        float | None,
        share(
            "0 draws every place independently.",
            advanced=True,
            help="Share of the noise of the coarsest grid that similar places have in common, in [0, 1], so that what "
            "belongs together gets one color. 0 draws every place independently. None: the default.",
        ),
    ] = None
    seed: Annotated[int, SEED] = 0
    saturation: Annotated[
        float | None,
        nonnegative(
            most=3,
            help="Factor on the chroma, before the colors are fitted into the gamut. None for the model's default, "
            "which is applied before hints; with ``latents``, whose colors are right already, 1.",
        ),
    ] = None
    working_size: Annotated[int | None, WORKING_SIZE] = None
    hints: Annotated[Hints | None, python("The wanted colors.")] = None
    latents: Annotated[
        Sequence[Tensor] | None, python("From ``encode_colors``, 1 or B items of any size: colors to take over.")
    ] = None
    latents_strength: Annotated[
        float,
        share(
            advanced=True,
            command=False,
            help="Share of the latents' variance that is taken over, in [0, 1]; the rest is drawn.",
        ),
    ] = 1.0
    latents_levels: Annotated[
        int,
        count(
            0,
            note="0 means all.",
            most=8,
            advanced=True,
            command=False,
            help="How many of the coarsest levels are taken over; 0 for all.",
        ),
    ] = 2
    gamut: Annotated[
        Gamut,
        Setting(
            advanced=True,
            help='What becomes of colors for which the luma leaves no room. "compress": they lose saturation; luma and '
            'hue stay. "clip": they are cut off, as most programs do, and the luma changes.',
        ),
    ] = "compress"


@dataclass(frozen=True)
class HintPlanes:
    """Hints of B images at the padded working size (h, w): what the encoder reads."""

    planes: Tensor  # see ``premultiply``, (B, 3, h, w)
    palette: Tensor  # (B, 4)
    lock: bool

    def pooled(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Average coverage and wanted chroma over the cells of a grid."""
        return unpremultiply(F.adaptive_avg_pool2d(self.planes, (size[0], size[1])))


class Colorization:
    """Photographs on their way through a colorizer."""

    def __init__(
        self,
        run: Runner,
        flow: FlowModel,
        image: Tensor,
        working_size: int | None,
        *,
        hints: Hints | None = None,
        notes: bool = True,  # whether to tell the caller what is ignored of the photographs
        frames: bool = False,  # whether they are frames of a clip, in which no borders are looked for
        memories: Sequence[ColorMemory] = (),
    ) -> None:
        flow.require("colorize")
        size = flow.config.working_size if working_size is None else working_size
        WORKING_SIZE.check("working_size", size)
        self.run, self.flow, self.memories = run, flow, memories
        images = ImageBatch(image, run.notify)  # not kept, because the colors of a clip take most of the memory
        rgb, self._alpha, self._device = images.extended_rgb, images.alpha, images.device
        self.y = color.luma(images.rgb)  # (B, 1, H, W)
        self.hints = None if hints is None else hints.expand(len(self.y))
        self._crops = [None if frames else find_border(one) for one in rgb.split(1)]
        self.filled_luma = fill_borders(color.luma(rgb), self._crops)  # what colors are decided and enlarged by
        if notes:
            self._notify_of_scans(() if images.channels == 1 else rgb.split(1))
        rows, columns = self._working = working_sides(self.y.shape[-2], self.y.shape[-1], size)  # the luma's size
        multiple = flow.config.source_multiple
        self._padded = math.ceil(rows / multiple) * multiple, math.ceil(columns / multiple) * multiple
        self.grid = self._padded[0] // STRIDE, self._padded[1] // STRIDE  # grid of the chroma that the flow decodes
        self.chroma_size = rows // STRIDE, columns // STRIDE  # size of its part that is no padding
        self.working_luma = resize_bilinear(self.filled_luma, self._working)  # (B, 1, h, w)
        self.shapes: list[Shape] = flow.latent_shapes(*self.grid)
        self.repairs = overflow.OverflowCounts()
        places = [copy.deepcopy(memory.places).to(run.device) for memory in memories]
        self._places = [(each, each.all_cells()) for each in places]

    def resolve(self, settings: ColorSettings) -> tuple[list[float], float, float]:
        """Fill in the model's defaults: temperatures by level, coherence, and a factor on the chroma before hints."""
        values = with_defaults(self.flow, vars(settings))
        taus = schedule(values["temperature"], values["detail"], len(self.shapes))
        # A saturation that is given also applies to colors that hints spread: ``finish`` takes it.
        return taus, values["coherence"], values["saturation"] if settings.saturation is None else 1.0

    def hint_planes(self, batch: slice) -> HintPlanes | None:
        """Resize the hints of some images to the working size."""
        hints = self.hints
        if hints is None:
            return None
        count = len(self.y[batch])
        planes = torch.zeros(count, 3, *self._padded, device=self.run.device)
        palette = torch.zeros(count, 4, device=self.run.device)
        if hints.coverage is not None and hints.chroma is not None:
            covered = premultiply(hints.coverage, hints.chroma).float()
            covered = covered[batch] if len(covered) > 1 else covered
            height, width = self._working
            planes[..., :height, :width] = resize_bilinear(covered, self._working).to(self.run.device)
        if hints.palette is not None:
            palette[:] = (hints.palette[batch] if len(hints.palette) > 1 else hints.palette).to(self.run.device)
        return HintPlanes(planes, palette, hints.lock)

    def resize_latents(self, latents: Sequence[Tensor], number: int) -> list[Tensor]:
        """Resize the latents of image ``number`` to this grid: the nearest position of every level."""
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

    def condition(self, batch: slice, hints: HintPlanes | None) -> Condition:
        """Encode luma and hints."""
        source = _pad(self.working_luma[batch].to(self.run.device), self._padded)
        if hints is not None:
            palette = hints.palette[:, :, None, None].expand(len(source), -1, *self._padded)
            source = torch.cat([source, hints.planes, palette], dim=1)  # (B, 1 + 3 + 4, h, w)
        cond = self.run.compiled.encode_condition(source.to(self.run.dtype))
        self.run.advance()
        return cond.map_tensors(lambda t: t.to(self.run.dtype))

    def _recall(self, number: int, y: Tensor, seeds: Sequence[int]) -> Tensor:
        """Look up padded luma ``(B, 1, h, w)`` in all of a memory; with seeds, one image in each seed's part."""
        assert isinstance(self.flow.encoder, LumaEncoder)
        memory, cells = self._places[number]
        share, neighbors = self.memories[number].share, self.memories[number].neighbors
        described = self.flow.encoder.describe(y.to(self.run.dtype)).float()
        if not seeds:
            return memory.look_up(described, cells, min(NEIGHBORS, neighbors_among(memory.cells)))
        parts = (cells.select(memory.random_photographs(seed, share)) for seed in seeds)
        return torch.cat(
            [memory.look_up(described, part, min(neighbors, neighbors_among(memory.cells))) for part in parts]
        )

    def chroma_on_grid(self, image: Tensor, batch: slice) -> Tensor:
        """Resize the chroma of colored images, as many as the batch, to the padded finest grid, centered on 0."""
        rgb = fill_borders(ImageBatch(image).extended_rgb, self._crops[batch])
        chroma = resize_bilinear(color.split(rgb)[1], self.chroma_size)
        return _pad(chroma.to(self.run.device, self.run.dtype), self.grid)

    def luma_on_grid(self, batch: slice) -> Tensor:
        """Resize the luma of some images to the finest grid, ``(B, 1, h, w)``."""
        return resize_bilinear(self.working_luma[batch], self.chroma_size).to(self.run.device)

    def decode(
        self,
        z: Sequence[Tensor],
        cond: Condition,
        hints: HintPlanes | None = None,
        *,
        carry: Callable[[int, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Decode latents to chroma of ``chroma_size``, centered on 0; and mark where any level overflows, if any does.

        After each level impossible colors are clamped, then ``carry`` may change the level, then locked hints replace
        what they cover.
        """
        overflows: list[Tensor] = []  # one for each level

        def after_level(level: int, x: Tensor) -> Tensor:
            chroma = _chroma_of_level(self.flow, cond, level, x)
            overflows.append(~(chroma.abs() <= MAX_DEVIATION).all(1, keepdim=True))
            x = clamp_level(self.flow, cond, level, x)
            x = x if carry is None else carry(level, x)
            return x if hints is None or not hints.lock else lock_level(self.flow, cond, level, x, hints)

        decoded = self.run.compiled.inverse([level.to(self.run.dtype) for level in z], cond, after_level)
        height, width = self.chroma_size
        chroma = (decoded - NEUTRAL)[..., :height, :width]
        if not torch.stack([mask.any() for mask in overflows]).any():
            return chroma, None
        anywhere = torch.stack([F.interpolate(mask.float(), self.grid) for mask in overflows]).amax(0) > 0
        return chroma, anywhere[..., :height, :width]

    def decode_guarded(self, first: int, z: Sequence[Tensor], cond: Condition, hints: HintPlanes | None) -> Tensor:
        """Decode pictures, from number ``first`` on, with latents scaled down where they overflow; see ``overflow``."""

        def attempt(latents: Sequence[Tensor], items: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return self.decode(latents, cond if items is None else select_items(cond, items), hints)

        decoded = overflow.decode_with_backoff(attempt, z, lambda: torch.zeros(1, 2, 1, 1))
        self.repairs.add(first, decoded.attenuated, decoded.filled)
        return decoded.images

    def add_memory_colors(
        self, chroma: Tensor, number: int, batch: slice, cond: Condition, seeds: Sequence[int], steps: float
    ) -> Tensor:
        """Blend colorings of one image with the colors of a memory, or of each seed's part of it."""
        memory = self.memories[number]
        y = _pad(self.working_luma[batch].to(self.run.device), self._padded)
        recalled = F.interpolate(self._recall(number, y, seeds), self.grid, mode="bilinear")
        low, high = ALIKE if number else SIMILAR
        coverage = memory.weight * ((recalled[:, 4:] - low) / (high - low)).clamp(0, 1)
        wanted = list(zip(coverage.split(1), recalled[:, :2].split(1), strict=True))
        pairs = zip(chroma.split(1), wanted * (len(chroma) // len(wanted)), strict=True)
        colored = [self.spread_colors(one, batch, cond, colors, steps) for one, colors in pairs]
        return torch.lerp(chroma, torch.cat(colored), memory.strength)

    def spread_colors(
        self, chroma: Tensor, batch: slice, cond: Condition, wanted: tuple[Tensor, Tensor], steps: float
    ) -> Tensor:
        """Spread wanted colors, coverage and chroma on the finest grid, padded or not, over chroma ``(B, 2, h, w)``."""
        height, width = self.chroma_size
        coverage, target = (plane[..., :height, :width] for plane in wanted)
        features = cond.features[0]
        assert isinstance(features, Tensor)
        f = features[:1, : self.flow.config.features].float()
        f = (f - f.mean((2, 3), keepdim=True)) / f.std((2, 3), keepdim=True).clamp_min(1e-6)
        f = F.interpolate(f, self.grid, mode="bilinear")[..., :height, :width]
        small_y = self.luma_on_grid(batch)
        return chroma + spread_hints(target - chroma, coverage, f, small_y, steps, self.run.check_cancelled)

    def finish(self, chroma: Tensor, batch: slice, saturation: float | None, gamut: Gamut) -> Tensor:
        """Enlarge chroma to the size of the images, and merge it with their luma."""
        y, guide = self.y[batch].to(self.run.device), self.filled_luma[batch].to(self.run.device)
        full = enlarge(chroma.float(), resize_bilinear(guide, self.chroma_size), guide)
        full = full if saturation is None else full * saturation
        hints = self.hints
        if hints is not None and hints.lock and hints.coverage is not None and hints.chroma is not None:
            shared = len(hints.coverage) == 1
            coverage, target = (t if shared else t[batch] for t in (hints.coverage, hints.chroma))
            full = _lock(full, coverage.to(full), target.to(full))
        full = clear_borders(full, self._crops[batch])
        alpha = None if self._alpha is None else self._alpha[batch].to(self.run.device)
        return merge(y, full, alpha, gamut).to(self._device)

    def _notify_of_scans(self, colored: Sequence[Tensor]) -> None:
        """Tell the caller what is ignored of the images: a border, and the colors of ``colored`` ones, but no tint.

        Whoever colors an old photograph expects other colors than those of its paper.
        """
        notify = self.run.notify
        for image, crop in zip(colored, self._crops, strict=False):
            photograph = image if crop is None else image[crop]
            has_chroma = float(color.split(photograph)[1].abs().max()) > COLORED
            if has_chroma and not is_tinted(limit_shorter_side(photograph, TINT_SIDE)):
                notify(say("The picture is in color: its luma is used, its colors are not."))
        if any(self._crops):
            notify(say("The picture has a plain border: it stays gray, and colors are decided without it."))


def clamp_level(flow: FlowModel, cond: Condition, level: int, x: Tensor) -> Tensor:
    """Clamp a level's chroma to that of RGB colors; otherwise errors would grow from level to level."""
    chroma = _chroma_of_level(flow, cond, level, x)
    possible = chroma.nan_to_num(0, MAX_CHROMA, -MAX_CHROMA).clamp(-MAX_CHROMA, MAX_CHROMA)
    changed = _level_of_chroma(flow, cond, level, possible).to(x)
    return torch.where((possible == chroma).all(1, keepdim=True), x, changed)


def lock_level(flow: FlowModel, cond: Condition, level: int, x: Tensor, hints: HintPlanes) -> Tensor:
    """Replace a level's chroma by that of the hints in cells that they cover."""
    coverage, chroma = hints.pooled(x.shape[-2:])
    return torch.where(coverage > COVERED, _level_of_chroma(flow, cond, level, chroma).to(x), x)


def _chroma_of_level(flow: FlowModel, cond: Condition, level: int, x: Tensor) -> Tensor:
    """Invert ``_level_of_chroma``: the chroma that a level decodes to, averaged over its cells."""
    assert flow.preprocess is not None
    return flow.preprocess.inverse(x / 2**level + _origin_of_level(cond, level)) - NEUTRAL


def _level_of_chroma(flow: FlowModel, cond: Condition, level: int, chroma: Tensor) -> Tensor:
    """Convert chroma to what a level decodes to: whitened, relative to the origin, doubled by every Haar step."""
    assert flow.preprocess is not None
    return (flow.preprocess(chroma + NEUTRAL)[0] - _origin_of_level(cond, level)) * 2**level


def _origin_of_level(cond: Condition, level: int) -> Tensor | float:
    return 0.0 if cond.origin is None else F.avg_pool2d(cond.origin, 2**level)


def blend_latents(latents: Sequence[Tensor], reference: Sequence[Tensor], strength: float, levels: int) -> list[Tensor]:
    """Mix a reference into the ``levels`` coarsest latents, 0 for all; ``strength`` is its share of the variance."""
    first = len(latents) - (levels or len(latents))
    return [
        z if number < first else math.sqrt(strength) * other.to(z) + math.sqrt(1 - strength) * z
        for number, (z, other) in enumerate(zip(latents, reference, strict=True))
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


def _lock(chroma: Tensor, coverage: Tensor, target: Tensor) -> Tensor:
    """Replace chroma by the wanted one where it is covered, and let the correction fade out around."""
    planes = resize_bilinear(premultiply(coverage, target), chroma.shape[-2:])
    coverage, target = unpremultiply(planes.expand(len(chroma), -1, -1, -1))
    reach = max(1, min(chroma.shape[-2:]) // 64)  # a pixel of the finest grid or two
    # the mean correction, weighted by how much of the neighborhood is covered
    around = F.avg_pool2d(coverage * (target - chroma), 2 * reach + 1, 1, reach)
    return torch.where(coverage > COVERED, target, chroma + around)


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return pad_symmetric(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


@torch.no_grad()
def chroma_and_condition(
    flow: FlowModel, image: Image.Image, working_size: int | None = None
) -> tuple[Tensor, Condition]:
    """Chroma ``(1, 2, h, w)`` of a photograph, a quarter of a size that colorizers take unpadded; and its condition."""
    config, multiple = flow.config, flow.config.source_multiple
    factor = (working_size or config.working_size) / min(image.size)
    width, height = (max(1, round(side * factor / multiple)) * multiple for side in image.size)
    y, chroma = color.split(fit(image, (height, width), 3)[None].float() / 255)
    cond = flow.encode_condition(y.to(next(flow.parameters()).device))
    return F.avg_pool2d(chroma, STRIDE), cond
