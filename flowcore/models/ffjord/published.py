"""Checkpoints of rtqichen/ffjord, the program of FFJORD's authors: its models of images. None is published.

Detected by ``(transforms.SCALE.)chain.N.odefunc.``. Activation, solver and alpha are not in the file.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from typing import Any

from ..source import Checkpoint, Layout, Origin, Source, take, take_all, take_conv, take_shift
from .model import FFJORDConfig

ELEMENT = r"(?:transforms\.\d+\.)?chain\.\d+\."
SUPPORTED = 'Supported: the layers "concat", "concatsquash" and "ignore" of models of images.'
UNSUPPORTED = {  # parts of names that reveal options of the program
    r"\._hypernet\.": 'has weights made from the time (layers "hyper")',
    r"\._layer[01]\.": 'has layers of the kind "blend"',
    r"\.layer_[fg]\.": 'has gated layers ("gated")',
    r"\._hyper\.": 'has layers of the kind "squash"',
    r"\.(en|de)coder_layers\.": "has a velocity in two parts (--autoencode)",
    r"\.weight_(orig|u|v)$": "has a spectral norm on its weights (--spectral_norm)",
}


def _layout(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> Layout:
    """The first element of the finest chain is the logit, and a squeeze is one, too; neither has tensors."""
    for part, what in UNSUPPORTED.items():
        if any(re.search(part, name) for name in checkpoint.shapes):
            raise checkpoint.error(f"{what}, which is not supported.", SUPPORTED)
    scales = len(checkpoint.indices(r"transforms\.(\d+)\.")) or 1
    multiscale = checkpoint.has(r"transforms\.")
    finest = "transforms.0.chain" if multiscale else "chain"
    odes = checkpoint.indices(re.escape(finest) + r"\.(\d+)\.odefunc\.")
    blocks = len([*takewhile(odes.__contains__, count(1))])
    detected = {
        "scales": scales,
        "blocks": blocks,
        **_velocity(checkpoint, f"{finest}.1.odefunc.diffeq.layers"),
        "batch_norm": f"{finest}.{blocks + 1}.running_mean" in checkpoint.shapes,
    }
    settings = {"activation": "softplus", "steps": 16, "solver": "rk4", "how": "trace"}
    defaults = {**settings, "alpha": 1e-6 if detected["channels"] == 1 else 0.05, "n_bits": 8, "grid": "bins"}
    config: FFJORDConfig = checkpoint.config("ffjord", detected, defaults, overrides)
    return Layout(
        architecture="ffjord",
        config=config,
        origins=[*ffjord_origins(config, multiscale)],
        unused=re.compile(ELEMENT + r"(odefunc\._num_evals|step)"),
    )


def _velocity(checkpoint: Checkpoint, layers: str) -> dict[str, Any]:
    """Derive channels, widths, strides and the use of the time from the first velocity."""
    number = len(checkpoint.indices(re.escape(layers) + r"\.(\d+)\."))
    if len(checkpoint.shapes.get(f"{layers}.0._layer.weight", ())) == 2:
        raise checkpoint.error("has fully connected layers (--conv False), which are not supported.", SUPPORTED)
    weights = [checkpoint.shape(f"{layers}.{k}._layer.weight", 4) for k in range(max(1, number))]
    widths = [checkpoint.shape(f"{layers}.{k}._layer.bias", 1)[0] for k in range(len(weights))]
    channels = widths[-1]
    squashed = f"{layers}.0._hyper_gate.weight" in checkpoint.shapes
    # Channels that the first layer sees besides the data: the time, or time and coordinates. The kernels of 4x4 layers
    # that double the sides have inputs first.
    extra = 0 if squashed else next((n - channels for n in weights[0][:2] if n - channels in (0, 1, 3)), 0)
    if weights[0][2] == 3:
        extra = weights[0][1] - channels
    if extra == 3:
        raise checkpoint.error('has layers of the kind "concatcoord", which is not supported.', SUPPORTED)
    strides: list[int] = []
    for k, (rows, columns, side, _) in enumerate(weights):
        inputs = (widths[k - 1] if k else channels) + extra
        down, up = (rows, columns) == (widths[k], inputs), (rows, columns) == (inputs, widths[k])
        if down and up:  # halving comes before doubling
            down = 2 * strides.count(2) < sum(shape[2] == 4 for shape in weights)
        strides.append(1 if side == 3 else 2 if down else -2)
    return {
        "channels": channels,
        "hidden": tuple(widths[:-1]),
        "strides": () if set(strides) == {1} else tuple(strides),
        "time": "concatsquash" if squashed else "concat" if extra else "ignore",
    }


def ffjord_origins(config: FFJORDConfig, multiscale: bool) -> Iterator[Origin]:
    """Pair every parameter of ours with the published one; ``multiscale`` names may also have a single scale."""
    for level in range(config.scales):
        ours, published = f"levels.{level}.steps.transforms", f"transforms.{level}.chain" if multiscale else "chain"
        ahead = 1 if level == 0 else 0  # published indices, by the logit
        squeeze = config.blocks  # every level but the last has a squeeze between its ODEs
        for k in range(config.blocks if level == config.scales - 1 else 2 * config.blocks + 1):
            if k != squeeze:
                yield from _ode(f"{ours}.{k}", f"{published}.{k + ahead}", config)
        if config.batch_norm:
            norm, actnorm = f"{published}.{config.blocks + ahead}", f"{ours}.{config.blocks + 1}"
            yield from take_all(f"{ours}.{config.blocks}", f"{norm}.running_", {"mean": "mean", "var": "var"})
            yield take(f"{actnorm}.log_scale", f"{norm}.weight")
            yield take_shift(f"{actnorm}.bias", f"{norm}.bias", f"{norm}.weight")


def _ode(ours: str, published: str, config: FFJORDConfig) -> Iterator[Origin]:
    yield take(f"{ours}.sqrt_end_time", f"{published}.sqrt_end_time")
    for k in range(len(config.hidden) + 1):
        layer, theirs = f"{ours}.field.layers.{k}", f"{published}.odefunc.diffeq.layers.{k}"
        yield from take_conv(f"{layer}.conv", f"{theirs}._layer")
        if config.time == "concatsquash":
            yield from take_conv(f"{layer}.gate", f"{theirs}._hyper_gate")
            yield take(f"{layer}.shift.weight", f"{theirs}._hyper_bias.weight")


FFJORD = Source(
    name="FFJORD",
    licence="MIT for the program, which publishes no weights: check the license of your file",
    detect=re.compile(ELEMENT + r"odefunc\."),
    layout=_layout,
    # A run with regularization wraps the function of every ODE once more.
    rename=lambda state: {re.sub(r"\.odefunc(\.odefunc)+\.", ".odefunc.", name): t for name, t in state.items()},
)
