"""Residual Flows."""

from ..registry import register
from .model import ResidualFlowConfig, residual_flow

__all__ = ["ResidualFlowConfig", "residual_flow"]

register("residual_flow", ResidualFlowConfig, residual_flow)
