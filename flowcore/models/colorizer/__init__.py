"""Colorizers: chroma by a flow, from luma."""

from ..family import Family, register
from .model import ColorizerConfig, colorizer, without_memory

__all__ = ["ColorizerConfig", "colorizer"]

register(Family("colorizer", ColorizerConfig, colorizer, upgrade=without_memory))
