"""The published SRFlow-DA: upscalers by 4 and 8, and their variants -S, -R and -D.

Detected by SRFlow's names with a bias in the first convolution of a coupling, or with that network in three parts.
Shapes give fields as in SRFlow; the channels after every squeeze give its factor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import CheckpointError
from ...models.srflow_da import SRFlowDAConfig, split_levels
from .glow import zero_conv
from .source import Checkpoint, Layout, Origin, Source, take_conv
from .srflow import UNUSED, config_of, encoder_fields, encoder_scale, flow_origins, layer_kinds, upscaler_origins

STACKED_BLOCKS = {23: (1, 8, 15, 22)}  # by encoder blocks; SRFlow stacks others at 8x


def _layout(found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    config = _config(found.without(UNUSED), overrides)
    numbered = found.has(r".*\.affine\.fFeatures2\.\d+\.\d+\.")
    origins = [*srflow_da_origins(config, numbered=numbered)]
    return Layout(architecture="srflow_da", config=config, origins=origins, unused=UNUSED)


def srflow_da_origins(config: SRFlowDAConfig, *, numbered: bool = False) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one, whose layers are numbered as in SRFlow.

    A single residual block has no number in -R; in -D it would be ``numbered``, as several are.
    """
    numbered = numbered or config.residual_blocks > 1
    yield from upscaler_origins(config.scale, config.encoder_blocks)
    levels = [layers for _, layers in split_levels(config.layers)]
    yield from flow_origins(levels, lambda ours, published: _subnet(ours, published, config, numbered))


def _subnet(ours: str, published: str, config: SRFlowDAConfig, numbered: bool) -> Iterator[Origin]:
    blocks, layers = config.residual_blocks, config.hidden_layers
    each = layers // blocks if blocks else 0
    for k in range(layers + 1):
        if not blocks:
            name = f"{published}.{2 * k}"  # the odd indices are activations
        elif k == 0:
            name = f"{published}1.0"
        else:
            number, place = divmod(k - 1, each)
            name = f"{published}2.{number}.{2 * place}" if numbered else f"{published}2.{2 * place}"
        yield from take_conv(f"{ours}.hidden.{k}", name)
    yield from zero_conv(f"{ours}.last", f"{published}3.0" if blocks else f"{published}.{2 * (layers + 1)}")


def _config(found: Checkpoint, overrides: Mapping[str, Any]) -> SRFlowDAConfig:
    kinds = layer_kinds(found)
    if "c" not in kinds:
        raise CheckpointError(
            "this SRFlow-DA checkpoint has no conditional steps (layers with affine). The file is incomplete; fetch it "
            "again."
        )
    subnet = f"flowUpsamplerNet.layers.{kinds.index('c')}.affine.fFeatures"
    if found.has(re.escape(f"{subnet}1.")):
        first, inner = f"{subnet}1.0", f"{subnet}2."
        blocks = len(found.indices(re.escape(inner) + r"(\d+)\.\d+\.weight")) or 1
        others = 0
    else:
        first, inner, blocks = f"{subnet}.0", f"{subnet}.", 0
        others = 2  # the first and the last convolution
    hidden_layers = sum(name.startswith(inner) and name.endswith(".weight") for name in found.shapes) - others
    hidden, condition = found.shape(f"{first}.weight", 4)[:2]
    detected: dict[str, Any] = {
        "scale": encoder_scale(found),
        **encoder_fields(found),
        "layers": _layers(found, kinds),
        "hidden": hidden,
        "hidden_layers": hidden_layers,
        "residual_blocks": blocks,
    }
    known = STACKED_BLOCKS.get(detected["encoder_blocks"], ())
    return config_of("srflow_da", found, detected, condition, known, overrides)


def _layers(found: Checkpoint, kinds: str) -> str:
    """Add the factor of every squeeze, by the channels of the next step."""
    layers, channels = "", 3
    for index, kind in enumerate(kinds):
        if kind == "s":
            after = found.shapes.get(f"flowUpsamplerNet.layers.{index + 1}.invconv.weight", (0,))[0]
            factor = {4: 2, 16: 4, 64: 8}.get(after // channels if after % channels == 0 else 0)
            if factor is None:
                raise CheckpointError(
                    f"layer {index + 1} of this SRFlow-DA checkpoint has {after or 'no'} channels after a squeeze of "
                    f"{channels}; expected {4 * channels}, {16 * channels} or {64 * channels}. The file lacks layers, "
                    f"or the variant is not supported; its layers are {kinds[:100]} (squeeze, plain, coupled, split)."
                )
            kind, channels = f"s{factor}", channels * factor**2
        elif kind == "d":
            channels = max(1, channels // 2)
        layers += kind
    return layers


SRFLOW_DA = Source(
    name="SRFlow-DA",
    licence="SRFlow-DA's published weights: CC BY-NC-SA 4.0, research use only; check the license of your file",
    detect=re.compile(r"flowUpsamplerNet\.layers\.\d+\.affine\.(fAffine|fFeatures)(\.0\.bias$|[123]\.)"),
    layout=_layout,
)
