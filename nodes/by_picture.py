"""Divide a batch among the models that suit its images, and join what was made of the parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowcore import ShapeError

from .host.compat import io
from .host.ui import GALLERY


def part_for(value: Any, places: list[int], count: int) -> Any:
    """Return the part of a value that belongs to some of `count` images; all of it, if all images share it."""
    if not isinstance(value, Tensor) or value.ndim < 3 or len(value) == 1 < count:
        return value
    if len(value) % count or len(value) == 0:
        raise ShapeError(
            "Expected one image, or as many for each of the {count} images; got {images}. Pass a number that {count} "
            "divides.",
            count=count,
            images=len(value),
        )
    return value.unflatten(0, (count, -1))[places].flatten(0, 1)


def in_image_order(parts: Sequence[Any], places_per_part: list[list[int]]) -> Any:
    """Join tensors or lists, each made from the images at some places, in the order of the images."""
    of_images: dict[int, Any] = {}
    for part, places in zip(parts, places_per_part, strict=True):
        each = len(part) // len(places)
        of_images |= {place: part[k * each : (k + 1) * each] for k, place in enumerate(places)}
    ordered = [of_images[place] for place in sorted(of_images)]
    return torch.cat(ordered) if isinstance(ordered[0], Tensor) else [one for part in ordered for one in part]


def with_reason(output: Any, reason: str) -> Any:
    """Put the reason for the choice of the model before the text of an output, and let it recommend no other model."""
    output = with_sentence(output, reason)
    return io.NodeOutput(*output.args, ui=output.ui | {"flowcore_better": []})


def with_sentence(output: Any, sentence: str) -> Any:
    """Put a sentence, which is no warning, before the text of an output and after its notes."""
    notes, text = output.ui["flowcore_notes"], output.ui["text"]
    text = [*notes, sentence, *text[len(notes) :]]
    return io.NodeOutput(*output.args, ui=output.ui | {"text": text})


def join_outputs(outputs: list[Any], places_per_part: list[list[int]], counted: int) -> Any:
    """Join outputs of parts, each made of the images at some places; that of index `counted` has an item per picture.

    Of numbers, which are decibels of consistency, the lowest counts.
    """
    args = [
        in_image_order(parts, places_per_part) if isinstance(parts[0], Tensor | list) else min(parts)
        for parts in zip(*(output.args for output in outputs), strict=True)
    ]
    each = len(args[counted]) // sum(map(len, places_per_part))
    ui: dict[str, list[Any]] = {}
    for name in outputs[0].ui:
        parts = [output.ui[name] for output in outputs]
        if name == "flowcore_gallery":
            ui[name] = _join_galleries(parts, places_per_part, each)
        elif name == "each":
            ui[name] = in_image_order(parts, places_per_part)
        else:
            ui[name] = _distinct(_unfolded_first(parts) if name == "text" else parts)
    ui["text"] = _distinct([ui["flowcore_notes"], ui["text"]])
    return io.NodeOutput(*args, ui=ui)


def _distinct(lists: list[list[Any]]) -> list[Any]:
    return [*dict.fromkeys(item for items in lists for item in items)]


def _unfolded_first(texts: list[list[str]]) -> list[list[str]]:
    """Put what the texts have above their empty lines first, then the rest, which the node folds."""
    folds = [text.index("") if "" in text else len(text) for text in texts]
    above = [text[:fold] for text, fold in zip(texts, folds, strict=True)]
    return above + [text[fold:] for text, fold in zip(texts, folds, strict=True)]


def _join_galleries(
    galleries: list[list[dict[str, Any]]], places_per_part: list[list[int]], each: int
) -> list[dict[str, Any]]:
    """Renumber the pictures, `each` of every image, in the order of the images."""
    by_number: dict[int, dict[str, Any]] = {}
    for gallery, places in zip(galleries, places_per_part, strict=True):
        for entry in gallery:
            image, k = divmod(entry["number"] - 1, each)
            number = places[image] * each + k + 1
            by_number[number] = {**entry, "number": number, "image": places[image]}
            by_number[number].pop("rows", None)  # rows of a table of one image
    return [by_number[number] for number in sorted(by_number)][:GALLERY]
