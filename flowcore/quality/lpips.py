"""LPIPS, through the package of its authors, where the package and its weights are installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowError, ShapeError

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file name of the weights that LPIPS is built on
MIN_SIDE = 32  # AlexNet's strides leave nothing of smaller images


def lpips_missing() -> str | None:
    """Say how to get what LPIPS lacks here, importing and downloading nothing; None if it can be measured."""
    missing = [] if importlib.util.find_spec("lpips") else ["pip install lpips"]
    if not _alexnet().is_file():
        missing.append(f"AlexNet's weights in torch's cache (torchvision's {ALEXNET} in {_alexnet().parent})")
    return ", and ".join(missing) or None


def lpips(a: Tensor, b: Tensor) -> Tensor:
    """Learned perceptual distance, weighted differences of AlexNet's features; ``(B,)`` on the CPU, 0 for equal images.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018, version
    0.1 with AlexNet: what papers on super-resolution report.
    """
    return _distance(a, b, spatial=False).flatten()


def lpips_map(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS at every pixel, ``(B, 1, H, W)``: the differences of each layer, enlarged. Its mean is not quite LPIPS."""
    return _distance(a, b, spatial=True)


@torch.no_grad()
def _distance(a: Tensor, b: Tensor, *, spatial: bool) -> Tensor:
    if min(a.shape[-2:]) < MIN_SIDE:
        raise ShapeError(f"LPIPS needs sides of {MIN_SIDE} at least; got {tuple(a.shape)}. Measure larger images.")
    if missing := lpips_missing():
        raise FlowError(f"LPIPS is not installed. It needs: {missing}.")
    return _network(_alexnet(), spatial)(a.cpu().float(), b.cpu().float(), normalize=True)


@functools.lru_cache(maxsize=2)
def _network(alexnet: Path, spatial: bool) -> Any:
    """Build the network with random weights and load ours: the package itself may download, and unpickles."""
    package: Any = importlib.import_module("lpips")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses arguments that torchvision has deprecated
        network = package.LPIPS(
            net="alex", version="0.1", pnet_rand=True, pretrained=False, verbose=False, spatial=spatial
        )
    trunk = torch.load(alexnet, map_location="cpu", weights_only=True)
    for part in network.net.children():
        for index, layer in part.named_children():
            layer.load_state_dict({name: trunk[f"features.{index}.{name}"] for name in layer.state_dict()})
    heads = Path(package.__file__).parent / "weights" / "v0.1" / "alex.pth"
    network.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False)
    return network.eval()


def _alexnet() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
