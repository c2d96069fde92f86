"""Published Glows of VincentStimper/normalizing-flows (normflows), as its example builds them.

Detected by ``flows.LEVEL.STEP.flows.N.``. No tensor determines ``scale_map`` and ``split_mode``: the defaults,
"sigmoid" and "channel", are assumed. Nor does one tell the image_size of a model whose bases are ``GlowBase``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...models.glow import GlowConfig
from .glow import LICENSE, SETTINGS, check_identity, check_trained, first_step, glow_layout, levels_and_steps, take_lu
from .source import (
    PER_CHANNEL,
    SAME,
    Checkpoint,
    Form,
    Layout,
    Origin,
    Source,
    missing_field,
    take,
    take_conv,
    take_shift,
)

# Published forms of our tables (classes, C, H, W):
LABEL_LAST = Form(lambda s: (*s[1:], s[0]), lambda t: t.permute(3, 0, 1, 2))
WITHOUT_PIXELS = Form(lambda s: (1, s[1], 1, 1), lambda t: t)
LABELS_ONLY = Form(lambda s: s[:2], lambda t: t[:, :, None, None])

STEP = r"flows\.\d+\.\d+\.flows"
NETWORK = rf"{STEP}\.0\.flows\.1\.param_map\.net"  # of a coupling
INITIALIZED = rf"({STEP}\.2|{NETWORK}\.\d+\.actNorm)\.data_dep_init_done"


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    base = _base(checkpoint)
    shape = levels_and_steps(checkpoint, r"flows\.(\d{1,4})\.(\d{1,4})\.flows\.")
    levels = shape["levels"]
    first = f"flows.{levels - 1}.{shape['steps'] - 1}.flows"  # of the finest level
    network = f"{first}.0.flows.1.param_map.net"
    normalized = checkpoint.has(rf"{NETWORK}\.\d+\.actNorm\.")  # option net_actnorm
    detected: dict[str, Any] = {
        **SETTINGS,
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
            raise missing_field(
                "image_size",
                f"the side of the images, or height and width. The bases of this {levels}-level model are GlowBase, "
                "which has no pixels, and no other tensor tells.",
                str(8 * 2**levels),
                str(8 * 2**levels),
                "is a model of images of that size",
            )
    else:
        table = checkpoint.shape("q0.0.loc", 4)  # of the deepest level
        if base == "ClassCondDiagGaussian":
            detected["classes"] = table[3]
        height, width = table[1:3] if base == "ClassCondDiagGaussian" else table[2:]
        detected["image_size"] = (height * 2**levels, width * 2**levels)
    config = checkpoint.config("glow", detected, {"n_bits": 8, "grid": "bins", "pixels": "unit"}, overrides)
    return glow_layout(
        config,
        _table(config, base),
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


def _table(config: GlowConfig, base: str) -> Iterator[Origin]:
    """Levels and steps are numbered in the sampling direction; shifts and log-scales have the other sign."""
    step, ours = "flows.{deep}.{back}.flows", "2.conditioner"
    network, normalized = f"{step}.0.flows.1.param_map.net", config.network == "actnorm"
    yield take("0.bias", f"{step}.2.t", PER_CHANNEL.then(torch.neg))
    yield take("0.log_scale", f"{step}.2.s", PER_CHANNEL.then(torch.neg))
    yield take("1.weight", f"{step}.1.W")
    yield from take_lu("1", f"{step}.1", "P sign_S L U log_S")
    for k in range(2):
        if normalized:  # a convolution without bias, and its actnorm, which shifts after scaling where ours does before
            actnorm, published = f"{ours}.hidden.{k}.actnorm", f"{network}.{3 * k + 1}.actNorm"
            yield take(f"{ours}.hidden.{k}.weight", f"{network}.{3 * k}.weight")
            yield take(f"{actnorm}.log_scale", f"{published}.s", PER_CHANNEL)
            yield take_shift(f"{actnorm}.bias", f"{published}.t", f"{published}.s", PER_CHANNEL)
        else:
            yield from take_conv(f"{ours}.hidden.{k}", f"{network}.{2 * k}")
    rows = SAME.then(_negate_shifts if config.coupling == "affine" else torch.neg)
    yield from take_conv(f"{ours}.last", f"{network}.{6 if normalized else 4}", rows)
    for prior in ("split.conditioner", "top.prior"):
        yield _pixels(f"{prior}.mean", "q0.{deep}.loc", config, base)
        yield _pixels(f"{prior}.log_std", "q0.{deep}.log_scale", config, base)


def _negate_shifts(t: Tensor) -> Tensor:
    """Change the sign of every other row, from the first."""
    return torch.stack([-t[0::2], t[1::2]], dim=1).flatten(0, 1)


def _pixels(ours: str, published: str, config: GlowConfig, base: str) -> Origin:
    """A value for every label, channel and pixel, (classes, C, H, W)."""
    if base == "ClassCondDiagGaussian":
        return take(ours, published, LABEL_LAST)
    if base == "DiagGaussian":
        return take(ours, published)
    names, forms = [published, f"{published}_logs"], [WITHOUT_PIXELS, WITHOUT_PIXELS]
    if config.classes:
        names, forms = [*names, f"{published}_cc"], [*forms, LABELS_ONLY]
    return Origin(ours, names, forms, _scaled)


def _scaled(value: Tensor, logs: Tensor, by_label: Tensor | None = None) -> Tensor:
    """GlowBase's parametrization, in float64 so that it is rounded once: (1 or classes, C, 1, 1)."""
    scaled = value.double() * torch.exp(3 * logs.double())
    return scaled if by_label is None else scaled + by_label.double()


NORMFLOWS = Source(
    name="Glow of normflows",
    licence=LICENSE,
    detect=re.compile(rf"{STEP}\.\d+\."),
    layout=_layout,
    integers=re.compile(r".*\.(data_dep_init_done|eye)"),
)
