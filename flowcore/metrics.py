"""Measures of pictures: how near, how consistent, how diverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .resize import shrink


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all channels: ``-10 log10 mean (a - b)^2``.

    Args:
        a: ``(B, C, H, W)`` in [0, 1].
        b: Likewise.

    Returns:
        Decibels per image, ``(B,)``; infinite for equal images.
    """
    return -10 * torch.log10((a - b).square().flatten(1).mean(1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, 11x11 Gaussian window of std 1.5, mean over channels and pixels.

    Args:
        a: ``(B, C, H, W)`` in [0, 1].
        b: Likewise.

    Returns:
        ``(B,)``, 1 for equal images.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity"; kornia's
        implementation.
    """
    from kornia.metrics import ssim as kornia_ssim  # a slow import that only measurements need

    return kornia_ssim(a, b, window_size=11, max_val=1.0).flatten(1).mean(1)


def lr_psnr(sr: Tensor, lr: Tensor) -> Tensor:
    """PSNR between an enlargement, shrunk again by antialiased bicubic, and the LR image that it was made from.

    Args:
        sr: ``(B, C, s * h, s * w)`` in [0, 1].
        lr: ``(B, C, h, w)`` in [0, 1].

    Returns:
        Decibels per image, ``(B,)``.

    Source: "LR-PSNR" in Lugmayr et al., "SRFlow", section 5.
    """
    return psnr(shrink(sr, sr.shape[-1] // lr.shape[-1]), lr)


def diversity(samples: Tensor) -> float:
    """Mean per-pixel standard deviation of several samples of one image.

    Args:
        samples: ``(N, C, H, W)`` in [0, 1], N at least 2.

    Returns:
        In 1/255; 0 if all samples are equal.
    """
    return float(samples.std(dim=0, correction=0).mean()) * 255 if len(samples) > 1 else math.nan
