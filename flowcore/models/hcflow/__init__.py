"""HCFlow: image rescaling and super-resolution."""

from ..family import Family, register
from .extractor import HierarchicalExtractor
from .folded import FoldedExtractor
from .model import HCFlowConfig, hcflow
from .published import HCFLOW

__all__ = ["HCFlowConfig", "hcflow"]

register(Family("hcflow", HCFlowConfig, hcflow, sources=(HCFLOW,), folds={HierarchicalExtractor: FoldedExtractor}))
