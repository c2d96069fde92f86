"""Published Glows of rosinality/glow-pytorch.

Detected by ``blocks.LEVEL.flows.STEP.``, whose numbers give levels and steps. ``actnorm.loc`` gives channels,
``coupling.net.0.weight`` hidden, the outputs of ``coupling.net.4.conv`` coupling, and ``invconv.weight`` mixing "conv",
otherwise "lu". The caller gives n_bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .glow import (
    CHANGED,
    LICENSE,
    SETTINGS,
    UNTRAINED,
    alternate,
    alternate_swapped,
    first_step,
    glow_layout,
    is_identity,
    levels_and_steps,
    lu_factors,
    require_bits,
)
from .source import PER_CHANNEL, SAME, Check, Checkpoint, Form, Layout, Origin, Source, take, take_conv

MATRIX_AS_KERNEL = Form(lambda s: (*s, 1, 1), lambda t: t[:, :, 0, 0])
STEP = r"blocks\.\d+\.flows\.\d+"


def _zero_conv(ours: str, published: str, rows: Callable[[Tensor], Tensor]) -> Iterator[Origin]:
    yield take(f"{ours}.weight", f"{published}.conv.weight", SAME.then(rows))
    yield take(f"{ours}.bias", f"{published}.conv.bias", SAME.then(rows))
    yield take(f"{ours}.log_scale", f"{published}.scale", PER_CHANNEL.then(rows))


def _table(rows: Callable[[Tensor], Tensor]) -> Iterator[Origin]:
    """``rows`` puts those of the last convolution of a coupling into our order."""
    step, network = "blocks.{level}.flows.{k}", "2.conditioner"
    yield take("0.bias", f"{step}.actnorm.loc", PER_CHANNEL)
    yield take("0.scale", f"{step}.actnorm.scale", PER_CHANNEL)
    yield take("1.weight", f"{step}.invconv.weight", MATRIX_AS_KERNEL)
    yield from lu_factors("1", f"{step}.invconv", "w_p s_sign w_l w_u w_s")
    yield from take_conv(f"{network}.hidden.0", f"{step}.coupling.net.0")
    yield from take_conv(f"{network}.hidden.1", f"{step}.coupling.net.2")
    yield from _zero_conv(f"{network}.last", f"{step}.coupling.net.4", rows)
    yield from _zero_conv("split.conditioner", "blocks.{level}.prior", alternate)
    yield from _zero_conv("top.prior.constants", "blocks.{level}.prior", alternate)


def _layout(found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """The last level holds LU factors even where the others hold matrices; zero convolutions are padded with ones.

    Scales may be negative, and in couplings the raw scales come before the shifts.
    """
    first = "blocks.0.flows.0"
    shape = levels_and_steps(found, r"blocks\.(\d{1,4})\.flows\.(\d{1,4})\.")
    mixing = "conv" if "weight" in found.parts(r"blocks\.0\.flows\.\d+\.invconv\.") else "lu"
    detected = {
        **SETTINGS,
        **shape,
        **first_step(
            found, f"{first}.actnorm.loc", f"{first}.coupling.net.0.weight", f"{first}.coupling.net.4.conv.weight"
        ),
        "mixing": mixing,
        "last_mixing": "lu" if mixing == "conv" and shape["levels"] > 1 else "",
        "edge": "ones",
        "network": "plain",
        "actnorm": "signed",
    }
    require_bits(found, "5 by default", detected, overrides)
    config = found.config("glow", detected, {"grid": "bins", "pixels": "centred"}, overrides)
    mask = rf"{STEP}\.invconv\.%s"
    return glow_layout(
        config,
        _table(alternate_swapped if config.coupling == "affine" else lambda t: t),
        unused=re.compile(rf"{STEP}\.(actnorm\.initialized|invconv\.(l_mask|u_mask|l_eye))"),
        checks=(
            Check(re.compile(rf"{STEP}\.actnorm\.initialized"), lambda t: bool(t.all()), UNTRAINED),
            Check(re.compile(mask % "l_mask"), lambda t: torch.equal(t, torch.ones_like(t).tril(-1)), CHANGED),
            Check(re.compile(mask % "u_mask"), lambda t: torch.equal(t, torch.ones_like(t).triu(1)), CHANGED),
            Check(re.compile(mask % "l_eye"), is_identity, CHANGED),
        ),
    )


ROSINALITY = Source(
    name="Glow by rosinality",
    licence=LICENSE,
    detect=re.compile(rf"{STEP}\."),
    layout=_layout,
    integers=re.compile(r".*\.(initialized|l_mask|u_mask|l_eye)"),
)
