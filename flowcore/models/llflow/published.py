"""The published LLFlow: a small network and a large one, in the layout of SRFlow."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..source import LACKS_LAYERS, Checkpoint, Layout, Origin, Source
from ..srflow.published import (
    LAYERS,
    UNUSED,
    encoder_fields,
    encoder_origins,
    kinds_of,
    layer_origins,
    stacked_config,
    subnet_origins,
)
from ..srflow.srflow_da import LevelLayers
from .model import LEVELS, LLFlowConfig

STACKED_BLOCKS = {4: (1,), 24: (1, 3, 5, 7)}  # keys: encoder blocks

# Branches that the published program never reads either.
UNREAD = re.compile(rf"{UNUSED.pattern}|RRDB\.(downconv3|HRconv|conv_last|awb_para)\..*")


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    levels, transition_steps, steps = checkpoint.count_levels(kinds_of(checkpoint), undivided=LEVELS, needed="c")
    if levels != LEVELS:
        raise checkpoint.error(f"has {levels} levels; expected {LEVELS}.", LACKS_LAYERS)
    hidden, condition = checkpoint.shape(f"{LAYERS}.{1 + transition_steps}.affine.fFeatures.0.weight", 4)[:2]
    fields = {"steps": steps, "transition_steps": transition_steps, "hidden": hidden, **encoder_fields(checkpoint)}
    known = STACKED_BLOCKS.get(fields["encoder_blocks"], ())
    config = stacked_config("llflow", checkpoint, fields, condition, known, overrides)
    return Layout(architecture="llflow", config=config, origins=[*llflow_origins(config)], unused=UNREAD)


def llflow_origins(config: LLFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one."""
    convs = {
        "conv_first": "conv_first",
        "conv_second": "conv_second",
        "conv_trunk": "trunk_conv",
        "conv_down.0": "downconv1",
        "conv_down.1": "downconv2",
        "conv_color": "fine_tune_color_map.0",
    }
    yield from encoder_origins(convs, config.encoder_blocks)
    levels = [LevelLayers(2, "p" * config.transition_steps + "c" * config.steps, splits=False)] * LEVELS
    for origins, networks in layer_origins(levels):
        yield from origins
        for ours, published in networks:
            yield from subnet_origins(ours, published, 1)


LLFLOW = Source(
    name="LLFlow",
    licence="LLFlow's published weights: CC BY-NC-SA 4.0, academic research only; check the license of your file",
    detect=re.compile(r"RRDB\.(fine_tune_color_map|awb_para|conv_second)\."),
    layout=_layout,
)
