"""Settings of tasks: their ranges, and the defaults in a model's file, which callers may leave them to."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import FlowError
from ..model import FlowModel
from ..models.fields import SAMPLING, Range, short_repr
from ..prior import Temperature

BOLDEST = 1.6  # temperature at boldness 1, relative to the default, for files that do not state it
MAX_DRAWS = 2**20  # of an image; far more than anyone waits for
MAX_EXPOSURE = 4  # stops


class Setting(NamedTuple):
    """The numbers that a setting may be."""

    kind: type[int] | type[float]
    bounds: Range
    note: str = ""  # follows the message that a value is not among them


def _share(note: str = "") -> Setting:
    return Setting(float, Range(0, 1), note)


def _nonnegative(note: str = "") -> Setting:
    return Setting(float, Range(0, math.inf), note)


def _count(low: int, high: float = math.inf, note: str = "") -> Setting:
    return Setting(int, Range(low, high), note)


SETTINGS = {  # by name, in tasks and on the command line
    "seed": _count(0, 2**64 - 1),
    "samples": _count(1, MAX_DRAWS),
    "batch": _count(0, note="0 chooses by the image's size."),
    "tile": _count(0, note="0 chooses by free memory."),
    "halo": _count(0),
    "temperature": _nonnegative("0 is the calmest, 1 the model's own spread."),
    "calm_edges": _share("0 is off, 1 leaves no temperature at strong edges."),
    "factor": _nonnegative("0 leaves it to the model."),
    "longest_side": _count(0, note="0 leaves it to the model."),
    "guide_strength": _share("0 ignores the guide, 1 keeps all of it."),
    "steadiness": _share("0 draws every frame independently."),
    "chunk": _count(1),
    "sensitivity": _share("Higher finds more."),
    "exposure": Setting(float, Range(-MAX_EXPOSURE, MAX_EXPOSURE), "It is in stops."),
    "strength": _share("0 is the photograph as it is, 1 as drawn."),
    "detail": _nonnegative(),
    "coherence": _share("0 draws every place independently."),
    "saturation": _nonnegative(),
    "working_size": _count(16, 4096, "It is in pixels."),
    "latents_strength": _share(),
    "latents_levels": _count(0, note="0 means all."),
    "hint_steps": _count(0),
    "radius": _nonnegative("It is in pixels."),
    "cast": Setting(float, Range(-1, 1), "1 is as drawn, 0 that of the calmest coloring, -1 no cast at all."),
    "vivid": _nonnegative("1 is as drawn."),
    "carry": Setting(float, Range(0, 1, open=True)),
    "probes": _count(0),
    "terms": _count(1),
    "smallest": _nonnegative("It is in pixels."),
    "largest": _nonnegative("It is in pixels; 0 is no limit."),
    "number": _count(0, note="0 is all of them."),
    "frames": _count(1, MAX_DRAWS),
}


def check_range(name: str, value: object, setting: Setting | None = None) -> None:
    """Raise FlowError unless a value is a number in the range of its setting, by default ``SETTINGS[name]``."""
    kind, bounds, note = setting or SETTINGS[name]
    is_number = is_whole(value) if kind is int else is_real(value)
    number: Any = value
    is_finite = is_number and -math.inf < number < math.inf
    if is_finite and bounds.low <= number <= bounds.high and not (bounds.open and number == bounds.high):
        return
    whole = "a whole number" if kind is int else "a finite number"
    expected = f"be {whole} >= {bounds.low:g}"
    if bounds.high < math.inf:
        place = f"in [{bounds.low}, {bounds.high}{')' if bounds.open else ']'}"
        expected = f"be a whole number {place}" if kind is int else f"lie {place}"
    got = f"{value}" if is_real(value) else f"{short_repr(value)}, a {type(value).__name__}"
    advice = note if is_number else f"Pass {whole.replace('finite ', '')}."
    raise FlowError(f"{name} must {expected}; got {got}. {advice}".rstrip())


def is_real(value: object) -> bool:
    """Tell whether a value is a number: Python's, NumPy's, or a tensor of no dimensions; True and False are none."""
    if isinstance(value, Tensor):
        return value.ndim == 0
    return not isinstance(value, bool) and isinstance(value, Real)


def is_whole(value: object) -> bool:
    """Tell whether a value is an integer of Python or NumPy."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def with_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings, arguments of a task by name, that are None by the model's defaults."""
    return {**settings, **model_defaults(flow, settings)}


def model_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's defaults of settings that are None.

    If ``coherence`` is among the settings, the result also holds the model's ``coherence_scales``; likewise with
    ``guide_strength`` its ``guide_match``, if there is a guide. The strength of the model's own guide follows the
    temperature, see ``guide_share``.
    """
    config = {name: getattr(flow.config, name) for name in SAMPLING if hasattr(flow.config, name)}
    if "temperatures" in config:  # of a colorizer
        config["temperature"], config["detail"] = config.pop("temperatures")
    if settings.get("latents") is not None or settings.get("reference") is not None:
        config["saturation"] = 1.0  # their colors are right already
    if settings.get("boldness") is not None and "temperature" in config:
        config["temperature"] = _temperature_at(config, settings["boldness"])
    has_guide = flow.guide is not None or settings.get("guide") is not None
    config["guide_strength"] = config.get("guide_strength", 0.5) if has_guide else 0.0  # none is used
    if settings.get("guide_strength", 0) is None and settings.get("guide") is None and has_guide:
        temperature = settings.get("temperature")
        temperature = config["temperature"] if temperature is None else temperature
        config["guide_strength"] = guide_share(flow.config, temperature)
    missing = [name for name, value in settings.items() if value is None and name in config]
    defaults: dict[str, Any] = {name: float(config[name]) for name in missing}
    if "guide_strength" in settings and has_guide and "guide_match" in config:
        defaults["guide_match"] = config["guide_match"]
    if "coherence" in settings and "coherence_scales" in config:
        defaults["coherence_scales"] = list(config["coherence_scales"])
    return defaults


def guide_share(config: Any, temperature: Temperature) -> float:
    """Compute the share of a model's own guide that suits the highest of the temperatures of levels and places.

    0 up to the first of ``guide_temperatures`` in the model's configuration, its ``guide_strength`` from the second on,
    and linear between them. Without a guide it is 0.
    """
    strength: float = config.guide_strength if getattr(config, "guide_layers", 0) else 0.0
    low, high = getattr(config, "guide_temperatures", (0.0, 0.0))
    if high <= low:
        return strength
    levels = [temperature] if isinstance(temperature, float | int | Tensor) else temperature
    numbers = (float(tau.max()) if isinstance(tau, Tensor) else tau for tau in levels if torch.as_tensor(tau).numel())
    rise = (max(numbers, default=0.0) - low) / (high - low)
    return round(strength * min(1.0, max(0.0, rise)), 4)  # maps are in float32


def _temperature_at(config: Mapping[str, Any], boldness: float) -> float:
    """Compute a temperature: 0 at boldness 0, the model's default at 0.5, and its boldest at 1; linear between them."""
    usual = config["temperature"]
    boldest = config.get("boldest_temperature") or BOLDEST * usual
    return usual * min(1.0, 2 * boldness) + (boldest - usual) * max(0.0, 2 * boldness - 1)
