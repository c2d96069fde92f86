"""Widgets: functions that describe them to the host, annotations that several nodes share, and parsers of text."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin

from torch import Tensor

from flowcore import ConditionError, FlowError
from flowcore.engine import model_input
from flowcore.engine import progress as runtime
from flowcore.engine.options import Option
from flowcore.errors import Argument, say
from flowcore.tasks import chroma

from .host.compat import io

COLD, MILD, HOT, GRAY = [36, 92, 201], [236, 232, 220], [214, 62, 38], [128, 128, 128]
# A slider at this value follows the model: `run` gets None, and the task takes the number that the model's file
# states; the canvas shows that number, and a double-click brings it back. A saved workflow has a value for every
# slider, even for one that nobody has moved.
FROM_MODEL = -0.1
MAX_TEMPERATURE = 1.5
MAX_TEMPERATURES = 64  # most on one sheet; the tooltips say so, too
MAX_ITEMS = 4096  # labels in one text, and pictures to pick from

Input = Callable[..., Any]  # describes an input, given its name; see `FlowNode`


def temperature(default: float, **fields: Any) -> Input:
    """Describe a temperature: a slider, colored from cold to hot, that starts at 0 or at the default `FROM_MODEL`."""
    lower = min(0.0, default)
    zero = abs(lower) / (MAX_TEMPERATURE - lower)  # place of 0 on the slider
    stops = [(0.0, GRAY), (zero, GRAY)] if zero else []  # the other colors are those of `heat` in web/js/brush.js
    stops += [(zero, COLD), (zero + 0.55 * (1 - zero), MILD), (1.0, HOT)]
    return partial(
        io.Float.Input,
        default=default,
        min=lower,
        max=MAX_TEMPERATURE,
        step=0.01,
        display_mode=io.NumberDisplay.gradient_slider,
        gradient_stops=[{"offset": round(offset, 4), "color": color} for offset, color in stops],
        **fields,
    )


def seed(default: int = 0, *, control: bool = True, **fields: Any) -> Input:
    """Describe the number `seed`; with `control`, the canvas can change it after every run."""
    # False must be stated, because the frontend adds the control to anything called seed.
    return integer(default, 0, 0xFFFFFFFFFFFFFFFF, control_after_generate=control, **fields)


def integer(default: int, lower: int, upper: int, **fields: Any) -> Input:
    """Describe a whole number."""
    return partial(io.Int.Input, default=default, min=lower, max=upper, **fields)


def number(default: float, lower: float, upper: float, step: float, **fields: Any) -> Input:
    """Describe a number."""
    return partial(io.Float.Input, default=default, min=lower, max=upper, step=step, **fields)


def slider(default: float, lower: float, upper: float, step: float = 0.01, **fields: Any) -> Input:
    """Describe a number with a plain slider."""
    return number(default, lower, upper, step, display_mode=io.NumberDisplay.slider, **fields)


def choice(*options: str, **fields: Any) -> Input:
    """Describe a choice; its default is the first option unless `fields` say otherwise."""
    fields.setdefault("default", options[0])
    return partial(io.Combo.Input, options=list(options), **fields)


def of_option(option: Option) -> Input:
    """Describe an option of a task by the widget that suits its name, type and range."""
    name, kind, setting, default, text_of = option
    always: dict[str, Any] = {"tooltip": f"{text_of.partition('. ')[0].rstrip('.')}."}
    always |= {"advanced": True} if setting.advanced else {}
    shared: dict[str, Any] = {**always, "optional": True}
    if name == "temperature":
        return temperature(FROM_MODEL, **always)
    if name == "detail":
        return temperature(FROM_MODEL, **shared)
    if name == "seed":
        return seed(**always)
    low, high = setting.bounds.low, setting.bounds.high if setting.most is None else setting.most
    step = {} if setting.step is None else {"step": setting.step}
    if setting.kind is int:
        return integer(default or 0, 0 if default is None else int(low), int(high), **step, **shared)
    if setting.kind is float and default is None:
        return slider(FROM_MODEL, FROM_MODEL, float(high), **shared)
    if setting.kind is float:
        return (number if step else slider)(default, float(low), float(high), **step, **shared)
    if get_origin(kind) is Literal:
        return choice(*get_args(kind), default=default, **shared)
    if Tensor in get_args(kind):
        return partial(io.Image.Input, **shared)
    return switch(default, **shared) if kind is bool else text(default or "", **shared)


class FileNames(list[str]):
    """The file names that an input offers. They change while the host runs, so the node itself checks the choice."""


def file_choice(options: Callable[[], list[str]], facts: Callable[[], dict[str, Any]] = dict, **fields: Any) -> Input:
    """Describe a choice among files, listed again for every schema; `facts` are sent to the page with them."""

    def describe(name: str) -> Any:
        return io.Combo.Input(name, options=FileNames(options()), extra_dict=facts(), **fields)

    return describe


def switch(default: bool = False, **fields: Any) -> Input:
    """Describe an optional switch."""
    return partial(io.Boolean.Input, default=default, **{"optional": True, **fields})


def text(default: str = "", **fields: Any) -> Input:
    """Describe a text."""
    return partial(io.String.Input, default=default, **fields)


CalmEdges = Annotated[float | None, slider(FROM_MODEL, FROM_MODEL, 1.0, optional=True, advanced=True)]
Fit = Annotated[model_input.Fit, choice("resize", "crop", optional=True)]
Gamut = Annotated[chroma.Gamut, choice("compress", "clip", optional=True, advanced=True)]
Label = Annotated[int, integer(-1, -1, 9999, optional=True)]
Mark = Annotated[str, text(optional=True, advanced=True)]  # a phrase; see `flowcore.flows.prior.sample_latents`
ModelTemperature = Annotated[float | None, temperature(FROM_MODEL)]  # follows the model until it is moved
Painting = Annotated[str, text(optional=True, socketless=True)]  # see web/js/brush.js
Pick = Annotated[int, integer(0, 0, MAX_ITEMS, optional=True)]  # the input `pick` of every `PickingNode`
Precision = Annotated[
    runtime.Precision, choice("float32", "bfloat16", "float16", "auto", "tf32", optional=True, advanced=True)
]
Samples = Annotated[int, integer(1, 1, 64, optional=True)]
Seed = Annotated[int, seed()]
Switch = Annotated[bool, switch()]
Text = Annotated[str, text(optional=True)]
Tile = Annotated[int, integer(0, 0, 4096, optional=True, advanced=True)]
Window = Annotated[int, integer(9, 5, 255, step=2, optional=True, advanced=True)]  # window of `per` = local
WorkingSize = Annotated[int, integer(0, 0, 4096, step=16, optional=True, advanced=True)]


def parse_numbers(text: str, name: str) -> list[float] | None:
    """Parse one number per level, such as "0.6, 0.8, 1", of the widget `name`; None if the text is empty."""
    words = _words(text)
    try:
        return [float(word) for word in words] or None
    except ValueError:
        raise FlowError(
            "{name} takes one number per level, finest first, such as `0.6, 0.8, 1`; got `{text}`. Separate the "
            "numbers with commas.",
            name=Argument(name),
            text=text[:60],
        ) from None


def temperature_list(text: str) -> list[float]:
    """Parse the temperatures of a sheet, at least one."""
    taus = parse_numbers(text, "temperatures") or []
    if not 1 <= len(taus) <= MAX_TEMPERATURES:
        raise FlowError(
            "temperatures takes 1 to {most} numbers, such as `0, 0.4, 0.7, 0.9`; got {count}.",
            most=MAX_TEMPERATURES,
            count=len(taus),
        )
    return taus


def parse_labels(text: str, classes: int, names: Sequence[str] = ()) -> list[int] | None:
    """Parse labels, such as "7", "3, 5", "0-9", "9-0" (counts down) or any of `names`; None if the text is empty."""
    result, lower = list[int](), [name.lower() for name in names]
    for word in _words(re.sub(r"\s*-\s*", "-", text)):
        if word.lower() in lower:
            word = str(lower.index(word.lower()))
        span = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if span is None:
            or_names = say(", or {names}", names=", ".join(names)) if names else ""
            raise FlowError(
                "labels are whole numbers, such as `7`, `3, 5` or `0-9`{or_names}; got `{labels}`. Separate them with "
                "commas.",
                or_names=or_names,
                labels=text[:60],
            )
        first, last = int(span[1]), int(span[2] or span[1])
        if max(first, last) >= classes:
            raise ConditionError(
                "This model knows the labels 0 to {most}; got {label}.", most=classes - 1, label=max(first, last)
            )
        result += range(first, last + 1) if first <= last else range(first, last - 1, -1)
        if len(result) > MAX_ITEMS:
            raise FlowError("labels lists more than {most} labels. List fewer.", most=MAX_ITEMS)
    return result or None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,;\s]+", text) if word]
