"""Published Glows of openai/glow, the program of its authors: TensorFlow variables under their own names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

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
    levels_and_steps,
    missing_bits,
    parts_of,
    reversals,
    step_name,
)
from .source import (
    Check,
    Form,
    Layout,
    Origin,
    Shapes,
    Source,
    State,
    assemble,
    configured,
    has,
    shape_of,
    shapes_of,
    take,
)

PROGRAM = "Glow by OpenAI"

# TensorFlow's kernels are (height, width, in, out); its vectors are rows.
HWIO = Form(lambda s: (s[2], s[3], s[1], s[0]), lambda t: t.permute(3, 2, 0, 1))
ROW = Form(lambda s: (1, *s), torch.flatten)
ROW_4D = Form(lambda s: (1, 1, 1, *s), torch.flatten)
TRANSPOSED = Form(lambda s: s[::-1], lambda t: t.T)
# (2C, 1, 3, 3): of a kernel that sees 2C channels of zeros and the flag, the flag's part.
FLAG_OF_HWIO = Form(lambda s: (s[2], s[3], s[0] + 1, s[0]), lambda t: t.permute(3, 2, 0, 1)[:, -1:])

# What a TensorFlow checkpoint holds besides: counters, optimizer slots, moving averages of the weights.
TRAINER = re.compile(
    r"global_step|Variable(_\d+)?|adam_t|beta[12]_power|opt(imizer)?/.*|.*/(Adam|Adamax)(_\d+)?"
    r"|.*_adam_(m|v|m1|m2)|.*/ExponentialMovingAverage"
)


def _convert(state: State, overrides: Mapping[str, Any]) -> Flow:
    state = {name.removesuffix(":0"): t for name, t in state.items()}  # TensorFlow's name of a variable's only output
    return assemble(openai_layout(shapes_of(state), overrides), state)


def openai_layout(shapes: Shapes, overrides: Mapping[str, Any]) -> Layout:
    """Describe a checkpoint of OpenAI's program, its TensorFlow variables under their own names.

    Its convolutions see the border as one more channel, the last; its log-scales are stored divided by 3. The top prior
    is a convolution of zeros, of which that channel alone is read.

    Args:
        shapes: Of the file.
        overrides: Configuration fields; ``n_bits`` is needed.

    Returns:
        How it becomes our model.
    """
    shapes = {name: shape for name, shape in shapes.items() if not TRAINER.fullmatch(name)}
    config = _config(shapes, overrides)
    return Layout(
        program=PROGRAM,
        architecture="glow",
        config=config,
        origins=[*_origins(config)],
        given=reversals(config) if config.mixing == "reverse" else {},
        unused=re.compile(rf"model/classifier/.*|model/\d+/\d+/shuffle/indices_inverse|{TRAINER.pattern}"),
        checks=(Check(re.compile(r"model/\d+/\d+/shuffle/indices"), is_permutation, NO_PERMUTATION),),
    )


def _config(shapes: Shapes, overrides: Mapping[str, Any]) -> GlowConfig:
    levels, steps = levels_and_steps(PROGRAM, shapes, r"model/(\d{1,4})/(\d{1,4})/")
    wide = shape_of(PROGRAM, shapes, "model/0/0/actnorm_center/b", 4)[3]
    parts = parts_of(shapes, r"model/\d+/\d+/")
    mixings = {"conv": "invconv/W", "shuffle": "shuffle/indices"}
    told = {
        **SETTINGS,
        "channels": image_channels(PROGRAM, wide),
        "levels": levels,
        "steps": steps,
        "hidden": shape_of(PROGRAM, shapes, "model/0/0/f1/l_1/W", 4)[3],
        "coupling": coupling_kind(PROGRAM, shape_of(PROGRAM, shapes, "model/0/0/f1/l_last/W", 4)[3], wide),
        "mixing": next((mixing for mixing, part in mixings.items() if part in parts), "reverse"),
        "learned_top": has("model/prior/p/")(shapes),
        "classes": 0,
        "edge": "flag",
        "actnorm": "log3",
    }
    if has("model/prior/y_emb/")(shapes):
        told["classes"] = shape_of(PROGRAM, shapes, "model/prior/y_emb/W", 2)[0]
    if "n_bits" not in overrides:
        raise missing_bits(PROGRAM, "8 for CIFAR-10, LSUN and ImageNet, 5 for CelebA-HQ", told)
    return configured(PROGRAM, "glow", told, {"grid": "bins", "pixels": "centred"}, overrides)


def _origins(config: GlowConfig) -> Iterator[Origin]:
    for level in range(config.levels):
        for k in range(config.steps):
            ours, published = step_name(level, k), f"model/{level}/{k}"
            yield from _actnorm(f"{ours}.0", published)
            if config.mixing == "conv":  # it multiplies rows by the matrix from the right
                yield take(f"{ours}.1.weight", f"{published}/invconv/W", TRANSPOSED)
            elif config.mixing == "shuffle":
                yield take(f"{ours}.1.order", f"{published}/shuffle/indices")
            ours, published = f"{ours}.2.conditioner", f"{published}/f1"
            for place in (0, 1):
                yield take(f"{ours}.hidden.{place}.weight", f"{published}/l_{place + 1}/W", HWIO)
                yield from _actnorm(f"{ours}.hidden.{place}.actnorm", f"{published}/l_{place + 1}")
            yield from _zero_conv(f"{ours}.last", f"{published}/l_last")
    for level in range(config.levels - 1):
        yield from _zero_conv(f"levels.{level}.split.conditioner", f"model/pool{level}/conv")
    if config.learned_top:  # means in the first half, log-deviations in the second
        ours, published = "top.prior.constants", "model/prior/p"
        yield take(f"{ours}.weight", f"{published}/W", FLAG_OF_HWIO.then(alternate))
        yield take(f"{ours}.bias", f"{published}/b", ROW_4D.then(alternate))
        yield take(f"{ours}.log_scale", f"{published}/logs", ROW.then(alternate))
    if config.classes:
        ours, published = "top.prior.by_label", "model/prior/y_emb"
        yield take(f"{ours}.weight", f"{published}/W", TRANSPOSED.then(alternate))
        yield take(f"{ours}.bias", f"{published}/b", ROW.then(alternate))
        yield take(f"{ours}.log_scale", f"{published}/logs", ROW.then(alternate))


def _actnorm(ours: str, published: str) -> Iterator[Origin]:
    yield take(f"{ours}.bias", f"{published}/actnorm_center/b", ROW_4D)
    yield take(f"{ours}.log_scale", f"{published}/actnorm_scale/logs", ROW_4D)


def _zero_conv(ours: str, published: str) -> Iterator[Origin]:
    yield take(f"{ours}.weight", f"{published}/W", HWIO)
    yield take(f"{ours}.bias", f"{published}/b", ROW_4D)
    yield take(f"{ours}.log_scale", f"{published}/logs", ROW)


OPENAI = Source(
    name=PROGRAM,
    licence=LICENCE,
    detect=has(r"model/\d+/\d+/"),
    convert=_convert,
    whole=re.compile(rf".*/shuffle/indices(_inverse)?|{TRAINER.pattern}"),
)
