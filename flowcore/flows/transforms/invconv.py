"""Invertible 1x1 convolution, a learned mixing of channels; and permutation, a fixed one."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...device import float32_arithmetic, float64, float64_on_cpu, no_autocast
from ...errors import FlowError
from ..level_condition import LevelCondition
from ..transform import Transform

Start = Literal["orthogonal", "principal", "reverse"]


class InvertibleConv(Transform):
    """Multiply the channels of every pixel by one matrix.

    With the matrix ``M``: forward: ``z = M x`` per pixel; logdet: ``H * W * log|det M|``; inverse: ``x = M^-1 z``;
    both in float64. With ``lu=True``, ``M = P (L + I) (U + diag(sign * exp(log_diagonal)))``: P a fixed permutation, L
    strictly lower and U strictly upper triangular, so that ``log|det M| = sum(log_diagonal)``.

    Source: Kingma & Dhariwal, "Glow", section 3.2. Two initializations are ours: with "principal", ``initialize`` sets
    M to the principal axes of its batch (largest variance first); "reverse" starts as the reversal of the channels.
    """

    uniform_logdet = True
    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, lu: bool = False, start: Start = "orthogonal") -> None:
        super().__init__()
        self.lu, self.start = lu, start
        reverse = start == "reverse"
        weight = torch.eye(channels).flip(0) if reverse else nn.init.orthogonal_(torch.empty(channels, channels))
        if lu:
            permutation, sign, *parameters = _lu_factors(weight)
            self.register_buffer("permutation", permutation)
            self.register_buffer("sign", sign)
            self.lower, self.upper, self.log_diagonal = map(nn.Parameter, parameters)
        else:
            self.weight = nn.Parameter(weight)

    def matrix(self) -> Tensor:
        """Compute M, ``(C, C)``; rows are outputs."""
        if not self.lu:
            return self.weight
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        with no_autocast(lower.device), float32_arithmetic():
            return self.permutation @ lower @ upper

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        matrix = self.matrix()
        log_det = self.log_diagonal.sum() if self.lu else torch.linalg.slogdet(float64(matrix))[1].to(x)
        return _mix(x, matrix), (x.shape[-2] * x.shape[-1] * log_det).expand(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return _mix(z, torch.linalg.inv(float64(self.matrix())).to(z))

    @torch.no_grad()
    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        if self.start == "principal":
            pixels = float64(x).transpose(0, 1).flatten(1)  # (C, B*H*W)
            axes = torch.linalg.eigh(torch.cov(pixels))[1].flip(1).T  # rows, largest variance first
            if self.lu:
                stored = (self.permutation, self.sign, self.lower, self.upper, self.log_diagonal)
                for tensor, factor in zip(stored, _lu_factors(axes), strict=True):
                    tensor.copy_(factor.to(tensor))
            else:
                self.weight.copy_(axes.to(self.weight))
        return self.forward(x)[0]

    def problem(self) -> tuple[str, str] | None:
        return singular(self.matrix())


class Permutation(Transform):
    """Reorder the channels.

    Forward: ``z[:, c] = x[:, order[c]]``; logdet: 0; inverse: ``x[:, order[c]] = z[:, c]``.

    Source: Kingma & Dhariwal, "Glow", section 3.2.
    """

    uniform_logdet = True
    order: Tensor

    def __init__(self, order: Tensor) -> None:
        """Fix the order: ``(C,)`` whole numbers, each of 0 to C - 1 once; FlowError otherwise."""
        super().__init__()
        # on the meta device there are no values to check
        if order.ndim != 1 or not (order.is_meta or torch.equal(order.sort()[0], torch.arange(len(order)))):
            raise FlowError(f"A permutation lists each of 0 to C - 1 once; got {order.tolist()}.")
        self.register_buffer("order", order.long())

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        return z[:, self.order.argsort()]

    def problem(self) -> tuple[str, str] | None:
        complete = torch.equal(self.order.cpu().sort()[0], torch.arange(len(self.order)))
        return None if complete else ("order", f"does not list each of 0 to {len(self.order) - 1} once")


def singular(matrix: Tensor) -> tuple[str, str] | None:
    """Return the ``Transform.problem`` of a singular ``matrix``; None for another."""
    if torch.linalg.slogdet(float64_on_cpu(matrix.detach()))[1].isfinite():
        return None
    return "matrix", "is singular, so nothing can be decoded"


def _lu_factors(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Factor a matrix into permutation, sign, lower, upper and log_diagonal."""
    permutation, lower, upper = torch.linalg.lu(weight)
    diagonal = upper.diagonal()
    return permutation, diagonal.sign(), lower.tril(-1), upper.triu(1), diagonal.abs().log()


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    with no_autocast(x.device), float32_arithmetic():
        # channels last: twice as fast as a 1x1 convolution of so few channels
        return F.linear(x.movedim(1, -1), matrix).movedim(-1, 1)
