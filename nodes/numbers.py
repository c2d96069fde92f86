"""The numbers that sliders show while they follow the model: those that a run would use, for the page that asks."""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from flowcore import FlowError
from flowcore.engine.defaults import boldness_of, stated_defaults
from flowcore.engine.looks import looks
from flowcore.flows.stated import Facts, Recommendations
from flowcore.tasks.model_choice import FOR_CLEAN, FOR_DAMAGED, upscaler_for_files

from . import widgets
from .files import FILMS, picture_files
from .host.routes import Answer
from .loaders import AUTO_MODEL, locate_model, stated_config
from .node import FlowNode, file_fingerprint

ROUTE = "/flowcore/numbers"
OK, WRONG = 200, 400  # HTTP statuses
MAX_FILES = 8  # pictures that are examined to find their models


def answer(body: Any, nodes: dict[str, type[FlowNode]]) -> Answer:
    """Answer a request, which may be malformed: by input, the number that a run would use if none is set.

    It names a "node", the "model" in its loader, the "picture" that it gets, if the page knows, the "models" of its
    last run, "values" of inputs, and "wired" inputs. Numbers that differ among models or looks are left out.
    """
    try:
        node, model, picture = (body.get(name) for name in ("node", "model", "picture"))
        known, wired = ([str(each) for each in body.get(name) or ()] for name in ("models", "wired"))
        kind = nodes[node]
        settings = _settings(kind, dict(body["values"]), wired)
    except (AttributeError, KeyError, TypeError, ValueError, FlowError):
        return WRONG, b""
    names = [model] if model else known
    if model == AUTO_MODEL:
        suited = _suited(picture, as_clip=getattr(kind, "AS_CLIP", False)) if isinstance(picture, str) else set[str]()
        names = [*suited] or known or [FOR_CLEAN, FOR_DAMAGED]
    paths = [path for name in names if (path := locate_model(str(name))) is not None]
    numbers = [_numbers(path, each) for path in paths for each in _possible(settings, wired)]
    return OK, json.dumps(_in_common(numbers)).encode()


def _suited(picture: str, *, as_clip: bool) -> set[str]:
    """Name the models that the files of a picture get; none if there are too many, or frames made from one."""
    files = [] if picture in FILMS else picture_files(picture)
    if as_clip:
        return {upscaler_for_files(files)[0]} if files else set()
    return {upscaler_for_files([file])[0] for file in files} if len(files) <= MAX_FILES else set()


def _settings(node: type[FlowNode], values: dict[str, Any], wired: Iterable[str]) -> dict[str, Any]:
    """Return what a run would be asked for: numbers, None where it follows the model; texts; True for a wire."""
    specs = {spec.id: spec for spec in node.SCHEMA.inputs}
    following = {name for name, spec in specs.items() if getattr(spec, "min", None) == widgets.FROM_MODEL}
    numbers = node.validated_numbers({name: value for name, value in values.items() if name in following})
    settings: dict[str, Any] = dict.fromkeys(following) | (numbers or {})
    settings |= {name: True for name in ("guide", "latents", "reference") if name in wired}
    for name in ("look", "temperatures"):
        if name in specs and isinstance(values.get(name), str):
            settings[name] = values[name].strip()
    return settings


def _possible(settings: dict[str, Any], wired: Iterable[str]) -> list[dict[str, Any]]:
    """List all settings that a run may have: one for each look if it makes all, and the ends of what a wire brings."""
    ends: dict[str, tuple[Any, ...]] = {"temperature": (0.0, widgets.MAX_TEMPERATURE), "boldness": (0.0, 1.0)}
    choices = {name: values for name, values in ends.items() if name in wired and name in settings}
    if settings.get("look", "natural") not in looks:
        choices["look"] = tuple(looks)
    return [settings | dict(zip(choices, each, strict=True)) for each in product(*choices.values())]


def _numbers(path: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Return the number of each setting if it were left open and the others were as they are."""
    config = stated_config(path, file_fingerprint(path))
    facts, own = Facts.of(config), Recommendations.of(config)

    def defaults(**more: Any) -> dict[str, Any]:
        return stated_defaults(own, settings | more, has_guide=facts.guide_layers > 0)

    numbers = {name: defaults(**{name: None}).get(name) for name in settings}
    if own.temperature and "boldness" in settings:
        temperature = settings["temperature"]
        numbers["boldness"] = boldness_of(
            own, defaults(boldness=None)["temperature"] if temperature is None else temperature
        )
    numbers["factor"] = facts.scale
    return {name: number for name, number in numbers.items() if isinstance(number, int | float)}


def _in_common(numbers: list[dict[str, float]]) -> dict[str, float]:
    first, *others = numbers or [{}]
    return {name: number for name, number in first.items() if all(each.get(name) == number for each in others)}
