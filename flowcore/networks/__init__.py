"""What is not invertible, and may run in low precision."""

from .causal_transformer import CausalTransformer
from .conditioner import Conditioner, DenseConditioner, Edge, PlainConditioner, ScaledConv
from .contractive import ContractiveNetwork
from .imdn import IMDN, CompactUpscaler, IMDNEncoder
from .low_light import LowLightEncoder
from .lr_encoder import LREncoder
from .luma import LumaEncoder
from .prior import AnchorPrior, TablePrior, TopPrior
from .residual import ResidualConditioner
from .rrdb import DenseConvs, HierarchicalExtractor, RRDBEncoder
from .vector_field import VectorField

__all__ = [
    "IMDN",
    "AnchorPrior",
    "CausalTransformer",
    "CompactUpscaler",
    "Conditioner",
    "ContractiveNetwork",
    "DenseConditioner",
    "DenseConvs",
    "Edge",
    "HierarchicalExtractor",
    "IMDNEncoder",
    "LREncoder",
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
