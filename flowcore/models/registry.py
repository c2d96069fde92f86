"""The registered architectures: configurations from plain values, and flows from configurations."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, FlowError
from ..flows.model import Config, FlowModel
from .fields import short_repr, suggestion

__all__ = ["ARCHITECTURES", "Architecture", "build", "configure"]


@dataclass(frozen=True)
class Architecture:
    """What makes configurations and flows of an architecture; see ``family.Family``."""

    name: str
    config: type[Config]
    build: Callable[[Any], FlowModel]
    upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=dict, kw_only=True)


ARCHITECTURES: dict[str, Architecture] = {}


def configure(architecture: str, fields: Mapping[str, Any]) -> Config:
    """Make a configuration from plain values; CheckpointError if a name is unknown, FlowError if a value is wrong."""
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"Unknown architecture {short_repr(architecture)}; this flowcore knows {', '.join(ARCHITECTURES)}."
            f"{suggestion(architecture, ARCHITECTURES)} Update flowcore, or register it (docs/plug-ins.md)."
        )
    config = ARCHITECTURES[architecture].config
    fields = ARCHITECTURES[architecture].upgrade(fields)
    known = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise CheckpointError(
            f"Unknown {architecture} field {', '.join(map(short_repr, unknown[:8]))}: written by a newer flowcore, or "
            f"misspelled.{suggestion(unknown[0], known)} Known: {', '.join(sorted(known))}."
        )
    try:
        return config(**fields)
    except TypeError as error:
        raise FlowError(f"A value of the {architecture} configuration has the wrong type: {error}.") from error


def build(architecture: str, config: Config) -> FlowModel:
    """Build a registered model with random weights."""
    return ARCHITECTURES[architecture].build(config)
