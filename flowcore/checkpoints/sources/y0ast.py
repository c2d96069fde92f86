"""Published Glows of y0ast/Glow-PyTorch and chaiyujin/glow-pytorch: one design in two spellings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...flow import Flow
from ...models.glow import GlowConfig
from .glow import (
    LICENCE,
    NO_PERMUTATION,
    SETTINGS,
    alternate,
    coupling_kind,
    image_channels,
    is_permutation,
    level_channels,
    lu_factors,
    parts_of,
    reversals,
    step_name,
)
from .source import (
    PER_CHANNEL,
    PER_OUTPUT,
    SAME,
    Check,
    Layout,
    Origin,
    Shapes,
    Source,
    State,
    assemble,
    configured,
    has,
    missing_field,
    shape_of,
    shapes_of,
    take,
)


@dataclass(frozen=True)
class Spelling:
    """Names in which y0ast's and chaiyujin's programs differ.

    Attributes:
        program: Its name.
        grid: Where its pixel values lie in [0, 1].
        pixels: What the first level sees.
        network: Name of a coupling's network.
        conv: What leads from a convolution with a scale or an actnorm to its kernel.
        linear: What leads from the linear map of labels to its matrix.
        lower: Name of the lower triangular factor.
        upper: Name of the upper one.
        top: Name of the learned constants.
    """

    program: str
    grid: str
    pixels: str
    network: str
    conv: str
    linear: str
    lower: str
    upper: str
    top: str


Y0AST_NAMES = Spelling(
    "Glow by y0ast", "bins", "centred", "block", ".conv", ".linear", "lower", "upper", "learn_top_fn"
)
CHAIYUJIN_NAMES = Spelling("Glow by chaiyujin", "levels", "unit", "f", "", "", "l", "u", "learn_top")

SHUFFLE_INDICES = re.compile(r"(__extra__\.)?flow\.layers\.(\d+)\.shuffle\.indices")


def _convert(spelling: Spelling) -> Callable[[State, Mapping[str, Any]], Flow]:
    def convert(state: State, overrides: Mapping[str, Any]) -> Flow:
        return assemble(layers_layout(spelling, shapes_of(state), overrides), state)

    return convert


def layers_layout(spelling: Spelling, shapes: Shapes, overrides: Mapping[str, Any]) -> Layout:
    """Describe a checkpoint of y0ast's or chaiyujin's program.

    Their zero padding makes the top prior's convolution of zeros a constant, so its kernel is never read.

    Args:
        spelling: Which of them.
        shapes: Of the file.
        overrides: Configuration fields, and ``permutations``.

    Returns:
        How it becomes our model.
    """
    overrides = dict(overrides)
    permutations = overrides.pop("permutations", None)
    levels, steps = _levels_and_steps(spelling, shapes)
    saved = {int(m[2][:9]): name for name in shapes if (m := SHUFFLE_INDICES.fullmatch(name))}
    config = _config(spelling, shapes, overrides, levels, steps, bool(saved or permutations is not None))
    origins = [*_origins(spelling, config)]
    given: dict[str, Tensor] = {}
    if config.mixing == "shuffle" and permutations is None:
        for level, k, layer in _numbered(config):
            indices = saved.get(layer, f"flow.layers.{layer}.shuffle.indices")
            origins.append(take(f"{step_name(level, k)}.1.order", indices))
    elif config.mixing == "shuffle":
        given = _orders(permutations, config)
    elif config.mixing == "reverse":
        given = reversals(config)
    return Layout(
        program=spelling.program,
        architecture="glow",
        config=config,
        origins=origins,
        given=given,
        unused=re.compile(
            rf"prior_h|project_class\..*|{spelling.top}{re.escape(spelling.conv)}\.weight"
            + (rf"|{SHUFFLE_INDICES.pattern}" if permutations is not None else "")
        ),
        checks=(
            Check(
                re.compile("prior_h"),
                lambda t: not bool(t.any()),
                "is expected to be zero, since that is what the top prior is computed from, and is not. The file is of "
                "a changed program, which is not supported.",
            ),
            Check(SHUFFLE_INDICES, is_permutation, NO_PERMUTATION),
        ),
    )


def _config(
    spelling: Spelling, shapes: Shapes, overrides: Mapping[str, Any], levels: int, steps: int, shuffled: bool
) -> GlowConfig:
    program, first = spelling.program, "flow.layers.1"
    wide = shape_of(program, shapes, f"{first}.actnorm.bias", 4)[1]
    network = f"{first}.{spelling.network}"
    outputs = shape_of(program, shapes, f"{network}.4{spelling.conv}.weight", 4)[0]
    told: dict[str, Any] = {
        "channels": image_channels(program, wide),
        "levels": levels,
        "steps": steps,
        "hidden": shape_of(program, shapes, f"{network}.0{spelling.conv}.weight", 4)[0],
        "coupling": coupling_kind(program, outputs, wide),
        "learned_top": has(rf"{spelling.top}\.")(shapes),
        "classes": 0,
        **SETTINGS,
    }
    if has(r"project_ycond\.")(shapes):
        told["classes"] = shape_of(program, shapes, f"project_ycond{spelling.linear}.weight", 2)[1]
    if mixing := parts_of(shapes, r"flow\.layers\.\d+\.invconv\."):
        told["mixing"] = "conv" if "weight" in mixing else "lu"
        if shuffled:
            raise CheckpointError(
                "permutations are given, but this network mixes its channels by 1x1 convolutions. Leave them out."
            )
    elif shuffled:
        told["mixing"] = "shuffle"
    elif overrides.get("mixing") != "reverse":
        raise missing_field(
            "permutations",
            f"the order that each of the {levels * steps} steps ({levels} levels of {steps}) puts its channels in. This"
            f" network has no 1x1 convolutions, and {program} does not save the order. If it was trained with "
            'flow_permutation "reverse", give mixing="reverse" (--set mixing=reverse) instead. If it was "shuffle", '
            "there is one list of indices per step, finest level first.",
            "[[3, 0, ...], ...]",
            "'[[3,0,...],...]'",
            "gives noise for pictures",
        )
    if "prior_h" in shapes:
        sides = shape_of(program, shapes, "prior_h", 4)[2:]
        told["image_size"] = tuple(side * 2**levels for side in sides)
    assumed = {"n_bits": 8, "grid": spelling.grid, "pixels": spelling.pixels}
    return configured(program, "glow", told, assumed, overrides)


def _levels_and_steps(spelling: Spelling, shapes: Shapes) -> tuple[int, int]:
    """Read levels and steps per level off the layer list: a squeeze, which has no tensors, steps, and a split."""
    kinds: dict[int, str] = {}
    for name in shapes:
        if match := re.match(r"flow\.layers\.(\d{1,4})\.(conv\.)?", name):
            kinds[int(match[1])] = "d" if match[2] else "p"
    sequence = "".join(kinds.get(k, "s") for k in range(max(kinds, default=-1) + 1))
    parts = [re.fullmatch(r"(p+)(d?)", part) for part in sequence.split("s")[1:]]
    steps = {len(part[1]) for part in parts if part}
    splits = [bool(part[2]) for part in parts if part]
    regular = sequence.startswith("s") and None not in parts and len(steps) == 1
    if not regular or splits != [True] * (len(parts) - 1) + [False]:
        raise CheckpointError(
            f"the layers of this checkpoint of {spelling.program} are not those of a known variant. Expected per level "
            "a squeeze (s), as many steps (p) as in every other level, and a split (d) after every level but the last; "
            f"came {sequence[:100] or 'none'}. The file lacks layers, or the variant is not supported."
        )
    return len(parts), steps.pop()


def _numbered(config: GlowConfig) -> Iterator[tuple[int, int, int]]:
    """Level, step and place in the layer list, of every step."""
    for level in range(config.levels):
        for k in range(config.steps):
            yield level, k, level * (config.steps + 2) + 1 + k


def _origins(spelling: Spelling, config: GlowConfig) -> Iterator[Origin]:
    conv = spelling.conv
    for level, k, layer in _numbered(config):
        ours, published = step_name(level, k), f"flow.layers.{layer}"
        yield from _actnorm(f"{ours}.0", f"{published}.actnorm")
        if config.mixing == "conv":
            yield take(f"{ours}.1.weight", f"{published}.invconv.weight")
        elif config.mixing == "lu":
            yield from lu_factors(
                f"{ours}.1",
                f"{published}.invconv",
                lower=spelling.lower,
                upper=spelling.upper,
                log="log_s",
                permutation="p",
                sign="sign_s",
            )
        ours, published = f"{ours}.2.conditioner", f"{published}.{spelling.network}"
        for place in (0, 1):
            yield take(f"{ours}.hidden.{place}.weight", f"{published}.{2 * place}{conv}.weight")
            yield from _actnorm(f"{ours}.hidden.{place}.actnorm", f"{published}.{2 * place}.actnorm")
        yield from _zero_conv(f"{ours}.last", f"{published}.4", conv)
    for level in range(config.levels - 1):
        layer = level * (config.steps + 2) + 1 + config.steps
        yield from _zero_conv(f"levels.{level}.split.conditioner", f"flow.layers.{layer}.conv", conv)
    if config.learned_top:  # means in the first half, log-deviations in the second
        yield take("top.prior.constants.bias", f"{spelling.top}{conv}.bias", SAME.then(alternate))
        yield take("top.prior.constants.log_scale", f"{spelling.top}.logs", PER_OUTPUT.then(alternate))
    if config.classes:
        linear = f"project_ycond{spelling.linear}"
        yield take("top.prior.by_label.weight", f"{linear}.weight", SAME.then(alternate))
        yield take("top.prior.by_label.bias", f"{linear}.bias", SAME.then(alternate))
        yield take("top.prior.by_label.log_scale", "project_ycond.logs", SAME.then(alternate))


def _actnorm(ours: str, published: str) -> Iterator[Origin]:
    yield take(f"{ours}.bias", f"{published}.bias", PER_CHANNEL)
    yield take(f"{ours}.log_scale", f"{published}.logs", PER_CHANNEL)


def _zero_conv(ours: str, published: str, conv: str) -> Iterator[Origin]:
    yield take(f"{ours}.weight", f"{published}{conv}.weight")
    yield take(f"{ours}.bias", f"{published}{conv}.bias")
    yield take(f"{ours}.log_scale", f"{published}.logs", PER_OUTPUT)


def _orders(permutations: Any, config: GlowConfig) -> dict[str, Tensor]:
    """Read permutations that the caller gives, one list per step, finest level first."""
    count = config.levels * config.steps
    if not isinstance(permutations, Sequence) or len(permutations) != count:
        came = f"{len(permutations)}" if isinstance(permutations, Sequence) else repr(permutations)[:60]
        raise CheckpointError(
            f"permutations must be {count} lists of indices, one for each of {config.steps} steps on {config.levels} "
            f"levels, finest level first; got {came}."
        )
    orders: dict[str, Tensor] = {}
    for number, order in enumerate(permutations):
        level, k = divmod(number, config.steps)
        width = level_channels(config, level)
        whole = isinstance(order, (list, tuple)) and all(type(index) is int for index in order)
        if not whole or sorted(order) != list(range(width)):
            raise CheckpointError(
                f"permutations[{number}], of step {k} on level {level}, must list each of 0 to {width - 1} once; got "
                f"{str(order)[:80]}."
            )
        orders[f"{step_name(level, k)}.1.order"] = torch.tensor(order)
    return orders


Y0AST = Source(
    name=Y0AST_NAMES.program,
    licence=LICENCE,
    detect=has(r"flow\.layers\.\d+\.block\."),
    convert=_convert(Y0AST_NAMES),
    whole=SHUFFLE_INDICES,
)

CHAIYUJIN = Source(
    name=CHAIYUJIN_NAMES.program,
    licence=LICENCE,
    detect=has(r"flow\.layers\.\d+\.f\."),
    convert=_convert(CHAIYUJIN_NAMES),
    whole=SHUFFLE_INDICES,
)
