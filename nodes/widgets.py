"""Inputs that several nodes have, and the parsing of what is typed into them.

An input is described by a function of its name; see `FlowNode`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ..flowcore import ConditionError, FlowError
from .host.compat import gradient_slider, io, make

COLD, MILD, HOT = [36, 92, 201], [236, 232, 220], [214, 62, 38]
OWN, OWN_COLOR = -0.1, [128, 128, 128]  # the left end of sliders that can follow the model; anything below 0 does
MAX_TEMPERATURE = 1.5  # temperature
MAX_TEMPERATURES = 64  # on one sheet; stated in the tooltips, too
MAX_ITEMS = 4096  # labels in one text

Input = Callable[[str], Any]


def temperature(default: float, *, own: bool = False, optional: bool = False) -> Input:
    """Describe a temperature: a slider, colored from cold to hot.

    With `own` its left end, `OWN`, is no temperature: the node takes what the model's file states, see `own_or`. It
    is a value of the slider because nothing else tells a slider that nobody moved from one that a workflow has saved.
    Saved workflows and prompts state a temperature, of 0 or more, and keep it; only new nodes start at `OWN`.

    Args:
        default: Its default.
        own: Whether it can follow the model.
        optional: Whether a script may leave it out.
    """
    zero = OWN / (OWN - MAX_TEMPERATURE) if own else 0.0  # where on the slider 0 is
    stops = [(0.0, OWN_COLOR), (zero, OWN_COLOR)] if own else []
    stops += [(zero, COLD), (zero + 0.55 * (1 - zero), MILD), (1.0, HOT)]
    return partial(
        make,
        io.Float.Input,
        default=default,
        min=OWN if own else 0.0,
        max=MAX_TEMPERATURE,
        step=0.01,
        optional=optional,
        display_mode=gradient_slider(),
        gradient_stops=[{"offset": round(offset, 4), "color": color} for offset, color in stops],
    )


def own_or(value: float) -> float | None:
    """Read a value that can follow the model: None for that, which is what tasks call it."""
    return None if OWN <= value < 0 else value


def seed(default: int = 0, *, control: bool = True, optional: bool = False) -> Input:
    """Describe the number `seed`.

    Args:
        default: Its default.
        control: Whether the canvas may change it after every run. False must be stated, too: the frontend adds the
            control to whatever is called seed.
        optional: Whether a script may leave it out.
    """
    upper = 0xFFFFFFFFFFFFFFFF
    return partial(io.Int.Input, default=default, min=0, max=upper, control_after_generate=control, optional=optional)


def integer(default: int, lower: int, upper: int, step: int | None = None, *, optional: bool = False) -> Input:
    """Describe a whole number."""
    return partial(io.Int.Input, default=default, min=lower, max=upper, step=step, optional=optional)


def number(default: float, lower: float, upper: float, step: float, **fields: Any) -> Input:
    """Describe a number; `fields` are more of the host's."""
    return partial(io.Float.Input, default=default, min=lower, max=upper, step=step, **fields)


def slider(default: float, lower: float, upper: float, step: float = 0.01, *, optional: bool = False) -> Input:
    """Describe a number with a plain slider."""
    return number(default, lower, upper, step, optional=optional, display_mode=io.NumberDisplay.slider)


def choice(*options: str, optional: bool = False) -> Input:
    """Describe a choice, whose default is the first option."""
    return partial(io.Combo.Input, options=list(options), default=options[0], optional=optional)


def listed(options: Callable[[], list[str]], **fields: Any) -> Input:
    """Describe a choice among files, which are listed anew for every schema; `fields` are more of the host's."""
    return lambda name: io.Combo.Input(name, options=options(), **fields)


# Inputs that are the same everywhere. The default of `calm_edges`, `OWN`, means the model's own beside the model's own
# temperature, and 0 beside a temperature that is stated (see `flowcore.tasks.upscale.sampling_settings`).
calm_edges = slider(OWN, OWN, 1.0, optional=True)
gamut = choice("compress", "clip", optional=True)
fit = choice("resize", "crop", optional=True)
label = integer(-1, -1, 9999, optional=True)
mode = partial(io.Combo.Input, options=["slerp", "linear", "norm"], default="slerp")  # between two latents
painting = partial(io.String.Input, default="", optional=True, socketless=True)  # see web/js/brush.js
per = partial(io.Combo.Input, options=["local", "channel", "level"], default="level")  # normalized together
pick = integer(0, 0, MAX_ITEMS, optional=True)  # of every `PickingNode`
precision = choice("float32", "bfloat16", "float16", "auto", "tf32", optional=True)
saturation = slider(1.0, 0.0, 3.0, optional=True)
switch = partial(io.Boolean.Input, default=False, optional=True)
text = partial(io.String.Input, default="", optional=True)  # labels, points, or one temperature per level
window = integer(9, 5, 255, 2, optional=True)  # of `per` = local
working_size = integer(0, 0, 4096, 16, optional=True)


# ---------------------------------------------------------------------------------------------------------------------
# parsing


def parse_numbers(text: str, name: str) -> list[float] | None:
    """Parse one number per level.

    Args:
        text: Such as "0.6, 0.8, 1"; commas, semicolons and spaces separate.
        name: Of the widget, for messages.

    Returns:
        The numbers, or None if there are none.

    Raises:
        FlowError: If the text is not a list of numbers.
    """
    words = re.split(r"[,;\s]+", text.strip(" ,;\n\t"))
    if words == [""]:
        return None
    try:
        return [float(word) for word in words]
    except ValueError:
        raise FlowError(
            f"{name} takes one number per level, finest first, such as `0.6, 0.8, 1`; got `{text[:60]}`. Separate the "
            "numbers by commas."
        ) from None


def temperature_list(text: str) -> list[float]:
    """Parse the temperatures of a sheet; see ``parse_numbers``.

    Raises:
        FlowError: If there are none, or too many.
    """
    taus = parse_numbers(text, "temperatures")
    if taus is None or len(taus) > MAX_TEMPERATURES:
        raise FlowError(
            f"temperatures takes 1 to {MAX_TEMPERATURES} numbers, such as `0, 0.4, 0.7, 0.9`; got {len(taus or [])}. "
            "Write some."
        )
    return taus


def parse_labels(text: str, classes: int) -> list[int] | None:
    """Parse labels.

    Args:
        text: Such as "7", "3, 5" or "0-9"; "9-0" counts down.
        classes: Number of labels of the model.

    Returns:
        The labels in order, or None if there are none.

    Raises:
        FlowError: If the text is not a list of labels, or names more than 4096.
        ConditionError: If the model has no such label.
    """
    result: list[int] = []
    for word in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text).strip(" ,;\n\t")):
        if not word:
            return None
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if found is None:
            raise FlowError(
                f"labels are whole numbers, such as `7`, `3, 5` or `0-9`; got `{text[:60]}`. Separate them by commas."
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if max(first, last) >= classes:
            raise ConditionError(f"This model knows the labels 0 to {classes - 1}; got {max(first, last)}.")
        result += range(first, last + 1) if first <= last else range(first, last - 1, -1)
        if len(result) > MAX_ITEMS:
            raise FlowError(f"labels names more than {MAX_ITEMS} labels. Name fewer.")
    return result


def finite_or_none(value: float) -> float | None:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return value if math.isfinite(value) else None
