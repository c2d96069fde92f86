"""The gain of a brightened picture, made a function of luma that changes slowly across the photograph."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .color import compress, luma, split

BINS = 48  # of luma
DARKEST = 0.01  # luma below which the logarithm turns linear
GLOBAL = 0.4  # weight of the whole photograph's histogram in each cell's
SMOOTHING = 0.05  # of curves: deviation of the window along luma, whose range is 1
STEEPEST = 2.0  # slope of curves, so that noise in the darkest places stays small
FLAT = 3e-4  # variance of the picture's luma below which a neighborhood is averaged
CELL = 32  # pixels along the longer side of a cell, at least
NEARBY = 4  # pixels on each side of a neighborhood
CALM = 0.25  # quantile of local variance, at each luma, that counts as noise
DOUBT = 1.5  # times the noise: local variance up to which nothing of the photograph's own detail is kept
NOISE_BINS = 16
MEASURED = 2**16  # pixels that histograms are made of, at least, where there are as many


def even_gain(photograph: Tensor, picture: Tensor, cells: int) -> Tensor:
    """Replace the light of a brightened ``picture`` by a bilateral grid's of its photograph: no ghosts, no halos.

    With u the logarithm of the photograph's luma, denoised along the picture's, and p a place, the luma is grid(u, p),
    trilinear. Each cell of the grid, of at least 32 pixels, is the monotone curve that gives the luma of the
    photograph, nearby, the histogram of the picture's. Where noise hides the photograph's detail, the picture's is
    added. The picture's chroma stays, and falls where its luma does.

    Source: Chen, Adams, Wadhwa & Hasinoff, "Bilateral guided upsampling" (SIGGRAPH Asia 2016), for the grid; He, Sun &
    Tang, "Guided Image Filtering" (2013), for the denoising. Curves by histograms instead of least squares are ours.

    Args:
        photograph: ``(1, 3, H, W)`` in [0, 1].
        picture: As large, what a model made of it.
        cells: Along the longer side, at least 1.
    """
    drawn = _to_log(luma(picture))
    u, hidden = _denoise(_to_log(luma(photograph)), drawn)
    height, width = u.shape[-2:]
    cells = min(cells, max(height, width) // CELL)
    across = [max(1, round(cells * side / max(height, width))) for side in (height, width)]
    grid = _curves(_histograms(u, across), _histograms(drawn, across))  # (BINS, rows, columns)
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n).to(u) for n in (height, width))
    places = torch.stack(torch.broadcast_tensors(x, y[:, None], (2 * u[0, 0] - 1)), dim=-1)  # (H, W, 3)
    lit = F.grid_sample(grid[None, None], places[None, None], padding_mode="border", align_corners=False)[:, 0]
    lit = lit + hidden * (drawn - _follow(drawn, drawn))
    lit = DARKEST * torch.expm1(lit * math.log1p(1 / DARKEST)).clamp(0, 1 / DARKEST)
    y, chroma = split(picture)
    return compress(lit, chroma * (lit / y.clamp_min(1 / 255)).clamp(max=1))


def _to_log(y: Tensor) -> Tensor:
    return torch.log1p(y / DARKEST) / math.log1p(1 / DARKEST)


def _mean(x: Tensor) -> Tensor:
    side = 2 * NEARBY + 1
    rows = F.avg_pool2d(x, (side, 1), 1, (NEARBY, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, NEARBY), count_include_pad=False)


def _stride(x: Tensor) -> int:
    return max(1, math.isqrt(x.shape[-2] * x.shape[-1] // MEASURED))


def _follow(u: Tensor, guide: Tensor) -> Tensor:
    """Keep of a log-luma what its guide shows: a guided filter."""
    mean, middle = _mean(u), _mean(guide)
    slope = (_mean(u * guide) - mean * middle) / ((_mean(guide.square()) - middle.square()).clamp_min(0) + FLAT)
    return _mean(slope) * guide + _mean(mean - slope * middle)


def _denoise(u: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Keep of a log-luma what its guide shows, and what exceeds the noise of places as bright; return what share not.

    Returns:
        The log-luma, and the share in [0, 1] of its own detail that was removed at each place, both ``(1, 1, H, W)``.
    """
    shown = _follow(u, guide)
    rest = u - shown
    variance = _mean(rest.square())
    bins = (shown * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    noise, step = variance.new_zeros(NOISE_BINS), _stride(u)
    some, their = variance[..., ::step, ::step], bins[..., ::step, ::step]
    for number in their.unique().tolist():
        noise[number] = some[their == number].quantile(CALM)
    removed = (DOUBT * noise[bins] / variance.clamp_min(1e-9)).clamp(max=1)
    return (shown + (1 - removed) * rest).clamp(0, 1), removed


def _histograms(u: Tensor, across: list[int]) -> Tensor:
    """Count values around each cell, in windows of two cells, and in the whole: shares ``(BINS, rows, columns)``."""
    step, (rows, columns) = _stride(u), across
    values = u[0, 0, ::step, ::step]
    y, x = (torch.arange(n, device=u.device) * 2 * cells // n for n, cells in zip(values.shape, across, strict=True))
    place = (y[:, None] * 2 * columns + x) * BINS + (values * BINS).long().clamp(0, BINS - 1)
    counts = torch.bincount(place.flatten(), minlength=4 * rows * columns * BINS).to(u)
    counts = counts.view(2 * rows, 2 * columns, BINS).permute(2, 0, 1)
    near = F.avg_pool2d(F.pad(counts[None], (1, 1, 1, 1), mode="replicate"), 4, 2)[0]
    whole = near.sum((1, 2), keepdim=True)
    near = near / near.sum(0).clamp_min(1e-9)
    return (near + GLOBAL * whole / whole.sum()) / (1 + GLOBAL)


def _curves(shares: Tensor, drawn: Tensor) -> Tensor:
    """Fit a monotone curve per cell that gives one histogram the quantiles of the other; values at centers of bins."""
    shape = shares.shape
    shares, drawn = (each.flatten(1).T.contiguous() for each in (shares, drawn))  # (cells, BINS)
    edges = F.pad(drawn.cumsum(1), (1, 0)) + torch.linspace(0, 1e-4, BINS + 1).to(drawn)
    edges = edges / edges[:, -1:]
    ranks = shares.cumsum(1) - shares / 2
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
