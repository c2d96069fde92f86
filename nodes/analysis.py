"""Analysis: how likely images are to a model, where samples differ, and which are best."""

import math
import operator
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from flowcore import ShapeError
from flowcore.engine.memory import memory_required
from flowcore.engine.model_input import ModelInput, prepare_input
from flowcore.errors import on_lines, say
from flowcore.images.contact_sheet import heat_map
from flowcore.tasks import score as scoring
from flowcore.tasks.ranking import By, diversity_map, ranked

from . import widgets
from .by_picture import in_image_order, part_for
from .files import picture_names
from .host.compat import io
from .host.memory import stop_if_cancelled, to_host_image
from .host.ui import Notes, finite, gallery, sample_facts
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode
from .sockets import EncodingModel, HostModel, Image, ModelByPicture, PhotoModel

BRIGHT = 16  # deviation in 1/255 at full brightness and gain 1; 1 in 1000 pixels exceeds it at temperature 0.8
PERCENTILES = (2, 98)  # percentiles of a map of bits, which become 0 and 1 in its mask
CRITERIA = {"consistency": say("consistency"), "likelihood": say("likelihood"), "consensus": say("consensus")}
UNITS = {"consistency": "dB", "likelihood": "bits per dimension", "consensus": "from the others"}


class FlowcoreScore(FlowNode):
    """Score how likely images are to a model, and show which pixels surprise it."""

    ALIASES = "likelihood, bits per dimension, bpd, anomaly, heat map, rank images, score"
    HIDDEN = (io.Hidden.prompt,)
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
                "source must be one image, or as many as there are images in the list; got {sources} sources for "
                "{count} images.",
                sources=len(sources),
                count=len(image),
            )
        inputs = [
            prepare_input(flow, batch.cpu(), fit=fit, label=label, source=small, notify=notes)
            for batch, small in zip(image, sources * (len(image) // len(sources)), strict=True)
        ]
        enlarged = _note_new_sizes(image, [prepared.pixels for prepared in inputs], notes)
        progress, total, done = notes.start(), len(enlarged), 0
        scores: list[scoring.Score] = []
        for prepared in inputs:
            count, _, *size = prepared.pixels.shape
            model.load(2 * memory_required(flow, count * samples, *size))  # twice, because of the map of bits
            cond = prepared.condition(flow, cancelled=stop_if_cancelled, notify=notes)
            options: dict[str, Any] = {"dequantization": dequantization, "samples": samples, "seed": seed}
            options |= notes.task_options(progress.part(done / total, count / total))
            scores.append(scoring.score(flow, prepared.pixels, cond, probes=probes, terms=terms, **options))
            done += count
        bits, corrected, spread, errors = (
            [float(value) for score in scores for value in getattr(score, name)]
            for name in ("bits_per_dim", "complexity_corrected", "spread", "standard_error")
        )
        order = sorted(range(total), key=lambda i: scoring.ranking_key(bits[i], corrected[i], enlarged[i]))
        messages = [*dict.fromkeys([*notes.lines, *(note for score in scores for note in score.notes)])]
        files = picture_names(self.hidden.prompt, self.hidden.unique_id, "image")
        names = files if len(files) == total else [str(number) for number in range(total)]
        report = on_lines(*_table(order, names, bits, corrected, spread, enlarged), "", *messages)
        maps = _batches(
            [part[None] for score, prepared in zip(scores, inputs, strict=True) for part in _maps(score, prepared)]
        )
        pictures = [picture[None] for prepared in inputs for picture in prepared.pixels]
        return self.output(
            bits,
            [heat_map(batch) for batch in maps],
            [to_host_image(batch) for batch in maps],
            _batches([pictures[i] for i in order]),
            report,
            text=[on_lines(_summary(order, names, corrected, enlarged), "", report)],
            bits_per_dim=finite(bits),
            corrected=finite(corrected),
            spread=finite(spread),
            standard_error=finite(errors),
            per_level=[finite(row) for score in scores for row in score.per_level],
            order=order,
            notes=messages,
        )


def _note_new_sizes(before: list[Tensor], after: list[Tensor], notes: Notes) -> list[bool]:
    """Note how many images got another size; return for each image whether it was enlarged."""
    sizes = [(old.shape[2:], new.shape[2:]) for old, new in zip(before, after, strict=True) for _ in old]
    if resized := sum(old != new for old, new in sizes):
        notes(
            "{resized} of {count} images were resized or cropped to fit, which changes their score.",
            resized=resized,
            count=len(sizes),
        )
    enlarged = [any(map(operator.lt, old, new)) for old, new in sizes]
    if any(enlarged):
        notes(
            "{enlarged} of {count} images were enlarged; they come last, without a rank.",
            enlarged=sum(enlarged),
            count=len(sizes),
        )
    return enlarged


def _table(
    order: list[int],
    names: list[str],
    bits: list[float],
    corrected: list[float],
    spread: list[float],
    enlarged: list[bool],
) -> list[str]:
    width = max(map(len, [*names, "image"]))
    lines = [f"rank  {'image':>{width}}  bits/dim  corrected  spread"]
    for number, i in enumerate(order, 1):
        varies = f"{spread[i]:.4f}" if math.isfinite(spread[i]) else "-"
        rank = "-" if enlarged[i] else str(number)
        lines.append(f"{rank:>4}  {names[i]:>{width}}  {bits[i]:8.4f}  {corrected[i]:9.4f}  {varies:>6}")
    return lines


def _maps(score: scoring.Score, prepared: ModelInput) -> Tensor:
    """Return a map of bits per image, (B, H, W) in [0, 1]; zeros if the model has no map, as its notes say."""
    return torch.zeros_like(prepared.pixels[:, 0]) if score.map is None else torch.stack([*map(_normalized, score.map)])


def _normalized(bits: Tensor) -> Tensor:
    """Scale a map of bits (H, W) to [0, 1] between two percentiles; 0 if it is constant or not finite."""
    low, high = np.percentile(bits.numpy(), PERCENTILES)
    if not high > low or not math.isfinite(high - low):
        return torch.zeros(bits.shape)
    return ((bits - float(low)) / float(high - low)).clamp(0, 1).float()


def _batches(parts: list[Tensor]) -> list[Tensor]:
    """Join parts into one batch, unless their sizes differ."""
    return [torch.cat(parts)] if len({part.shape for part in parts}) == 1 else parts


def _summary(order: list[int], names: list[str], corrected: list[float], enlarged: list[bool]) -> str:
    """Summarize the table, which the node folds away."""
    ranked = [i for i in order if not enlarged[i]] or order
    if len(ranked) > 1:
        first, last = (
            say("image {name}", name=name) if name.isdecimal() else name
            for name in (names[ranked[0]], names[ranked[-1]])
        )
        return say("Most usual for this model: {first}. Most unusual: {last}.", first=first, last=last)
    if corrected[ranked[0]] < 0:
        return say(
            "Usual for this model on the whole: it predicts the picture better than a lossless compressor does. The "
            "heat map shows parts that are unusual."
        )
    return say("Unusual for this model, which predicts the picture no better than a lossless compressor does.")


class FlowcoreDiversityMap(FlowNode):
    """Show where samples differ, because the model had to guess."""

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
        bright = say("Bright is where samples differ, because the picture leaves something open.")
        text = on_lines(bright, "", say("they differ by {mean}/255 on average", mean=f"{mean:.2f}"))
        return self.output(heat_map(maps), to_host_image(maps), mean, text=[text], mean=[mean], each=means)


class FlowcoreBestOf(PickingNode):
    """Pick the best samples, and give their scores."""

    MENU = "enlarge"
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
        reasons: list[str] = []
        if by == "likelihood" and isinstance(model, ModelByPicture):
            parts = model.divide(source)
            ranks = [
                self._ranked(part_for(images, part.places, len(source)), source[part.places], by, part.model)
                for part in parts
            ]
            places_per_part = [part.places for part in parts]
            scores, order = (in_image_order(values, places_per_part) for values in zip(*ranks, strict=True))
            reasons = [part.reason for part in parts]
        else:
            scores, order = self._ranked(images, source, by, model if isinstance(model, HostModel) else None)
        best = order[:, :keep] + torch.arange(len(order))[:, None] * order.shape[1]
        numbers = best.flatten().tolist()
        values = [float(value) for value in scores.flatten()[numbers]]
        per_source = order.shape[1]
        all_facts = sample_facts(PROVENANCE_LOG.seeds(images), per_source)
        facts = [all_facts[k] for k in numbers]
        names = [", ".join(f"{key} {number}" for key, number in sorted(fact.items())) for fact in facts]
        lines = [f"{name}: {value:.4g} {UNITS[by]}" for name, value in zip(names, values, strict=True)]
        facts = [{**fact, "score": f"{value:.4g}"} for fact, value in zip(facts, values, strict=True)]
        shown = gallery(self, images[numbers], facts, source)
        best, ranking = say("The {keep} best of {samples}, by {by}."), say("Sorted by {by}, best first.")
        summary = say(best if keep < per_source else ranking, keep=keep, samples=per_source, by=CRITERIA[by])
        shown |= {"text": [*reasons, summary, "", *lines], "scores": finite(scores.flatten()), "order": numbers}
        return self.output(images[numbers], values, numbers, **shown)

    def _ranked(self, images: Tensor, source: Tensor, by: By, model: HostModel | None) -> tuple[Tensor, Tensor]:
        flow = None
        if by == "likelihood" and model is not None:
            samples, size = max(1, len(images) // max(1, len(source))), images.shape[-2:]
            flow = model.load(2 * memory_required(model.flow, samples, *size))  # same as `FlowcoreScore`
        return ranked(images, source, by, flow, **self.notes.task_options())
