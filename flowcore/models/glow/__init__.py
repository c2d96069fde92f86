"""Glow, and class-conditional flows of digits."""

from ..family import Family, register
from .class_conditional import ClassConditionalConfig, class_conditional
from .model import GlowConfig, glow
from .normflows import NORMFLOWS
from .published import CHAIYUJIN, OPENAI, ROSINALITY, Y0AST

__all__ = ["ClassConditionalConfig", "GlowConfig", "class_conditional", "glow"]

register(Family("glow", GlowConfig, glow, sources=(Y0AST, CHAIYUJIN, ROSINALITY, OPENAI, NORMFLOWS)))
register(Family("class_conditional", ClassConditionalConfig, class_conditional))
