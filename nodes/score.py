"""Score: how many bits a model needs for images, and where they go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..flowcore import ShapeError
from ..flowcore.tasks import score as scoring
from ..flowcore.tasks.sample import memory_required
from ..flowcore.tasks.subject import Fit, prepare_subject
from .generate import fit_input, label_input, source_input
from .host import Notes, Progress, io, load_to_device, make, stop_if_cancelled, to_host_image
from .sockets import FlowModel, finite_or_none, flow_of, from_image, to_image

# Inferno of matplotlib at ten places (van der Walt and Smith, CC0): equal steps look equal, and it survives in grey.
COLOURS = (
    (0, 0, 4),
    (27, 12, 65),
    (74, 12, 107),
    (120, 28, 109),
    (165, 44, 96),
    (207, 68, 70),
    (237, 105, 37),
    (251, 155, 6),
    (247, 209, 61),
    (252, 255, 164),
)
PERCENTILES = (2, 98)


class FlowcoreScore(io.ComfyNode):
    """How likely a model finds images, and which pixels surprise it."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreScore",
            display_name="Flow Score",
            category="flowcore/analysis",
            description="Counts the bits per dimension that a flow needs for an image, and shows where they go. Few "
            "bits mean likely to this model, not good and not real: smooth images always score well. Compare images "
            "of one kind, under one model.",
            search_aliases=["likelihood", "bits per dimension", "bpd", "anomaly", "heat map", "rank images", "score"],
            is_input_list=True,
            inputs=[
                make(
                    io.Image.Input,
                    "image",
                    tooltip="A batch, or a list of images of any sizes: all of them are ranked together.",
                ),
                make(FlowModel.Input, "model", tooltip="A flow from Load Flow Model."),
                make(
                    io.Combo.Input,
                    "dequantization",
                    options=["uniform", "gaussian", "variational"],
                    default="uniform",
                    optional=True,
                    tooltip="The noise that turns 8-bit values into real numbers. Compare only numbers of the same "
                    "kind. variational needs a model that was trained with it.",
                ),
                make(
                    io.Int.Input,
                    "samples",
                    default=1,
                    min=1,
                    max=1024,
                    optional=True,
                    tooltip="Draws of that noise. More give a tighter number and tell how far it varies, and take as "
                    "many times as long.",
                ),
                make(
                    io.Int.Input,
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Stated, because the frontend gives the control to whatever is called seed.
                    control_after_generate=False,
                    optional=True,
                    tooltip="Of that noise: image i draws with seed + i. The numbers hardly depend on it.",
                ),
                fit_input(),
                label_input(),
                source_input(),
            ],
            outputs=[
                make(
                    io.Float.Output,
                    "bits_per_dim",
                    display_name="bits_per_dim",
                    is_output_list=True,
                    tooltip="One number per image, in the order of the input. Lower is likelier to this model.",
                ),
                make(
                    io.Image.Output,
                    "heat_map",
                    display_name="heat_map",
                    is_output_list=True,
                    tooltip="Where the bits go: dark is expected, bright is surprising; each image on its own scale. "
                    "One batch, or a list if the images have different sizes.",
                ),
                make(
                    io.Mask.Output,
                    "mask",
                    display_name="mask",
                    is_output_list=True,
                    tooltip="The same as a mask: 0 is expected, 1 is surprising.",
                ),
                make(
                    io.Image.Output,
                    "ranked",
                    display_name="ranked",
                    is_output_list=True,
                    tooltip="The scored images, least surprising beyond their detail first: the order of the report.",
                ),
                make(
                    io.String.Output,
                    "report",
                    display_name="report",
                    tooltip="A table: rank, image, bits per dimension, corrected for complexity, spread; and notes.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        image: list[Tensor],
        model: list[Any],
        dequantization: list[scoring.Dequantization] | None = None,
        samples: list[int] | None = None,
        seed: list[int] | None = None,
        fit: list[Fit] | None = None,
        label: list[int] | None = None,
        source: list[Tensor] | None = None,
    ) -> Any:
        """Score batch by batch, with the seeds that the images have in the whole list, and rank all of them."""
        notes = Notes("Flow Score", cls.hidden.unique_id)
        flow = flow_of(model[0])
        draws, first = (samples or [1])[0], (seed or [0])[0]
        sources = _sources(image, source)
        subjects = [
            prepare_subject(
                flow,
                from_image(batch).cpu(),
                fit=(fit or ["resize"])[0],
                label=(label or [-1])[0],
                source=None if small is None else from_image(small).cpu(),
                notify=notes,
            )
            for batch, small in zip(image, sources, strict=True)
        ]
        resized = sum(
            len(batch) for batch, s in zip(image, subjects, strict=True) if batch.shape[1:3] != s.pixels.shape[2:]
        )
        if resized:
            notes(f"{resized} of {sum(map(len, image))} images were resized or cut to fit, which changes their score.")
        progress, total, done = Progress(), sum(len(s.pixels) for s in subjects), 0
        scores: list[scoring.Score] = []
        for subject in subjects:
            count, _, height, width = subject.pixels.shape
            # Every share is computed beside the pass itself: twice the memory of one.
            load_to_device(model[0], 2 * memory_required(flow, count * draws, height, width))
            scores.append(
                scoring.score(
                    flow,
                    subject.pixels,
                    subject.condition(flow),
                    dequantization=(dequantization or ["uniform"])[0],
                    samples=draws,
                    seed=(first + done) % 2**64,
                    progress=progress.part(done / total, count / total),
                    cancelled=stop_if_cancelled,
                    notify=notes,
                )
            )
            done += count
        bits = [float(value) for s in scores for value in s.bits_per_dim]
        corrected = [
            float(value) for s in scores if s.complexity_corrected is not None for value in s.complexity_corrected
        ]
        spread = [float(value) for s in scores for value in s.spread]
        order = sorted(range(total), key=lambda i: (not math.isfinite(corrected[i]), corrected[i]))
        said = dict.fromkeys([*notes.lines, *(note for s in scores for note in s.notes)])
        report = "\n".join([*_table(order, bits, corrected, spread), "", *said])
        maps = [scaled(part) for s in scores for part in s.map]
        pictures = [picture[None] for s in subjects for picture in s.pixels]
        return io.NodeOutput(
            bits,
            [to_image(coloured(m)) for m in _batched([m[None] for m in maps])],
            [to_host_image(m) for m in _batched([m[None] for m in maps])],
            [to_image(p) for p in _batched([pictures[i] for i in order])],
            report,
            ui={
                "text": [report],
                "bits_per_dim": [finite_or_none(value) for value in bits],
                "corrected": [finite_or_none(value) for value in corrected],
                "spread": [finite_or_none(value) for value in spread],
                "per_level": [[finite_or_none(float(v)) for v in row] for s in scores for row in s.per_level],
                "order": order,
                "notes": list(said),
            },
        )


def scaled(surprise: Tensor) -> Tensor:
    """Bring a map of bits into [0, 1], between its 2nd and 98th percentile.

    Args:
        surprise: (H, W).

    Returns:
        (H, W) float32; 0 everywhere if all pixels are alike, or not all are finite.
    """
    low, high = np.percentile(surprise.numpy(), PERCENTILES)
    if not high > low or not math.isfinite(high - low):
        return torch.zeros(surprise.shape)
    return ((surprise - float(low)) / float(high - low)).clamp(0, 1).float()


def coloured(maps: Tensor) -> Tensor:
    """Paint maps in colours of even steps, dark for 0 and bright for 1.

    Args:
        maps: (B, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    table = torch.tensor(COLOURS) / 255  # (10, 3)
    place = maps * (len(COLOURS) - 1)
    below = place.floor().clamp(max=len(COLOURS) - 2).long()
    share = (place - below)[..., None]
    return ((1 - share) * table[below] + share * table[below + 1]).permute(0, 3, 1, 2)


def _sources(images: list[Tensor], sources: list[Tensor] | None) -> list[Tensor | None]:
    """A source for every batch: one for all, or one per batch."""
    if sources is None:
        return [None] * len(images)
    if len(sources) == 1:
        return [*(sources * len(images))]
    if len(sources) != len(images):
        raise ShapeError(
            f"source must be one image, or as many as there are images in the list; got {len(sources)} sources for "
            f"{len(images)} images."
        )
    return [*sources]


def _batched(parts: list[Tensor]) -> list[Tensor]:
    """Join neighbours of one shape: a single batch unless the sizes differ."""
    if len({part.shape for part in parts}) == 1:
        return [torch.cat(parts)]
    return parts


def _table(order: list[int], bits: list[float], corrected: list[float], spread: list[float]) -> list[str]:
    lines = ["rank  image  bits/dim  corrected  spread"]
    for rank, i in enumerate(order, 1):
        varies = f"{spread[i]:.4f}" if math.isfinite(spread[i]) else "-"
        lines.append(f"{rank:4}  {i:5}  {bits[i]:8.4f}  {corrected[i]:9.4f}  {varies:>6}")
    return lines
