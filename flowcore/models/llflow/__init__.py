"""LLFlow: low-light enhancement."""

from ..family import Family, register
from .folded import FoldedLowLightEncoder
from .low_light import LowLightEncoder
from .model import LLFlowConfig, llflow
from .published import LLFLOW

__all__ = ["LLFlowConfig", "llflow"]

register(Family("llflow", LLFlowConfig, llflow, sources=(LLFLOW,), folds={LowLightEncoder: FoldedLowLightEncoder}))
