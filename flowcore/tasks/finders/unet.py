"""A small U-Net of luma that marks scratches and dust."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (12, 18, 24, 30, 30)  # channels of each grid, from full size down
DECODED = (2, 2, 1, 1)  # convolutions on the way up, of each grid but the coarsest
MULTIPLE = 2 ** (len(WIDTHS) - 1)  # sides are multiples of it
REACH = 96  # pixels that a detection depends on; farther ones have next to no influence


class UNet(nn.Module):
    """A network of 3x3 convolutions on five grids, each of half the size, with skips between the way down and up.

    Source: Ronneberger et al., "U-Net: Convolutional networks for biomedical image segmentation" (2015).
    """

    def __init__(self) -> None:
        """Build the network; ``load_state_dict`` fills in its weights."""
        super().__init__()
        self.down = nn.ModuleList(_convolutions(i, o, 2) for i, o in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        pairs = zip(WIDTHS[:-1], WIDTHS[1:], DECODED, strict=True)
        self.up = nn.ModuleList(_convolutions(fine + coarse, fine, count) for fine, coarse, count in pairs)
        self.score = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, y: Tensor) -> Tensor:
        """Return logits of damage ``(B, 1, H, W)`` for luma ``(B, 1, H, W)`` in [0, 1]; sides are multiples of 16."""
        x = (y - 0.5) * 4
        features: list[Tensor] = []
        for number, block in enumerate(self.down):
            features.append(x := block(F.avg_pool2d(x, 2) if number else x))
        for block, fine in zip(reversed(self.up), reversed(features[:-1]), strict=True):
            x = block(torch.cat([fine, F.interpolate(x, scale_factor=2.0, mode="bilinear")], 1))
        return self.score(x)


def _convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [
            nn.Conv2d(inputs if number == 0 else outputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
        ]
    return nn.Sequential(*layers)
