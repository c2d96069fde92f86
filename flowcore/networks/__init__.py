"""What is not invertible, and may run in low precision."""

from .conditioner import Conditioner, DenseConditioner, Edge, PlainConditioner, ScaledConv
from .low_light import LowLightEncoder
from .luma import LumaEncoder
from .prior import AnchorPrior, TablePrior, TopPrior
from .residual import ResidualConditioner
from .rrdb import DenseConvs, HierarchicalExtractor, RRDBEncoder
from .vector_field import VectorField

__all__ = [
    "AnchorPrior",
    "Conditioner",
    "DenseConditioner",
    "DenseConvs",
    "Edge",
    "HierarchicalExtractor",
    "LowLightEncoder",
    "LumaEncoder",
    "PlainConditioner",
    "RRDBEncoder",
    "ResidualConditioner",
    "ScaledConv",
    "TablePrior",
    "TopPrior",
    "VectorField",
]
