"""Neural networks inside transforms, and encoders of conditions: they need no inverse, and may run in low precision."""

from .causal_transformer import CausalTransformer
from .conditioner import Conditioner, Edge, FixedPrior, MLPConditioner, PlainConditioner, TablePrior, TopPrior, ZeroConv
from .contractive import ContractiveNetwork
from .imdn import IMDN, CompactUpscaler, IMDNEncoder
from .low_light import LowLightEncoder
from .luma import LumaEncoder
from .residual import ResidualConditioner
from .rrdb import DenseConvs, HierarchicalExtractor, LREncoder, RRDBEncoder
from .vector_field import VectorField

__all__ = [
    "IMDN",
    "CausalTransformer",
    "CompactUpscaler",
    "Conditioner",
    "ContractiveNetwork",
    "DenseConvs",
    "Edge",
    "FixedPrior",
    "HierarchicalExtractor",
    "IMDNEncoder",
    "LREncoder",
    "LowLightEncoder",
    "LumaEncoder",
    "MLPConditioner",
    "PlainConditioner",
    "RRDBEncoder",
    "ResidualConditioner",
    "TablePrior",
    "TopPrior",
    "VectorField",
    "ZeroConv",
]
