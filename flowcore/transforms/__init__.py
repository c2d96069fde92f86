"""Bijections, one to a file; ``transform.py`` states the law that all of them obey."""

from .actnorm import ActNorm, SignedActNorm
from .batchnorm import BatchNorm, batch_moments
from .checkerboard import CheckerboardCoupling
from .coupling import Coupling, Scaling
from .given import Given
from .haar import Haar
from .injector import Injector
from .invconv import InvertibleConv
from .permutation import Permutation
from .pixels import Logit, PixelMap
from .split import Split, Whiten
from .squeeze import Flatten, OrderedSqueeze, Squeeze, Unsqueeze
from .transform import (
    Chain,
    CheckpointError,
    ConditionError,
    FlowError,
    ImageError,
    PrecisionError,
    ShapeError,
    Transform,
    spread,
)
from .whitening import ChannelWhitening

__all__ = [
    "ActNorm",
    "BatchNorm",
    "Chain",
    "ChannelWhitening",
    "CheckerboardCoupling",
    "CheckpointError",
    "ConditionError",
    "Coupling",
    "Flatten",
    "FlowError",
    "Given",
    "Haar",
    "ImageError",
    "Injector",
    "InvertibleConv",
    "Logit",
    "OrderedSqueeze",
    "Permutation",
    "PixelMap",
    "PrecisionError",
    "Scaling",
    "ShapeError",
    "SignedActNorm",
    "Split",
    "Squeeze",
    "Transform",
    "Unsqueeze",
    "Whiten",
    "batch_moments",
    "spread",
]
