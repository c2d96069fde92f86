"""Published Glows of VincentStimper/normalizing-flows (normflows), as its example builds them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...flow import Flow
from ...models.glow import GlowConfig
from .glow import (
    CHANGED,
    LICENCE,
    UNTRAINED,
    coupling_kind,
    image_channels,
    is_identity,
    levels_and_steps,
    lu_factors,
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
    missing_field,
    shape_of,
    shapes_of,
    take,
)

PROGRAM = "Glow of normflows"

# (classes, C, H, W), and what it is published as.
LABEL_LAST = Form(lambda s: (*s[1:], s[0]), lambda t: t.permute(3, 0, 1, 2))
WITHOUT_PIXELS = Form(lambda s: (1, s[1], 1, 1), lambda t: t)
LABELS_ONLY = Form(lambda s: s[:2], lambda t: t[:, :, None, None])


def _convert(state: State, overrides: Mapping[str, Any]) -> Flow:
    return assemble(normflows_layout(shapes_of(state), overrides), state)


def normflows_layout(shapes: Shapes, overrides: Mapping[str, Any]) -> Layout:
    """Describe a ``MultiscaleFlow`` of ``GlowBlock``s, as normflows' example builds it.

    It is written in the sampling direction: the deepest level comes first, a level's last step comes first, and shifts
    and log-scales have the other sign. The priors do not see what stays. Which ``scale_map`` and ``split_mode`` it was
    built with, no tensor tells: here they are the defaults, "sigmoid" and "channel".

    Args:
        shapes: Of the file.
        overrides: Configuration fields; ``image_size`` is needed for bases without pixels.

    Returns:
        How it becomes our model.
    """
    config = _config(shapes, overrides)
    step = r"flows\.\d+\.\d+\.flows"
    return Layout(
        program=PROGRAM,
        architecture="glow",
        config=config,
        origins=[*_origins(config, _base(shapes))],
        unused=re.compile(rf"{step}\.2\.data_dep_init_done|{step}\.1\.eye"),
        checks=(
            Check(re.compile(rf"{step}\.2\.data_dep_init_done"), lambda t: bool(t.all()), UNTRAINED),
            Check(
                re.compile(rf"{step}\.1\.eye"),
                is_identity,
                CHANGED,
            ),
        ),
    )


def _config(shapes: Shapes, overrides: Mapping[str, Any]) -> GlowConfig:
    levels, steps = levels_and_steps(PROGRAM, shapes, r"flows\.(\d{1,4})\.(\d{1,4})\.flows\.")
    first = f"flows.{levels - 1}.{steps - 1}.flows"  # of the finest level
    network = f"{first}.0.flows.1.param_map.net"
    if has(r"flows\.\d+\.\d+\.flows\.0\.flows\.1\.param_map\.net\.\d+\.actNorm\.")(shapes):
        raise CheckpointError(
            "the couplings of this normflows model have actnorms in their networks (net_actnorm), which is not "
            "supported. Supported: GlowBlocks with the default networks."
        )
    wide = shape_of(PROGRAM, shapes, f"{first}.2.t", 4)[1]
    told: dict[str, Any] = {
        "channels": image_channels(PROGRAM, wide),
        "levels": levels,
        "steps": steps,
        "hidden": shape_of(PROGRAM, shapes, f"{network}.0.weight", 4)[0],
        "coupling": coupling_kind(PROGRAM, shape_of(PROGRAM, shapes, f"{network}.4.weight", 4)[0], wide),
        "mixing": "conv" if "W" in parts_of(shapes, r"flows\.\d+\.\d+\.flows\.1\.") else "lu",
        "last_mixing": "",
        "edge": "zeros",
        "network": "plain",
        "actnorm": "log",
        "scaled": False,
        "split_prior": "table",
        "learned_top": True,
        "classes": 0,
    }
    base = _base(shapes)
    if base == "GlowBase":
        if "q0.0.loc_cc" in shapes:
            told["classes"] = shape_of(PROGRAM, shapes, "q0.0.loc_cc", 2)[0]
        if overrides.get("image_size") is None:
            raise missing_field(
                "image_size",
                f"the side of the images, or height and width. The bases of this {levels}-level model are GlowBase, "
                "which has no pixels, and no other tensor tells.",
                str(8 * 2**levels),
                str(8 * 2**levels),
                "is a model of images of that size",
            )
    else:
        shape = shape_of(PROGRAM, shapes, "q0.0.loc", 4)  # of the deepest level
        if base == "ClassCondDiagGaussian":
            told["classes"] = shape[3]
        height, width = shape[1:3] if base == "ClassCondDiagGaussian" else shape[2:]
        told["image_size"] = (height * 2**levels, width * 2**levels)
    return configured(PROGRAM, "glow", told, {"n_bits": 8, "grid": "bins", "pixels": "unit"}, overrides)


def _base(shapes: Shapes) -> str:
    """Tell the base distributions by the tensors of the first."""
    parts = {name.removeprefix("q0.0.") for name in shapes if name.startswith("q0.0.")}
    if {"loc_logs", "log_scale_logs"} & parts:
        return "GlowBase"
    if parts <= {"loc", "log_scale"}:
        shape = shape_of(PROGRAM, shapes, "q0.0.loc", 4)
        return "DiagGaussian" if shape[0] == 1 else "ClassCondDiagGaussian"  # no level ends with a single channel
    raise CheckpointError(
        f"the base distributions of this normflows model are not supported: q0.0 has {', '.join(sorted(parts)[:4])}. "
        "Supported: ClassCondDiagGaussian, DiagGaussian and GlowBase."
    )


def _origins(config: GlowConfig, base: str) -> Iterator[Origin]:
    rows = _negate_shifts if config.coupling == "affine" else _negate
    for level in range(config.levels):
        deep = config.levels - 1 - level
        for k in range(config.steps):
            ours, published = step_name(level, k), f"flows.{deep}.{config.steps - 1 - k}.flows"
            yield take(f"{ours}.0.bias", f"{published}.2.t", PER_CHANNEL.then(_negate))
            yield take(f"{ours}.0.log_scale", f"{published}.2.s", PER_CHANNEL.then(_negate))
            if config.mixing == "conv":
                yield take(f"{ours}.1.weight", f"{published}.1.W")
            else:
                yield from lu_factors(
                    f"{ours}.1", f"{published}.1", lower="L", upper="U", log="log_S", permutation="P", sign="sign_S"
                )
            ours, published = f"{ours}.2.conditioner", f"{published}.0.flows.1.param_map.net"
            for part in ("weight", "bias"):
                yield take(f"{ours}.hidden.0.{part}", f"{published}.0.{part}")
                yield take(f"{ours}.hidden.1.{part}", f"{published}.2.{part}")
                yield take(f"{ours}.last.{part}", f"{published}.4.{part}", SAME.then(rows))
        ours = "top.prior" if deep == 0 else f"levels.{level}.split.conditioner"
        for part, name in (("mean", "loc"), ("log_std", "log_scale")):
            yield _table(f"{ours}.{part}", f"q0.{deep}.{name}", config, base)


def _table(ours: str, published: str, config: GlowConfig, base: str) -> Origin:
    """A number for every label, channel and pixel, (classes, C, H, W)."""
    if base == "ClassCondDiagGaussian":
        return take(ours, published, LABEL_LAST)
    if base == "DiagGaussian":
        return take(ours, published)
    names, forms = [published, f"{published}_logs"], [WITHOUT_PIXELS, WITHOUT_PIXELS]
    if config.classes:
        names, forms = [*names, f"{published}_cc"], [*forms, LABELS_ONLY]
    return Origin(ours, names, forms, _scaled)


def _negate(t: Tensor) -> Tensor:
    return -t


def _negate_shifts(t: Tensor) -> Tensor:
    """Change the sign of every other row, from the first."""
    return torch.stack([-t[0::2], t[1::2]], dim=1).flatten(0, 1)


def _scaled(value: Tensor, logs: Tensor, by_label: Tensor | None = None) -> Tensor:
    """GlowBase's parametrisation, in float64 so that it is rounded once: (1 or classes, C, 1, 1)."""
    scaled = value.double() * torch.exp(3 * logs.double())
    return scaled if by_label is None else scaled + by_label.double()


NORMFLOWS = Source(
    name=PROGRAM,
    licence=LICENCE,
    detect=has(r"flows\.\d+\.\d+\.flows\.\d+\."),
    convert=_convert,
    whole=re.compile(r".*\.(data_dep_init_done|eye)"),
)
