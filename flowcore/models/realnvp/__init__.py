"""RealNVP."""

from ..registry import register
from .model import RealNVPConfig, realnvp

__all__ = ["RealNVPConfig", "realnvp"]

register("realnvp", RealNVPConfig, realnvp)
