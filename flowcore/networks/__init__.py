"""What is not invertible, and may run in low precision."""

from .conditioner import Conditioner, ScaledConv
from .rrdb import RRDBEncoder

__all__ = ["Conditioner", "RRDBEncoder", "ScaledConv"]
