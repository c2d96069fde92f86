"""SRFlow, and SRFlow-DA: super-resolution."""

from ..registry import register
from .model import SRFlowConfig, srflow
from .srflow_da import SRFlowDAConfig, srflow_da

__all__ = ["SRFlowConfig", "SRFlowDAConfig", "srflow", "srflow_da"]

register("srflow", SRFlowConfig, srflow)
register("srflow_da", SRFlowDAConfig, srflow_da)
