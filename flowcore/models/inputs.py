"""Validation of what conditions are encoded from: images and labels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConditionError, ShapeError
from ..flows.model import FlowModel

LR = "an RGB source of shape (B, 3, h, w)"


def check_source(flow: FlowModel[Any], source: Tensor, channels: tuple[int, ...], expected: str, multiple: int) -> None:
    """Raise ShapeError unless a source is ``(B, C, H, W)``, C in ``channels``, with sides divisible by ``multiple``."""
    if source.ndim != 4 or source.shape[1] not in channels:
        raise ShapeError(f"Expected {expected}; got {tuple(source.shape)}.")
    height, width = source.shape[-2:]
    if min(height, width) < 1 or height % multiple or width % multiple:
        (task,) = flow.capabilities.tasks  # models with such sources are made for one
        raise ShapeError(
            f"This {flow.architecture} model needs sides divisible by {multiple} here; got {height}x{width}. Use "
            f"flowcore.{task}, which pads for you."
        )


def check_lr(flow: FlowModel[Any], lr: Tensor) -> None:
    """Raise ShapeError unless an upscaler's source is an LR image, ``(B, 3, h, w)``, with sides that fit."""
    check_source(flow, lr, (3,), LR, max(1, flow.size_multiple // flow.condition_scale))


def label_weights(labels: Tensor, classes: int) -> Tensor:
    """Convert labels ``(B,)`` to one-hot weights ``(B, K)``; weights stay; ConditionError for anything else."""
    if labels.ndim == 2 and labels.shape[1] == classes:
        return labels if labels.is_floating_point() else labels.float()
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConditionError(
            f"Expected labels as whole numbers of shape (B,), or as weights of shape (B, {classes}); got "
            f"{tuple(labels.shape)} {labels.dtype}."
        )
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise ConditionError(
            "This model knows the labels 0 to {most}; got {label}.", most=classes - 1, label=int(unknown[0])
        )
    return F.one_hot(labels.long(), classes).float()
