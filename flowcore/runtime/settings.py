"""Settings of tasks: what each is, its range, its default, and the defaults in a model's file.

A field of a task's settings is the only description of an option: its keyword in Python, its input of the node, its
option on the command line, its place in recipes and in docs/options.md are read from it.
"""

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

import torch
from torch import Tensor
from typing_extensions import Self

from ..checkpoints.color_memory import ColorMemory
from ..errors import FlowError
from ..inference.condition_cache import ConditionStore
from ..model import FlowModel
from ..models.fields import SAMPLING_FIELDS, Range, annotated_types
from ..prior import Temperature, check_seed
from . import Precision, Progress
from .hints import RADIUS, Hints
from .ranges import MAX_DRAWS, Setting, check_range, count, nonnegative, share

AT_ONCE = 8  # colorings decoded together
STEADINESS = 0.9  # how much of a moved frame's latents the next one keeps
HALO = 24  # LR pixels; how far tiles then differ from the whole image: docs/decisions/0004
IN_FACES = 0.4  # temperature, at most, within faces of 36 to 120 pixels: docs/decisions/0015
MAX_EXPOSURE = 4  # stops
BOLDEST = 1.6  # temperature at boldness 1, relative to the default, for files that do not state it

Strength: TypeAlias = float | Tensor
"""Part of a guide's latents that is kept, in [0, 1]: a number, or a map as of temperatures that covers the image."""

Gamut = Literal["compress", "clip"]

log = logging.getLogger("flowcore")


class Option(NamedTuple):
    """An option of a task: a field of its settings, and the lines on it in the docstring of their class."""

    name: str
    type: Any
    setting: Setting
    default: Any  # None: what the model's file states, or nothing
    text: str  # its first sentence is the help on the command line, and of inputs of nodes that no locale names


@cache
def options_of(kind: type["RunOptions"]) -> list[Option]:
    """List the options of a task by the class of its settings, its own before those of every task."""
    described = {}
    for each in kind.__mro__[-2::-1]:
        parts = re.split(r"^ {4}(\w+): ", inspect.getdoc(each) or "", flags=re.MULTILINE)  # none under python -OO
        described |= {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    typed = sorted(annotated_types(kind).items(), key=lambda item: item[0] in RunOptions.__annotations__)
    return [Option(name, *of, getattr(kind, name), described.get(name, "")) for name, of in typed]


PYTHON = Setting(node=False, command=False)  # of options that only callers from Python have
CALM_EDGES = share("0 is off, 1 leaves no temperature at strong edges.", label="calm", advanced=True)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a task runs; only a lower precision changes the result beyond rounding.

    Attributes:
        precision: Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32.
            "auto": the device's fastest, see ``device.preferred_precision``. "tf32": float32 on an NVIDIA GPU's tensor
            cores; elsewhere the same as float32.
        batch: Images or samples that go through the flow at once; None or 0 chooses by their size.
        progress: Called with ``(done, total, preview)`` as the work advances; a preview with every finished picture.
        cancelled: Asked before every network layer; returns True (or raises) to stop, for which Cancelled is raised.
        notify: Called with a sentence when something differs from what was asked for; None logs it.
    """

    precision: Annotated[Precision, Setting(advanced=True)] = "float32"
    batch: Annotated[int | None, count(0, note="0 chooses by the image's size.", node=False, command=False)] = None
    progress: Annotated[Progress | None, PYTHON] = None
    cancelled: Annotated[Callable[[], bool] | None, PYTHON] = None
    notify: Annotated[Callable[[str], None] | None, PYTHON] = None

    def __post_init__(self) -> None:
        for name, (kind, setting) in annotated_types(type(self)).items():
            value = getattr(self, name)
            if name == "seed":
                check_seed(value)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise FlowError(f"{name} must be one of {', '.join(get_args(kind))}; got {value!r}.")
            may_vary = Tensor in get_args(kind)  # by level or place, and is checked where these are known
            if setting.kind is not None and not may_vary and (value is not None or type(None) not in get_args(kind)):
                check_range(name, value, setting)

    def tell(self, sentence: str) -> None:
        """Pass a sentence to the caller, or else to the log."""
        (self.notify or log.warning)(sentence)

    def recorded(self) -> dict[str, Any]:
        """Return what records need: offered numbers, switches and texts that differ from their defaults.

        Without seed and samples, which have a place of their own.
        """
        recorded: dict[str, Any] = {}
        for name, _, setting, default, _ in options_of(type(self)):
            value = getattr(self, name)
            if setting.command and name not in ("seed", "samples") and isinstance(value, (int, float, str)):
                recorded |= {name: value} if value != default else {}
        return recorded


@dataclass(frozen=True, kw_only=True)
class TileSettings(RunOptions):
    """What may be set of every task that draws pictures in tiles.

    Attributes:
        temperature: Standard deviation of the latents: 0 is smoothest, 1 the spread that the model learned. One, >= 0,
            or one per level, finest first. Each may be a map ``(1 or B, 1, any height, any width)`` that covers the
            image, for example from ``prior.masked_temperature``. None: the default stored in the model file, up to
            which variety costs hardly any fidelity: docs/decisions/0015.
        seed: Sample s of every image is drawn with ``seed + s``, in [0, 2^64).
        tile: Side of the tiles in LR pixels, at least 32; 0 for the whole image if memory allows, else the largest tile
            that fits. Changes memory and time, not the picture (at most 1/255).
        halo: LR pixels read around every tile.
    """

    temperature: Annotated[
        Temperature | None, nonnegative("0 is the calmest, 1 the model's own spread.", label="tau")
    ] = None
    seed: Annotated[int, count(0, 2**64 - 1)] = 0
    tile: Annotated[int, count(0, note="0 chooses by free memory.", unit="pixels", most=4096, advanced=True)] = 0
    halo: Annotated[int, count(0, node=False, command=False)] = HALO

    def resolved(self, flow: FlowModel) -> Self:
        """Replace settings that are None by the model's defaults."""
        stated = model_defaults(flow, vars(self))
        return replace(self, **{name: value for name, value in stated.items() if name in vars(self)})

    @property
    def tau(self) -> Temperature:
        """The temperature of resolved settings."""
        assert self.temperature is not None
        return self.temperature


@dataclass(frozen=True, kw_only=True)
class DrawSettings(TileSettings):
    """What may be set of every task that draws several pictures of an image in tiles.

    Attributes:
        samples: Pictures per image, at least 1.
        mark: A secret phrase by which ``verify`` knows the results again without their seed. See
            ``prior.sample_latents``. The results differ from those without, and are no worse. None for no mark.
        store: Where the conditions of the images are kept for the next call; None for nowhere.
    """

    samples: Annotated[int, count(1, MAX_DRAWS, most=64)] = 1
    mark: Annotated[str | None, Setting(unit="phrase", advanced=True)] = None
    store: Annotated[ConditionStore | None, PYTHON] = None


@dataclass(frozen=True, kw_only=True)
class UpscaleSettings(DrawSettings):
    """What may be set of ``upscale``.

    Attributes:
        boldness: How much the model invents, from faithful to bold: the temperature is 0 at 0, the model's at 0.5, and
            its boldest at 1. ``temperature`` overrides it.
        calm_edges: How much lower any ``temperature`` is at edges, in [0, 1], where samples break lines into specks. 0
            for off; None for the model's default, whatever the temperature.
        calm_faces: How much lower the temperature is within faces of 36 to 120 pixels, in [0, 1], where samples garble
            lips and lashes. 0 for off; None for off if ``temperature`` is given, else for what lowers it to 0.4.
        guide: Another enlargement of the same images, whose latents are blended in. See ``guide.Guide``. ``(B or 1, C,
            s * h, s * w)`` in [0, 1]; alpha is ignored, other sizes are resized. It is first changed to match ``lr``
            when shrunk, as far as ``guide_match`` in the model file says (1, the default: fully).
        guide_strength: Share of the guide's latents that is kept, in [0, 1]. A number, or a map as of ``temperature``.
            0 ignores the guide, 1 gives it back as changed. None for the model's default, or 0.5; that of the model's
            own guide follows the temperature, see ``guide_share``.
        guide_bounded: Whether the guide's latents are scaled down where they deviate more than those that are drawn.
            Needed when results become guides again and again, because their detail would otherwise build up.
        factor: Total enlargement: one bicubic resize, up or down, follows the model's scale. 0 for that scale.
        longest_side: Longest side of the result in pixels, reached the same way; 0 for no limit. Overrides ``factor``.
        match_source: Whether to change the pictures so that they shrink to the LR image again. See the task of that
            name.
    """

    boldness: Annotated[float | None, share("0 is faithful, 0.5 the model's default, 1 bold.")] = None
    calm_edges: Annotated[float | None, CALM_EDGES] = None
    calm_faces: Annotated[
        float | None, share("0 is off, 1 leaves no temperature within faces.", label="faces", advanced=True)
    ] = None
    guide: Annotated[Tensor | None, Setting()] = None
    guide_strength: Annotated[Strength | None, share("0 ignores the guide, 1 keeps all of it.", label="guided")] = None
    guide_bounded: Annotated[bool, PYTHON] = False
    factor: Annotated[float, nonnegative("0 leaves it to the model.", label="x", most=16, step=0.05)] = 0.0
    longest_side: Annotated[
        int, count(0, note="0 leaves it to the model.", label="side", unit="pixels", most=16384, advanced=True)
    ] = 0
    match_source: Annotated[bool, Setting(label="matched", advanced=True)] = False


@dataclass(frozen=True, kw_only=True)
class UpscaleVideoSettings(TileSettings):
    """What may be set of ``upscale_video``.

    Attributes:
        calm_edges: As in ``upscale``.
        seed: Of the first frame, which is the picture that ``upscale`` draws with it; that of frame t is ``seed + t``.
        steadiness: Share of the moved frame's latents that is kept, in [0, 1]. 0 draws every frame independently; 1
            refreshes nothing, and blurs in the long run.
        before: As in ``colorize_video``.
    """

    calm_edges: Annotated[float | None, CALM_EDGES] = None
    steadiness: Annotated[float, share("0 draws every frame independently.", node=False)] = STEADINESS
    before: Annotated[list[Tensor] | None, PYTHON] = None


@dataclass(frozen=True, kw_only=True)
class RestoreSettings(DrawSettings):
    """What may be set of ``restore``.

    Attributes:
        temperature: Standard deviation of the latents: 0 gives the mean of all possible photographs. None for the
            model's default. A number, one per level or maps, as in ``upscale``.
        size: Height and width of the original, whose extension is cropped away; None keeps all.
        gray: Whether the original was gray, so that what comes back is gray, too.
    """

    size: Annotated[tuple[int, int] | None, PYTHON] = None
    gray: Annotated[bool, Setting(command=False)] = False


@dataclass(frozen=True, kw_only=True)
class ColorSettings(RunOptions):
    """What may be set of ``colorize`` and of ``colorize_video``.

    Attributes:
        temperature: Standard deviation of the coarsest latents, which decide on the colors. None for the model's
            default.
        detail: Standard deviation of the finest latents; those between are interpolated geometrically. None: the
            default.
        coherence: Share of the noise of the coarsest grid that similar places have in common, in [0, 1], so that what
            belongs together gets one color. 0 draws every place independently. None: the default.
        seed: Sample s of every image is drawn with ``seed + s``, in [0, 2^64).
        saturation: Factor on the chroma, before the colors are fitted into the gamut. None for the model's default,
            which is applied before hints; with ``latents``, whose colors are right already, 1.
        working_size: Shorter side in pixels of the image on which colors are decided. None for the model's default.
        hints: The wanted colors.
        latents: From ``encode_colors``, 1 or B items of any size: colors to take over.
        latents_strength: Share of the latents' variance that is taken over, in [0, 1]; the rest is drawn.
        latents_levels: How many of the coarsest levels are taken over; 0 for all.
        gamut: What becomes of colors for which the luma leaves no room. "compress": they lose saturation; luma and hue
            stay. "clip": they are cut off, as most programs do, and the luma changes.
    """

    temperature: Annotated[float | None, nonnegative("0 is the calmest, 1 the model's own spread.")] = None
    detail: Annotated[float | None, nonnegative(advanced=True)] = None
    coherence: Annotated[float | None, share("0 draws every place independently.", advanced=True)] = None
    seed: Annotated[int, count(0, 2**64 - 1)] = 0
    saturation: Annotated[float | None, nonnegative(most=3)] = None
    working_size: Annotated[int | None, count(16, 4096, "It is in pixels.", unit="pixels", step=16, advanced=True)] = (
        None
    )
    hints: Annotated[Hints | None, PYTHON] = None
    latents: Annotated[Sequence[Tensor] | None, PYTHON] = None
    latents_strength: Annotated[float, share(advanced=True, command=False)] = 1.0
    latents_levels: Annotated[int, count(0, note="0 means all.", most=8, advanced=True, command=False)] = 2
    gamut: Annotated[Gamut, Setting(advanced=True)] = "compress"


@dataclass(frozen=True, kw_only=True)
class ColorizeSettings(ColorSettings):
    """What may be set of ``colorize``.

    Attributes:
        samples: Colorings per image, at least 1.
        hint_steps: How far hints spread over what they are painted on, in positions of the finest grid, four pixels of
            the working size each. They stop at its edges, see ``spread_hints``. 0: only what the model makes of them.
        memory: Photographs whose colors are taken over, object by object, see ``remember``; every seed uses another
            part of it, temperature 0 all. Where they show nothing similar, and with "model" everywhere, the memory that
            the model's file recommends is used, if any, unless latents or a palette determine the colors. None: no
            memory.
        cast: Color cast of the whole picture, in [-1, 1]: 1 leaves it as drawn; 0 gives that of the coloring at
            temperature 0; -1 removes it.
        vivid: Factor by which colors move away from their mean, at least 0; 1 leaves them as drawn.
        skin: Whether faces are looked for and get a color of skin, another one for every seed. Not if latents or a
            palette determine the colors; see ``tasks.skin``.
        mark: A secret phrase by which ``verify`` knows the results again without their seed. As in ``upscale``.
    """

    samples: Annotated[int, count(1, MAX_DRAWS, most=64)] = 1
    hint_steps: Annotated[int, count(0, most=200, advanced=True)] = 20
    memory: Annotated[ColorMemory | Literal["model"] | None, PYTHON] = "model"
    cast: Annotated[
        float, Setting(float, Range(-1, 1), "1 is as drawn, 0 that of the calmest coloring, -1 no cast.", advanced=True)
    ] = 1.0
    vivid: Annotated[float, nonnegative("1 is as drawn.", most=2, advanced=True)] = 1.0
    skin: Annotated[bool, Setting(advanced=True)] = True
    mark: Annotated[str | None, Setting(unit="phrase", advanced=True)] = None


@dataclass(frozen=True, kw_only=True)
class ColorizeVideoSettings(ColorSettings):
    """What may be set of ``colorize_video``.

    Attributes:
        coherence: As in ``colorize``. Places are similar as they are in the first frame.
        seed: One for all frames, in [0, 2^64).
        hints: One for all frames, or one per frame; they do not spread.
        latents: As in ``colorize``, 1 item.
        carry: Share of the previous frame's coarsest chroma in each frame, in [0, 1). More is steadier, and slower to
            follow a cut.
        chunk: Frames decoded together. Changes memory and time, not the result.
        before: For a clip in parts: an empty list with the first part, and the same list with all others. It receives
            what the next part needs. None if these are all frames.
    """

    carry: Annotated[float, Setting(float, Range(0, 1, open=True))] = 0.0
    chunk: Annotated[int, count(1, node=False, command=False)] = AT_ONCE
    before: Annotated[list[Tensor] | None, PYTHON] = None


_KINDS = UpscaleSettings, UpscaleVideoSettings, ColorizeSettings, ColorizeVideoSettings
SETTINGS: dict[str, Setting] = {  # numbers by name, in all tasks and on the command line
    "sensitivity": share("Higher finds more."),
    "exposure": Setting(float, Range(-MAX_EXPOSURE, MAX_EXPOSURE), "It is in stops."),
    "strength": share("0 is the photograph as it is, 1 as drawn."),
    "radius": RADIUS,
    "probes": count(0),
    "terms": count(1),
    "smallest": nonnegative("It is in pixels."),
    "largest": nonnegative("It is in pixels; 0 is no limit."),
    "number": count(0, note="0 is all of them."),
    "frames": count(1, MAX_DRAWS),
    **{each.name: each.setting for kind in _KINDS for each in options_of(kind) if each.setting.kind},
}


def check_setting(name: str, value: object) -> None:
    """Raise FlowError unless a value is a number in the range of ``SETTINGS[name]``."""
    check_range(name, value, SETTINGS[name])


def with_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace settings, arguments of a task by name, that are None by the model's defaults."""
    return {**settings, **model_defaults(flow, settings)}


def model_defaults(flow: FlowModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's defaults of settings that are None.

    If ``coherence`` is among the settings, the result also holds the model's ``coherence_scales``; likewise with
    ``guide_strength`` its ``guide_match`` and ``guide_sharpness``, if there is a guide. The strength of the model's own
    guide follows the temperature, see ``guide_share``.
    """
    config = {name: getattr(flow.config, name) for name in SAMPLING_FIELDS if hasattr(flow.config, name)}
    if "temperatures" in config:  # of a colorizer
        config["temperature"], config["detail"] = config.pop("temperatures")
    if settings.get("latents") is not None or settings.get("reference") is not None:
        config["saturation"] = 1.0  # their colors are right already
    if settings.get("boldness") is not None and "temperature" in config:
        config["temperature"] = _temperature_at(config, settings["boldness"])
    if "calm_edges" in config:  # of an upscaler
        is_given = settings.get("temperature") is not None or settings.get("temperatures")  # per level, of a node
        config["calm_faces"] = 0.0 if is_given else calm_share(config["temperature"])
    has_guide = flow.guide is not None or settings.get("guide") is not None
    config["guide_strength"] = config.get("guide_strength", 0.5) if has_guide else 0.0  # none is used
    if settings.get("guide_strength", 0) is None and settings.get("guide") is None and has_guide:
        temperature = settings.get("temperature")
        temperature = config["temperature"] if temperature is None else temperature
        config["guide_strength"] = guide_share(flow.config, temperature)
    missing = [name for name, value in settings.items() if value is None and name in config]
    defaults: dict[str, Any] = {name: float(config[name]) for name in missing}
    if "guide_strength" in settings and has_guide:
        defaults |= {name: config[name] for name in ("guide_match", "guide_sharpness") if name in config}
    if "coherence" in settings and "coherence_scales" in config:
        defaults["coherence_scales"] = list(config["coherence_scales"])
    return defaults


def calm_share(temperature: float) -> float:
    """Return the share by which ``IN_FACES`` is lower than a temperature; 0 where it is not."""
    return round(1 - IN_FACES / temperature, 4) if temperature > IN_FACES else 0.0


def guide_share(config: Any, temperature: Temperature) -> float:
    """Compute the share of a model's own guide that suits the highest of the temperatures of levels and places.

    0 up to the first of ``guide_temperatures`` in the model's configuration, its ``guide_strength`` from the second on,
    and linear between them. Without a guide it is 0.
    """
    strength: float = config.guide_strength if getattr(config, "guide_layers", 0) else 0.0
    low, high = getattr(config, "guide_temperatures", (0.0, 0.0))
    if high <= low:
        return strength
    rise = (highest(temperature) - low) / (high - low)
    return round(strength * min(1.0, max(0.0, rise)), 4)


def highest(temperature: Temperature) -> float:
    """Return the highest of the temperatures of levels and places."""
    levels = [temperature] if isinstance(temperature, float | int | Tensor) else temperature
    numbers = (float(tau.max()) if isinstance(tau, Tensor) else tau for tau in levels if torch.as_tensor(tau).numel())
    return round(max(numbers, default=0.0), 6)  # maps are in float32


def _temperature_at(config: Mapping[str, Any], boldness: float) -> float:
    """Compute a temperature: 0 at boldness 0, the model's default at 0.5, and its boldest at 1; linear between them."""
    usual = config["temperature"]
    boldest = config.get("boldest_temperature") or BOLDEST * usual
    return usual * min(1.0, 2 * boldness) + (boldest - usual) * max(0.0, 2 * boldness - 1)
