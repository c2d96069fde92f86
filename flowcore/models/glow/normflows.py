"""Published Glows of VincentStimper/normalizing-flows (normflows), as its example builds them.

Detected by ``flows.LEVEL.STEP.flows.N.``. No tensor determines ``scale_map`` and ``split_mode``: the defaults,
"sigmoid" and "channel", are assumed. Nor does one tell the image_size of a model whose bases are ``GlowBase``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..source import (
    MIT_PROGRAM,
    Checkpoint,
    Layout,
    Origin,
    Source,
    flat_product,
    missing_field_error,
    take,
    take_conv,
    take_shift,
)
from .model import GlowConfig
from .published import (
    FIXED_FIELDS,
    check_identity,
    check_trained,
    first_step,
    glow_layout,
    levels_and_steps,
    steps_of,
    take_lu,
)

STEP = r"flows\.\d+\.\d+\.flows"
NETWORK = rf"{STEP}\.0\.flows\.1\.param_map\.net"  # a coupling's network
INITIALIZED = rf"({STEP}\.2|{NETWORK}\.\d+\.actNorm)\.data_dep_init_done"


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    base = _base(checkpoint)
    shape = levels_and_steps(checkpoint, r"flows\.(\d{1,4})\.(\d{1,4})\.flows\.")
    levels = shape["levels"]
    first = f"flows.{levels - 1}.{shape['steps'] - 1}.flows"  # the finest level's first step
    network = f"{first}.0.flows.1.param_map.net"
    normalized = checkpoint.has(rf"{NETWORK}\.\d+\.actNorm\.")  # option net_actnorm
    detected: dict[str, Any] = {
        **FIXED_FIELDS,
        **shape,
        **first_step(checkpoint, f"{first}.2.t", f"{network}.0.weight", f"{network}.{6 if normalized else 4}.weight"),
        "mixing": "conv" if "W" in checkpoint.parts(rf"{STEP}\.1\.") else "lu",
        "network": "actnorm" if normalized else "plain",
        "scaled": False,
        "split_prior": "table",
    }
    if base == "GlowBase":
        if "q0.0.loc_cc" in checkpoint.shapes:
            detected["classes"] = checkpoint.shape("q0.0.loc_cc", 2)[0]
        if overrides.get("image_size") is None:
            raise missing_field_error(
                "image_size",
                f"the side of the images, or height and width. The bases of this {levels}-level model are GlowBase, "
                "which has no pixels, and no other tensor tells.",
                str(8 * 2**levels),
                str(8 * 2**levels),
                "is a model of images of that size",
            )
    else:
        table = checkpoint.shape("q0.0.loc", 4)  # the deepest level's table
        if base == "ClassCondDiagGaussian":
            detected["classes"] = table[3]
        height, width = table[1:3] if base == "ClassCondDiagGaussian" else table[2:]
        detected["image_size"] = (height * 2**levels, width * 2**levels)
    config = checkpoint.config("glow", detected, {"n_bits": 8, "grid": "bins", "pixels": "unit"}, overrides)
    return glow_layout(
        config,
        _origins(config, base),
        unused=re.compile(rf"{INITIALIZED}|{STEP}\.1\.eye"),
        checks=(check_trained(INITIALIZED), check_identity(rf"{STEP}\.1\.eye")),
    )


def _base(checkpoint: Checkpoint) -> str:
    """Recognize the base distributions by the tensors of the first."""
    parts = checkpoint.parts(r"q0\.0\.")
    if {"loc_logs", "log_scale_logs"} & parts:
        return "GlowBase"
    if parts <= {"loc", "log_scale"}:
        shape = checkpoint.shape("q0.0.loc", 4)
        return "DiagGaussian" if shape[0] == 1 else "ClassCondDiagGaussian"  # no level ends with a single channel
    raise checkpoint.error(
        f"has base distributions that are not supported: q0.0 has {', '.join(sorted(parts)[:4])}.",
        "Supported: ClassCondDiagGaussian, DiagGaussian and GlowBase.",
    )


def _origins(config: GlowConfig, base: str) -> Iterator[Origin]:
    """Levels and steps are numbered in the sampling direction; shifts and log-scales have the other sign."""
    normalized = config.network == "actnorm"
    for level, k, ours in steps_of(config):
        published = f"flows.{config.levels - 1 - level}.{config.steps - 1 - k}.flows"
        conditioner, network = f"{ours}.2.conditioner", f"{published}.0.flows.1.param_map.net"
        yield take(f"{ours}.0.bias", f"{published}.2.t", lambda t: -t.flatten())
        yield take(f"{ours}.0.log_scale", f"{published}.2.s", lambda t: -t.flatten())
        yield take(f"{ours}.1.weight", f"{published}.1.W")
        yield from take_lu(f"{ours}.1", f"{published}.1", "P sign_S L U log_S")
        for place in (0, 1):
            hidden = f"{conditioner}.hidden.{place}"
            if normalized:  # a convolution without bias, and its actnorm
                actnorm = f"{network}.{3 * place + 1}.actNorm"
                yield take(f"{hidden}.weight", f"{network}.{3 * place}.weight")
                yield take(f"{hidden}.actnorm.log_scale", f"{actnorm}.s", torch.flatten)
                yield take_shift(f"{hidden}.actnorm.bias", f"{actnorm}.t", f"{actnorm}.s")
            else:
                yield from take_conv(hidden, f"{network}.{2 * place}")
        rows = _negate_shifts if config.coupling == "affine" else torch.neg
        yield from take_conv(f"{conditioner}.last", f"{network}.{6 if normalized else 4}", rows)
    for level in range(config.levels):
        prior = "top.prior" if level == config.levels - 1 else f"levels.{level}.split.conditioner"
        published = f"q0.{config.levels - 1 - level}"
        yield _table(f"{prior}.mean", f"{published}.loc", level, config, base)
        yield _table(f"{prior}.log_std", f"{published}.log_scale", level, config, base)


def _negate_shifts(t: Tensor) -> Tensor:
    """Change the sign of every other row, from the first."""
    return torch.stack([-t[0::2], t[1::2]], dim=1).flatten(0, 1)


def _table(ours: str, published: str, level: int, config: GlowConfig, base: str) -> Origin:
    """A value for every label, channel and pixel, (classes, C, H, W)."""
    if base == "ClassCondDiagGaussian":
        return take(ours, published, lambda t: t.permute(3, 0, 1, 2))
    if base == "DiagGaussian":
        return take(ours, published)
    assert config.image_size is not None
    sides = [side // 2 ** (level + 1) for side in config.image_size]

    def scaled(value: Tensor, logs: Tensor, by_label: Tensor | None = None) -> Tensor:
        """GlowBase's parametrization, in float64 so that it is rounded once."""
        table = flat_product(value.double(), torch.exp(3 * logs.double()))[None]  # (1, C)
        table = table if by_label is None else by_label + table.expand_as(by_label)
        return table[:, :, None, None].expand(-1, -1, *sides)

    names = [published, f"{published}_logs", f"{published}_cc"]
    return Origin(ours, names if config.classes else names[:2], scaled)


NORMFLOWS = Source(
    name="Glow of normflows",
    licence=MIT_PROGRAM,
    detect=re.compile(rf"{STEP}\.\d+\."),
    layout=_layout,
    integers=re.compile(r".*\.(data_dep_init_done|eye)"),
)
