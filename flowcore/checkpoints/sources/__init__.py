"""Published checkpoint layouts, a ``Source`` per program: the only place that infers hyper-parameters from tensors."""

from .ffjord import FFJORD
from .glow import CHAIYUJIN, OPENAI, ROSINALITY, Y0AST
from .hcflow import HCFLOW
from .normflows import NORMFLOWS
from .realnvp import CHRISCHUTE
from .residual_flow import RESIDUAL_FLOW
from .source import Source
from .srflow import LLFLOW, SRFLOW, SRFLOW_DA
from .tarflow import TARFLOW

# LLFlow and SRFlow-DA before SRFlow, whose names they also have.
SOURCES: list[Source] = [
    *(LLFLOW, SRFLOW_DA, SRFLOW, HCFLOW, Y0AST, CHAIYUJIN, ROSINALITY, OPENAI),
    *(NORMFLOWS, CHRISCHUTE, FFJORD, RESIDUAL_FLOW, TARFLOW),
]


def register_source(source: Source) -> None:
    """Add a published layout, after those that flowcore knows; ``load`` and the command line then convert its files.

    Args:
        source: Its description.

    Raises:
        ValueError: If the name is taken.
    """
    if any(known.name == source.name for known in SOURCES):
        raise ValueError(f"There is already a source {source.name!r}.")
    SOURCES.append(source)
