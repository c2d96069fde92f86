"""Published checkpoint layouts, one ``Source`` per publisher; the only place that infers hyper-parameters from tensors.

To add one, write a module that says where every tensor of our model comes from (``source.py``), and register it here.
"""

from .hcflow import HCFLOW
from .llflow import LLFLOW
from .normflows import NORMFLOWS
from .openai import OPENAI
from .realnvp import CHRISCHUTE
from .rosinality import ROSINALITY
from .source import Source
from .srflow import SRFLOW
from .srflow_da import SRFLOW_DA
from .y0ast import CHAIYUJIN, Y0AST

# SRFlow's names are also those of its descendants, which come before it.
SOURCES: tuple[Source, ...] = (
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
)
