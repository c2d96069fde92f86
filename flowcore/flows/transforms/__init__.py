"""Bijections, one kind to a file; ``transform.py`` states the law that all of them obey."""

from ..level_condition import Guidance, LevelCondition, MultiScaleFeatures, Probes, ScaledFeatures
from ..transform import Chain, NoLogdetMapError, Transform, flat_parts, map_tensors, spread, tensors
from .actnorm import ActNorm, BatchNorm, SignedActNorm, use_batch_moments
from .autoregression import Autoregression
from .coupling import CheckerboardCoupling, ConditionOnChannels, Coupling, Injector, Scaling
from .invconv import InvertibleConv, Permutation
from .ode import ODE, Solver, path_costs
from .pixels import ChannelWhitening, FixedAffine, Logit
from .residual import Residual
from .split import Center, Split, Standardize, Variances
from .squeeze import CheckerboardSqueeze, Flatten, Haar, InterpolatedDetails, Squeeze, Unflatten, Unsqueeze
from .stochastic_logdet import StochasticLogdet, draw_probes

__all__ = [
    "ODE",
    "ActNorm",
    "Autoregression",
    "BatchNorm",
    "Center",
    "Chain",
    "ChannelWhitening",
    "CheckerboardCoupling",
    "CheckerboardSqueeze",
    "ConditionOnChannels",
    "Coupling",
    "FixedAffine",
    "Flatten",
    "Guidance",
    "Haar",
    "Injector",
    "InterpolatedDetails",
    "InvertibleConv",
    "LevelCondition",
    "Logit",
    "MultiScaleFeatures",
    "NoLogdetMapError",
    "Permutation",
    "Probes",
    "Residual",
    "ScaledFeatures",
    "Scaling",
    "SignedActNorm",
    "Solver",
    "Split",
    "Squeeze",
    "Standardize",
    "StochasticLogdet",
    "Transform",
    "Unflatten",
    "Unsqueeze",
    "Variances",
    "draw_probes",
    "flat_parts",
    "map_tensors",
    "path_costs",
    "spread",
    "tensors",
    "use_batch_moments",
]
