"""Tasks: image in, image out. What every task shares with its caller: progress, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ..device import preferred_precision
from ..errors import FlowError, ImageError
from ..flow import Flow
from ..inference.fold import BorderConv, ConditionConv, FoldedConv, FoldedDense
from ..inference.plan import Plan, planned
from ..networks.conditioner import NormalisedConv, ScaledConv
from ..networks.residual import WeightNormConv

Precision = Literal["float32", "bfloat16", "float16", "auto", "tf32"]
"""Of conditioners and encoder, see ``plan.Plan``; "auto" is what the device gains from, see ``plan.gain``."""

WATCHED = (
    *(nn.Conv2d, nn.Linear, NormalisedConv, ScaledConv, WeightNormConv),
    *(BorderConv, FoldedConv, FoldedDense, ConditionConv),
)
PIXELS_AT_ONCE = 2**18  # a batch as large as one 512x512 image: a few hundred MB in a Glow of width 512
MOST_AT_ONCE = 64  # more than this is no faster


class Cancelled(Exception):
    """The caller asked a task to stop."""


class Progress(Protocol):
    """What a task calls as it goes along."""

    def __call__(self, done: int, total: int, preview: Tensor | None = None) -> None:
        """Report.

        Args:
            done: Finished units of work.
            total: All units of work.
            preview: A finished picture, ``(3, H, W)`` in [0, 1], when there is a new one.
        """


@contextmanager
def watched(flow: Flow, before_each: Callable[[nn.Module], None]) -> Generator[None, None, None]:
    """Call something before every convolution of a flow's networks runs: to count, and to stop.

    Args:
        flow: The model that the body of the ``with`` statement runs.
        before_each: Called with the layer; what it raises ends the body. In strips, a layer runs several times.

    Yields:
        Nothing.
    """

    def hook(layer: nn.Module, _: object) -> None:
        before_each(layer)

    handles = [layer.register_forward_pre_hook(hook) for layer in layers(flow)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers(model: nn.Module) -> list[nn.Module]:
    """List the layers that ``watched`` watches: where nearly all of the time is spent.

    Args:
        model: A flow, or a part of one.

    Returns:
        The convolutions and linear maps of its conditioners and of its encoder.
    """
    return [m for m in model.modules() if isinstance(m, WATCHED)]


def plan_for(flow: Flow, precision: Precision, say: Callable[[str], None]) -> Plan:
    """Give the plan of a flow in the precision that a caller asks for.

    Args:
        flow: The model.
        precision: On a CPU, float16 becomes float32.
        say: Called with a sentence if it does.

    Returns:
        The plan.

    Raises:
        FlowError: If the precision is unknown.
    """
    if precision not in get_args(Precision):
        raise FlowError(f"precision must be one of {', '.join(get_args(Precision))}; got {precision!r}.")
    device = next(flow.parameters()).device
    if precision == "float16" and device.type == "cpu":
        say("float16 is many times slower than float32 on a CPU: going on in float32.")
        precision = "float32"
    return planned(flow, preferred_precision(device) if precision == "auto" else precision)


def picture(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Take an image that someone passes to a task, as colours and alpha.

    Args:
        image: ``(B, C, H, W)`` in [0, 1], float of any precision, or uint8 in [0, 255]; values outside are clamped. C
            is 1, for grey, 3, or 4, with alpha.

    Returns:
        ``(B, 3, H, W)`` float32 in [0, 1], and alpha ``(B, 1, H, W)`` if it has one.

    Raises:
        ImageError: If it has another shape or type, is empty, or holds values that are not numbers.
    """
    if image.ndim != 4 or image.shape[1] not in (1, 3, 4):
        raise ImageError(f"Expected images of shape (B, 1, 3 or 4, H, W); got {tuple(image.shape)}.")
    if 0 in image.shape:
        raise ImageError(
            f"Nothing to work on: the batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least "
            "one image."
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ImageError(f"Expected images of uint8, or float in [0, 1]; got {image.dtype}. Convert them.")
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    wrong = int((~image.isfinite()).sum())
    if wrong:
        raise ImageError(
            f"The image holds {wrong} values that are not finite numbers (NaN or infinity). Mend the node or file it "
            "comes from."
        )
    image = image.clamp(0, 1)
    return image[:, :3].expand(-1, 3, -1, -1), image[:, 3:] if image.shape[1] == 4 else None


def images_at_once(height: int, width: int) -> int:
    """Say how many images of a size go through a flow together unless the caller says otherwise.

    Args:
        height: Of an image.
        width: Likewise.

    Returns:
        At least 1.
    """
    return max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // max(1, height * width)))
