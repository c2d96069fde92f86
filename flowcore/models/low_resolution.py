"""The source of SRFlow and SRFlow-DA: an LR image, of which both check shape and sides alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ShapeError
from ..flow import Flow


def check_lr(flow: Flow[Any], lr: Tensor) -> None:
    """Refuse what is no LR image of a flow.

    Args:
        flow: An upscaler.
        lr: Expected to be ``(B, 3, h, w)``, with sides that the flow's levels divide.

    Raises:
        ShapeError: If it is not.
    """
    scale = flow.condition_scale
    multiple = max(1, flow.size_multiple // scale)
    if lr.ndim != 4 or lr.shape[1] != 3:
        raise ShapeError(f"Expected an RGB source of shape (B, 3, h, w); got {tuple(lr.shape)}.")
    if min(lr.shape[-2:]) < 1 or lr.shape[-2] % multiple or lr.shape[-1] % multiple:
        raise ShapeError(
            f"{flow.architecture} {scale}x needs sides divisible by {multiple} here; got {lr.shape[-2]}x"
            f"{lr.shape[-1]}. Use flowcore.upscale, which pads for you."
        )
