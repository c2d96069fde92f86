"""HCFlow: image rescaling and super-resolution."""

from ..registry import register
from .model import HCFlowConfig, hcflow

__all__ = ["HCFlowConfig", "hcflow"]

register("hcflow", HCFlowConfig, hcflow)
