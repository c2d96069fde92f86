"""One runner for all tasks: the plan, progress, cancellation, and what happens when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from ..device import Precision, actual_precision, empty_cache, float32_arithmetic, is_out_of_memory, no_autocast
from ..errors import FlowError, ImageError
from ..flow import Flow
from ..images.resize import resize
from ..inference.plan import Plan, forget_plan, planned
from ..inference.progress import observed
from ..inference.strips import minimum_memory
from . import Cancelled
from .options import RunOptions

R = TypeVar("R")

PIXELS_AT_ONCE = 2**18  # a batch as large as one 512x512 image: a few hundred MB in a Glow of width 512
LARGEST = {torch.uint8: 255, torch.uint16: 65535}  # value of integers, white
MAX_AT_ONCE = 64  # more than this is no faster

log = logging.getLogger("flowcore")


class Runner:
    """Runs one task, again with less at once if memory runs out.

    Progress is counted in units: ``expect`` sets their number, ``advance`` counts finished ones, and ``stage``
    announces units that are counted while the plan computes them. ``advice`` says what to do if memory does not
    suffice, naming the arguments that matter; ``image`` is what the task works on, and named by its size then.
    """

    def __init__(self, flow: Flow | None, options: RunOptions, advice: str, image: Tensor | None = None) -> None:
        if image is not None:
            require_tensor(image)
        self.options = options
        self.minimum_memory = False
        self._flow, self._plan = flow, None
        self._notified: set[str] = set()
        self._size = "" if image is None or image.ndim != 4 else f" at {image.shape[3]}x{image.shape[2]} pixels"
        self._advice = advice
        self._image = image
        self.expect(0)

    def __call__(self, task: Callable[[], R], smaller: Callable[[], str | None] | None = None) -> R:
        """Run a task: all at once; if memory runs out, one image at a time with minimum memory; then ever smaller.

        The task computes the result from the start; nothing of an attempt that failed is used. ``smaller`` is called
        when memory runs out even with minimum memory: it makes the next attempt smaller and says how ("with tiles of 64
        pixels"), or returns None if that is impossible.
        """
        while True:
            self._plan = None
            try:
                strips = minimum_memory() if self.minimum_memory else nullcontext()
                with (
                    torch.no_grad(),
                    no_autocast(self.device),
                    float32_arithmetic(),
                    observed(self._observe),
                    strips,
                ):
                    self._check_range()
                    return task()
            except (RuntimeError, MemoryError) as error:  # what torch and Python raise, on every device
                if not is_out_of_memory(error):
                    raise
                less: str | None = "with one image at a time and minimum memory. It takes longer"
                if self.minimum_memory:
                    less = None if smaller is None else smaller()
                if less is None:
                    raise FlowError(f"Out of memory{self._size}. {self._advice}") from error
            # Outside of the except clause, because an error keeps alive what its attempt has made.
            self.minimum_memory = True
            self.notify(f"Out of memory: going on {less}.")
            forget_plan(keep=self._flow)
            empty_cache()

    def _check_range(self) -> None:
        image = self._image
        if image is None or not image.is_floating_point() or not image.numel():
            return
        low, high = (float(value) for value in image.aminmax())
        if low < -0.5 and high < 1.5:
            self.notify(
                f"The image's floats go from {low:g} to {high:g}; expected [0, 1]. If they are in [-1, 1], pass "
                "(image + 1) / 2."
            )

    @property
    def plan(self) -> Plan:
        """The model folded in the precision of the options; made when first asked for."""
        if self._plan is None:
            assert self._flow is not None
            self._plan = planned(self._flow, self._precision())
        return self._plan

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._parameter().device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's parameters."""
        return self._parameter().dtype

    def at_once(self, preferred: int) -> int:
        """Choose how many images or samples go through the flow together: what the caller set, else ``preferred``."""
        return 1 if self.minimum_memory else self.options.batch or preferred

    def notify(self, sentence: str) -> None:
        """Tell the caller something, or the log; each sentence once, however many attempts it takes."""
        if sentence not in self._notified:
            self._notified.add(sentence)
            (self.options.notify or log.warning)(sentence)

    def check_cancelled(self) -> None:
        """Raise Cancelled if the caller asks to stop."""
        if self.options.cancelled is not None and self.options.cancelled():
            raise Cancelled("Stopped on request.")

    def expect(self, total: int) -> None:
        """Start counting from 0 to so many units of work."""
        self._total = self._work = total
        self._settled = 0, 0  # units that were done, and the share of the total that was reported for them
        self._reported = self._done = self._end = 0
        self._weight = 0

    def stage(self, units: int, weight: int = 1) -> None:
        """Begin units of work that are counted while the plan computes them, with so much weight per unit of the plan.

        They are done when the next ``stage`` or ``advance`` ends this one, whatever was counted.
        """
        self.check_cancelled()
        self._done, self._end, self._weight = self._end, self._end + units, weight

    def settle(self) -> None:
        """End the current stage, and redistribute units that the plan did not use over the remaining stages."""
        missing = self._end - self._done
        self._settled = self._done, self._share()
        self._work, self._end = self._work - missing, self._done

    def advance(self, units: int = 1, preview: Tensor | None = None) -> None:
        """End the current stage, if there is one, and count finished units; a preview is ``(3, H, W)`` in [0, 1]."""
        self._done = self._end = self._end + units
        self._report(preview)

    def _observe(self, units: int) -> None:
        if not units:
            self.check_cancelled()
        self._done = min(self._done + self._weight * units, self._end)
        self._report(None)

    def _report(self, preview: Tensor | None) -> None:
        share = self._share()
        if share > self._reported:
            self._reported = share
            if self.options.progress is not None:
                self.options.progress(share, self._total, preview)

    def _share(self) -> int:
        """Units of the total to report as done."""
        done, share = self._settled
        return share + (self._total - share) * (self._done - done) // max(1, self._work - done)

    def _precision(self) -> Precision:
        precision = self.options.precision
        if precision == "float16" and self.device.type == "cpu":
            self.notify("float16 is many times slower than float32 on a CPU: going on in float32.")
        return actual_precision(precision, self.device)

    def _parameter(self) -> Tensor:
        parameter = None if self._flow is None else next(self._flow.parameters(), None)
        return torch.empty(0) if parameter is None else parameter


def images_at_once(height: int, width: int) -> int:
    """Choose how many images of a size go through a flow together unless the caller says."""
    return max(1, min(MAX_AT_ONCE, PIXELS_AT_ONCE // max(1, height * width)))


def require_tensor(image: object) -> None:
    """Refuse what is no tensor as an ImageError, and say how to make one of it."""
    if isinstance(image, Tensor):
        return
    kind = f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"
    how = {
        "numpy": "torch.from_numpy(array).permute(2, 0, 1)[None], of an array (H, W, C) of uint8, or floats in [0, 1]",
        "PIL": "torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None], of an RGB image",
    }.get(kind.split(".")[0], "flowcore.images.files.read(content, name).pixels, of the bytes of an image file")
    raise ImageError(f"Expected images as a tensor (B, C, H, W); got {kind}. Make one: {how}.")


def require_pixels(image: Tensor) -> None:
    """Refuse a batch without images, or images without pixels, as an ImageError."""
    if 0 in image.shape:
        raise ImageError(
            f"The batch is empty or an image has no pixels, {tuple(image.shape)}. Pass at least one image."
        )


def validate_image(image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Check an image that is passed to a task: ``(B, 3, H, W)`` float32 in [0, 1], and alpha ``(B, 1, H, W)`` if any.

    It has 1 (gray), 3 or 4 channels (with alpha), floats of any precision in [0, 1], uint8 in [0, 255] or uint16 in [0,
    65535]; values outside are clamped. ImageError if it is of another kind, empty, or holds NaN or infinity.
    """
    require_tensor(image)
    if image.ndim != 4 or image.shape[1] not in (1, 3, 4):
        raise ImageError(f"Expected images of shape (B, C, H, W), C = 1, 3 or 4; got {tuple(image.shape)}.")
    image = to_float(image, torch.float32).clamp(0, 1)
    return image[:, :3].expand(-1, 3, -1, -1), image[:, 3:] if image.shape[1] == 4 else None


def with_alpha(pictures: Tensor, alpha: Tensor | None) -> Tensor:
    """Append the alpha of B images, if they have any, to pictures ``(B * N, 3, H, W)``, by a bicubic resize."""
    if alpha is None:
        return pictures
    alpha = resize(alpha, *pictures.shape[-2:]).clamp(0, 1)
    return torch.cat([pictures, alpha.repeat_interleave(len(pictures) // len(alpha), 0)], dim=1)


def to_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert images of at least one pixel, uint8, uint16 or finite float in [0, 1], to a float type; no clamping."""
    require_pixels(image)
    if image.dtype not in LARGEST and not image.is_floating_point():
        raise ImageError(f"Expected images of uint8 or uint16, or float in [0, 1]; got {image.dtype}. Convert them.")
    image = image.to(dtype) / LARGEST[image.dtype] if image.dtype in LARGEST else image.to(dtype)
    wrong = int((~image.isfinite()).sum())
    if wrong:
        raise ImageError(
            f"The image holds {wrong} values that are not finite numbers (NaN or infinity). Fix the node or file "
            "that it comes from."
        )
    refuse_integer_range(image)
    return image


def refuse_integer_range(image: Tensor) -> None:
    """Refuse floats in [0, 255] or [0, 65535], which would be white: brighter on average than white, none negative."""
    low, high = (float(value) for value in image.aminmax())
    if low >= 0 and 4 < high <= 65536 and float(image.mean()) > 1:
        largest = 255 if high <= 256 else 65535  # bfloat16 rounds up
        raise ImageError(
            f"The image's floats go from {low:g} to {high:g}; expected [0, 1], and these look like [0, {largest}]. "
            f"Divide them by {largest}, or convert them to uint{8 if largest == 255 else 16}."
        )
