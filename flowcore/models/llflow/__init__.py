"""LLFlow: low-light enhancement."""

from ..registry import register
from .model import LLFlowConfig, llflow

__all__ = ["LLFlowConfig", "llflow"]

register("llflow", LLFlowConfig, llflow)
