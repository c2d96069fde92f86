"""Published Glows of y0ast/Glow-PyTorch and chaiyujin/glow-pytorch: one design under two sets of names.

Detected by ``flow.layers.N.block.`` and ``flow.layers.N.f.``; the numbers give levels and steps. Layer 1 gives channels
(``actnorm.bias``), hidden and coupling (its network), ``invconv`` mixing, ``project_ycond`` classes, and ``prior_h``
image_size. Without ``invconv``, permutations come from ``shuffle.indices``, or from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...models.glow import GlowConfig
from .glow import LICENSE, SETTINGS, actnorm, alternate, first_step, glow_layout, lu_factors, zero_conv
from .source import (
    PER_OUTPUT,
    SAME,
    Check,
    Checkpoint,
    Layout,
    Origin,
    Source,
    count_levels,
    missing_field,
    take,
    take_all,
)


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Names and pixel conventions in which the two programs differ."""

    grid: str
    pixels: str
    network: str  # of a coupling
    conv: str  # from a convolution with a scale or an actnorm to its kernel
    linear: str  # from the linear map of labels to its matrix
    factors: str  # see ``lu_factors``
    top: str  # the learned constants


Y0AST_NAMING = Naming(
    grid="bins",
    pixels="centred",
    network="block",
    conv=".conv",
    linear=".linear",
    factors="p sign_s lower upper log_s",
    top="learn_top_fn",
)
CHAIYUJIN_NAMING = Naming(
    grid="levels", pixels="unit", network="f", conv="", linear="", factors="p sign_s l u log_s", top="learn_top"
)

SHUFFLE_INDICES = re.compile(r"(__extra__\.)?flow\.layers\.\d+\.shuffle\.indices")


def _table(naming: Naming) -> Iterator[Origin]:
    step, network = "flow.layers.{layer}", "2.conditioner"
    net, conv, linear = f"{step}.{naming.network}", naming.conv, f"project_ycond{naming.linear}"
    yield from actnorm("0", f"{step}.actnorm")
    yield take("1.weight", f"{step}.invconv.weight")
    yield from lu_factors("1", f"{step}.invconv", naming.factors)
    yield take("1.order", f"{step}.shuffle.indices")
    for place in (0, 1):
        yield take(f"{network}.hidden.{place}.weight", f"{net}.{2 * place}{conv}.weight")
        yield from actnorm(f"{network}.hidden.{place}.actnorm", f"{net}.{2 * place}.actnorm")
    yield from zero_conv(f"{network}.last", f"{net}.4", conv)
    yield from zero_conv("split.conditioner", f"{step}.conv", conv)
    # Means in the first half of the rows, log-deviations in the second.
    yield take("top.prior.constants.bias", f"{naming.top}{conv}.bias", SAME.then(alternate))
    yield take("top.prior.constants.log_scale", f"{naming.top}.logs", PER_OUTPUT.then(alternate))
    names = {"weight": f"{linear}.weight", "bias": f"{linear}.bias", "log_scale": "project_ycond.logs"}
    yield from take_all("top.prior.by_label", "", names, SAME.then(alternate))


def _layout(naming: Naming, found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """Zero padding makes the top prior's convolution of zeros a constant, so its kernel is never read."""
    overrides = dict(overrides)
    permutations = overrides.pop("permutations", None)
    saved = any(SHUFFLE_INDICES.fullmatch(name) for name in found.shapes)
    config = _config(naming, found, overrides, shuffled=saved or permutations is not None)
    unused = rf"prior_h|project_class\..*|{naming.top}{re.escape(naming.conv)}\.weight"
    return glow_layout(
        config,
        _table(naming),
        {} if permutations is None or config.mixing != "shuffle" else _orders(permutations, config),
        unused=re.compile(unused if permutations is None else f"{unused}|{SHUFFLE_INDICES.pattern}"),
        checks=(
            Check(
                re.compile("prior_h"),
                lambda t: not bool(t.any()),
                "is expected to be zero, because the top prior is computed from it, and is not. The file is of "
                "a changed program, which is not supported.",
            ),
        ),
    )


def _config(naming: Naming, found: Checkpoint, overrides: Mapping[str, Any], *, shuffled: bool) -> GlowConfig:
    shape = _levels_and_steps(found)
    levels, steps = shape["levels"], shape["steps"]
    network, conv = f"flow.layers.1.{naming.network}", naming.conv
    detected: dict[str, Any] = {
        **shape,
        **first_step(found, "flow.layers.1.actnorm.bias", f"{network}.0{conv}.weight", f"{network}.4{conv}.weight"),
        **SETTINGS,
        "learned_top": found.has(rf"{naming.top}\."),
    }
    if found.has(r"project_ycond\."):
        detected["classes"] = found.shape(f"project_ycond{naming.linear}.weight", 2)[1]
    if mixing := found.parts(r"flow\.layers\.\d+\.invconv\."):
        detected["mixing"] = "conv" if "weight" in mixing else "lu"
        if shuffled:
            raise CheckpointError(
                "permutations are given, but this network mixes its channels by 1x1 convolutions. Leave them out."
            )
    elif shuffled:
        detected["mixing"] = "shuffle"
    elif overrides.get("mixing") != "reverse":
        raise missing_field(
            "permutations",
            f"the order that each of the {levels * steps} steps ({levels} levels of {steps}) puts its channels in. This"
            f" network has no 1x1 convolutions, and {found.program} does not save the order. If it was trained with "
            'flow_permutation "reverse", give mixing="reverse" (--set mixing=reverse) instead. If it was "shuffle", '
            "there is one list of indices per step, finest level first.",
            "[[3, 0, ...], ...]",
            "'[[3,0,...],...]'",
            "gives noise for pictures",
        )
    if "prior_h" in found.shapes:
        sides = found.shape("prior_h", 4)[2:]
        detected["image_size"] = tuple(side * 2**levels for side in sides)
    defaults = {"n_bits": 8, "grid": naming.grid, "pixels": naming.pixels}
    return found.config("glow", detected, defaults, overrides)


def _levels_and_steps(found: Checkpoint) -> dict[str, int]:
    """Count levels and steps per level in the layer list: a squeeze, which has no tensors, steps, and a split."""
    sequence = found.layers(r"flow\.layers\.(\d{1,4})\.(conv\.)?", {"conv.": "d"})
    levels, steps, _ = count_levels(sequence, undivided=1)
    if not steps:
        raise CheckpointError(
            f"the layers of this checkpoint of {found.program} are not those of a known variant. Expected per level "
            "a squeeze (s), as many steps (p) as in every other level, and a split (d) after every level but the last; "
            f"got {sequence[:100] or 'none'}. The file lacks layers, or the variant is not supported."
        )
    return {"levels": levels, "steps": steps}


def _orders(permutations: Any, config: GlowConfig) -> dict[str, Tensor]:
    """Validate channel orders given by the caller: one list per step, finest level first."""
    count = config.levels * config.steps
    if not isinstance(permutations, Sequence) or len(permutations) != count:
        actual = f"{len(permutations)}" if isinstance(permutations, Sequence) else repr(permutations)[:60]
        raise CheckpointError(
            f"permutations must be {count} lists of indices, one for each of {config.steps} steps on {config.levels} "
            f"levels, finest level first; got {actual}."
        )
    orders: dict[str, Tensor] = {}
    for number, order in enumerate(permutations):
        level, k = divmod(number, config.steps)
        channels = config.channels * 4 * 2**level
        integers = isinstance(order, (list, tuple)) and all(type(index) is int for index in order)
        if not integers or sorted(order) != list(range(channels)):
            raise CheckpointError(
                f"permutations[{number}], of step {k} on level {level}, must list each of 0 to {channels - 1} once; "
                f"got {str(order)[:80]}."
            )
        orders[f"levels.{level}.steps.transforms.{k}.transforms.1.order"] = torch.tensor(order)
    return orders


Y0AST = Source(
    name="Glow by y0ast",
    licence=LICENSE,
    detect=re.compile(r"flow\.layers\.\d+\.block\."),
    layout=partial(_layout, Y0AST_NAMING),
    integers=SHUFFLE_INDICES,
    rename=lambda state: {name.removeprefix("__extra__."): t for name, t in state.items()},
)

CHAIYUJIN = Source(
    name="Glow by chaiyujin",
    licence=LICENSE,
    detect=re.compile(r"flow\.layers\.\d+\.f\."),
    layout=partial(_layout, CHAIYUJIN_NAMING),
    integers=SHUFFLE_INDICES,
    rename=lambda state: {name.removeprefix("__extra__."): t for name, t in state.items()},
)
