"""Neural networks inside transforms: they need no inverse, and may run in low precision."""

from .conditioner import Conditioner, Edge, FixedPrior, MLPConditioner, PlainConditioner, TablePrior, TopPrior, ZeroConv
from .residual import ResidualConditioner

__all__ = [
    "Conditioner",
    "Edge",
    "FixedPrior",
    "MLPConditioner",
    "PlainConditioner",
    "ResidualConditioner",
    "TablePrior",
    "TopPrior",
    "ZeroConv",
]
