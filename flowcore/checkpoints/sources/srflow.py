"""The published SRFlow: three upscalers, and variants of them.

Detected by ``flowUpsamplerNet.``, whose layers give levels, steps and transition_steps. The number of ``RRDB.upconvN``
gives the scale, ``RRDB_trunk`` the encoder, and ``fFeatures.0.weight`` hidden and the number of stacked blocks. Which
ones they are is known for the released models; the caller gives them for others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ...models import configure
from ...models.srflow import SRFlowConfig
from .glow import actnorm, zero_conv
from .source import Checkpoint, Layout, Origin, Source, count_levels, missing_field, take, take_conv

# Which encoder blocks are stacked, by (scale, blocks), in the released configurations; not in the files.
STACKED_BLOCKS = {(4, 23): (1, 8, 15, 22), (8, 23): (1, 3, 5, 7), (8, 8): (1, 3, 5, 7)}

# A head that the published program never reads either.
UNUSED = re.compile(r"flowUpsamplerNet\.f\..*")


def _layout(found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    config = _config(found.without(UNUSED), overrides)
    return Layout(architecture="srflow", config=config, origins=[*srflow_origins(config)], unused=UNUSED)


def srflow_origins(config: SRFlowConfig) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one."""
    yield from upscaler_origins(config.scale, config.encoder_blocks)
    level = "s" + "p" * config.transition_steps + "c" * config.steps
    undivided = min(2, config.levels)
    levels = [f"{level}d"] * (config.levels - undivided) + [level] * undivided
    names = ["fFeatures", "fAffine"] if config.injector else ["fAffine"]  # published: always both
    yield from flow_origins(levels, lambda ours, published: subnet(ours, published, config.hidden_layers), names)


def upscaler_origins(scale: int, blocks: int) -> Iterator[Origin]:
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


def flow_origins(
    levels: Iterable[str],
    network: Callable[[str, str], Iterator[Origin]],
    names: Sequence[str] = ("fFeatures", "fAffine"),
) -> Iterator[Origin]:
    """Pair the parameters of a flow, all of whose layers the published programs number in one list.

    Each of ``levels`` is a squeeze ("s", perhaps with a factor) or none, plain ("p") and coupled steps ("c"), a split
    ("d") or none. ``names`` are the published networks in a coupled step, in our order.
    """
    layer = 0
    for level, layers in enumerate(levels):
        layer += layers.startswith("s")
        for step, kind in enumerate(layers.strip("s248d")):
            ours, published = f"levels.{level}.steps.transforms.{step}.transforms", f"flowUpsamplerNet.layers.{layer}"
            yield from actnorm(f"{ours}.0", f"{published}.actnorm")
            yield take(f"{ours}.1.weight", f"{published}.invconv.weight")
            if kind == "c":
                for part, name in enumerate(names, start=2):
                    yield from network(f"{ours}.{part}.conditioner", f"{published}.affine.{name}")
            layer += 1
        if layers.endswith("d"):
            yield from zero_conv(f"levels.{level}.split.conditioner", f"flowUpsamplerNet.layers.{layer}.conv")
            layer += 1


def subnet(ours: str, published: str, hidden_layers: int) -> Iterator[Origin]:
    """Pair the parameters of a ``Conditioner``."""
    for k in range(hidden_layers + 1):
        yield take(f"{ours}.hidden.{k}.weight", f"{published}.{2 * k}.weight")  # the odd indices are activations
        yield from actnorm(f"{ours}.hidden.{k}.actnorm", f"{published}.{2 * k}.actnorm")
    yield from zero_conv(f"{ours}.last", f"{published}.{2 * (hidden_layers + 1)}")


def _config(found: Checkpoint, overrides: Mapping[str, Any]) -> SRFlowConfig:
    levels, transition_steps, steps, coupled = _layers(found)
    subnet = f"flowUpsamplerNet.layers.{coupled}.affine.fFeatures."
    convs = [name for name in found.shapes if name.startswith(subnet) and name.endswith(".weight")]
    hidden_layers = len(convs) - 2
    hidden, condition = found.shape(f"{subnet}0.weight", 4)[:2]
    detected: dict[str, Any] = {
        "scale": encoder_scale(found),
        **encoder_fields(found),
        "levels": levels,
        "steps": steps,
        "transition_steps": transition_steps,
        "hidden": hidden,
        "hidden_layers": hidden_layers,
        "hidden_kernel": found.shape(f"{subnet}2.weight", 4)[-1] if hidden_layers > 0 else 1,
    }
    known = STACKED_BLOCKS.get((detected["scale"], detected["encoder_blocks"]), ())
    return config_of("srflow", found, detected, condition, known, overrides)


def encoder_scale(found: Checkpoint) -> int:
    """Detect the scale of an upscaler's encoder."""
    return 2 ** min(8, len(found.indices(r"RRDB\.upconv(\d+)\.")))


def encoder_fields(found: Checkpoint) -> dict[str, int]:
    """Detect the number of an encoder's blocks, and their widths."""
    return {
        "encoder_blocks": found.count(r"RRDB\.RRDB_trunk\.(\d+)\."),
        "encoder_width": found.shape("RRDB.conv_first.weight", 4)[0],
        "encoder_growth": found.shape("RRDB.RRDB_trunk.0.RDB1.conv1.weight", 4)[0],
    }


def layer_kinds(found: Checkpoint) -> str:
    """Spell the layers of a flow: s for a squeeze (no tensors), p for a plain step, c for a coupled one, d a split."""
    pattern = r"flowUpsamplerNet\.layers\.(\d{1,4})\.(actnorm|invconv|affine|conv)\."
    return found.layers(pattern, {"affine": "c", "conv": "d"})


def _layers(found: Checkpoint) -> tuple[int, int, int, int]:
    """Count levels, plain and coupled steps per level in the layer list, and find the index of a coupled step."""
    sequence = layer_kinds(found)
    levels, transition_steps, steps = count_levels(sequence, undivided=2)
    if not steps:
        raise CheckpointError(
            "the layers of this SRFlow checkpoint are not those of a known variant. Expected per level a squeeze (s), "
            "as many plain (p) and coupled (c) steps as in every other level, and a split (d) after every level but "
            f"the last two; got {sequence[:100] or 'none'}. The file lacks layers, or the variant is not supported."
        )
    return levels, transition_steps, steps, sequence.index("c")


def config_of(
    architecture: str,
    found: Checkpoint,
    detected: Mapping[str, Any],
    condition: int,
    known: tuple[int, ...],
    overrides: Mapping[str, Any],
) -> Any:
    """Make a configuration: ``condition`` channels give how many blocks are stacked, the caller or ``known`` which."""
    blocks = _stacked_blocks(found, detected, condition, known, overrides.get("stacked_blocks"))
    return configure(architecture, {**detected, **overrides, "stacked_blocks": blocks})


def _stacked_blocks(
    found: Checkpoint, detected: Mapping[str, Any], condition: int, known: tuple[int, ...], given: Any
) -> tuple[int, ...]:
    blocks, width = detected["encoder_blocks"], detected["encoder_width"]
    count, rest = divmod(condition - width, width) if width else (-1, 0)
    if rest or count < 0:
        raise CheckpointError(
            f"the condition in this {found.program} checkpoint has {condition} channels, which is no multiple of the "
            f"encoder's width, {width}. The file is damaged, or the variant is not supported."
        )
    if given is not None:
        stacked = (given,) if isinstance(given, int) else given
        if not isinstance(stacked, (list, tuple)):
            raise CheckpointError(f"stacked_blocks must be block indices such as (1, 8, 15, 22); got {given!r}.")
        if len(stacked) != count:
            raise CheckpointError(
                f"stacked_blocks={tuple(stacked)} names {len(stacked)} blocks, but the condition in this checkpoint "
                f"has {condition} channels: {width} native ones and {width} of each of {count} blocks. "
                f"Give {count} indices."
            )
        return tuple(stacked)
    if len(known) == count:
        return known
    if count == 0:
        return ()
    released = f"{found.program} {detected['scale']}x" if "scale" in detected else f"{found.program} model"
    example = [max(0, (k + 1) * blocks // count - 1) for k in range(min(count, 16))]
    raise missing_field(
        "stacked_blocks",
        f"which {count} of the encoder's {blocks} blocks every level sees. No checkpoint holds it, and no released "
        f"{released} has {blocks} blocks and stacks {count} of them.",
        str(tuple(example)),
        ",".join(map(str, example)),
        "gives wrong pictures",
    )


SRFLOW = Source(
    name="SRFlow",
    licence="SRFlow's published weights: CC BY-NC-SA 4.0, research use only; check the license of your file",
    detect=re.compile(r"flowUpsamplerNet\."),
    layout=_layout,
)
