"""What a transform is conditioned on: ``LevelCondition``, and the features, probes and guidance that it may hold."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FlowError

ScaledFeatures = tuple[Tensor, int]  # features, and the factor by which to enlarge them, by nearest neighbor


@dataclass(frozen=True, kw_only=True)
class MultiScaleFeatures:
    """Features of one level on several grids; those that are to be enlarged stay small."""

    sources: tuple[ScaledFeatures, ...]  # (B, C_i, H / factor, W / factor); their channels are concatenated
    # what couplings and injectors of the level, in the data-to-latent direction, compute from the condition alone: the
    # condition's term of the first convolution or, if nothing else enters the network, its output; set by
    # ``Condition.prepare``
    precomputed: tuple[Tensor | None, ...] | None = None

    def merged(self) -> Tensor:
        """Enlarge and concatenate all sources: ``(B, C, H, W)``."""
        enlarged = [t if f == 1 else F.interpolate(t, scale_factor=f, mode="nearest") for t, f in self.sources]
        return torch.cat(enlarged, dim=1)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Random vectors e with ``E[e e^T] = I``, from which ``e^T A e`` estimates the trace of A without bias.

    One for every estimated transform of a flow, in the data-to-latent direction. Coefficients are ones for a truncated
    series, and ``1 / P(N >= k)`` for a Russian-roulette estimate, whose random number of terms N makes it unbiased.
    """

    vectors: tuple[Tensor, ...]  # each has the shape of its transform's input
    coefficients: tuple[tuple[float, ...], ...]  # terms 1, 2, ... of each power series; empty if it has none
    neumann: bool = False  # whether gradients come from the Neumann series, instead of differentiating the estimate


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: how strongly decoding follows the labels, for sharper, less varied pictures.

    The prediction with the label is moved away from the one without it, by ``weight`` times their difference. Guided
    decoding is not the inverse of encoding.

    >>> flow = flowcore.load("tarflow.safetensors")
    >>> flowcore.sample(flow, 2, labels=1, guidance=flowcore.Guidance(2.0, annealed=True)).shape[0]
    2

    Attributes:
        weight: 0 for none; 1 to 3 are usual.
        scale: Whether log-scales are guided, too, or shifts alone.
        annealed: Whether the weight rises linearly from patch to patch, to ``weight`` at the last.
        temperature: Attention temperature of the prediction without label: a divisor of the attention scores.

    Source: Ho & Salimans, "Classifier-free diffusion guidance" (2022); Zhai et al., TarFlow (2024), section 3.4.
    """

    weight: float
    scale: bool = True
    annealed: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise FlowError(f"guidance must be a finite number >= 0; got {self.weight}. 0 is none, 1 to 3 are usual.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise FlowError(f"The temperature of guidance must be a finite number > 0; got {self.temperature}.")


@dataclass(frozen=True, kw_only=True)
class LevelCondition:
    """What the transforms of one level are conditioned on: each reads the fields that it needs, and ignores the others.

    ``Condition.at_level`` makes it from the condition of a whole flow.

    Attributes:
        features: Conditioning features on the grid of the level, ``(B, C, H, W)``, for couplings and injectors.
        multi_scale: The same features before they are enlarged, which the steps of a ``CompiledFlow`` read instead.
        flow_channels: Channels of the flow itself, ``(B, C, H, W)``, on which other channels are conditioned.
        labels: Weights of the classes, ``(B or 1, K)``, for learned priors and ``Autoregression``.
        lr_mean: Mean of the flow's last output, ``(B or 1, C, h, w)``, for ``Center``.
        probes: Random vectors that estimate log-determinants without a closed form; None for exact ones.
        guidance: Classifier-free guidance toward the labels, for ``Autoregression.inverse``.
    """

    features: Tensor | None = None
    multi_scale: MultiScaleFeatures | None = None
    flow_channels: Tensor | None = None
    labels: Tensor | None = None
    lr_mean: Tensor | None = None
    probes: Probes | None = None
    guidance: Guidance | None = None

    def network_inputs(self) -> list[Tensor]:
        """List what couplings and injectors concatenate: the flow's channels, then the features, if there are any."""
        return [t for t in (self.flow_channels, self.features) if t is not None]
