"""Published layouts, one module per program. This is the only place that guesses hyper-parameters from tensors.

``source.py`` says what a layout is; to add one, write down where every tensor of ours comes from.
"""

from .normflows import NORMFLOWS
from .openai import OPENAI
from .realnvp import CHRISCHUTE
from .rosinality import ROSINALITY
from .source import Source
from .srflow import SRFLOW
from .y0ast import CHAIYUJIN, Y0AST

SOURCES = (SRFLOW, Y0AST, CHAIYUJIN, ROSINALITY, OPENAI, NORMFLOWS, CHRISCHUTE)

__all__ = ["CHAIYUJIN", "CHRISCHUTE", "NORMFLOWS", "OPENAI", "ROSINALITY", "SOURCES", "SRFLOW", "Y0AST", "Source"]
