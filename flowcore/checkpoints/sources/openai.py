"""Published Glows of openai/glow, the authors' program: TensorFlow variables under their own names.

Detected by ``model/LEVEL/STEP/``, whose numbers give levels and steps. ``actnorm_center/b`` gives channels,
``f1/l_1/W`` hidden, the outputs of ``f1/l_last/W`` coupling, ``invconv/W`` or ``shuffle/indices`` mixing, ``prior/p``
learned_top, and ``prior/y_emb/W`` classes. The caller gives n_bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .glow import LICENSE, SETTINGS, alternate, first_step, glow_layout, levels_and_steps, require_bits
from .source import Checkpoint, Form, Layout, Origin, Source, take, take_all

# TensorFlow's kernels are (height, width, in, out); its vectors are rows.
HWIO = Form(lambda s: (s[2], s[3], s[1], s[0]), lambda t: t.permute(3, 2, 0, 1))
ROW = Form(lambda s: (1, *s), torch.flatten)
ROW_4D = Form(lambda s: (1, 1, 1, *s), torch.flatten)
TRANSPOSED = Form(lambda s: s[::-1], lambda t: t.T)
# Ours is (2C, 1, 3, 3): the border flag's part of a kernel that sees 2C channels of zeros and the flag.
FLAG_OF_HWIO = Form(lambda s: (s[2], s[3], s[0] + 1, s[0]), lambda t: t.permute(3, 2, 0, 1)[:, -1:])

# What else a TensorFlow checkpoint holds: counters, optimizer slots, moving averages of the weights.
TRAINER = re.compile(
    r"global_step|Variable(_\d+)?|adam_t|beta[12]_power|opt(imizer)?/.*|.*/(Adam|Adamax)(_\d+)?"
    r"|.*_adam_(m|v|m1|m2)|.*/ExponentialMovingAverage"
)


def _actnorm(ours: str, published: str) -> Iterator[Origin]:
    return take_all(ours, f"{published}/actnorm_", {"bias": "center/b", "log_scale": "scale/logs"}, ROW_4D)


def _zero_conv(ours: str, published: str) -> Iterator[Origin]:
    yield take(f"{ours}.weight", f"{published}/W", HWIO)
    yield take(f"{ours}.bias", f"{published}/b", ROW_4D)
    yield take(f"{ours}.log_scale", f"{published}/logs", ROW)


STEP, NETWORK = "model/{level}/{k}", "2.conditioner"
TABLE = (
    *_actnorm("0", STEP),
    take("1.weight", f"{STEP}/invconv/W", TRANSPOSED),  # it multiplies rows by the matrix from the right
    take("1.order", f"{STEP}/shuffle/indices"),
    take(f"{NETWORK}.hidden.0.weight", f"{STEP}/f1/l_1/W", HWIO),
    *_actnorm(f"{NETWORK}.hidden.0.actnorm", f"{STEP}/f1/l_1"),
    take(f"{NETWORK}.hidden.1.weight", f"{STEP}/f1/l_2/W", HWIO),
    *_actnorm(f"{NETWORK}.hidden.1.actnorm", f"{STEP}/f1/l_2"),
    *_zero_conv(f"{NETWORK}.last", f"{STEP}/f1/l_last"),
    *_zero_conv("split.conditioner", "model/pool{level}/conv"),
    # Means in the first half of the rows, log-deviations in the second.
    take("top.prior.constants.weight", "model/prior/p/W", FLAG_OF_HWIO.then(alternate)),
    take("top.prior.constants.bias", "model/prior/p/b", ROW_4D.then(alternate)),
    take("top.prior.constants.log_scale", "model/prior/p/logs", ROW.then(alternate)),
    take("top.prior.by_label.weight", "model/prior/y_emb/W", TRANSPOSED.then(alternate)),
    take("top.prior.by_label.bias", "model/prior/y_emb/b", ROW.then(alternate)),
    take("top.prior.by_label.log_scale", "model/prior/y_emb/logs", ROW.then(alternate)),
)


def _layout(found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """Convolutions see the border as one more channel, the last; log-scales are stored divided by 3.

    The top prior is a convolution of zeros, so only its kernel for the border channel is read.
    """
    found = found.without(TRAINER)
    parts = found.parts(r"model/\d+/\d+/")
    mixings = {"conv": "invconv/W", "shuffle": "shuffle/indices"}
    detected = {
        **SETTINGS,
        **levels_and_steps(found, r"model/(\d{1,4})/(\d{1,4})/"),
        **first_step(found, "model/0/0/actnorm_center/b", "model/0/0/f1/l_1/W", "model/0/0/f1/l_last/W", (3, 3, 3)),
        "mixing": next((mixing for mixing, part in mixings.items() if part in parts), "reverse"),
        "learned_top": found.has("model/prior/p/"),
        "classes": found.shape("model/prior/y_emb/W", 2)[0] if found.has("model/prior/y_emb/") else 0,
        "edge": "flag",
        "actnorm": "log3",
    }
    require_bits(found, "8 for CIFAR-10, LSUN and ImageNet, 5 for CelebA-HQ", detected, overrides)
    config = found.config("glow", detected, {"grid": "bins", "pixels": "centred"}, overrides)
    unused = rf"model/classifier/.*|model/\d+/\d+/shuffle/indices_inverse|{TRAINER.pattern}"
    return glow_layout(config, TABLE, unused=re.compile(unused))


OPENAI = Source(
    name="Glow by OpenAI",
    licence=LICENSE,
    detect=re.compile(r"model/\d+/\d+/"),
    layout=_layout,
    integers=re.compile(rf".*/shuffle/indices(_inverse)?|{TRAINER.pattern}"),
    rename=lambda state: {name.removesuffix(":0"): t for name, t in state.items()},  # a variable's only output
)
