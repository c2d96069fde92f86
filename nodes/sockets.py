"""What travels along the wires: our own types, and the host's IMAGE at the border."""

from __future__ import annotations

import torch

from ..flowcore import ImageError
from .host import hand_over, io

# A flow in the host's care: the host's ModelPatcher, whose `.model` is a flowcore.Flow.
FlowModel = io.Custom("FLOW_MODEL")


def from_image(image: torch.Tensor) -> torch.Tensor:
    """Take an IMAGE of the host.

    Args:
        image: (B, H, W, C) in any dtype, on any device.

    Returns:
        (B, C, H, W) float32, on the same device.

    Raises:
        ImageError: It does not have four dimensions.
    """
    if image.ndim != 4:
        raise ImageError(
            f"expected an IMAGE of shape (batch, height, width, channels); got {tuple(image.shape)}. "
            "For a video, pass its frames as a batch."
        )
    return image.to(torch.float32).permute(0, 3, 1, 2).contiguous()


def to_image(pixels: torch.Tensor) -> torch.Tensor:
    """Make an IMAGE of the host.

    Args:
        pixels: (B, C, H, W) in [0, 1].

    Returns:
        (B, H, W, C), on the device and in the dtype in which the host passes images on.
    """
    return hand_over(pixels.permute(0, 2, 3, 1)).contiguous()
