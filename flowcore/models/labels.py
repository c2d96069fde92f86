"""Labels as the condition of a flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConditionError


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
