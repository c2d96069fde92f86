"""How a caller follows a running plan, and stops it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

Observer = Callable[[int], None]

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)  # per thread: plans may be shared


@contextmanager
def observed(observer: Observer) -> Generator[None, None, None]:
    """Follow every plan that the body of the ``with`` statement runs in this thread.

    Args:
        observer: Called before every convolution with 0, and after every finished unit of work (a block of the encoder,
            a coupling or an injector) with the number of units; see ``Plan.units`` and ``Plan.encoder_units`` for how
            many there will be. What it raises ends the run. Inside another ``observed`` it takes the other's place.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def report(units: int = 0) -> None:
    """Tell this thread's observer, if there is one, of finished units of work; with 0, let it stop the run."""
    observer = _observer.get()
    if observer is not None:
        observer(units)
