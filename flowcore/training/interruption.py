"""Stopping in the middle of a step: a batch can take many seconds, and whoever asks to stop waits for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Stopped(Exception):
    """The caller asked to stop in the middle of work.

    Attributes:
        reason: A word for the log, or what the caller raised, to be raised again.
    """

    def __init__(self, reason: str | BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def interruptible(models: list[nn.Module], cancelled: Callable[[], bool] | None) -> Generator[None, None, None]:
    """Ask whether to stop after every layer of models, and at its gradient, while the body of the statement runs.

    Args:
        models: Of the trainer alone: they carry hooks meanwhile.
        cancelled: Returns True, or raises, to stop: then ``Stopped`` ends the body. None never stops.

    Yields:
        Nothing.
    """
    if cancelled is None:
        yield
        return

    def check(*_: Any) -> None:
        try:
            stop = cancelled()
        except BaseException as raised:  # the host's own interruption, which is no Exception in newer ones
            raise Stopped(raised) from None
        if stop:
            raise Stopped("cancelled")

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        check()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(check)

    layers = [m for model in models for m in model.modules() if not list(m.children())]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
