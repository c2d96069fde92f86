"""Measures of pictures: how near, how consistent, how diverse. Those without a reference are in ``natural_scenes``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError, ShapeError
from ..images.resize import resize

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's name for the weights that LPIPS stands on
LPIPS_SIDE = 32  # AlexNet leaves nothing of smaller images


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all channels: ``-10 log10 mean (a - b)^2``.

    Args:
        a: ``(B, C, H, W)`` in [0, 1].
        b: Likewise.

    Returns:
        Decibels per image, ``(B,)``; infinite for equal images. For one image, the number of ``kornia.metrics.psnr``,
        which takes one mean over a batch.
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
        sr: ``(B, C, H, W)`` in [0, 1]; in the papers ``(B, C, s * h, s * w)``.
        lr: ``(B, C, h, w)`` in [0, 1].

    Returns:
        Decibels per image, ``(B,)``.

    Source: "LR-PSNR" in Lugmayr et al., "SRFlow", section 5.
    """
    return psnr(resize(sr, *lr.shape[-2:]), lr)


def diversity(samples: Tensor) -> float:
    """Mean per-pixel standard deviation of several samples of one image.

    Args:
        samples: ``(N, C, H, W)`` in [0, 1], N at least 2.

    Returns:
        In 1/255; 0 if all samples are equal.
    """
    return float(samples.std(dim=0, correction=0).mean()) * 255 if len(samples) > 1 else math.nan


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Map of the squared difference, mean over channels.

    Args:
        a: ``(B, C, H, W)``.
        b: Likewise.

    Returns:
        ``(B, 1, H, W)``.
    """
    return (a - b).square().mean(1, keepdim=True)


def diversity_score(samples: Tensor, hr: Tensor, distance: Callable[[Tensor, Tensor], Tensor] = squared_error) -> float:
    """How much nearer to the truth one comes by choosing among the samples at every pixel, than as a whole.

    ``100 (global best - local best) / global best``: the global best is the least mean of the samples' maps of distance
    to the truth, the local best the mean of the least of the maps at every pixel.

    Args:
        samples: N samples of one image, ``(N, C, H, W)`` in [0, 1]. The challenge takes 10; more give a higher score.
        hr: The truth, ``(1, C, H, W)``.
        distance: Two images ``(1, C, H, W)`` to a map ``(1, 1, H, W)``. The challenge's is ``lpips_map``; numbers with
            another have nothing to do with its numbers, and must say so.

    Returns:
        In percent; 0 if all samples are equal, or one is the truth.

    Raises:
        ShapeError: If the truth is no image of the samples' size.

    Source: Lugmayr et al., "NTIRE 2021 learning the super-resolution space challenge" (CVPR workshops), section 2, and
        the program that measured it.
    """
    if hr.shape != (1, *samples.shape[1:]):
        raise ShapeError(
            f"Expected the truth as one image of the samples' size, {(1, *samples.shape[1:])}; got {tuple(hr.shape)}."
        )
    maps = torch.cat([distance(sample[None], hr) for sample in samples])  # (N, 1, H, W)
    best, local = float(maps.flatten(1).mean(1).min()), float(maps.amin(0).mean())
    return 100 * (best - local) / best if best else 0.0


# --- LPIPS: the package of its authors, if it and its weights are there -----------------------------------------------


def lpips_missing() -> str | None:
    """Say what LPIPS lacks on this machine. Looks, imports nothing, and downloads nothing.

    Returns:
        How to get it; None if it can be measured.
    """
    wanted = [] if importlib.util.find_spec("lpips") else ["pip install lpips"]
    if not _alexnet().is_file():
        wanted.append(f"AlexNet's weights in torch's cache (torchvision's {ALEXNET} in {_alexnet().parent})")
    return ", and ".join(wanted) or None


def lpips(a: Tensor, b: Tensor) -> Tensor:
    """Learned perceptual distance: weighted differences of AlexNet's features.

    Args:
        a: ``(B, 3, H, W)`` in [0, 1], both sides at least 32.
        b: Likewise.

    Returns:
        ``(B,)``, 0 for equal images, on the CPU.

    Raises:
        FlowError: If the package or the weights are missing. Nothing else is measured in their place.
        ShapeError: If the images are too small.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018, version
        0.1 with AlexNet: what papers on super-resolution report.
    """
    return _lpips(a, b, spatial=False).flatten()


def lpips_map(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS at every pixel: the differences of each layer, enlarged to the size of the image.

    Args:
        a: As for ``lpips``.
        b: Likewise.

    Returns:
        ``(B, 1, H, W)``. Their mean is not exactly ``lpips``.

    Raises:
        FlowError: As for ``lpips``.
    """
    return _lpips(a, b, spatial=True)


@torch.no_grad()
def _lpips(a: Tensor, b: Tensor, *, spatial: bool) -> Tensor:
    if min(a.shape[-2:]) < LPIPS_SIDE:
        raise ShapeError(f"LPIPS needs sides of {LPIPS_SIDE} at least; got {tuple(a.shape)}. Measure larger images.")
    if missing := lpips_missing():
        raise FlowError(f"LPIPS is not installed. It needs: {missing}.")
    network = _lpips_network(_alexnet())
    network.spatial = spatial
    return network(a.cpu().float(), b.cpu().float(), normalize=True)


@functools.lru_cache(maxsize=1)
def _lpips_network(alexnet: Path) -> Any:
    """Build it with random weights and fill these in ourselves: the package's own way may download, and unpickles."""
    package: Any = importlib.import_module("lpips")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses names that torchvision gave up
        network = package.LPIPS(net="alex", version="0.1", pnet_rand=True, pretrained=False, verbose=False)
    trunk = torch.load(alexnet, map_location="cpu", weights_only=True)
    for part in network.net.children():
        for index, layer in part.named_children():
            layer.load_state_dict({name: trunk[f"features.{index}.{name}"] for name in layer.state_dict()})
    heads = Path(package.__file__).parent / "weights" / "v0.1" / "alex.pth"
    network.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False)
    return network.eval()


def _alexnet() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET


# --- of colours -------------------------------------------------------------------------------------------------------


def chroma_rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of chroma, over both channels and all pixels: ``sqrt(mean (a - b)^2)``.

    Args:
        a: ``(B or 1, 2, H, W)``.
        b: Likewise.

    Returns:
        Per image, ``(B,)``, in the unit of the chroma (1 is the whole range from darkest to brightest).

    Raises:
        ShapeError: If the two do not fit together.

    Source: ours. The tables of Ardizzone et al. 2019 (arXiv 1907.02392) take the least of several samples per pixel
        and channel, which noise improves; the least of these numbers, one per picture, it does not.
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
    """Say how much of a difference between colours is one change of the whole picture.

    ``HW |mean over pixels of r|^2 / sum over pixels of |r|^2``: 1 if all pixels differ alike, 1/(HW) on average for
    noise that pixels do not share.

    Args:
        residual: r, ``(B, 2, H, W)``.

    Returns:
        In [0, 1], ``(B,)``; NaN where there is no difference at all.

    Raises:
        ShapeError: If it is no chroma.

    Source: ours ("DC-fraction" in the design).
    """
    _check_chroma(residual, "a difference of chroma")
    return residual.mean((2, 3)).square().sum(1) / residual.square().sum(1).mean((1, 2))


def coherence(samples: Tensor, truth: Tensor) -> float:
    """Compare how samples differ from each other with how the truth differs from them: as a whole, or in patches.

    With m the mean of the samples and g ``global_share``, ``mean over samples of g(sample - m)``, over
    ``g(truth - m)``. If the truth is one more draw of what the samples are drawn from, both have the same expectation:
    1 is ideal, and near 0 every patch chooses a colour of its own. One picture says little; over several, divide the
    mean numerator by the mean denominator.

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
    """Give numerator and denominator of ``coherence``, for means over images.

    Args:
        samples: As there.
        truth: As there.

    Returns:
        The share of the samples' differences from their mean that is global, and that of the truth's.

    Raises:
        ShapeError: As there.
    """
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


def colourfulness(chroma: Tensor) -> Tensor:
    """Root mean square length of chroma: ``sqrt(mean over pixels of (Cb^2 + Cr^2))``.

    Args:
        chroma: ``(B, 2, H, W)``, centred on 0.

    Returns:
        ``(B,)``; 0 for grey.

    Raises:
        ShapeError: If it is no chroma.

    Source: ours; simpler than Hasler & Suesstrunk, "Measuring colourfulness in natural images" (2003), which weighs
        spread and mean of opponent colours.
    """
    _check_chroma(chroma, "chroma")
    return chroma.square().sum(1).mean((1, 2)).sqrt()


def flicker(chroma: Tensor, luma: Tensor, still: float = 2 / 255) -> float:
    """Mean change of chroma from frame to frame where the film stands still.

    ``mean |chroma[t + 1] - chroma[t]|`` over both channels and all places and frames with
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
