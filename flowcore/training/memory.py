"""Memory of a training step: keep less of it, measure it, and say how large a batch fits."""

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
from ..networks import RRDBEncoder
from ..transforms import BatchNorm, batch_moments

# --- keep less --------------------------------------------------------------------------------------------------------


@contextmanager
def recomputed(flow: Flow) -> Generator[None, None, None]:
    """Let every step of a flow, and every block of an LR encoder, forget its activations and compute them again.

    What a step keeps is its input alone; the backward pass runs it once more, inside this context too. So memory hardly
    grows with the number of steps, for about a third more work, and gradients are the same.

    Args:
        flow: The model that the body of the ``with`` statement trains.

    Yields:
        Nothing.

    Source: Chen et al., "Training deep nets with sublinear memory cost" (2016); torch's implementation.
    """
    parts = units(flow)
    for part in parts:
        for method in ("forward", "by_position"):
            if hasattr(part, method):
                setattr(part, method, _recomputing(part, getattr(part, method)))
    try:
        yield
    finally:
        for part in parts:
            for method in ("forward", "by_position"):
                part.__dict__.pop(method, None)  # what the class has comes back


def units(flow: Flow) -> list[nn.Module]:
    """List what ``recomputed`` works on.

    Args:
        flow: A model.

    Returns:
        The steps of all levels, and the residual blocks of an LR encoder.
    """
    parts: list[nn.Module] = []
    for level in flow.levels:
        assert isinstance(level, Level)
        parts += level.steps.parts()
    if isinstance(flow.encoder, RRDBEncoder):
        parts += flow.encoder.blocks
    return parts


def _recomputing(part: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    norms = [norm for norm in part.modules() if isinstance(norm, BatchNorm)]

    def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if not any(norm.uses_batch for norm in norms):
            return nullcontext(), nullcontext()
        return nullcontext(), batch_moments(part, average=norms[0].average, update=False)  # updated once already

    def method(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, context_fn=again)

    return method


# --- measure ----------------------------------------------------------------------------------------------------------


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside this context held at one time, on any device.

    It counts the storages that operations return, the backward pass included, until they are freed; not what an
    operation uses inside. The same program gives the same number on every run.
    """

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.peak = 0
        self._now = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self._count(t.untyped_storage())
        self.peak = max(self.peak, self._now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._live and size:
            self._live.add(key)
            self._now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._now -= size


def largest_batch(step: Callable[[int], None], free: int, most: int = 64) -> tuple[int, int]:
    """Say how many items fit into memory, from steps of few items and of twice as many.

    Gradients, which do not grow with a batch, hide what few small items take; so more are tried until they show.

    Args:
        step: Makes a training step of so many items, and keeps nothing.
        free: Bytes that may be used.
        most: Items to try at most.

    Returns:
        The largest batch, 0 if not even one item fits, and the bytes that each item takes.
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
