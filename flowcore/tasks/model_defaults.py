"""The model's own: what a model's file states for what a caller leaves to it.

Resolved once and first: what identifies a result (a key, an ID, its provenance) holds the numbers that the task uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..flow import Flow
from ..models.fields import SAMPLING


def resolve(flow: Flow, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a model's file states where settings, arguments of a task by name, are None; see ``left_to_model``.

    What no file states stays None.
    """
    return {**settings, **left_to_model(flow, settings)}


def left_to_model(flow: Flow, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Find what a model's file states for the settings that are None: temperature, calm edges, saturation, ...

    The saturation is that of colors that the model draws, 1 where settings have ``latents`` or a ``reference``. With a
    coherence come its scales, which only the file states. Without a guide, the model's or a given one, its strength is
    0; a file that states none means 0.5.
    """
    own = {name: getattr(flow.config, name) for name in SAMPLING if hasattr(flow.config, name)}
    if "temperatures" in own:
        own["temperature"], own["detail"] = own.pop("temperatures")
    if settings.get("latents") is not None or settings.get("reference") is not None:
        own["saturation"] = 1.0
    guided = flow.guide is not None or settings.get("guide") is not None
    own["guide_strength"] = own.get("guide_strength", 0.5) if guided else 0.0
    left = {name: float(own[name]) for name, value in settings.items() if value is None and name in own}
    return left | {name: list(own[name]) for name in ("coherence_scales",) if "coherence" in settings and name in own}
