"""RealNVP."""

from ..family import Family, register
from .model import RealNVPConfig, realnvp
from .published import CHRISCHUTE

__all__ = ["RealNVPConfig", "realnvp"]

register(Family("realnvp", RealNVPConfig, realnvp, sources=(CHRISCHUTE,)))
