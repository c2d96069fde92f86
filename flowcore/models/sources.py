"""What conditions are encoded from: images, which are checked, and labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConditionError, ShapeError
from ..flow import Flow

LR = "an RGB source of shape (B, 3, h, w)"


def check_source(flow: Flow[Any], source: Tensor, channels: tuple[int, ...], expected: str, multiple: int) -> None:
    """Refuse what is no image for the condition of a flow.

    Args:
        flow: The flow.
        source: Expected to be ``(B, C, H, W)``.
        channels: What C may be.
        expected: What the error says is expected.
        multiple: Divisor of H and W.

    Raises:
        ShapeError: If it is not.
    """
    if source.ndim != 4 or source.shape[1] not in channels:
        raise ShapeError(f"Expected {expected}; got {tuple(source.shape)}.")
    height, width = source.shape[-2:]
    if min(height, width) < 1 or height % multiple or width % multiple:
        (task,) = flow.capabilities.tasks
        raise ShapeError(
            f"This {flow.architecture} model needs sides divisible by {multiple} here; got {height}x{width}. Use "
            f"flowcore.{task}, which pads for you."
        )


def check_lr(flow: Flow[Any], lr: Tensor) -> None:
    """Refuse what is no LR image, ``(B, 3, h, w)``, of an upscaler; errors as in ``check_source``."""
    check_source(flow, lr, (3,), LR, max(1, flow.size_multiple // flow.condition_scale))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Convert labels to weights of classes.

    Args:
        labels: Whole numbers in [0, classes), ``(B,)``; or weights already, ``(B, classes)``, returned unchanged.
        classes: K.

    Returns:
        ``(B, K)``, float.

    Raises:
        ConditionError: If they are neither.
    """
    if labels.ndim == 2 and labels.shape[1] == classes:
        return labels if labels.is_floating_point() else labels.float()
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConditionError(
            f"Expected labels as whole numbers of shape (B,), or as weights of shape (B, {classes}); got "
            f"{tuple(labels.shape)} {labels.dtype}."
        )
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise ConditionError(f"This model knows the labels 0 to {classes - 1}; got {int(unknown[0])}.")
    return F.one_hot(labels.long(), classes).float()
