"""FFJORD: continuous flows."""

from ..registry import register
from .model import FFJORDConfig, ffjord

__all__ = ["FFJORDConfig", "ffjord"]

register("ffjord", FFJORDConfig, ffjord)
