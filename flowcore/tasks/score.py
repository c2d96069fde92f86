"""Score: how many bits a model needs for an image, where they go, and what that does not say."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..engine.compiled import CompiledFlow
from ..engine.image_batch import WHITE, notify_of_range, refuse_integer_range, require_pixels, require_tensor
from ..engine.options import SEED, BatchOptions, draws, python
from ..engine.ranges import Setting, count
from ..engine.runner import Runner, batch_size, runs_with
from ..errors import FlowError, ImageError, ShapeError, say
from ..flows.condition import Condition
from ..flows.dequantization import (
    DequantizedBatch,
    Dequantizer,
    Gaussian,
    Grid,
    Uniform,
    dequantized_batches,
    quantization,
    to_integers,
)
from ..flows.likelihood import effective_samples, importance_weighted, select_items, with_probes
from ..flows.model import FlowModel
from ..flows.prior import log_density
from ..flows.transforms import NoLogdetMapError, StochasticLogdet
from ..images.lossless import lossless_bits

Dequantization = Literal["uniform", "gaussian", "variational"]

OFF_GRID = 0.02  # in 8-bit steps; float32 stays below 1e-4
SEED_STEP = 1_000_003  # difference between the seeds of an image's probes


@dataclass(frozen=True, eq=False, kw_only=True)
class Score:
    """Bits per dimension that a model needs for images, with all that they depend on.

    All tensors are float64 and on the CPU. Two scores compare only if the model, ``n_bits``, ``grid``,
    ``dequantization``, ``samples``, ``bound`` and, where there are probes, ``probes`` and ``terms`` are the same.

    >>> score = flowcore.score(flowcore.load("glow-photos"), torch.rand(1, 3, 32, 32))
    >>> torch.allclose(score.per_level.sum(1), score.bits_per_dim)
    True

    Attributes:
        bits_per_dim: Importance-weighted bound from all draws, ``(B,)``. Lower is likelier.
        mean: Mean of the single-draw bounds (the ELBO), ``(B,)``; never below ``bits_per_dim``.
        spread: Standard deviation of the single-draw bounds, ``(B,)``; NaN for one draw.
        effective_samples: How many draws carry the bound, 1 to ``samples``, ``(B,)``.
        log_prob: The bound as a density in image units, nats, ``(B,)``: ``likelihood.bits_per_dim(log_prob, D, width)``
            is ``bits_per_dim``.
        per_level: Share of every latent, finest first, ``(B, levels)``, summing to ``bits_per_dim``. ``constant`` is
            spread over the levels by their dimensions.
        constant: ``-log2(width)``, the contribution of the bin width to every image: n_bits on the grid "bins".
        map: Share of every pixel, ``(B, H, W)``, summing to ``bits_per_dim``: where, not why, as receptive fields
            overlap. None if a transform does not say where its logdet comes from; that is then spread over the levels
            by their dimensions, too.
        complexity: Bits per dimension of the best lossless compressor, ``(B,)``; None if not requested.
        complexity_corrected: ``bits_per_dim - complexity``, ``(B,)``: high means more unusual than its detail explains;
            None if not requested.
        notes: Sentences on what was done to the image, and on what the numbers are not.
        n_bits: Bits of the integers that were scored.
        grid: Where the model expects the integers; see ``dequantization.Quantization``.
        dequantization: Name of the noise.
        samples: Draws per image.
        seed: As it was given; meaningless if the noise was passed in.
        bound: Whether the expectation of ``bits_per_dim`` is an upper bound on the exact bits of a discrete image.
        probes: Random probes per draw from which the log-determinant was estimated; 0 where it is exact.
        terms: Of the power series in that estimate; 0 where there is none.
        standard_error: Of ``bits_per_dim`` as an estimate from so many probes, ``(B,)``: 0 where the log-determinant is
            exact, NaN for one probe.
    """

    bits_per_dim: Tensor
    mean: Tensor
    spread: Tensor
    effective_samples: Tensor
    log_prob: Tensor
    per_level: Tensor
    constant: float
    map: Tensor | None
    complexity: Tensor | None
    complexity_corrected: Tensor | None
    notes: tuple[str, ...]
    n_bits: int
    grid: Grid
    dequantization: str
    samples: int
    seed: int
    bound: bool
    probes: int
    terms: int
    standard_error: Tensor


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(BatchOptions):
    """Options of ``score``."""

    dequantization: Annotated[
        Dequantization | Dequantizer,
        Setting(
            help='The noise that spreads integers over their bins: "uniform"; "gaussian", truncated to the bin; '
            '"variational", the model\'s own; or a ``dequantization.Dequantizer``. Each gives another bound.'
        ),
    ] = "uniform"
    samples: Annotated[
        int,
        draws(
            "Draws per image. More draws tighten the bound (importance weighting) and cost as many passes; several "
            "show its spread."
        ),
    ] = 1
    seed: Annotated[int, SEED._replace(help="Of the noise, in [0, 2^64).")] = 0
    noise: Annotated[
        Tensor | None,
        python(
            '``(samples, B, C, H, W)``, replaces the random draws: u itself for "uniform", what the noise is computed '
            "from for others. Uniform noise outside [0, 1) is scored, too, as the density of a noisy image, but is no "
            "bound."
        ),
    ] = None
    complexity: Annotated[bool, python("Whether to compress the images for comparison.")] = True
    probes: Annotated[
        int,
        count(
            0,
            help="For models without a closed form of their log-determinant (Residual Flow, FFJORD): random probes per "
            "draw, whose estimates are averaged and tell the standard error; 0 for the exact value, which small images "
            "alone allow. Other models ignore it.",
        ),
    ] = 4
    terms: Annotated[
        int,
        count(
            1,
            help="Of the power series in these estimates; those left out are a bias that no number of probes shows.",
        ),
    ] = 20


@runs_with(ScoreSettings)
def score(flow: FlowModel, image: Tensor, cond: Condition | Tensor | None = None, *, settings: ScoreSettings) -> Score:
    """Compute how many bits per dimension a model needs for images: the fewer, the likelier it finds them.

    The number tells which of two models fits a set of images better and, for one model, where in an image and at which
    level of detail the surprise lies. It does not tell whether an image is good, real, or like the training set: a
    blank one beats every photograph of it. Nearly all images that a model would draw have nearly the same score, and
    one that is much *better* is as unusual as one that is much worse. So compare on both sides, or subtract the cost of
    plain detail (``complexity_corrected``), and take neither as proof. ``Score`` says which numbers compare.

    Draws depend on ``seed`` and the image's content (see ``image_seeds``), not on the batch, the place there, or the
    number of draws. Runs in the precision of the flow's parameters.

    >>> result = flowcore.score(flowcore.load("glow-photos"), torch.rand(2, 3, 32, 32), samples=3)
    >>> result.bits_per_dim.shape, bool((result.mean >= result.bits_per_dim).all())
    (torch.Size([2]), True)

    Args:
        flow: The model.
        image: ``(B, C, H, W)``, uint8, uint16, or float in [0, 1]; scored at its own size. Alpha is dropped; an RGB
            model gets a gray image as RGB.
        cond: The model's condition, or what its ``encode_condition`` takes; None for unconditional models.
        settings: The options below, by name.

    Returns:
        The score.

    Raises:
        ImageError: If the batch is empty, has a wrong number of channels, or values that are not numbers.
        ShapeError: If the model cannot take images of that size, or the noise does not fit.
        ConditionError: If the condition does not fit.
        FlowError: If another argument is out of its range, the model has no variational noise, or memory does not
            suffice.

    Source: bounds as in ``likelihood``. Nalisnick et al., "Do deep generative models know what they don't know?", and
        "Detecting out-of-distribution inputs to deep generative models using typicality"; Serra et al., "Input
        complexity and out-of-distribution detection with likelihood-based generative models"; Kirichenko et al., "Why
        normalizing flows fail to detect out-of-distribution data"; Le Lan & Dinh, "Perfect density models cannot
        guarantee anomaly detection".
    """
    samples, seed, noise, complexity = settings.samples, settings.seed, settings.noise, settings.complexity
    advice = say("Score smaller images, ask for fewer samples, or free memory on the device.")
    run = Runner(flow, settings, advice, image)
    probes = settings.probes if flow.estimated else 0
    has_series = any(isinstance(part, StochasticLogdet) and part.has_series for part in flow.modules())
    terms = settings.terms if probes and has_series else 0

    def task() -> Score:
        notes = list[str]()
        bins, dequantizer = quantization(flow), _dequantizer(flow, settings.dequantization)
        integers = _integers(flow, image, bins.n_bits, notes)  # (B, C, H, W)
        notify_of_range(image, run.notify)
        draws = _draws_per_image(samples, noise, integers)
        run.expect(len(integers) * (draws + complexity))
        condition = run.compiled.encode_condition(run.to_device(cond)) if isinstance(cond, Tensor) else cond
        if condition is not None:
            condition.check_batch(len(integers))
        seeds = image_seeds(seed, integers)
        densities = _Densities(flow, integers.shape, draws, max(1, probes), notes)
        size = run.at_once(batch_size(*integers.shape[2:]))
        batches = dequantized_batches(integers, bins, dequantizer, samples=draws, seed=seeds, batch=size, noise=noise)
        for batch in batches:
            x, batch_cond = batch.x.to(run.device, run.dtype), select_items(condition, batch.items)
            conditions = _probe_conditions(run.compiled, batch, seeds, probes, terms) if probes else [batch_cond]
            for number, cond_or_probes in enumerate(conditions):
                run.check_cancelled()
                densities.add(run.compiled, batch, x, cond_or_probes, number)
            run.advance(len(batch.items))
        bits = densities.bits(estimated=probes > 0)
        if probes:
            notes.append(_estimate_note(bits["standard_error"], probes, terms))
        compressed = _compressed_bits(run, integers) if complexity else None
        return Score(
            **bits,
            complexity=compressed,
            complexity_corrected=None if compressed is None else bits["bits_per_dim"] - compressed,
            notes=tuple(notes),
            n_bits=bins.n_bits,
            grid=bins.grid,
            dequantization=dequantizer.name,
            samples=draws,
            seed=seed,
            bound=densities.inside and not probes,
            probes=probes,
            terms=terms,
        )

    return run.retry_on_oom(task)


class _Densities:
    """Log densities of images of integers, in nats, float64: sums over their draws, and means over their probes."""

    def __init__(self, flow: FlowModel, shape: Sequence[int], draws: int, passes: int, notes: list[str]) -> None:
        images, _, height, width = shape
        self.level_dimensions = [math.prod(latents) for latents in flow.latent_shapes(height, width)]
        self.bin_width, self.notes = quantization(flow).width, notes
        self.weights = torch.empty(images, draws, passes, dtype=torch.float64)  # log p(bin) - log q(noise)
        self.levels = torch.zeros(images, len(self.level_dimensions), dtype=torch.float64)
        self.pixels: Tensor | None = torch.zeros(images, height, width, dtype=torch.float64)
        self.inside = True  # whether all noise stays in its bin

    def add(
        self, compiled: CompiledFlow, batch: DequantizedBatch, x: Tensor, cond: Condition | None, number: int
    ) -> None:
        """Add a batch of draws under a condition, or under its probes of that number."""
        share = 1 / self.weights.shape[2]
        density, log_prob = self._compute(compiled, x, cond)
        log_prob = log_prob + x[0].numel() * math.log(self.bin_width)
        self.weights[batch.items, batch.draws, number] = log_prob - batch.log_q
        self.levels.index_add_(0, batch.items, density.flatten(2).sum(2) * share)
        if self.pixels is not None:
            self.pixels.index_add_(0, batch.items, density.sum(1) * share)
        self.inside &= bool(batch.inside.all())

    def _compute(self, compiled: CompiledFlow, x: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor]:
        """Compute densities by level and place, ``(N, levels, H, W)`` (latents': ``(N, levels, 1)``), and log_prob."""
        if self.pixels is not None:
            try:
                shares = torch.stack(
                    [share.cpu().double() for share in compiled.forward_with_logdet_map(x, cond)[1]], 1
                )
                return shares, shares.flatten(1).sum(1)
            except NoLogdetMapError:
                self.pixels = None
                self.notes.append("No map: a part of this model does not say where its log-determinant comes from.")
        latents, logdet = compiled(x, cond)
        prior = torch.stack([log_density(z).cpu().double().flatten(1).sum(1) for z in latents], 1)
        return prior[:, :, None], prior.sum(1) + logdet.cpu().double()

    def bits(self, *, estimated: bool) -> dict[str, Any]:
        """Convert the densities to bits per dimension: fields of ``Score``; note what these are not."""
        if not self.inside:
            self.notes.append(
                "The noise leaks into neighboring bins (it lies outside [0, 1) in places): the number is the density "
                "of a noisy image, not a bound on the bits of the image."
            )
        if not self.weights.isfinite().all():
            self.notes.append(
                "The model gave values that are not finite numbers: these images lie outside what it can encode."
            )
        images, draws, passes = self.weights.shape
        dimensions = sum(self.level_dimensions)
        per_dim = 1 / (dimensions * math.log(2))  # converts nats to bits per dimension
        error = torch.full((images,), math.nan if estimated else 0.0, dtype=torch.float64)
        if passes > 1:
            derivatives = torch.softmax(self.weights.mean(2), 1)  # derivatives of the bound
            error = per_dim * (derivatives.square() * self.weights.var(2) / passes).sum(1).sqrt()
        weights = self.weights.mean(2)
        bound = importance_weighted(weights)
        bits = -per_dim * bound
        # The bin width, the density of the noise and the gain of several draws have no place: spread them evenly.
        levels, pixels = -per_dim * self.levels / draws, None
        by_dimensions = torch.tensor(self.level_dimensions, dtype=torch.float64) / dimensions
        levels = levels + (bits - levels.sum(1))[:, None] * by_dimensions
        if self.pixels is not None:
            pixels = -per_dim * self.pixels / draws
            pixels = pixels + ((bits - pixels.flatten(1).sum(1)) / pixels[0].numel())[:, None, None]
        return {
            "bits_per_dim": bits,
            "mean": -per_dim * weights.mean(1),
            "spread": (per_dim * weights).std(1) if draws > 1 else torch.full_like(bits, math.nan),
            "effective_samples": effective_samples(weights),
            "log_prob": bound - dimensions * math.log(self.bin_width),
            "per_level": levels,
            "constant": -math.log2(self.bin_width),
            "map": pixels,
            "standard_error": error,
        }


def _probe_conditions(
    compiled: CompiledFlow, batch: DequantizedBatch, seeds: Sequence[int], probes: int, terms: int
) -> Iterator[Condition]:
    """Draw the probes of a batch, the same whatever the batch and its order."""
    for probe in range(probes):
        numbers = (SEED_STEP * (batch.draws * probes + probe)).tolist()
        items = zip(batch.items.tolist(), numbers, strict=True)
        drawn_with = [(seeds[item] + number) % 2**64 for item, number in items]
        yield with_probes(compiled, batch.x.shape, drawn_with, terms=terms)


def _estimate_note(error: Tensor, probes: int, terms: int) -> str:
    series = f" and {terms} terms of its series" if terms else ""
    spread = "unknown error, with a single probe"
    if probes > 1:
        spread = f"a standard error of up to {float(error.max()):.4f} bits per dimension"
    return (
        f"The log-determinant was estimated, from {probes} random probe{'s' * (probes > 1)} per draw{series}: "
        f"{spread}, and no bound on the bits of the image."
    )


def _compressed_bits(run: Runner, integers: Tensor) -> Tensor:
    bits = list[float]()
    for item in integers:
        run.check_cancelled()
        bits.append(lossless_bits(item) / item.numel())
        run.advance()
    return torch.tensor(bits, dtype=torch.float64)


def image_seeds(seed: int, integers: Tensor) -> list[int]:
    """Derive a seed for each image, whatever its batch: ``seed`` plus 64 bits of its integers' SHA-256, mod 2^64."""
    contents = [item.to("cpu", torch.uint8).contiguous().numpy().tobytes() for item in integers]
    digests = [hashlib.sha256(content).digest()[:8] for content in contents]
    return [(seed + int.from_bytes(digest, "big")) % 2**64 for digest in digests]


def ranking_key(bits: float, corrected: float | None, enlarged: bool) -> tuple[bool, bool, float]:
    """Sort key, likeliest first, by corrected bits if any; enlarged images, which are all likelier, come last."""
    value = bits if corrected is None else corrected
    return enlarged, not math.isfinite(value), value


def _dequantizer(flow: FlowModel, dequantization: Dequantization | Dequantizer) -> Dequantizer:
    if not isinstance(dequantization, str):
        return dequantization
    named: dict[str, Any] = {"uniform": Uniform(), "gaussian": Gaussian(), "variational": flow.dequantizer}
    if dequantization not in named:
        raise FlowError(
            f'dequantization must be "uniform", "gaussian", "variational" or a dequantizer; got {dequantization!r}.'
        )
    if named[dequantization] is None:
        raise FlowError(
            f"This {flow.architecture} model has no variational dequantizer: it was trained without one. Use "
            'dequantization="uniform", and more samples for a tighter bound.'
        )
    return named[dequantization]


def _integers(flow: FlowModel, image: Tensor, n_bits: int, notes: list[str]) -> Tensor:
    """Convert an image to the integers and channels of the model, with a note on every change."""
    require_tensor(image)
    if image.ndim != 4:
        raise ImageError(f"Expected images of shape (B, C, H, W); got {tuple(image.shape)}.")
    require_pixels(image)
    if image.shape[1] == 4 and flow.channels != 4:
        image = image[:, :3]
        notes.append("Alpha was dropped: colors were scored as if opaque.")
    if image.shape[1] == 1 and flow.channels == 3:
        image = image.expand(-1, 3, -1, -1)
        notes.append("A gray image was scored as RGB: the two repeated channels cost a model of color images little.")
    if image.shape[1] != flow.channels:
        raise ImageError(
            f"This model takes images of {flow.channels} channels; got {image.shape[1]}, {tuple(image.shape)}. Convert "
            "them first."
        )
    flow.latent_shapes(*image.shape[-2:])  # raises ShapeError for a size that does not fit
    if image.is_floating_point() and image.isfinite().all():
        refuse_integer_range(image)
    image = image.float() / WHITE[torch.uint16] if image.dtype == torch.uint16 else image
    k, off = to_integers(image.cpu().contiguous(), n_bits)  # another layout would round differently
    furthest = float(off.max())
    if furthest > 0.5 + OFF_GRID:
        notes.append("Values outside [0, 1] were clamped.")
    elif furthest > OFF_GRID:
        notes.append(
            f"The image is not on the 8-bit grid (off it by up to {furthest:.2g} of a step) and was rounded to it: it "
            "was probably resized, filtered or blended before, which changes its score."
        )
    if n_bits < 8:
        notes.append(f"Scored at {n_bits} bits: bits per dimension do not compare with those of 8-bit models.")
    return k


def _draws_per_image(samples: int, noise: Tensor | None, k: Tensor) -> int:
    if noise is None:
        return samples
    if noise.ndim != 5 or noise.shape[1:] != k.shape or samples not in (1, noise.shape[0]) or not len(noise):
        draws = "samples" if samples == 1 else samples
        raise ShapeError(
            f"Expected noise of shape ({draws}, {', '.join(map(str, k.shape))}), a draw for every sample and image; "
            f"got {tuple(noise.shape)}."
        )
    if not noise.isfinite().all():
        raise FlowError("The noise holds values that are not finite numbers. Draw it again.")
    return noise.shape[0]
