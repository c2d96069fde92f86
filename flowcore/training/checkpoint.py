"""A run's checkpoints; and the other files that its weights may come from: a model, its encoder, or a backbone."""

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from ..device import is_out_of_memory
from ..errors import FlowError
from ..flows.model import FlowModel
from ..models import catalog
from ..models.fields import GUIDE_FIELDS, SAMPLING_FIELDS
from ..models.model_file import is_flowcore_file, read, read_header
from ..models.writing import replacing
from .objective import lr_encoder, pretrained_backbone
from .run import TrainingRun, TrainingState
from .run_folder import copy_file


class Checkpoints:
    """The newest checkpoint of a run, and the one before it, which stays the last good one."""

    def __init__(self, run: Path, fingerprint: str) -> None:
        self.newest, self.previous = run / "checkpoint.pt", run / "checkpoint.previous.pt"
        self.fingerprint = fingerprint
        self._newest_is_good = False

    def write(self, flow: FlowModel, average: FlowModel, optimizer: Optimizer | None, state: TrainingState) -> None:
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
        """Read the newest undamaged checkpoint, with ``good`` one whose last step was not skipped; None if none is.

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
                "training run of flowcore. Choose another folder for the run (--run), or move the file away to start "
                "over."
            )
        return None


def restore(
    content: Mapping[str, Any], flow: FlowModel, average: FlowModel, state: TrainingState
) -> dict[str, Any] | None:
    """Load a checkpoint's content into models and state, and return the optimizer's state, if there is one."""
    flow.load_state_dict(content["flow"])
    average.load_state_dict(content["average"])
    for name, value in content["progress"].items():
        setattr(state, name, value)
    return content["optimiser"]


# --- the start of a run -----------------------------------------------------------------------------------------------


def resume(run: TrainingRun, content: Mapping[str, Any], start: Path | None, start_copy: Path) -> dict[str, Any] | None:
    """Load a checkpoint into a run that may have begun with a copy of a start, and return the optimizer's state."""
    optimizer_state = restore(content, run.flow, run.average, run.state)
    # ``origin`` begins as ``load_start`` has written it
    if start is not None and not f"{run.state.origin},".startswith(f", starting from {start.stem},"):
        raise FlowError(
            f"{start_copy.parent} holds a run that did not start from {start.stem}. Choose another --run folder, or "
            "leave out --start to continue that run."
        )
    if run.state.start:
        take_sampling_defaults([run.flow, run.average], start_copy)
    run.log.line(f"resuming after step {run.state.step}")
    return optimizer_state


def load_start(run: TrainingRun, start: Path | None, encoder_from: Path | None, start_copy: Path) -> None:
    """Load the weights that a new run begins with, and keep a copy of the start."""
    flow, state = run.flow, run.state
    if start is not None:
        load_weights(flow, start, other_encoder=encoder_from is not None)
        take_sampling_defaults([flow, run.average], start)
        state.initialised, state.rate, state.origin = True, run.recipe.start_rate, f", starting from {start.stem}"
        if run.distributed.is_main:
            copy_file(start, start_copy)
    elif run.distributed.is_main:
        start_copy.unlink(missing_ok=True)  # left by a run that stopped before its first step
    if encoder_from is not None:
        state.origin += f", with the {load_encoder(flow, encoder_from)} of {encoder_from.stem}"
    elif start is None and (shipped := shipped_with_backbone(flow)) is not None:
        trained_here = any(stage.objective == "chroma" for stage in run.recipe.stages)
        part = load_encoder(flow, shipped, backbone_alone=trained_here)
        state.origin = f", with the {part} of {shipped.stem}"
        run.log.line(f"took the {part} of the shipped model {shipped.stem}; encoder_from chooses another file")
    run.average.load_state_dict(flow.state_dict())


def load_weights(flow: FlowModel, path: Path, *, other_encoder: bool = False) -> None:
    """Load a model of the same configuration; its dequantizer, guide and, if ``other_encoder``, encoder may differ."""
    other = read(path)
    expected, actual = dataclasses.asdict(flow.config), dataclasses.asdict(other.config)
    # settings measured after training, for a file's own weights
    may_differ = {"styles", *SAMPLING_FIELDS, *GUIDE_FIELDS}
    if (flow.dequantizer is None) != (other.dequantizer is None):
        may_differ.add("dequantizer_steps")
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
    weights = {name: t for name, t in other.state_dict().items() if not (of_encoder and name.startswith("encoder."))}
    own = flow.state_dict()  # stays where the file's weights are not loaded
    flow.load_state_dict({name: weights.get(name, value) for name, value in own.items()})


def take_sampling_defaults(flows: Sequence[FlowModel], path: Path) -> None:
    """Copy from a model file how it is meant to be sampled, which hardly changes while it is fine-tuned."""
    config = read_header(path).config
    for flow in flows:
        flow.config = dataclasses.replace(
            flow.config, **{name: config[name] for name in SAMPLING_FIELDS if name in config}
        )


def with_guide_of(flow: FlowModel, start: Path) -> tuple[FlowModel, str]:
    """Copy a flow with the guide of its start, which is not trained, and its license; without one, the flow and ""."""
    other = read(start) if start.exists() else None
    if other is None or other.guide is None or flow.guide is not None:
        return flow, ""
    # its license follows that of the rest of the file, after "; guide: "
    copied = copy.deepcopy(flow)
    copied.guide = other.guide.to(next(flow.parameters()).device)
    copied.config = dataclasses.replace(flow.config, **{name: getattr(other.config, name) for name in GUIDE_FIELDS})
    _, separator, license_of_guide = str(read_header(start).provenance.get("licence", "")).partition("; guide: ")
    return copied, separator + license_of_guide


def shipped_with_backbone(flow: FlowModel) -> Path | None:
    """Find the shipped model with the backbone of a flow; None if it has none, or an IMDN, which can do without."""
    if pretrained_backbone(flow) is None:
        return None
    config: Any = flow.config
    colorizes = flow.capabilities.source == "luma"
    of_backbone = ["backbone"] if colorizes else ["encoder", "encoder_blocks", "encoder_growth"]
    headers = {catalog.path(name): header.config for name, header in catalog.headers().items()}
    files = [file for file, c in headers.items() if all(c.get(name) == getattr(config, name) for name in of_backbone)]
    if files:  # preferably of the same scale, since then its adapter fits, too
        return min(files, key=lambda file: headers[file].get("scale") != flow.facts.scale)
    if not colorizes:
        return None
    raise FlowError(
        "This recipe's encoder has a backbone, whose pretrained weights must be loaded before training, and no shipped "
        f"model has it ({config.backbone}). Name a file with encoder_from (--encoder-from): another model with "
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
        if not is_flowcore_file(path):
            theirs = {prefix + name: t.float() for name, t in load_file(path).items()}
        else:
            theirs = {} if (other := read(path).encoder) is None else other.state_dict()
        fits = _shapes(theirs) == _shapes(encoder.state_dict())
        if fits and not backbone_alone:
            encoder.load_state_dict(theirs)
            return "encoder"
        backbone.load_state_dict({n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)})
        return "backbone"
    except (RuntimeError, SafetensorError) as error:
        raise FlowError(
            f"The encoder of {path.name} does not fit the encoder of this recipe's model: {error}."
        ) from error


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in state.items()}
