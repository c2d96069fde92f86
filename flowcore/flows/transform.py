"""The interface of every bijection, and the law that all of them obey.

The law
-------
``forward(x, cond) -> (z, logdet)`` maps data to latent. ``inverse(z, cond) -> x`` maps back and returns the data only.
``logdet`` is ``log|det dz/dx|``, in nats, summed over dimensions, shape ``(B,)``, float32 or wider; it does not include
the log density of the latents. Neither method changes its arguments, its module or global state. There is no
``reverse=`` flag, and the sign of logdet is the same throughout the package.

``cond`` is what the transform is conditioned on: a ``LevelCondition``, of which it reads the fields it needs, or None.
``forward_with_logdet_map`` is ``forward`` with the logdet resolved by pixel, for score maps.

``initialize(x, cond) -> z`` is the only method that sets parameters from data (actnorm's first batch). Training calls
it once; sampling, loading and ``forward`` never do.

Parameters, latents, logdets and every ``exp`` are computed in float32 or wider. Under ``torch.autocast`` only
conditioners and encoders drop to bfloat16 or float16; their output is cast back before it reaches an ``exp``.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self, TypeVar

from ..device import require_full_precision
from ..errors import FlowError, ShapeError
from .level_condition import LevelCondition

T = TypeVar("T")
Latent = TypeVar("Latent", default=Tensor)  # what forward returns first
Cond = TypeVar("Cond", default=LevelCondition)  # given with ``Latent`` or not at all: old typing_extensions require it


class NoLogdetMapError(FlowError):
    """A transform does not say which positions its log-determinant comes from."""


class Transform(nn.Module, Generic[Latent, Cond]):
    """A bijection with a known log-determinant; subclasses state their formulas and obey the law of this module.

    Data and latents are ``(B, C, H, W)`` unless a subclass says otherwise: a ``Split`` has a pair of latents, a
    ``Flow`` a list. A subclass defines ``inverse``, and one of ``forward_with_logdet_map``, from which ``forward``
    follows, and ``forward``, from which ``forward_with_logdet_map`` follows if ``uniform_logdet``; or both.

    Attributes:
        uniform_logdet: Whether every position contributes the same to the logdet, whatever data and condition, as in
            actnorms, 1x1 convolutions and permutations. ``forward`` is then all that ``forward_with_logdet_map`` needs.
    """

    uniform_logdet = False

    def forward(self, x: Tensor, cond: Cond | None = None) -> tuple[Latent, Tensor]:
        """Map data to latent; unless overridden, by ``forward_with_logdet_map``, summed.

        Args:
            x: Data, ``(B, C, H, W)``.
            cond: What the transform is conditioned on; the subclass says which fields it reads. A ``Flow`` takes a
                ``Condition``.

        Returns:
            The latent, and ``log|det dz/dx|`` in nats, ``(B,)``.
        """
        z, logdet_map = self.forward_with_logdet_map(x, cond)
        return z, logdet_map.sum((1, 2))

    if TYPE_CHECKING:  # ``nn.Module`` types calls as Any

        def __call__(self, x: Tensor, cond: Cond | None = None) -> tuple[Latent, Tensor]: ...

    def inverse(self, z: Latent, cond: Cond | None = None) -> Tensor:
        """Map latent to data.

        Args:
            z: What ``forward`` returned first.
            cond: The same condition as in ``forward``.

        Returns:
            The data, ``(B, C, H, W)``.
        """
        raise NotImplementedError

    def initialize(self, x: Tensor, cond: Cond | None = None) -> Latent:
        """Initialize data-dependent parameters from the first batch, and return that batch's latent."""
        return self.encode(x, cond)

    def problem(self) -> tuple[str, str] | None:
        """Name a tensor whose values leave the transform without an inverse, and say why; files are refused for it."""
        return None

    def encode(self, x: Tensor, cond: Cond | None = None) -> Latent:
        """Map data to latent only, ``forward(x, cond)[0]``: much faster where the log-determinant is costly."""
        return self.forward(x, cond)[0]

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Compute the shape of the latent of one item, ``(C, H, W)``, from that of its data."""
        return shape

    def forward_with_logdet_map(self, x: Tensor, cond: Cond | None = None) -> tuple[Latent, Tensor]:
        """Map data to latent, with the log-determinant resolved by position.

        Returns:
            The latent, and each position's share of the logdet, ``(B, H, W)``: by default spread evenly, which requires
            ``uniform_logdet``.

        Raises:
            NoLogdetMapError: If ``uniform_logdet`` is False, and the subclass does not define this method.
        """
        if not self.uniform_logdet:
            raise NoLogdetMapError(
                f"{type(self).__name__} does not say which positions its log-determinant comes from, so there is no "
                "map. Define forward_with_logdet_map; or set uniform_logdet = True if every position contributes the "
                "same, whatever the data and the condition."
            )
        z, logdet = self.forward(x, cond)
        return z, spread(logdet[:, None, None], x.shape[-2], x.shape[-1])

    # ``half`` and ``bfloat16`` of nn.Module do not call ``to``; these do, and so raise its PrecisionError

    def half(self) -> Self:
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        return self.to(torch.bfloat16)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or widen like ``torch.nn.Module.to``.

        Raises:
            PrecisionError: For a precision in which a flow is not invertible.
        """
        for argument in (*args, *kwargs.values()):
            dtype = argument.dtype if isinstance(argument, Tensor) else argument
            if isinstance(dtype, torch.dtype):
                require_full_precision(dtype)
        return super().to(*args, **kwargs)


def require_channels(x: Tensor, channels: int, name: str) -> None:
    """Raise ShapeError unless data are ``(B, channels, H, W)``; a wrong count might silently broadcast."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ShapeError(f"{name} takes data of shape (B, {channels}, H, W); got {tuple(x.shape)}.")


def spread(logdet_map: Tensor, height: int, width: int) -> Tensor:
    """Resample a map ``(B, h, w)``, keeping its sum: values are divided evenly among pixels, or blocks summed."""
    if logdet_map.shape[-2] > height or logdet_map.shape[-1] > width:  # an ``Unsqueeze`` made it larger
        blocks = logdet_map.unflatten(-1, (width, -1)).unflatten(-3, (height, -1))  # (B, height, rows, width, columns)
        return blocks.sum((-3, -1))
    rows, columns = height // logdet_map.shape[-2], width // logdet_map.shape[-1]
    return (logdet_map / (rows * columns)).repeat_interleave(rows, -2).repeat_interleave(columns, -1)


class Chain(Transform):
    """Several transforms, one after the other, in the data-to-latent direction; all get the same condition.

    Forward: ``z = f_n(...f_1(x))``; logdet: the sum of the parts' logdets; inverse: their inverses in reverse order.
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def parts(self) -> list[Transform]:
        """List the transforms in the data-to-latent direction."""
        return list(self.transforms)  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        logdet = x.new_zeros(x.shape[0])
        for part in self.parts():
            x, part_logdet = part(x, cond)
            logdet = logdet + part_logdet
        return x, logdet

    def inverse(self, z: Tensor, cond: LevelCondition | None = None) -> Tensor:
        for part in reversed(self.parts()):
            z = part.inverse(z, cond)
        return z

    def encode(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        for part in self.parts():
            x = part.encode(x, cond)
        return x

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        for part in self.parts():
            shape = part.output_shape(shape)
        return shape

    def forward_with_logdet_map(self, x: Tensor, cond: LevelCondition | None = None) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        total = x.new_zeros(x.shape[0], height, width)
        for part in self.parts():
            x, logdet_map = part.forward_with_logdet_map(x, cond)  # the map has the grid of this part's input
            total = total + spread(logdet_map, height, width)
        return x, total

    def initialize(self, x: Tensor, cond: LevelCondition | None = None) -> Tensor:
        for part in self.parts():
            x = part.initialize(x, cond)
        return x


def flat_parts(transform: Transform) -> list[Transform]:
    """List the parts of a transform in the data-to-latent direction, with nested chains flattened."""
    if not isinstance(transform, Chain):
        return [transform]
    return [flat for part in transform.parts() for flat in flat_parts(part)]


def map_tensors(change: Callable[[Tensor], Tensor], value: T) -> T:
    """Apply a function to every tensor in nested lists, tuples and dataclasses; all else stays."""
    if isinstance(value, Tensor):
        return cast("T", change(value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(change, part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: map_tensors(change, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def tensors(value: object) -> list[Tensor]:
    """List the tensors in nested lists, tuples and dataclasses."""
    result: list[Tensor] = []
    map_tensors(lambda t: result.append(t) or t, value)
    return result
