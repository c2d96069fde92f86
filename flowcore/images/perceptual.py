"""LPIPS and the diversity score on it, with the package `lpips` and AlexNet's weights, where they are installed."""

import functools
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError, ShapeError

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file name of the weights that LPIPS is built on
MIN_SIDE = 32  # AlexNet's strides leave nothing of smaller images


def lpips_missing() -> str | None:
    """Say what to install for LPIPS; None if it can be measured. Imports and downloads nothing."""
    missing = [] if find_spec("lpips") else ["pip install lpips"]
    if not _alexnet().is_file():
        missing.append(f"AlexNet's weights in torch's cache (torchvision's {ALEXNET} in {_alexnet().parent})")
    return ", and ".join(missing) or None


def lpips(a: Tensor, b: Tensor) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018), version 0.1 with AlexNet as in papers: ``(B,)``, on the CPU."""
    return _lpips(a, b, spatial=False).flatten()


def lpips_map(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS at every pixel, ``(B, 1, H, W)``: the differences of each layer, enlarged. Its mean is not quite LPIPS."""
    return _lpips(a, b, spatial=True)


def diversity_score(samples: Tensor, hr: Tensor) -> float:
    """How much closer to the original the best sample at every pixel is than the best sample as a whole, in percent.

    ``100 (min mean d - mean min d) / min mean d``, with d the samples' maps of LPIPS. Comparable with 10 samples only;
    Lugmayr et al., "NTIRE 2021 learning the super-resolution space challenge" (CVPR workshops), section 2.
    """
    maps = torch.cat([lpips_map(sample[None], hr) for sample in samples])  # (N, 1, H, W)
    best, local = float(maps.flatten(1).mean(1).min()), float(maps.amin(0).mean())
    return 100 * (best - local) / best if best else 0.0


@torch.no_grad()
def _lpips(a: Tensor, b: Tensor, *, spatial: bool) -> Tensor:
    if min(a.shape[-2:]) < MIN_SIDE:
        raise ShapeError(f"LPIPS needs sides of {MIN_SIDE} at least; got {tuple(a.shape)}. Measure larger images.")
    if missing := lpips_missing():
        raise FlowError(f"LPIPS is not installed. It needs: {missing}.")
    return _network(_alexnet(), spatial)(a.cpu().float(), b.cpu().float(), normalize=True)


@functools.lru_cache(maxsize=2)
def _network(alexnet: Path, spatial: bool) -> Any:
    """Build the network without weights and load them from torch's cache: the package would download them unchecked."""
    import lpips as package  # pyright: ignore[reportMissingImports]

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses arguments that torchvision has deprecated
        network = package.LPIPS(
            net="alex", version="0.1", pnet_rand=True, pretrained=False, verbose=False, spatial=spatial
        )
    backbone = torch.load(alexnet, map_location="cpu", weights_only=True)
    for part in network.net.children():
        for index, layer in part.named_children():
            layer.load_state_dict({name: backbone[f"features.{index}.{name}"] for name in layer.state_dict()})
    linear_heads = Path(str(package.__file__)).parent / "weights" / "v0.1" / "alex.pth"
    network.load_state_dict(torch.load(linear_heads, map_location="cpu", weights_only=True), strict=False)
    return network.eval()


def _alexnet() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
