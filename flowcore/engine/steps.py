"""Folded levels: the transforms of a flow as mixings, and as affine maps that run in strips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConditionError
from ..flows.flow import Details, Level
from ..flows.networks.convolutions import ConditionConv, StreamedConditionConv, rows_of
from ..flows.networks.strips import Rows, StripBudget, Tile, canvas, report
from ..flows.transforms import (
    ODE,
    ActNorm,
    Autoregression,
    Chain,
    CheckerboardCoupling,
    ConditionOnChannels,
    Coupling,
    Injector,
    LevelCondition,
    MultiScaleFeatures,
    Permutation,
    Probes,
    Residual,
    Scaling,
    Split,
    Transform,
    flat_parts,
)
from ..flows.transforms.coupling import (
    SIGMOID_OFFSET,
    concatenate,
    join_channels,
    log_scale_of,
    scale_of,
    split_channels,
)
from ..models.family import folded
from .conditioners import FoldedConditioner, UnsplitConditioner, folded_conditioner
from .fold import PIXELWISE, Mixing, channel_affine

R = TypeVar("R")


class FoldedLevel(Level):
    """A level of folded parts."""

    @property
    def affine(self) -> list[FoldedAffine]:
        """Its couplings and injectors, in the data-to-latent direction."""
        return [part for part in self.steps.modules() if isinstance(part, FoldedAffine)]

    def precompute(self, features: MultiScaleFeatures) -> MultiScaleFeatures:
        """Compute the condition's terms of all couplings and injectors, with one convolution for all."""
        affine = self.affine
        convs = {part: part.network.condition for part in affine if part.network.condition is not None}
        if not convs:
            return features
        weight = torch.cat([conv.weight for conv in convs.values()])
        bias = torch.cat([conv.bias for conv in convs.values()])
        together, widths = ConditionConv(weight, bias, weight.dtype), [conv.outputs for conv in convs.values()]
        terms = dict(zip(convs, together.on_canvas(features, affine[0].budget, widths, len(convs)), strict=True))
        precomputed = tuple(part.precompute(terms[part]) if part in terms else None for part in affine)
        return MultiScaleFeatures(sources=features.sources, precomputed=precomputed)


class FoldedStep(Chain):
    """A mixing, perhaps an injector, and a coupling, whose inverse takes a strip through all three at once."""

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mixing, *injectors, coupling = self.parts()
        assert isinstance(coupling, FoldedAffine)
        affine = [coupling, *(part for part in reversed(injectors) if isinstance(part, FoldedAffine))]
        return _invert_in_strips(affine, z, cond, mixing)


class FoldedAffine(Transform):
    """A coupling or an injector: ``z = (x + shift) * scale``, of one half of the channels or of all, in strips."""

    def __init__(
        self, network: FoldedConditioner | UnsplitConditioner, transform: Coupling | Injector, budget: StripBudget
    ) -> None:
        """Replace a transform, with its folded conditioner."""
        super().__init__()
        self.number = 0  # its place in ``FoldedLevel.affine``
        self.network, self.budget, self.eps = network, budget, transform.eps
        self.scaling: Scaling = transform.scaling
        self.coupling, self.swap, self.first = False, False, 0
        if isinstance(transform, Coupling):
            self.coupling, self.swap, self.first = True, transform.swap, transform.first

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        params = AffineParams(self, x, cond)
        z, log_scales = canvas(x.shape, x), x.new_zeros(x.shape[0], *x.shape[2:])
        for tile in self.network.tiles(x, self.budget):
            items, top, bottom = tile
            x1, x2 = self.split(x[items, :, top:bottom])
            shift, r = self._shift_scale(params.compute(tile), x)
            x2 = x2 + shift
            if r is not None:
                log_scale = log_scale_of(r, self.eps, self.scaling)
                log_scales[items, top:bottom] = log_scale.sum(1)
                x2.mul_(scale_of(r, self.eps, self.scaling) if self.eps else log_scale.exp())
            z[items, :, top:bottom] = self._join(x1, x2)
        report(1)
        return z, log_scales

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return _invert_in_strips([self], z, cond)

    def invert_strip(self, z: Tensor, raw: Tensor) -> Tensor:
        """Map a strip ``(B, C, rows, W)`` from latent to data, given its shifts and raw scales."""
        z1, z2 = self.split(z)
        shift, r = self._shift_scale(raw, z)
        return self._join(z1, z2 - shift if r is None else (z2 / scale_of(r, self.eps, self.scaling)).sub_(shift))

    def precompute(self, term: Tensor) -> Tensor:
        """Return the condition's term of the first convolution, or, if nothing else enters, the network's output."""
        network = self.network
        assert isinstance(network, FoldedConditioner)
        if network.conv_flow is not None:
            return term
        batch, _, height, width = term.shape
        output = canvas((batch, network.outputs, height, width), term)
        for _, top, bottom in network.tiles(term, self.budget):
            output[:, :, top:bottom] = network.strip(None, rows_of(term), top, bottom, height)
        return output

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the part that conditions, which an injector has not, and the part that changes."""
        return split_channels(x, self.first, self.swap) if self.coupling else (None, x)

    def _shift_scale(self, raw: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        raw = raw.to(like.dtype)
        if self.scaling == "none":
            return raw, None
        shift, r = raw.chunk(2, dim=1)
        return shift, r.contiguous(memory_format=torch.channels_last)  # else a sigmoid takes eight times as long

    def _join(self, x1: Tensor | None, x2: Tensor) -> Tensor:
        return x2 if x1 is None else join_channels(x1, x2, self.swap)


class AffineParams:
    """Shifts and raw scales of a coupling or an injector, for one batch and condition, computed tile by tile."""

    def __init__(self, part: FoldedAffine, x: Tensor, cond: LevelCondition | None) -> None:
        self.network, self.height = part.network, x.shape[2]
        self.inputs: Tensor | None = None  # the network's input, (B, C, H, W), without what ``terms`` or ``output`` has
        self.terms: Rows | None = None  # the condition's term of the first convolution
        self.output: Tensor | None = None  # (B or 1, outputs, H, W), if it depends on the condition alone, and is known

        cond = cond or LevelCondition()
        inputs = [t for t in (part.split(x)[0], cond.flow_channels) if t is not None]
        features = cond.features if cond.multi_scale is None else cond.multi_scale
        if isinstance(part.network, UnsplitConditioner):
            if features is not None:
                inputs.append(features.merged() if isinstance(features, MultiScaleFeatures) else features)
            self.inputs = torch.cat([t.expand(x.shape[0], *t.shape[1:]) for t in inputs], dim=1)
            return
        self.inputs = concatenate(inputs) if inputs else None
        if isinstance(features, MultiScaleFeatures) and features.precomputed is not None:
            precomputed = features.precomputed[part.number]
            if part.network.conv_flow is None:
                self.output = precomputed
            elif precomputed is not None:
                self.terms = rows_of(precomputed)
        elif part.network.condition is not None:
            if features is None:
                raise ConditionError("This step needs a condition; got none. Pass flow.encode_condition(source).")
            self.terms = StreamedConditionConv(part.network.condition, multi_scale(features), part.budget)

    def compute(self, tile: Tile) -> Tensor:
        """Compute a tile, ``(b or 1, outputs, rows, W)``."""
        items, top, bottom = tile
        if self.output is not None:
            return self.output[:, :, top:bottom]
        inputs = None if self.inputs is None else self.inputs[items]
        if isinstance(self.network, FoldedConditioner):
            return self.network.strip(inputs, self.terms, top, bottom, self.height)
        return self.network(inputs)


def _invert_in_strips(
    parts: Sequence[FoldedAffine], z: Tensor, cond: LevelCondition | None, mixing: Transform | None = None
) -> Tensor:
    """Invert a coupling and the injectors before it, then the mixing, on one strip after the other.

    Only the coupling reads rows beside a strip, of latents; the injectors read the condition alone.
    """
    params = [AffineParams(part, z, cond) for part in parts]
    x = canvas(z.shape, z)
    for tile in parts[0].network.tiles(z, parts[0].budget):
        items, top, bottom = tile
        strip = z[items, :, top:bottom]
        for part, part_params in zip(parts, params, strict=True):
            strip = part.invert_strip(strip, part_params.compute(tile))
        x[items, :, top:bottom] = strip if mixing is None else mixing.inverse(strip)
    report(len(parts))
    return x


class FoldedODE(ODE):
    """``ODE`` that reports the progress of its steps."""

    def __init__(self, ode: ODE) -> None:
        super().__init__(ode.field, steps=ode.steps, solver=ode.solver, how=ode.how)
        self.sqrt_end_time = ode.sqrt_end_time

    def move(self, y: Tensor, number: int) -> Tensor:
        return _reported(super().move(y, number))

    def step(self, y: Tensor, number: int, probe: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return _reported(super().step(y, number, probe))

    def step_back(self, z: Tensor, number: int) -> Tensor:
        return _reported(super().step_back(z, number))


class FoldedResidual(Residual):
    """``Residual`` that reports its progress."""

    def encode(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return _reported(super().encode(x, cond))

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return _reported(super().inverse(z, cond))

    def _estimate(self, x: Tensor, probe: Tensor, probes: Probes) -> tuple[Tensor, Tensor]:
        return _reported(super()._estimate(x, probe, probes))


def _reported(result: R) -> R:
    report(1)
    return result


class SharedChain(Chain):
    """``Chain`` that decodes once what all images of a batch share (expanded latents, one mean)."""

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        lr_mean = None if cond is None else cond.lr_mean
        if len(z) > 1 and z.stride(0) == 0 and lr_mean is not None and (len(lr_mean) == 1 or lr_mean.stride(0) == 0):
            return super().inverse(z[:1], LevelCondition(lr_mean=lr_mean[:1])).expand(len(z), -1, -1, -1)
        return super().inverse(z, cond)


class LevelFolder:
    """Folds the levels of a flow, with parameters like ``like``; conditioners compute in ``dtype``."""

    def __init__(self, like: Tensor, dtype: torch.dtype, budget: StripBudget) -> None:
        self.like, self.dtype, self.budget = like, dtype, budget

    def level(self, level: Level, channels: int) -> FoldedLevel:
        """Fold a level whose steps have ``channels``."""
        steps = self._steps(level.steps, channels, 0)
        split = level.split
        if split is not None and split.conditioner is not None and not split.labeled:
            prior = folded_conditioner(split.conditioner, split.kept_channels(channels), None, self.dtype, self.budget)
            if isinstance(prior, FoldedConditioner):
                split = Split(prior, labeled=False, kept=split.kept)
        details = level.details
        if details is not None and split is not None:
            extractor, leaving = self._folded(details.extractor), channels - split.kept_channels(channels)
            details = Details(extractor, Chain(*self._steps(details.transform, leaving, 0)))
        folded = FoldedLevel(steps, split, squeeze=level.squeeze, downscale=level.downscale, details=details)
        for number, part in enumerate(folded.affine):
            part.number = number
        return folded

    def _folded(self, network: nn.Module) -> nn.Module:
        return folded(network, self.dtype, self.budget)

    def _steps(self, transform: Transform, channels: int, flow_channels: int) -> list[Transform]:
        """Fold a chain: neighboring per-pixel transforms become mixings; mixing, injector and coupling a step.

        ``flow_channels`` more channels of the flow enter the conditioners.
        """
        result: list[Transform] = []
        for pixelwise, group in groupby(flat_parts(transform), lambda part: isinstance(part, PIXELWISE)):
            parts = list(group)
            if not pixelwise:
                for part in parts:
                    result.append(self._part(part, channels, flow_channels))
                    _merge_step(result)
            elif len(parts) == 1 and isinstance(parts[0], (ActNorm, Permutation)):
                result += parts  # cheaper than a matrix
            else:
                result.append(Mixing([channel_affine(part) for part in parts], self.like))
        return result

    def _part(self, transform: Transform, channels: int, flow_channels: int) -> Transform:
        if isinstance(transform, ConditionOnChannels):
            changing = channels - transform.kept
            inner = self._steps(transform.transform, changing, flow_channels + transform.kept)
            return ConditionOnChannels(transform.kept, Chain(*inner))
        if isinstance(transform, CheckerboardCoupling):
            transform.conditioner = folded_conditioner(transform.conditioner, channels, None, self.dtype, self.budget)
            transform.conditioner.register_forward_hook(lambda *_: report(1))  # pyright: ignore[reportUnknownLambdaType]
            return transform
        if isinstance(transform, Residual):
            return FoldedResidual(self._folded(transform.network))
        if isinstance(transform, ODE):
            return FoldedODE(transform)
        if isinstance(transform, Autoregression):
            network = self._folded(transform.network)
            return Autoregression(network, scale=transform.scale, reverse=transform.reverse)
        if not isinstance(transform, (Coupling, Injector)):
            return transform
        inputs = flow_channels
        if isinstance(transform, Coupling):
            first = transform.first or channels // 2
            inputs += channels - first if transform.swap else first
        offset = {"none": None, "sigmoid": SIGMOID_OFFSET}.get(transform.scaling, 0.0)
        network = folded_conditioner(transform.conditioner, inputs, offset, self.dtype, self.budget)
        return FoldedAffine(network, transform, self.budget)


def _merge_step(parts: list[Transform]) -> None:
    """Join a coupling at the end of a list with the injectors and the mixing before it."""
    coupling = parts[-1]
    if not (isinstance(coupling, FoldedAffine) and coupling.coupling):
        return
    start = len(parts) - 1
    while start and isinstance(before := parts[start - 1], FoldedAffine) and not before.coupling:
        if coupling.network.condition is None:
            return  # it takes some images of a batch at a time; an injector takes all
        start -= 1
    if start and isinstance(parts[start - 1], Mixing):
        parts[start - 1 :] = [FoldedStep(*parts[start - 1 :])]


def multi_scale(features: Tensor | MultiScaleFeatures) -> MultiScaleFeatures:
    """Wrap features that are one tensor as features of one source."""
    return features if isinstance(features, MultiScaleFeatures) else MultiScaleFeatures(sources=((features, 1),))
