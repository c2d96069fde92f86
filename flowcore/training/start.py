"""What a run starts with: weights of another model, of its encoder, or of a backbone; and whether it became better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..checkpoints import catalog
from ..checkpoints.file import is_ours, read, read_header
from ..errors import FlowError
from ..flow import Flow
from ..networks import LumaEncoder
from .objective import lr_encoder, pretrained_backbone

TOLERANCE = {"psnr_tau0.0": 0.1, "of_gray_tau0": 0.01}  # how much worse the best guess of a better model may be
SAMPLING = ("temperature", "temperatures", "calm_edges")  # fields that say how a model is meant to be sampled


def load_weights(flow: Flow, path: Path) -> None:
    """Load all weights of a model of the same configuration.

    A dequantizer, which is no part of the bijection, may be new or left behind.
    """
    other = read(path)
    expected, actual = dataclasses.asdict(flow.config), dataclasses.asdict(other.config)
    if (flow.dequantizer is None) != (other.dequantizer is None):
        expected.pop("dequantizer_steps", None)
    for measured in ("styles", *SAMPLING):  # after training: those of the file are of its weights
        expected.pop(measured, None)
    differences = [
        f"{key} is {actual.get(key)!r} instead of {expected[key]!r}"
        for key in expected
        if expected[key] != actual.get(key)
    ]
    if type(other.config) is not type(flow.config) or differences:
        raise FlowError(
            f"{path.name}, a {other.architecture} model, does not fit this recipe's {flow.architecture} model: "
            f"{'; '.join(differences[:3]) or 'another architecture'}. Start from a model of the same configuration."
        )
    weights = other.state_dict()
    flow.load_state_dict({name: weights.get(name, value) for name, value in flow.state_dict().items()})


def take_sampling_defaults(flows: Sequence[Flow], path: Path) -> None:
    """Take over how a model is meant to be sampled, which hardly changes while it is fine-tuned."""
    config = read_header(path).config
    for flow in flows:
        flow.config = dataclasses.replace(flow.config, **{name: config[name] for name in SAMPLING if name in config})


def became_worse(start: Mapping[str, float], metrics: Mapping[str, float]) -> str:
    """Decide whether a model became worse than the one that it started from.

    It did if the loss of held-out images is higher, which is their first measure, or if the picture at temperature 0
    has become much worse: the likelihood alone may still rise while pictures lose.

    Args:
        start: Measures of the start; empty if nothing was held out.
        metrics: The same of the model.

    Returns:
        In which measure, and by how much; "" if it did not.
    """
    limits = dict.fromkeys([*start][:1], 0.0) | {name: TOLERANCE[name] for name in TOLERANCE if name in start}
    for name, limit in limits.items():
        loss = loss_of_quality(name, start, metrics)
        if not loss <= limit:  # as no comparison with NaN holds
            return f"by {loss:.4g} in {name}"
    return ""


def loss_of_quality(name: str, start: Mapping[str, float], metrics: Mapping[str, float]) -> float:
    """How much worse a measure is: of signal-to-noise ratios a fall, of losses and errors a rise; NaN if missing."""
    change = metrics.get(name, math.nan) - start[name]
    return -change if "psnr" in name else change


def shipped_with_backbone(backbone: str) -> Path:
    """Find the shipped model whose encoder has a backbone, by the backbone's name."""
    for name in catalog.names():
        file = catalog.path(name)
        if read_header(file).config.get("backbone") == backbone:
            return file
    raise FlowError(
        "This recipe's encoder has a backbone, whose pretrained weights must be loaded before training, and no shipped "
        f"model has it ({backbone}). Give a file with encoder_from (--encoder-from): another model with this backbone, "
        "or what benchmarks/read_efficientnet.py writes."
    )


def load_encoder(flow: Flow, path: Path, *, backbone_alone: bool = False) -> str:
    """Load an encoder; of a colorizer's, at least the backbone, where the rest is of another size.

    Args:
        flow: The flow to load it into.
        path: A model file, or the file of a backbone.
        backbone_alone: Whether to take no more than the backbone.

    Returns:
        What was taken: "encoder" or "backbone".
    """
    encoder, backbone = flow.encoder, pretrained_backbone(flow)
    try:
        if backbone is not None and not is_ours(path):
            backbone.load_state_dict({name: t.float() for name, t in load_file(path).items()})
            return "backbone"
        if not isinstance(encoder, LumaEncoder):
            lr_encoder(flow).load_state_dict(lr_encoder(read(path)).state_dict())
            return "encoder"
        other = read(path)
        theirs = {} if other.encoder is None else other.encoder.state_dict()
        same = {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in encoder.state_dict().items()}
        if backbone is None or (same and not backbone_alone):
            encoder.load_state_dict(theirs)
            return "encoder"
        their_backbone = pretrained_backbone(other)
        backbone.load_state_dict({} if their_backbone is None else their_backbone.state_dict())
        return "backbone"
    except (RuntimeError, SafetensorError) as error:
        raise FlowError(
            f"The encoder of {path.name} does not fit the encoder of this recipe's model: {error}."
        ) from error
