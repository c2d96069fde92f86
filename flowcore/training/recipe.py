"""Recipes: what to train, in TOML."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..errors import FlowError
from ..models import build, configure
from ..models.colorizer import ColorizerConfig
from .degradation import DegradationKind

Objective = Literal["l1", "likelihood"]
Schedule = Literal["constant", "cosine", "halving"]
Precision = Literal["auto", "float32", "bfloat16"]
Optimiser = Literal["adamw", "adam"]
Recompute = Literal["auto", "always", "never"]

LIMITS = {  # of keys that may not be 0, or not any larger number
    "steps": (1, math.inf),
    "batch": (1, math.inf),
    "crop": (1, math.inf),
    "checkpoint_every": (1, math.inf),
    "init_batch": (1, math.inf),
    "patience": (1, math.inf),
    "ema": (0, 1),
    "train_encoder_after": (0, 1),
    "unlabelled": (0, 1),
    "degradation_strength": (0.01, 1),
}

WITHOUT_EFFECT = (  # on the parameters that a run ends with
    "name",
    "data",
    "precision",  # decided once, and kept in the checkpoint
    "recompute",
    "compile",
    "checkpoint_every",
    "evaluate",
    "sheet",
    "licence",
    "text",
)
FOLDER = Path(__file__).parent / "recipes"
HELD_OUT = Path(__file__).parent / "held_out.txt"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a training run.

    Attributes:
        name: Shown in the progress line.
        objective: "l1": the encoder as an ordinary upscaler, mean absolute error of its enlargement; "likelihood": the
            whole model, bits per dimension of dequantized HR images.
        steps: Number of optimiser steps.
        batch: Crops per step.
        crop: Side of the HR crops in pixels.
        learning_rate: Peak rate of the optimiser.
        optimiser: "adamw", or "adam", whose weight decay is part of the gradient; betas 0.9 and 0.99.
        schedule: "constant", "cosine" (to 1 % of the peak), or "halving" (at 50, 75, 90 and 95 % of the stage, as
            published).
        warmup: Steps over which the rate rises from 0.
        clip: Largest norm of the gradient; 0 for no clipping.
        train_encoder_after: Part of a likelihood stage during which the encoder is frozen (published: 0.5).
        lr_consistency: Weight of the mean absolute error of the enlargement on the LR grid (objective "l1").
        weight_decay: Of the kernels of convolutions; of "adamw" relative to the rate.
        balanced: Whether every level's latents count the same in the loss, however few they are; otherwise every
            latent does.
        frozen_levels: How many of the coarsest levels keep their weights in a likelihood stage. What has few latents
            per image is learnt first, and by heart next, while finer levels still improve.
    """

    name: str
    objective: Objective
    steps: int
    batch: int = 16
    crop: int = 96
    learning_rate: float = 5e-4
    optimiser: Optimiser = "adamw"
    schedule: Schedule = "cosine"
    warmup: int = 100
    clip: float = 10.0
    train_encoder_after: float = 0.5
    lr_consistency: float = 0.0
    weight_decay: float = 0.0
    balanced: bool = False
    frozen_levels: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run.

    Attributes:
        name: Of the model.
        architecture: A model of ``flowcore.models``.
        model: Its configuration.
        stages: In order.
        seed: Of weights, crops and noise.
        data: Folders or ZIP archives of images, for a run that is told of none.
        pyramid: Sizes at which every photograph is used; see ``data.Photographs``.
        validation: Photographs kept out of training.
        held_out: A text file of the names of photographs that are kept out of training instead, one name a line, or
            "standard" for the list that flowcore brings, which names photographs of the shipped models' data.
        ema: Decay per step of the averaged weights, which are what is saved; 0 for none.
        precision: Of conditioners and encoder; "auto" times both and takes the faster.
        recompute: Whether steps forget their activations and compute them again, which takes a third more time and a
            fraction of the memory: "auto" does so where the batch would not fit otherwise.
        compile: Whether networks inside the flow are compiled by ``torch.compile``; needs a C++ compiler on a CPU.
        patience: After so many steps in a row that were not finite, a run goes back to its last good checkpoint, with
            half the rate.
        checkpoint_every: Steps between checkpoints, sample sheets and validation.
        evaluate: Crops of the held-out images that are measured then; 0 for what suits the model.
        sheet: Temperatures of the sample sheet's columns; none for what suits the model.
        init_batch: Crops of the batch that initialises the flow.
        turn: Whether crops are turned by quarters at random.
        short_sides: Instead of the pyramid: lengths of the shorter side to which every photograph is shrunk.
        unlabelled: Part of the labelled images that are shown as "no label given", by which a class-conditional model
            learns to do without.
        degradation: How LR images are made of HR ones: "bicubic", or "realistic", with blur, noise and JPEG for
            upscalers of people's own photographs; see ``degradation.py``.
        degradation_strength: Factor on the amounts of blur, noise and JPEG.
        licence: Of the resulting weights, for their header.
    """

    name: str
    architecture: str
    model: Any
    stages: tuple[Stage, ...]
    seed: int = 0
    data: tuple[str, ...] = ()
    pyramid: tuple[float, ...] = (1.0,)
    validation: int = 4
    held_out: str = ""
    ema: float = 0.999
    precision: Precision = "auto"
    recompute: Recompute = "auto"
    compile: bool = False
    patience: int = 50
    checkpoint_every: int = 500
    evaluate: int = 0
    sheet: tuple[float, ...] = ()
    init_batch: int = 32
    turn: bool = True
    unlabelled: float = 0.0
    short_sides: tuple[int, ...] = ()
    degradation: DegradationKind = "bicubic"
    degradation_strength: float = 1.0
    licence: str = "unspecified"
    text: str = field(default="", repr=False)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        path: A TOML file, or the name of a recipe that flowcore brings, e.g. "srflow-x4".

    Returns:
        The recipe, checked.

    Raises:
        FlowError: Naming the key and the choices.
    """
    path = Path(path)
    if not path.exists() and (FOLDER / f"{path.name.removesuffix('.toml')}.toml").exists():
        path = FOLDER / f"{path.name.removesuffix('.toml')}.toml"
    if not path.exists():
        brought = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise FlowError(f"There is no recipe {path}. Give a TOML file or one of {brought}.")
    text = path.read_text(encoding="utf-8")
    return parse_recipe(text)


def parse_recipe(text: str) -> Recipe:
    """Parse a recipe.

    Args:
        text: TOML.

    Returns:
        The recipe, checked.

    Raises:
        FlowError: Naming the key and the choices.
    """
    raw = _toml(text)
    stages: Any = raw.pop("stages", None)
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise FlowError("A recipe needs at least one [[stages]] table with name, objective and steps.")
    if "architecture" not in raw:
        raise FlowError("The recipe lacks architecture.")
    model: Any = raw.pop("model", {})
    if not isinstance(model, dict):
        raise FlowError(f"[model] must be a table of the model's configuration; got {model!r}.")
    raw["model"] = configure(str(raw["architecture"]), model)
    raw["stages"] = tuple(_checked(Stage, stage, f"stages[{k}].") for k, stage in enumerate(stages))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raw["text"] = text
    recipe: Recipe = _checked(Recipe, raw, "")
    for k, stage in enumerate(recipe.stages):
        scale = getattr(recipe.model, "scale", 1)
        multiple = scale if stage.objective == "l1" else max(scale, _side_multiple(recipe))
        if stage.crop % multiple:
            raise FlowError(
                f"Recipe key stages[{k}].crop must be a multiple of {multiple} for this model; got {stage.crop}."
            )
    if recipe.degradation != "bicubic":
        _check_degradation(recipe)
    return recipe


def _check_degradation(recipe: Recipe) -> None:
    """Refuse a degradation that nothing is made with, and a loss that holds only for a plain one."""
    if getattr(recipe.model, "scale", 1) == 1:
        raise FlowError(
            f"Recipe key degradation is about the LR images of upscalers; a {recipe.architecture} model has none. "
            f"Leave it out; got {recipe.degradation!r}."
        )
    for k, stage in enumerate(recipe.stages):
        if stage.lr_consistency:
            raise FlowError(
                f"Recipe key stages[{k}].lr_consistency must be 0 with degradation = {recipe.degradation!r}: it asks "
                "that the enlargement shrink to the LR image, noise and blocks included. Set it to 0, or choose "
                f"degradation = 'bicubic'; got {stage.lr_consistency}."
            )


def held_out_names(source: str) -> frozenset[str]:
    """Read the names of the photographs that are kept out of training.

    Args:
        source: The recipe's ``held_out``: "standard", a text file with one name a line, or "" for none. Lines that
            begin with # are comments.

    Returns:
        File names, without folders.

    Raises:
        FlowError: If there is no such file.
    """
    if not source:
        return frozenset()
    path = HELD_OUT if source == "standard" else Path(source)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FlowError(
            f"Recipe key held_out must be 'standard' or a text file with one name a line; {source!r} could not be read "
            f"({error})."
        ) from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def fingerprint(recipe: Recipe) -> str:
    """Summarise what decides the parameters of a run: everything but names, places and habits of reporting.

    Keys that a recipe leaves as they are do not count, so a key that flowcore learns later changes no fingerprint.

    Args:
        recipe: The recipe.

    Returns:
        64 hexadecimal digits.
    """
    told = _told(recipe)
    for key in WITHOUT_EFFECT:
        told.pop(key, None)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _told(value: Any) -> Any:
    """A dataclass as the dictionary of its fields that differ from their defaults."""
    if isinstance(value, tuple):
        return [_told(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if not dataclasses.is_dataclass(value):
        return value
    return {f.name: _told(given) for f in dataclasses.fields(value) if (given := getattr(value, f.name)) != f.default}


def _side_multiple(recipe: Recipe) -> int:
    if isinstance(recipe.model, ColorizerConfig):
        return recipe.model.source_multiple  # crops are of luma
    with torch.device("meta"):
        return build(recipe.architecture, recipe.model).size_multiple


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        try:
            import tomli as toml
        except ModuleNotFoundError as error:
            raise FlowError("Reading recipes on Python 3.10 needs the package tomli: pip install tomli.") from error
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise FlowError(f"The recipe is not valid TOML: {error}.") from error


def _checked(kind: type[Any], raw: dict[str, Any], prefix: str) -> Any:
    """Build a dataclass from plain values, checking names, types and choices."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            raise FlowError(
                f"Unknown recipe key {prefix}{key}. Choices: {', '.join(sorted(fields.keys() - {'text'}))}."
            )
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in raw:
            raise FlowError(f"The recipe lacks {prefix}{name}.")
    values: dict[str, Any] = {}
    choices = {
        "Objective": Objective,
        "Schedule": Schedule,
        "Precision": Precision,
        "Optimiser": Optimiser,
        "Recompute": Recompute,
        "DegradationKind": DegradationKind,
    }
    for key, value in raw.items():
        expected = str(fields[key].type)
        if expected in choices and value not in get_args(choices[expected]):
            raise FlowError(
                f"Recipe key {prefix}{key} must be one of {', '.join(get_args(choices[expected]))}; got {value!r}."
            )
        if expected == "float" and type(value) is int:
            value = float(value)
        if expected in ("int", "float", "str", "bool") and type(value).__name__ != expected:
            raise FlowError(f"Recipe key {prefix}{key} must be of type {expected}; got {value!r}.")
        low, high = LIMITS.get(key, (0, math.inf))
        if expected in ("int", "float") and not (low <= value <= high and math.isfinite(value)):
            most = "" if high == math.inf else f" and at most {high}"
            raise FlowError(f"Recipe key {prefix}{key} must be a finite number, at least {low}{most}; got {value!r}.")
        if key == "pyramid":
            value = _sizes(value)
        if key == "sheet":
            value = _temperatures(value)
        if key == "data":
            value = _folders(value)
        if key == "short_sides":
            value = _lengths(value)
        values[key] = tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return kind(**values)


def _lengths(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or any(type(side) is not int or side < 1 for side in value):  # pyright: ignore[reportUnknownVariableType]
        raise FlowError(f"Recipe key short_sides must be a list of whole numbers above 0, e.g. [256]; got {value!r}.")
    return tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _temperatures(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or any(type(tau) not in (int, float) or not 0 <= tau <= 4 for tau in value):  # pyright: ignore[reportUnknownVariableType]
        raise FlowError(f"Recipe key sheet must be a list of temperatures from 0 to 4, e.g. [0, 0.8]; got {value!r}.")
    return tuple(float(tau) for tau in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _folders(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or any(type(folder) is not str for folder in value):  # pyright: ignore[reportUnknownVariableType]
        raise FlowError(f'Recipe key data must be a list of folders, e.g. ["photos"]; got {value!r}.')
    return tuple(value)  # pyright: ignore[reportUnknownArgumentType]


def _sizes(value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, (list, tuple)) and all(
        type(size) in (int, float) and 0 < size < math.inf for size in value
    )
    if not numbers or not value:
        raise FlowError(f"Recipe key pyramid must be a list of finite numbers above 0, e.g. [1.0, 0.5]; got {value!r}.")
    return tuple(float(size) for size in value)
