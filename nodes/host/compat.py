"""The host's node API: schemas, curves, videos, posted prompts, and our extension."""

# The host is not installed in the environment that checks types.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

import logging
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from comfy_api.v0_0_2 import ComfyExtension, Input, InputImpl, Types
from comfy_api.v0_0_2 import io as host_io
from server import PromptServer

from flowcore import FlowError

io: Any = host_io  # untyped: what it holds depends on the host's version
FPS = 24  # frame rate of a video made from frames alone
log = logging.getLogger("flowcore")


class Extension(ComfyExtension):
    """Lists our nodes for the host."""

    def __init__(self, nodes: list[type]) -> None:
        super().__init__()
        self._nodes = nodes

    async def get_node_list(self) -> list[type]:
        return self._nodes


def curve_values(curve: Any, positions: list[float]) -> list[float]:
    """Evaluate a curve, sent by the canvas, a script or a node, at positions in [0, 1]; None is a straight line."""
    if curve is None:
        return positions
    try:
        from comfy_api.input import CurveInput

        values = [float(CurveInput.from_raw(curve).interp(position)) for position in positions]
    except Exception as error:  # from_raw does not check its argument
        raise FlowError(
            f"curve must be the points of a curve, such as [[0, 0], [1, 1]]; got a {type(curve).__name__} that cannot "
            "be read. Draw one, connect Curve Editor, or leave it out."
        ) from error
    if not all(-1e3 < value < 1e3 for value in values):
        raise FlowError(f"curve must stay between 0 and 1; it reaches {max(values, key=abs):.6g}. Draw it lower.")
    return values


def components(value: Any) -> Any:
    """Read the frames, sound and frame rate of the host's VIDEO; None for any other value."""
    return value.get_components() if isinstance(value, Input.Video) else None


def video_of(frames: Any, like: Any) -> Any:
    """Make a VIDEO from an IMAGE, with the sound and frame rate of the components of another, if any."""
    # Videos need even sides, so a last row or column is dropped, and have no alpha.
    height, width = (max(1, side // 2 * 2) for side in frames.shape[1:3])
    frames = frames[:, :height, :width, :3]
    rate, audio = (like.frame_rate, like.audio) if like else (Fraction(FPS), None)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=rate, audio=audio))


def on_prompt(inspect_body: Callable[[Any], None]) -> None:
    """Register a function that may modify the body of every posted prompt, whatever that holds."""

    def handler(body: Any) -> Any:
        try:
            inspect_body(body)
        except Exception:  # our failure must not stop a prompt
            log.exception("flowcore could not inspect a prompt")
        return body

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(handler)
