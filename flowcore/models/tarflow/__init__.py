"""TarFlow: autoregressive flows of transformers."""

from ..registry import register
from .model import TarFlowConfig, tarflow

__all__ = ["TarFlowConfig", "tarflow"]

register("tarflow", TarFlowConfig, tarflow)
