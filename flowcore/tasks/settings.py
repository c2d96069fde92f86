"""Settings of tasks: their ranges, and the defaults in a model's file, which callers may leave them to."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import FlowError
from ..model import FlowModel
from ..models.fields import SAMPLING

BOLDEST_REDUCTION = 0.6  # of the guide strength, at boldness 1


def check_range(name: str, value: float, low: float = 0, high: float = 1, note: str = "") -> None:
    """Raise FlowError unless a number is finite and lies in [low, high]."""
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"lie in [{low}, {high}]" if high < math.inf else f"be a finite number >= {low}"
        raise FlowError(f"{name} must {bounds}; got {value}. {note}".rstrip())


def with_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings, arguments of a task by name, that are None by the model's defaults."""
    return {**settings, **model_defaults(flow, settings)}


def model_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's defaults of settings that are None.

    If ``coherence`` is among the settings, the result also holds the model's ``coherence_scales``; likewise with
    ``guide_strength`` its ``guide_match``, if there is a guide.
    """
    config = {name: getattr(flow.config, name) for name in SAMPLING if hasattr(flow.config, name)}
    if "temperatures" in config:  # of a colorizer
        config["temperature"], config["detail"] = config.pop("temperatures")
    if settings.get("latents") is not None or settings.get("reference") is not None:
        config["saturation"] = 1.0  # their colors are right already
    has_guide = flow.guide is not None or settings.get("guide") is not None
    config["guide_strength"] = config.get("guide_strength", 0.5) if has_guide else 0.0  # none is used
    if settings.get("boldness") is not None and "temperature" in config:
        config |= _at_boldness(config, settings["boldness"])
    missing = [name for name, value in settings.items() if value is None and name in config]
    defaults: dict[str, Any] = {name: float(config[name]) for name in missing}
    if "guide_strength" in settings and has_guide and "guide_match" in config:
        defaults["guide_match"] = config["guide_match"]
    if "coherence" in settings and "coherence_scales" in config:
        defaults["coherence_scales"] = list(config["coherence_scales"])
    return defaults


def _at_boldness(config: Mapping[str, Any], boldness: float) -> dict[str, Any]:
    """Compute temperature and guide strength: 0 invents nothing, 0.5 is the model's default, 1 is the boldest.

    From 0 to 0.5 the temperature rises to the default, above which specks appear; from there the guide strength falls.
    """
    return {
        "temperature": config["temperature"] * min(1.0, 2 * boldness),
        "guide_strength": config["guide_strength"] * (1 - BOLDEST_REDUCTION * max(0.0, 2 * boldness - 1)),
    }
