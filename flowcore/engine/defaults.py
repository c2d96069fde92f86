"""What a model's file recommends for settings that the caller leaves open."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..models.fields import SAMPLING_FIELDS

IN_FACES = 0.4  # temperature, at most, within faces of 36 to 120 pixels: docs/decisions/0015
BOLDEST = 1.6  # temperature at boldness 1, relative to the default, for files that do not state it


def with_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings, arguments of a task by name, that are None by the model's defaults."""
    return {**settings, **model_defaults(flow, settings)}


def model_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's defaults of settings that are None.

    If ``coherence`` is among the settings, the result also holds the model's ``coherence_scales``; likewise with
    ``guide_strength`` its ``guide_match`` and ``guide_sharpness``, if there is a guide. The strength of the model's own
    guide follows the temperature, see ``guide_share``.
    """
    config = {name: getattr(flow.config, name) for name in SAMPLING_FIELDS if hasattr(flow.config, name)}
    if "temperatures" in config:  # of a colorizer
        config["temperature"], config["detail"] = config.pop("temperatures")
    if settings.get("latents") is not None or settings.get("reference") is not None:
        config["saturation"] = 1.0  # their colors are right already
    if settings.get("boldness") is not None and "temperature" in config:
        config["temperature"] = _temperature_at(config, settings["boldness"])
    if "calm_edges" in config:  # of an upscaler
        is_given = settings.get("temperature") is not None or settings.get("temperatures")  # per level, of a node
        config["calm_faces"] = 0.0 if is_given else calm_share(config["temperature"])
    has_guide = flow.guide is not None or settings.get("guide") is not None
    config["guide_strength"] = config.get("guide_strength", 0.5) if has_guide else 0.0  # none is used
    if settings.get("guide_strength", 0) is None and settings.get("guide") is None and has_guide:
        temperature = settings.get("temperature")
        temperature = config["temperature"] if temperature is None else temperature
        config["guide_strength"] = guide_share(flow.config, temperature)
    missing = [name for name, value in settings.items() if value is None and name in config]
    defaults: dict[str, Any] = {name: float(config[name]) for name in missing}
    if "guide_strength" in settings and has_guide:
        defaults |= {name: config[name] for name in ("guide_match", "guide_sharpness") if name in config}
    if "coherence" in settings and "coherence_scales" in config:
        defaults["coherence_scales"] = list(config["coherence_scales"])
    return defaults


def calm_share(temperature: float) -> float:
    """Return the share by which ``IN_FACES`` is lower than a temperature; 0 where it is not."""
    return round(1 - IN_FACES / temperature, 4) if temperature > IN_FACES else 0.0


def guide_share(config: Any, temperature: Temperature) -> float:
    """Compute the share of a model's own guide that suits the highest of the temperatures of levels and places.

    0 up to the first of ``guide_temperatures`` in the model's configuration, its ``guide_strength`` from the second on,
    and linear between them. Without a guide it is 0.
    """
    strength: float = config.guide_strength if getattr(config, "guide_layers", 0) else 0.0
    low, high = getattr(config, "guide_temperatures", (0.0, 0.0))
    if high <= low:
        return strength
    rise = (highest(temperature) - low) / (high - low)
    return round(strength * min(1.0, max(0.0, rise)), 4)


def highest(temperature: Temperature) -> float:
    """Return the highest of the temperatures of levels and places."""
    levels = [temperature] if isinstance(temperature, float | int | Tensor) else temperature
    numbers = (float(tau.max()) if isinstance(tau, Tensor) else tau for tau in levels if torch.as_tensor(tau).numel())
    return round(max(numbers, default=0.0), 6)  # maps are in float32


def _temperature_at(config: Mapping[str, Any], boldness: float) -> float:
    """Compute a temperature: 0 at boldness 0, the model's default at 0.5, and its boldest at 1; linear between them."""
    usual = config["temperature"]
    boldest = config.get("boldest_temperature") or BOLDEST * usual
    return usual * min(1.0, 2 * boldness) + (boldest - usual) * max(0.0, 2 * boldness - 1)
