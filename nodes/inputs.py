"""What comes into a node is what its schema says, or is refused in a sentence.

The host looks at values that were typed, and lets some through: NaN is neither below a minimum nor above a maximum,
0.3.75 takes anything as a choice, a socket takes any value that is no wire, and what comes along a wire is not looked
at.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..flowcore import FlowError, ImageError
from .sockets import checked, flow_of, hints_of

LONGEST = 80  # of a text that is shown


def guard(node: type) -> type:
    """Let a node's `execute` see only what its schema says.

    Args:
        node: The node's class.

    Returns:
        The same class.
    """
    inner: Callable[..., Any] = vars(node)["execute"].__func__
    # A node looks itself at what its `validate_inputs` names: files that come and go.
    own = set(inspect.signature(node.validate_inputs).parameters) if "validate_inputs" in vars(node) else set[str]()

    @functools.wraps(inner)
    def execute(cls: Any, /, **given: Any) -> Any:
        schema = cls.define_schema()
        each = _each if getattr(schema, "is_input_list", False) else _as_described
        values: dict[str, Any] = {}
        for described in schema.inputs:  # whatever else was sent means nothing
            if described.id in given:
                values[described.id] = each(described, given[described.id], own)
            elif not described.optional:
                raise FlowError(f"{described.id} is missing: nothing came along its wire. Connect it.")
        return inner(cls, **values)

    node.execute = classmethod(execute)  # pyright: ignore[reportAttributeAccessIssue]
    return node


def _each(described: Any, values: Any, own: set[str]) -> Any:
    """Take a list of values, as nodes get them that work on lists."""
    taken = [_as_described(described, value, own) for value in values]
    return None if taken == [None] else taken


def _as_described(described: Any, value: Any, own: set[str]) -> Any:
    """Take a value as an input describes it."""
    name, kind = described.id, str(described.get_io_type())
    if kind in SOCKETS:
        # An optional socket may stay empty.
        return None if value is None and described.optional else SOCKETS[kind](value, name)
    if kind == "INT":
        return _within(described, _whole(value, name))
    if kind == "FLOAT":
        return _within(described, _finite(value, name))
    if kind == "BOOLEAN" and not isinstance(value, bool):
        raise FlowError(f"{name} is on or off; got {shown(value)}. Send true or false.")
    if kind in ("STRING", "COMBO"):
        return _written(described, value, own)
    return value


def _whole(value: Any, name: str) -> int:
    if isinstance(value, float) and value.is_integer():  # as nodes for arithmetic make it
        return int(value)
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise FlowError(f"{name} must be a whole number; got {shown(value)}. Send one, or connect one.") from None


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise FlowError(f"{name} must be a finite number; got {shown(value)}. Send one, or connect one.")
    return number


def _within(described: Any, value: float) -> Any:
    least, most = described.min, described.max
    if (least is not None and value < least) or (most is not None and value > most):
        raise FlowError(f"{described.id} must lie in {least} to {most}; got {value:.6g}. Choose a value in between.")
    return value


def _written(described: Any, value: Any, own: set[str]) -> str:
    name = described.id
    if not isinstance(value, str):
        raise FlowError(f"{name} must be text; got {shown(value)}. Send a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FlowError(f"{name} holds half of a character (a lone surrogate). Type it again.") from None
    options = getattr(described, "options", None)
    if options is not None and name not in own and value not in options:
        raise FlowError(f"{name} must be one of {', '.join(options)}; got {shown(value)}.")
    return value


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ImageError(f"{name} must be an image; got {shown(value)}. Connect a node that makes one.")
    return value


SOCKETS: dict[str, Callable[[Any, str], Any]] = {
    "IMAGE": _tensor,
    "MASK": _tensor,
    "FLOW_MODEL": lambda value, _: flow_of(value) and value,
    "FLOW_LATENTS": lambda value, _: checked(value),
    "FLOW_HINTS": lambda value, _: hints_of(value),
}


def shown(value: Any) -> str:
    """Show what was sent in a sentence.

    Args:
        value: Anything.

    Returns:
        A short text that can be printed everywhere.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST else f"{value[:LONGEST]!r} and so on"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a very large number"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
