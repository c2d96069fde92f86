"""Residual Flows."""

from ..family import Family, register
from .contractive import ContractiveNetwork
from .folded import FoldedContraction
from .model import ResidualFlowConfig, residual_flow
from .published import RESIDUAL_FLOW

__all__ = ["ResidualFlowConfig", "residual_flow"]

register(
    Family(
        "residual_flow",
        ResidualFlowConfig,
        residual_flow,
        sources=(RESIDUAL_FLOW,),
        folds={ContractiveNetwork: FoldedContraction},
    )
)
