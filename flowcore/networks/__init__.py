"""What is not invertible, and may run in low precision."""

from .conditioner import Conditioner, DenseConditioner, Edge, PlainConditioner, ScaledConv
from .luma import LumaEncoder
from .prior import TablePrior, TopPrior
from .residual import ResidualConditioner
from .rrdb import RRDBEncoder

__all__ = [
    "Conditioner",
    "DenseConditioner",
    "Edge",
    "LumaEncoder",
    "PlainConditioner",
    "RRDBEncoder",
    "ResidualConditioner",
    "ScaledConv",
    "TablePrior",
    "TopPrior",
]
