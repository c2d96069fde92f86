"""What a published layout is, and how its tensors become those of one of our models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...flow import Flow
from ...models import configure
from ..file import refuse_mismatch, refuse_no_inverse, refuse_values, skeleton

State = Mapping[str, Tensor]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published layout.

    Attributes:
        name: Of the published program.
        licence: Note on the licence of the published weights, for the provenance of what is converted from them.
        detect: Whether tensor names and shapes are of this layout, possibly incomplete or damaged.
        convert: From a state dict of this layout and configuration overrides to a flow; raises FlowError with the
            reason if it cannot.
        whole: Names, in full, of the tensors that may hold whole numbers or truth values.
    """

    name: str
    licence: str
    detect: Callable[[Shapes], bool]
    convert: Callable[[State, Mapping[str, Any]], Flow]
    whole: re.Pattern[str] = NOTHING


@dataclass(frozen=True)
class Form:
    """How a published tensor is laid out, and what makes ours of it.

    Attributes:
        shape: From our shape to the published one.
        turn: From the published tensor to ours.
    """

    shape: Callable[[Shape], Shape]
    turn: Callable[[Tensor], Tensor]

    def then(self, turn: Callable[[Tensor], Tensor]) -> Form:
        """Add a change of numbers or order that keeps the shape.

        Args:
            turn: What to do with the tensor in our shape.

        Returns:
            The longer form.
        """
        return Form(self.shape, lambda t: turn(self.turn(t)))


def _itself(t: Tensor) -> Tensor:
    return t


SAME = Form(lambda s: s, _itself)
# Vectors (C,), and what they are published as.
PER_CHANNEL = Form(lambda s: (1, *s, 1, 1), torch.flatten)
PER_OUTPUT = Form(lambda s: (*s, 1, 1), torch.flatten)
AS_KERNEL = Form(lambda s: (*s, 1, 1, 1), torch.flatten)


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors comes from.

    Attributes:
        ours: Its name in our model.
        names: The published tensors that it is made of; mostly one.
        forms: Their layouts, in the same order.
        combine: From the tensors, in our layout, to ours; it may leave sides 1 for the numbers to be repeated.
    """

    ours: str
    names: Sequence[str]
    forms: Sequence[Form]
    combine: Callable[..., Tensor] = _itself


def take(ours: str, published: str, form: Form = SAME) -> Origin:
    """Let one of our tensors come from a single published one.

    Args:
        ours: Its name.
        published: The other's name.
        form: The other's layout.

    Returns:
        The origin.
    """
    return Origin(ours, (published,), (form,))


@dataclass(frozen=True)
class Check:
    """What tensors must hold, where shapes do not show what is wrong.

    Attributes:
        names: In full, of the tensors that it concerns.
        holds: Whether such a tensor is as expected.
        otherwise: The sentence for one that is not, after its name.
    """

    names: re.Pattern[str]
    holds: Callable[[Tensor], bool]
    otherwise: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tensors of one checkpoint become those of one model.

    Attributes:
        program: Name of the published program.
        architecture: Name of our recipe.
        config: Its configuration.
        origins: Our tensors that the checkpoint holds.
        given: Our tensors that it does not hold.
        unused: Names, in full, of published tensors that say nothing about the flow.
        checks: Of values, those of unused tensors among them.
    """

    program: str
    architecture: str
    config: Any
    origins: Sequence[Origin]
    given: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    unused: re.Pattern[str] = NOTHING
    checks: Sequence[Check] = ()


def assemble(layout: Layout, state: State) -> Flow:
    """Build a model and fill it from a checkpoint.

    Names and shapes are compared on torch's meta device before anything is allocated.

    Args:
        layout: How.
        state: The checkpoint's tensors; they are copied.

    Returns:
        The flow, in float32 and evaluation mode.

    Raises:
        CheckpointError: If a tensor is missing, is not known, has another shape, or fails a check; or if a given field
            asks for more than the file holds.
    """
    flow = skeleton(layout.architecture, layout.config)
    ours = {name: (tuple(t.shape), t.dtype) for name, t in flow.state_dict().items()}
    filled = {origin.ours for origin in layout.origins} | layout.given.keys()
    assert filled <= ours.keys()
    if empty := sorted(ours.keys() - filled):
        raise CheckpointError(
            f"the configuration asks for {empty[0]} and {len(empty) - 1} tensors more, which no checkpoint of "
            f"{layout.program} has. Leave out the field that asks for them."
        )
    expected = {
        name: form.shape(ours[origin.ours][0])
        for origin in layout.origins
        for name, form in zip(origin.names, origin.forms, strict=True)
    }
    came = {name: shape for name, shape in shapes_of(state).items() if not layout.unused.fullmatch(name)}
    refuse_mismatch(f"this checkpoint of {layout.program}", expected, came)
    _check(layout.checks, state)
    weights = {**layout.given}
    for origin in layout.origins:
        shape, dtype = ours[origin.ours]
        parts = (form.turn(state[name].to(dtype)) for name, form in zip(origin.names, origin.forms, strict=True))
        value = origin.combine(*parts)
        weights[origin.ours] = value.new_empty(shape, dtype=dtype).copy_(value)  # theirs are views of the file
    refuse_values(f"what this checkpoint of {layout.program} becomes", weights)
    flow.load_state_dict(weights, assign=True)
    refuse_no_inverse(f"what this checkpoint of {layout.program} becomes", flow)
    return flow.eval()


def configured(
    program: str, architecture: str, told: Mapping[str, Any], assumed: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    """Make a configuration of what the file tells, what its program does, and what the caller gives.

    Args:
        program: Name of the published program.
        architecture: Name of our recipe.
        told: Fields that the file tells; nothing may contradict them.
        assumed: Fields that the program fixes, or mostly has, and that the caller may know better.
        given: The caller's fields.

    Returns:
        The configuration.

    Raises:
        CheckpointError: If a given field is unknown, or contradicts the file.
        FlowError: If a value is not allowed.
    """
    config = configure(architecture, {**assumed, **told, **given})
    for name in given.keys() & told.keys():
        if getattr(config, name) != told[name]:
            raise CheckpointError(
                f"{name}={given[name]!r} was given, but the tensors of this checkpoint of {program} tell "
                f"{name}={told[name]!r}. Leave it out."
            )
    return config


def missing_field(name: str, meaning: str, example: str, word: str, consequence: str) -> CheckpointError:
    """Build the error for a field that no tensor tells.

    Args:
        name: The field.
        meaning: What it is, and what was seen of it.
        example: A value in Python.
        word: The same on the command line.
        consequence: What a wrong guess does.

    Returns:
        The error, to be raised.
    """
    return CheckpointError(
        f"the field {name} is missing: {meaning} Find it in the training configuration and give it, for example: "
        f"flowcore.load(..., {name}={example}) or, on the command line, --set {name}={word}. A wrong guess loads, and "
        f"{consequence}."
    )


def shapes_of(state: State) -> dict[str, Shape]:
    """List shapes.

    Args:
        state: Tensors by name.

    Returns:
        Shapes by name.
    """
    return {name: tuple(t.shape) for name, t in state.items()}


def shape_of(program: str, shapes: Shapes, name: str, dimensions: int) -> Shape:
    """Look up the shape of a tensor that tells something about the configuration.

    Args:
        program: Name of the published program, for the message.
        shapes: Of the file.
        name: Of the tensor.
        dimensions: How many it must have.

    Returns:
        Its shape.

    Raises:
        CheckpointError: If it is missing, or has another number of dimensions.
    """
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions:
        came = "it is missing" if shape is None else f"it has shape {shape}"
        raise CheckpointError(
            f"a checkpoint of {program} has a tensor {name} of {dimensions} dimensions; {came}. "
            "The file is damaged or incomplete; fetch it again."
        )
    return shape


def indices(shapes: Shapes, pattern: str) -> set[int]:
    """Collect a number in tensor names.

    Args:
        shapes: Of the file.
        pattern: Matches the start of a name; its group is the number.

    Returns:
        The numbers, as far as they have nine digits at most.
    """
    found = (re.match(pattern, name) for name in shapes)
    return {int(match[1][:9]) for match in found if match}


def has(pattern: str) -> Callable[[Shapes], bool]:
    """Make a test for tensor names.

    Args:
        pattern: Matches the start of a name.

    Returns:
        Whether any name of a file does.
    """
    compiled = re.compile(pattern)
    return lambda shapes: any(compiled.match(name) for name in shapes)


def _check(checks: Sequence[Check], state: State) -> None:
    for check in checks:
        for name, t in state.items():
            if check.names.fullmatch(name) and not t.is_meta and not check.holds(t):
                raise CheckpointError(f"{name} {check.otherwise}")
