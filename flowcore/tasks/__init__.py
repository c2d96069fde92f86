"""Tasks: image in, image out. What every task shares with its caller: progress, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from ..flow import Flow
from ..networks.conditioner import NormalisedConv, ScaledConv
from ..networks.residual import WeightNormConv

WATCHED = (nn.Conv2d, nn.Linear, NormalisedConv, ScaledConv, WeightNormConv)


class Cancelled(Exception):
    """The caller asked a task to stop."""


class Progress(Protocol):
    """What a task calls as it goes along."""

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Report.

        Args:
            done: Finished units of work.
            total: All units of work.
            preview: A finished picture, ``(3, H, W)`` in [0, 1], when there is a new one.
        """


@contextmanager
def watched(flow: Flow, before_each: Callable[[], None]) -> Generator[None, None, None]:
    """Call something before every convolution of a flow's networks runs: to count, and to stop.

    Args:
        flow: The model that the body of the ``with`` statement runs.
        before_each: Called without arguments; what it raises ends the body.

    Yields:
        Nothing.
    """

    def hook(*_: object) -> None:
        before_each()

    handles = [layer.register_forward_pre_hook(hook) for layer in layers(flow)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers(model: nn.Module) -> list[nn.Module]:
    """List the layers that ``watched`` watches: where nearly all of the time is spent.

    Args:
        model: A flow, or a part of one.

    Returns:
        The convolutions and linear maps of its conditioners and of its encoder.
    """
    return [m for m in model.modules() if isinstance(m, WATCHED)]
