"""The host's node API, whatever its version: schemas, curves, and the extension that lists our nodes."""

# The host is not installed in the environment that checks types.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

from comfy_api.v0_0_2 import ComfyExtension
from comfy_api.v0_0_2 import io as host_io
from comfyui_version import __version__ as host_version
from server import PromptServer

from ...flowcore import FlowError
from .paths import register_model_folder

T = TypeVar("T")

# Not typed: what it holds depends on the host's version.
io: Any = host_io

MINIMUM_VERSION = "0.20.0"

log = logging.getLogger("flowcore")


class Extension(ComfyExtension):
    """Lists our nodes for the host."""

    def __init__(self, nodes: list[type], on_start: list[Callable[[], None]]) -> None:
        """Register `models/flows`, run the start-up hooks, and warn about a host that is too old."""
        super().__init__()
        self._nodes = nodes
        # Not in on_load, which 0.3.75 never calls.
        register_model_folder()
        for hook in on_start:
            hook()
        if _version(host_version) < _version(MINIMUM_VERSION):
            log.warning(
                "flowcore needs ComfyUI >= %s and this is %s: its nodes work, some of their looks are missing.",
                MINIMUM_VERSION,
                host_version,
            )

    async def get_node_list(self) -> list[type]:
        return self._nodes


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def make(kind: type[T], *positional: Any, **fields: Any) -> T:
    """Build a Schema or an input of the host, leaving out the fields that this version does not know."""
    known = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        fields = {name: value for name, value in fields.items() if name in known}
    return kind(*positional, **fields)


def curve_input(name: str) -> Any:
    """Describe a curve, drawn on the node or connected; before 0.16 it can only be connected."""
    if hasattr(io, "Curve"):
        return make(io.Curve.Input, name, optional=True, socketless=False)
    straight = {"points": [[0.0, 0.0], [1.0, 1.0]], "interpolation": "monotone_cubic"}  # the default of later hosts
    return make(io.Custom("CURVE").Input, name, optional=True, extra_dict={"default": straight})


def curve_values(curve: Any, positions: list[float]) -> list[float]:
    """Evaluate a curve at some positions in [0, 1].

    Args:
        curve: As the canvas, a script or a node of the host sends it; None for the straight line from 0 to 1.
        positions: Where to evaluate it.
    """
    if curve is None:
        return positions
    try:
        from comfy_api.input import CurveInput  # since 0.16

        values = [float(CurveInput.from_raw(curve).interp(position)) for position in positions]
    except Exception as error:  # from_raw does not check what a script sends
        raise FlowError(
            f"curve must be the points of a curve, such as [[0, 0], [1, 1]]; got a {type(curve).__name__} that cannot "
            "be read. Draw one, connect Curve Editor, or leave it out."
        ) from error
    if not all(-1e3 < value < 1e3 for value in values):
        raise FlowError(f"curve must stay between 0 and 1; it reaches {max(values, key=abs):.6g}. Draw it lower.")
    return values


def gradient_slider() -> Any:
    """Return the display mode of a slider with a colored track, or of a plain slider on hosts without one."""
    return getattr(io.NumberDisplay, "gradient_slider", io.NumberDisplay.slider)


def on_prompt(inspect_body: Callable[[Any], None]) -> None:
    """Show the body of every posted prompt, which may be anything, to a function that may write into it."""

    def handler(body: Any) -> Any:
        try:
            inspect_body(body)
        except Exception:  # a failure of ours must not stop a prompt
            log.exception("flowcore could not look at a prompt")
        return body

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(handler)
