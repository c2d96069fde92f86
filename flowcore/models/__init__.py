"""Recipes: one model a page, a frozen configuration and a builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError, FlowError
from ..flow import Flow
from .class_conditional import ClassConditionalConfig, class_conditional
from .colorizer import ColorizerConfig, colorizer
from .fields import shown
from .glow import GlowConfig, glow
from .realnvp import RealNVPConfig, realnvp
from .srflow import SRFlowConfig, srflow

ARCHITECTURES: dict[str, tuple[type[Any], Callable[[Any], Flow]]] = {
    "srflow": (SRFlowConfig, srflow),
    "glow": (GlowConfig, glow),
    "realnvp": (RealNVPConfig, realnvp),
    "class_conditional": (ClassConditionalConfig, class_conditional),
    "colorizer": (ColorizerConfig, colorizer),
}


def configure(architecture: str, fields: Mapping[str, Any]) -> Any:
    """Make a model's configuration from plain values.

    Args:
        architecture: A key of ``ARCHITECTURES``.
        fields: Field name to value, as in JSON or TOML; fields left out take their defaults.

    Returns:
        The frozen configuration.

    Raises:
        CheckpointError: If the architecture or a field is unknown.
        FlowError: If a value is not allowed.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"Unknown architecture {shown(architecture)}; this flowcore knows {', '.join(ARCHITECTURES)}. Update "
            "flowcore."
        )
    config_type = ARCHITECTURES[architecture][0]
    known = {field.name for field in dataclasses.fields(config_type)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise CheckpointError(
            f"Unknown {architecture} field {', '.join(map(shown, unknown[:8]))}: written by a newer flowcore, or "
            f"misspelt. Known: {', '.join(sorted(known))}."
        )
    try:
        return config_type(**fields)
    except TypeError as error:
        raise FlowError(f"A value of the {architecture} configuration has the wrong type: {error}.") from error


def build(architecture: str, config: Any) -> Flow:
    """Build a model with random weights.

    Args:
        architecture: A key of ``ARCHITECTURES``.
        config: From ``configure``.

    Returns:
        The flow.
    """
    return ARCHITECTURES[architecture][1](config)
