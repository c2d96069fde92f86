"""What every task takes beside its own arguments: what is drawn, and how it runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, cast, get_args

from ..errors import FlowError
from . import Precision, Progress, part_of

Task = TypeVar("Task", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What is drawn: ``samples`` results per image, sample s of every image with ``seed + s``."""

    seed: int = 0
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise FlowError(f"samples must be at least 1; got {self.samples}.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FlowError(f"A seed must be a whole number in [0, 2^64); got {self.seed!r}.")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a task runs; none of it changes the result beyond rounding, but for a lower precision.

    Attributes:
        precision: Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32.
            "auto": the device's fastest, see ``device.preferred_precision``. "tf32": float32 on an NVIDIA GPU's tensor
            cores; elsewhere the same as float32.
        batch: Images or samples that go through the flow at once; None or 0 chooses by their size.
        progress: Called with ``(done, total, preview)`` as the work advances; a preview with every finished picture.
        cancelled: Asked before every network layer; returns True (or raises) to stop.
        notify: Called with a sentence when something is done otherwise than asked; None logs it.
    """

    precision: Precision = "float32"
    batch: int | None = None
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None
    notify: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise FlowError(f"precision must be one of {', '.join(get_args(Precision))}; got {self.precision!r}.")
        if self.batch is not None and self.batch < 0:
            raise FlowError(f"batch must not be negative; got {self.batch}. 0 chooses by the image's size.")


class Reporting(TypedDict, total=False):
    """The fields of ``RunOptions`` that every task takes as keywords."""

    progress: Progress | None
    cancelled: Callable[[], bool] | None
    notify: Callable[[str], None] | None


class Batching(Reporting, total=False):
    """Those of exact tasks on batches."""

    batch: int | None


class Running(Batching, total=False):
    """Those of tasks that may compute in a lower precision."""

    precision: Precision


def part_of_run(options: Reporting, start: float, share: float) -> Reporting:
    """Give one task among several its part of the progress; see ``part_of``."""
    return {**options, "progress": part_of(options.get("progress"), start, share)}


def runs_with(keywords: type[Reporting]) -> Callable[[Task], Task]:
    """Show keywords of ``RunOptions``, which a task takes as ``**options``, in its signature and help; refuse others.

    They replace the line of its docstring that names ``options``.
    """
    fields = [field for field in dataclasses.fields(RunOptions) if field.name in keywords.__annotations__]
    entry = re.compile(r"^ {8}(\w+): (.*\n(?: {12}.*\n)*)", re.MULTILINE)
    meanings = dict(entry.findall(RunOptions.__doc__ or ""))
    lines = "".join(f"        {field.name}: {meanings[field.name]}" for field in fields)

    def decorate(task: Task) -> Task:
        signature = inspect.signature(task)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields
        ]
        known = {parameter.name for parameter in [*own, *shown]}

        @functools.wraps(task)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given.keys() - known:
                raise TypeError(f"{task.__name__}() got an unexpected keyword argument {name!r}")
            return task(*args, **given)

        checked.__signature__ = signature.replace(parameters=[*own, *shown])  # pyright: ignore[reportAttributeAccessIssue]
        checked.__doc__ = (task.__doc__ or "").replace("        options: How to run, see ``RunOptions``.\n", lines)
        return cast(Task, checked)

    return decorate
