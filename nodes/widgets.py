"""Inputs that several nodes have, and the parsing of what is typed into them."""

from __future__ import annotations

import math
import re
from typing import Any

from ..flowcore import ConditionError, FlowError
from .host.compat import gradient_slider, io, make

COLD, MILD, HOT = [36, 92, 201], [236, 232, 220], [214, 62, 38]
OWN, OWN_COLOR = -0.1, [128, 128, 128]  # the left end of sliders that can follow the model; anything below 0 does
HIGHEST = 1.5  # temperature
MOST_TEMPERATURES = 64  # on one sheet; stated in the tooltips, too
MOST_ITEMS = 4096  # labels in one text


def temperature(default: float, name: str = "temperature", *, own: bool = False, optional: bool = False) -> Any:
    """Describe a temperature: a slider, colored from cold to hot.

    With `own` its left end, `OWN`, is no temperature: the node takes what the model's file states, see `own_or`. It
    is a value of the slider because nothing else tells a slider that nobody moved from one that a workflow has saved.
    Saved workflows and prompts state a temperature, of 0 or more, and keep it; only new nodes start at `OWN`.

    Args:
        default: Its default.
        name: Its name.
        own: Whether it can follow the model.
        optional: Whether a script may leave it out.
    """
    zero = OWN / (OWN - HIGHEST) if own else 0.0  # where on the slider 0 is
    stops = [(0.0, OWN_COLOR), (zero, OWN_COLOR)] if own else []
    stops += [(zero, COLD), (zero + 0.55 * (1 - zero), MILD), (1.0, HOT)]
    return make(
        io.Float.Input,
        name,
        default=default,
        min=OWN if own else 0.0,
        max=HIGHEST,
        step=0.01,
        optional=optional,
        display_mode=gradient_slider(),
        gradient_stops=[{"offset": round(offset, 4), "color": color} for offset, color in stops],
    )


def calm_edges() -> Any:
    """Describe the number `calm_edges`, which came after temperature.

    Workflows from before open with its default, `OWN`. They state a temperature, and `OWN` then means 0 (see
    `flowcore.tasks.upscale.sampling_settings`): they keep their pictures. With the model's own temperature it is the
    model's own as well.
    """
    return slider("calm_edges", OWN, OWN, 1.0, optional=True)


def own_or(value: float) -> float | None:
    """Read a value that can follow the model: None for that, which is what tasks call it."""
    return None if OWN <= value < 0 else value


def temperatures() -> Any:
    """Describe the text `temperatures`: one per level."""
    return io.String.Input("temperatures", default="", optional=True)


def seed(default: int = 0, *, control: bool = True, optional: bool = False) -> Any:
    """Describe the number `seed`.

    Args:
        default: Its default.
        control: Whether the canvas may change it after every run. False must be stated, too: the frontend adds the
            control to whatever is called seed.
        optional: Whether a script may leave it out.
    """
    return io.Int.Input(
        "seed", default=default, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=control, optional=optional
    )


def pick() -> Any:
    """Describe the number `pick` of every `PickingNode`."""
    return io.Int.Input("pick", default=0, min=0, max=MOST_ITEMS, optional=True)


def slider(name: str, default: float, least: float, most: float, step: float = 0.01, *, optional: bool = False) -> Any:
    """Describe a number with a plain slider."""
    return io.Float.Input(
        name,
        default=default,
        min=least,
        max=most,
        step=step,
        optional=optional,
        display_mode=io.NumberDisplay.slider,
    )


def precision() -> Any:
    """Describe the choice `precision`."""
    options = ["float32", "bfloat16", "float16", "auto", "tf32"]
    return io.Combo.Input("precision", options=options, default="float32", optional=True)


def saturation() -> Any:
    """Describe the number `saturation`."""
    return slider("saturation", 1.0, 0.0, 3.0, optional=True)


def painting() -> Any:
    """Describe the text `painting`: brush strokes, which `web/js/brush.js` lets a person paint."""
    return io.String.Input("painting", default="", optional=True, socketless=True)


def working_size() -> Any:
    """Describe the number `working_size`."""
    return io.Int.Input("working_size", default=0, min=0, max=4096, step=16, optional=True)


def gamut() -> Any:
    """Describe the choice `gamut`."""
    return io.Combo.Input("gamut", options=["compress", "clip"], default="compress", optional=True)


def snap(default: bool) -> Any:
    """Describe the switch `snap`: whether the noise that a model draws with an image is removed."""
    return io.Boolean.Input("snap", default=default, optional=True)


def mode(*, optional: bool = False) -> Any:
    """Describe the choice `mode`: the path between two latents."""
    return io.Combo.Input("mode", options=["slerp", "linear", "norm"], default="slerp", optional=optional)


def per(*, optional: bool = False) -> Any:
    """Describe the choice `per`: what is normalized together."""
    return io.Combo.Input("per", options=["local", "channel", "level"], default="level", optional=optional)


def window() -> Any:
    """Describe the number `window`, of `per` = local."""
    return io.Int.Input("window", default=9, min=5, max=255, step=2, optional=True)


def fit() -> Any:
    """Describe the choice `fit`."""
    return io.Combo.Input("fit", options=["resize", "crop"], default="resize", optional=True)


def label() -> Any:
    """Describe the number `label`."""
    return io.Int.Input("label", default=-1, min=-1, max=9999, optional=True)


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
    if taus is None or len(taus) > MOST_TEMPERATURES:
        raise FlowError(
            f"temperatures takes 1 to {MOST_TEMPERATURES} numbers, such as `0, 0.4, 0.7, 0.9`; got {len(taus or [])}. "
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
        if len(result) > MOST_ITEMS:
            raise FlowError(f"labels names more than {MOST_ITEMS} labels. Name fewer.")
    return result


def finite_or_none(value: float) -> float | None:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return value if math.isfinite(value) else None
