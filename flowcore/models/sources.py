"""Published checkpoint layouts, a ``Source`` per program: the only place that infers hyper-parameters from tensors."""

from .ffjord.published import FFJORD
from .glow.normflows import NORMFLOWS
from .glow.published import CHAIYUJIN, OPENAI, ROSINALITY, Y0AST
from .hcflow.published import HCFLOW
from .realnvp.published import CHRISCHUTE
from .residual_flow.published import RESIDUAL_FLOW
from .source import Source
from .srflow.published import LLFLOW, SRFLOW, SRFLOW_DA
from .tarflow.published import TARFLOW

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
