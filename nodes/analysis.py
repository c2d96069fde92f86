"""Measure and choose: how likely images are to a model, where samples differ, which are best."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..flowcore import ShapeError
from ..flowcore.images.contact_sheet import heat_map
from ..flowcore.tasks import score as scoring
from ..flowcore.tasks.colorize import memory_required as colorizer_memory
from ..flowcore.tasks.ranking import By, diversity_map, ranked
from ..flowcore.tasks.sample import memory_required
from ..flowcore.tasks.subject import Fit, prepare_subject
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled, to_host_image
from .host.ui import Progress, finite, gallery, of_image
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode
from .sockets import FlowModel, flow_model, from_image, to_image

BRIGHT = 16  # deviation in 1/255 at full brightness and gain 1; 1 of 1000 pixels exceeds it at temperature 0.8
PERCENTILES = (2, 98)  # of a map of bits, at 0 and 1 of its mask


class FlowcoreScore(FlowNode):
    """How likely images are to a model, and which pixels surprise it."""

    ALIASES = ("likelihood", "bits per dimension", "bpd", "anomaly", "heat map", "rank images", "score")
    OUTPUTS = (
        io.Float.Output("bits_per_dim", is_output_list=True),
        io.Image.Output("heat_map", is_output_list=True),
        io.Mask.Output("mask", is_output_list=True),
        io.Image.Output("ranked", is_output_list=True),
        io.String.Output("report"),
    )
    IS_INPUT_LIST = True

    @classmethod
    def run(
        cls,
        image: Annotated[list[Tensor], io.Image.Input],
        model: Annotated[list[FlowModel], flow_model("sample", "upscale", "rescale")],
        dequantization: Annotated[
            list[scoring.Dequantization],
            widgets.choice("uniform", "gaussian", "variational", optional=True, advanced=True),
        ],
        samples: Annotated[list[int], widgets.integer(1, 1, 1024, optional=True)],
        seed: Annotated[list[int], widgets.seed(control=False, optional=True, advanced=True)],
        fit: Annotated[list[Fit], widgets.fit],
        label: Annotated[list[int], partial(widgets.label, advanced=True)],
        source: Annotated[list[Tensor] | None, partial(io.Image.Input, optional=True)],
        probes: Annotated[list[int], widgets.integer(4, 0, 1024, optional=True, advanced=True)],
        terms: Annotated[list[int], widgets.integer(20, 1, 1000, optional=True, advanced=True)],
    ) -> Any:
        notes, flow, draws = cls.notes(), model[0].flow, samples[0]
        subjects = [
            prepare_subject(flow, from_image(batch).cpu(), fit=fit[0], label=label[0], source=small, notify=notes)
            for batch, small in zip(image, _sources(image, source), strict=True)
        ]
        sizes = [
            (batch.shape[1:3], s.pixels.shape[2:]) for batch, s in zip(image, subjects, strict=True) for _ in batch
        ]
        resized = sum(given != taken for given, taken in sizes)
        if resized:
            notes(f"{resized} of {len(sizes)} images were resized or cut to fit, which changes their score.")
        enlarged = [taken[0] > given[0] or taken[1] > given[1] for given, taken in sizes]
        if any(enlarged):
            notes(f"{sum(enlarged)} of {len(sizes)} images were enlarged, and stand last without a rank.")
        progress, total, done = Progress(), len(sizes), 0
        scores: list[scoring.Score] = []
        for subject in subjects:
            count, _, *size = subject.pixels.shape
            # The share of every pixel is computed beside the pass itself: twice the memory of one.
            model[0].load(2 * memory_required(flow, count * draws, *size))
            scores.append(
                scoring.score(
                    flow,
                    subject.pixels,
                    subject.condition(flow, cancelled=stop_if_cancelled, notify=notes),
                    dequantization=dequantization[0],
                    samples=draws,
                    seed=seed[0],
                    probes=probes[0],
                    terms=terms[0],
                    **notes.follow(progress.part(done / total, count / total)),
                )
            )
            done += count
        bits, corrected, spread, errors = (
            [float(value) for s in scores for value in getattr(s, name)]
            for name in ("bits_per_dim", "complexity_corrected", "spread", "standard_error")
        )
        order = sorted(range(total), key=lambda i: scoring.ranking_key(bits[i], corrected[i], enlarged[i]))
        messages = [*dict.fromkeys([*notes.lines, *(note for s in scores for note in s.notes)])]
        report = "\n".join([*_table(order, bits, corrected, spread, enlarged), "", *messages])
        maps = _batches([part[None] for s, own in zip(scores, subjects, strict=True) for part in _maps(s, own.pixels)])
        pictures = [picture[None] for s in subjects for picture in s.pixels]
        return io.NodeOutput(
            bits,
            [to_image(heat_map(batch)) for batch in maps],
            [to_host_image(batch) for batch in maps],
            [to_image(batch) for batch in _batches([pictures[i] for i in order])],
            report,
            ui={
                "text": [f"{_summary(order, corrected, enlarged)}\n\n{report}"],
                "bits_per_dim": finite(bits),
                "corrected": finite(corrected),
                "spread": finite(spread),
                "standard_error": finite(errors),
                "per_level": [finite(row) for s in scores for row in s.per_level],
                "order": order,
                "notes": messages,
            },
        )


def _maps(score: scoring.Score, pixels: Tensor) -> list[Tensor]:
    """Bits of every image, (H, W), scaled to [0, 1]; zeros where the model has no map, as the score's notes say."""
    return [*torch.zeros_like(pixels[:, 0])] if score.map is None else [_normalized(bits) for bits in score.map]


def _normalized(bits: Tensor) -> Tensor:
    """Scale a map of bits (H, W) to [0, 1] between two percentiles; 0 if it is constant or not finite."""
    low, high = np.percentile(bits.numpy(), PERCENTILES)
    if not high > low or not math.isfinite(high - low):
        return torch.zeros(bits.shape)
    return ((bits - float(low)) / float(high - low)).clamp(0, 1).float()


def _sources(images: list[Tensor], sources: list[Tensor] | None) -> list[Tensor | None]:
    """Return a source for every batch, from none, one for all, or one per batch."""
    if sources is None:
        return [None] * len(images)
    if len(sources) not in (1, len(images)):
        raise ShapeError(
            f"source must be one image, or as many as there are images in the list; got {len(sources)} sources for "
            f"{len(images)} images."
        )
    small = [from_image(source).cpu() for source in sources]
    return [*(small if len(small) == len(images) else small * len(images))]


def _batches(parts: list[Tensor]) -> list[Tensor]:
    """Join all parts into one batch, unless their sizes differ."""
    return [torch.cat(parts)] if len({part.shape for part in parts}) == 1 else parts


def _summary(order: list[int], corrected: list[float], enlarged: list[bool]) -> str:
    """Say in a sentence what the table says in numbers; the canvas folds the table away."""
    ranked = [i for i in order if not enlarged[i]] or order
    if len(ranked) > 1:
        return f"Most usual for this model: image {ranked[0]}. Most unusual: image {ranked[-1]}."
    if corrected[ranked[0]] < 0:
        return (
            "As a whole usual for this model, which expects the picture better than a lossless compressor does; the "
            "heat map shows parts that are not."
        )
    return "Unusual for this model, which expects the picture no better than a lossless compressor does."


def _table(
    order: list[int], bits: list[float], corrected: list[float], spread: list[float], enlarged: list[bool]
) -> list[str]:
    lines = ["rank  image  bits/dim  corrected  spread"]
    for rank, i in enumerate(order, 1):
        varies = f"{spread[i]:.4f}" if math.isfinite(spread[i]) else "-"
        place = "-" if enlarged[i] else str(rank)
        lines.append(f"{place:>4}  {i:5}  {bits[i]:8.4f}  {corrected[i]:9.4f}  {varies:>6}")
    return lines


class FlowcoreDiversityMap(FlowNode):
    """Where samples differ: what the model had to guess."""

    ALIASES = ("diversity", "uncertainty", "heat map", "variance", "standard deviation", "spread")
    OUTPUTS = (io.Image.Output("map"), io.Mask.Output("mask"), io.Float.Output("mean"))

    @classmethod
    def run(
        cls,
        images: Annotated[Tensor, io.Image.Input],
        samples: Annotated[int, widgets.integer(0, 0, 4096, optional=True)],
        gain: Annotated[float, widgets.number(1.0, 0.0, 100.0, 0.1, optional=True, advanced=True)],
    ) -> Any:
        deviation = diversity_map(from_image(images), samples)  # (B, 1, H, W)
        maps = (deviation[:, 0] * (gain * 255 / BRIGHT)).clamp(0, 1)
        means = [float(value) * 255 for value in deviation.mean((1, 2, 3))]
        mean = sum(means) / len(means)
        text = f"samples differ by {mean:.2f}/255 on average"
        return io.NodeOutput(
            to_image(heat_map(maps)), to_host_image(maps), mean, ui={"text": [text], "mean": [mean], "each": means}
        )


class FlowcoreBestOf(PickingNode):
    """The best samples first, with their scores."""

    PICKED = (0, 1, 2)
    ALIASES = ("best of n", "rank", "sort images", "pick best", "cherry pick", "likelihood", "consensus", "select")
    OUTPUTS = (
        io.Image.Output("best"),
        io.Float.Output("scores", is_output_list=True),
        io.Int.Output("order", is_output_list=True),
    )

    @classmethod
    def run(
        cls,
        images: Annotated[Tensor, io.Image.Input],
        source: Annotated[Tensor, io.Image.Input],
        model: Annotated[FlowModel | None, flow_model("upscale", "colorize", optional=True)],
        by: Annotated[By, widgets.choice("consistency", "likelihood", "consensus")],
        keep: Annotated[int, widgets.integer(1, 1, 64)],
        pick: Annotated[int, widgets.pick],
    ) -> Any:
        notes, pixels, small, flow = cls.notes(), from_image(images), from_image(source), None
        if by == "likelihood" and model is not None:
            samples, size = max(1, len(pixels) // max(1, len(small))), pixels.shape[-2:]
            if "colorize" in model.flow.capabilities.tasks:
                memory = colorizer_memory(model.flow, size[0], size[1], samples)
            else:
                memory = memory_required(model.flow, samples, *size)
            flow = model.load(2 * memory)  # as in `FlowcoreScore`
        scores, order = ranked(pixels, small, by, flow, **notes.follow())
        best = order[:, :keep] + torch.arange(len(order))[:, None] * order.shape[1]
        numbers = best.flatten().tolist()
        values = [float(value) for value in scores.flatten()[numbers]]
        unit = {"consistency": "dB", "likelihood": "bits per dimension", "consensus": "from the others"}[by]
        seeds, each = PROVENANCE_LOG.seeds(images), order.shape[1]
        known = [
            {"image": k} if seeds[k] is None else {"seed": seeds[k], **of_image(k, each, len(pixels))} for k in numbers
        ]
        names = [", ".join(f"{fact} {number}" for fact, number in sorted(found.items())) for found in known]
        lines = [f"{name}: {value:.4g} {unit}" for name, value in zip(names, values, strict=True)]
        facts = [{**found, "score": f"{value:.4g}"} for found, value in zip(known, values, strict=True)]
        shown = gallery(pixels[numbers], facts, notes, cls.hidden.extra_pnginfo, small)
        return io.NodeOutput(
            to_image(pixels[numbers]),
            values,
            numbers,
            ui=shown | {"text": [*lines, *notes.lines], "scores": finite(scores.flatten()), "order": numbers},
        )
