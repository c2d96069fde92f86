"""Published checkpoint layouts, one ``Source`` per publisher; the only place that infers hyper-parameters from tensors.

To add one, write a module that says where every tensor of our model comes from (``source.py``), and register it here.
"""

from .ffjord import FFJORD
from .hcflow import HCFLOW
from .llflow import LLFLOW
from .normflows import NORMFLOWS
from .openai import OPENAI
from .realnvp import CHRISCHUTE
from .residual_flow import RESIDUAL_FLOW
from .rosinality import ROSINALITY
from .source import Source
from .srflow import SRFLOW
from .srflow_da import SRFLOW_DA
from .tarflow import TARFLOW
from .y0ast import CHAIYUJIN, Y0AST

# LLFlow and SRFlow-DA use SRFlow's names, too, and come before it.
SOURCES: list[Source] = [
    LLFLOW,
    SRFLOW_DA,
    SRFLOW,
    HCFLOW,
    Y0AST,
    CHAIYUJIN,
    ROSINALITY,
    OPENAI,
    NORMFLOWS,
    CHRISCHUTE,
    FFJORD,
    RESIDUAL_FLOW,
    TARFLOW,
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
