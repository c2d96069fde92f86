"""Affine couplings and injectors: a network says how channels or pixels are shifted and scaled."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConditionError
from ..level_condition import LevelCondition
from ..transform import Transform

Scaling = Literal["sigmoid", "atan", "narrow", "exp", "none"]
ATAN_SCALE = 1.2  # log scales are 1.2 * 0.636 atan(r), within 1.2: 0.636 is about 2 / pi
NARROW_SCALE = 0.318  # log scales are 0.318 atan(2 r), within 0.4995: 0.318 is 1 / pi in the three digits published
SIGMOID_OFFSET = 2.0  # added to the raw scale for "sigmoid": where conditioners output 0, scales are near 1


class Coupling(Transform):
    """Shift and scale one part of the channels by what a conditioner computes from the other part and the condition.

    With ``x = [x1, x2]``, cond the condition's ``network_inputs``, ``(B, Cc, H, W)`` on the grid of ``x``, and ``shift,
    scale = shift_scale(conditioner([x1, cond]))``: forward: ``z = [x1, (x2 + shift) * scale]``; logdet: ``sum log
    scale``; inverse: ``x2 = z2 / scale - shift``. ``x1`` has C1 channels: ``first``, or ``C // 2`` if that is 0. With
    ``swap`` the two parts change roles: the second conditions the first. The conditioner maps ``(B, C1 + Cc, H, W)`` to
    ``(B, 2 * (C - C1), H, W)``, or to half as many channels for the scaling "none". The scaling "exp" is for
    conditioners with a bounded output; ``shift_scale`` says which scalings are safe with any.

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
        z1, z2 = split_channels(z, self.first, self.swap)
        shift, scale, _ = self._shift_scale(z1, cond)
        return join_channels(z1, z2 / scale - shift, self.swap)

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        z, log_scale = self._couple(x, cond)
        return z, log_scale.sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        x1, _ = split_channels(x, self.first, self.swap)
        _initialize_network(self.conditioner, concatenate([x1, *_network_inputs(cond, x1)]))
        return self.forward(x, cond)[0]

    def _couple(self, x: Tensor, cond: LevelCondition | None) -> tuple[Tensor, Tensor]:
        x1, x2 = split_channels(x, self.first, self.swap)
        shift, scale, log_scale = self._shift_scale(x1, cond)
        return join_channels(x1, (x2 + shift) * scale, self.swap), log_scale

    def _shift_scale(self, x1: Tensor, cond: LevelCondition | None) -> tuple[Tensor, Tensor, Tensor]:
        raw = self.conditioner(concatenate([x1, *_network_inputs(cond, x1)]))
        return shift_scale(raw, self.eps, like=x1, scaling=self.scaling)


class Injector(Transform):
    """Shift and scale all channels by what a conditioner computes from the condition alone.

    With ``shift, scale = shift_scale(conditioner(cond))``: forward: ``z = (x + shift) * scale``; logdet: ``sum log
    scale``; inverse: ``x = z / scale - shift``. ``cond`` is as in ``Coupling``. With the scaling "exp" it is a learned
    Gaussian prior given the condition: mean ``-shift``, standard deviation ``1 / scale``.

    Source: Lugmayr et al., "SRFlow", section 3.3 ("affine injector"); with "exp", the conditional prior of Winkler et
    al., "Learning Likelihoods with Conditional Normalizing Flows" (2019), section 3.1.
    """

    def __init__(self, conditioner: nn.Module, *, eps: float = 0.0, scaling: Scaling = "sigmoid") -> None:
        super().__init__()
        self.conditioner, self.eps = conditioner, eps
        self.scaling: Scaling = scaling

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, log_scale = self._shift_scale(x, cond)
        return (x + shift) * scale, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        shift, scale, _ = self._shift_scale(z, cond)
        return z / scale - shift

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        shift, scale, log_scale = self._shift_scale(x, cond)
        return (x + shift) * scale, log_scale.sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        _initialize_network(self.conditioner, self._input(x, cond))
        return self.forward(x, cond)[0]

    def _shift_scale(self, x: Tensor, cond: LevelCondition | None) -> tuple[Tensor, Tensor, Tensor]:
        return shift_scale(self.conditioner(self._input(x, cond)), self.eps, like=x, scaling=self.scaling)

    def _input(self, x: Tensor, cond: LevelCondition | None) -> Tensor:
        inputs = _network_inputs(cond, x)
        if not inputs:
            raise ConditionError(
                f"An injector needs a condition of {x.shape[0]} items on a {x.shape[2]}x{x.shape[3]} grid; got none. "
                "Pass flow.encode_condition(source) of a source of the matching size and batch."
            )
        return concatenate(inputs)


class CheckerboardCoupling(Transform):
    """Shift and scale every second pixel by what a conditioner computes from the others.

    With the mask ``b``, 0 for those where ``(row + column) % 2 == parity`` and 1 for the others that condition them,
    and ``shift, log_scale = conditioner(b * x)``, on even and odd channels:
    forward: ``z = b * x + (1 - b) * (x + shift) * exp(log_scale)``; logdet: ``sum (1 - b) * log_scale``; inverse: ``x
    = b * z + (1 - b) * (z * exp(-log_scale) - shift)``. With ``mask_channel`` the conditioner also sees b.

    Source: Dinh et al., "Real NVP", section 3.4, with the order of operations of its implementation: (x + t) * exp(s).
    """

    def __init__(self, conditioner: nn.Module, *, parity: int, mask_channel: bool = False) -> None:
        super().__init__()
        self.conditioner, self.parity, self.mask_channel = conditioner, parity, mask_channel

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        mask, shift, log_scale = self._mask_shift_log_scale(z)
        return torch.where(mask, z, z * torch.exp(-log_scale) - shift)

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        mask, shift, log_scale = self._mask_shift_log_scale(x)
        z = torch.where(mask, x, (x + shift) * torch.exp(log_scale))
        return z, torch.where(mask, 0, log_scale).sum(1)

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        _initialize_network(self.conditioner, self._masked(x)[0])
        return self.forward(x, cond)[0]

    def _mask_shift_log_scale(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masked, mask = self._masked(x)
        shift, _, log_scale = shift_scale(self.conditioner(masked), 0, like=x, scaling="exp")
        return mask, shift, log_scale

    def _masked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        mask = ((rows[:, None] + columns) % 2 != self.parity)[None, None]  # (1, 1, H, W)
        masked = torch.where(mask, x, 0)
        if self.mask_channel:
            masked = torch.cat([masked, mask.to(x).expand(x.shape[0], 1, -1, -1)], dim=1)
        return masked, mask


class ConditionOnChannels(Transform):
    """Leave the first channels unchanged and transform the others, with the first as part of the condition.

    With ``x = [x1, x2]``, x1 the first ``kept`` channels: forward: ``z = [x1, f(x2; [x1, cond])]``; logdet: that of f;
    inverse: by that of f. With standard-normal latents, f is then a density ``p(x2 | x1, cond)``. f finds x1 in the
    condition's ``flow_channels``.

    Source: Yu et al., "Wavelet Flow" (2020), section 3, where x1 is the coarse image and x2 its details.
    """

    def __init__(self, kept: int, transform: Transform) -> None:
        super().__init__()
        self.kept, self.transform = kept, transform

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        x1, x2 = split_channels(x, self.kept)
        z2, logdet = self.transform(x2, self._add_channels(cond, x1))
        return torch.cat([x1, z2], dim=1), logdet

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        x1, z2 = split_channels(z, self.kept)
        return torch.cat([x1, self.transform.inverse(z2, self._add_channels(cond, x1))], dim=1)

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        x1, x2 = split_channels(x, self.kept)
        z2, logdet = self.transform.forward_with_logdet_map(x2, self._add_channels(cond, x1))
        return torch.cat([x1, z2], dim=1), logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        x1, x2 = split_channels(x, self.kept)
        return torch.cat([x1, self.transform.initialize(x2, self._add_channels(cond, x1))], dim=1)

    def _add_channels(self, cond: LevelCondition | None, x1: Tensor) -> LevelCondition:
        cond = cond or LevelCondition()
        outer = [] if cond.flow_channels is None else [cond.flow_channels]
        return replace(cond, flow_channels=concatenate([x1, *outer]))


def split_channels(x: Tensor, first: int = 0, swap: bool = False) -> tuple[Tensor, Tensor]:
    """Split channels after the ``first``, or for 0 after ``C // 2``; ``swap`` swaps the two parts."""
    first = first or x.shape[1] // 2
    return (x[:, first:], x[:, :first]) if swap else (x[:, :first], x[:, first:])


def join_channels(x1: Tensor, x2: Tensor, swap: bool) -> Tensor:
    """Undo ``split_channels``."""
    return torch.cat([x2, x1] if swap else [x1, x2], dim=1)


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Concatenate channels, without a copy if there is only one tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)


def shift_scale(
    raw: Tensor, eps: float, *, like: Tensor, scaling: Scaling = "sigmoid"
) -> tuple[Tensor, Tensor, Tensor]:
    """Convert a conditioner's output to shift, scale and log scale in the precision of ``like``, ``(B, C, H, W)`` each.

    Even channels are the shift, odd channels the raw scale r:

    - "sigmoid": ``scale = sigmoid(r + 2) + eps``, between eps (SRFlow: 1e-4; Glow: 0) and ``1 + eps``;
    - "atan": ``scale = exp(1.2 * 0.636 * atan(r))``, between 0.30 and 3.3 (Ardizzone et al. 2019);
    - "narrow": ``scale = exp(0.318 * atan(2 r))``, between 0.61 and 1.65 (HCFlow);
    - "exp": ``scale = exp(r)``, for conditioners that bound r themselves (Real NVP);
    - "none": all channels are the shift, ``scale = 1`` (NICE).

    "atan" and "narrow" are safe everywhere: their scales have both bounds. "sigmoid" is in the direction of encoding,
    and in that of decoding with an eps. "exp" has no bound of its own: far from the data, latents overflow, and
    ``Flow.log_prob`` is -inf.
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
    """Convert raw scales to scales, unless the scaling is "none"; for "sigmoid", r includes ``SIGMOID_OFFSET``."""
    if scaling == "sigmoid":
        return torch.sigmoid(r) + eps
    return log_scale_of(r, eps, scaling).exp()


def log_scale_of(r: Tensor, eps: float, scaling: Scaling) -> Tensor:
    """Convert raw scales to the logarithms of scales; see ``scale_of``."""
    if scaling == "exp":
        return r
    if scaling == "atan":
        return ATAN_SCALE * 0.636 * torch.atan(r)
    if scaling == "narrow":
        return NARROW_SCALE * torch.atan(2 * r)
    log_sigmoid = F.logsigmoid(r)
    return log_sigmoid if eps == 0 else torch.logaddexp(log_sigmoid, r.new_full((), math.log(eps)))


def _network_inputs(cond: LevelCondition | None, x: Tensor) -> list[Tensor]:
    """List what the condition adds to a network's input; ConditionError unless it fits the batch and grid of ``x``."""
    inputs = [] if cond is None else cond.network_inputs()
    for t in inputs:
        if t.shape[0] != x.shape[0] or t.shape[2:] != x.shape[2:]:
            raise ConditionError(
                f"Expected a condition of {x.shape[0]} items on a {x.shape[2]}x{x.shape[3]} grid; got {t.shape[0]} "
                f"items on a {t.shape[2]}x{t.shape[3]} grid. Encode the condition from an image of the matching size "
                "and batch."
            )
    return inputs


def _initialize_network(network: nn.Module, x: Tensor) -> None:
    """Let a network set its data-dependent parameters from its first input, if it has a method ``initialize(x)``."""
    initialize: Any = getattr(network, "initialize", None)
    if initialize is not None:
        initialize(x)
