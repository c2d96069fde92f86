"""One runner for all tasks: the compiled flow, progress, cancellation, and what happens when memory runs out."""

from __future__ import annotations

import functools
import inspect
import os
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeAlias, TypedDict, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ..device import actual_precision, empty_cache, float32_arithmetic, is_out_of_memory, no_autocast
from ..errors import FlowError
from ..flows.flow import Flow
from ..flows.model import FlowModel
from ..flows.networks.strips import minimum_memory, observed
from ..flows.prior import check_seed
from ..models import load
from ..models.fields import Range, check_value
from .compiled import CompiledFlow, compiled, drop_compiled
from .options import RunOptions, options_of
from .progress import Cancelled, Precision, Progress, part_of
from .ranges import MAX_DRAWS

Function = TypeVar("Function", bound=Callable[..., Any])  # a task
P = ParamSpec("P")  # the keywords of a class of settings
S = TypeVar("S", bound=RunOptions)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

AnyFlow: TypeAlias = "Flow | str | os.PathLike[str]"
"""What tasks take as their flow: a model, a flow that was assembled by hand, or the name or file of a model."""

PIXELS_AT_ONCE = 2**18  # a batch as large as one 512x512 image: a few hundred MB in a Glow of width 512
MAX_AT_ONCE = 64  # more than this is no faster


def check_draws(seed: int, samples: int = 1) -> None:
    """Raise FlowError for an invalid seed or number of samples; sample s is drawn with ``seed + s``."""
    check_value("samples", samples, int, Range(1, MAX_DRAWS))
    check_seed(seed)


class Reporting(TypedDict, total=False):
    """The fields of ``RunOptions`` that every task takes as keywords."""

    progress: Progress | None
    cancelled: Callable[[], bool] | None
    notify: Callable[[str], None] | None


class Batching(Reporting, total=False):
    """``Reporting``, and the batch: of exact tasks, which run in the precision of the flow."""

    batch: int | None


class Running(Batching, total=False):
    """``Batching``, and the precision: of tasks that may compute in a lower one."""

    precision: Precision


def part_of_run(options: Reporting, start: float, share: float) -> Reporting:
    """Give one task among several its part of the progress; see ``part_of``."""
    return {**options, "progress": part_of(options.get("progress"), start, share)}


class Task(Protocol[P, R_co]):
    """A task that takes its settings by name, or as one object."""

    @overload
    def __call__(self, flow: AnyFlow, image: Tensor, /, *, settings: RunOptions) -> R_co: ...
    @overload
    def __call__(self, flow: AnyFlow, image: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


@overload
def runs_with(accepted: type[Reporting]) -> Callable[[Function], Function]: ...
@overload
def runs_with(accepted: Callable[P, S]) -> Callable[[Callable[[FlowModel, Tensor, S], R]], Task[P, R]]: ...
def runs_with(accepted: Any) -> Any:
    """Make a decorator of tasks, whose callers pass options as keywords, which signature and help list.

    They are some fields of ``RunOptions``, which replace the task's ``**options``; or those of the class of its
    settings, with which the task is called. Other keywords are rejected. Scalars of NumPy become Python's, a ``Flow``
    that was assembled by hand becomes a ``FlowModel``, and the name or file of a model is loaded by every call, onto
    the device of the images.
    """
    kind: Any = accepted if issubclass(accepted, RunOptions) else None
    options = [each for each in options_of(kind or RunOptions) if kind or each.name in accepted.__annotations__]
    passed = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, _, default, _ in options
    ]
    wrap = partial(textwrap.fill, width=116, initial_indent="    ", subsequent_indent="        ")
    meanings = "\n".join(wrap(f"{each.name}: {each.text}") for each in options)

    def decorate(task: Callable[..., Any]) -> Any:
        signature = inspect.signature(task)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != "settings"]
        parameters = own + passed
        names = [parameter.name for parameter in parameters]
        optional = {parameter.name for parameter in parameters if parameter.default is None}

        @functools.wraps(task)
        def checked(*args: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in (*names, *(() if kind is None else ("settings",))):
                    raise TypeError(f"{task.__name__}() got an unexpected keyword argument {name!r}")
            given = [*args, *keywords.values()]
            device = next((value.device for value in given if isinstance(value, Tensor)), torch.device("cpu"))
            accepted = partial(_accepted, device=device, optional=optional)
            positional = [*map(accepted, names, args), *args[len(names) :]]
            keywords = {name: accepted(name, keywords[name]) for name in keywords}
            if kind is not None and "settings" not in keywords:
                of_settings = {each.name: keywords.pop(each.name) for each in options if each.name in keywords}
                keywords["settings"] = kind(**of_settings)
            return task(*positional, **keywords)

        checked.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        if task.__doc__:  # there is none under python -OO
            checked.__doc__ = f"{inspect.cleandoc(task.__doc__)}\n\nOptions:\n{meanings}"
        return checked

    return decorate


def _accepted(name: str, value: Any, device: torch.device, optional: set[str]) -> Any:
    if name in ("flow", "face_flow") and not (value is None and name in optional):
        return as_model(value, device)
    return value.item() if isinstance(value, np.generic) else value


def as_model(flow: object, device: torch.device | str = "cpu") -> FlowModel:
    """Return a flow as a model, loaded on a device if it is named; FlowError for anything else."""
    if isinstance(flow, (str, os.PathLike)):
        return load(os.fspath(flow), device)
    if not isinstance(flow, Flow):
        raise FlowError(
            f"Expected a flow, the name of a shipped model, or a model file; got a {type(flow).__name__}. Load one: "
            'flowcore.load("srflow-x4"); flowcore.models() lists the names.'
        )
    return FlowModel.of(flow)


class Runner:
    """Runs one task on an image, again with less at once if memory runs out; if that does not help, gives advice.

    Progress is counted in units of work: ``expect`` sets their number, ``advance`` counts finished ones, and within
    ``counting`` they are counted while the flow computes them.
    """

    def __init__(self, flow: FlowModel | None, options: RunOptions, advice: str, image: Tensor | None = None) -> None:
        self.options, self._flow, self._advice, self._image = options, flow, advice, image
        parameter = torch.empty(0) if flow is None else next(flow.parameters(), torch.empty(0))
        self.device, self.dtype = parameter.device, parameter.dtype
        self.minimum_memory = False
        self._compiled: CompiledFlow | None = None
        self._notified: set[str] = set()
        self._total = self._required = self._done = self._missing = 0  # units of work, see ``expect`` and ``counting``
        self._weight = 1

    def retry_on_oom(self, task: Callable[[], R], halve_tiles: Callable[[], str | None] | None = None) -> R:
        """Run a task: all at once; if memory runs out, one image at a time with minimum memory; then in smaller tiles.

        ``halve_tiles`` makes the next attempt smaller and says how ("with tiles of 64 pixels"), or returns None.
        """
        while True:
            self._compiled = None
            try:
                strips = minimum_memory() if self.minimum_memory else nullcontext()
                with torch.no_grad(), no_autocast(self.device), float32_arithmetic(), observed(self._observe), strips:
                    return task()
            except (RuntimeError, MemoryError) as error:  # what torch and Python raise, on every device
                if not is_out_of_memory(error):
                    raise
                change: str | None = "with one image at a time and minimum memory. It takes longer"
                if self.minimum_memory:
                    change = None if halve_tiles is None else halve_tiles()
                if change is None:
                    image = self._image
                    size = "" if image is None or image.ndim != 4 else f" at {image.shape[3]}x{image.shape[2]} pixels"
                    raise FlowError(f"Out of memory{size}. {self._advice}") from error
            # Outside of `except`: the error's traceback keeps the tensors of the failed attempt alive.
            self.minimum_memory = True
            self.notify(f"Out of memory: going on {change}.")
            drop_compiled(keep=self._flow)
            empty_cache()

    @property
    def compiled(self) -> CompiledFlow:
        """The model, folded in the precision of the options."""
        if self._compiled is None:
            assert self._flow is not None
            precision = self.options.precision
            if precision == "float16" and self.device.type == "cpu":
                self.notify("float16 is many times slower than float32 on a CPU: going on in float32.")
            self._compiled = compiled(self._flow, actual_precision(precision, self.device))
        return self._compiled

    def to_device(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the model; floats get its precision."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def at_once(self, preferred: int) -> int:
        """Choose how many images or samples go through the flow together: what the caller set, else ``preferred``."""
        return 1 if self.minimum_memory else self.options.batch or preferred

    def batches(self, count: int, preferred: int) -> list[slice]:
        """Divide images or samples into batches; see ``at_once``."""
        step = self.at_once(preferred)
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def notify(self, sentence: str) -> None:
        """Tell the caller something; each sentence once, however many attempts there are."""
        if sentence not in self._notified:
            self._notified.add(sentence)
            self.options.tell(sentence)

    def check_cancelled(self) -> None:
        """Raise Cancelled if the caller asks to stop."""
        if self.options.cancelled is not None and self.options.cancelled():
            raise Cancelled("Stopped on request.")

    def expect(self, total: int) -> None:
        """Start counting from 0 to so many units of work."""
        self._total = self._required = total  # _required shrinks when expected units turn out to need no work
        self._done = self._missing = 0

    def advance(self, units: int = 1, preview: Tensor | None = None) -> None:
        """Count finished units; a preview is ``(3, H, W)`` in [0, 1]."""
        self._done += units
        if units and self.options.progress is not None:
            self.options.progress(self._total * self._done // max(1, self._required), self._total, preview)

    @contextmanager
    def counting(self, units: int, weight: int = 1) -> Generator[None, None, None]:
        """Count units while the flow computes them, each ``weight`` times; skipped ones are no longer required."""
        self.check_cancelled()
        self._missing, self._weight = units, weight
        yield
        self._required -= self._missing
        self._missing = 0

    def _observe(self, computed: int) -> None:
        """Count units that the flow has computed; before a layer these are 0, and the caller may stop the task."""
        if not computed:
            self.check_cancelled()
        counted = min(self._weight * computed, self._missing)
        self._missing -= counted
        self.advance(counted)


def batch_size(height: int, width: int) -> int:
    """Choose how many images of a size go through a flow together by default."""
    return max(1, min(MAX_AT_ONCE, PIXELS_AT_ONCE // max(1, height * width)))
