"""Even out a brightened picture: tone curves that change slowly across the photograph, and its colors."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import or_on_cpu
from .color import compress, luma, split

BINS = 48  # bins of luma
DARKEST = 0.01  # luma below which the logarithm turns linear
GLOBAL = 0.4  # weight of the whole photograph's histogram in each cell's
SMOOTHING = 0.05  # standard deviation of the window, along luma in [0, 1], in which curves are smoothed
STEEPEST = 1.6  # slope of curves, so that noise in the darkest places stays small
MAX_CELLS = 64  # cells along the longer side of the grid
MIN_CELL = 32  # pixels along the longer side of a cell
REACH = 4  # pixels on each side of a neighborhood
FLAT = 3e-4  # variance of the picture's luma below which a neighborhood is averaged
NOISE_BINS, NOISE_QUANTILE = 16, 0.25  # bins of luma, and the quantile of local variance in each that counts as noise
LIT, KEPT = (0.3, 0.75), 0.7  # luma of the photograph that begins to be, and is, lit well; share of it that stays
LIGHT, BRIGHTEST = (0.65, 0.9), 0.99  # luma from which a photograph has such places, of its brightest pixels; quantile
BLACK = 4 / 255  # luma of the photograph whose gain is halved, since it may be nothing but rounding
DIM, WIDE, PALE = 12 / 255, 40, 0.7  # luma where half of the chroma is an average of so many pixels; its strength
STEP = 1 / 255  # an 8-bit step
CHROMA_ERROR = 0.3 / 255  # error of averaged chroma, from rounding and JPEG
TRUSTED = 30.0  # luma over the error of chroma at which half of the color is the photograph's
MEASURED = 2**16  # pixels that histograms are made of, at least, if there are as many


def bilateral_gain(photograph: Tensor, picture: Tensor, cells: int) -> Tensor:
    """Recompute the luma of a brightened ``picture`` by a bilateral grid of its photograph, without ghosts and halos.

    With u the logarithm of the photograph's luma, denoised along the picture's, and p a place, the luma is grid(u, p),
    trilinear. Each cell of the grid, of at least 32 pixels, is a monotone tone curve, which matches the histogram of
    the photograph's luma near it to that of the picture's. Where noise hides the photograph's detail, the picture's is
    added. Places that are lit well stay nearly as they are, and black stays black. Chroma relative to luma is the
    photograph's, or where noise hides that, the picture's.

    Source: Chen, Adams, Wadhwa & Hasinoff, "Bilateral guided upsampling" (SIGGRAPH Asia 2016), for the grid; He, Sun &
    Tang, "Guided Image Filtering" (2013), for the denoising. Curves by histograms instead of least squares are ours.

    Args:
        photograph: ``(1, 3, H, W)`` in [0, 1].
        picture: As large, what a model made of it.
        cells: Along the longer side, at least 1.
    """
    brightened = _to_log(luma(picture))
    u, hidden = _denoise(_to_log(luma(photograph)), brightened)
    height, width = u.shape[-2:]
    cells = min(cells, max(height, width) // MIN_CELL)
    grid_size = [max(1, round(cells * side / max(height, width))) for side in (height, width)]
    grid = _curves(_histograms(u, grid_size), _histograms(brightened, grid_size))  # (BINS, rows, columns)
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n).to(u) for n in (height, width))  # centers of pixels in [-1, 1]
    places = torch.stack(torch.broadcast_tensors(x, y[:, None], (2 * u[0, 0] - 1)), dim=-1)  # (H, W, 3)
    read = partial(F.grid_sample, padding_mode="border", align_corners=False)
    lit = or_on_cpu(read, grid[None, None], places[None, None])[:, 0]
    lit = lit + hidden * (brightened - _guided_filter(brightened, brightened))
    lit, dark = _from_log(lit), _from_log(u)
    lit = _spare_lit(luma(photograph), lit) * dark.square() / (dark.square() + BLACK**2)
    return compress(lit, lit * _relative_chroma(photograph, picture))


def _spare_lit(y: Tensor, lit: Tensor) -> Tensor:
    """Keep places that are lit well already, by the photograph's luma, nearly as they are."""
    step = _subsampling(y)
    brightest = y[..., ::step, ::step].flatten().quantile(BRIGHTEST)  # if it is dark, too, all is lifted
    kept = KEPT * _smooth_step(brightest, *LIGHT) * _smooth_step(y, *LIT)
    return lit.lerp(torch.maximum(y, torch.minimum(lit, y)), kept)


def _smooth_step(x: Tensor, low: float, high: float) -> Tensor:
    share = ((x - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _relative_chroma(photograph: Tensor, picture: Tensor) -> Tensor:
    """Find chroma divided by luma ``(1, 2, H, W)``: the photograph's where noise lets it be seen, else the picture's.

    More light scales all channels alike, gamma curve included, so it is the same in the photograph and in the result.
    """
    y, chroma = split(photograph)
    u = _to_log(y)
    detail = chroma - _mean(chroma)
    noise, hidden = _noise(detail, _mean(u))
    smooth = torch.cat([_guided_filter(plane, u) for plane in chroma.split(1, 1)], 1)
    seen = smooth + (1 - hidden) * (chroma - smooth)
    error = noise / (REACH + 0.5) ** 2 + CHROMA_ERROR**2  # variance of what is left after smoothing
    trust = y.square() / (y.square() + TRUSTED**2 * error)
    y_made, made = split(picture)
    drawn = torch.cat([_guided_filter(plane, u) for plane in (made / y_made.clamp_min(STEP)).split(1, 1)], 1)
    relative = trust * seen / y.clamp_min(STEP) + (1 - trust) * drawn
    # in the dark it varies with the blocks of JPEG, so it is averaged over many, among dark places only
    dim = DIM**2 / (_mean(y).square() + DIM**2)
    return relative.lerp(PALE * _mean(dim * relative, WIDE) / _mean(dim, WIDE).clamp_min(1e-6), dim)


def _noise(detail: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate the noise in the fine detail ``(1, C, H, W)`` of a photograph from where it is weakest at each luma.

    Returns:
        The variance of noise at each place, and the share of the local variance that is noise, ``(1, 1, H, W)``.
    """
    variance = _mean(detail.square()).sum(1, keepdim=True)
    bins = (u * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    noise, step = variance.new_zeros(NOISE_BINS), _subsampling(u)
    measured, measured_bins = variance[..., ::step, ::step], bins[..., ::step, ::step]
    for number in measured_bins.unique().tolist():
        noise[number] = measured[measured_bins == number].quantile(NOISE_QUANTILE)
    return noise[bins], (noise[bins] / variance.clamp_min(1e-9)).clamp(max=1)


def _to_log(y: Tensor) -> Tensor:
    return torch.log1p(y / DARKEST) / math.log1p(1 / DARKEST)


def _from_log(u: Tensor) -> Tensor:
    return DARKEST * torch.expm1(u * math.log1p(1 / DARKEST)).clamp(0, 1 / DARKEST)


def _mean(x: Tensor, reach: int = REACH) -> Tensor:
    reach = min(reach, min(x.shape[-2:]) // 2)
    side = 2 * reach + 1
    rows = F.avg_pool2d(x, (side, 1), 1, (reach, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, reach), count_include_pad=False)


def _subsampling(x: Tensor) -> int:
    return max(1, math.isqrt(x.shape[-2] * x.shape[-1] // MEASURED))


def _guided_filter(u: Tensor, guide: Tensor) -> Tensor:
    """Smooth a log-luma, but for the edges of its guide."""
    mean, middle = _mean(u), _mean(guide)
    slope = (_mean(u * guide) - mean * middle) / ((_mean(guide.square()) - middle.square()).clamp_min(0) + FLAT)
    return _mean(slope) * guide + _mean(mean - slope * middle)


def _denoise(u: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Remove from a log-luma the detail that its guide lacks, as far as it is noise.

    Returns:
        The log-luma, and the share of its detail that was removed at each place, in [0, 1], both ``(1, 1, H, W)``.
    """
    smooth = _guided_filter(u, guide)
    _, removed = _noise(u - smooth, smooth)
    return (smooth + (1 - removed) * (u - smooth)).clamp(0, 1), removed


def _histograms(u: Tensor, grid_size: list[int]) -> Tensor:
    """Blend the histogram of 2x2 cells around each cell with the whole's: shares ``(BINS, rows, columns)``."""
    step, (rows, columns) = _subsampling(u), grid_size
    values = u[0, 0, ::step, ::step]
    y, x = (torch.arange(n, device=u.device) * 2 * cells // n for n, cells in zip(values.shape, grid_size, strict=True))
    place = (y[:, None] * 2 * columns + x) * BINS + (values * BINS).long().clamp(0, BINS - 1)
    counts = torch.bincount(place.flatten(), minlength=4 * rows * columns * BINS).to(u)
    counts = counts.view(2 * rows, 2 * columns, BINS).permute(2, 0, 1)
    near = F.avg_pool2d(F.pad(counts[None], (1, 1, 1, 1), mode="replicate"), 4, 2)[0]
    whole = near.sum((1, 2), keepdim=True)
    near = near / near.sum(0).clamp_min(1e-9)
    return (near + GLOBAL * whole / whole.sum()) / (1 + GLOBAL)


def _curves(shares: Tensor, wanted: Tensor) -> Tensor:
    """Fit a monotone curve per cell that maps one histogram to the other; values at the centers of bins."""
    shape = shares.shape
    shares, wanted = (each.flatten(1).T.contiguous() for each in (shares, wanted))  # (cells, BINS)
    edges = F.pad(wanted.cumsum(1), (1, 0)) + torch.linspace(0, 1e-4, BINS + 1).to(wanted)  # increasing
    edges = edges / edges[:, -1:]  # cumulative distribution of the target
    ranks = shares.cumsum(1) - shares / 2  # ranks of the photograph, at the centers of bins
    above = torch.searchsorted(edges, ranks).clamp(1, BINS)
    low, high = edges.gather(1, above - 1), edges.gather(1, above)
    v = (above - 1 + (ranks - low) / (high - low).clamp_min(1e-9)) / BINS
    u = (torch.arange(BINS).to(v) + 0.5) / BINS
    window = torch.exp(-0.5 * ((u[:, None] - u) / SMOOTHING).square())  # local lines, by weighted least squares
    weight = shares + 1e-4
    total, first, second = weight @ window, (weight * u) @ window, (weight * u * u) @ window
    sums, products = (weight * v) @ window, (weight * v * u) @ window
    slope = (total * products - first * sums) / (total * second - first.square() + 1e-6 * total.square())
    slope = slope.clamp(0, STEEPEST)
    return ((sums - slope * first) / total + slope * u).cummax(1).values.T.reshape(shape)
