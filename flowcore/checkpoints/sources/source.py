"""How the keys and shapes of published checkpoints become a configuration and the tensors of one of our models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...model import FlowModel
from ...models import configure
from ..file import build_on_meta, check_finite, check_invertible, check_shapes

State = Mapping[str, Tensor]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

NOTHING = re.compile(r"(?!)")
LACKS_LAYERS = "The file lacks layers, or the variant is not supported."  # advice of ``Checkpoint.error``


# --- where tensors come from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a published tensor is laid out."""

    published_shape: Callable[[Shape], Shape]  # from the shape of ours
    to_ours: Callable[[Tensor], Tensor]  # from the published tensor to ours

    def then(self, change: Callable[[Tensor], Tensor]) -> Form:
        """Apply one more change to the converted tensor, of its values or the order of its rows."""
        return Form(self.published_shape, lambda t: change(self.to_ours(t)))


def _identity(t: Tensor) -> Tensor:
    return t


SAME = Form(lambda s: s, _identity)
# Published forms of our vectors (C,):
PER_CHANNEL = Form(lambda s: (1, *s, 1, 1), torch.flatten)
PER_OUTPUT = Form(lambda s: (*s, 1, 1), torch.flatten)
AS_KERNEL = Form(lambda s: (*s, 1, 1, 1), torch.flatten)


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors comes from."""

    ours: str
    names: Sequence[str]  # the published tensors that it is computed from; mostly one
    forms: Sequence[Form]  # of these, in the same order
    combine: Callable[..., Tensor] = _identity  # of these, in our layout; sides of 1 are broadcast


def take(ours: str, published: str, form: Form = SAME) -> Origin:
    """Take one of our tensors from a single published one."""
    return Origin(ours, (published,), (form,))


def take_all(ours: str, published: str, names: Mapping[str, str], form: Form = SAME) -> Iterator[Origin]:
    """Take tensors of one form: for each ``part: name`` of ``names``, ``ours.part`` from ``published + name``."""
    for part, name in names.items():
        yield take(f"{ours}.{part}", published + name, form)


def take_conv(ours: str, published: str, form: Form = SAME) -> Iterator[Origin]:
    """Take weight and bias of a convolution."""
    return take_all(ours, f"{published}.", {"weight": "weight", "bias": "bias"}, form)


def take_shift(ours: str, shift: str, log_scale: str, form: Form = SAME) -> Origin:
    """Take the shift of an actnorm that shifts after scaling, where ours does so before; in float64, rounded once."""

    def before_scale(shift: Tensor, log_scale: Tensor) -> Tensor:
        return shift.double() * torch.exp(-log_scale.double())

    return Origin(ours, (shift, log_scale), (form, form), before_scale)


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
    values: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # of ours that no checkpoint holds
    unused: re.Pattern[str] = NOTHING  # full names of published tensors that do not matter to the flow
    checks: Sequence[Check] = ()  # also of unused tensors


# --- a publisher ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published program, and how its checkpoints are converted."""

    name: str  # of the program
    licence: str  # note on the published weights, for the provenance of converted models
    detect: re.Pattern[str]  # matches the start of tensor names of this layout, also in incomplete or damaged files
    # From a checkpoint and configuration overrides to the layout; raises FlowError with the reason.
    layout: Callable[[Checkpoint, Mapping[str, Any]], Layout]
    integers: re.Pattern[str] = NOTHING  # full names of tensors that may hold integers or booleans
    rename: Callable[[State], State] = dict  # from names that other versions of the program use to the usual ones

    def convert(self, state: State, overrides: Mapping[str, Any]) -> FlowModel:
        """Build our model, in float32 and evaluation mode, with copies of a checkpoint's tensors, if they fit."""
        state = self.rename(state)
        layout = self.layout(Checkpoint(self.name, state), overrides)
        flow = build_on_meta(layout.architecture, layout.config)
        ours = {name: (tuple(t.shape), t.dtype) for name, t in flow.state_dict().items()}
        filled = {origin.ours for origin in layout.origins} | layout.values.keys()
        assert filled <= ours.keys()
        if empty := sorted(ours.keys() - filled):
            raise CheckpointError(
                f"the configuration asks for {empty[0]} and {len(empty) - 1} tensors more, which no checkpoint of "
                f"{self.name} has. Leave out the field that asks for them."
            )
        expected = {
            name: form.published_shape(ours[origin.ours][0])
            for origin in layout.origins
            for name, form in zip(origin.names, origin.forms, strict=True)
        }
        actual = {name: tuple(t.shape) for name, t in state.items() if not layout.unused.fullmatch(name)}
        check_shapes(f"this checkpoint of {self.name}", expected, actual)
        for check in layout.checks:
            for name, t in state.items():
                if re.fullmatch(check.names, name) and not t.is_meta and not check.holds(t):
                    raise CheckpointError(f"{name} {check.otherwise}")
        weights = {**layout.values}
        for origin in layout.origins:
            shape, dtype = ours[origin.ours]
            parts = (form.to_ours(state[name].to(dtype)) for name, form in zip(origin.names, origin.forms, strict=True))
            value = origin.combine(*parts)
            weights[origin.ours] = value.new_empty(shape, dtype=dtype).copy_(value)  # published ones map the file
        check_finite(f"the converted checkpoint of {self.name}", weights)
        flow.load_state_dict(weights, assign=True)
        flow.normalize()
        check_invertible(f"the converted checkpoint of {self.name}", flow)
        return flow.eval()


class Checkpoint:
    """Tensors of an untrusted checkpoint, to read hyper-parameters from their names and shapes."""

    def __init__(self, program: str, state: State, ignored: re.Pattern[str] = NOTHING) -> None:
        self.program, self.state = program, state
        self.shapes: Shapes = {name: tuple(t.shape) for name, t in state.items() if not ignored.fullmatch(name)}

    def error(
        self, problem: str, advice: str = "The file is damaged, or the variant is not supported."
    ) -> CheckpointError:
        """Make the error for tensors that no known variant has; ``problem`` continues "this checkpoint of NAME"."""
        return CheckpointError(f"this checkpoint of {self.program} {problem} {advice}")

    def without(self, ignored: re.Pattern[str]) -> Checkpoint:
        """Leave out tensors by their full names."""
        return Checkpoint(self.program, self.state, ignored)

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


def count_levels(layers: str, undivided: int) -> tuple[int, int, int]:
    """Count levels, and the plain and coupled steps of each, in ``Checkpoint.layers``; 0 if levels are not alike."""
    start, *levels = layers.split("s")  # each: plain steps, coupled steps, and, unless undivided, a split
    parts = [re.fullmatch(r"(p*)(c*)(d?)", level) for level in levels]
    steps = {(len(part[1]), len(part[2])) for part in parts if part}
    splits = [bool(part[3]) for part in parts if part]
    divided = len(levels) - undivided
    if start or None in parts or len(steps) != 1 or splits != [number < divided for number in range(len(levels))]:
        return 0, 0, 0
    plain, coupled = steps.pop()
    return len(levels), plain, coupled


def missing_field(name: str, meaning: str, python: str, word: str, consequence: str) -> CheckpointError:
    """Make the error for a field that no tensor determines, with an example in Python and as a ``word``."""
    return CheckpointError(
        f"the field {name} is missing: {meaning} Find it in the training configuration and give it, for example: "
        f"flowcore.load(..., {name}={python}) or, on the command line, --set {name}={word}. A wrong guess loads, and "
        f"{consequence}."
    )
