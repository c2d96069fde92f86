"""The published LLFlow: low-light enhancement, a small network and a large one.

Detected by ``RRDB.fine_tune_color_map.`` and other convolutions of its encoder; shapes give fields as in SRFlow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import CheckpointError
from ...models.llflow import LEVELS, LLFlowConfig
from .source import Checkpoint, Layout, Origin, Source, count_levels
from .srflow import config_of, encoder_fields, encoder_origins, flow_origins, layer_kinds, subnet

STACKED_BLOCKS = {(4, 1): (1,), (24, 4): (1, 3, 5, 7)}  # by encoder blocks and number of stacked ones

# Branches that the published program never reads either.
UNUSED = re.compile(r"flowUpsamplerNet\.f\..*|RRDB\.(downconv3|HRconv|conv_last|awb_para)\..*")


def _layout(found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    config = _config(found.without(UNUSED), overrides)
    return Layout(architecture="llflow", config=config, origins=[*llflow_origins(config)], unused=UNUSED)


def llflow_origins(config: LLFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one, whose layers are numbered as in SRFlow."""
    convs = {
        "conv_first": "conv_first",
        "conv_second": "conv_second",
        "conv_trunk": "trunk_conv",
        "conv_down.0": "downconv1",
        "conv_down.1": "downconv2",
        "conv_color": "fine_tune_color_map.0",
    }
    yield from encoder_origins(convs, config.encoder_blocks)
    level = "s" + "p" * config.transition_steps + "c" * config.steps
    yield from flow_origins([level] * LEVELS, lambda ours, published: subnet(ours, published, 1))


def _config(found: Checkpoint, overrides: Mapping[str, Any]) -> LLFlowConfig:
    transition_steps, steps = _layers(found)
    first = f"flowUpsamplerNet.layers.{1 + transition_steps}.affine.fFeatures.0.weight"
    hidden, condition = found.shape(first, 4)[:2]
    detected: dict[str, Any] = {
        "steps": steps,
        "transition_steps": transition_steps,
        "hidden": hidden,
        **encoder_fields(found),
    }
    count = condition // max(1, detected["encoder_width"]) - 1
    known = STACKED_BLOCKS.get((detected["encoder_blocks"], count), ())
    return config_of("llflow", found, detected, condition, known, overrides)


def _layers(found: Checkpoint) -> tuple[int, int]:
    """Count plain and coupled steps per level in the layer list."""
    kinds = layer_kinds(found)
    levels, transition_steps, steps = count_levels(kinds, undivided=LEVELS)
    if levels != LEVELS or not steps:
        raise CheckpointError(
            f"the layers of this LLFlow checkpoint are not those of a known variant. Expected {LEVELS} levels, each of "
            "a squeeze (s) and as many plain (p) and coupled (c) steps as every other, without splits (d); got "
            f"{kinds[:100] or 'none'}. The file lacks layers, or the variant is not supported."
        )
    return transition_steps, steps


LLFLOW = Source(
    name="LLFlow",
    licence="LLFlow's published weights: CC BY-NC-SA 4.0, academic research only; check the license of your file",
    detect=re.compile(r"RRDB\.(fine_tune_color_map|awb_para|conv_second)\."),
    layout=_layout,
)
