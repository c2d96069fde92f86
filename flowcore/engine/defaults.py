"""What a model's file recommends for settings that the caller leaves open."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..flows.stated import Recommendations
from .looks import looks

IN_FACES = 0.4  # temperature, at most, within faces of 24 to 120 pixels: docs/decisions/0015
GUIDED_IN_FACES = 0.3  # share of the model's own guide, at most, within the same faces
BOLDEST = 1.6  # temperature at boldness 1, relative to the default, for files that do not state it


def with_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings, arguments of a task by name, that are None by the model's defaults."""
    return {**settings, **model_defaults(flow, settings)}


def model_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's defaults of settings that are None; see ``stated_defaults``."""
    return stated_defaults(flow.recommended, settings, has_guide=flow.guide is not None)


def stated_defaults(own: Recommendations, settings: Mapping[str, Any], *, has_guide: bool) -> dict[str, Any]:
    """Return the defaults of settings that are None, from what the file of a model states.

    If ``coherence`` is among the settings, the result also holds the model's ``coherence_scales``; likewise with
    ``guide_strength`` its ``guide_match`` and ``guide_sharpness``, if there is a guide. The strength of the model's own
    guide follows the temperature, see ``guide_share``. A ``look`` changes the defaults, see ``looks.looks``.
    """
    look = looks.get(settings.get("look", "natural"), looks["natural"])  # a node may ask for all of them
    usual, detail = own.temperatures or (own.temperature, None)  # a colorizer's; that of others
    if settings.get("boldness") is not None and usual is not None:
        usual = _temperature_at(usual, own.boldest_temperature, settings["boldness"])
    elif usual is not None and look.temperature != 1:
        usual = round(look.temperature * usual, 4)
    stated: dict[str, Any] = {**vars(own), "temperature": usual, "temperatures": None, "detail": detail}
    stated["guide_strength"] = 0.0  # the default, no guide
    stated["sharpness"] = look.sharpness
    if settings.get("latents") is not None or settings.get("reference") is not None:
        stated["saturation"] = 1.0  # their colors are right already
    if own.calm_edges is not None and usual is not None:  # an upscaler
        is_given = settings.get("temperature") is not None or settings.get("temperatures")  # nodes have levels
        stated["calm_faces"] = 0.0 if is_given else calm_share(usual)
    more = ["coherence_scales"] if "coherence" in settings and own.coherence_scales is not None else []
    stated["coherence_scales"] = list(own.coherence_scales or ())  # a list, as in JSON
    if has_guide or settings.get("guide") is not None:
        stated["guide_strength"] = 0.5 if own.guide_strength is None else own.guide_strength
        if settings.get("guide_strength", 0) is None and settings.get("guide") is None:
            temperature = settings.get("temperature")
            share = guide_share(own, usual or 0.0 if temperature is None else temperature)
            stated["guide_strength"] = max(share, look.guide_strength)
        more += ["guide_match", "guide_sharpness"] if "guide_strength" in settings else []
    stated = {name: value for name, value in stated.items() if value is not None}
    missing = [name for name, value in settings.items() if value is None and name in stated]
    return {name: float(stated[name]) for name in missing} | {name: stated[name] for name in more if name in stated}


def boldness_of(own: Recommendations, temperature: float) -> float:
    """Return the boldness that gives a temperature; 1 for higher ones than the boldest."""
    usual = own.temperature or 1.0
    if temperature <= usual:
        return round(temperature / usual / 2, 4)
    range_above = (own.boldest_temperature or BOLDEST * usual) - usual
    return round(min(1.0, 0.5 + (temperature - usual) / range_above / 2), 4) if range_above > 0 else 1.0


def calm_share(temperature: float) -> float:
    """Return the share by which ``IN_FACES`` is lower than a temperature; 0 where it is not."""
    return round(1 - IN_FACES / temperature, 4) if temperature > IN_FACES else 0.0


def guide_share(own: Recommendations, temperature: Temperature) -> float:
    """Compute the share of a model's own guide that suits the highest of the temperatures of levels and places.

    0 up to the first of ``guide_temperatures``, ``guide_strength`` from the second on, and linear between them.
    """
    strength, (low, high) = own.guide_strength or 0.0, own.guide_temperatures
    if high <= low:
        return strength
    rise = (highest(temperature) - low) / (high - low)
    return round(strength * min(1.0, max(0.0, rise)), 4)


def highest(temperature: Temperature) -> float:
    """Return the highest of the temperatures of levels and places."""
    levels = [temperature] if isinstance(temperature, float | int | Tensor) else temperature
    numbers = (float(tau.max()) if isinstance(tau, Tensor) else tau for tau in levels if torch.as_tensor(tau).numel())
    return round(max(numbers, default=0.0), 6)  # maps are in float32


def _temperature_at(usual: float, boldest: float, boldness: float) -> float:
    """Compute a temperature: 0 at boldness 0, the model's default at 0.5, and its boldest at 1; linear between them."""
    boldest = boldest or BOLDEST * usual
    return usual * min(1.0, 2 * boldness) + (boldest - usual) * max(0.0, 2 * boldness - 1)
