"""Glow, and class-conditional flows of digits."""

from ..registry import register
from .class_conditional import ClassConditionalConfig, class_conditional
from .model import GlowConfig, glow

__all__ = ["ClassConditionalConfig", "GlowConfig", "class_conditional", "glow"]

register("glow", GlowConfig, glow)
register("class_conditional", ClassConditionalConfig, class_conditional)
