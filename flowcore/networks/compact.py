"""A plain upscaler: convolutions on the LR grid, local and small, whose enlargement may guide a flow."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .lr_encoder import conv3x3


class CompactUpscaler(nn.Module):
    """3x3 convolutions, each but the last followed by a PReLU of every channel, then pixel shuffle.

    They add to the image, enlarged by repeating its pixels. Nothing is global: an output pixel sees as many LR pixels
    around it as there are convolutions.

    Source: the compact network of Wang, Xie, Dong, Shan, "Real-ESRGAN" (2021), in its repository's release 0.2.5.
    """

    def __init__(self, scale: int, layers: int, width: int) -> None:
        super().__init__()
        self.scale, self.width = scale, width
        widths = [3, *[width] * (layers - 1), 3 * scale**2]
        self.convs = nn.ModuleList(conv3x3(*pair) for pair in pairwise(widths))
        self.activations = nn.ModuleList(nn.PReLU(width) for _ in range(layers - 1))

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge images ``(B, 3, h, w)`` in [0, 1] to ``(B, 3, scale * h, scale * w)``, not clamped."""
        x = lr
        for conv, activation in zip(self.convs, self.activations, strict=False):
            x = activation(conv(x))
        return F.pixel_shuffle(self.convs[-1](x), self.scale) + enlarge_nearest(lr, self.scale)


def enlarge_nearest(lr: Tensor, scale: int) -> Tensor:
    """Enlarge images by repeating their pixels."""
    return F.interpolate(lr, scale_factor=scale, mode="nearest")
