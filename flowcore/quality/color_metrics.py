"""Measures of colorization: distance, coherence, colorfulness and flicker of chroma."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import ShapeError


def chroma_rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of chroma, over both channels and all pixels: ``sqrt(mean (a - b)^2)``.

    Args:
        a: ``(B or 1, 2, H, W)``.
        b: ``(B or 1, 2, H, W)``.

    Returns:
        Per image, ``(B,)``, in the unit of the chroma (1 is the range from darkest to brightest).

    Raises:
        ShapeError: If the two do not fit together.

    Source: ours. The tables of Ardizzone et al. 2019 (arXiv 1907.02392) take the least of several samples per pixel
        and channel, which noise improves; it does not improve the least of these numbers, one per image.
    """
    _check_chroma(a, "chroma")
    _check_chroma(b, "chroma")
    if a.shape[2:] != b.shape[2:] or (a.shape[0] != b.shape[0] and 1 not in (a.shape[0], b.shape[0])):
        raise ShapeError(
            f"Expected chroma of one size, and of one batch or a batch of 1; got {tuple(a.shape)} and "
            f"{tuple(b.shape)}. Resize one to the other."
        )
    return (a - b).square().flatten(1).mean(1).sqrt()


def global_share(residual: Tensor) -> Tensor:
    """Share of a chroma difference that is one shift of the entire image (its DC fraction).

    ``HW |mean over pixels of r|^2 / sum over pixels of |r|^2``: 1 if all pixels differ alike, 1/(HW) on average for
    independent noise.

    Args:
        residual: r, ``(B, 2, H, W)``.

    Returns:
        In [0, 1], ``(B,)``; NaN where there is no difference at all.

    Raises:
        ShapeError: If it is not chroma.

    Source: ours.
    """
    _check_chroma(residual, "a difference of chroma")
    return residual.mean((2, 3)).square().sum(1) / residual.square().sum(1).mean((1, 2))


def coherence(samples: Tensor, truth: Tensor) -> float:
    """Compare how samples differ from each other with how the truth differs from them: globally, or in patches.

    With m the mean of the samples and g ``global_share``, ``mean over samples of g(sample - m)``, over
    ``g(truth - m)``. If the truth is one more draw from the samples' distribution, both have the same expectation: 1 is
    ideal, and near 0 every patch chooses a color of its own. One image says little; over several, divide the mean
    numerator by the mean denominator.

    Args:
        samples: Chroma of several samples for one image, ``(N, 2, H, W)``, N at least 2.
        truth: The image's own chroma, ``(1, 2, H, W)``.

    Returns:
        The ratio; NaN if the samples do not differ.

    Raises:
        ShapeError: If there is one sample only, or the two do not fit together.

    Source: ours.
    """
    own, true = coherence_parts(samples, truth)
    return own / true if true else math.nan


def coherence_parts(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Compute numerator and denominator of ``coherence``, for means over images."""
    _check_chroma(samples, "samples")
    if len(samples) < 2:
        raise ShapeError(f"Coherence needs at least 2 samples; got {len(samples)}. Draw more, with other seeds.")
    if truth.shape != (1, *samples.shape[1:]):
        raise ShapeError(
            f"Expected the truth as one image of the samples' size, {(1, *samples.shape[1:])}; got "
            f"{tuple(truth.shape)}. Resize it to the samples."
        )
    mean = samples.mean(0, keepdim=True)
    return float(global_share(samples - mean).mean()), float(global_share(truth - mean))


def colorfulness(chroma: Tensor) -> Tensor:
    """Root mean square length of chroma: ``sqrt(mean over pixels of (Cb^2 + Cr^2))``.

    Args:
        chroma: ``(B, 2, H, W)``, centered on 0.

    Returns:
        ``(B,)``; 0 for gray.

    Raises:
        ShapeError: If it is not chroma.

    Source: ours; simpler than Hasler & Suesstrunk, "Measuring colourfulness in natural images" (2003), which weighs
        spread and mean of opponent colors.
    """
    _check_chroma(chroma, "chroma")
    return chroma.square().sum(1).mean((1, 2)).sqrt()


def flicker(chroma: Tensor, luma: Tensor, still: float = 2 / 255) -> float:
    """Mean change of chroma from frame to frame where nothing moves.

    ``mean |chroma[t + 1] - chroma[t]|`` over both channels and all pixels and frames with
    ``|luma[t + 1] - luma[t]| < still``.

    Args:
        chroma: ``(T, 2, H, W)``, T at least 2.
        luma: ``(T, 1, H, W)`` in [0, 1].
        still: Changes of luma below this are noise, not motion.

    Returns:
        In the unit of the chroma; NaN if everything moves.

    Raises:
        ShapeError: If there are not two frames, or the two do not fit together.

    Source: ours.
    """
    _check_chroma(chroma, "chroma")
    if len(chroma) < 2 or luma.shape != (len(chroma), 1, *chroma.shape[2:]):
        raise ShapeError(
            "Expected chroma (T, 2, H, W) and luma (T, 1, H, W) of at least 2 frames; got "
            f"{tuple(chroma.shape)} and {tuple(luma.shape)}. Pass the frames of one film as one batch."
        )
    quiet = luma.diff(dim=0).abs() < still  # (T - 1, 1, H, W)
    change = chroma.diff(dim=0).abs()
    return float(change[quiet.expand_as(change)].mean())


def _check_chroma(x: Tensor, what: str) -> None:
    if x.ndim != 4 or x.shape[1] != 2 or 0 in x.shape:
        raise ShapeError(f"Expected {what} of shape (B, 2, H, W); got {tuple(x.shape)}. Use color.split for it.")
