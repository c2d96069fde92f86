"""Measure and choose: how likely images are to a model, where samples differ, which are best."""

import math
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..flowcore import ShapeError
from ..flowcore.images.contact_sheet import heat_map
from ..flowcore.tasks import score as scoring
from ..flowcore.tasks.colorize import memory_required as colorizer_memory
from ..flowcore.tasks.model_input import prepare_input
from ..flowcore.tasks.ranking import By, diversity_map, ranked
from ..flowcore.tasks.sample import memory_required
from . import widgets
from .host.compat import io
from .host.memory import stop_if_cancelled, to_host_image
from .host.ui import Progress, finite, gallery, of_image
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode, in_order, share
from .sockets import EncodingModel, HostModel, Image, ModelByPicture, PhotoModel

BRIGHT = 16  # deviation in 1/255 at full brightness and gain 1; 1 of 1000 pixels exceeds it at temperature 0.8
PERCENTILES = (2, 98)  # of a map of bits, which become 0 and 1 of its mask


class FlowcoreScore(FlowNode):
    """How likely images are to a model, and which pixels surprise it."""

    ALIASES = "likelihood, bits per dimension, bpd, anomaly, heat map, rank images, score"
    OUTPUTS = (
        io.Float.Output("bits_per_dim", is_output_list=True),
        io.Image.Output("heat_map", is_output_list=True),
        io.Mask.Output("mask", is_output_list=True),
        io.Image.Output("ranked", is_output_list=True),
        io.String.Output("report"),
    )

    def run(
        self,
        image: list[Image],
        model: EncodingModel,
        dequantization: Annotated[
            scoring.Dequantization, widgets.choice("uniform", "gaussian", "variational", optional=True, advanced=True)
        ],
        samples: Annotated[int, widgets.integer(1, 1, 1024, optional=True)],
        seed: Annotated[int, widgets.seed(control=False, optional=True, advanced=True)],
        fit: widgets.Fit,
        label: Annotated[int, widgets.integer(-1, -1, 9999, optional=True, advanced=True)],
        source: list[Image] | None,
        probes: Annotated[int, widgets.integer(4, 0, 1024, optional=True, advanced=True)],
        terms: Annotated[int, widgets.integer(20, 1, 1000, optional=True, advanced=True)],
    ) -> Any:
        notes, flow = self.notes, model.flow
        sources = [small.cpu() for small in source] if source else [None]
        if len(sources) not in (1, len(image)):
            raise ShapeError(
                f"source must be one image, or as many as there are images in the list; got {len(sources)} sources for "
                f"{len(image)} images."
            )
        inputs = [
            prepare_input(flow, batch.cpu(), fit=fit, label=label, source=small, notify=notes)
            for batch, small in zip(image, sources * (len(image) // len(sources)), strict=True)
        ]
        sizes = [(batch.shape[2:], s.pixels.shape[2:]) for batch, s in zip(image, inputs, strict=True) for _ in batch]
        resized = sum(given != taken for given, taken in sizes)
        if resized:
            notes(f"{resized} of {len(sizes)} images were resized or cut to fit, which changes their score.")
        enlarged = [taken[0] > given[0] or taken[1] > given[1] for given, taken in sizes]
        if any(enlarged):
            notes(f"{sum(enlarged)} of {len(sizes)} images were enlarged, and stand last without a rank.")
        progress, total, done = Progress(), len(sizes), 0
        scores: list[scoring.Score] = []
        for one in inputs:
            count, _, *size = one.pixels.shape
            # The share of every pixel is computed beside the pass itself: twice the memory of one.
            model.load(2 * memory_required(flow, count * samples, *size))
            cond = one.condition(flow, cancelled=stop_if_cancelled, notify=notes)
            options = notes.follow(progress.part(done / total, count / total), probes=probes, terms=terms)
            options |= {"dequantization": dequantization, "samples": samples, "seed": seed}
            scores.append(scoring.score(flow, one.pixels, cond, **options))
            done += count
        bits, corrected, spread, errors = (
            [float(value) for s in scores for value in getattr(s, name)]
            for name in ("bits_per_dim", "complexity_corrected", "spread", "standard_error")
        )
        order = sorted(range(total), key=lambda i: scoring.ranking_key(bits[i], corrected[i], enlarged[i]))
        lines = ["rank  image  bits/dim  corrected  spread"]
        for rank, i in enumerate(order, 1):
            varies = f"{spread[i]:.4f}" if math.isfinite(spread[i]) else "-"
            place = "-" if enlarged[i] else str(rank)
            lines.append(f"{place:>4}  {i:5}  {bits[i]:8.4f}  {corrected[i]:9.4f}  {varies:>6}")
        messages = [*dict.fromkeys([*notes.lines, *(note for s in scores for note in s.notes)])]
        report = "\n".join([*lines, "", *messages])
        # Zeros where the model has no map, as the score's notes say.
        parts = [
            torch.zeros_like(own.pixels[:, 0]) if s.map is None else torch.stack([*map(_normalized, s.map)])
            for s, own in zip(scores, inputs, strict=True)
        ]
        maps = _batches([one[None] for part in parts for one in part])
        pictures = [picture[None] for s in inputs for picture in s.pixels]
        return self.output(
            bits,
            [heat_map(batch) for batch in maps],
            [to_host_image(batch) for batch in maps],
            _batches([pictures[i] for i in order]),
            report,
            text=[f"{_summary(order, corrected, enlarged)}\n\n{report}"],
            bits_per_dim=finite(bits),
            corrected=finite(corrected),
            spread=finite(spread),
            standard_error=finite(errors),
            per_level=[finite(row) for s in scores for row in s.per_level],
            order=order,
            notes=messages,
        )


def _normalized(bits: Tensor) -> Tensor:
    """Scale a map of bits (H, W) to [0, 1] between two percentiles; 0 if it is constant or not finite."""
    low, high = np.percentile(bits.numpy(), PERCENTILES)
    if not high > low or not math.isfinite(high - low):
        return torch.zeros(bits.shape)
    return ((bits - float(low)) / float(high - low)).clamp(0, 1).float()


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


class FlowcoreDiversityMap(FlowNode):
    """Where samples differ: what the model had to guess."""

    ALIASES = "diversity, uncertainty, heat map, variance, standard deviation, spread"
    OUTPUTS = (io.Image.Output("map"), io.Mask.Output("mask"), io.Float.Output("mean"))

    def run(
        self,
        images: Image,
        samples: Annotated[int, widgets.integer(0, 0, 4096, optional=True)],
        gain: Annotated[float, widgets.number(1.0, 0.0, 100.0, 0.1, optional=True, advanced=True)],
    ) -> Any:
        deviation = diversity_map(images, samples)  # (B, 1, H, W)
        maps = (deviation[:, 0] * (gain * 255 / BRIGHT)).clamp(0, 1)
        means = [float(value) * 255 for value in deviation.mean((1, 2, 3))]
        mean = sum(means) / len(means)
        text = "Bright is where samples differ: what the picture leaves open.\n\n"
        text += f"they differ by {mean:.2f}/255 on average"
        return self.output(heat_map(maps), to_host_image(maps), mean, text=[text], mean=[mean], each=means)


class FlowcoreBestOf(PickingNode):
    """The best samples first, with their scores."""

    PICKED = (0, 1, 2)
    ALIASES = "best of n, rank, sort images, pick best, cherry pick, likelihood, consensus, select"
    OUTPUTS = (
        io.Image.Output("best"),
        io.Float.Output("scores", is_output_list=True),
        io.Int.Output("order", is_output_list=True),
    )

    def run(
        self,
        images: Image,
        source: Image,
        model: PhotoModel | None,
        by: Annotated[By, widgets.choice("consistency", "likelihood", "consensus")],
        keep: Annotated[int, widgets.integer(1, 1, 64)],
        pick: widgets.Pick,
    ) -> Any:
        why: list[str] = []
        if by == "likelihood" and isinstance(model, ModelByPicture):
            parts = model.parts(source)
            ranks = [
                self._ranked(share(images, places, len(source)), source[places], by, one) for one, places, _ in parts
            ]
            scores, order = (in_order(part, [places for _, places, _ in parts]) for part in zip(*ranks, strict=True))
            why = [sentence for _, _, sentence in parts]
        else:
            scores, order = self._ranked(images, source, by, model if isinstance(model, HostModel) else None)
        best = order[:, :keep] + torch.arange(len(order))[:, None] * order.shape[1]
        numbers = best.flatten().tolist()
        values = [float(value) for value in scores.flatten()[numbers]]
        unit = {"consistency": "dB", "likelihood": "bits per dimension", "consensus": "from the others"}[by]
        seeds, each = PROVENANCE_LOG.seeds(images), order.shape[1]
        known = [
            {"image": k} if seeds[k] is None else {"seed": seeds[k], **of_image(k, each, len(images))} for k in numbers
        ]
        names = [", ".join(f"{fact} {number}" for fact, number in sorted(found.items())) for found in known]
        lines = [f"{name}: {value:.4g} {unit}" for name, value in zip(names, values, strict=True)]
        facts = [{**found, "score": f"{value:.4g}"} for found, value in zip(known, values, strict=True)]
        shown = gallery(self, images[numbers], facts, source)
        summary = f"The {keep} best of {each}, by {by}." if keep < each else f"Sorted by {by}, the best first."
        shown |= {"text": [*why, summary, "", *lines], "scores": finite(scores.flatten()), "order": numbers}
        return self.output(images[numbers], values, numbers, **shown)

    def _ranked(self, images: Tensor, source: Tensor, by: By, model: HostModel | None) -> tuple[Tensor, Tensor]:
        flow = None
        if by == "likelihood" and model is not None:
            samples, size = max(1, len(images) // max(1, len(source))), images.shape[-2:]
            if "colorize" in model.flow.capabilities.tasks:
                memory = colorizer_memory(model.flow, size[0], size[1], samples)
            else:
                memory = memory_required(model.flow, samples, *size)
            flow = model.load(2 * memory)  # as in `FlowcoreScore`
        return ranked(images, source, by, flow, **self.notes.follow())
