"""FFJORD: continuous flows."""

from ..family import Family, register
from .model import FFJORDConfig, ffjord
from .published import FFJORD

__all__ = ["FFJORDConfig", "ffjord"]

register(Family("ffjord", FFJORDConfig, ffjord, sources=(FFJORD,)))
