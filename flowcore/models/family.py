"""A family of flows: all that the package knows of one, which its folder registers as an object per architecture."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..flows.networks.strips import StripBudget
from .registry import ARCHITECTURES, Architecture
from .source import Source

Fold = Callable[[Any, torch.dtype, StripBudget], nn.Module]  # takes a network, its precision, and the size of strips


@dataclass(frozen=True)
class Family(Architecture):
    """An architecture: how its flows are described, built, converted and made fast.

    Attributes:
        name: In files and recipes.
        config: A frozen, keyword-only dataclass of JSON types, which checks its fields.
        build: From a configuration to a flow with random weights, whose ``architecture`` is ``name``.
        sources: Published layouts that become this architecture.
        folds: By the class of one of its networks, what makes a faster twin of it for ``CompiledFlow``; a twin that
            reports its progress is a ``flows.networks.strips.Folded``. Other networks run as they are.
        upgrade: From the fields of files that earlier versions wrote to those of ``config``.
    """

    sources: tuple[Source, ...] = ()
    folds: Mapping[type[nn.Module], Fold] = field(default_factory=dict[type[nn.Module], Fold])

    def __post_init__(self) -> None:
        if not (dataclasses.is_dataclass(self.config) and callable(self.config) and callable(self.build)):
            raise TypeError(
                f"register needs a dataclass and a function that builds a flow from it; got {self.config}, "
                f"{self.build}."
            )


_plug_in_sources: list[Source] = []  # added by ``register_source``


def families() -> list[Family]:
    """List the registered families, the latest first: one that builds on another is registered after it."""
    return [family for family in reversed(ARCHITECTURES.values()) if isinstance(family, Family)]


def sources() -> list[Source]:
    """List the published layouts in the order in which they are tried: those of later families first."""
    return [*(source for family in families() for source in family.sources), *_plug_in_sources]


def folded(network: nn.Module, dtype: torch.dtype, budget: StripBudget) -> nn.Module:
    """Make the faster twin of a network, if its family has one; see ``Family.folds``."""
    fold = next((family.folds[type(network)] for family in families() if type(network) in family.folds), None)
    return network if fold is None else fold(network, dtype, budget)


def register(name: str | Family, config: Any = None, build: Any = None, *, replace: bool = False) -> None:
    """Register an architecture, so that its files can be loaded and recipes can train it.

    Args:
        name: A ``Family``, or the name of one that has only a configuration and a builder.
        config: Its configuration, see ``Family``.
        build: Its builder.
        replace: Whether to overwrite an architecture of that name, as when a notebook's cell runs again.

    Raises:
        ValueError: If the name, or that of one of its sources, is taken.
        TypeError: If the configuration is no dataclass, or the builder cannot be called.
    """
    family = name if isinstance(name, Family) else Family(name, config, build)
    if family.name in ARCHITECTURES and not replace:
        raise ValueError(f"There is already an architecture {family.name!r}. Choose another name, or replace=True.")
    _check_names(family.sources, without=family.name)
    ARCHITECTURES[family.name] = family


def register_source(source: Source) -> None:
    """Add a published layout, after those that flowcore knows; ``load`` and the command line then convert its files.

    Args:
        source: Its description.

    Raises:
        ValueError: If the name is taken.
    """
    _check_names([source])
    _plug_in_sources.append(source)


def _check_names(new: Sequence[Source], without: str = "") -> None:
    known = [source for family in families() if family.name != without for source in family.sources]
    taken = {source.name for source in (*known, *_plug_in_sources)}
    for source in new:
        if source.name in taken:
            raise ValueError(f"There is already a source {source.name!r}.")
