"""How far an image is from an original in the features of the colorizer's EfficientNet."""

from functools import cache
from itertools import islice

from torch import Tensor
from torch.nn.functional import normalize

from ...errors import ShapeError
from ...images.color import luma
from ...models import catalog, load
from ...models.colorizer.efficientnet import EfficientNetLite0

COLORIZER = "color-photos"  # the shipped model that has the network
MEASURED = (0, 1, 2, 3, 5)  # indices of ``EfficientNetLite0.outputs``: the stem, and stages at strides 2, 4, 8 and 16
MIN_SIDE = 16


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """Compare luma by deep features, on the CPU: 0 for equal images ``(B, C, H, W)`` in [0, 1], ``(B,)``.

    For each of five layers of EfficientNet-Lite0, ``mean over positions of |n(f(a)) - n(f(b))|^2``, where n scales the
    channels of a position to length 1; summed over the layers. Not LPIPS, whose weights of channels are learned.
    ShapeError for sides below 16.

    >>> picture = torch.rand(1, 3, 64, 64)
    >>> feature_distance(picture, picture)
    tensor([0.])

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018), equation 1
    with all weights 1; the network is that of Tan & Le (2019), see ``EfficientNetLite0``.
    """
    if min(a.shape[-2:]) < MIN_SIDE or a.shape[-2:] != b.shape[-2:]:
        raise ShapeError(
            f"The feature distance needs two images of one size, {MIN_SIDE}x{MIN_SIDE} at least; got {tuple(a.shape)} "
            f"and {tuple(b.shape)}."
        )
    layers = zip(_features(a), _features(b), strict=True)
    return sum((f - g).square().sum(1).mean((1, 2)) for f, g in layers) + a.new_zeros(len(a), device="cpu")


def _features(x: Tensor) -> list[Tensor]:
    outputs = list(islice(_network().outputs(luma(x.cpu().float())), MEASURED[-1] + 1))
    return [normalize(outputs[layer], dim=1) for layer in MEASURED]


@cache
def _network() -> EfficientNetLite0:
    backbone = load(catalog.path(COLORIZER)).get_submodule("encoder.backbone")
    assert isinstance(backbone, EfficientNetLite0)
    return backbone.eval().requires_grad_(False)
