"""The published SRFlow and SRFlow-DA, and what LLFlow has in common with them.

All of them hold an encoder under ``RRDB.``, and under ``flowUpsamplerNet.layers.N.`` one list of the layers of all
levels: squeezes, which have no tensors, plain steps, coupled steps, and splits. Which encoder blocks are stacked is in
no file: it is known for the released models, and the caller gives it for others.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ..registry import configure
from ..source import (
    LACKS_LAYERS,
    Checkpoint,
    Layout,
    Origin,
    Source,
    missing_field_error,
    take,
    take_actnorm,
    take_conv,
    take_zero_conv,
)
from .model import SRFlowConfig
from .srflow_da import LevelLayers, SRFlowDAConfig, parse_layers

LAYERS = "flowUpsamplerNet.layers"
UNUSED = re.compile(r"flowUpsamplerNet\.f\..*")  # a head that the published programs never read either


# --- what they have in common -----------------------------------------------------------------------------------------


def _upscaler_origins(scale: int, blocks: int) -> Iterator[Origin]:
    """Pair the parameters of an ``RRDBEncoder`` with those of the published encoder."""
    convs = {"conv_first": "conv_first", "conv_trunk": "trunk_conv", "conv_hr": "HRconv", "conv_last": "conv_last"}
    upward = {f"conv_up.{k}": f"upconv{k + 1}" for k in range(scale.bit_length() - 1)}
    return encoder_origins({**convs, **upward}, blocks)


def encoder_origins(convs: Mapping[str, str], blocks: int) -> Iterator[Origin]:
    """Pair the parameters of an encoder's RRDBs, and of other convolutions from our names to the published ones."""
    dense = {
        f"blocks.{n}.dense.{d}.convs.{k}": f"RRDB_trunk.{n}.RDB{d + 1}.conv{k + 1}"
        for n in range(blocks)
        for d in range(3)
        for k in range(5)
    }
    for ours, published in {**convs, **dense}.items():
        yield from take_conv(f"encoder.{ours}", f"RRDB.{published}")


def layer_origins(
    levels: Sequence[LevelLayers], *, injector: bool = True
) -> Iterator[tuple[list[Origin], list[tuple[str, str]]]]:
    """For each layer with tensors: its origins; and our names and the published ones of a coupled step's networks."""
    names = ["fFeatures", "fAffine"] if injector else ["fAffine"]  # published: always both
    number = 0
    for index, level in enumerate(levels):
        number += level.factor > 1  # a squeeze
        for step, kind in enumerate(level.steps):
            ours, published = f"levels.{index}.steps.transforms.{step}.transforms", f"{LAYERS}.{number}"
            parts = enumerate(names if kind == "c" else [], start=2)
            networks = [(f"{ours}.{part}.conditioner", f"{published}.affine.{name}") for part, name in parts]
            mixing = take(f"{ours}.1.weight", f"{published}.invconv.weight")
            yield [*take_actnorm(f"{ours}.0", f"{published}.actnorm"), mixing], networks
            number += 1
        if level.splits:
            yield [*take_zero_conv(f"levels.{index}.split.conditioner", f"{LAYERS}.{number}.conv")], []
            number += 1


def subnet_origins(ours: str, published: str, hidden_layers: int) -> Iterator[Origin]:
    """Take the network of an injector or coupling."""
    for k in range(hidden_layers + 1):
        yield take(f"{ours}.hidden.{k}.weight", f"{published}.{2 * k}.weight")  # the odd indices are activations
        yield from take_actnorm(f"{ours}.hidden.{k}.actnorm", f"{published}.{2 * k}.actnorm")
    yield from take_zero_conv(f"{ours}.last", f"{published}.{2 * (hidden_layers + 1)}")


def encoder_fields(checkpoint: Checkpoint) -> dict[str, int]:
    """Detect the number of an encoder's blocks, and their widths."""
    return {
        "encoder_blocks": checkpoint.count(r"RRDB\.RRDB_trunk\.(\d+)\."),
        "encoder_width": checkpoint.shape("RRDB.conv_first.weight", 4)[0],
        "encoder_growth": checkpoint.shape("RRDB.RRDB_trunk.0.RDB1.conv1.weight", 4)[0],
    }


def _scale(checkpoint: Checkpoint) -> int:
    """Detect the scale of an upscaler by the convolutions that enlarge in its encoder."""
    return 2 ** min(8, len(checkpoint.indices(r"RRDB\.upconv(\d+)\.")))


def kinds_of(checkpoint: Checkpoint) -> str:
    """Spell the layers of a flow: s for a squeeze (no tensors), p for a plain step, c for a coupled one, d a split."""
    pattern = r"flowUpsamplerNet\.layers\.(\d{1,4})\.(actnorm|invconv|affine|conv)\."
    return checkpoint.layers(pattern, {"affine": "c", "conv": "d"})


def stacked_config(
    architecture: str,
    checkpoint: Checkpoint,
    detected: Mapping[str, Any],
    condition: int,
    known: tuple[int, ...],
    overrides: Mapping[str, Any],
) -> Any:
    """Make a configuration: ``condition`` channels give how many blocks are stacked, the caller or ``known`` which."""
    blocks, width = detected["encoder_blocks"], detected["encoder_width"]
    count, rest = divmod(condition - width, width) if width else (-1, 0)
    if rest or count < 0:
        raise checkpoint.error(
            f"has a condition of {condition} channels, which is not a multiple of the encoder's width, {width}."
        )
    stacked = overrides.get("stacked_blocks")
    if stacked is not None:
        stacked = (stacked,) if isinstance(stacked, int) else stacked
        if not isinstance(stacked, (list, tuple)):
            raise CheckpointError(f"stacked_blocks must be block indices such as (1, 8, 15, 22); got {stacked!r}.")
        if len(stacked) != count:
            raise CheckpointError(
                f"stacked_blocks={tuple(stacked)} names {len(stacked)} blocks, but the condition in this checkpoint "
                f"has {condition} channels: {width} native ones and {width} of each of {count} blocks. "
                f"Give {count} indices."
            )
    elif count in (0, len(known)):
        stacked = known[:count]
    else:
        released = (
            f"{checkpoint.program} {detected['scale']}x" if "scale" in detected else f"{checkpoint.program} model"
        )
        example = [max(0, (k + 1) * blocks // count - 1) for k in range(min(count, 16))]
        raise missing_field_error(
            "stacked_blocks",
            f"which {count} of the encoder's {blocks} blocks every level sees. No checkpoint holds it, and no released "
            f"{released} has {blocks} blocks and stacks {count} of them.",
            str(tuple(example)),
            ",".join(map(str, example)),
            "gives wrong pictures",
        )
    return configure(architecture, {**detected, **overrides, "stacked_blocks": tuple(stacked)})


# --- SRFlow -----------------------------------------------------------------------------------------------------------

# Which encoder blocks are stacked in the released configurations, by scale and number of blocks.
STACKED_BLOCKS = {(4, 23): (1, 8, 15, 22), (8, 23): (1, 3, 5, 7), (8, 8): (1, 3, 5, 7)}


def _srflow_layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    sequence = kinds_of(checkpoint)
    levels, transition_steps, steps = checkpoint.count_levels(sequence, undivided=2, needed="c")
    subnet = f"{LAYERS}.{sequence.index('c')}.affine.fFeatures."
    hidden_layers = sum(name.startswith(subnet) and name.endswith(".weight") for name in checkpoint.shapes) - 2
    hidden, condition = checkpoint.shape(f"{subnet}0.weight", 4)[:2]
    detected: dict[str, Any] = {
        "scale": _scale(checkpoint),
        **encoder_fields(checkpoint),
        "levels": levels,
        "steps": steps,
        "transition_steps": transition_steps,
        "hidden": hidden,
        "hidden_layers": hidden_layers,
        "hidden_kernel": checkpoint.shape(f"{subnet}2.weight", 4)[-1] if hidden_layers > 0 else 1,
    }
    known = STACKED_BLOCKS.get((detected["scale"], detected["encoder_blocks"]), ())
    config = stacked_config("srflow", checkpoint, detected, condition, known, overrides)
    return Layout(architecture="srflow", config=config, origins=[*srflow_origins(config)], unused=UNUSED)


def srflow_origins(config: SRFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one."""
    yield from _upscaler_origins(config.scale, config.encoder_blocks)
    steps = "p" * config.transition_steps + "c" * config.steps
    levels = [LevelLayers(2, steps, splits=level < config.levels - 2) for level in range(config.levels)]
    for origins, networks in layer_origins(levels, injector=config.injector):
        yield from origins
        for ours, published in networks:
            yield from subnet_origins(ours, published, config.hidden_layers)


SRFLOW = Source(
    name="SRFlow",
    licence="SRFlow's published weights: CC BY-NC-SA 4.0, research use only; check the license of your file",
    detect=re.compile(r"flowUpsamplerNet\."),
    layout=_srflow_layout,
)


# --- SRFlow-DA, and its variants -S, -R and -D ------------------------------------------------------------------------

DA_STACKED_BLOCKS = {23: (1, 8, 15, 22)}  # keys: encoder blocks; SRFlow stacks others at 8x


def _srflow_da_layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    kinds = kinds_of(checkpoint)
    if "c" not in kinds:
        raise checkpoint.error("has no conditional steps (layers with affine).")
    subnet = f"{LAYERS}.{kinds.index('c')}.affine.fFeatures"
    if checkpoint.has(re.escape(f"{subnet}1.")):
        first, inner = f"{subnet}1.0", f"{subnet}2."
        blocks = len(checkpoint.indices(re.escape(inner) + r"(\d+)\.\d+\.weight")) or 1
        others = 0
    else:
        first, inner, blocks = f"{subnet}.0", f"{subnet}.", 0
        others = 2  # the first and the last convolution
    hidden, condition = checkpoint.shape(f"{first}.weight", 4)[:2]
    detected: dict[str, Any] = {
        "scale": _scale(checkpoint),
        **encoder_fields(checkpoint),
        "layers": _with_factors(checkpoint, kinds),
        "hidden": hidden,
        "hidden_layers": sum(name.startswith(inner) and name.endswith(".weight") for name in checkpoint.shapes)
        - others,
        "residual_blocks": blocks,
    }
    known = DA_STACKED_BLOCKS.get(detected["encoder_blocks"], ())
    config = stacked_config("srflow_da", checkpoint, detected, condition, known, overrides)
    origins = [*srflow_da_origins(config, numbered=checkpoint.has(r".*\.affine\.fFeatures2\.\d+\.\d+\."))]
    return Layout(architecture="srflow_da", config=config, origins=origins, unused=UNUSED)


def _with_factors(checkpoint: Checkpoint, kinds: str) -> str:
    """Add the factor of every squeeze, by the channels of the next step."""
    layers, channels = "", 3
    for index, kind in enumerate(kinds):
        if kind == "s":
            after = checkpoint.shapes.get(f"{LAYERS}.{index + 1}.invconv.weight", (0,))[0]
            factor = {4: 2, 16: 4, 64: 8}.get(after // channels if after % channels == 0 else 0)
            if factor is None:
                raise checkpoint.error(
                    f"has {after or 'no'} channels in layer {index + 1}, after a squeeze of {channels}; expected "
                    f"{4 * channels}, {16 * channels} or {64 * channels}. Its layers are {kinds[:100]} (squeeze, "
                    "plain, coupled, split).",
                    LACKS_LAYERS,
                )
            kind, channels = f"s{factor}", channels * factor**2
        elif kind == "d":
            channels = max(1, channels // 2)
        layers += kind
    return layers


def srflow_da_origins(config: SRFlowDAConfig, *, numbered: bool = False) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one; -D numbers even a single residual block, -R does not."""
    blocks, hidden_layers, levels = config.residual_blocks, config.hidden_layers, parse_layers(config.layers)
    numbered = numbered or blocks > 1
    yield from _upscaler_origins(config.scale, config.encoder_blocks)
    for origins, networks in layer_origins(levels):
        yield from origins
        for ours, published in networks:
            for k in range(hidden_layers + 1):
                if not blocks:
                    name = f"{published}.{2 * k}"  # the odd indices are activations
                elif k == 0:
                    name = f"{published}1.0"
                else:
                    number, place = divmod(k - 1, hidden_layers // blocks)
                    name = f"{published}2.{number}.{2 * place}" if numbered else f"{published}2.{2 * place}"
                yield from take_conv(f"{ours}.hidden.{k}", name)
            last = f"{published}3.0" if blocks else f"{published}.{2 * (hidden_layers + 1)}"
            yield from take_zero_conv(f"{ours}.last", last)


SRFLOW_DA = Source(
    name="SRFlow-DA",
    licence="SRFlow-DA's published weights: CC BY-NC-SA 4.0, research use only; check the license of your file",
    detect=re.compile(r"flowUpsamplerNet\.layers\.\d+\.affine\.(fAffine|fFeatures)(\.0\.bias$|[123]\.)"),
    layout=_srflow_da_layout,
)
