"""Published Glows of rosinality/glow-pytorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...flow import Flow
from ...models.glow import GlowConfig
from .glow import (
    CHANGED,
    LICENCE,
    UNTRAINED,
    alternate,
    alternate_swapped,
    coupling_kind,
    image_channels,
    is_identity,
    levels_and_steps,
    lu_factors,
    missing_bits,
    parts_of,
    step_name,
)
from .source import (
    PER_CHANNEL,
    SAME,
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

PROGRAM = "Glow by rosinality"

MATRIX_AS_KERNEL = Form(lambda s: (*s, 1, 1), lambda t: t[:, :, 0, 0])


def _convert(state: State, overrides: Mapping[str, Any]) -> Flow:
    return assemble(rosinality_layout(shapes_of(state), overrides), state)


def rosinality_layout(shapes: Shapes, overrides: Mapping[str, Any]) -> Layout:
    """Describe a checkpoint of rosinality's program.

    Its last level holds LU factors even where the others hold matrices; its zero convolutions see ones beyond the
    border; its scales may be negative; and in couplings the raw scales come before the shifts.

    Args:
        shapes: Of the file.
        overrides: Configuration fields; ``n_bits`` is needed.

    Returns:
        How it becomes our model.
    """
    config = _config(shapes, overrides)
    step = r"blocks\.\d+\.flows\.\d+"
    masks = rf"{step}\.invconv\.%s"
    return Layout(
        program=PROGRAM,
        architecture="glow",
        config=config,
        origins=[*_origins(config)],
        unused=re.compile(rf"{step}\.(actnorm\.initialized|invconv\.(l_mask|u_mask|l_eye))"),
        checks=(
            Check(re.compile(rf"{step}\.actnorm\.initialized"), lambda t: bool(t.all()), UNTRAINED),
            Check(re.compile(masks % "l_mask"), lambda t: torch.equal(t, torch.ones_like(t).tril(-1)), CHANGED),
            Check(re.compile(masks % "u_mask"), lambda t: torch.equal(t, torch.ones_like(t).triu(1)), CHANGED),
            Check(re.compile(masks % "l_eye"), is_identity, CHANGED),
        ),
    )


def _config(shapes: Shapes, overrides: Mapping[str, Any]) -> GlowConfig:
    levels, steps = levels_and_steps(PROGRAM, shapes, r"blocks\.(\d{1,4})\.flows\.(\d{1,4})\.")
    network = "blocks.0.flows.0.coupling.net"
    wide = shape_of(PROGRAM, shapes, "blocks.0.flows.0.actnorm.loc", 4)[1]
    mixing = "conv" if "weight" in parts_of(shapes, r"blocks\.0\.flows\.\d+\.invconv\.") else "lu"
    told = {
        "channels": image_channels(PROGRAM, wide),
        "levels": levels,
        "steps": steps,
        "hidden": shape_of(PROGRAM, shapes, f"{network}.0.weight", 4)[0],
        "coupling": coupling_kind(PROGRAM, shape_of(PROGRAM, shapes, f"{network}.4.conv.weight", 4)[0], wide),
        "mixing": mixing,
        "last_mixing": "lu" if mixing == "conv" and levels > 1 else "",
        "learned_top": True,
        "classes": 0,
        "edge": "ones",
        "network": "plain",
        "actnorm": "signed",
        "scaled": True,
        "split_prior": "conv",
    }
    if "n_bits" not in overrides:
        raise missing_bits(PROGRAM, "5 unless it is told otherwise", told)
    return configured(PROGRAM, "glow", told, {"grid": "bins", "pixels": "centred"}, overrides)


def _origins(config: GlowConfig) -> Iterator[Origin]:
    rows = alternate_swapped if config.coupling == "affine" else None
    for level in range(config.levels):
        for k in range(config.steps):
            ours, published = step_name(level, k), f"blocks.{level}.flows.{k}"
            yield take(f"{ours}.0.bias", f"{published}.actnorm.loc", PER_CHANNEL)
            yield take(f"{ours}.0.scale", f"{published}.actnorm.scale", PER_CHANNEL)
            mixing = (config.last_mixing if level == config.levels - 1 else "") or config.mixing
            if mixing == "conv":
                yield take(f"{ours}.1.weight", f"{published}.invconv.weight", MATRIX_AS_KERNEL)
            else:
                yield from lu_factors(
                    f"{ours}.1",
                    f"{published}.invconv",
                    lower="w_l",
                    upper="w_u",
                    log="w_s",
                    permutation="w_p",
                    sign="s_sign",
                )
            ours, published = f"{ours}.2.conditioner", f"{published}.coupling.net"
            for place in (0, 1):
                yield take(f"{ours}.hidden.{place}.weight", f"{published}.{2 * place}.weight")
                yield take(f"{ours}.hidden.{place}.bias", f"{published}.{2 * place}.bias")
            yield from _zero_conv(f"{ours}.last", f"{published}.4", rows)
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
    name=PROGRAM,
    licence=LICENCE,
    detect=has(r"blocks\.\d+\.flows\.\d+\."),
    convert=_convert,
    whole=re.compile(r".*\.(initialized|l_mask|u_mask|l_eye)"),
)
