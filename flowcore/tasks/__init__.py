"""Tasks: image in, image out. What every task shares with its caller: progress, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from ..flow import Flow
from ..networks import Conditioner
from ..networks.rrdb import DenseBlock


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
def interruptible(flow: Flow, cancelled: Callable[[], bool] | None) -> Generator[None, None, None]:
    """Ask, before every network inside a flow runs, whether to stop.

    Args:
        flow: The model that the body of the ``with`` statement runs.
        cancelled: Returns True to stop, or raises by itself; None never stops.

    Yields:
        Nothing.

    Raises:
        Cancelled: From inside the body, when asked to stop.
    """
    if cancelled is None:
        yield
        return

    def check(*_: Any) -> None:
        if cancelled():
            raise Cancelled("Stopped on request.")

    check()
    networks = [m for m in flow.modules() if isinstance(m, (Conditioner, DenseBlock))]
    hooks = [network.register_forward_pre_hook(check) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
