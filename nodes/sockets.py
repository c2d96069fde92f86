"""What travels along the wires: our own types, and the host's IMAGE at the border. And what several widgets mean."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import flowcore
from ..flowcore import ConditionError, FlowError, Hints, ImageError
from ..flowcore.checkpoints.latents_file import model_sha256
from ..flowcore.device import free_memory
from .host import gradient_slider, io, make, to_host_image

# A flow in the host's care: the host's ModelPatcher, whose `.model` is a flowcore.Flow.
FlowModel = io.Custom("FLOW_MODEL")
# A `Latents`.
FlowLatents = io.Custom("FLOW_LATENTS")
# Colours that are wanted, and where: a `flowcore.Hints`, on the CPU.
FlowHints = io.Custom("FLOW_HINTS")


@dataclass(frozen=True, eq=False, kw_only=True)
class Latents:
    """Latents on a wire, and what it takes to decode them. Nodes make new ones; none writes into these.

    Attributes:
        levels: Finest first, each (B, C, H, W), float32, on the CPU.
        model_sha256: Fingerprint of the model that they belong to.
        model_name: What sentences call that model.
        architecture: Its recipe, e.g. "glow".
        labels: What each item shows, whole numbers (B,); None if the model knows no labels, or they were lost.
        source: For upscaling models the small image (1 or B, 3, h, w), on the CPU; None likewise.
    """

    levels: list[Tensor]
    model_sha256: str
    model_name: str
    architecture: str
    labels: Tensor | None = None
    source: Tensor | None = None

    @property
    def items(self) -> int:
        """Number of items."""
        return self.levels[0].shape[0]


# ---------------------------------------------------------------------------------------------------------------------
# models, and latents of models

_names: WeakKeyDictionary[flowcore.Flow, str] = WeakKeyDictionary()
_fingerprints: WeakKeyDictionary[flowcore.Flow, str] = WeakKeyDictionary()


def flow_of(model: Any) -> flowcore.Flow:
    """Take a FLOW_MODEL.

    Args:
        model: What came along the wire.

    Returns:
        The flow, wherever the host keeps it now.

    Raises:
        FlowError: It is something else.
    """
    flow = getattr(model, "model", None)
    if not isinstance(flow, flowcore.Flow):
        raise FlowError(f"Expected a model of Load Flow Model; got {type(model).__name__}. Connect that node.")
    return flow


def name_model(flow: flowcore.Flow, name: str) -> None:
    """Remember what sentences shall call a model.

    Args:
        flow: The model.
        name: Its name in the loader.
    """
    _names[flow] = name


def model_name(flow: flowcore.Flow) -> str:
    """Say what sentences call a model: its name in the loader, or its architecture."""
    return _names.get(flow, flow.architecture)


def fingerprint(flow: flowcore.Flow) -> str:
    """Fingerprint a model, once; it takes a second per few hundred megabytes."""
    if flow not in _fingerprints:
        _fingerprints[flow] = model_sha256(flow)
    return _fingerprints[flow]


def latents_of(
    flow: flowcore.Flow, levels: list[Tensor], *, labels: Tensor | None = None, source: Tensor | None = None
) -> Latents:
    """Put latents of a model on a wire.

    Args:
        flow: The model.
        levels: Finest first.
        labels: See `Latents`.
        source: See `Latents`.

    Returns:
        The latents, on the CPU.
    """
    return Latents(
        levels=[z.to("cpu", torch.float32) for z in levels],
        model_sha256=fingerprint(flow),
        model_name=model_name(flow),
        architecture=flow.architecture,
        labels=labels,
        source=None if source is None else source.cpu(),
    )


def checked(latents: Any) -> Latents:
    """Take FLOW_LATENTS.

    Args:
        latents: What came along the wire.

    Returns:
        The latents.

    Raises:
        FlowError: It is something else.
    """
    if not isinstance(latents, Latents):
        raise FlowError(
            f"Expected latents of a flow, as Flow Sample and Flow Encode make them; got {type(latents).__name__}. "
            "Connect one of those."
        )
    return latents


def belonging(latents: Any, flow: flowcore.Flow) -> Latents:
    """Take latents that are to be used with a model, and refuse those of another one.

    Args:
        latents: What came along the wire.
        flow: The model.

    Returns:
        The latents.

    Raises:
        FlowError: They belong to another model; both are named.
    """
    latents = checked(latents)
    if latents.model_sha256 != fingerprint(flow):
        theirs, given = _told_apart((latents.model_name, latents.model_sha256), (model_name(flow), fingerprint(flow)))
        raise FlowError(
            f"These latents were made with {theirs}, the model given is {given}. Load the model that they were made "
            "with."
        )
    return latents


def together(a: Any, b: Any) -> tuple[Latents, Latents]:
    """Take two latents that are to be combined, and refuse those of two models.

    Args:
        a: What came along one wire.
        b: What came along the other.

    Returns:
        Both.

    Raises:
        FlowError: They belong to different models; both are named.
    """
    a, b = checked(a), checked(b)
    if a.model_sha256 != b.model_sha256:
        one, other = _told_apart((a.model_name, a.model_sha256), (b.model_name, b.model_sha256))
        raise FlowError(
            f"Latents of different models do not go together: these were made with {one}, those with {other}. Make "
            "both with the same model."
        )
    return a, b


def hints_of(hints: Any) -> Hints | None:
    """Take FLOW_HINTS, where they may be left out.

    Args:
        hints: What came along the wire, or None.

    Returns:
        The hints.

    Raises:
        FlowError: It is something else.
    """
    if hints is not None and not isinstance(hints, Hints):
        raise FlowError(f"Expected hints of Flow Color Hints; got {type(hints).__name__}. Connect that node.")
    return hints


def _told_apart(one: tuple[str, str], other: tuple[str, str]) -> list[str]:
    """Call two models by their names; and by their fingerprints, where the names are the same."""
    return [name if one[0] != other[0] else f"{name} (sha {sha[:12]})" for name, sha in (one, other)]


# ---------------------------------------------------------------------------------------------------------------------
# images


def from_image(image: Tensor) -> Tensor:
    """Take an IMAGE of the host.

    Args:
        image: (B, H, W, C) in any dtype, on any device.

    Returns:
        (B, C, H, W) float32, on the same device.

    Raises:
        ImageError: It does not have four dimensions.
    """
    if image.ndim != 4:
        raise ImageError(
            f"expected an IMAGE of shape (batch, height, width, channels); got {tuple(image.shape)}. "
            "For a video, pass its frames as a batch."
        )
    return image.to(torch.float32).permute(0, 3, 1, 2).contiguous()


def to_image(pixels: Tensor) -> Tensor:
    """Make an IMAGE of the host.

    Args:
        pixels: (B, C, H, W) in [0, 1]; grey ones become colour images, which is what other nodes expect.

    Returns:
        (B, H, W, C), on the device and in the dtype in which the host passes images on.
    """
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1)
    return to_host_image(pixels.permute(0, 2, 3, 1)).contiguous()


def from_mask(mask: Tensor, items: int) -> Tensor:
    """Take a MASK of the host.

    Args:
        mask: (B, H, W) or (H, W), of any size.
        items: How many there may be besides 1.

    Returns:
        (1 or items, 1, H, W) float32 in [0, 1], on the CPU.

    Raises:
        ImageError: It has another shape, is empty, or holds values that are not numbers.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or mask.shape[0] not in (1, items) or 0 in mask.shape:
        raise ImageError(
            f"expected a MASK of shape (1 or {items}, height, width); got {tuple(mask.shape)}. Connect one mask, or as "
            "many as there are images."
        )
    if not bool(mask.isfinite().all()):
        raise ImageError("The mask holds values that are not finite numbers. Mend the node or file it comes from.")
    return mask[:, None].to("cpu", torch.float32).clamp(0, 1)


COPIES = 3  # of a result while a node ends: what was made, its latents, and what is handed over


def room_for(count: int, values: int, what: str, advice: str) -> None:
    """Refuse what the main memory cannot hold, before any of it is made.

    Args:
        count: Number of pictures, or of other things.
        values: Numbers in each.
        what: What sentences call them, with the verb: "pictures need".
        advice: What to do about it.

    Raises:
        FlowError: Less memory is free.
    """
    wanted, free = COPIES * 4 * count * values, free_memory("cpu")
    if free is not None and wanted > free:
        raise FlowError(f"{count} {what} {wanted / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. {advice}")


# ---------------------------------------------------------------------------------------------------------------------
# widgets that several nodes have, and what is typed into them

COLD, MILD, HOT = [36, 92, 201], [236, 232, 220], [214, 62, 38]
MOST_ITEMS = 4096  # labels in one text


def temperature_input(default: float, tooltip: str, *, name: str = "temperature", optional: bool = False) -> Any:
    """Describe the slider `temperature`, or another one of its kind, coloured from cold to hot."""
    return make(
        io.Float.Input,
        name,
        default=default,
        min=0.0,
        max=1.5,
        step=0.01,
        optional=optional,
        display_mode=gradient_slider(),
        gradient_stops=[
            {"offset": 0.0, "color": COLD},
            {"offset": 0.55, "color": MILD},
            {"offset": 1.0, "color": HOT},
        ],
        tooltip=tooltip,
    )


def temperatures_input() -> Any:
    """Describe the text `temperatures`."""
    return make(
        io.String.Input,
        "temperatures",
        default="",
        optional=True,
        tooltip="A temperature per level, finest first, such as `0.6, 0.8, 1`: they replace temperature. Fine levels "
        "hold texture, deep ones the composition. Empty: the same for all.",
    )


def seed_input(default: int, tooltip: str) -> Any:
    """Describe the number `seed`, which the host may change after every run."""
    return make(
        io.Int.Input,
        "seed",
        default=default,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=tooltip,
    )


def precision_input(change: str) -> Any:
    """Describe the choice `precision`.

    Args:
        change: What a low precision does to the result of the shipped model, as measured; without a full stop.

    Returns:
        The input.
    """
    return make(
        io.Combo.Input,
        "precision",
        options=["float32", "bfloat16", "float16", "auto", "tf32"],
        default="float32",
        optional=True,
        tooltip="bfloat16 and float16 compute the networks inside the flow in low precision: faster on hardware made "
        f"for it, and the result changes slightly ({change}). auto takes what this machine gains from; tf32 "
        "is for NVIDIA GPUs. The flow itself always stays in float32.",
    )


def numbers(text: str, name: str) -> list[float] | None:
    """Read numbers that are given per level.

    Args:
        text: Such as "0.6, 0.8, 1"; commas, semicolons and spaces separate.
        name: Of the widget, for sentences.

    Returns:
        The numbers, or None if there are none.

    Raises:
        FlowError: Something else is written there.
    """
    words = re.split(r"[,;\s]+", text.strip(" ,;\n\t"))
    if words == [""]:
        return None
    try:
        return [float(word) for word in words]
    except ValueError:
        raise FlowError(
            f"{name} takes one number per level, finest first, such as `0.6, 0.8, 1`; got `{text[:60]}`. Separate the "
            "numbers by commas."
        ) from None


def label_numbers(text: str, classes: int) -> list[int] | None:
    """Read labels.

    Args:
        text: Such as "7", "3, 5" or "0-9"; "9-0" counts down.
        classes: How many labels the model knows.

    Returns:
        The labels in order, or None if there are none.

    Raises:
        FlowError: Something else is written there.
        ConditionError: The model knows no such label.
    """
    result: list[int] = []
    for word in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text).strip(" ,;\n\t")):
        if not word:
            return None
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if found is None:
            raise FlowError(
                f"labels are whole numbers, such as `7`, `3, 5` or `0-9`; got `{text[:60]}`. Separate them by commas."
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if max(first, last) >= classes:
            raise ConditionError(f"This model knows the labels 0 to {classes - 1}; got {max(first, last)}.")
        result += range(first, last + 1) if first <= last else range(first, last - 1, -1)
        if len(result) > MOST_ITEMS:
            raise FlowError(f"labels names more than {MOST_ITEMS} labels. Name fewer.")
    return result


def finite_or_none(value: float) -> float | None:
    """Make a number fit for JSON, which has no NaN."""
    return value if math.isfinite(value) else None
