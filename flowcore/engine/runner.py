"""One runner for all tasks: the compiled flow, progress, cancellation, and what happens when memory runs out."""

from __future__ import annotations

import functools
import inspect
import os
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor

from ..device import actual_precision, empty_cache, float32_arithmetic, is_out_of_memory, no_autocast
from ..errors import FlowError, say
from ..flows.flow import Flow
from ..flows.model import FlowModel
from ..flows.networks.strips import minimum_memory, observed
from ..models import load
from .compiled import CompiledFlow, compiled, drop_compiled
from .options import RunOptions, options_of
from .progress import Cancelled

A = TypeVar("A", contravariant=True)  # the first two arguments of a task
B = TypeVar("B", contravariant=True)
P = ParamSpec("P")  # the keywords of a class of settings
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

AnyFlow: TypeAlias = "Flow | str | os.PathLike[str]"
"""What tasks take as their flow: a model, a flow that was assembled by hand, or the name or file of a model."""

PIXELS_AT_ONCE = 2**18  # a batch as large as one 512x512 image: a few hundred MB in a Glow of width 512
MAX_AT_ONCE = 64  # more than this is no faster


class TaskFunction(Protocol[A, B, P, R_co]):
    """A task that takes its settings by name, or as one object."""

    @overload
    def __call__(self, first: A, second: B, /, *, settings: RunOptions) -> R_co: ...
    @overload
    def __call__(self, first: A, second: B, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Decorator(Protocol[P]):
    @overload
    def __call__(self, task: Callable[[FlowModel, B, Any], R]) -> TaskFunction[AnyFlow, B, P, R]: ...
    @overload
    def __call__(self, task: Callable[[A, B, Any], R]) -> TaskFunction[A, B, P, R]: ...
    @overload
    def __call__(self, task: Callable[..., R]) -> Callable[..., R]: ...


def runs_with(kind: Callable[P, RunOptions]) -> _Decorator[P]:
    """Make a decorator of tasks that take ``settings`` of a class: callers may pass its options as keywords.

    Signature and help list them. A flow that was assembled by hand becomes a ``FlowModel``, and the name or file of a
    model is loaded by every call, onto the device of the images.
    """
    options = options_of(cast("type[RunOptions]", kind))
    keywords_only = inspect.Parameter.KEYWORD_ONLY
    passed = [
        inspect.Parameter(each.name, keywords_only, default=each.default, annotation=each.type) for each in options
    ]
    wrap = partial(textwrap.fill, width=116, initial_indent="    ", subsequent_indent="        ")
    meanings = "\n".join(wrap(f"{each.name}: {each.text}") for each in options)

    def decorate(task: Callable[..., Any]) -> Any:
        signature = inspect.signature(task)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "settings"]
        flows = {"flow", "face_flow"} & signature.parameters.keys()

        @functools.wraps(task)
        def run(*args: Any, **keywords: Any) -> Any:
            tensors = (value for value in (*args, *keywords.values()) if isinstance(value, Tensor))
            device = next((tensor.device for tensor in tensors), torch.device("cpu"))
            if "settings" not in keywords:
                of_settings = {each.name: keywords.pop(each.name) for each in options if each.name in keywords}
                keywords["settings"] = kind(**of_settings)  # pyright: ignore[reportCallIssue]
            elif not isinstance(keywords["settings"], cast("type[RunOptions]", kind)):
                raise TypeError(f"settings of {task.__name__}() must be {kind}; got {type(keywords['settings'])}")
            named = {parameter.name: value for parameter, value in zip(own, args, strict=False)}
            for given in (named, keywords):
                for name in flows & given.keys():
                    if given[name] is not None or signature.parameters[name].default is not None:
                        given[name] = as_model(given[name], device)
            return task(*named.values(), *args[len(own) :], **keywords)

        run.__signature__ = signature.replace(parameters=own + passed)  # pyright: ignore[reportAttributeAccessIssue]
        if task.__doc__:  # there is none under python -OO
            run.__doc__ = f"{inspect.cleandoc(task.__doc__)}\n\nOptions:\n{meanings}"
        return run

    return decorate


def as_model(flow: object, device: torch.device) -> FlowModel:
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
                change: str | None = say("with one image at a time and minimum memory. It takes longer")
                if self.minimum_memory:
                    change = None if halve_tiles is None else halve_tiles()
                if change is None:
                    if self._image is None or self._image.ndim != 4:
                        raise FlowError("Out of memory. {advice}", advice=self._advice) from error
                    size = f"{self._image.shape[3]}x{self._image.shape[2]}"
                    raise FlowError(
                        "Out of memory at {size} pixels. {advice}", size=size, advice=self._advice
                    ) from error
            # Outside of `except`: the error's traceback keeps the tensors of the failed attempt alive.
            self.minimum_memory = True
            self.notify("Out of memory: going on {change}.", change=change)
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

    def notify(self, template: str, /, **values: object) -> None:
        """Tell the caller something, see ``say``; each sentence once, however many attempts there are."""
        sentence = say(template, **values)
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
