"""Level: what a flow does at one resolution, on one grid of positions."""

from collections.abc import Sequence

from torch import nn

from .prior import Shape
from .transforms import Chain, Split, Squeeze, Transform


class Details(nn.Module):
    """What becomes of the channels that a level factors out, given all that the coarser levels hold.

    Unlike the prior of a split it runs when all levels are encoded, from the deepest up. ``extractor`` goes from the
    kept channels ``(B, K, H, W)`` and a list of the features of all deeper levels, the next one first, to features
    ``(B, F, H, W)``; the transform of the channels factored out is conditioned on them.

    Source: Liang et al., "Hierarchical Conditional Flow" (2021), section 3.
    """

    def __init__(self, extractor: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.extractor, self.transform = extractor, transform


class Level(nn.Module):
    """What a flow does at one resolution: squeeze, steps, and a split unless all channels continue.

    ``squeeze`` None is a ``Squeeze()``; an empty ``Chain()`` keeps the grid. ``downscale`` is the factor by which
    squeeze and steps together reduce the sides: 2, 1, or 0 for a reduction to a single position. What the split
    factors out is latents already, unless ``details`` make latents of it.
    """

    def __init__(
        self,
        steps: Sequence[Transform],
        split: Split | None,
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
