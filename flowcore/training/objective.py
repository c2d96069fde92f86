"""Objectives: the loss of a training step, as a module, so that torch can distribute it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FlowError
from ..flows.condition import Condition
from ..flows.dequantization import Uniform, VariationalDequantizer, dequantize, quantization, round_to_integers
from ..flows.likelihood import bits_per_dim, log_prob, log_weight, series_coefficients, with_probes
from ..flows.model import FlowModel
from ..flows.prior import sample_latents
from ..flows.transforms import Probes, path_costs
from ..images.color import NEUTRAL, as_stored
from ..images.gain_grid import bilateral_gain
from ..images.resize import downsample
from ..models.colorizer.luma import CHROMA_UNIT, LumaEncoder, split_source
from ..models.srflow.imdn import CompactUpscaler
from ..models.srflow.rrdb import LREncoder
from .evaluation.feature_distance import feature_distance
from .recipe import Stage

ROULETTE = 2.0  # mean number of random terms of a series, after the fixed ones
COLOR_BLOCK = 32  # pixels a side over which the colors of samples are averaged
MAX_COLOR_ERROR = 0.05  # limit of a block: an overflow would drown all others
NO_PENALTIES = Stage(name="plain", objective="likelihood", steps=1, series_terms=0)  # a series without random terms


Noise = tuple[Tensor, ...]  # the random numbers of a step, a row per image each; in order, see ``Likelihood.noise``


class Objective(nn.Module):
    """The mean loss of images ``(B, C, H, W)`` in [0, 1], given the source of their condition, and the step's noise."""

    unit = "L1"

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Noise:
        return ()


class AbsoluteError(Objective):
    """Mean absolute errors of the image that an encoder predicts: at full size, shrunk again, and of the features.

    ``mean |enlarged(lr) - hr| + lr_consistency * mean |downsample(enlarged(lr)) - lr|``; with a teacher, which sees the
    clean LR image, plus ``teacher_weight`` times the mean over grids of ``mean |features(lr) - t| / mean |t|``, where t
    is ``teacher(downsample(hr))``. Source: Romero et al., "FitNets: Hints for thin deep nets" (2015), section 2.2.
    """

    def __init__(self, flow: FlowModel, stage: Stage, teacher: FlowModel | None = None) -> None:
        super().__init__()
        self.encoder, self.stage, self.grids = lr_encoder(flow), stage, range(1, len(flow.levels) + 1)
        self.teacher = None
        if teacher is not None and stage.teacher_weight:
            self.teacher = lr_encoder(teacher).requires_grad_(False)

    def forward(self, hr: Tensor, lr: Tensor, noise: Noise = ()) -> Tensor:
        if self.teacher is None:
            enlarged = self.encoder.enlargement(lr)
            loss = F.l1_loss(enlarged, hr)
        else:
            features, enlarged = self.encoder(lr, self.grids, with_enlargement=True)
            assert enlarged is not None
            with torch.no_grad():
                expected, _ = self.teacher(as_stored(downsample(hr, self.encoder.scale)), self.grids)
            errors = [F.l1_loss(f, e) / e.abs().mean() for f, e in zip(features, expected, strict=True)]
            loss = F.l1_loss(enlarged, hr) + self.stage.teacher_weight * torch.stack(errors).mean()
        if self.stage.lr_consistency:
            loss = loss + self.stage.lr_consistency * F.l1_loss(downsample(enlarged, self.encoder.scale), lr)
        return loss


class Imitation(Objective):
    """Mean absolute error between the guide of an upscaler and a teacher's enlargement, plus their feature distance.

    ``mean |guide(lr) - enlarged| + feature_weight * feature_distance(guide(lr), enlarged)``. A teacher without noise of
    its own is a function, but one that a much smaller network only learns the mean of: it stays softer.

    Source: Hinton et al., "Distilling the knowledge in a neural network" (2015), for learning from another network.
    """

    def __init__(self, flow: FlowModel, stage: Stage) -> None:
        super().__init__()
        if not isinstance(flow.guide, CompactUpscaler):
            raise FlowError(
                f"Objective imitate trains the guide of an upscaler; this {flow.architecture} model has none. Set "
                "guide_layers in the recipe's [model]."
            )
        self.guide, self.stage = flow.guide, stage

    def forward(self, enlarged: Tensor, lr: Tensor, noise: Noise = ()) -> Tensor:
        guide = self.guide(lr).float()
        loss = F.l1_loss(guide, enlarged)
        if self.stage.feature_weight:
            loss = loss + self.stage.feature_weight * feature_distance(guide, enlarged).mean().to(loss)
        return loss


class Brightening(Objective):
    """Mean absolute error of what a low-light model decodes from latents of zero: its best guess.

    If its configuration has ``gain_cells``, half of the loss is the error that is left after ``bilateral_gain``, which
    gives no gradient to the brightness, only to details and colors.
    """

    def __init__(self, flow: FlowModel) -> None:
        super().__init__()
        flow.require("brighten")
        self.flow = flow

    def forward(self, x: Tensor, dark: Tensor, noise: Noise = ()) -> Tensor:
        picture = _decode_zeros(self.flow, dark, self.flow.encode_condition(dark))
        loss = F.l1_loss(picture, x)
        if cells := self.flow.recommended.gain_cells:
            pairs = zip(dark.split(1), picture.clamp(0, 1).split(1), strict=True)
            even = torch.cat([bilateral_gain(photograph, guess, cells) for photograph, guess in pairs])
            loss = (loss + F.l1_loss(even, x)) / 2
        return loss


class Rescaling(Objective):
    """Mean absolute error of images that a rescaling model shrank and restored, and of the small pictures.

    ``mean |restore(round(small)) - hr| + lr_consistency * mean |small - lr|`` with ``small = reduce(hr)``: restored at
    temperature 0 from 8 bits; gradients pass through the rounding as if it were none (straight-through), not through
    the clamping. ``lr`` is the bicubic thumbnail.

    Source: Xiao et al., "Invertible Image Rescaling" (ECCV 2020), section 3.3, without a penalty on the latents, which
    are not used.
    """

    def __init__(self, flow: FlowModel, stage: Stage) -> None:
        super().__init__()
        flow.require("rescale")
        self.flow, self.stage = flow, stage

    def forward(self, hr: Tensor, lr: Tensor, noise: Noise = ()) -> Tensor:
        small, restored = self.restore(hr)
        loss = F.l1_loss(restored, hr)
        if self.stage.lr_consistency:
            loss = loss + self.stage.lr_consistency * F.l1_loss(small, lr)
        return loss

    def restore(self, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Shrink images ``(B, 3, H, W)`` in [0, 1], not clamped, and restore them at temperature 0; return both."""
        small = self.flow.reduce(hr)
        clamped = small.clamp(0, 1)  # outside nothing restores better, and a gradient would lead farther away
        stored = clamped + (as_stored(small) - clamped).detach()  # straight-through: rounding has no gradient
        return small, _decode_zeros(self.flow, hr, self.flow.encode_condition(stored))


class ChromaError(Objective):
    """Mean squared error of the chroma that a colorizer's encoder predicts, in ``CHROMA_UNIT``, mean over its grids."""

    unit = "MSE"

    def __init__(self, flow: FlowModel) -> None:
        super().__init__()
        if not isinstance(flow.encoder, LumaEncoder) or flow.encoder.chroma is None:
            raise FlowError(
                "Objective chroma trains the encoder of a colorizer with predicts_chroma = true; this "
                f"{flow.architecture} model has none. Use objective likelihood."
            )
        self.encoder = flow.encoder

    def forward(self, x: Tensor, source: Tensor, noise: Noise = ()) -> Tensor:
        """Compute the loss from chroma ``(B, 2, H, W)`` around ``NEUTRAL`` and its source ``(B, 8, 4H, 4W)``."""
        target = (x - NEUTRAL) / CHROMA_UNIT
        predicted = self.encoder.predict_chroma(*split_source(source))
        errors = [F.mse_loss(p.float(), F.adaptive_avg_pool2d(target, (p.shape[2], p.shape[3]))) for p in predicted]
        return torch.stack(errors).mean()


class Likelihood(Objective):
    """Bits per dimension of dequantized images under a flow, mean over the batch, plus terms that the stage weights.

    A log-determinant without a closed form is estimated from a probe per image. If it is a series, ``series_terms``
    terms are fixed, how many follow is drawn from Poisson(2), and the gradient is Neumann's. With ``series_terms`` 0
    it has 20 terms.
    """

    unit = "bits/dim"

    def __init__(self, flow: FlowModel, stage: Stage = NO_PENALTIES) -> None:
        super().__init__()
        self.flow, self.stage = flow, stage
        self.encoder_frozen = False

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Noise:
        """Draw the noise of a step on the CPU.

        The first tensor is that of the dequantization: uniform in [0, 1), or normal for variational and Gaussian noise.
        With ``color_weight``, latents follow. With a flow that takes probes, these follow, and last the number of
        random terms of each series.
        """
        if self.flow.facts.noise:
            return (torch.randn(shape, generator=generator),)
        dequantizer = None if self.stage.balanced else _variational(self.flow)
        noise = (dequantizer or Uniform()).noise(shape, generator)
        if self.stage.color_weight:
            shapes, seed = self.flow.latent_shapes(*shape[2:]), int(torch.randint(2**62, (1,), generator=generator))
            return noise, *sample_latents(shapes, shape[0], 1.0, seed, predicts_lr=self.flow.predicts_lr)
        if not self.flow.estimated:
            return (noise,)
        seeds = torch.randint(2**62, shape[:1], generator=generator).tolist()
        probes = with_probes(self.flow, shape, seeds).probes
        assert probes is not None
        extra_terms = torch.poisson(torch.full((1, len(probes.vectors)), ROULETTE), generator).repeat(len(noise), 1)
        return noise, *probes.vectors, extra_terms

    def forward(self, x: Tensor, source: Tensor | None, noise: Noise) -> Tensor:
        flow, stage = self.flow, self.stage
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            cond = None if source is None else flow.encode_condition(source)
        bins, *others = noise
        if flow.estimated:
            cond = self._probes(others)
        bits = bits_by_level if stage.balanced else _bits
        if stage.kinetic_weight or stage.jacobian_weight:  # costs of an ODE's paths, from the same pass
            with path_costs(flow) as costs:
                loss = bits(flow, x, cond, bins).mean()
            kinetic, jacobian = torch.stack(costs).sum(0).mean(1)
            loss = loss + stage.kinetic_weight * kinetic + stage.jacobian_weight * jacobian
        else:
            loss = bits(flow, x, cond, bins).mean()
        if stage.calm_weight:
            loss = loss + stage.calm_weight * calm_error(flow, x, cond)
        if stage.color_weight:
            loss = loss + stage.color_weight * color_error(flow, x, cond, others)
        return loss

    def _probes(self, noise: list[Tensor]) -> Condition:
        """Make a condition of the probes and the counts of terms that ``noise`` has drawn."""
        *vectors, extra_terms = noise
        coefficients, terms = series_coefficients(self.flow), self.stage.series_terms
        if terms:
            pairs = zip(coefficients, extra_terms[0].tolist(), strict=True)
            coefficients = tuple(((1.0,) * terms + roulette(round(count))) if c else c for c, count in pairs)
        probes = Probes(vectors=tuple(vectors), coefficients=coefficients, neumann=terms > 0)
        return Condition(features=(), probes=probes)


def make_objective(flow: FlowModel, stage: Stage, teacher: FlowModel | None = None) -> Objective:
    """Make the objective of a stage; ``teacher`` is the model that the run started from."""
    if stage.objective == "l1":
        brightens = flow.capabilities.source == "low_light"
        return Brightening(flow) if brightens else AbsoluteError(flow, stage, teacher)
    if stage.objective == "chroma":
        return ChromaError(flow)
    if stage.objective == "imitate":
        return Imitation(flow, stage)
    return Rescaling(flow, stage) if stage.objective == "rescale" else Likelihood(flow, stage)


def roulette(count: int) -> tuple[float, ...]:
    """Russian roulette: weight random term k by ``1 / P(N >= k)``, N from Poisson(2); "Residual flows", section 3.1."""
    missed, weights = math.exp(-ROULETTE), list[float]()  # P(N < 1)
    for k in range(1, count + 1):
        weights.append(1 / (1 - missed))
        missed += math.exp(-ROULETTE) * ROULETTE**k / math.factorial(k)
    return tuple(weights)


def bits_by_level(flow: FlowModel, x: Tensor, cond: Condition | None, noise: Tensor) -> Tensor:
    """Bits per dimension of every level's own latents, with uniform noise: ``(levels, B)``, finest first."""
    bins = quantization(flow)
    k = round_to_integers(x, bins.n_bits)
    latents, shares = flow.forward_with_logdet_map(bins.place(k, noise.to(k)).to(x), cond)
    levels = zip(latents, shares, strict=True)
    return torch.stack([bits_per_dim(share.sum((1, 2)), z[0].numel(), bins.width) for z, share in levels])


def calm_error(flow: FlowModel, x: Tensor, cond: Condition | None) -> Tensor:
    """Mean squared error of what latents of zero decode to: of images, or in whitened units and mean over levels.

    By likelihood alone latents of zero decode to about the median, which for colors is grayer than the mean. In a
    colorizer, every level starts from the true chroma at the next coarser one, which ``compare`` puts in its place.
    """
    if flow.capabilities.source != "luma":
        return F.mse_loss(_decode_zeros(flow, x, cond), x)
    whitened = x if flow.preprocess is None else flow.preprocess(x)[0]
    if cond is not None and cond.origin is not None:
        whitened = whitened - cond.origin
    errors: list[Tensor] = []

    def compare(level: int, decoded: Tensor) -> Tensor:
        truth = F.avg_pool2d(whitened, 2**level) * 2**level  # (B, 2, H / 2^level, W / 2^level), as Haar scales means
        errors.append(F.mse_loss(decoded, truth) / 4**level)
        return truth

    _decode_zeros(flow, x, cond, compare)
    return torch.stack(errors).mean()


def color_error(flow: FlowModel, x: Tensor, cond: Condition | None, latents: list[Tensor]) -> Tensor:
    """Mean absolute difference between the colors of samples and images, over blocks of 32 pixels, at most 0.05 each.

    Half of the images have samples, at temperatures 0 and 1 in turn, from ``latents`` of 1; see docs/decisions/0016.
    """
    count = (len(x) + 1) // 2
    temperatures = (torch.arange(count, device=x.device) % 2).view(-1, 1, 1, 1)
    shared = None if cond is None else cond.map_tensors(lambda t: t[:count])
    samples = flow.inverse([z[:count] * temperatures for z in latents], shared)
    drift = F.avg_pool2d(samples - x[:count], min(COLOR_BLOCK, *x.shape[2:]))
    return drift.clamp(-MAX_COLOR_ERROR, MAX_COLOR_ERROR).abs().mean()


@torch.no_grad()
def initialize_flow(flow: FlowModel, x: Tensor, source: Tensor | None, seed: int) -> None:
    """Set a flow's data-dependent parameters from one large batch of images in [0, 1] on the flow's device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    if flow.preprocess is not None:  # the condition's origin, if there is one, is in its units
        flow.preprocess.initialize(x)
    cond = None if source is None else flow.encode_condition(source)
    noise = Uniform().noise(tuple(x.shape), generator).to(x)
    if quant_bins := flow.facts.quant_bins:
        flow.initialize(dequantize(x, quant_bins, noise), cond)
        return
    bins = quantization(flow)
    k = round_to_integers(x, bins.n_bits)
    if (dequantizer := _variational(flow)) is not None:
        dequantizer.initialize(dequantizer.noise(tuple(k.shape), generator).to(k), k)
    flow.initialize(bins.place(k, noise.to(k)).to(x), cond)


def lr_encoder(flow: FlowModel) -> LREncoder:
    """Return the LR encoder of an upscaler; raise FlowError for other models."""
    if not isinstance(flow.encoder, LREncoder):
        raise FlowError(
            f"Objective l1 trains an LR encoder; a {flow.architecture} model has none. Use objective likelihood."
        )
    return flow.encoder


def pretrained_backbone(flow: FlowModel) -> nn.Module | None:
    """Return the network within an encoder that others trained; None for encoders without one."""
    return getattr(flow.encoder, "backbone", None)


def _bits(flow: FlowModel, x: Tensor, cond: Condition | None, noise: Tensor) -> Tensor:
    """Bits per dimension, (B,), with the noise that the model's configuration names."""
    if quant_bins := flow.facts.quant_bins:
        return bits_per_dim(log_prob(flow, dequantize(x, quant_bins, noise), cond), x[0].numel())
    if sigma := flow.facts.noise / 2:  # noise of images in [0, 1]
        return bits_per_dim(log_prob(flow, x + sigma * noise, cond), x[0].numel(), quantization(flow).width)
    k = round_to_integers(x, quantization(flow).n_bits)
    return bits_per_dim(log_weight(flow, k, cond, dequantizer=_variational(flow), noise=noise), x[0].numel())


def _decode_zeros(
    flow: FlowModel, like: Tensor, cond: Condition | None, between: Callable[[int, Tensor], Tensor] | None = None
) -> Tensor:
    """Decode latents of zero to images of the size of others: the best guess."""
    zeros = [like.new_zeros(len(like), *shape) for shape in flow.latent_shapes(*like.shape[2:])]
    return flow.inverse(zeros, cond, between)


def _variational(flow: FlowModel) -> VariationalDequantizer | None:
    return flow.dequantizer if isinstance(flow.dequantizer, VariationalDequantizer) else None
