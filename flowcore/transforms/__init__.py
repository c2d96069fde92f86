"""Bijections, one to a file; ``transform.py`` states the law that all of them obey."""

from .actnorm import ActNorm
from .coupling import Coupling
from .injector import Injector
from .invconv import InvertibleConv
from .split import Split
from .squeeze import Squeeze
from .transform import (
    Chain,
    CheckpointError,
    ConditionError,
    FlowError,
    ImageError,
    PrecisionError,
    ShapeError,
    Transform,
)

__all__ = [
    "ActNorm",
    "Chain",
    "CheckpointError",
    "ConditionError",
    "Coupling",
    "FlowError",
    "ImageError",
    "Injector",
    "InvertibleConv",
    "PrecisionError",
    "ShapeError",
    "Split",
    "Squeeze",
    "Transform",
]
