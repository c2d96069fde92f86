"""Memory of a training step: using less, by recomputing activations, and finding the largest batch that fits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ..flow import Flow, Level
from ..networks import LREncoder
from ..transforms import ODE, BatchNorm, batch_moments


@contextmanager
def recompute_activations(flow: Flow) -> Generator[None, None, None]:
    """Discard the activations inside every step of a flow and every block of an LR encoder, and recompute them.

    Each of these modules stores its input alone; the backward pass, which must run inside this context too, runs it
    again. Memory hardly grows with the number of steps, for about a third more work, and gradients are the same.

    Source: Chen et al., "Training deep nets with sublinear memory cost" (2016); torch's implementation.
    """
    modules = recomputable_modules(flow)
    for module in modules:
        for method in _methods(module):
            if hasattr(module, method):
                setattr(module, method, _recomputing(module, getattr(module, method)))
    try:
        yield
    finally:
        for module in modules:
            for method in _methods(module):
                module.__dict__.pop(method, None)  # uncovers the class's own method


def recomputable_modules(flow: Flow) -> list[nn.Module]:
    """List the steps of all levels, and the residual blocks of an LR encoder."""
    modules: list[nn.Module] = []
    for level in flow.levels:
        assert isinstance(level, Level)
        modules += level.steps.parts()
    if isinstance(flow.encoder, LREncoder):
        modules += flow.encoder.residual_blocks()
    return modules


def _methods(module: nn.Module) -> tuple[str, ...]:
    """What is recomputed as a whole: of an ODE every step of its solver."""
    return ("step",) if isinstance(module, ODE) else ("forward", "by_position")


def _recomputing(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if not any(norm.uses_batch for norm in norms):
            return nullcontext(), nullcontext()
        # running moments follow a batch once, not again when it is recomputed
        return nullcontext(), batch_moments(module, average=norms[0].average, update=False)

    def method(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return method


class PeakMemory(TorchDispatchMode):
    """Measures the most bytes that tensors made inside this context occupy at one time, on any device.

    It counts the storages that operations return, including the backward pass, until they are freed; not the temporary
    memory inside an operation. The same program gives the same number every time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._current = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in inputs:
                self._add(t.untyped_storage())
        self.peak = max(self.peak, self._current)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._live and size:
            self._live.add(key)
            self._current += size
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._current -= size


def largest_batch(step: Callable[[int], None], free: int, most: int = 64) -> tuple[int, int]:
    """Estimate the largest batch that fits into free bytes, and the bytes per item, from steps of two sizes.

    Gradients, which do not grow with a batch, hide the memory of a few small items; so the number is raised until the
    difference between a few and twice as many shows.
    """
    items = 1
    while True:
        few, twice = _peak(step, items), _peak(step, 2 * items)
        if 4 * (twice - few) >= few or 2 * items >= most:
            break
        items = min(4 * items, most // 2)
    each = max(1, (twice - few) // items)
    return max(0, (free - (few - items * each)) // each), each


def _peak(step: Callable[[int], None], items: int) -> int:
    with PeakMemory() as memory:
        step(items)
    return memory.peak
