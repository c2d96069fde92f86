"""TarFlow: autoregressive flows of transformers."""

from ..family import Family, register
from .causal_transformer import CausalTransformer
from .folded import ReportingPredictor
from .model import TarFlowConfig, tarflow
from .published import TARFLOW

__all__ = ["TarFlowConfig", "tarflow"]

register(Family("tarflow", TarFlowConfig, tarflow, sources=(TARFLOW,), folds={CausalTransformer: ReportingPredictor}))
