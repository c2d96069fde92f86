"""Colorizers: chroma by a flow, from luma."""

from ..registry import register
from .model import ColorizerConfig, colorizer

__all__ = ["ColorizerConfig", "colorizer"]

register("colorizer", ColorizerConfig, colorizer)
