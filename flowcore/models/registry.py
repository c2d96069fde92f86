"""The registered architectures: the class of their configuration, and the builder of a flow from it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import CheckpointError, FlowError
from ..flows.model import Config, FlowModel
from .fields import short_repr, suggestion

__all__ = ["ARCHITECTURES", "Architecture", "build", "configure", "register"]

RETIRED = ("memory", "memory_share", "memory_neighbors")  # fields of a colorizer, whose encoder had a memory of its own

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Architecture:
    """A registered architecture: the class of its configuration, and the builder of a flow from it."""

    config: type[Config]
    build: Callable[[Any], FlowModel]


ARCHITECTURES: dict[str, Architecture] = {}


def register(name: str, config: type[C], build: Callable[[C], FlowModel[C]], *, replace: bool = False) -> None:
    """Register an architecture, so that its files can be loaded and recipes can train it.

    Args:
        name: Its name in files and recipes.
        config: A frozen, keyword-only dataclass of JSON types, which checks its fields.
        build: From a configuration to a flow with random weights, whose ``architecture`` is ``name``.
        replace: Whether to overwrite an architecture of that name, as when a notebook's cell runs again.

    Raises:
        ValueError: If the name is taken.
        TypeError: If the configuration is no dataclass, or the builder cannot be called.
    """
    if not (dataclasses.is_dataclass(config) and callable(config) and callable(build)):
        raise TypeError(f"register needs a dataclass and a function that builds a flow from it; got {config}, {build}.")
    if name in ARCHITECTURES and not replace:
        raise ValueError(f"There is already an architecture {name!r}. Choose another name, or replace=True.")
    ARCHITECTURES[name] = Architecture(config, build)


def configure(architecture: str, fields: Mapping[str, Any]) -> Config:
    """Make a configuration from plain values; CheckpointError if a name is unknown, FlowError if a value is wrong."""
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"Unknown architecture {short_repr(architecture)}; this flowcore knows {', '.join(ARCHITECTURES)}."
            f"{suggestion(architecture, ARCHITECTURES)} Update flowcore, or register it (docs/plug-ins.md)."
        )
    config = ARCHITECTURES[architecture].config
    if architecture == "colorizer" and not fields.get("memory"):  # files of color-photos state that theirs has none
        fields = {name: value for name, value in fields.items() if name not in RETIRED}
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
