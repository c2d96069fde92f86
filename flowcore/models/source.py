"""How the keys and shapes of published checkpoints become a configuration and the tensors of one of our models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..flows.model import FlowModel
from .model_file import build_on_meta, check_finite, check_invertible, check_shapes
from .registry import configure

State = Mapping[str, Tensor]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

NOTHING = re.compile(r"(?!)")
LACKS_LAYERS = "The file lacks layers, or the variant is not supported."  # advice of ``Checkpoint.error``
UNTRAINED = (  # message of a ``Check``
    "says that this network was never initialized from a batch: its program would do that on first use, and the file "
    "holds no trained model. Give the file of a trained one."
)
MIT_PROGRAM = "MIT for the program; none is stated with published weights: check the license of your file"


# --- where tensors come from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors comes from."""

    ours: str
    names: Sequence[str]  # the published tensors that it is computed from; mostly one
    convert: Callable[..., Tensor]  # takes these, in this order and in our precision, and gives ours


def unchanged(t: Tensor) -> Tensor:
    """Return a tensor that a program lays out as we do."""
    return t


def take(ours: str, published: str, convert: Callable[[Tensor], Tensor] = unchanged) -> Origin:
    """Take one of our tensors from a single published one."""
    return Origin(ours, (published,), convert)


def take_all(
    ours: str, published: str, names: Mapping[str, str], convert: Callable[[Tensor], Tensor] = unchanged
) -> Iterator[Origin]:
    """Take tensors in the same way: for each ``part: name`` of ``names``, ``ours.part`` from ``published + name``."""
    for part, name in names.items():
        yield take(f"{ours}.{part}", published + name, convert)


def take_conv(ours: str, published: str, convert: Callable[[Tensor], Tensor] = unchanged) -> Iterator[Origin]:
    """Take weight and bias of a convolution."""
    return take_all(ours, f"{published}.", {"weight": "weight", "bias": "bias"}, convert)


def take_actnorm(ours: str, published: str) -> Iterator[Origin]:
    """Take an ``ActNorm`` that is called as in OpenAI's Glow."""
    return take_all(ours, f"{published}.", {"bias": "bias", "log_scale": "logs"}, torch.flatten)


def take_zero_conv(ours: str, published: str, conv: str = "") -> Iterator[Origin]:
    """Take a ``ZeroConv``; ``conv`` is the suffix of its kernel's name."""
    yield from take_conv(ours, published + conv)
    yield take(f"{ours}.log_scale", f"{published}.logs", torch.flatten)


def take_shift(ours: str, shift: str, log_scale: str) -> Origin:
    """Take the shift of an actnorm that shifts after scaling, where ours does so before; in float64, rounded once."""
    return Origin(ours, (shift, log_scale), _before_scale)


def _before_scale(shift: Tensor, log_scale: Tensor) -> Tensor:
    return flat_product(shift.double(), torch.exp(-log_scale.double()))


def alternate_swapped(t: Tensor) -> Tensor:
    """Reorder rows a0, a1, ..., b0, b1, ... to b0, a0, b1, a1, ..."""
    return torch.stack(t.chunk(2)[::-1], dim=1).flatten(0, 1)


def flat_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply equally many numbers; `a * b` would also broadcast the single one of a damaged file."""
    return torch.stack([a.flatten(), b.flatten()]).prod(0)


@dataclass(frozen=True)
class Check:
    """A condition on values, where shapes do not show what is wrong."""

    names: str | re.Pattern[str]  # matches full names
    holds: Callable[[Tensor], bool]
    otherwise: str  # continues the error after the name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tensors of one checkpoint become those of one model."""

    architecture: str
    config: Any
    origins: Sequence[Origin]
    values: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # tensors of ours that no checkpoint holds
    unused: re.Pattern[str] = NOTHING  # full names of published tensors that do not matter to the flow
    checks: Sequence[Check] = ()  # they may read unused tensors


# --- a publisher ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published program, and how its checkpoints are converted."""

    name: str  # the program's name
    licence: str  # note on the published weights, for the provenance of converted models
    detect: re.Pattern[str]  # matches the start of tensor names of this layout, also in incomplete or damaged files
    # From a checkpoint and configuration overrides to the layout; raises FlowError with the reason.
    layout: Callable[[Checkpoint, Mapping[str, Any]], Layout]
    integers: re.Pattern[str] = NOTHING  # full names of tensors that may hold integers or booleans
    rename: Callable[[State], State] = dict  # replaces names that other versions of the program use by the usual ones

    def load(self, state: State, overrides: Mapping[str, Any]) -> FlowModel:
        """Build our model, in float32 and evaluation mode, with copies of a checkpoint's tensors, if they fit."""
        state = self.rename(state)
        layout = self.layout(Checkpoint(self.name, state), overrides)
        flow = build_on_meta(layout.architecture, layout.config)
        ours = flow.state_dict()
        filled = {origin.ours for origin in layout.origins} | layout.values.keys()
        assert filled <= ours.keys()
        if empty := sorted(ours.keys() - filled):
            raise CheckpointError(
                f"the configuration asks for {empty[0]} and {len(empty) - 1} tensors more, which no checkpoint of "
                f"{self.name} has. Leave out the field that asks for them."
            )
        _check_layout(f"this checkpoint of {self.name}", layout, state, ours)
        for check in layout.checks:
            for name, t in state.items():
                if re.fullmatch(check.names, name) and not t.is_meta and not check.holds(t):
                    raise CheckpointError(f"{name} {check.otherwise}")
        weights = {**layout.values}
        for origin in layout.origins:
            dtype = ours[origin.ours].dtype
            value = origin.convert(*(state[name].to(dtype) for name in origin.names))
            weights[origin.ours] = value.new_empty(value.shape, dtype=dtype).copy_(value)  # published ones map the file
        check_finite(f"the converted checkpoint of {self.name}", weights)
        flow.load_state_dict(weights, assign=True)
        flow.normalize()
        check_invertible(f"the converted checkpoint of {self.name}", flow)
        return flow.eval()


def _check_layout(filename: str, layout: Layout, state: State, ours: State) -> None:
    """Compare the names of a checkpoint's tensors, and what shapes they convert to, with those of our model."""
    actual = {name: tuple(t.shape) for name, t in state.items() if not layout.unused.fullmatch(name)}
    expected = {name: actual.get(name, ()) for origin in layout.origins for name in origin.names}
    for origin in layout.origins:
        if any(name not in actual for name in origin.names):
            continue
        names, target = " with ".join(origin.names), ours[origin.ours]
        try:
            shape = tuple(origin.convert(*(state[name].to("meta", target.dtype) for name in origin.names)).shape)
        except (RuntimeError, IndexError) as error:  # too few dimensions, for example
            shapes = " with ".join(str(actual[name])[:100] for name in origin.names)
            raise CheckpointError(
                f"{names} of {filename} has an unexpected shape, {shapes}. The file is damaged, or a configuration "
                "field given for it is wrong."
            ) from error
        if shape != target.shape:
            expected[names], actual[names] = tuple(target.shape), shape
    check_shapes(filename, expected, actual)


class Checkpoint:
    """Tensors of an untrusted checkpoint, to read hyper-parameters from their names and shapes."""

    def __init__(self, program: str, state: State) -> None:
        self.program, self.state = program, state
        self.shapes: Shapes = {name: tuple(t.shape) for name, t in state.items()}

    def error(
        self, problem: str, advice: str = "The file is damaged, or the variant is not supported."
    ) -> CheckpointError:
        """Make the error for tensors that no known variant has; ``problem`` continues "this checkpoint of NAME"."""
        return CheckpointError(f"this checkpoint of {self.program} {problem} {advice}")

    def shape(self, name: str, dimensions: int) -> Shape:
        """Look up the shape of a tensor that determines a hyper-parameter; CheckpointError if it is not there."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != dimensions:
            problem = "it is missing" if shape is None else f"it has shape {shape}"
            raise CheckpointError(
                f"a checkpoint of {self.program} has a tensor {name} of {dimensions} dimensions; {problem}. "
                "The file is damaged or incomplete; fetch it again."
            )
        return shape

    def _matches(self, pattern: str) -> Iterator[re.Match[str]]:
        return filter(None, (re.match(pattern, name) for name in self.shapes))

    def has(self, pattern: str) -> bool:
        """Return True if a pattern matches the start of any name."""
        return any(self._matches(pattern))

    def indices(self, pattern: str) -> set[int]:
        """Collect the numbers in the group of a pattern, cut to nine digits, over the starts of all names."""
        return {int(match[1][:9]) for match in self._matches(pattern)}

    def count(self, pattern: str) -> int:
        """Count what is numbered from 0 in the group of a pattern, over the starts of all names."""
        return max(self.indices(pattern), default=-1) + 1

    def parts(self, pattern: str) -> set[str]:
        """Collect what follows a pattern in names, over all steps, since a damaged file may lack a part of one."""
        return {match.string[match.end() :] for match in self._matches(pattern)}

    def layers(self, pattern: str, kinds: Mapping[str | None, str]) -> str:
        """Spell a numbered list of layers, a letter each: "s" for a squeeze, which has no tensors.

        The groups of ``pattern`` are the number and the part that tells the kind: ``kinds`` maps it to "c" for a
        coupled step or "d" for a split; other parts are of plain steps, "p".
        """
        letters: dict[int, str] = {}
        for match in self._matches(pattern):
            kind = kinds.get(match[2], "p")
            letters[int(match[1])] = min(kind, letters.get(int(match[1]), kind))  # "c" and "d" sort before "p"
        return "".join(letters.get(k, "s") for k in range(max(letters, default=-1) + 1))

    def count_levels(self, layers: str, undivided: int, needed: str) -> tuple[int, int, int]:
        """Count the levels in ``layers``, and the plain and coupled steps of each, one of which is ``needed``."""
        start, *levels = layers.split("s")
        parts = [re.fullmatch(r"(p*)(c*)(d?)", level) for level in levels]
        steps = {(part[1], part[2]) for part in parts if part}
        splits = [bool(part and part[3]) for part in parts]
        expected = [level < len(levels) - undivided for level in range(len(levels))]
        if start or None in parts or len(steps) != 1 or needed not in levels[0] or splits != expected:
            raise self.error(
                "has other layers than the known variants. Expected per level a squeeze (s), as many plain steps (p) "
                "and coupled ones (c) as in every other level, and a split (d) after every level but the last "
                f"{undivided}; got {layers[:100] or 'none'}.",
                LACKS_LAYERS,
            )
        ((plain, coupled),) = steps
        return len(levels), len(plain), len(coupled)

    def config(
        self, architecture: str, detected: Mapping[str, Any], defaults: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> Any:
        """Make a configuration from what the file tells, which no override may contradict, and a program's defaults."""
        config = configure(architecture, {**defaults, **detected, **overrides})
        for name in overrides.keys() & detected.keys():
            if getattr(config, name) != detected[name]:
                raise CheckpointError(
                    f"{name}={overrides[name]!r} was given, but the tensors of this checkpoint of {self.program} tell "
                    f"{name}={detected[name]!r}. Leave it out."
                )
        return config


def missing_field_error(name: str, meaning: str, python: str, word: str, consequence: str) -> CheckpointError:
    """Make the error for a field that no tensor determines, with an example in Python and as a ``word``."""
    return CheckpointError(
        f"the field {name} is missing: {meaning} Find it in the training configuration and give it, for example: "
        f"flowcore.load(..., {name}={python}) or, on the command line, --set {name}={word}. A wrong guess loads, and "
        f"{consequence}."
    )
