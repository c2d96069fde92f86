"""SRFlow, and SRFlow-DA: super-resolution."""

from ..family import Family, register
from .folded import FoldedCompactUpscaler, FoldedEncoder, FoldedIMDNEncoder
from .imdn import CompactUpscaler, IMDNEncoder
from .model import SRFlowConfig, srflow
from .published import SRFLOW, SRFLOW_DA
from .rrdb import RRDBEncoder
from .srflow_da import SRFlowDAConfig, srflow_da

__all__ = ["SRFlowConfig", "SRFlowDAConfig", "srflow", "srflow_da"]

register(
    Family(
        "srflow",
        SRFlowConfig,
        srflow,
        sources=(SRFLOW,),
        folds={RRDBEncoder: FoldedEncoder, IMDNEncoder: FoldedIMDNEncoder, CompactUpscaler: FoldedCompactUpscaler},
    )
)
register(Family("srflow_da", SRFlowDAConfig, srflow_da, sources=(SRFLOW_DA,)))  # it has the encoder of SRFlow
