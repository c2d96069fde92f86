"""The published HCFlow: upscalers for photographs and faces, and a rescaler.

Detected by ``flow.levelN_condFlow.``, as many as log2 of the scale, or the trunk's ``flow.layers.N``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..source import (
    LACKS_LAYERS,
    NOTHING,
    Check,
    Checkpoint,
    Layout,
    Origin,
    Source,
    take,
    take_actnorm,
    take_conv,
    take_zero_conv,
)
from .model import HCFlowConfig

# What no file tells, by scale: bins of the dequantization noise in training, and temperature of the published tests.
QUANT_BINS = {4: 64, 8: 256}
TEMPERATURES = {4: 0.9, 8: 0.8}

# Constants of the Haar transform, channel by channel: the signs of its four bands.
HAAR = re.compile(r"flow\.layers\.\d{1,4}\.haar_weights")
SIGNS = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def hcflow_origins(config: HCFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one."""
    first = 1 if config.rescaling else 0  # index of our first step: a factor comes before it
    for level in range(config.levels):
        for step in range(config.steps):
            ours = f"levels.{level}.steps.transforms.{first + step}.transforms"
            published = f"flow.layers.{level * (config.steps + 2) + 1 + step}"  # the squeeze is the 0th layer
            yield from take_actnorm(f"{ours}.0", f"{published}.actnorm")
            if config.rescaling:
                yield from _dense_convs(f"{ours}.1.conditioner.convs", f"{published}.affine.f.conv")
            else:
                yield take(f"{ours}.1.weight", f"{published}.permute.weight")
                yield from _subnet(f"{ours}.2.conditioner", f"{published}.affine.f")
        ours, published = f"levels.{level}.details", f"flow.level{level}_condFlow"
        yield from take_conv(f"{ours}.extractor.conv_first", f"{published}.conv_first")
        yield from take_conv(f"{ours}.extractor.conv_last", f"{published}.trunk_conv1")
        for trunk, (half, blocks) in enumerate(zip(("first", "second"), config.extractor_blocks, strict=True)):
            for block in range(blocks):
                for dense in range(3):
                    rdb = f"{published}.RRDB_trunk{trunk}.{block}.RDB{dense + 1}.conv"
                    yield from _dense_convs(f"{ours}.extractor.{half}.{block}.dense.{dense}.convs", rdb)
        for step in range(config.detail_steps):
            inner, outer = f"{ours}.transform.transforms.{step}.transforms", f"{published}.additional_flow_steps.{step}"
            yield from take_actnorm(f"{inner}.0", f"{outer}.actnorm")
            yield take(f"{inner}.1.weight", f"{outer}.permute.weight")
            yield from _subnet(f"{inner}.2.conditioner", f"{outer}.affine.f")
        prior = f"{ours}.transform.transforms.{config.detail_steps}.conditioner"
        # published: mean and log std; ours subtracts them as shift and log scale
        yield from take_conv(prior, f"{published}.f", torch.neg)
        yield take(f"{prior}.log_scale", f"{published}.f.logs", torch.flatten)


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    levels = checkpoint.count(r"flow\.level(\d+)_condFlow\.")
    layers = checkpoint.indices(r"flow\.layers\.(\d{1,4})\.actnorm\.bias")
    rescaling = checkpoint.has(r"flow\.layers\.\d+\.haar_weights")
    steps = len(layers) // levels if levels else 0
    expected = {level * (steps + 2) + 1 + step for level in range(min(levels, 8)) for step in range(steps)}
    if not 1 <= levels <= 3 or layers != expected or not steps:
        raise checkpoint.error(
            "has other layers than the known variants. Expected 1 to 3 levels with as many trunk steps each, a layer "
            f"without parameters before and after them; got {levels} levels and trunk steps at layers "
            f"{', '.join(map(str, sorted(layers)[:40])) or 'none'}.",
            LACKS_LAYERS,
        )
    inside = "flow.level0_condFlow"
    blocks = [checkpoint.count(rf"{inside}\.RRDB_trunk{k}\.(\d{{1,4}})\.") for k in (0, 1)]
    rrdb = next((f"{inside}.RRDB_trunk{k}.0.RDB1.conv1.weight" for k in (0, 1) if blocks[k]), "")
    detected: dict[str, Any] = {
        "scale": 2**levels,
        "steps": steps,
        "detail_steps": checkpoint.count(rf"{inside}\.additional_flow_steps\.(\d{{1,4}})\."),
        "hidden": checkpoint.shape("flow.layers.1.affine.f.conv1.weight", 4)[0],
        "detail_hidden": checkpoint.shape(f"{inside}.additional_flow_steps.0.affine.f.conv1.weight", 4)[0],
        "extractor_blocks": tuple(blocks),
        "extractor_width": checkpoint.shape(f"{inside}.conv_first.weight", 4)[0],
        "extractor_growth": checkpoint.shape(rrdb, 4)[0] if rrdb else 32,
        "rescaling": rescaling,
    }
    defaults = {
        "quant_bins": QUANT_BINS.get(2**levels, 64),
        "temperature": 1.0 if rescaling else TEMPERATURES.get(2**levels, 0.9),
    }
    config = checkpoint.config("hcflow", detected, defaults, overrides)
    haar = {f"flow.layers.{level * (steps + 2)}.haar_weights" for level in range(levels)}
    if rescaling and (missing := sorted(haar - checkpoint.shapes.keys())):
        raise CheckpointError(f"{missing[0]} is missing: the file lacks a layer. Fetch it again.")
    return Layout(
        architecture="hcflow",
        config=config,
        origins=[*hcflow_origins(config)],
        unused=HAAR if rescaling else NOTHING,
        checks=[Check(HAAR, _is_haar, "holds no Haar transform: this variant is not supported, or damaged.")],
    )


def _is_haar(t: Tensor) -> bool:
    return t.ndim == 4 and t.shape[1:] == (1, 2, 2) and len(t) % 4 == 0 and bool((t.reshape(-1, 4, 4) == SIGNS).all())


def _subnet(ours: str, published: str) -> Iterator[Origin]:
    for k in (0, 1):
        yield take(f"{ours}.hidden.{k}.weight", f"{published}.conv{k + 1}.weight")
        yield from take_actnorm(f"{ours}.hidden.{k}.actnorm", f"{published}.conv{k + 1}.actnorm")
    yield from take_zero_conv(f"{ours}.last", f"{published}.conv3")


def _dense_convs(ours: str, published: str) -> Iterator[Origin]:
    for k in range(5):
        yield from take_conv(f"{ours}.{k}", f"{published}{k + 1}")


HCFLOW = Source(
    name="HCFlow",
    licence="HCFlow's program and releases: Apache-2.0; its authors ask to follow the licenses of what it is based on, "
    "too: SRFlow is CC BY-NC-SA 4.0 (non-commercial); check the license of your file",
    detect=re.compile(r"flow\.(level\d+_condFlow\.|layers\.\d+\.(haar_weights|permute\.|affine\.f\.conv\d))"),
    layout=_layout,
)
