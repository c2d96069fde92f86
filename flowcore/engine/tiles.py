"""Tiled decoding: latents are drawn for whole images, or come from a guide, and decoded tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import free_memory
from ..errors import Argument, FlowError, say
from ..flows.condition import Condition
from ..flows.model import FlowModel
from ..flows.prior import Shape, level_temperatures, resize_temperature_map, sample_latents
from ..images.color import luma
from ..images.motion import blur
from ..images.resize import enlarge
from . import overflow
from .defaults import highest
from .guide import NEARBY, Guide, drawn_share, limit_rms
from .memory import memory_in_tiles
from .options import DrawSettings
from .runner import Runner, batch_size

ENCODING = 4  # cost of a unit of the encoder relative to one of decoding: srflow-x4, 72x48, one core
MAX_SAMPLES = 8  # decoded at once: they share what steps compute from the image; more would save little
WEAK, STRONG = 0.08, 0.4  # luma's difference from its neighbors at weak and strong edges

Size = tuple[int, int]  # height and width
Border = tuple[int, int, int, int]  # pixels to add left, right, above and below
Tile = tuple["Span", "Span"]  # its rows and columns


class Span(NamedTuple):
    """Rows or columns of a tile, and of the larger area (the halo) that is read to compute it; ends exclusive."""

    start: int
    end: int
    halo_start: int
    halo_end: int


def tile_grid(height: int, width: int, *, tile: int, halo: int, multiple: int) -> list[Tile]:
    """Cover an image with tiles with edges at multiples, so that each one is squeezed on the image's own grid."""
    if tile < multiple or halo < 0:
        raise FlowError(
            f"A tile must be at least {multiple} pixels and its halo at least 0; got tile {tile}, halo {halo}."
        )
    halo = math.ceil(halo / multiple) * multiple
    axes: list[list[Span]] = []
    for side in (height, width):
        multiples = side // multiple
        count = math.ceil(multiples / (tile // multiple))  # tiles along this side
        edges = [multiples * k // count * multiple for k in range(count + 1)]
        axes.append([Span(start, end, max(0, start - halo), min(side, end + halo)) for start, end in pairwise(edges)])
    return list(product(axes[0], axes[1]))  # pairs of rows and columns


def pad_by_reflection(image: Tensor, border: Border) -> Tensor:
    """Extend images ``(B, C, H, W)`` to the right and below, by reflection where there are enough pixels to reflect."""
    _, right, _, below = border
    image = F.pad(image, (0, right, 0, 0), mode="reflect" if image.shape[3] > right else "replicate")
    return F.pad(image, (0, 0, 0, below), mode="reflect" if image.shape[2] > below else "replicate")


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a task decodes in tiles; lengths are in pixels of the image that the model is given."""

    smallest: int  # side below which a tile is mostly halo
    unit: str  # what sides are counted in, for messages
    border: Callable[[int, int, int], Border] = lambda height, width, n: (0, -width % n, 0, -height % n)
    """To add to a height and width, so that a number divides both."""
    pad: Callable[[Tensor, Border], Tensor] = pad_by_reflection
    pad_map: Callable[[Tensor, Border], Tensor] = lambda tau, border: F.pad(tau, border, mode="replicate")
    max_deviation: float  # distance from 0.5 beyond which a value is an overflow
    filled: str  # what replaces pixels that overflow at any temperature, for messages: "left gray"
    shares: bool  # whether samples share a prepared condition


class TiledDecoder:
    """Decodes samples of a batch of images, tile by tile; what depends on the image alone is computed once per tile.

    1. Pad the images, choose their tiles, and draw the latents of all samples.
    2. Of each tile, encode the condition: what the flow sees of the image.
    3. Encode the guide under this condition, if there is one, and blend its latents into those of each sample.
    4. Decode them, at lower temperatures where they overflow.
    5. Paste the tile into the pictures, without its halo.
    """

    def __init__(self, tiling: Tiling, run: Runner, flow: FlowModel, settings: DrawSettings) -> None:
        self._tiling, self._run, self._flow = tiling, run, flow
        self._halo, self._store = settings.halo, settings.store
        self._side = max(settings.tile, tiling.smallest) if settings.tile else 0  # side of tiles; 0: not chosen yet
        self._longest = 0  # side of the images while there are tiles to compute, else 0

    def __call__(
        self, rgb: Tensor, settings: Sequence[DrawSettings], gray: Sequence[bool] = (), guide: Guide | None = None
    ) -> Tensor:
        """Compute ``(B * settings * samples, 3, s * h, s * w)`` on the CPU; ``gray`` says which images stay gray.

        Settings differ in what depends on the temperature.
        """
        run, compiled, tiling, scale = self._run, self._run.compiled, self._tiling, self._flow.condition_scale
        if self._store is not None and run.minimum_memory:
            self._store.clear()
        # 1. tiles and latents
        border, tiles = self._layout(rgb, has_guide=guide is not None)
        latents = Latents(run, tiling, rgb, border, settings, guide)
        canvas = _Canvas(rgb, len(settings) * settings[0].samples, scale, border, gray)
        limit = self._flow.recommended.plausible_deviation or tiling.max_deviation
        limits = [limit if highest(each.tau) <= overflow.CALM else tiling.max_deviation for each in settings]
        at_once = run.at_once(min(canvas.samples, MAX_SAMPLES))
        reused = tiling.shares and (canvas.samples > at_once or guide is not None)
        # Units of work: of each tile its encoding, passes for the guide and every sample, and 1 per pasted sample.
        encoding = ENCODING * (compiled.encoder_units + (compiled.prepare_units if reused else 0))
        passes = canvas.samples + (guide is not None)
        making = compiled.guide_units if guide is not None and guide.pictures is None else 0  # the model's guide costs
        run.expect(len(rgb) * (making + len(tiles) * (encoding + passes * compiled.units + canvas.samples)))
        for item in range(len(rgb)):
            padded = tiling.pad(rgb[item, None], border)
            encoder_input = padded if compiled.source_input is None else compiled.source_input(padded)
            guide_picture = None if guide is None else self._padded_guide(guide, rgb, item, border)
            for tile in tiles:
                # 2. condition
                with run.counting(encoding, ENCODING):
                    cond = self._condition(_crop(encoder_input, tile).to(run.dtype), reused=reused)
                # 3. guide
                guide_latents = None
                if guide_picture is not None:
                    with run.counting(compiled.units):
                        cropped = _crop(guide_picture, tile, scale).to(run.device, run.dtype)
                        guide_latents = compiled.encode_guide(cropped, cond)
                step = at_once
                if cond.prepared:  # show every sample as soon as it is ready
                    step = min(step, 1 if run.device.type == "cpu" else batch_size(*canvas.pictures.shape[-2:]))
                for start in range(0, canvas.samples, step):
                    batch = range(start, min(start + step, canvas.samples))
                    z = [level.to(run.device, run.dtype) for level in latents.crop(item, batch, tile)]
                    z = z if guide_latents is None else latents.blend_guide(z, guide_latents, item, batch, tile)
                    # 4. decode
                    plausible = [limits[sample // settings[0].samples] for sample in batch]
                    decode = overflow.bounded_decoder(compiled, cond, tiling.max_deviation, plausible)
                    with run.counting(len(batch) * compiled.units, len(batch)):
                        enlarged = partial(enlarge, _crop(padded, tile), scale)
                        decoded = overflow.decode_with_backoff(decode, z, enlarged)
                    del z
                    # 5. paste
                    for picture in canvas.paste(decoded, item, batch, tile):
                        run.advance(preview=picture if tile is tiles[-1] else None)
                    del decoded
                del cond, guide_latents  # frees memory for the next tile
        canvas.overflows.report(run.notify, canvas.pictures[0, 0, 0].numel(), tiling.filled)
        self._longest = 0  # smaller tiles would not help with what follows
        return canvas.pictures.flatten(0, 1)

    def _layout(self, rgb: Tensor, *, has_guide: bool) -> tuple[Border, list[Tile]]:
        """Choose the padding of the images, and the tiles of padded ones."""
        (height, width), tiling = rgb.shape[-2:], self._tiling
        multiple = max(1, self._run.compiled.size_multiple // self._flow.condition_scale)
        border = tiling.border(height, width, multiple)
        left, right, top, bottom = border
        padded = height + top + bottom, width + left + right

        self._longest = max(padded)
        if not self._side:  # the whole image, or the largest tile that half of free memory holds
            self._side, free = self._longest, free_memory(self._run.device)
            budget = 2 * 2**30 if free is None else free // 2
            while memory_in_tiles(self._flow, *padded, self._side, self._halo, guided=has_guide) > budget:
                if self.halve() is None:
                    break
        side = self._side // multiple * multiple
        return border, tile_grid(*padded, tile=side, halo=self._halo, multiple=multiple)

    def halve(self) -> str | None:
        """Halve the side of tiles for the next attempt and say so; None if that does not help, see ``Runner``."""
        smallest, unit = self._tiling.smallest, self._tiling.unit
        if not self._longest or self._side <= smallest:
            return None
        self._side = max(smallest, min(self._side, self._longest) // 2)
        return say(
            "with tiles of {side} {unit}. Set {tile} to {side} to start there",
            side=self._side,
            unit=unit,
            tile=Argument("tile"),
        )

    def _padded_guide(self, guide: Guide, rgb: Tensor, item: int, border: Border) -> Tensor:
        """Return the guide of an image, padded as the image is."""
        picture = guide.picture(self._run, rgb, item)
        left, right, top, bottom = (side * self._flow.condition_scale for side in border)
        return self._tiling.pad(picture, (left, right, top, bottom)) if any(border) else picture

    def _condition(self, source: Tensor, *, reused: bool) -> Condition:
        """Encode the condition of a tile, prepared if it is used again and memory allows."""
        compiled = self._run.compiled
        if self._store is not None:
            return self._store.condition(compiled, source)
        cond = compiled.encode_condition(source.to(compiled.device))
        if not reused:
            return cond
        height, width = (side * compiled.condition_scale for side in source.shape[-2:])
        free = free_memory(compiled.device)
        fits = free is not None and compiled.prepared_bytes(height, width) <= free // 4
        return cond.prepare(compiled) if fits else cond


class _Canvas:
    """The pictures of all samples of all images, into which decoded tiles are pasted."""

    def __init__(self, rgb: Tensor, samples: int, scale: int, border: Border, gray: Sequence[bool]) -> None:
        batch, _, height, width = rgb.shape
        self.samples, self._scale, self._border, self._gray = samples, scale, border, gray
        self._size = height, width
        self.pictures = rgb.new_empty((batch, samples, 3, height * scale, width * scale), device="cpu")
        self.overflows = overflow.OverflowCounts()

    def paste(self, decoded: overflow.Decoded, item: int, samples: range, tile: Tile) -> Tensor:
        """Paste a tile of some samples of an image, without its halo and the border; return their pictures."""
        inner, outer = _without_halo(tile, self._scale, self._border, self._size)
        attenuated, filled = (None if mask is None else mask[inner] for mask in (decoded.attenuated, decoded.filled))
        self.overflows.add(item * self.samples + samples.start, attenuated, filled)
        for number, image in zip(samples, decoded.images[inner], strict=True):
            image = image.clamp(0, 1)
            self.pictures[item, number][outer] = luma(image[None])[0] if self._gray and self._gray[item] else image
        return self.pictures[item, samples.start : samples.stop]


class Latents:
    """Latents of all samples of all images, drawn for whole padded images."""

    def __init__(
        self,
        run: Runner,
        tiling: Tiling,
        rgb: Tensor,
        border: Border,
        settings: Sequence[DrawSettings],
        guide: Guide | None = None,
    ) -> None:
        compiled, check, first = run.compiled, run.check_cancelled, settings[0]
        (height, width), (left, right, top, bottom) = rgb.shape[-2:], border
        self.rows, scale = height + top + bottom, compiled.condition_scale
        shapes = compiled.latent_shapes(self.rows * scale, (width + left + right) * scale)
        sampled = shapes[:-1] if compiled.predicts_lr else shapes
        # for every image and temperature
        self.noise = sample_latents(sampled, first.samples, 1.0, first.seed, mark=first.mark, check=check)
        # the last latents of a flow that predicts the LR image are the deviation from it: zero
        self.deviation = [torch.zeros(1, *shape) for shape in shapes[len(sampled) :]]
        check()
        factor = max(1, shapes[0][1] // self.rows)  # the finest latents may be coarser than the image
        padding = left * factor, right * factor, top * factor, bottom * factor
        height, width = height * factor, width * factor
        calms: list[float] = [getattr(each, "calm_edges", None) or 0.0 for each in settings]
        edges = edge_map(rgb) if any(calms) else None

        def on_level(tau: float | Tensor, calm: float, shape: Shape) -> float | Tensor:
            """Resize a map of temperatures, which covers the image, to latents, which cover the padded one."""
            check()
            if isinstance(tau, Tensor):
                tau = resize_temperature_map(tau, height, width)
            if calm and edges is not None:
                tau = tau * (1 - calm * resize_temperature_map(edges, height, width))
            return resize_temperature_map(tiling.pad_map(tau, padding), *shape[1:]) if isinstance(tau, Tensor) else tau

        per_level = [level_temperatures(each.tau, len(sampled), len(rgb)) for each in settings]
        # the guide's share by setting and level
        of_guide = [0.0] * len(settings) if guide is None else guide.strengths
        self.strengths = [[on_level(strength, 0.0, shape) for shape in shapes] for strength in of_guide]
        # limits on a guide's latents: the temperatures of the first setting, not lowered at edges
        bounds = per_level[0] if guide is not None and guide.bounded else []
        spreads = [on_level(tau, 0.0, shape) for tau, shape in zip(bounds, sampled[: len(bounds)], strict=True)]
        self.spreads = [blur(tau**2, NEARBY).sqrt() if isinstance(tau, Tensor) else tau for tau in spreads]  # levels
        self.taus = [  # one for each setting and level
            [
                on_level(tau, calm, shape) * drawn_share(a)
                for tau, shape, a in zip(levels, sampled, kept[: len(sampled)], strict=True)
            ]
            for levels, calm, kept in zip(per_level, calms, self.strengths, strict=True)
        ]

    def _in_tile(self, plane: float | Tensor, item: int, tile: Tile, like: Tensor) -> float | Tensor:
        """Crop a map of one or all images, which covers the padded image; a number is the same everywhere."""
        if not isinstance(plane, Tensor):
            return plane
        return self._crop_level(plane[min(item, len(plane) - 1), None], tile).to(like)

    def _crop_level(self, level: Tensor, tile: Tile) -> Tensor:
        return _crop(level, tile, level.shape[-2] / self.rows)

    def crop(self, item: int, samples: range, tile: Tile) -> list[Tensor]:
        """Return the latents of some samples of an image in a tile, finest first."""
        latents: list[Tensor] = []
        for level, noise in enumerate(self.noise):
            of_samples: list[Tensor] = []
            for sample in samples:
                setting, draw = divmod(sample, len(noise))
                tau = self._in_tile(self.taus[setting][level], item, tile, like=noise)
                of_samples.append(tau * self._crop_level(noise[draw, None], tile))
            latents.append(torch.cat(of_samples))
        return latents + [self._crop_level(z, tile).expand(len(samples), -1, -1, -1) for z in self.deviation]

    def blend_guide(
        self, latents: Sequence[Tensor], guide: Sequence[Tensor], item: int, samples: range, tile: Tile
    ) -> list[Tensor]:
        """Add a guide's share of its latents in a tile to the latents that ``crop`` returned."""
        result: list[Tensor] = []
        for level, (z, guide_z) in enumerate(zip(latents, guide, strict=True)):
            if level < len(self.spreads):
                guide_z = limit_rms(guide_z, self._in_tile(self.spreads[level], item, tile, like=guide_z))
            of_samples: list[Tensor] = []
            for number, sample in enumerate(samples):
                strength = self.strengths[sample // len(self.noise[0])][level]
                of_samples.append(z[number, None] + self._in_tile(strength, item, tile, like=guide_z) * guide_z)
            result.append(torch.cat(of_samples))
        return result


def _crop(tensor: Tensor, tile: Tile, factor: float = 1) -> Tensor:
    """Crop a tile with its halo out of something ``factor`` times as large as the padded image."""
    rows, columns = (slice(round(span.halo_start * factor), round(span.halo_end * factor)) for span in tile)
    return tensor[..., rows, columns]


def _without_halo(tile: Tile, scale: int, border: Border, size: Size) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Index a tile without its halo and the border: in the decoded tile, and in the picture."""
    left, _, above, _ = border
    inner: list[slice] = []
    outer: list[slice] = []
    for span, before, side in zip(tile, (above, left), size, strict=True):
        start, end = max(span.start, before), min(span.end, before + side)
        inner.append(slice((start - span.halo_start) * scale, (end - span.halo_start) * scale))
        outer.append(slice((start - before) * scale, (end - before) * scale))
    return (..., *inner), (..., *outer)


def edge_map(lr: Tensor) -> Tensor:
    """Find the edges of images ``(B, 3, h, w)`` in [0, 1]: 0 in smooth places and weak texture, 1 at strong edges.

    A ramp over the logarithm of ``sqrt(dx^2 + dy^2)``, whose maximum over 3x3 pixels is averaged over 3x3; dx and dy
    add the differences of luma to both neighbors, so that lines as thin as a pixel count double. ``(B, 1, h, w)``,
    float32 on the CPU, so that a seed is the same picture on every device. Source: ours, see docs/decisions/0015.
    """
    y = F.pad(luma(lr.to("cpu", torch.float32)), (1, 1, 1, 1), mode="replicate")
    center = y[..., 1:-1, 1:-1]
    dx = (y[..., 1:-1, 2:] - center).abs() + (y[..., 1:-1, :-2] - center).abs()
    dy = (y[..., 2:, 1:-1] - center).abs() + (y[..., :-2, 1:-1] - center).abs()
    strongest = F.max_pool2d((dx.square() + dy.square()).sqrt(), 3, stride=1, padding=1)
    nearby = F.avg_pool2d(F.pad(strongest, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (nearby.clamp_min(WEAK) / WEAK).log().div(math.log(STRONG / WEAK)).clamp(0, 1)
