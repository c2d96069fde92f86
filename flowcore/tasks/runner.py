"""When memory runs out: what every task does then, and what it says if that does not help."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

from ..device import empty_cache, is_out_of_memory
from ..errors import FlowError
from ..flow import Flow
from ..inference.plan import use_minimum_memory

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("flowcore")


def retry_on_oom(advice: str, *, at_once: str = "batch") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a task that runs out of memory run again, from the start, with as little at once as it can.

    That is one image at a time, in the lowest strips; the result is the same. Nothing of the run that failed is kept,
    so it does not matter where memory ran out.

    Args:
        advice: What to do if memory runs out once more, naming the arguments that matter.
        at_once: The task's argument for how many images go through the flow together; "" if it has none.

    Returns:
        A decorator, to be the outermost.
    """

    def decorated(task: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(task)
        def run(*args: P.args, **options: P.kwargs) -> R:
            try:
                return task(*args, **options)
            except (RuntimeError, MemoryError) as error:  # what torch and Python raise, on every device
                if not is_out_of_memory(error):
                    raise
            # Out here, because an error keeps alive what its run has made.
            say = cast("Callable[[str], None] | None", options.get("notify")) or log.warning
            say("Out of memory: going on with one image at a time, in the lowest strips. It takes longer.")
            make_room(*(arg for arg in (*args, *options.values()) if isinstance(arg, Flow)))
            less: dict[str, Any] = {at_once: 1} if at_once else {}
            try:
                return task(*args, **{**options, **less})  # pyright: ignore[reportCallIssue]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                image = next((arg for arg in args if isinstance(arg, Tensor) and arg.ndim == 4), None)
                size = "" if image is None else f" at {image.shape[3]}x{image.shape[2]} pixels"
                raise FlowError(f"Out of memory{size}. {advice}") from error

        return run

    return decorated


def make_room(*flows: Flow) -> None:
    """Let go of what can be made anew, and let the plans of flows work in the lowest strips from now on.

    Args:
        flows: What will run next.
    """
    for flow in flows:
        use_minimum_memory(flow)
    empty_cache()
