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

from ...models.glow import GlowConfig
from .glow import (
    CHANGED,
    LICENSE,
    SETTINGS,
    UNTRAINED,
    alternate,
    alternate_swapped,
    first_step,
    is_identity,
    levels_and_steps,
    lu_factors,
    require_bits,
    steps_of,
)
from .source import PER_CHANNEL, SAME, Check, Checkpoint, Form, Layout, Origin, Source, take, take_conv

MATRIX_AS_KERNEL = Form(lambda s: (*s, 1, 1), lambda t: t[:, :, 0, 0])
STEP = r"blocks\.\d+\.flows\.\d+"


def _layout(found: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """The last level holds LU factors even where the others hold matrices; zero convolutions are padded with ones.

    Scales may be negative, and in couplings the raw scales come before the shifts.
    """
    config = _config(found, overrides)
    mask = rf"{STEP}\.invconv\.%s"
    return Layout(
        architecture="glow",
        config=config,
        origins=[*_origins(config)],
        unused=re.compile(rf"{STEP}\.(actnorm\.initialized|invconv\.(l_mask|u_mask|l_eye))"),
        checks=(
            Check(re.compile(rf"{STEP}\.actnorm\.initialized"), lambda t: bool(t.all()), UNTRAINED),
            Check(re.compile(mask % "l_mask"), lambda t: torch.equal(t, torch.ones_like(t).tril(-1)), CHANGED),
            Check(re.compile(mask % "u_mask"), lambda t: torch.equal(t, torch.ones_like(t).triu(1)), CHANGED),
            Check(re.compile(mask % "l_eye"), is_identity, CHANGED),
        ),
    )


def _config(found: Checkpoint, overrides: Mapping[str, Any]) -> GlowConfig:
    shape = levels_and_steps(found, r"blocks\.(\d{1,4})\.flows\.(\d{1,4})\.")
    network = "blocks.0.flows.0.coupling.net"
    channels = found.shape("blocks.0.flows.0.actnorm.loc", 4)[1]
    mixing = "conv" if "weight" in found.parts(r"blocks\.0\.flows\.\d+\.invconv\.") else "lu"
    detected = {
        **SETTINGS,
        **shape,
        "hidden": found.shape(f"{network}.0.weight", 4)[0],
        **first_step(found, channels, found.shape(f"{network}.4.conv.weight", 4)[0]),
        "mixing": mixing,
        "last_mixing": "lu" if mixing == "conv" and shape["levels"] > 1 else "",
        "learned_top": True,
        "classes": 0,
        "edge": "ones",
        "network": "plain",
        "actnorm": "signed",
    }
    require_bits(found, "5 by default", detected, overrides)
    return found.config("glow", detected, {"grid": "bins", "pixels": "centred"}, overrides)


def _origins(config: GlowConfig) -> Iterator[Origin]:
    rows = alternate_swapped if config.coupling == "affine" else None
    for level, k, ours in steps_of(config):
        published = f"blocks.{level}.flows.{k}"
        yield take(f"{ours}.0.bias", f"{published}.actnorm.loc", PER_CHANNEL)
        yield take(f"{ours}.0.scale", f"{published}.actnorm.scale", PER_CHANNEL)
        mixing = (config.last_mixing if level == config.levels - 1 else "") or config.mixing
        if mixing == "conv":
            yield take(f"{ours}.1.weight", f"{published}.invconv.weight", MATRIX_AS_KERNEL)
        else:
            yield from lu_factors(f"{ours}.1", f"{published}.invconv", "w_p s_sign w_l w_u w_s")
        ours, published = f"{ours}.2.conditioner", f"{published}.coupling.net"
        for place in (0, 1):
            yield from take_conv(f"{ours}.hidden.{place}", f"{published}.{2 * place}")
        yield from _zero_conv(f"{ours}.last", f"{published}.4", rows)
    for level in range(config.levels):
        ours = "top.prior.constants" if level == config.levels - 1 else f"levels.{level}.split.conditioner"
        yield from _zero_conv(ours, f"blocks.{level}.prior", alternate)


def _zero_conv(ours: str, published: str, rows: Callable[[Tensor], Tensor] | None) -> Iterator[Origin]:
    for part, name, form in (
        ("weight", "conv.weight", SAME),
        ("bias", "conv.bias", SAME),
        ("log_scale", "scale", PER_CHANNEL),
    ):
        yield take(f"{ours}.{part}", f"{published}.{name}", form.then(rows) if rows else form)


ROSINALITY = Source(
    name="Glow by rosinality",
    licence=LICENSE,
    detect=re.compile(rf"{STEP}\."),
    layout=_layout,
    integers=re.compile(r".*\.(initialized|l_mask|u_mask|l_eye)"),
)
