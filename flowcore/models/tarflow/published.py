"""Checkpoints of apple/ml-tarflow, the program of TarFlow's authors.

Detected by ``blocks.N.attn_blocks.N.``. Not in the file: head, labels, noise, and sides that are not equal.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..source import Checkpoint, Layout, Origin, Source, take, take_conv, unchanged
from .model import TarFlowConfig

MASKS = re.compile(r"blocks\.\d+\.attn_mask")  # the program computes them again
# The published network: 256x256, patches of 8, width 768, 8 blocks of 8 layers, 3 classes; and what no tensor tells.
AFHQ = (256, 8, 768, 8, 8, 3)
AFHQ_FIELDS = {"labels": ("cat", "dog", "wild"), "noise": 0.07}


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    patches, width = checkpoint.shape("blocks.0.pos_embed", 2)
    numbers = checkpoint.shape("blocks.0.proj_in.weight", 2)[1]
    outputs = checkpoint.shape("blocks.0.proj_out.weight", 2)[0]
    channels, patch = _patch(checkpoint, numbers)
    side = patch * math.isqrt(patches)
    if outputs not in (numbers, 2 * numbers):
        raise checkpoint.error(
            f"predicts {outputs} numbers for a patch of {numbers}; expected {numbers} (shift) or {2 * numbers} (scale "
            "and shift)."
        )
    if "image_size" not in overrides and side * side != patches * patch**2:
        raise checkpoint.error(
            f"has {patches} patches, which make no square.",
            f"Give the size of its images, multiples of {patch}, for example: image_size=({patch}, {patches * patch}).",
        )
    labeled = "blocks.0.class_embed" in checkpoint.shapes
    detected = {
        "channels": channels,
        "patch": patch,
        "width": width,
        "blocks": checkpoint.count(r"blocks\.(\d+)\."),
        "layers": checkpoint.count(r"blocks\.0\.attn_blocks\.(\d+)\."),
        "hidden": checkpoint.shape("blocks.0.attn_blocks.0.mlp.main.0.weight", 2)[0],
        "scale": outputs == 2 * numbers,
        "variances": "var" in checkpoint.shapes,
        "classes": checkpoint.shape("blocks.0.class_embed", 3)[0] if labeled else 0,
    }
    structure = (side, *(detected[name] for name in ("patch", "width", "blocks", "layers", "classes")))
    defaults = {"image_size": side, "head": 64, "n_bits": 8, "grid": "bins"}
    defaults |= AFHQ_FIELDS if structure == AFHQ else {"labels": (), "noise": 0.0}
    config: TarFlowConfig = checkpoint.config("tarflow", detected, defaults, overrides)
    return Layout(architecture="tarflow", config=config, origins=[*tarflow_origins(config)], unused=MASKS)


def _patch(checkpoint: Checkpoint, numbers: int) -> tuple[int, int]:
    """Channels and side of a patch of so many numbers; unique, since no square is three times another."""
    for channels in (3, 1):
        side = math.isqrt(numbers // channels)
        if numbers and channels * side**2 == numbers:
            return channels, side
    raise checkpoint.error(f"has patches of {numbers} numbers; expected 3 p^2, or p^2 for gray.")


def tarflow_origins(config: TarFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one."""
    height, width = (side // config.patch for side in config.image_size)
    for k in range(config.blocks):
        block, network = f"blocks.{k}", f"levels.0.steps.transforms.{k}.network"
        # the program reverses positions with the sequence; ours are in its order
        yield take(f"{network}.position", f"{block}.pos_embed", torch.flipud if k % 2 else unchanged)
        if config.classes:
            yield take(f"{network}.label", f"{block}.class_embed", lambda t: t.flatten(1))
        yield from take_conv(f"{network}.proj_in", f"{block}.proj_in")
        for j in range(config.layers):
            ours, theirs = f"{network}.layers.{j}", f"{block}.attn_blocks.{j}"
            names = {"norm_attention": "attention.norm", "qkv": "attention.qkv", "proj": "attention.proj"}
            names |= {"norm_hidden": "mlp.norm", "first": "mlp.main.0", "last": "mlp.main.2"}
            for name, published in names.items():
                yield from take_conv(f"{ours}.{name}", f"{theirs}.{published}")
        yield from take_conv(f"{network}.proj_out", f"{block}.proj_out")
    if config.variances:
        variances = f"levels.0.steps.transforms.{config.blocks}.var"
        yield take(variances, "var", lambda t: t.t().reshape(-1, height, width))


TARFLOW = Source(
    name="TarFlow",
    licence="unknown; see the license files of apple/ml-tarflow, and check that of your file",
    detect=re.compile(r"blocks\.\d+\.attn_blocks\.\d+\."),
    layout=_layout,
    integers=MASKS,
)
