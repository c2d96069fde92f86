"""Image quality without a reference: NIQE, BRISQUE, PIQE; lower is better.

All normalize luma by its local mean and deviation: in natural photographs these coefficients, and the products of
neighbors, follow distributions that blur, noise and compression distort. Written from the papers, because the packages
that have them add dependencies and download models; ours are in ``no_reference.safetensors``, and
``no_reference.licences.txt`` has their sources and licenses.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ShapeError
from ..images.color import luma
from ..images.resize import pad_symmetric, shrink

MODELS = Path(__file__).with_suffix(".safetensors")
NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, below, and both diagonals
ROUNDING = 1e-9  # float64 rounding errors of 0 in flat areas stay below this
GAMMA = 0.05  # of the radial basis functions of BRISQUE's regression
NIQE_SIDE = 96  # of NIQE's patches
PIQE_SIDE = 16  # of PIQE's blocks
PIQE_EDGE = 6  # pixels of a segment of a block's edge
PIQE_ACTIVE = 0.1  # variance above which a block counts
PIQE_FLAT = 0.1  # standard deviation below which a segment is flat


def niqe(images: Tensor) -> Tensor:
    """Distance between the statistics of an image's patches and those of 125 pristine photographs.

    ``sqrt((m - m0)^T ((S + S0) / 2)^-1 (m - m0))`` with mean m and covariance S of 36 features over the patches:
    ``(B,)``, float64, on the CPU, about 3 to 5 for good photographs; NaN without two patches that are not flat. Colors
    become luma of 16 to 235, as in the super-resolution literature. Source: Mittal, Soundararajan & Bovik, "Making a
    completely blind image quality analyzer", IEEE SPL 2013.
    """
    gray = (16 + 219 * _luma(images)).round() if images.shape[1:2] == (3,) else _gray(images)
    rows, columns = (side // NIQE_SIDE for side in gray.shape[-2:])
    if rows * columns < 2:
        raise ShapeError(
            f"NIQE compares patches of {NIQE_SIDE}x{NIQE_SIDE} and needs two at least; got {tuple(images.shape)}. "
            "Measure larger images."
        )
    models = _models()
    return torch.stack([_niqe(one, models) for one in gray[..., : rows * NIQE_SIDE, : columns * NIQE_SIDE]])


def brisque(images: Tensor) -> Tensor:
    """Predicted human rating, learned from the LIVE database: 0 for good photographs, 100 for the worst.

    36 features of the image at two sizes, and a support vector regression with radial basis functions: ``sum over k of
    w_k exp(-0.05 |f - s_k|^2) + b``, clamped; ``(B,)``, float64, on the CPU. Source: Mittal, Moorthy & Bovik,
    "No-reference image quality assessment in the spatial domain", IEEE TIP 2012, with the model that OpenCV trained.
    """
    gray = _gray(images)  # (B, 1, H, W)
    if min(images.shape[-2:]) < 16:
        raise ShapeError(f"BRISQUE needs sides of 16 at least; got {tuple(images.shape)}. Measure larger images.")
    # Not antialiased and with a kernel of its own (Keys' cubic with a = -0.75): the model was trained on that.
    half = F.interpolate(gray, [side // 2 for side in gray.shape[-2:]], mode="bicubic", align_corners=False)
    features = torch.cat([_brisque_features(_normalized(x)) for x in (gray, half)], dim=1)  # (B, 36)
    models = _models()
    low, high = models["brisque.range"]
    features = 2 * (features - low) / (high - low) - 1
    distances = (features[:, None] - models["brisque.support"]).square().sum(2)  # (B, 774)
    return ((-GAMMA * distances).exp() @ models["brisque.weight"] + models["brisque.bias"]).clamp(0, 100)


def piqe(images: Tensor) -> Tensor:
    """Share of the structured blocks of an image that are distorted, weighted by how much: 0 to 100, and 100 if flat.

    Of N blocks of 16x16 whose variance v (after normalization) is above 0.1, one with a flat segment on its edge counts
    ``1 - v``, a noisy one counts ``v``: ``100 (1 + sum) / (1 + N)``; ``(B,)``, float64, on the CPU. Source: Venkatanath
    et al., "Blind image quality evaluation using perception based features", NCC 2015, as in MATLAB and ``pypiqe`` 1.2.
    """
    gray = _gray(images)
    height, width = gray.shape[-2:]
    gray = pad_symmetric(gray, (0, -width % PIQE_SIDE, 0, -height % PIQE_SIDE))
    gray = (255 * gray / gray.amax((1, 2, 3), keepdim=True).clamp(min=1)).round()
    blocks = _patches(_normalized(gray), PIQE_SIDE)  # (B, N, 16, 16)
    variance = blocks.flatten(2).var(2)
    edges = torch.stack([blocks[:, :, 0], blocks[:, :, -1], blocks[..., 0], blocks[..., -1]], dim=2)
    flat = (edges.unfold(-1, PIQE_EDGE, 1).std(-1) < PIQE_FLAT).flatten(2).any(2)
    # The two middle columns, 7 and 8 from 0, against the others, which include 8 and lack 9: an error of the published
    # program without which the numbers would not be PIQE.
    middle, others = blocks[..., 7:9], blocks[..., [k for k in range(PIQE_SIDE) if k not in (7, 9)]]
    ratio = (middle.flatten(2).std(2) / others.flatten(2).std(2)).nan_to_num(0)
    deviation = variance.sqrt()
    noisy = deviation > 2 * (deviation - ratio).abs() / torch.maximum(deviation, ratio)
    active = variance > PIQE_ACTIVE
    distortion = torch.where(flat, 1 - variance, 0) + torch.where(noisy, variance, 0)
    return 100 * (1 + torch.where(active, distortion, 0).sum(1)) / (1 + active.sum(1))


def _niqe(gray: Tensor, models: dict[str, Tensor]) -> Tensor:
    """NIQE of one image, (1, H, W) in [0, 255], sides multiples of the patch side."""
    sizes = (gray[None], NIQE_SIDE), (shrink(gray[None], 2), NIQE_SIDE // 2)
    features = torch.cat([_niqe_features(_patches(_normalized(x), side)[0]) for x, side in sizes], dim=1)  # (N, 36)
    valid = features[~features.isnan().any(1)]  # flat patches have no statistics
    if len(valid) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    gap = features.nanmean(0) - models["niqe.mean"]
    spread = (valid.T.cov() + models["niqe.covariance"]) / 2
    return (gap @ torch.linalg.pinv(spread, hermitian=True) @ gap).sqrt()


def _niqe_features(patches: Tensor) -> Tensor:
    """18 features of each patch: (N, H, W) to (N, 18)."""
    shape, left, right = _fit_aggd(patches)
    features = [shape, (left + right) * _aggd_scale(shape) / 2]
    for product in _products(patches, wrap=True):
        shape, left, right = _fit_aggd(product)
        features += [shape, _aggd_mean(shape, left, right), left * _aggd_scale(shape), right * _aggd_scale(shape)]
    return torch.stack(features, dim=1)


def _brisque_features(x: Tensor) -> Tensor:
    """18 features of each image: (B, 1, H, W) to (B, 18)."""
    x = torch.where(x.abs() < ROUNDING, 0, x)[:, 0]  # OpenCV's float32 sees no sign in flat areas
    shape, left, right = _fit_aggd(x)
    features = [shape, (left.square() + right.square()) / 2]
    for product in _products(x, wrap=False):
        shape, left, right = _fit_aggd(product)
        features += [shape, _aggd_mean(shape, left, right), left.square(), right.square()]
    return torch.stack(features, dim=1)


def _products(x: Tensor, *, wrap: bool) -> list[Tensor]:
    """Every pixel times its neighbor, in four directions; beyond the border wrapped around, or 0."""
    products: list[Tensor] = []
    for down, right in NEIGHBORS:
        neighbor = x.roll((down, right), (-2, -1))
        if not wrap:
            neighbor[..., :down, :] = 0
            neighbor[..., slice(right, None) if right < 0 else slice(right)] = 0
        products.append(x * neighbor)
    return products


def _fit_aggd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalized Gaussian distribution by moments: shape, deviations below and above 0, (N,)."""
    x = x.flatten(1)
    square = x.square()
    left, right = ((square * side).sum(1).div(side.sum(1)).sqrt() for side in (x < 0, x > 0))
    ratio = left / right
    moment = x.abs().mean(1).square() / square.mean(1) * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    shapes, moments = _shapes()
    above = torch.searchsorted(moments, moment).clamp(1, len(shapes) - 1)
    nearest = torch.where(moment - moments[above - 1] <= moments[above] - moment, above - 1, above)
    return shapes[torch.where(moment.isnan(), 0, nearest)], left, right


@functools.cache
def _shapes() -> tuple[Tensor, Tensor]:
    """Shapes a from 0.2 to 10 and their increasing moments, Gamma(2/a)^2 / (Gamma(1/a) Gamma(3/a))."""
    shapes = torch.arange(200, 10_001, dtype=torch.float64) / 1000
    return shapes, (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()


def _aggd_scale(shape: Tensor) -> Tensor:
    """Factor from a deviation to the scale parameter."""
    return ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()


def _aggd_mean(shape: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return (right - left) * _aggd_scale(shape) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()


def _normalized(gray: Tensor) -> Tensor:
    """Luma in [0, 255] minus its local mean, over its local deviation plus 1: (B, 1, H, W)."""
    mean = _smoothed(gray)
    deviation = (_smoothed(gray.square()) - mean.square()).clamp(min=0).sqrt()
    return (gray - mean) / (deviation + 1)


def _smoothed(x: Tensor) -> Tensor:
    from kornia.filters import gaussian_blur2d  # a slow import that only measurements need

    return gaussian_blur2d(x, (7, 7), (7 / 6, 7 / 6), border_type="replicate")


def _patches(x: Tensor, side: int) -> Tensor:
    """(B, 1, H, W) to (B, N, side, side)."""
    return x[:, 0].unfold(1, side, side).unfold(2, side, side).flatten(1, 2)


def _luma(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ShapeError(f"Expected images of shape (B, C, H, W), C = 1 or 3; got {tuple(images.shape)}.")
    images = images.detach().cpu().double()
    return luma(images) if images.shape[1] == 3 else images


def _gray(images: Tensor) -> Tensor:
    return (255 * _luma(images)).round()


@functools.cache
def _models() -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in load_file(MODELS).items()}
