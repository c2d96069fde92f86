"""Upscale: one LR image, many sharp HR images. Rescale: ``shrink`` a photograph, and ``restore`` it.

Of a photograph's encoding, ``shrink`` returns the small picture alone; ``restore`` draws the latents beside it anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from ..errors import FlowError, ImageError
from ..images.color import as_stored
from ..images.resize import resize
from ..inference.condition_cache import ConditionStore
from ..inference.encoders import IN_FLIGHT
from ..inference.strips import DENSE_BYTES, MIN_ROWS
from ..model import FlowModel
from ..models.hcflow import HCFlowConfig
from ..models.srflow import SRFlowConfig
from ..networks import CompactUpscaler
from ..prior import Temperature
from . import consistency
from .defaults import with_defaults
from .image_batch import ImageBatch
from .model_choice import notify_of_damage
from .runner import Reporting, Runner, Running, RunOptions, check_draws, runs_with
from .tiles import STRIPS, Border, Strength, TiledDecoder, Tiling, own_strength, prepare_guide

HALO = 24  # LR pixels; how far tiles then differ from the whole image: docs/decisions/0004
MAX_DEVIATION = 2.0  # from 0.5: temperature 1 stays within 1.6, overflows do not: docs/decisions/0013
MAX_SIDE = 2**16  # pixels of a side of the result
UNMARKED = (
    "This picture bears no mark of Flow Shrink. If an earlier version shrank it, all is well; if it was made otherwise "
    "or changed since, as by JPEG, it is enlarged, but not well: use Flow Upscale."
)
MIN_MARKED = 16  # pixels of a small picture whose mark is believed
MARKED = 64  # pixels that bear it in a small picture in color
ADVICE = "Set tile to 32, ask for fewer samples, enlarge a smaller image, or free memory on the device."
SHRINK_ADVICE = "Shrink a smaller image, or free memory on the device."
RESTORE_ADVICE = "Set tile to 32, ask for fewer samples, restore a smaller image, or free memory on the device."


@runs_with(Running)
def upscale(
    flow: FlowModel,
    lr: Tensor,
    *,
    temperature: Temperature | None = None,
    calm_edges: float | None = None,
    seed: int = 0,
    samples: int = 1,
    tile: int = 0,
    halo: int = HALO,
    factor: float = 0.0,
    longest_side: int = 0,
    match_source: bool = False,
    store: ConditionStore | None = None,
    guide: Tensor | None = None,
    guide_strength: Strength | None = None,
    guide_bounded: bool = False,
    **options: Unpack[Running],
) -> Tensor:
    """Enlarge images; every sample is another plausible enlargement of the same LR image.

    The whole image is processed in strips of rows, which is exact; tiles are used only if memory does not suffice, or
    ``tile`` asks for them. Latents are drawn for the whole image: a seed is the same picture whatever the tile size,
    the batch position and the device. Where the model overflows, the temperature is lowered, and ``notify`` is called.

    Args:
        flow: An upscaling model. Samples of an SRFlow share most of the work, those of an HCFlow a fifth at 4x.
        lr: ``(B, C, h, w)`` in [0, 1], any size from 1x1, float of any precision, uint8 or uint16; values outside are
            clamped. C is 3; or 1 (gray); or 4, whose alpha is enlarged by a bicubic resize. What is gray stays gray: of
            an image whose three channels are equal, the luma of what the model makes is taken.
        temperature: Standard deviation of the latents, >= 0: one, or one per level, finest first. 0 is smoothest, 1 the
            model's own spread. Each may be a map ``(1 or B, 1, any height, any width)`` that covers the image, for
            example from ``prior.masked_temperature``. None for the model's own, which its file states: the highest
            that was measured to draw hardly any false specks.
        calm_edges: In [0, 1]: how much lower any ``temperature`` is at edges, where samples break lines into specks. 0
            for off; None for the model's own, whatever the temperature.
        seed: In [0, 2^64). Sample s of every image is drawn with ``seed + s``.
        samples: Enlargements per image, at least 1.
        tile: Side of the tiles in LR pixels, at least 32; 0 for the whole image if memory allows, else the largest tile
            that fits. Changes memory and time, not the picture (at most 1/255).
        halo: LR pixels read around every tile.
        factor: Total enlargement: what the model's scale leaves is one bicubic resize, up or down. 0 for that scale.
        longest_side: Longest side of the result in pixels, reached the same way; 0 for no limit. Wins over ``factor``.
        match_source: Whether to change the pictures so that they shrink to the LR image again, see ``match_source``.
        store: Where the conditions of the images are kept for the next call; None for nowhere.
        guide: Another enlargement of the same images, ``(B or 1, C, s * h, s * w)`` in [0, 1] as ``lr``, a part of
            whose latents is kept, see ``tiles.Guide``; alpha is ignored, and another size is resized. First it is
            changed to shrink to ``lr``, as far as the model's file states (``guide_match``; without, in full).
        guide_strength: Share of the guide's latents that is kept, in [0, 1]: a number, or a map as of ``temperature``.
            0 ignores the guide, 1 gives it back as changed. None for the model's own, which its file states, or 0.5.
        guide_bounded: Whether the guide's latents are scaled down where they deviate more than those that are drawn.
            For guides that are made from results again and again, whose detail would otherwise grow.

    Returns:
        ``(B * samples, C, s * h, s * w)`` float32 in [0, 1] on the device of ``lr``: all samples of image 0, then of
        image 1. With ``factor`` or ``longest_side``, the sides are those of ``target_size``.

    Raises:
        ImageError: If images or guides are none, have no pixels, a wrong number of channels, or values that are not
            numbers, or there is neither one guide nor one for each image.
        ShapeError: If there are not as many temperatures as levels, or a map has another shape.
        FlowError: If the model does not upscale, another argument is out of its range, or memory does not suffice for
            the smallest tile.

    Source: Lugmayr et al., "SRFlow", sections 3 and 4; the tiling is ours, and so is the guide.
    """
    flow.require("upscale")
    check_draws(seed, samples)
    settings = sampling_settings(flow, temperature, calm_edges)
    strength = own_strength(flow, guide, guide_strength)
    run = Runner(flow, RunOptions(**options), ADVICE, lr)
    decoder = TiledDecoder(TILING, run, flow, tile, halo, store)

    def task() -> Tensor:
        images = ImageBatch(lr)
        rgb = images.visible
        height, width = rgb.shape[-2:]
        size = target_size(flow, height, width, factor, longest_side)
        if min(size[0] - height * flow.condition_scale, size[1] - width * flow.condition_scale) > 0:
            run.notify(
                f"The model enlarges {flow.condition_scale} times; the rest, to {size[1]}x{size[0]}, is an ordinary "
                "resize (bicubic)."
            )
        if not guide_bounded:  # frames of a clip are bounded: ``upscale_video`` examines the first one for all
            notify_of_damage(flow, rgb, run.notify)
        guides = prepare_guide(run, flow, rgb, guide, strength, guide_bounded)
        pictures = decoder(rgb, [settings], seed, samples, images.is_gray, guides)
        if size != tuple(pictures.shape[-2:]):
            pictures = _resize_each(run, pictures, size)
        if match_source and (size[0] < height or size[1] < width):
            run.notify(f"match_source is ignored: at {size[1]}x{size[0]} the result is smaller than the image.")
        elif match_source:
            pictures = consistency.match_source(pictures, rgb, cancelled=run.options.cancelled, notify=run.notify)
        return images.like_input(pictures)

    return run(task, decoder.tiles.halve)


@runs_with(Running)
def temperature_grid(  # noqa: D417
    flow: FlowModel,
    lr: Tensor,
    temperatures: Sequence[float | None],
    *,
    calm_edges: float | None = None,
    seed: int = 0,
    seeds: int = 1,
    tile: int = 0,
    halo: int = HALO,
    store: ConditionStore | None = None,
    guide: Tensor | None = None,
    guide_strength: Strength | None = None,
    **options: Unpack[Running],
) -> Tensor:
    """Enlarge images with several temperatures and several seeds; every image and guide is encoded once.

    Args:
        flow: As in ``upscale``; so are the arguments that are not named here.
        lr: ``(B, C, h, w)``; an alpha channel is dropped.
        temperatures: Each gives one picture per seed; None is the model's own.
        seed: The first.
        seeds: How many, counted up from ``seed``.

    Returns:
        ``(B * temperatures * seeds, 1 or 3, s * h, s * w)``, on the device of ``lr``: of image 0 all seeds of the first
        temperature, then of the second. Each equals the result of ``upscale``.

    Raises:
        FlowError: If there are no temperatures, or as in ``upscale``.
        ImageError: As in ``upscale``.
    """
    flow.require("upscale")
    if not temperatures or seeds < 1:
        raise FlowError(f"Expected at least one temperature and one seed; got {len(temperatures)} and {seeds}.")
    check_draws(seed, seeds)
    settings = [sampling_settings(flow, tau, calm_edges) for tau in temperatures]
    strength = own_strength(flow, guide, guide_strength)
    run = Runner(flow, RunOptions(**options), ADVICE.replace("samples", "seeds"), lr)
    decoder = TiledDecoder(TILING, run, flow, tile, halo, store)

    def task() -> Tensor:
        images = ImageBatch(lr)
        rgb = images.visible
        notify_of_damage(flow, rgb, run.notify)
        guides = prepare_guide(run, flow, rgb, guide, strength)
        return images.like_input(decoder(rgb, settings, seed, seeds, images.is_gray, guides), alpha=False)

    return run(task, decoder.tiles.halve)


def sampling_settings(
    flow: FlowModel, temperature: Temperature | None = None, calm_edges: float | None = None
) -> tuple[Temperature, float]:
    """Fill in what a model's file states where temperature or ``calm_edges`` are None; see ``upscale``."""
    flow.require("upscale")
    settings = with_defaults(flow, {"temperature": temperature, "calm_edges": calm_edges})
    if not 0 <= settings["calm_edges"] <= 1:
        raise FlowError(
            f"calm_edges must lie in [0, 1]; got {calm_edges}. 0 is off, 1 leaves no temperature at strong edges."
        )
    return settings["temperature"], settings["calm_edges"]


def target_size(
    flow: FlowModel, height: int, width: int, factor: float = 0.0, longest_side: int = 0
) -> tuple[int, int]:
    """Compute height and width of the pictures that ``upscale`` returns for an LR image; see there."""
    if not (math.isfinite(factor) and factor >= 0) or longest_side < 0:
        raise FlowError(
            f"factor and longest_side must be finite and not negative; got {factor} and {longest_side}. 0 leaves the "
            "size to the model."
        )
    ratio = longest_side / max(height, width, 1) if longest_side else factor or float(flow.condition_scale)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    if max(size) > MAX_SIDE:
        raise FlowError(f"A side of the result may have at most {MAX_SIDE} pixels; got {max(size)}. Ask for less.")
    return size


def memory_required(
    flow: FlowModel, height: int, width: int, tile: int = 0, halo: int = HALO, samples: int = 1, *, guided: bool = False
) -> int:
    """Estimate the bytes that ``upscale`` works with in float32, beyond the weights and the resulting pictures.

    Counts what is held for the whole image or tile at the widest moment, the end of level 1 (in small images a dense
    block of the encoder): all features, every sample's latents and image, the strips; and a guide, given or made.
    """
    if flow.capabilities.source != "low_resolution":
        flow.require("upscale")
    rows, columns = (min(n, tile + 2 * halo) if tile else n for n in (height, width))
    network = flow.guide if isinstance(flow.guide, CompactUpscaler) else None
    pixel = 4 * 3 * flow.condition_scale**2  # bytes of the HR pixels of one LR pixel
    copies = 1 if (rows, columns) == (height, width) else 2  # of a guide in a tile: latents, and the encoded crop
    # a guide is held as it came, and changed to shrink to the image
    guide = pixel * (2 * height * width + copies * rows * columns) if guided or network is not None else 0
    making = 0
    if network is not None:  # the enlargement, a strip's rows, those that the first layer is ahead, and two per layer
        layers, row = len(network.convs), 4 * width * network.width
        strip = max(2 * MIN_ROWS, DENSE_BYTES["cuda"] // (IN_FLIGHT * row)) + layers
        making = pixel * height * width + row * (IN_FLIGHT * min(height, strip) + 2 * layers)
    config = flow.config
    if isinstance(config, HCFlowConfig):
        return _hcflow_bytes(config, rows, columns, samples) + guide + STRIPS
    on_imdn = isinstance(config, SRFlowConfig) and config.encoder == "imdn"
    shared = config.encoder_width * (1 if on_imdn else len(config.stacked_blocks))
    native = sum((config.scale / 2**level) ** 2 for level in config.grids)
    hr = config.scale**2 * ((3 if config.residual else 0) + samples * 5 * 3)
    decoding = 4 * (config.encoder_width * native + hr) * rows * columns
    block = 24 * config.encoder_growth if on_imdn else 8 * config.encoder_growth + 6 * config.encoder_width
    dense = 4 * block * rows * columns
    working = 4 * shared * rows * columns + max(decoding, min(dense, DENSE_BYTES["cuda"])) + guide
    return round(max(working, making)) + STRIPS


def _hcflow_bytes(config: HCFlowConfig, rows: int, columns: int, samples: int) -> int:
    """Estimate what an HCFlow holds for so many LR pixels at its widest moment, the extractor of the last sample."""
    grids = [(config.scale / 2**level) ** 2 for level in range(1, config.levels + 1)]  # positions per LR pixel
    features = config.extractor_width * (1 if config.rescaling else 2)
    held = samples * (features * sum(grids) + 5 * 3 * config.scale**2)
    trunk = 3 * config.extractor_width * grids[0]
    dense = 2 * (4 * config.extractor_growth + config.extractor_width) * grids[0]
    return round(4 * (held + trunk) * rows * columns + min(4 * dense * rows * columns, DENSE_BYTES["cuda"]))


def _resize_each(run: Runner, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    result = pictures.new_empty((*pictures.shape[:2], *size))
    for resized, picture in zip(result, pictures, strict=True):
        run.check_cancelled()
        resized[:] = resize(picture[None], *size)[0].clamp(0, 1)
    return result


def pad(image: Tensor, border: Border) -> Tensor:
    """Extend images ``(B, C, H, W)`` to the right and below, by reflection where there are enough pixels to reflect."""
    _, right, _, below = border
    image = F.pad(image, (0, right, 0, 0), mode="reflect" if image.shape[3] > right else "replicate")
    return F.pad(image, (0, 0, 0, below), mode="reflect" if image.shape[2] > below else "replicate")


def border(height: int, width: int, multiple: int) -> Border:
    """Compute the padding at the right and below to sides that are multiples of a number."""
    return 0, -width % multiple, 0, -height % multiple


TILING = Tiling(
    sides=(1024, 768, 512, 384, 256, 192, 128, 96, 64),
    smallest=32,
    unit="LR pixels",
    memory=lambda flow, _, padded, tile, halo, guided: memory_required(flow, *padded, tile, halo, guided=guided),
    border=border,
    pad=pad,
    pad_map=lambda tau, border: F.pad(tau, border, mode="replicate"),
    max_deviation=MAX_DEVIATION,
    filled="enlarged by a bicubic resize",
    shares=True,
)


@runs_with(Reporting)
def shrink(flow: FlowModel, image: Tensor, **options: Unpack[Reporting]) -> Tensor:
    """Shrink photographs to small pictures that ``restore`` brings back.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> flowcore.shrink(flow, torch.rand(1, 3, 48, 64)).shape
    torch.Size([1, 3, 12, 16])

    Args:
        flow: A rescaling model.
        image: As in ``upscale``, ``(B, C, H, W)``. Sides that the model's scale does not divide are extended to the
            right and below. Of gray ones the small pictures have color, too, which carries detail. A mark tells
            ``restore`` which are of gray ones, and which were not made here, see ``mark``.

    Returns:
        ``(B, 3 or 4, ceil(H / s), ceil(W / s))`` float32 in [0, 1], rounded to 8 bits, on the device of ``image``.
        Store it without loss: JPEG destroys what it holds.

    Raises:
        ImageError: If the batch is empty, has no pixels, a wrong number of channels, or values that are not numbers.
        FlowError: If the model does not rescale, or memory does not suffice.

    Source: Xiao et al., "Invertible Image Rescaling" (ECCV 2020); Liang et al., "Hierarchical Conditional Flow" (2021),
    section 3.
    """
    flow.require("rescale")
    run = Runner(flow, RunOptions(**options), SHRINK_ADVICE, image)

    def task() -> Tensor:
        images = ImageBatch(image)
        rgb, alpha = images.visible, images.alpha
        scale, (height, width) = flow.condition_scale, rgb.shape[-2:]
        _, right, _, below = added = border(height, width, scale)
        if right or below:
            run.notify(
                f"The image was extended from {width}x{height} to {width + right}x{height + below}: its sides must be "
                f"divisible by {scale}. Crop what comes back to {width}x{height}."
            )
        run.expect(len(rgb))
        small: list[Tensor] = []
        for item, is_gray in zip(rgb, images.is_gray, strict=True):
            run.check_cancelled()
            reduced = run.plan.reduce(pad(item[None], added).to(run.device, run.dtype)).to(image.device, torch.float32)
            small.append(mark(reduced, gray=is_gray))
            run.advance(preview=small[-1][0])
        result = torch.cat(small)
        if alpha is None:
            return result
        alpha = resize(pad(alpha, added), *result.shape[-2:])
        return torch.cat([result, as_stored(alpha)], dim=1)

    return run(task)


@runs_with(Running)
def restore(  # noqa: D417
    flow: FlowModel,
    small: Tensor,
    *,
    temperature: Temperature | None = None,
    seed: int = 0,
    samples: int = 1,
    size: tuple[int, int] | None = None,
    tile: int = 0,
    halo: int = HALO,
    store: ConditionStore | None = None,
    **options: Unpack[Running],
) -> Tensor:
    """Restore photographs from the small pictures that ``shrink`` made of them.

    >>> flow = flowcore.load("hcflow-rescaling.safetensors")
    >>> small = flowcore.shrink(flow, torch.rand(1, 3, 45, 64))
    >>> flowcore.restore(flow, small, size=(45, 64)).shape
    torch.Size([1, 3, 45, 64])

    Args:
        flow: The rescaling model that shrank them; another gives a wrong picture. Arguments that are not named here are
            as in ``upscale``.
        small: ``(B, C, h, w)`` in [0, 1], as ``shrink`` returns it or uint8. A picture that was shrunk otherwise is
            enlarged, but not well. What is gray, or was shrunk from gray, stays gray.
        temperature: As in ``upscale``; None for the model's own. 0 gives the mean of what the small picture leaves
            open.
        size: Height and width of the original, whose extension is cropped away; None keeps all.

    Returns:
        ``(B * samples, C, s * h, s * w)``, or of ``size``, float32 in [0, 1] on the device of ``small``: all
        samples of picture 0, then of picture 1.

    Raises:
        ImageError: As in ``upscale``; or if ``size`` is not what shrinks to the picture's size.
        FlowError: If the model does not rescale, or as in ``upscale``.
    """
    flow.require("rescale")
    check_draws(seed, samples)
    run = Runner(flow, RunOptions(**options), RESTORE_ADVICE, small)
    decoder = TiledDecoder(TILING, run, flow, tile, halo, store)
    tau = with_defaults(flow, {"temperature": temperature})["temperature"]

    def task() -> Tensor:
        images = ImageBatch(small)
        rgb = images.rgb
        scale, sides = flow.condition_scale, tuple(rgb.shape[-2:])
        height, width = (side * scale for side in sides) if size is None else size
        if (-(-height // scale), -(-width // scale)) != sides:
            raise ImageError(
                f"size must be that of an image which shrinks {scale} times to {sides[0]}x{sides[1]} (height x width), "
                f"such as {sides[0] * scale}x{sides[1] * scale}; got {height}x{width}."
            )
        images.is_gray = [gray or is_of_gray(one) for gray, one in zip(images.is_gray, rgb, strict=True)]
        if not all(map(is_marked, rgb)):
            run.notify(UNMARKED)
        pictures = decoder(rgb, [(tau, 0.0)], seed, samples, images.is_gray)
        return images.like_input(pictures)[..., :height, :width]

    return run(task, decoder.tiles.halve)


def mark(small: Tensor, *, gray: bool) -> Tensor:
    """Round a small picture ``(1, 3, h, w)`` to 8 bits so that it says that it is one, and whether of a gray image.

    The sum of red, green and blue, in 255ths, is even or odd in a pattern, for which blue is rounded up or down: in all
    pixels of a gray photograph, and the other way around in the first pixels of another.
    """
    exact = small.clamp(0, 1) * 255
    levels = exact.round()
    up = (exact[:, 2] > levels[:, 2]) | (levels[:, 2] == 0)
    wrong = _off_the_pattern(levels)
    if not gray:
        wrong = (1 - wrong) * (torch.arange(wrong.numel(), device=wrong.device).view_as(wrong) < MARKED)
    levels[:, 2] += (2 * up.to(levels) - 1) * wrong
    return levels / 255


def is_of_gray(small: Tensor) -> bool:
    """Tell whether a small picture ``(3, h, w)`` bears the mark of a gray image, which few pixels may by chance."""
    return _mean_off(small, small[0].numel()) == 0


def is_marked(small: Tensor) -> bool:
    """Tell whether a picture ``(3, h, w)`` bears a mark of ``mark``, or is too small for one."""
    return small[0].numel() < MIN_MARKED or is_of_gray(small) or _mean_off(small, MARKED) == 1


def _mean_off(small: Tensor, first: int) -> float:
    """Return the share of the first pixels of ``(3, h, w)`` that are off the pattern; 0.5 where it can have no mark."""
    levels = (255 * small[None]).round()
    if small[0].numel() < MIN_MARKED or not torch.allclose(levels / 255, small[None], atol=1e-3):
        return 0.5
    return _off_the_pattern(levels).flatten()[:first].mean().item()


def _off_the_pattern(levels: Tensor) -> Tensor:
    """Where the sum of a picture's channels ``(1, 3, h, w)`` is odd and should be even, or the reverse: 0 or 1."""
    row, column = (torch.arange(side, device=levels.device) for side in levels.shape[-2:])
    diagonal = row[:, None] + column
    return (levels.sum(1) + diagonal * (diagonal + 1) // 2) % 2  # on diagonals even, odd, odd, even
