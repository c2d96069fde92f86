"""How a caller follows and stops a running plan."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

Observer = Callable[[int], None]

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)  # per thread: plans may be shared


@contextmanager
def observed(observer: Observer) -> Generator[None, None, None]:
    """Follow every plan that the body of the ``with`` statement runs in this thread.

    The observer is called before every convolution with 0, and after every finished unit of work (a block of the
    encoder, a coupling or an injector) with the number of units; ``Plan.units`` and ``Plan.encoder_units`` say how many
    there will be. An exception that it raises ends the run. Inside another ``observed`` it replaces that one's
    observer.
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
