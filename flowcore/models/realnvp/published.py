"""Published Real NVPs of chrischute/real-nvp: the paper's, without batch norm in the flow and without mask channels.

Detected by ``flows.(next_block.)*in_couplings.``, where every ``next_block`` is one more scale.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..source import (
    MIT_PROGRAM,
    Checkpoint,
    Layout,
    Origin,
    Source,
    State,
    alternate_swapped,
    flat_product,
    take,
    take_all,
    take_conv,
    unchanged,
)
from .model import RealNVPConfig

DEPTH = r"flows\.((next_block\.)*)"
PARAMETRIZATION = re.compile(r"\.parametrizations\.weight\.original([01])$")


def _to_older_names(state: State) -> State:
    """Rename what newer versions of torch call differently in weight normalization."""
    renamed: dict[str, Tensor] = {}
    for name, t in state.items():
        older = PARAMETRIZATION.sub(lambda m: ".weight_g" if m[1] == "0" else ".weight_v", name)
        renamed[name if older in state else older] = t
    return renamed


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    constraint = checkpoint.state.get("data_constraint")
    if constraint is None or constraint.numel() != 1:
        raise checkpoint.error("has no tensor data_constraint that is a single number.")
    depths = {len(m[1]) // len("next_block.") for name in checkpoint.shapes if (m := re.match(DEPTH, name))}
    first = "flows.in_couplings.0.st_net"
    detected = {
        "channels": checkpoint.shape(f"{first}.in_norm.weight", 1)[0],
        "scales": max(depths) + 1,
        "hidden": checkpoint.shape(f"{first}.in_conv.conv.weight_v", 4)[0],
        "blocks": len(checkpoint.indices(re.escape(first) + r"\.blocks\.(\d+)\.")),
        "batch_norm": False,
        "mask_channel": False,
        "alpha": (1 - float(constraint)) / 2,
    }
    config: RealNVPConfig = checkpoint.config("realnvp", detected, {"n_bits": 8, "grid": "bins"}, overrides)
    origins: list[Origin] = []
    for level in range(config.scales):
        last = level == config.scales - 1
        ours, published = f"levels.{level}.steps.transforms", "flows." + "next_block." * level
        for k in range(4 if last else 3):
            origins += _coupling(f"{ours}.{k}.conditioner", f"{published}in_couplings.{k}", config)
        for k in range(0 if last else 3):  # our fourth step is a squeeze
            origins += _coupling(f"{ours}.{4 + k}.conditioner", f"{published}out_couplings.{k}", config)
    unused = re.compile(r"data_constraint|.*\.num_batches_tracked")
    return Layout(architecture="realnvp", config=config, origins=origins, unused=unused)


def _coupling(ours: str, published: str, config: RealNVPConfig) -> Iterator[Origin]:
    net = f"{published}.st_net"
    yield from _norm(f"{ours}.norm_in", f"{net}.in_norm")
    yield from _conv(f"{ours}.conv_in", f"{net}.in_conv")
    yield from _conv(f"{ours}.skips.0", f"{net}.in_skip")
    for k in range(config.blocks):
        yield from _norm(f"{ours}.blocks.{k}.norms.0", f"{net}.blocks.{k}.in_norm")
        yield from _conv(f"{ours}.blocks.{k}.convs.0", f"{net}.blocks.{k}.in_conv", bias=False)
        yield from _norm(f"{ours}.blocks.{k}.norms.1", f"{net}.blocks.{k}.out_norm")
        yield from _conv(f"{ours}.blocks.{k}.convs.1", f"{net}.blocks.{k}.out_conv")
        yield from _conv(f"{ours}.skips.{k + 1}", f"{net}.skips.{k}")
    yield from _norm(f"{ours}.norm_out", f"{net}.out_norm")
    yield from _conv(f"{ours}.conv_out", f"{net}.out_conv", rows=alternate_swapped)
    rescale = f"{published}.rescale.weight_g", f"{published}.rescale.weight_v"
    yield Origin(f"{ours}.rescale", rescale, _signed)


def _signed(length: Tensor, direction: Tensor) -> Tensor:
    """One number per channel, as length times direction: the direction is a sign."""
    return flat_product(length, direction.sign())


def _norm(ours: str, published: str) -> Iterator[Origin]:
    yield from take_conv(ours, published)
    yield from take_all(f"{ours}.norm", f"{published}.running_", {"mean": "mean", "var": "var"})


def _conv(
    ours: str, published: str, *, bias: bool = True, rows: Callable[[Tensor], Tensor] = unchanged
) -> Iterator[Origin]:
    yield take(f"{ours}.direction", f"{published}.conv.weight_v", rows)
    yield take(f"{ours}.length", f"{published}.conv.weight_g", lambda t: rows(t.flatten()))
    if bias:
        yield take(f"{ours}.bias", f"{published}.conv.bias", rows)


CHRISCHUTE = Source(
    name="Real NVP by chrischute",
    licence=MIT_PROGRAM,
    detect=re.compile(r"flows\.(next_block\.)*(in|out)_couplings\."),
    layout=_layout,
    integers=re.compile(r".*\.num_batches_tracked"),
    rename=_to_older_names,
)
