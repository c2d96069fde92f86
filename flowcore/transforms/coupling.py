"""Affine couplings: one half of the channels, or of the pixels, determines how the other is shifted and scaled."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConditionError
from .level_condition import LevelCondition
from .transform import Transform

Scaling = Literal["sigmoid", "atan", "narrow", "exp", "none"]
ATAN_LIMIT = 1.2  # of log scales, since 0.636 atan(r) stays within 1; 0.636 is about 2 / pi
NARROW = 0.318  # 0.5 * 2 / pi, as published with three digits: log scales stay within 0.4995
SIGMOID_OFFSET = 2.0  # added to the raw scale for "sigmoid": where conditioners output 0, scales are near 1


class Coupling(Transform):
    """Shift and scale one part of the channels by what a conditioner computes from the other part and the condition.

    With ``x = [x1, x2]`` and ``shift, scale = affine(conditioner([x1, cond]))``: forward: ``z = [x1, (x2 + shift) *
    scale]``; logdet: ``sum log scale``; inverse: ``x2 = z2 / scale - shift``. ``x1`` has C1 channels: ``C // 2``, or as
    many as ``first`` says. With ``swap`` the two parts change roles: the second conditions the first. ``cond`` stands
    for the condition's ``network_inputs``, ``(B, Cc, H, W)`` on the grid of ``x``. The conditioner maps ``(B, C1 + Cc,
    H, W)`` to ``(B, 2 * (C - C1), H, W)``, or to half as many channels for the scaling "none".

    Source: Dinh et al., "Real NVP", section 3.2, in Glow's parametrization; with a condition, SRFlow section 3.3
    ("conditional affine coupling"). Additive: Dinh et al., "NICE", section 3.2.
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        eps: float = 0.0,
        scaling: Scaling = "sigmoid",
        swap: bool = False,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.conditioner, self.eps, self.swap, self.first = conditioner, eps, swap, first
        self.scaling: Scaling = scaling

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        z, log_scale = self._couple(x, cond)
        return z, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        z1, z2 = self._halves(z)
        shift, scale, _ = self._affine(z1, cond)
        return self._join(z1, z2 / scale - shift)

    def by_position(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        z, log_scale = self._couple(x, cond)
        return z, log_scale.sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        initialize_network(self.conditioner, append_condition(self._halves(x)[0], cond))
        return self.forward(x, cond)[0]

    def _couple(self, x: Tensor, cond: LevelCondition | None) -> tuple[Tensor, Tensor]:
        x1, x2 = self._halves(x)
        shift, scale, log_scale = self._affine(x1, cond)
        return self._join(x1, (x2 + shift) * scale), log_scale

    def _affine(self, x1: Tensor, cond: LevelCondition | None) -> tuple[Tensor, Tensor, Tensor]:
        return affine(self.conditioner(append_condition(x1, cond)), self.eps, like=x1, scaling=self.scaling)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = halves(x, self.first)
        return (second, first) if self.swap else (first, second)

    def _join(self, x1: Tensor, x2: Tensor) -> Tensor:
        return torch.cat([x2, x1] if self.swap else [x1, x2], dim=1)


class CheckerboardCoupling(Transform):
    """Shift and scale every second pixel by what a conditioner computes from the others.

    With the mask ``b`` (1 where ``(row + column) % 2 != parity``) and ``shift, log_scale = conditioner(b * x)``, on
    even and odd channels: forward: ``z = b * x + (1 - b) * (x + shift) * exp(log_scale)``; logdet: ``sum (1 - b) *
    log_scale``; inverse: ``x = b * z + (1 - b) * (z * exp(-log_scale) - shift)``. With ``mask_channel`` the conditioner
    also sees b.

    Source: Dinh et al., "Real NVP", section 3.4, with the order of operations of its program: (x + t) * exp(s).
    """

    def __init__(self, conditioner: nn.Module, *, parity: int, mask_channel: bool = False) -> None:
        super().__init__()
        self.conditioner, self.parity, self.mask_channel = conditioner, parity, mask_channel

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mask, shift, log_scale = self._affine(z)
        return torch.where(mask, z, z * torch.exp(-log_scale) - shift)

    def by_position(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        mask, shift, log_scale = self._affine(x)
        z = torch.where(mask, x, (x + shift) * torch.exp(log_scale))
        return z, torch.where(mask, 0, log_scale).sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        initialize_network(self.conditioner, self._input(x)[0])
        return self.forward(x, cond)[0]

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masked, mask = self._input(x)
        shift, _, log_scale = affine(self.conditioner(masked), 0, like=x, scaling="exp")
        return mask, shift, log_scale

    def _input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        mask = ((rows[:, None] + columns) % 2 != self.parity)[None, None]  # (1, 1, H, W)
        masked = torch.where(mask, x, 0)
        if self.mask_channel:
            masked = torch.cat([masked, mask.to(x).expand(len(x), 1, -1, -1)], dim=1)
        return masked, mask


class ConditionOnChannels(Transform):
    """Leave the first channels unchanged and transform the others, with the first as part of the condition.

    With ``x = [kept, rest]``: forward: ``z = [kept, f(rest; [kept, cond])]``; logdet: that of f; inverse: f's. With
    standard-normal latents, f is then a density ``p(rest | kept, cond)``. f finds them in the condition's
    ``flow_channels``.

    Source: Yu et al., "Wavelet Flow" (2020), section 3, where ``kept`` is the coarse image and ``rest`` its details.
    """

    def __init__(self, kept: int, transform: Transform) -> None:
        super().__init__()
        self.kept, self.transform = kept, transform

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = x.tensor_split([self.kept], dim=1)
        z, logdet = self.transform(rest, _conditioned_on(kept, cond))
        return torch.cat([kept, z], dim=1), logdet

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        kept, rest = z.tensor_split([self.kept], dim=1)
        return torch.cat([kept, self.transform.inverse(rest, _conditioned_on(kept, cond))], dim=1)

    def by_position(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = x.tensor_split([self.kept], dim=1)
        z, logdet = self.transform.by_position(rest, _conditioned_on(kept, cond))
        return torch.cat([kept, z], dim=1), logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        kept, rest = x.tensor_split([self.kept], dim=1)
        return torch.cat([kept, self.transform.initialize(rest, _conditioned_on(kept, cond))], dim=1)


def _conditioned_on(kept: Tensor, cond: LevelCondition | None) -> LevelCondition:
    cond = cond or LevelCondition()
    return replace(cond, flow_channels=kept if cond.flow_channels is None else torch.cat([kept, cond.flow_channels], 1))


def halves(x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Split the channels of ``(B, C, H, W)`` after the first so many, or after ``C // 2`` for 0."""
    first = first or x.shape[1] // 2
    return x[:, :first], x[:, first:]


def append_condition(x: Tensor, cond: LevelCondition | None) -> Tensor:
    """Append the condition's channels to those of ``x``; ConditionError if the grids or batch sizes differ."""
    inputs = [] if cond is None else cond.network_inputs()
    for t in inputs:
        if t.shape[0] != x.shape[0] or t.shape[2:] != x.shape[2:]:
            raise ConditionError(
                f"Expected a condition of {x.shape[0]} items on a {x.shape[2]}x{x.shape[3]} grid; got {t.shape[0]} "
                f"items on a {t.shape[2]}x{t.shape[3]} grid. Encode the condition from an image of the matching size "
                "and batch."
            )
    return torch.cat([x, *inputs], dim=1) if inputs else x


def affine(raw: Tensor, eps: float, *, like: Tensor, scaling: Scaling = "sigmoid") -> tuple[Tensor, Tensor, Tensor]:
    """Convert a conditioner's output to shift, scale and log scale in the precision of ``like``, ``(B, C, H, W)`` each.

    Even channels are the shift, odd channels the raw scale r:

    - "sigmoid": ``scale = sigmoid(r + 2) + eps``, between eps (SRFlow: 1e-4; Glow: 0) and ``1 + eps``;
    - "atan": ``scale = exp(1.2 * 0.636 * atan(r))``, between 0.30 and 3.3 (Ardizzone et al. 2019);
    - "narrow": ``scale = exp(0.318 * atan(2 r))``, between 0.61 and 1.65 (HCFlow);
    - "exp": ``scale = exp(r)``, for conditioners that bound r themselves (Real NVP);
    - "none": all channels are the shift, ``scale = 1`` (NICE).
    """
    raw = raw.to(like.dtype)
    if scaling == "none":
        return raw, torch.ones_like(raw), torch.zeros_like(raw)
    shift, r = raw[:, 0::2], raw[:, 1::2]
    if scaling == "sigmoid":
        r = r + SIGMOID_OFFSET
    log_scale = log_scale_of(r, eps, scaling)
    return shift, scale_of(r, eps, scaling) if eps else log_scale.exp(), log_scale


def scale_of(r: Tensor, eps: float, scaling: Scaling) -> Tensor:
    """Convert raw scales to scales; for "sigmoid", ``SIGMOID_OFFSET`` is already added, and "none" has none."""
    if scaling == "sigmoid":
        return torch.sigmoid(r) + eps
    return log_scale_of(r, eps, scaling).exp()


def log_scale_of(r: Tensor, eps: float, scaling: Scaling) -> Tensor:
    """Convert raw scales to the logarithms of scales; see ``scale_of``."""
    if scaling == "exp":
        return r
    if scaling == "atan":
        return ATAN_LIMIT * 0.636 * torch.atan(r)
    if scaling == "narrow":
        return NARROW * torch.atan(2 * r)
    log_scale = F.logsigmoid(r)
    return log_scale if eps == 0 else torch.logaddexp(log_scale, r.new_full((), math.log(eps)))


def initialize_network(network: nn.Module, x: Tensor) -> None:
    """Let a network set its data-dependent parameters from its first input, if it has a method ``initialize(x)``."""
    initialize: Any = getattr(network, "initialize", None)
    if initialize is not None:
        initialize(x)
