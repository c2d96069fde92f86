"""What a run starts with: weights of another model, of its encoder, or of a backbone; and whether it became better."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..checkpoints import catalog
from ..checkpoints.file import is_ours, read, read_header
from ..errors import FlowError
from ..flow import Flow
from ..models.fields import OF_GUIDE, SAMPLING
from .objective import lr_encoder, pretrained_backbone

TOLERANCE = {"psnr_tau0.0": 0.1, "of_gray_tau0": 0.01}  # how much worse the best guess of a better model may be


def load_weights(flow: Flow, path: Path, *, other_encoder: bool = False) -> None:
    """Load all weights of a model of the same configuration; with ``other_encoder`` all but an encoder of another.

    A dequantizer or a guide, which are no part of the bijection, may be new or left behind; see ``with_guide_of``.
    """
    other = read(path)
    expected, actual = dataclasses.asdict(flow.config), dataclasses.asdict(other.config)
    if (flow.dequantizer is None) != (other.dequantizer is None):
        expected.pop("dequantizer_steps", None)
    for measured in ("styles", *SAMPLING, *OF_GUIDE):  # after training: those of the file are of its weights
        expected.pop(measured, None)
    if expected.get("memory"):  # it is filled anew, and without effect where there was none
        expected.pop("memory")
    differing = [name for name in expected if expected[name] != actual.get(name)]
    of_encoder = [name for name in differing if name.startswith("encoder") or name == "stacked_blocks"]
    differences = [
        f"{name} is {actual.get(name)!r} instead of {expected[name]!r}"
        for name in differing
        if not (other_encoder and name in of_encoder)
    ]
    if type(other.config) is not type(flow.config) or differences:
        raise FlowError(
            f"{path.name}, a {other.architecture} model, does not fit this recipe's {flow.architecture} model: "
            f"{'; '.join(differences[:3]) or 'another architecture'}. Start from a model of the same configuration."
        )
    weights = {name: t for name, t in other.state_dict().items() if not name.startswith("encoder.memory.")}
    if of_encoder:
        weights = {name: t for name, t in weights.items() if not name.startswith("encoder.")}
    flow.load_state_dict({name: weights.get(name, value) for name, value in flow.state_dict().items()})


def take_sampling_defaults(flows: Sequence[Flow], path: Path) -> None:
    """Take over how a model is meant to be sampled, which hardly changes while it is fine-tuned."""
    config = read_header(path).config
    for flow in flows:
        flow.config = dataclasses.replace(flow.config, **{name: config[name] for name in SAMPLING if name in config})


def with_guide_of(flow: Flow, start: Path) -> tuple[Flow, str]:
    """Copy a flow with the guide of the model that it started from, which is not trained.

    Returns:
        It, and the guide's part of that model's license; the flow itself and "" if there is no start, or no guide.
    """
    other = read(start) if start.exists() else None
    if other is None or other.guide is None or flow.guide is not None:
        return flow, ""
    copied = copy.deepcopy(flow)
    copied.guide = other.guide.to(next(flow.parameters()).device)
    of_guide = {name: getattr(other.config, name) for name in OF_GUIDE}
    copied.config = dataclasses.replace(flow.config, **of_guide)
    _, found, licence = str(read_header(start).provenance.get("licence", "")).partition("; guide: ")
    return copied, found + licence


def became_worse(start: Mapping[str, float], metrics: Mapping[str, float]) -> str:
    """Say in which measure, and by how much, a model became worse than the one that it started from; "" if it did not.

    It did if the loss of held-out images is higher, which is their first measure, or if the picture at temperature 0
    has become much worse: the likelihood alone may still rise while pictures lose.
    """
    limits = dict.fromkeys([*start][:1], 0.0) | {name: TOLERANCE[name] for name in TOLERANCE if name in start}
    for name, limit in limits.items():
        loss = loss_of_quality(name, start, metrics)
        if not loss <= limit:  # true for NaN, too
            return f"by {loss:.4g} in {name}"
    return ""


def loss_of_quality(name: str, start: Mapping[str, float], metrics: Mapping[str, float]) -> float:
    """How much worse a measure is: of signal-to-noise ratios a fall, of losses and errors a rise; NaN if missing."""
    change = metrics.get(name, math.nan) - start[name]
    return -change if "psnr" in name else change


def shipped_with_backbone(config: Any) -> Path | None:
    """Find the file of the shipped model whose encoder has the backbone of a configuration.

    None for an IMDN of another size, which can be trained without; a colorizer without it is refused.
    """
    of_backbone = ["backbone"] if hasattr(config, "backbone") else ["encoder", "encoder_blocks", "encoder_growth"]
    headers = {catalog.path(name): read_header(catalog.path(name)).config for name in catalog.names()}
    files = [file for file, c in headers.items() if all(c.get(name) == getattr(config, name) for name in of_backbone)]
    if files:  # preferably of the same scale, since then its adapter fits, too
        return min(files, key=lambda file: headers[file].get("scale") != getattr(config, "scale", None))
    if not hasattr(config, "backbone"):
        return None
    raise FlowError(
        "This recipe's encoder has a backbone, whose pretrained weights must be loaded before training, and no shipped "
        f"model has it ({config.backbone}). Give a file with encoder_from (--encoder-from): another model with "
        "this backbone, or what benchmarks/read_efficientnet.py writes."
    )


def load_encoder(flow: Flow, path: Path, *, backbone_alone: bool = False) -> str:
    """Load the encoder of a model file, or the file of a backbone; where the rest is of another size, that alone.

    It says what was taken: "encoder" or "backbone".
    """
    encoder, backbone = flow.encoder, pretrained_backbone(flow)
    try:
        if backbone is None:
            lr_encoder(flow).load_state_dict(lr_encoder(read(path)).state_dict())
            return "encoder"
        assert encoder is not None
        if not is_ours(path):
            theirs = {f"backbone.{name}": t.float() for name, t in load_file(path).items()}
        else:
            other = read(path).encoder
            theirs = {} if other is None else other.state_dict()
        own = encoder.state_dict()
        same = {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in own.items()}
        if same and not backbone_alone:
            encoder.load_state_dict(theirs)
            return "encoder"
        inner = "backbone."
        backbone.load_state_dict({n.removeprefix(inner): t for n, t in theirs.items() if n.startswith(inner)})
        return "backbone"
    except (RuntimeError, SafetensorError) as error:
        raise FlowError(
            f"The encoder of {path.name} does not fit the encoder of this recipe's model: {error}."
        ) from error
