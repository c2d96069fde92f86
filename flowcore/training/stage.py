"""The steps of one training stage: batches, gradients, optimizer, averaged weights; and the memory that they take."""

import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from ..device import autocast, free_memory, is_out_of_memory, supports_float64, supports_fused_optimizer
from ..errors import FlowError
from ..flows.flow import Level
from ..flows.model import FlowModel
from ..flows.transforms import ODE, BatchNorm, InvertibleConv, use_batch_moments
from ..models.srflow.rrdb import LREncoder
from .data import Data
from .objective import Likelihood, Noise, make_objective, pretrained_backbone
from .recipe import Recipe, Stage
from .run import TrainingRun

NORM_TOLERANCE = 1e-3  # see ``Flow.normalize``: one or two iterations, which begin where those of the last step ended
PATIENCE = 50  # skipped steps in a row, until a run goes back to a checkpoint at half the rate
USUAL_STEPS = 100  # steps whose median gradient norm is the usual one
EXPLOSION = 50.0  # times the usual norm: a gradient as large as this is not followed
USABLE = 0.8  # share of the free memory that a batch may take
Computed = TypeVar("Computed")


class Diverged(Exception):
    """Too many consecutive steps were skipped."""


class StageTrainer:
    """Trains one stage, whose first step is number ``first`` of the run."""

    def __init__(self, run: TrainingRun, stage: Stage, first: int) -> None:
        self.run, self.stage, self.first = run, stage, first
        self.flow, self.state = run.flow, run.state
        device = torch.device(run.device)
        trained_levels = len(self.flow.levels) - stage.frozen_levels  # the finest ones
        self.flow.requires_grad_(trained_levels > 0)
        if not trained_levels:
            self.flow.get_submodule("dequantizer").requires_grad_(True)
        for number, level in enumerate(self.flow.levels):
            level.requires_grad_(number < trained_levels)
        self._freeze_backbone()
        self.objective = make_objective(self.flow, stage, run.teacher)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.fused = supports_fused_optimizer(device)
        groups = self._parameter_groups()
        self.optimizer = torch.optim.AdamW(groups, stage.learning_rate, betas=(0.9, 0.99), fused=self.fused)
        self._freeze_encoder()
        self.module = self._distribute()
        # on the device, so that no step waits for it; ``bad`` counts the last steps, in a row, that were skipped
        self.skipped = torch.tensor(self.state.skipped, device=device)
        self.bad = torch.tensor(self.state.bad, device=device)
        wide = torch.float64 if supports_float64(device) else torch.float32
        self.loss_sum = torch.zeros((), dtype=wide, device=device)
        self.loss_count = torch.zeros((), dtype=torch.int64, device=device)
        self.gradient_norm = torch.zeros((), device=device)
        # of the last gradients; the usual one for a skipped step
        self.norms = deque((torch.tensor(norm, device=device) for norm in self.state.norms), USUAL_STEPS)

    @property
    def end(self) -> int:
        """Number of the stage's last step, counted over all stages."""
        return self.first + self.stage.steps

    def resume(self, optimizer_state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(optimizer_state)
        for group in self.optimizer.param_groups:
            group["fused"] = self.fused  # the checkpoint may come from another device

    def read_counters(self) -> None:
        """Read what was counted on the device; raise Diverged if too many consecutive steps were skipped."""
        self.state.skipped, self.state.bad = int(self.skipped), int(self.bad)
        self.state.norms = torch.stack([*self.norms]).tolist()
        if self.state.bad >= PATIENCE:
            raise Diverged

    def log_progress(self, steps_per_second: float, data_wait: float) -> None:
        """Log the mean loss since the last time; ``data_wait`` is the share of the time that steps waited for data."""
        state, stage = self.state, self.stage
        done, unit = state.step - self.first, self.objective.unit
        mean = float(self.loss_sum / self.loss_count)
        self.loss_sum.zero_()
        self.loss_count.zero_()
        minutes = (stage.steps - done) / max(steps_per_second, 1e-9) / 60
        bar = "#" * round(20 * done / stage.steps)
        self.run.log.line(
            f"{stage.name} [{bar:<20}] {done}/{stage.steps} {unit} {mean:.4f} {steps_per_second:.2f} steps/s "
            f"data wait {data_wait:.1%} skipped {state.skipped} {minutes:.0f} min left"
        )
        self.run.log.training(
            step=state.step,
            stage=stage.name,
            unit=unit,
            loss=round(mean, 6),
            rate=f"{self._learning_rate():.6g}",
            gradient_norm=round(float(self.gradient_norm), 6),
            steps_per_second=round(steps_per_second, 3),
            data_wait=round(data_wait, 4),
            skipped=state.skipped,
        )

    # --- one step

    def batch(self, step: int) -> tuple[Tensor, Tensor | None, Noise]:
        """Make this process's share of a step's images, sources and noise, in a thread beside the step before."""
        stage, seed = self.stage, self.run.recipe.seed
        x, source = self.run.data.batch(stage.batch, stage.crop, seed, step)
        noise = self.objective.noise(tuple(x.shape), torch.Generator("cpu").manual_seed(seed * 1_000_003 + step))
        shard, on_gpu = self.run.distributed.shard(stage.batch), self.run.device.startswith("cuda")

        def place(t: Tensor) -> Tensor:
            return (t[shard].pin_memory() if on_gpu else t[shard]).to(self.run.device, non_blocking=on_gpu)

        return place(x), None if source is None else place(source), tuple(map(place, noise))

    def gradient(self, x: Tensor, source: Tensor | None, noise: Noise) -> Tensor:
        """Compute the loss, and accumulate its gradient."""
        average = self.run.distributed.mean if self.run.distributed.is_active else None
        dtype = torch.bfloat16 if self.state.precision == "bfloat16" else torch.float32
        with recompute_activations(self.flow) if self.state.recompute == "always" else nullcontext():
            with use_batch_moments(self.flow, average=average), autocast(torch.device(self.run.device), dtype):
                loss = self.module(x, source, noise)
            loss.backward()
        return loss.detach()

    def time_gradient(self) -> float:
        """Measure the seconds that a gradient takes; parameters and running moments stay as they are."""
        begin = time.monotonic()
        with unchanged_moments(self.flow):
            self.gradient(*self.batch(0)).item()
        self.optimizer.zero_grad(set_to_none=True)
        return time.monotonic() - begin

    def step(self, x: Tensor, source: Tensor | None, noise: Noise) -> None:
        """Make one optimizer step, which changes nothing if loss or gradient are not finite, or the gradient explodes.

        Source: Child, "Very Deep VAEs Generalize Autoregressive Models" (ICLR 2021), for skipped explosions.
        """
        if self._freeze_encoder():
            self.module = self._distribute()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate() * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        # dropout must differ between processes
        torch.manual_seed(self.run.recipe.seed * 1_000_003 + self.state.step + 7_919 * self.run.distributed.rank)
        loss = self.within_memory(lambda: self.gradient(x, source, noise))
        loss = self.run.distributed.mean(loss)
        self.gradient_norm = nn.utils.clip_grad_norm_(self.parameters, self.stage.clip or math.inf)
        is_known = len(self.norms) == USUAL_STEPS
        usual_norm = torch.stack([*self.norms]).median() if is_known else self.gradient_norm
        is_usual = self.gradient_norm <= EXPLOSION * usual_norm
        usable = loss.isfinite() & self.gradient_norm.isfinite() & is_usual
        if self.fused:  # it skips the update by itself, as for torch.amp.GradScaler, without a wait for the device
            self.optimizer.found_inf = (~usable).float()  # pyright: ignore[reportAttributeAccessIssue]
        if self.fused or bool(usable):
            self.optimizer.step()
        self.flow.normalize(NORM_TOLERANCE)
        self._update_average(usable)
        self.norms.append(torch.where(usable, self.gradient_norm, usual_norm).nan_to_num())
        self.skipped += ~usable
        self.bad = torch.where(usable, 0, self.bad + 1)
        self.loss_sum += torch.where(usable, loss, 0.0)
        self.loss_count += usable

    @torch.no_grad()
    def _update_average(self, usable: Tensor) -> None:
        """Move the average toward the weights, unless the update was skipped."""
        done = self.state.step - self.first
        weight = (1 - min(self.run.recipe.ema, (1 + done) / (10 + done))) * usable.float()
        for mean, value in zip(self.run.average.parameters(), self.flow.parameters(), strict=True):
            if value.requires_grad:  # the others are equal already
                mean.lerp_(value, weight)
        for mean, value in zip(self.run.average.buffers(), self.flow.buffers(), strict=True):
            mean.copy_(value)  # constants, and moments that are running means already

    def _freeze_encoder(self) -> bool:
        """Freeze or unfreeze the encoder as the stage says; return True if that changed anything."""
        frozen = self.state.step - self.first < self.stage.train_encoder_after * self.stage.steps
        if not isinstance(self.objective, Likelihood) or self.objective.encoder_frozen == frozen:
            return False
        self.objective.encoder_frozen = frozen
        if self.flow.encoder is not None:
            self.flow.encoder.requires_grad_(not frozen)
            self._freeze_backbone()
        return True

    def _distribute(self) -> nn.Module:
        """Wrap the objective, again whenever other parameters have gradients; a single process needs no wrapper."""
        if not self.run.distributed.is_active:
            return self.objective
        return DistributedDataParallel(self.objective, broadcast_buffers=False, find_unused_parameters=True)

    def _freeze_backbone(self) -> None:
        if (backbone := pretrained_backbone(self.flow)) is not None and self.stage.backbone_rate == 0:
            backbone.requires_grad_(False)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters by the factor on their learning rate; only kernels of convolutions decay."""
        factors: dict[int, float] = {}
        if (backbone := pretrained_backbone(self.flow)) is not None:
            factors |= {id(p): self.stage.backbone_rate for p in backbone.parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for p in sorted(self.parameters, key=lambda p: p.ndim != 4):  # checkpoints rely on this order
            groups.setdefault((factors.get(id(p), 1.0), p.ndim == 4), []).append(p)
        return [
            {"params": parameters, "factor": factor, "weight_decay": self.stage.weight_decay if kernels else 0.0}
            for (factor, kernels), parameters in groups.items()
        ]

    def _learning_rate(self) -> float:
        stage, done = self.stage, self.state.step - self.first
        factor = min(1.0, (done + 1) / max(stage.warmup, 1))
        factor *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done / stage.steps))
        return stage.learning_rate * self.state.rate * factor

    # --- memory

    def within_memory(self, compute: Callable[[], Computed]) -> Computed:
        """Compute gradients; out of memory, recompute activations from now on; FlowError if the recipe forbids it."""
        try:
            return compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            can_recompute = self.run.recipe.recompute == "auto" and self.state.recompute != "always"
            if not can_recompute or self.run.distributed.is_active:
                raise self.run.out_of_memory(self.stage) from error
        # here, where no error holds tensors of the failed attempt any more
        self.state.recompute = "always"
        self.optimizer.zero_grad(set_to_none=True)
        self.run.log.line(f"{self.stage.name}: out of memory; from now on activations are recomputed")
        return self.within_memory(compute)

    def fit_into_memory(self) -> None:
        """Log how large a batch fits; choose whether to recompute activations, unless the run has done so before."""
        stage, state = self.stage, self.state
        free = free_memory(self.run.device)
        if self.run.recipe.recompute != "auto":
            state.recompute = self.run.recipe.recompute
        chosen = state.recompute
        state.recompute = chosen or "never"
        if free is None:
            return
        per_process, images = stage.batch // self.run.distributed.world_size, self.batch(state.step)

        def step(items: int) -> None:
            self.gradient(*tree_map_only(Tensor, lambda t: t[torch.arange(items) % len(t)], images))
            self.optimizer.zero_grad(set_to_none=True)

        def trial() -> tuple[int, int]:
            return largest_batch(step, round(USABLE * free), per_process)

        with unchanged_moments(self.flow):
            fits, each = self.within_memory(trial)
            if fits < per_process and not chosen and state.recompute == "never":
                state.recompute = "always"
                fits, each = self.within_memory(trial)
        how = ", activations recomputed" if state.recompute == "always" else ""
        fewer = f", fewer than {per_process}: expect to run out of memory" if fits < per_process else ""
        self.run.log.line(
            f"{stage.name}: {each / 2**20:.3g} MB per crop of {stage.crop}{how}; the largest batch that fits into "
            f"{free / 2**30:.1f} GB of free memory is about {fits}{fewer}"
        )


@contextmanager
def unchanged_moments(flow: FlowModel) -> Generator[None, None, None]:
    """Undo what trial steps do to running moments."""
    norms = (module for module in flow.modules() if isinstance(module, BatchNorm))
    before = [(moment, moment.clone()) for norm in norms for moment in norm.buffers()]
    try:
        yield
    finally:
        for moment, value in before:
            moment.copy_(value)


def check_stage(stage: Stage, recipe: Recipe, data: Data, flow: FlowModel) -> None:
    """Raise FlowError for a stage that cannot be trained, before the first step of the run."""
    if not len(data.fitting(stage.crop)):
        largest, shrunk = max(recipe.pyramid), ""
        if largest < 1 and not recipe.short_sides:
            shrunk = f", once the recipe's pyramid has shrunk it: that takes {math.ceil(stage.crop / largest)} pixels"
        raise FlowError(
            f"No image has both sides of at least {stage.crop} pixels, the crop of stage {stage.name}{shrunk}. Use "
            "larger images or a smaller crop."
        )
    if stage.frozen_levels >= len(flow.levels) + (flow.dequantizer is not None):
        raise FlowError(
            f"frozen_levels of stage {stage.name} leaves nothing to train: the model has {len(flow.levels)} levels; "
            f"got {stage.frozen_levels}."
        )
    if (stage.kinetic_weight or stage.jacobian_weight) and not any(isinstance(m, ODE) for m in flow.modules()):
        raise FlowError(
            f"kinetic_weight and jacobian_weight of stage {stage.name} apply to the paths of an ODE; a "
            f"{flow.architecture} model has none. Leave them out."
        )
    if stage.calm_weight and flow.capabilities.source in ("none", "labels"):
        raise FlowError(
            f"calm_weight of stage {stage.name} applies to the best guess for a source image; a {flow.architecture} "
            "model samples without one. Leave it out."
        )
    if stage.objective != "likelihood":
        make_objective(flow, stage)
    elif any(isinstance(m, InvertibleConv) and m.start == "principal" for m in flow.modules()):
        channels, height, width = flow.latent_shapes(stage.crop, stage.crop)[-1]
        pixels = recipe.init_batch * height * width
        if pixels <= channels:
            raise FlowError(
                f"Principal axes (mixing, mixing_start) need more pixels than channels on the deepest grid; stage "
                f"{stage.name} has {pixels} pixels for {channels} channels. Raise init_batch to at least "
                f"{channels // (height * width) + 1}."
            )


# --- memory of a step: recomputed activations, and the largest batch that fits ----------------------------------------


@contextmanager
def recompute_activations(flow: FlowModel) -> Generator[None, None, None]:
    """Discard the activations inside every step of a flow and every block of an LR encoder, and recompute them.

    Each of these modules stores its input alone; the backward pass, which must run inside this context too, runs it
    again: gradients are the same. Source: Chen et al., "Training deep nets with sublinear memory cost" (2016).
    """
    changed: list[tuple[nn.Module, str]] = []
    for module in recomputable_modules(flow):
        # of an ODE every step of its solver
        for method in ("step",) if isinstance(module, ODE) else ("forward", "forward_with_logdet_map"):
            if hasattr(module, method):
                changed.append((module, method))
                setattr(module, method, _recomputing(module, getattr(module, method)))
    try:
        yield
    finally:
        for module, method in changed:
            module.__dict__.pop(method, None)  # uncovers the class's own method


def recomputable_modules(flow: FlowModel) -> list[nn.Module]:
    """List the steps of all levels, and the residual blocks of an LR encoder."""
    modules: list[nn.Module] = []
    for level in flow.levels:
        assert isinstance(level, Level)
        modules += level.steps.parts()
    if isinstance(flow.encoder, LREncoder):
        modules += flow.encoder.residual_blocks()
    return modules


def _recomputing(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if not any(norm.uses_batch for norm in norms):
            return nullcontext(), nullcontext()
        # running moments follow a batch once, not again when it is recomputed
        return nullcontext(), use_batch_moments(module, average=norms[0].average, update=False)

    def method(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return method


class PeakMemory(TorchDispatchMode):
    """Measures the most bytes of all tensors that operations inside this context return, until these are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._current, self._live = 0, 0, set[int]()  # bytes, and addresses of storages

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if not isinstance(t, Tensor):
                continue
            storage = t.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            if size and key not in known and key not in self._live:
                self._live.add(key)
                self._current += size
                weakref.finalize(storage, self._remove, key, size)
        self.peak = max(self.peak, self._current)
        return result

    def _remove(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._current -= size


def largest_batch(step: Callable[[int], None], free: int, most: int = 64) -> tuple[int, int]:
    """Estimate the largest batch that fits into free bytes, and the bytes per item, from steps of two batch sizes.

    Gradients take the same memory whatever the size. So the sizes, at most ``most``, grow until the items
    take a quarter of it all. If ``most`` is 1, gradients count as the item's.
    """

    def peak(items: int) -> int:
        with PeakMemory() as memory:
            step(items)
        return memory.peak

    if most == 1:
        per_item = max(1, peak(1))
        return free // per_item, per_item
    items, few, twice = 1, peak(1), peak(2)
    while 4 * (twice - few) < few and 2 * items < most:
        items = min(4 * items, most // 2)
        few, twice = peak(items), peak(2 * items)
    per_item = max(1, (twice - few) // items)
    return max(0, (free - (few - items * per_item)) // per_item), per_item
