"""The inference plan: a flow, folded for use.

``Flow`` with the transforms of ``transforms/`` is the readable reference. ``Plan`` is the same bijection as fast and as
small as we know how: a flow whose levels are made of the folded parts below, from the weights of one moment.

- Once per image, ``encode_condition`` runs the encoder.
- Once per image, ``Condition.prepare`` computes what every step draws from the condition alone: an injector's shift and
  scale, and the condition's part of a coupling's first convolution, all steps of a level together.
- Per sample there is a thin path left: ``inverse``. Where the condition was not prepared, each strip of each step draws
  from it when it is its turn, which needs little memory.

``folding.py`` has the rewrites that make this exact, and the strips of rows in which it runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..condition import Condition, ConditionTerms, MultiScaleFeatures
from ..device import LOW_PRECISION, Precision, free_memory
from ..errors import ConditionError, FlowError, PrecisionError
from ..flow import Flow, Level
from ..networks import RRDBEncoder, ScaledConv
from ..transforms import Chain, CheckerboardCoupling, ConditionOnChannels, Coupling, Injector, Scaling, Split, Transform
from ..transforms.coupling import SIGMOID_OFFSET, halves, log_scale_of, scale_of
from .fold import (
    ConditionConv,
    FoldedEncoder,
    Mixing,
    Network,
    Rows,
    StreamedConditionConv,
    UnsplitConditioner,
    canvas,
    folded_residual,
    folded_weights,
    mixing,
    on_canvas,
    rows,
    rows_of,
    strips,
)
from .progress import report

STRIP_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""Size of the widest tensor of a strip: what a core's cache holds; on a GPU what keeps it busy."""
LEAST_BYTES = 2**18
"""The same where memory has run out."""


class Plan(Flow):
    """A flow for use: the same images, latents and logdets to rounding, without gradients.

    It takes what its flow takes, and besides: conditions of one image with any number of samples, and prepared
    conditions. The weights are those of the moment it was made.

    Source: the models' papers; see ``folding``.
    """

    def __init__(self, flow: Flow, precision: Precision = "float32", *, strip_bytes: int = 0) -> None:
        """Fold a flow.

        Args:
            flow: It is read now, and shares with the plan what cannot be folded.
            precision: Of conditioners and encoder. "float32": the flow's own, which may also be float64; "tf32": the
                same, with convolutions on NVIDIA's tensor cores, which read 10 bits of mantissa (torch does so by
                default; a plan only when asked). Latents and all that is inverted are in the flow's own in any case;
                but only "float32" encodes.
            strip_bytes: How large the widest tensor of a strip may be; 0 for what suits the device and the memory that
                is free now. Changes memory and time, not the result.

        Raises:
            FlowError: If the precision is unknown.
        """
        like = next(flow.parameters(), torch.zeros(())).detach()
        dtypes = {"float32": like.dtype, "bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": like.dtype}
        if precision not in dtypes:
            raise FlowError(f"precision must be {', '.join(dtypes)}; got {precision!r}.")
        dtype = dtypes[precision]
        with torch.no_grad():
            folder = _Folder(like, dtype, strip_bytes or _strip_bytes(like.device))
            levels: list[Level] = []
            channels = flow.channels
            for level in flow.levels:
                assert isinstance(level, Level)
                channels = level.shape(channels, 1, 1)[0]
                levels.append(folder.level(level, channels))
                channels = channels if level.split is None else level.split.kept_channels(channels)
            encoder: nn.Module | None = flow.encoder
            units = sum(
                isinstance(part, (FoldedAffine, FoldedCheckerboard)) for level in levels for part in level.modules()
            )
            if isinstance(encoder, RRDBEncoder):
                encoder = FoldedEncoder(encoder, dtype, folder.strip_bytes)
        super().__init__(
            levels,
            channels=flow.channels,
            config=flow.config,
            architecture=flow.architecture,
            capabilities=flow.capabilities,
            prelude=flow.prelude,
            top=flow.top,
            encoder=encoder,
            encode=flow.encoding,
            condition_scale=flow.condition_scale,
            classes=flow.classes,
            image_size=flow.image_size,
            fixed_size=flow.fixed_size,
        )
        self.units = units
        self.encoder_units = 0 if encoder is None else encoder.units if isinstance(encoder, FoldedEncoder) else 1
        self.precision: Precision = precision
        self.dtype = dtype
        self.device = like.device
        # the first parameter says where a flow lies and in what it is computed, for whoever asks
        self.home = nn.Parameter(like.new_empty(0), requires_grad=False)
        self.identity: object = object()

    def encode_condition(self, source: Tensor) -> Condition:
        """Read what the flow is conditioned on, in the plan's precision; see ``Flow.encode_condition``."""
        low = self.dtype in LOW_PRECISION
        with self._arithmetic(), torch.autocast(source.device.type, self.dtype if low else None, enabled=low):
            report()
            cond = super().encode_condition(source)
            if self.encoder is not None and not isinstance(self.encoder, FoldedEncoder):
                report(1)
            return cond

    def prepared(
        self, features: Sequence[Tensor | MultiScaleFeatures | None]
    ) -> tuple[Tensor | MultiScaleFeatures | None, ...]:
        """Compute what every step draws from the condition alone; ``Condition.prepare`` is how it is called."""
        told: list[Tensor | MultiScaleFeatures | None] = []
        with self._arithmetic():
            for level, feature in zip(self.levels, features, strict=True):
                assert isinstance(level, FoldedLevel)
                told.append(feature if feature is None else level.prepared(_as_parts(feature)))
        return tuple(told)

    def forward(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], Tensor]:
        """Encode images; see ``Flow.forward``.

        Raises:
            PrecisionError: In a lower precision than the flow's: the way back would miss.
        """
        self._check_precise()
        with self._arithmetic():
            return super().forward(x, cond)

    def inverse(self, z: Sequence[Tensor], cond: Condition | None = None, between: Any = None) -> Tensor:
        """Decode latents; see ``Flow.inverse``. On a GPU nothing in it waits for the device."""
        with self._arithmetic():
            return super().inverse(z, cond, between)

    def by_position(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Encode images with their log density by level and pixel; see ``Flow.by_position``.

        Raises:
            PrecisionError: As ``forward``.
        """
        self._check_precise()
        with self._arithmetic():
            return super().by_position(x, cond)

    def recorded(self, z: Sequence[Tensor], cond: Condition | None = None) -> Callable[[Sequence[Tensor]], Tensor]:
        """Record the decoding of one condition as a CUDA graph: for many small pictures, whose launches cost most.

        Args:
            z: Latents of the shapes and the device that will be decoded.
            cond: As in ``inverse``; best prepared.

        Returns:
            What ``inverse`` does for this condition, for latents of these shapes. On other devices that is ``inverse``.
        """
        if self.device.type != "cuda":
            return lambda latents: self.inverse(latents, cond)
        held = [t.clone() for t in z]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # what libraries set up at a first run cannot be recorded
                self.inverse(held, cond)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.inverse(held, cond)

        def replay(latents: Sequence[Tensor]) -> Tensor:
            for place, t in zip(held, latents, strict=True):
                place.copy_(t)
            graph.replay()
            return result.clone()

        return replay

    def _check_precise(self) -> None:
        if self.precision != "float32":
            raise PrecisionError(
                f"This plan runs in {self.precision}, which is for decoding latents that were drawn: what it encoded "
                "would not come back as the same image. Make a plan in float32."
            )

    @contextmanager
    def _arithmetic(self) -> Generator[None, None, None]:
        """No gradients, and the tensor cores of a GPU only where they were asked for."""
        with torch.no_grad():
            if self.device.type != "cuda":
                yield
                return
            cudnn = torch.backends.cudnn
            with cudnn.flags(
                enabled=cudnn.enabled,
                benchmark=cudnn.benchmark,
                deterministic=cudnn.deterministic,
                allow_tf32=self.precision == "tf32",
            ):
                yield

    def prepared_bytes(self, height: int, width: int) -> int:
        """Say how much memory ``Condition.prepare`` fills, beyond what the condition holds.

        Args:
            height: Of the image.
            width: Likewise.

        Returns:
            Bytes, for one image.
        """
        total = 0
        for level in self.levels:
            assert isinstance(level, FoldedLevel)
            _, height, width = level.shape(1, height, width)
            for part in level.affine:
                network = part.network
                if isinstance(network, Network) and network.told is not None:
                    channels = network.outputs if network.own is None else network.told.outputs
                    total += channels * height * width * self.dtype.itemsize
        return total

    def use_minimum_memory(self) -> None:
        """Work in the lowest strips from now on: less memory, more time, the same result."""
        for part in self.modules():
            for name in ("strip_bytes", "piece_bytes", "dense_bytes"):
                if hasattr(part, name):
                    setattr(part, name, min(LEAST_BYTES, getattr(part, name)))

    def _feature(self, feature: Tensor | MultiScaleFeatures | None) -> Any:
        return feature  # folded parts take it as it is

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Refuse to be moved or widened: what was folded would stay behind."""
        raise FlowError("A plan stays where and as it was made. Move the flow, and make a new plan.")

    def initialize(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Refuse: a plan's weights are what its flow's were.

        Raises:
            FlowError: Always.
        """
        raise FlowError("A plan cannot be trained. Initialise the flow, and make a new plan.")


class FoldedLevel(Level):
    """A level of folded parts; its steps draw from the condition through one convolution."""

    def __init__(
        self, steps: Sequence[Transform], split: Split | None, squeeze: Transform, fold: int, strip_bytes: int
    ) -> None:
        """Hold the parts.

        Args:
            steps: Folded, in the data-to-latent direction.
            split: Folded, or None.
            squeeze: As in ``Level``.
            fold: As in ``Level``.
            strip_bytes: As in ``Plan``.
        """
        super().__init__(steps, split, squeeze=squeeze, fold=fold)
        self.strip_bytes = strip_bytes
        self.affine = [part for part in self.steps.modules() if isinstance(part, FoldedAffine)]
        for number, part in enumerate(self.affine):
            part.number = number
        networks = [part.network for part in self.affine if isinstance(part.network, Network)]
        self.conditioned_networks = [network for network in networks if network.told is not None]
        self.told = ConditionConv.together(
            [network.told for network in self.conditioned_networks if network.told is not None]
        )

    def prepared(self, parts: MultiScaleFeatures) -> MultiScaleFeatures:
        """Compute what every step draws from the condition alone.

        Args:
            parts: The condition of this level.

        Returns:
            The same, with that.
        """
        if self.told is None:
            return parts
        widths = [network.told.outputs for network in self.conditioned_networks if network.told is not None]
        together = on_canvas(self.told, parts, self.strip_bytes, widths)
        firsts = dict(zip(self.conditioned_networks, together, strict=True))
        del together  # so that each goes as soon as its network has drawn from it
        told = [part.draw(firsts.pop(part.network)) if part.network in firsts else (None, None) for part in self.affine]
        return MultiScaleFeatures(sources=parts.sources, told=tuple(told))


class FoldedMixing(Transform):
    """``Mixing`` as a transform."""

    def __init__(self, mixing: Mixing) -> None:
        """Hold it.

        Args:
            mixing: The matrices.
        """
        super().__init__()
        self.mixing = mixing

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see ``Mixing``."""
        log_det = self.mixing.log_det * x.shape[-2] * x.shape[-1]
        return self.mixing.forward(x), x.new_full((x.shape[0],), log_det)

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see ``Mixing``."""
        return self.mixing.inverse(z)


class _Beside(NamedTuple):
    """A level's condition, and channels of the flow itself that some steps are told besides."""

    kept: Tensor
    cond: Tensor | MultiScaleFeatures | None


class FoldedConditionOnChannels(ConditionOnChannels):
    """``ConditionOnChannels`` with folded parts, which keep the condition and the kept channels apart."""

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see ``ConditionOnChannels``."""
        kept, rest = self._parts(x)
        z, logdet = self.transform(rest, _Beside(kept, cond))
        return torch.cat([kept, z], dim=1), logdet

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see ``ConditionOnChannels``."""
        kept, rest = self._parts(z)
        return torch.cat([kept, self.transform.inverse(rest, _Beside(kept, cond))], dim=1)

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent with the logdet by position; see ``ConditionOnChannels``."""
        kept, rest = self._parts(x)
        z, log_density = self.transform.by_position(rest, _Beside(kept, cond))
        return torch.cat([kept, z], dim=1), log_density


class FoldedAffine(Transform):
    """A coupling or an injector, folded: ``z = (x + shift) * scale`` of all channels or of one half, in strips.

    Its network's first convolution is of what the flow holds (the other half, and channels that are kept), and of the
    condition.
    """

    def __init__(
        self,
        network: Network | UnsplitConditioner,
        *,
        coupling: bool,
        swap: bool,
        eps: float,
        scaling: Scaling,
        strip_bytes: int,
    ) -> None:
        """Hold the network.

        Args:
            network: Folded; or one that takes everything together.
            coupling: Whether one half of the channels drives the other; else the condition drives all.
            swap: As in ``Coupling``.
            eps: As in ``Coupling``.
            scaling: As in ``Coupling``.
            strip_bytes: As in ``Plan``.
        """
        super().__init__()
        self.network = network
        self.coupling, self.swap, self.eps = coupling, swap, eps
        self.scaling: Scaling = scaling
        self.strip_bytes = strip_bytes
        self.number = 0

    def forward(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent; see the class."""
        z, log_scale = self.by_position(x, cond)
        return z, log_scale.flatten(1).sum(1)

    def by_position(self, x: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Map data to latent with the logdet by position: the log-scales, summed over channels."""
        affine_params = self.affine_params(x, cond)
        z, log_scales = canvas(x, x.shape[1]), x.new_zeros(x.shape[0], *x.shape[2:])
        for top, bottom in self.strips(x):
            x1, x2 = self._parts(x[:, :, top:bottom])
            shift, r = self._shift_scale(affine_params(top, bottom), x)
            x2 = x2 + shift
            if r is not None:
                log_scale = log_scale_of(r, self.eps, self.scaling)
                log_scales[:, top:bottom] = log_scale.sum(1)
                x2.mul_(scale_of(r, self.eps, self.scaling) if self.eps else log_scale.exp())
            z[:, :, top:bottom] = self._join(x1, x2)
        report(1)
        return z, log_scales

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see the class."""
        affine_params = self.affine_params(z, cond)
        x = canvas(z, z.shape[1])
        for top, bottom in self.strips(z):
            x[:, :, top:bottom] = self.invert_strip(z[:, :, top:bottom], affine_params(top, bottom))
        report(1)
        return x

    def invert_strip(self, z: Tensor, raw: Tensor) -> Tensor:
        """Map a strip, latent to data.

        Args:
            z: ``(B, C, rows, W)``.
            raw: What ``affine_params`` gives for these rows.

        Returns:
            ``(B, C, rows, W)``.
        """
        z1, z2 = self._parts(z)
        shift, r = self._shift_scale(raw, z)
        return self._join(z1, z2 - shift if r is None else (z2 / scale_of(r, self.eps, self.scaling)).sub_(shift))

    def affine_params(self, x: Tensor, cond: Any) -> Callable[[int, int], Tensor]:
        """Make ready what decides about shift and scale.

        Args:
            x: The whole canvas, of which a coupling reads the half that it leaves alone.
            cond: Of the level.

        Returns:
            From the first row of a strip and the row after its last to shifts and raw scales, ``(B or 1, outputs, rows,
            W)``.
        """
        kept, cond = cond if isinstance(cond, _Beside) else (None, cond)
        entering = [t for t in (self._parts(x)[0], kept) if t is not None]
        own = torch.cat(entering, dim=1) if len(entering) > 1 else entering[0] if entering else None
        network = self.network
        if isinstance(network, UnsplitConditioner):
            told = cond.whole() if isinstance(cond, MultiScaleFeatures) else cond
            everything = [t for t in (own, told) if t is not None]
            whole = network(torch.cat([t.expand(x.shape[0], *t.shape[1:]) for t in everything], dim=1))
            return lambda top, bottom: whole[:, :, top:bottom]
        first: Rows | None = None
        if isinstance(cond, MultiScaleFeatures) and cond.told is not None:
            prepared, raw = cond.told[self.number]
            if raw is not None:
                return lambda top, bottom: raw[:, :, top:bottom]
            first = None if prepared is None else partial(rows, prepared)
        elif network.told is not None:
            if cond is None:
                raise ConditionError("This step needs a condition; got none. Pass plan.encode_condition(source).")
            first = StreamedConditionConv(network.told, _as_parts(cond), network.reach, self.strip_bytes)
        return lambda top, bottom: network(own, first, top, bottom, x.shape[2])

    def draw(self, first: Tensor) -> ConditionTerms:
        """Compute what the condition alone decides, as far as possible.

        Args:
            first: The condition's part of the first convolution, ``(B, hidden, H, W)``.

        Returns:
            That, and None; or None, and the network's output, if nothing else enters.
        """
        network = self.network
        assert isinstance(network, Network)
        if network.own is not None:
            return first, None
        raw = canvas(first, network.outputs)
        for top, bottom in self.strips(first):
            raw[:, :, top:bottom] = network(None, partial(rows, first), top, bottom, first.shape[2])
        return None, raw

    def strips(self, x: Tensor) -> list[tuple[int, int]]:
        """Part the rows of a canvas; a network that takes everything together has one strip.

        Args:
            x: ``(B, C, H, W)``.

        Returns:
            First row, and row after the last, of each.
        """
        if isinstance(self.network, UnsplitConditioner):
            return [(0, x.shape[2])]
        row = x.shape[0] * x.shape[3] * self.network.widest * x.element_size()
        return strips(x.shape[2], rows_of(row, self.strip_bytes))

    def _shift_scale(self, raw: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        raw = raw.to(like.dtype)
        if self.scaling == "none":
            return raw, None
        shift, r = raw.chunk(2, dim=1)
        return shift, r.contiguous(memory_format=torch.channels_last)  # else a sigmoid takes eight times as long

    def _parts(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """The half that drives, and the half that is changed; an injector changes all."""
        if not self.coupling:
            return None, x
        first, second = halves(x)
        return (second, first) if self.swap else (first, second)

    def _join(self, x1: Tensor | None, x2: Tensor) -> Tensor:
        return x2 if x1 is None else torch.cat([x2, x1] if self.swap else [x1, x2], dim=1)


class FoldedStep(Chain):
    """A mixing, perhaps an injector, and a coupling: its inverse runs strip by strip through all three.

    Only the coupling reads rows beside a strip, and it comes first in the inverse. So a strip goes through the whole
    step while it is in the processor's cache.
    """

    def inverse(self, z: Tensor, cond: Any = None) -> Tensor:
        """Map latent to data; see ``Chain``."""
        first, *rest, coupling = self.parts()
        assert isinstance(first, FoldedMixing)
        assert isinstance(coupling, FoldedAffine)
        affine = [coupling, *(part for part in rest if isinstance(part, FoldedAffine))]
        drives = [(part, part.affine_params(z, cond)) for part in affine]
        x = canvas(z, z.shape[1])
        for top, bottom in coupling.strips(z):
            strip = z[:, :, top:bottom]
            for part, affine_params in drives:
                strip = part.invert_strip(strip, affine_params(top, bottom))
            x[:, :, top:bottom] = first.inverse(strip)
        report(len(affine))
        return x


class FoldedCheckerboard(CheckerboardCoupling):
    """``CheckerboardCoupling`` that reports its progress."""

    def _affine(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        result = super()._affine(x, mask)
        report(1)
        return result


class OnCanvas(nn.Module):
    """A folded network of what the flow holds alone, on the whole canvas."""

    def __init__(self, network: Network) -> None:
        """Hold it.

        Args:
            network: Without a condition.
        """
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Run.

        Args:
            x: ``(B, inputs, H, W)``.

        Returns:
            ``(B, outputs, H, W)``.
        """
        return self.network(x, None, 0, x.shape[2], x.shape[2])


class _Folder:
    """Folds transforms; what every part needs to know stands here once."""

    def __init__(self, like: Tensor, dtype: torch.dtype, strip_bytes: int) -> None:
        self.like, self.dtype, self.strip_bytes = like, dtype, strip_bytes

    def level(self, level: Level, channels: int) -> FoldedLevel:
        steps = self.merged([self.part(t, channels, 0) for t in _flat(level.steps)])
        split = level.split
        if split is not None and isinstance(split.conditioner, ScaledConv):
            weights = folded_weights(split.conditioner)
            if weights is not None:
                prior = OnCanvas(Network(weights, weights[0][0].shape[1], None, self.dtype))
                split = Split(prior, labeled=split.labeled, kept=split.kept)
        return FoldedLevel(steps, split, level.squeeze, level.fold, self.strip_bytes)

    def part(self, transform: Transform, channels: int, given: int) -> Transform:
        """Fold one part that has `channels` channels and is told `given` of the flow's besides."""
        mixed = mixing(transform, self.like)
        if mixed is not None:
            return FoldedMixing(mixed)
        if isinstance(transform, ConditionOnChannels):
            rest = channels - transform.kept
            inner = [self.part(t, rest, given + transform.kept) for t in _flat(transform.transform)]
            return FoldedConditionOnChannels(transform.kept, Chain(*self.merged(inner)))
        if isinstance(transform, CheckerboardCoupling):
            network = folded_residual(transform.conditioner, self.dtype, self.strip_bytes)
            return FoldedCheckerboard(network, parity=transform.parity, mask_channel=transform.mask_channel)
        if isinstance(transform, (Coupling, Injector)):
            coupling, swap = isinstance(transform, Coupling), isinstance(transform, Coupling) and transform.swap
            entering = (channels - channels // 2 if swap else channels // 2) if coupling else 0
            network = self.network(transform.conditioner, entering + given, transform.scaling)
            if isinstance(network, Network) and network.told is None:  # with nothing to keep for the next sample
                offset = (
                    None if transform.scaling == "none" else SIGMOID_OFFSET if transform.scaling == "sigmoid" else 0.0
                )
                network = UnsplitConditioner(transform.conditioner, offset, self.dtype, self.strip_bytes)
            return FoldedAffine(
                network,
                coupling=coupling,
                swap=swap,
                eps=transform.eps,
                scaling=transform.scaling,
                strip_bytes=self.strip_bytes,
            )
        return transform

    def network(self, network: nn.Module, inputs: int, scaling: Scaling) -> Network | UnsplitConditioner:
        offset = None if scaling == "none" else SIGMOID_OFFSET if scaling == "sigmoid" else 0.0
        weights = folded_weights(network)
        if weights is None:
            return UnsplitConditioner(network, offset, self.dtype)
        return Network(weights, inputs, offset, self.dtype)

    def merged(self, parts: Sequence[Transform]) -> list[Transform]:
        """Multiply neighbouring mixings together, and make steps of mixing, injector and coupling."""
        result: list[Transform] = []
        for part in parts:
            before = result[-1] if result else None
            if isinstance(part, FoldedMixing) and isinstance(before, FoldedMixing):
                result[-1] = FoldedMixing(part.mixing.after(before.mixing, self.like))
            elif isinstance(part, FoldedAffine) and part.coupling:
                start = len(result)
                while start and isinstance(result[start - 1], FoldedAffine) and not result[start - 1].coupling:
                    start -= 1
                if start and isinstance(result[start - 1], FoldedMixing):
                    result[start - 1 :] = [FoldedStep(*result[start - 1 :], part)]
                else:
                    result.append(part)
            else:
                result.append(part)
        return result


def planned(flow: Flow, precision: Precision = "float32") -> Plan:
    """Give a flow's plan: the last one made, if that is it and no parameter has changed since; else a new one.

    Args:
        flow: To be folded.
        precision: As in ``Plan``; of no meaning if the flow is a plan already.

    Returns:
        The plan. One plan in all is kept, and not beyond the life of its flow.
    """
    if isinstance(flow, Plan):
        return flow
    tensors = [*flow.parameters(), *flow.buffers()]
    state = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.device, t.dtype) for t in tensors]  # pyright: ignore[reportPrivateUsage]
    kept = _KEPT.get(flow)
    if kept is not None and kept[0] == precision and kept[1] == state:
        return kept[2]
    _KEPT.clear()  # before folding: the old one makes room
    plan = Plan(flow, precision)
    plan.identity = weakref.ref(flow), precision, tuple(state)
    _KEPT[flow] = precision, state, plan
    return plan


_KEPT: weakref.WeakKeyDictionary[Flow, tuple[Precision, list[Any], Plan]] = weakref.WeakKeyDictionary()


def forget_plan() -> None:
    """Let go of the plan that ``planned`` keeps, and of its memory."""
    _KEPT.clear()


def use_minimum_memory(flow: Flow) -> None:
    """Switch the cached plan of a flow, if there is one, to minimum-memory mode; see ``Plan.use_minimum_memory``.

    Args:
        flow: As it was given to ``planned``.
    """
    kept = flow if isinstance(flow, Plan) else _KEPT[flow][2] if flow in _KEPT else None
    if kept is not None:
        kept.use_minimum_memory()


def _strip_bytes(device: torch.device) -> int:
    free = free_memory(str(device))
    usual = STRIP_BYTES.get(device.type, 2**23)
    return usual if free is None else min(usual, max(2**20, free // 16))


def _as_parts(feature: Tensor | MultiScaleFeatures) -> MultiScaleFeatures:
    return feature if isinstance(feature, MultiScaleFeatures) else MultiScaleFeatures(sources=((feature, 1),))


def _flat(transform: Transform) -> list[Transform]:
    """The parts of chains of chains, in order."""
    return [t for part in transform.parts() for t in _flat(part)] if isinstance(transform, Chain) else [transform]
