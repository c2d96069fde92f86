"""Inputs that several nodes have, and the parsing of what is typed into them."""

from __future__ import annotations

import math
import re
from typing import Any

from ..flowcore import ConditionError, FlowError
from .host.compat import gradient_slider, io, make

COLD, MILD, HOT = [36, 92, 201], [236, 232, 220], [214, 62, 38]
MOST_ITEMS = 4096  # labels in one text


def temperature(default: float, name: str = "temperature", *, optional: bool = False) -> Any:
    """Describe a temperature: a slider, colored from cold to hot."""
    return make(
        io.Float.Input,
        name,
        default=default,
        min=0.0,
        max=1.5,
        step=0.01,
        optional=optional,
        display_mode=gradient_slider(),
        gradient_stops=[
            {"offset": 0.0, "color": COLD},
            {"offset": 0.55, "color": MILD},
            {"offset": 1.0, "color": HOT},
        ],
    )


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


def working_size() -> Any:
    """Describe the number `working_size`."""
    return io.Int.Input("working_size", default=0, min=0, max=4096, step=16, optional=True)


def gamut() -> Any:
    """Describe the choice `gamut`."""
    return io.Combo.Input("gamut", options=["compress", "clip"], default="compress", optional=True)


def snap(default: bool) -> Any:
    """Describe the switch `snap`: whether the noise that a model draws with an image is removed."""
    return io.Boolean.Input("snap", default=default, optional=True)


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
