"""Level: what a flow does at one resolution; with the transform of HCFlow's details."""

from collections.abc import Sequence

from torch import nn

from .prior import Shape
from .transforms import Chain, Split, Squeeze, Transform


class Details(nn.Module):
    """HCFlow's transform of the channels that a level factors out, conditioned on the deeper levels.

    Unlike the prior of a split it runs once all levels are encoded, from the deepest up. ``extractor`` takes the
    channels that continue, ``(B, K, H, W)``, and a list of the features of all deeper levels, the next one first, and
    returns features ``(B, F, H, W)``, on which the transform is conditioned.

    Source: Liang et al., "Hierarchical Conditional Flow" (2021), section 3.
    """

    def __init__(self, extractor: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.extractor, self.transform = extractor, transform


class Level(nn.Module):
    """What a flow does at one resolution: squeeze, steps, and a split unless all channels continue.

    The default ``squeeze`` is ``Squeeze()``; an empty ``Chain()`` keeps the grid. ``downscale`` is the factor by which
    squeeze and steps together reduce the sides, 1 or 2; 0 stands for a reduction to a single position. The channels
    that the split factors out are the latents, unless ``details`` transform them further.
    """

    def __init__(
        self,
        steps: Sequence[Transform],
        split: Split | None = None,
        *,
        squeeze: Transform | None = None,
        downscale: int = 2,
        details: Details | None = None,
    ) -> None:
        super().__init__()
        self.squeeze = Squeeze() if squeeze is None else squeeze
        self.steps = Chain(*steps)
        self.split, self.downscale, self.details = split, downscale, details

    def shape(self, channels: int, height: int, width: int) -> Shape:
        """Compute channels and sides after squeeze and steps."""
        if self.downscale == 0:
            return channels * height * width, 1, 1
        return channels * self.downscale**2, height // self.downscale, width // self.downscale
