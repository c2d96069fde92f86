"""Score: how many bits a model needs for an image, where they go, and what that does not say."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from ..condition import Condition
from ..errors import ConditionError, FlowError, ImageError, ShapeError
from ..flow import Flow
from ..inference.plan import planned
from ..likelihood import (
    Dequantizer,
    Gaussian,
    Grid,
    Quantisation,
    Uniform,
    dequantized,
    effective_samples,
    importance_weighted,
    quantisation,
    rows,
    to_integers,
)
from . import Cancelled, Progress, images_at_once, watched
from .runner import retry_on_oom

Dequantization = Literal["uniform", "gaussian", "variational"]

OFF_GRID = 0.02  # of an 8-bit step; float32 stays below 1e-4
WEBP_SIDE = 16383  # the longest that the format has


@dataclass(frozen=True, eq=False, kw_only=True)
class Score:
    """What a model needs for images, in bits per dimension unless it says otherwise, and the contract of the numbers.

    All tensors are float64 and on the CPU. Numbers of two scores compare only where ``contract`` is the same.

    Attributes:
        bits_per_dim: The bound from all draws together, ``(B,)``; with one draw, that draw. Lower is likelier.
        mean: Mean over the draws of what each gives alone (the ELBO), ``(B,)``; never below ``bits_per_dim``.
        spread: Their standard deviation, ``(B,)``; NaN for a single draw.
        effective_samples: How many draws carry the bound, 1 to ``samples``, ``(B,)``.
        log_prob: The bound as a density in image units, nats, ``(B,)``: ``likelihood.bits_per_dim(log_prob, D, width)``
            is ``bits_per_dim``.
        per_level: The share of every latent, finest first, ``(B, levels)``; their sum is ``bits_per_dim``. The constant
            below is in it, by each level's share of the D dimensions.
        constant: ``-log2(width)``, what the width of the bins contributes whatever the image: n_bits on the grid
            "bins".
        map: The share of every pixel, ``(B, H, W)``; their sum is ``bits_per_dim``. Shows where, not why: receptive
            fields overlap.
        complexity: What the best of some lossless compressors needs, ``(B,)``; None if it was not asked for.
        complexity_corrected: ``bits_per_dim - complexity``, ``(B,)``: high means strange to the model, beyond what
            detail explains; None likewise.
        notes: Sentences on what was done to the image, and on what the numbers are not.
        n_bits: Bits of the integers that were scored.
        grid: Where the model expects them; see ``likelihood.Quantisation``.
        dequantization: Name of the noise.
        samples: Draws per image.
        seed: Of image 0; of no meaning if the noise was given.
        bound: Whether the expectation of ``bits_per_dim`` is an upper bound on the exact bits of a discrete image.
    """

    bits_per_dim: Tensor
    mean: Tensor
    spread: Tensor
    effective_samples: Tensor
    log_prob: Tensor
    per_level: Tensor
    constant: float
    map: Tensor
    complexity: Tensor | None
    complexity_corrected: Tensor | None
    notes: tuple[str, ...]
    n_bits: int
    grid: Grid
    dequantization: str
    samples: int
    seed: int
    bound: bool

    @property
    def contract(self) -> dict[str, Any]:
        """What must be the same for two scores to compare; so must the model."""
        names = ("n_bits", "grid", "dequantization", "samples", "bound")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Typicality:
    """How usual scores are among reference scores.

    Attributes:
        distance: ``|x - mean(reference)|`` in standard deviations of the reference, ``(B,)``.
        tail: Share of the reference that lies at least as far from its mean as x, x counted with it, ``(B,)``: small
            is unusual, and ``1 / (n + 1)`` is the smallest that n reference scores can show.
    """

    distance: Tensor
    tail: Tensor


@retry_on_oom("Score smaller images, ask for fewer samples, or free memory on the device.")
@torch.no_grad()
def score(
    flow: Flow,
    image: Tensor,
    cond: Any = None,
    *,
    dequantization: Dequantization | Dequantizer = "uniform",
    samples: int = 1,
    seed: int = 0,
    noise: Tensor | None = None,
    complexity: bool = True,
    batch: int = 0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Score:
    """Say how many bits per dimension a model needs for images: the fewer, the likelier it finds them.

    What such a number can tell: which of two models fits a set of images better, and, for one model, where in an image
    and on which level of detail the surprise lies.

    What it cannot tell: whether an image is good, real, or of the kind that the model was trained on. Smooth images
    score absurdly well under every model of images: a blank one scores far better than any photograph of the training
    set, and digits may score better than the clothes that a model was trained on. Likely is not typical: nearly all
    images that a model would draw have nearly the same score, and one that is much *better* is as strange as one that
    is much worse. So compare on both sides (``typicality``), or subtract what plain detail costs
    (``complexity_corrected``), and still take neither for proof: couplings mostly learn local correlations of pixels,
    and even a perfect density ranks images differently in other coordinates. Numbers compare only for the same model
    and the same contract (bits, grid, noise, draws); 5-bit numbers never compare with 8-bit ones.

    Image i has a random generator of its own, seeded with ``seed + i``, and its draws come one after the other, so
    neither the batch nor the number of draws changes a draw. Runs in the precision of the flow's parameters.

    Args:
        flow: The model.
        image: ``(B, C, H, W)``, uint8, or float in [0, 1]; scored at its own size. With 4 channels, alpha is dropped; a
            grey image is given to an RGB model as RGB.
        cond: The model's condition, or what its ``encode_condition`` takes; None for unconditional models.
        dequantization: The noise that spreads integers over their bins: "uniform"; "gaussian", truncated to the bin;
            "variational", the model's own, if it has one; or a ``likelihood.Dequantizer``. Another noise gives another
            bound on the same number.
        samples: Draws per image: more bring the bound nearer to the exact number (importance weighting) and cost as
            many passes.
        seed: In [0, 2^64).
        noise: ``(samples, B, C, H, W)``, instead of random numbers: the noise u itself for "uniform", what the noise is
            made from for others. Uniform noise outside [0, 1) is scored, too, as the density of a noisy image; it is no
            bound then.
        complexity: Whether to compress the images for comparison.
        batch: Draws that go through the flow at once; 0 chooses by the image's size. Changes memory and time, not the
            numbers (beyond rounding).
        progress: Called with ``(done, total)``, in draws; the compression of an image counts as one.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when memory runs out and less is done at once; None logs it.

    Returns:
        The score.

    Raises:
        ImageError: If the batch is empty, has a wrong number of channels, or values that are not numbers.
        ShapeError: If the model cannot take images of that size, or the noise does not fit.
        ConditionError: If the condition does not fit.
        FlowError: If another argument is out of its range, or the model has no variational noise.
        Cancelled: If stopped.

    Source: bounds as in ``likelihood``. Nalisnick et al., "Do deep generative models know what they don't know?", and
        "Detecting out-of-distribution inputs to deep generative models using typicality"; Serra et al., "Input
        complexity and out-of-distribution detection with likelihood-based generative models"; Kirichenko et al., "Why
        normalizing flows fail to detect out-of-distribution data"; Le Lan & Dinh, "Perfect density models cannot
        guarantee anomaly detection".
    """
    quantised = quantisation(flow)
    dequantizer = _dequantizer(flow, dequantization)
    notes: list[str] = []
    k = _integers(flow, image, quantised, notes)  # (B, C, H, W)
    images, channels, height, width = k.shape
    dimensions = channels * height * width
    samples = _checked(samples, seed, batch, noise, k)
    batch = batch or images_at_once(height, width)
    cond = _condition(flow, cond, images)
    parameter = next(flow.parameters(), None)
    device, dtype = (torch.device("cpu"), torch.float32) if parameter is None else (parameter.device, parameter.dtype)

    def ask(_: object = None) -> None:
        if cancelled is not None and cancelled():
            raise Cancelled("Stopped on request.")

    latent_dimensions = [math.prod(shape) for shape in flow.latent_shapes(height, width)]
    weights = torch.empty(images, samples, dtype=torch.float64)
    levels = torch.zeros(images, len(latent_dimensions), dtype=torch.float64)  # nats of density, summed over draws
    pixels = torch.zeros(images, height, width, dtype=torch.float64)  # likewise
    inside = True
    total = images * (samples + complexity)
    done = 0
    plan = planned(flow)
    with watched(plan, ask):
        for chunk in dequantized(k, quantised, dequantizer, samples=samples, seed=seed, batch=batch, noise=noise):
            ask()
            shares = plan.by_position(chunk.x.to(device, dtype), rows(cond, chunk.items))[1]
            density = torch.stack([share.cpu().double() for share in shares], 1)  # (N, levels, H, W), nats
            log_bins = density.flatten(1).sum(1) + dimensions * math.log(quantised.width)
            weights[chunk.items, chunk.draws] = log_bins - chunk.log_q
            levels.index_add_(0, chunk.items, density.flatten(2).sum(2))
            pixels.index_add_(0, chunk.items, density.sum(1))
            inside = inside and bool(chunk.inside.all())
            done += len(chunk.items)
            if progress is not None:
                progress(done, total)
    if not inside:
        notes.append(
            "The noise leaks into neighbouring bins (it lies outside [0, 1) in places): the number is the density of a "
            "noisy image, and no bound on the bits of the image."
        )
    if not weights.isfinite().all():
        notes.append("The model gave values that are not finite numbers: these images lie outside what it can encode.")
    compressed = None
    if complexity:
        sizes: list[float] = []
        for item in k:
            ask()
            sizes.append(lossless_bits(item) / dimensions)
            done += 1
            if progress is not None:
                progress(done, total)
        compressed = torch.tensor(sizes, dtype=torch.float64)

    per_dim = -1 / (dimensions * math.log(2))  # nats to bits per dimension
    bound = importance_weighted(weights)
    bits = per_dim * bound
    level_bits, pixel_bits = per_dim * levels / samples, per_dim * pixels / samples
    # what has no place of its own: the width of the bins, the density of the noise, what several draws gain
    by_dimensions = torch.tensor(latent_dimensions, dtype=torch.float64) / sum(latent_dimensions)
    level_bits = level_bits + (bits - level_bits.sum(1))[:, None] * by_dimensions
    pixel_bits = pixel_bits + ((bits - pixel_bits.flatten(1).sum(1)) / (height * width))[:, None, None]
    return Score(
        bits_per_dim=bits,
        mean=per_dim * weights.mean(1),
        spread=(per_dim * weights).std(1) if samples > 1 else torch.full_like(bits, math.nan),
        effective_samples=effective_samples(weights),
        log_prob=bound - dimensions * math.log(quantised.width),
        per_level=level_bits,
        constant=-math.log2(quantised.width),
        map=pixel_bits,
        complexity=compressed,
        complexity_corrected=None if compressed is None else bits - compressed,
        notes=tuple(notes),
        n_bits=quantised.n_bits,
        grid=quantised.grid,
        dequantization=dequantizer.name,
        samples=samples,
        seed=seed,
        bound=inside,
    )


def typicality(
    score_values: Score | Tensor | Sequence[float], reference_values: Score | Tensor | Sequence[float]
) -> Typicality:
    """Compare scores with those of images that are known to be usual, in both directions.

    Images that a model finds much likelier than the usual ones are as unusual as those that it finds much less likely.
    This is the published test for a single image, with the mean of the reference in the place of the model's entropy.
    It knows nothing but one number per image, so it can be fooled: an unusual image may well have a usual score. It
    says "unusual for these", never "usual".

    Args:
        score_values: Scores, or bits per dimension, ``(B,)``.
        reference_values: Those of images that were not used in training, from the same model under the same contract;
            ``(n,)``, some hundred if the tail is to mean anything.

    Returns:
        Distance and tail.

    Raises:
        FlowError: If the two differ in their contracts, hold values that are not finite, or the reference holds no two
            different values.

    Source: Nalisnick et al., "Detecting out-of-distribution inputs to deep generative models using typicality".
    """
    if isinstance(score_values, Score) and isinstance(reference_values, Score):
        ours, theirs = score_values.contract, reference_values.contract
        differing = [f"{name} {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]]
        if differing:
            raise FlowError(f"Scores of different contracts do not compare: {', '.join(differing)}. Score both alike.")
    x, reference = _values(score_values), _values(reference_values)
    mean, spread = reference.mean(), reference.std() if len(reference) > 1 else reference.new_zeros(())
    if not spread > 0:
        raise FlowError(
            f"Typicality needs at least 2 different reference scores; got {len(reference)} scores of spread "
            f"{float(spread):g}. Score more reference images."
        )
    off, usual = (x - mean).abs(), (reference - mean).abs().sort()[0]
    nearer = torch.searchsorted(usual, off)  # how many of the reference are strictly nearer to their mean
    return Typicality(distance=off / spread, tail=(len(usual) - nearer + 1) / (len(usual) + 1.0))


def lossless_bits(integers: Tensor) -> float:
    """Compress an image without loss, and count what it takes beyond a flat image of its size.

    The least over Pillow's optimised PNG, lossless WebP and lossless JPEG 2000 of ``8 * (bytes - bytes of black)``, at
    least 0. The compressors see exactly the integers given. Other versions of the compressors need other numbers of
    bytes, by a few per mille.

    Args:
        integers: k, ``(C, H, W)``, whole numbers from 0 to 255.

    Returns:
        Bits.

    Source: Serra et al., "Input complexity and out-of-distribution detection with likelihood-based generative models",
    section 3, with more compressors and without their containers.
    """
    pixels = integers.to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
    if pixels.shape[2] != 3:  # one plane; other numbers of channels one below the other
        pixels = pixels.transpose(2, 0, 1).reshape(-1, pixels.shape[1])
    return 8.0 * max(0, min(a - b for a, b in zip(_sizes(pixels), _overheads(pixels.shape), strict=True)))


@functools.lru_cache(maxsize=64)
def _overheads(shape: tuple[int, ...]) -> list[int]:
    """Bytes of a black image."""
    return _sizes(np.zeros(shape, np.uint8))


def _sizes(pixels: np.ndarray[Any, Any]) -> list[int]:
    """Bytes by compressor, of those that this Pillow has and that take such an image."""
    sides = pixels.shape[:2]
    options: dict[str, dict[str, Any]] = {"PNG": {"optimize": True}}
    if features.check("webp") and max(sides) <= WEBP_SIDE:
        options["WEBP"] = {"lossless": True, "quality": 80, "method": 4, "exact": True}
    if features.check("jpg_2000"):
        resolutions = min(6, int(math.log2(min(sides))) + 1)
        options["JPEG2000"] = {"irreversible": False, "no_jp2": True, "num_resolutions": resolutions}
    sizes: list[int] = []
    for name, choices in options.items():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name, **choices)
        sizes.append(file.tell())
    return sizes


def _dequantizer(flow: Flow, dequantization: Dequantization | Dequantizer) -> Dequantizer:
    if not isinstance(dequantization, str):
        return dequantization
    if dequantization == "uniform":
        return Uniform()
    if dequantization == "gaussian":
        return Gaussian()
    if dequantization != "variational":
        raise FlowError(
            f'dequantization must be "uniform", "gaussian", "variational" or a dequantizer; got {dequantization!r}.'
        )
    own: Any = flow.dequantizer
    if own is None:
        raise FlowError(
            f"This {flow.architecture} model has no variational dequantizer: it was trained without one. Use "
            'dequantization="uniform", and more samples for a tighter bound.'
        )
    return own


def _integers(flow: Flow, image: Tensor, quantised: Quantisation, notes: list[str]) -> Tensor:
    """Bring an image into the integers and channels of the model, and note what that took."""
    if image.ndim != 4:
        raise ImageError(f"Expected images of shape (B, C, H, W); got {tuple(image.shape)}.")
    if 0 in image.shape:
        raise ImageError(
            f"Nothing to score: the batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least one "
            "image."
        )
    if image.shape[1] == 4 and flow.channels != 4:
        image = image[:, :3]
        notes.append("Alpha was dropped: colours were scored as if opaque.")
    if image.shape[1] == 1 and flow.channels == 3:
        image = image.expand(-1, 3, -1, -1)
        notes.append("A grey image was scored as RGB: the two repeated channels cost a model of colour images little.")
    if image.shape[1] != flow.channels:
        turn = "Convert it to grey first." if flow.channels == 1 else "Convert it first."
        raise ImageError(
            f"This model takes images of {flow.channels} channels; got {image.shape[1]}, {tuple(image.shape)}. {turn}"
        )
    _check_size(flow, *image.shape[-2:])
    k, off = to_integers(image.cpu().contiguous(), quantised.n_bits)  # another layout would round otherwise
    furthest = float(off.max())
    if furthest > 0.5 + OFF_GRID:
        notes.append("Values outside [0, 1] were clamped.")
    elif furthest > OFF_GRID:
        notes.append(
            f"The image is not on the 8-bit grid (off it by up to {furthest:.2g} of a step) and was rounded to it: it "
            "was probably resized, filtered or blended before, which changes its score."
        )
    if quantised.n_bits < 8:
        notes.append(
            f"Scored at {quantised.n_bits} bits: {2**quantised.n_bits} values per channel. Such numbers do not compare "
            "with 8-bit ones."
        )
    return k


def _check_size(flow: Flow, height: int, width: int) -> None:
    size, m = flow.image_size, flow.size_multiple
    if flow.fixed_size and size is not None and (height, width) != tuple(size):
        raise ShapeError(
            f"This model scores images of {size[0]}x{size[1]}, the size that it was made for; got {height}x{width}. "
            f"Crop or resize to {size[0]}x{size[1]} first (resizing changes the score)."
        )
    if height % m or width % m:
        fits = "x".join(f"{max(m, side // m * m)}" for side in (height, width))
        raise ShapeError(
            f"This model scores images with sides divisible by {m}; got {height}x{width}. Crop to {fits} first: "
            "padding would be scored, too."
        )


def _checked(samples: int, seed: int, batch: int, noise: Tensor | None, k: Tensor) -> int:
    """Check the numbers, and return the number of draws."""
    if samples < 1:
        raise FlowError(f"samples must be at least 1; got {samples}.")
    if batch < 0:
        raise FlowError(f"batch must not be negative; got {batch}. 0 chooses by the image's size.")
    if not isinstance(seed, int) or not 0 <= seed < 2**64:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FlowError(f"A seed must be a whole number in [0, 2^64); got {seed!r}.")
    if noise is None:
        return samples
    if noise.ndim != 5 or noise.shape[1:] != k.shape or samples not in (1, noise.shape[0]) or not len(noise):
        draws = "samples" if samples == 1 else samples
        raise ShapeError(
            f"Expected noise of shape ({draws}, {', '.join(map(str, k.shape))}), a draw for every sample and image; "
            f"got {tuple(noise.shape)}."
        )
    if not noise.isfinite().all():
        raise FlowError("The noise holds values that are not finite numbers. Draw it anew.")
    return noise.shape[0]


def _condition(flow: Flow, cond: Any, images: int) -> Any:
    if isinstance(cond, Tensor):
        parameter = next(flow.parameters(), None)
        cond = planned(flow).encode_condition(cond if parameter is None else cond.to(parameter.device))
    if isinstance(cond, Condition) and cond.batch not in (1, images):
        raise ConditionError(
            f"A condition of {cond.batch} items came with {images} images. Encode one for every image, or one for all."
        )
    return cond


def _values(values: Score | Tensor | Sequence[float]) -> Tensor:
    """Take scores as (n,) float64 on the CPU."""
    bits = values.bits_per_dim if isinstance(values, Score) else torch.as_tensor(values, dtype=torch.float64)
    bits = bits.detach().to("cpu", torch.float64).reshape(-1)
    if not bits.isfinite().all():
        raise FlowError("The scores hold values that are not finite numbers. Score finite images.")
    return bits
