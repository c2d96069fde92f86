"""Where the weights of a run come from: its own checkpoints, another model, the encoder of one, or a backbone."""

import copy
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer

from ..checkpoints import catalog
from ..checkpoints.file import is_ours, read, read_header
from ..checkpoints.writing import replacing
from ..device import is_out_of_memory
from ..errors import FlowError
from ..model import FlowModel
from ..models.fields import OF_GUIDE, SAMPLING
from .objective import lr_encoder, pretrained_backbone


@dataclass
class RunState:
    """What a checkpoint stores besides tensors; the field names are part of its format."""

    step: int = 0  # finished ones, over all stages
    skipped: int = 0  # steps whose update was skipped because loss or gradient was not finite
    bad: int = 0  # how many of the last steps, consecutively, were skipped
    rate: float = 1.0  # factor on the recipe's learning rates, halved whenever the run went back to a checkpoint
    retreats: int = 0  # how often it went back
    initialised: bool = False  # whether the data-dependent initialization was made
    # steps of every stage of a run that is to end within some minutes; empty for the recipe's
    stage_steps: list[int] = field(default_factory=list[int])
    # what held-out images say of the model that the run started from, by stage; empty if it began anew
    start: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    precision: str = ""  # "float32" or "bfloat16", once chosen
    recompute: str = ""  # "always" or "never", once chosen
    origin: str = ""  # text on the model that the weights were taken from, if any
    seconds: float = 0.0  # spent training


class Checkpoints:
    """The newest checkpoint of a run, and the one before it, which stays the last good one."""

    def __init__(self, run: Path, fingerprint: str) -> None:
        self.newest, self.previous = run / "checkpoint.pt", run / "checkpoint.previous.pt"
        self.fingerprint = fingerprint
        self._newest_is_good = False

    def write(self, flow: FlowModel, average: FlowModel, optimizer: Optimizer | None, state: RunState) -> None:
        """Write the newest checkpoint; the one that was the newest becomes the previous one, if it is good."""
        content = {
            "flow": flow.state_dict(),
            "average": average.state_dict(),
            "optimiser": None if optimizer is None else optimizer.state_dict(),
            "progress": vars(state).copy(),
            "recipe": self.fingerprint,
        }
        with replacing(self.newest) as partial:
            with partial.open("wb") as file:
                torch.save(content, file)
            if self.newest.exists() and self._newest_is_good:
                os.replace(self.newest, self.previous)
        self._newest_is_good = state.bad == 0

    def read(self, log: Callable[[str], None], *, good: bool = False) -> dict[str, Any] | None:
        """Read the newest undamaged checkpoint, with ``good`` the newest whose last steps were finite; None if none is.

        FlowError if it is of another recipe, or if there are files of these names and none can be read.
        """
        unreadable: list[str] = []
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                fingerprint, is_good = content["recipe"], content["progress"].get("bad", 0) == 0
            except Exception as error:  # a damaged or foreign file can raise anything
                if is_out_of_memory(error):
                    raise
                unreadable.append(path.name)
                continue
            if fingerprint != self.fingerprint:
                raise FlowError(
                    f"{path.parent} holds a run of another recipe (model, stages or seed differ). Choose another "
                    "--run folder."
                )
            if unreadable:
                log(f"{unreadable[0]} is damaged; took the one before it")
            if path == self.newest:
                self._newest_is_good = is_good
            if is_good or not good:
                return content
        if unreadable and not good:
            raise FlowError(
                f"{' and '.join(unreadable)} in {self.newest.parent} cannot be read: damaged, or not a checkpoint of a "
                "training run of flowcore. Choose another folder for the run (--run), or move the file away to begin "
                "anew."
            )
        return None


def restore(content: Mapping[str, Any], flow: FlowModel, average: FlowModel, state: RunState) -> dict[str, Any] | None:
    """Load a checkpoint's content into models and state, and return the optimizer's state, if there is one."""
    flow.load_state_dict(content["flow"])
    average.load_state_dict(content["average"])
    for name, value in content["progress"].items():
        setattr(state, name, value)
    return content["optimiser"]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with replacing(target, source.stat().st_size) as partial:
        shutil.copyfile(source, partial)


# --- the start of a run -----------------------------------------------------------------------------------------------


def load_weights(flow: FlowModel, path: Path, *, other_encoder: bool = False) -> None:
    """Load a model of the same configuration; its dequantizer, guide and, if ``other_encoder``, encoder may differ."""
    other = read(path)
    expected, actual = dataclasses.asdict(flow.config), dataclasses.asdict(other.config)
    may_differ = {"styles", *SAMPLING, *OF_GUIDE}  # settings measured after training, for a file's own weights
    if (flow.dequantizer is None) != (other.dequantizer is None):
        may_differ.add("dequantizer_steps")
    if expected.get("memory"):  # filled anew, and without effect where there was none
        may_differ.add("memory")
    differing = [name for name in expected if name not in may_differ and expected[name] != actual.get(name)]
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
    left_out = "encoder." if of_encoder else "encoder.memory."
    weights = {name: t for name, t in other.state_dict().items() if not name.startswith(left_out)}
    flow.load_state_dict({name: weights.get(name, value) for name, value in flow.state_dict().items()})


def take_sampling_defaults(flows: Sequence[FlowModel], path: Path) -> None:
    """Take over how a model is meant to be sampled, which hardly changes while it is fine-tuned."""
    config = read_header(path).config
    for flow in flows:
        flow.config = dataclasses.replace(flow.config, **{name: config[name] for name in SAMPLING if name in config})


def with_guide_of(flow: FlowModel, start: Path) -> tuple[FlowModel, str]:
    """Copy a flow with the guide of its start, which is not trained, and its license; without one, the flow and ""."""
    other = read(start) if start.exists() else None
    if other is None or other.guide is None or flow.guide is not None:
        return flow, ""
    copied = copy.deepcopy(flow)
    copied.guide = other.guide.to(next(flow.parameters()).device)
    copied.config = dataclasses.replace(flow.config, **{name: getattr(other.config, name) for name in OF_GUIDE})
    _, found, licence = str(read_header(start).provenance.get("licence", "")).partition("; guide: ")
    return copied, found + licence


def shipped_with_backbone(config: Any) -> Path | None:
    """Find the shipped model with the backbone of a configuration; None for an IMDN, which can be trained without."""
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
        "this backbone, or what benchmarks/read_published.py writes."
    )


def load_encoder(flow: FlowModel, path: Path, *, backbone_alone: bool = False) -> str:
    """Load the encoder of a model file, or a file's backbone alone where the rest is of another size; say which."""
    encoder, backbone = flow.encoder, pretrained_backbone(flow)
    try:
        if backbone is None:
            lr_encoder(flow).load_state_dict(lr_encoder(read(path)).state_dict())
            return "encoder"
        assert encoder is not None
        prefix = "backbone."
        if not is_ours(path):
            theirs = {prefix + name: t.float() for name, t in load_file(path).items()}
        else:
            theirs = {} if (other := read(path).encoder) is None else other.state_dict()
        shapes, own = ({name: t.shape for name, t in state.items()} for state in (theirs, encoder.state_dict()))
        if shapes == own and not backbone_alone:
            encoder.load_state_dict(theirs)
            return "encoder"
        backbone.load_state_dict({n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)})
        return "backbone"
    except (RuntimeError, SafetensorError) as error:
        raise FlowError(
            f"The encoder of {path.name} does not fit the encoder of this recipe's model: {error}."
        ) from error
