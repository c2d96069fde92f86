"""Measures of images: fidelity, consistency with the input, diversity, specks and grids; and of colorings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import float64
from .color import luma
from .resize import resize

# Deviations of luma from its local median: of a speck; of one where a smooth enlargement spans less than PLAIN_SPAN;
# and of a pixel where the original has detail.
SPECK, ADDED_SPECK, DETAIL = 0.08, 0.05, 0.04
PLAIN_SPAN = 0.2


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all channels, ``-10 log10 mean (a - b)^2``: decibels per image, ``(B,)``."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), 11x11 Gaussian window, mean over channels and pixels: ``(B,)``."""
    from kornia.metrics import ssim as kornia_ssim  # a slow import that only measurements need

    return kornia_ssim(a, b, window_size=11, max_val=1.0).flatten(1).mean(1)


def lr_psnr(sr: Tensor, lr: Tensor) -> Tensor:
    """PSNR between an enlargement, shrunk again by antialiased bicubic, and its LR image; SRFlow, section 5."""
    return psnr(resize(sr, *lr.shape[-2:]), lr)


def false_specks(sr: Tensor, hr: Tensor) -> Tensor:
    """Isolated bright or dark pixels where the original is smooth, per mille of the pixels, ``(B,)``.

    A pixel is a false speck if its luma differs by more than 0.08 from the median of its 3x3 neighborhood, while within
    2 pixels of it no pixel of the original differs by more than 0.04 from its own. Ours: flows draw such specks, and
    measures without a reference take them for texture.
    """
    nearby = F.max_pool2d(_deviation_from_median(luma(hr)), 5, stride=1, padding=2)  # (B, 1, H, W)
    specks = (_deviation_from_median(luma(sr)) > SPECK) & (nearby <= DETAIL)
    return 1000 * float64(specks).flatten(1).mean(1)


def added_specks(sr: Tensor, plain: Tensor) -> Tensor:
    """Isolated bright or dark pixels where a smoother enlargement is plain, per mille of the pixels, ``(B,)``.

    As ``false_specks`` without an original: a pixel is an added speck if its luma differs by more than 0.05 from the
    median of its 3x3 neighborhood, while within 4 pixels of it the luma of ``plain`` spans less than 0.2.
    """
    y = F.pad(luma(plain), (4, 4, 4, 4), mode="replicate")
    span = F.max_pool2d(y, 9, stride=1) + F.max_pool2d(-y, 9, stride=1)  # (B, 1, H, W)
    specks = (_deviation_from_median(luma(sr)) > ADDED_SPECK) & (span < PLAIN_SPAN)
    return 1000 * float64(specks).flatten(1).mean(1)


def _deviation_from_median(y: Tensor) -> Tensor:
    """How much pixels ``(B, 1, H, W)`` differ from the median of their 3x3 neighborhood, the edge repeated."""
    neighborhoods = F.pad(y, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)  # (B, 1, H, W, 3, 3)
    return (y - neighborhoods.flatten(-2).median(-1).values).abs()


GRID_WINDOW = 64  # pixels
GRID_FREQUENCIES = (0, 16, 32, 48)  # cycles along both axes of such a window: periods of 4 and 2 pixels
NEIGHBORS = (3, 4)  # cycles between a frequency and those that it is compared with


def grid_energy(images: Tensor) -> Tensor:
    """Energy of a pattern that repeats every 4 or 2 pixels, relative to that at neighboring frequencies: ``(B,)``.

    The highest ratio of power spectra among the 15 frequencies of such patterns, and among windows of 64x64 pixels of
    luma, every 32 pixels, under a Hann window. Most photographs have 10 to 70. Networks that enlarge by 4 print such
    patterns, visible as dots in smooth places. NaN for sides below 64. Source: ours.
    """
    if min(images.shape[-2:]) < GRID_WINDOW:
        return images.new_full((len(images),), math.nan)
    hann = torch.hann_window(GRID_WINDOW, periodic=False, device=images.device)
    half = GRID_WINDOW // 2
    windows = (255 * luma(images.float()))[:, 0].unfold(1, GRID_WINDOW, half).unfold(2, GRID_WINDOW, half)
    windows = (windows - windows.mean((-2, -1), keepdim=True)) * hann[:, None] * hann
    power = torch.fft.fft2(windows).abs().square()  # (B, rows, columns, 64, 64)
    reach = NEIGHBORS[1]
    nearby = torch.ones(2 * reach + 1, 2 * reach + 1, device=images.device)
    inner = reach - NEIGHBORS[0] + 1
    nearby[inner:-inner, inner:-inner] = 0
    wrapped = F.pad(power.flatten(0, 2)[:, None], (reach,) * 4, mode="circular")
    around = F.conv2d(wrapped, nearby[None, None] / nearby.sum()).view_as(power)
    k = torch.tensor(GRID_FREQUENCIES, device=images.device)
    ratios = (power / (around + 1e-3))[..., k[:, None], k].flatten(-2)[..., 1:]  # leaves out the mean
    return ratios.flatten(1).amax(1)


def diversity(samples: Tensor) -> float:
    """Mean per-pixel standard deviation of samples ``(N, C, H, W)`` of one image, in 1/255; N at least 2."""
    return float(samples.std(dim=0, correction=0).mean()) * 255 if len(samples) > 1 else math.nan


# --- colorings: their distance, coherence, colorfulness, seams, fog, and color of skin, all defined here --------------
# Chroma is (B, 2, H, W) as ``color.split`` returns it: centered on 0, 1 is the range from darkest to brightest.

FLAT = 4 / 255  # difference of luma below which there is no edge between neighbors; the median, docs/decisions/0014
ROUNDING = 1e-6  # mean change of chroma that counts as zero
# Top, bottom, left and right of nose and cheeks, as shares of the side of a portrait with the irises at (0.45, 0.38)
# and (0.45, 0.61), row and column.
SKIN_PATCH = (0.50, 0.64, 0.40, 0.60)
SKIN_HUES = (80.0, 136.0)  # degrees: of 99.8 % of portraits, docs/decisions/0014; blue is below 60, green above 180
SKIN_MIN_CHROMA = 0.02  # skin below it counts as gray; the palest of these portraits has 0.027


def chroma_rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of chroma, over both channels and all pixels: ``sqrt(mean (a - b)^2)``, ``(B,)``."""
    return (a - b).square().flatten(1).mean(1).sqrt()


def global_share(residual: Tensor) -> Tensor:
    """Share of a chroma difference r, ``(B, 2, H, W)``, that is one shift of the entire image (its DC fraction).

    ``HW |mean over pixels of r|^2 / sum over pixels of |r|^2``, ``(B,)``: 1 if all pixels differ alike, 1/(HW) on
    average for independent noise, NaN where there is no difference at all.
    """
    return residual.mean((2, 3)).square().sum(1) / residual.square().sum(1).mean((1, 2))


def coherence_parts(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Compare how samples differ from their mean with how the truth does: globally, or in patches.

    With g ``global_share`` and m the mean of the samples: ``mean over samples of g(sample - m)``, and ``g(truth - m)``.
    The coherence of many images is the ratio of their means: 1 is ideal; near 0 every patch has a color of its own.
    """
    mean = samples.mean(0, keepdim=True)
    return float(global_share(samples - mean).mean()), float(global_share(truth - mean))


def colorfulness(chroma: Tensor) -> Tensor:
    """Root mean square length of chroma: ``sqrt(mean over pixels of (Cb^2 + Cr^2))``, ``(B,)``; 0 for gray."""
    return chroma.square().sum(1).mean((1, 2)).sqrt()


def seam_sums(chroma: Tensor, luma: Tensor, cell: int) -> Tensor:
    """Add up changes of chroma across the borders of a grid's cells, and inside them, for ``seam_ratio``.

    ``(2, 2)`` float64: sum and number of ``|chroma[i + 1] - chroma[i]|`` of neighbors in different cells, and in the
    second row of neighbors in one cell. Only neighbors whose lumas, ``(B or 1, 1, h, w)``, differ by less than ``FLAT``
    count, where a change of color has no edge to follow. Source: the idea of Wu and Yuen, "A generalized block-edge
    impairment metric for video coding" (1997).
    """
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for dim in (2, 3):
        change = chroma.diff(dim=dim).abs().mean(1, keepdim=True).movedim(dim, 0)  # (h - 1 or w - 1, B, 1, ...)
        flat = (luma.diff(dim=dim).abs() < FLAT).movedim(dim, 0).expand_as(change)
        across = (torch.arange(1, len(change) + 1, device=change.device) % cell == 0)[:, None, None, None]
        for row, part in enumerate((across, ~across)):
            counted = change[flat & part]
            sums[row] += torch.tensor([float(float64(counted).sum()), counted.numel()], dtype=torch.float64)
    return sums


def seam_ratio(sums: Tensor) -> float:
    """Ratio of the mean change across borders to that inside cells: photographs have 1 to 1.1, seams have more."""
    across, inside = (sums[:, 0] / sums[:, 1]).tolist()  # NaN without neighbors
    if inside < ROUNDING:
        return math.inf if across >= ROUNDING else math.nan
    return across / inside


def fog(chroma: Tensor, luma: Tensor) -> Tensor:
    """Root mean square change of color between neighbors whose luma does not change, ``(B,)``; NaN without any."""
    squares, number = torch.zeros(len(chroma), dtype=torch.float64), torch.zeros(len(chroma), dtype=torch.float64)
    for dim in (2, 3):
        change = float64(chroma).diff(dim=dim).square().mean(1, keepdim=True).cpu()
        flat = (luma.diff(dim=dim).abs() < FLAT).cpu().expand_as(change)
        squares += (change * flat).flatten(1).sum(1)
        number += flat.flatten(1).sum(1)
    return (squares / number).sqrt()


def skin_color(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the skin in aligned portraits: hue in degrees, and length, of the mean chroma of ``SKIN_PATCH``."""
    height, width = chroma.shape[2:]
    top, bottom = (round(part * height) for part in SKIN_PATCH[:2])
    left, right = (round(part * width) for part in SKIN_PATCH[2:])
    patch = chroma[:, :, top : max(bottom, top + 1), left : max(right, left + 1)].mean((2, 3))
    return torch.rad2deg(torch.atan2(patch[:, 1], patch[:, 0])) % 360, patch.norm(dim=1)


def skin_verdict(chroma: Tensor) -> tuple[Tensor, Tensor]:
    """Judge the skin in portraits, see ``skin_color``: whether its hue is no human skin's, and whether it is gray."""
    hue, strength = skin_color(chroma)
    gray = strength < SKIN_MIN_CHROMA
    return ~gray & ((hue < SKIN_HUES[0]) | (hue > SKIN_HUES[1])), gray
