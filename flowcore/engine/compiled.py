"""Compiled flows: immutable, optimized copies of flows.

A ``Flow`` of the transforms of ``transforms/`` is the readable reference. A ``CompiledFlow`` is the same bijection,
faster and smaller (``benchmarks/README.md`` has the factors):

- ``fold.py``: Per-pixel transforms (actnorm, 1x1 convolution, permutation) become one matrix, inverted once;
  actnorms and scales inside conditioners go into the weights beside them.
- ``networks/convolutions.py``: ``conv([x, c]) = conv_x(x) + conv_c(c)``: the condition's term is computed once for all
  samples, and from small features where the flow sees them enlarged. This is most of what SRFlow saves.
- ``networks/strips.py``: Everything runs on a few rows, or a few images, at a time: wide tensors stay in the cache, and
  memory does not grow with the image. ``steps.py`` takes a strip through a whole step; the ``folded.py`` of a family,
  which ``Family.folds`` names, through the networks that only this family has.
"""

from __future__ import annotations

import copy
import weakref
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from threading import RLock

import torch
from torch import Tensor, nn

from ..device import ActualPrecision, autocast, float32_arithmetic, free_memory
from ..errors import FlowError, PrecisionError
from ..flows.condition import Condition
from ..flows.flow import Flow, Level
from ..flows.model import FlowModel
from ..flows.networks.strips import Folded, StripBudget, report, stop_before
from ..flows.prior import log_prob
from ..flows.transforms import Chain, CheckerboardCoupling, LevelCondition, MultiScaleFeatures, Variances
from ..models.family import folded
from .conditioners import FoldedConditioner
from .steps import FoldedAffine, FoldedLevel, FoldedODE, FoldedResidual, LevelFolder, SharedChain, multi_scale


class CompiledFlow(FlowModel):
    """An optimized copy of a flow: the same images, latents and logdets up to rounding, without gradients.

    Besides what its flow takes, it takes the condition of one image for any number of samples, and prepared conditions.

    Attributes:
        precision: Of conditioners and encoder.
        units: Units of work that one pass through the flow reports; see ``strips.observed``.
        encoder_units: Units that one ``encode_condition`` reports.
        prepare_units: Units that ``Condition.prepare`` reports.
        guide_units: Units that one ``make_guide`` reports.
        identity: Equal for compiled flows of the same flow, weights and precision if ``compiled`` made them.
    """

    def __init__(self, flow: Flow, precision: ActualPrecision = "float32", *, strip_bytes: int = 0) -> None:
        """Fold a flow.

        Args:
            flow: Its weights are copied now: later changes of the flow do not change it.
            precision: Of conditioners and encoder. "float32": the flow's own, which may also be float64; "tf32": the
                same, with convolutions on NVIDIA's tensor cores, which read 10 bits of mantissa. Latents and
                invertible transforms always keep the flow's own. Only "float32" encodes.
            strip_bytes: How large the widest tensor of a strip may be; 0 chooses for the device and its free memory.
                Changes memory and time, not results.

        Raises:
            FlowError: If the precision is unknown.
        """
        model = FlowModel.of(flow)
        like = next(flow.parameters(), torch.zeros(())).detach()
        dtypes = {"float32": like.dtype, "bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": like.dtype}
        if precision not in dtypes:
            raise FlowError(f"precision must be {', '.join(dtypes)}; got {precision!r}.")
        dtype = dtypes[precision]
        budget = StripBudget(strip_bytes) if strip_bytes else StripBudget.fitting(like.device)
        with torch.no_grad(), float32_arithmetic():
            folder = LevelFolder(like, dtype, budget)
            levels: list[Level] = []
            channels = model.channels
            for level in model._levels():
                channels = level.shape(channels, 1, 1)[0]
                levels.append(folder.level(copy.deepcopy(level), channels))
                channels = channels if level.split is None else level.split.kept_channels(channels)
            encoder, guide = copy.deepcopy(model.encoder), copy.deepcopy(model.guide)
            top_prior = copy.deepcopy(model.top_prior)
            if model.predicts_lr and isinstance(top_prior, Chain):
                top_prior = SharedChain(*top_prior.parts())
            encoder, guide = (None if part is None else folded(part, dtype, budget) for part in (encoder, guide))
            if encoder is not None and not isinstance(encoder, Folded):
                for layer in encoder.modules():
                    if isinstance(layer, nn.Conv2d):
                        stop_before(layer)  # our own copy of the layer
        super().__init__(
            levels,
            channels=model.channels,
            config=model.config,
            architecture=model.architecture,
            capabilities=model.capabilities,
            preprocess=copy.deepcopy(model.preprocess),
            top_prior=top_prior,
            encoder=encoder,
            condition_encoder=model.condition_encoder,
            source_input=model.source_input,
            condition_scale=model.condition_scale,
            classes=model.classes,
            image_size=model.image_size,
            fixed_size=model.fixed_size,
            predicts_lr=model.predicts_lr,
            guide=guide,
        )
        self.conditional = flow.conditional
        modules = list(self.levels.modules())
        self.units = sum(isinstance(part, (FoldedAffine, CheckerboardCoupling, FoldedResidual)) for part in modules)
        self.units += sum(part.units for part in modules if isinstance(part, Folded))
        self.units += sum(part.steps for part in modules if isinstance(part, FoldedODE))
        affine = [part for part in modules if isinstance(part, FoldedAffine)]
        self.prepare_units = sum(part.network.condition is not None for part in affine)
        self.encoder_units = 0 if encoder is None else encoder.units if isinstance(encoder, Folded) else 1
        self.guide_units = guide.units if isinstance(guide, Folded) else 0
        self.precision: ActualPrecision = precision
        self.dtype = dtype
        self.device = like.device
        self.budget = budget
        # callers read a flow's device and dtype off its first parameter
        self.device_parameter = nn.Parameter(like.new_empty(0), requires_grad=False)
        self.identity: object = object()

    def encode_condition(self, source: Tensor) -> Condition:
        with self._arithmetic(), autocast(source.device, self.dtype):
            report()
            cond = super().encode_condition(source)
            if self.encoder is not None and not isinstance(self.encoder, Folded):
                report(1)
            return cond

    def precompute(
        self, features: Sequence[Tensor | MultiScaleFeatures | None]
    ) -> tuple[Tensor | MultiScaleFeatures | None, ...]:
        """Compute the terms of every step that depend on the condition alone; called by ``Condition.prepare``."""
        with self._arithmetic():
            return tuple(
                feature if feature is None or not level.affine else level.precompute(multi_scale(feature))
                for level, feature in zip(self._folded_levels(), features, strict=True)
            )

    def prepared_bytes(self, height: int, width: int) -> int:
        """Compute how many bytes ``Condition.prepare`` adds to the condition of one image ``(height, width)``."""
        total = 0
        for level in self._folded_levels():
            _, height, width = level.shape(1, height, width)
            for part in level.affine:
                network = part.network
                if isinstance(network, FoldedConditioner) and network.condition is not None:
                    channels = network.outputs if network.conv_flow is None else network.condition.outputs
                    total += channels * height * width * self.dtype.itemsize
        return total

    def forward(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], Tensor]:
        """Encode images; see ``Flow.forward``. PrecisionError unless in float32: decoding would give another image."""
        with self._arithmetic(encodes=True):
            return super().forward(x, cond)

    def encode(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        with self._arithmetic(encodes=True):
            return super().encode(x, cond)

    def make_guide(self, source: Tensor) -> Tensor:
        """Make the guide of ``engine.guide``, not clamped, of the source of ``encode_condition``, ``(B, C, H, W)``."""
        assert self.guide is not None
        with self._arithmetic():
            return self.guide(source)

    def encode_guide(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        """Encode in any precision: the round trip is off by 3/255 in bfloat16, by 0.5/255 in float16."""
        with self._arithmetic():
            return super().encode(x, cond)

    def gradient(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Differentiate the log density of images ``(B, C, H, W)`` by every subpixel; for a TarFlow."""
        with self._arithmetic(), torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            cond = None if cond is None else cond.map_tensors(torch.clone)  # gradients need copies
            (z,), logdet = super().forward(x, cond)
            for part in self.levels[-1].modules():
                if isinstance(part, Variances):  # undone: the published program removes noise as if they were 1
                    z = part.inverse(z)
            return torch.autograd.grad((log_prob([z]) + logdet).sum(), x)[0]

    def inverse(
        self, z: Sequence[Tensor], cond: Condition | None = None, between: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Decode latents; see ``Flow.inverse``. On a GPU, nothing waits for the device."""
        with self._arithmetic():
            return super().inverse(z, cond, between)

    def forward_with_logdet_map(self, x: Tensor, cond: Condition | None = None) -> tuple[list[Tensor], list[Tensor]]:
        with self._arithmetic(encodes=True):
            return super().forward_with_logdet_map(x, cond)

    def reduce(self, x: Tensor) -> Tensor:
        """Compute the flow's own LR image; see ``FlowModel.reduce``. PrecisionError unless in float32."""
        with self._arithmetic(encodes=True):
            return super().reduce(x)

    def initialize(self, x: Tensor, cond: Condition | None = None) -> list[Tensor]:
        raise FlowError("A compiled flow cannot be trained. Initialize the flow, and compile it again.")

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> CompiledFlow:  # behind ``to``, ``double``, ``cuda`` and their like
        raise FlowError("A compiled flow stays where and as it was made. Move the flow, and compile it again.")

    def _at_level(self, cond: Condition, number: int) -> LevelCondition:
        return cond.at_level(number, merge=False)  # folded parts enlarge and concatenate nothing

    def _folded_levels(self) -> list[FoldedLevel]:
        return [level for level in self.levels if isinstance(level, FoldedLevel)]

    @contextmanager
    def _arithmetic(self, *, encodes: bool = False) -> Generator[None, None, None]:
        """Without gradients, and with a GPU's tensor cores only if requested, which then must not encode."""
        if encodes and self.precision != "float32":
            raise PrecisionError(
                f"This flow is compiled in {self.precision}, which is for decoding latents that were drawn: what it "
                "encoded would not come back as the same image. Compile the flow in float32."
            )
        with torch.no_grad(), float32_arithmetic(tf32_convolutions=self.precision == "tf32"):
            yield


class CompiledFlowCache:
    """The two used last, keyed weakly by levels; the second only while both fit into an eighth of free memory."""

    def __init__(self) -> None:
        # in order of use
        self._flows: weakref.WeakKeyDictionary[nn.ModuleList, CompiledFlow] = weakref.WeakKeyDictionary()
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._flows)

    def get(self, flow: Flow, precision: ActualPrecision) -> CompiledFlow:
        """Return the cached copy if it is this flow's and its parts and weights are unchanged, else a new one."""
        parts = tuple((name, weakref.ref(part)) for name, part in flow.named_children())
        identity = parts, precision, checksums(flow)
        with self._lock:
            cached = self._flows.pop(flow.levels, None)
            if cached is None or cached.identity != identity:
                cached = None  # free the old one before folding
                self._make_room(flow)
                with torch.inference_mode(False):  # else ``CompiledFlow.gradient`` could never use it
                    cached = CompiledFlow(flow, precision)
                cached.identity = identity
            self._flows[flow.levels] = cached
            return cached

    def _make_room(self, flow: Flow) -> None:
        """Drop all, or all but the last used if a copy of the flow fits beside it."""
        latest = list(self._flows.items())[-1:]
        self._flows.clear()
        parts = [flow, *(cached for _, cached in latest)]
        needed = sum(t.nbytes for part in parts for t in (*part.parameters(), *part.buffers()))
        free = free_memory(next(flow.parameters(), torch.empty(0)).device)
        if free is not None and needed <= free // 8:
            self._flows.update(latest)

    def drop(self, *, keep: Flow | None = None) -> None:
        """Free all but that of ``keep``, which is in use."""
        with self._lock:
            for levels in [levels for levels in self._flows if keep is None or levels is not keep.levels]:
                del self._flows[levels]


CACHE = CompiledFlowCache()
drop_compiled = CACHE.drop


def compiled(flow: Flow, precision: ActualPrecision = "float32") -> CompiledFlow:
    """Return a flow's compiled copy, cached while its weights stay the same (see ``CompiledFlowCache``)."""
    return flow if isinstance(flow, CompiledFlow) else CACHE.get(flow, precision)


# --- checksums of weights: does a cached copy still belong to its flow? -----------------------------------------------

# Addresses and version counters of tensors do not tell: ``p.data.copy_(...)`` and writes in inference mode leave both
# as they were, and freed memory is used again. So the bytes themselves are read: 10 ms of processor time for the 20 MB
# of ``srflow-x4``.
#
#     python -m timeit -p -n 20 -s "import flowcore; from flowcore.engine.compiled import checksums" \
#         -s "flow = flowcore.load('srflow-x4')" "checksums(flow)"

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MIXERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)  # odd; of splitmix64, as signed numbers


def checksums(module: nn.Module) -> tuple[tuple[object, ...], ...]:
    """Describe the parameters and buffers of a module: type, device, shape and a checksum of each.

    Equal for equal weights; if any bit of a tensor differs, with a probability of 2^-32 at most.
    """
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers())]
    sums: list[int] = []
    if tensors and tensors[0].device.type not in ("cpu", "meta"):
        with suppress(RuntimeError, TypeError):  # a device without 64-bit integers, such as DirectML
            sums = _sums(tensors)
    sums = sums or [0 if t.is_meta else zlib.crc32(_bytes(t)) for t in tensors]
    return tuple((str(t.device), t.dtype, tuple(t.shape), number) for t, number in zip(tensors, sums, strict=True))


def _bytes(t: Tensor) -> memoryview:
    return t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _sums(tensors: list[Tensor]) -> list[int]:
    """Sum the words of tensors on their device, each times an odd number of its own, and fetch all sums at once."""
    odd = torch.arange(1, 1 + max(t.numel() for t in tensors), device=tensors[0].device)
    for mixer in MIXERS:  # pseudorandom numbers of 64 bits, always the same
        odd = odd * mixer
        odd = odd ^ (odd >> 29)
    odd = odd | 1
    sums: list[Tensor] = []
    for t in tensors:
        words = t.contiguous().reshape(-1).view(WORDS[t.element_size()]).long()
        sums.append((words * odd[: len(words)]).sum())
    return torch.stack(sums).tolist()
