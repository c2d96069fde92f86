"""Options that several tasks have, and how an option is described: its type, range, default and help.

A field of a task's settings is the only description of an option: its keyword in Python, its input of the node, its
option on the command line, its place in recipes and in docs/options.md are read from it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor
from typing_extensions import Self

from ..errors import say
from ..flows.model import FlowModel
from ..flows.prior import Temperature
from ..models.fields import annotated_types, check_value
from .condition_cache import ConditionStore
from .defaults import model_defaults
from .progress import Precision, Progress, part_of
from .ranges import MAX_DRAWS, Setting, count, nonnegative, share

HALO = 24  # LR pixels; how far tiles then differ from the whole image: docs/decisions/0004

log = logging.getLogger("flowcore")


def python(help: str) -> Setting:
    """Describe an option that only callers from Python have."""
    return Setting(node=False, command=False, help=help)


def draws(help: str) -> Setting:
    """Describe a number of samples."""
    return count(1, MAX_DRAWS, most=64, help=help)


Strength: TypeAlias = float | Tensor
"""Part of a guide's latents that is kept, in [0, 1]: a number, or a map as of temperatures that covers the image."""
GUIDE_STRENGTH = share(
    "0 ignores the guide, 1 keeps all of it.",
    label="guided",
    advanced=True,
    help="Share of the guide's latents that is kept, in [0, 1]. A number, or a map as of ``temperature``. 0 ignores "
    "the guide, 1 gives it back as changed. None for the model's default, or 0.5; that of the model's own "
    "guide follows the temperature, see ``guide_share``.",
)
TEMPERATURE = nonnegative(
    "0 is the calmest, 1 the model's own spread.",
    label="tau",
    help="Standard deviation of the latents: 0 is smoothest, 1 the spread that the model learned. One, >= 0, or one "
    "per level, finest first. Each may be a map ``(1 or B, 1, any height, any width)`` that covers the image, "
    "for example from ``prior.masked_temperature``. None: the default stored in the model file, up to which "
    "variety costs hardly any fidelity: docs/decisions/0015.",
)
SEED = count(
    0,
    2**64 - 1,
    help="Sample s of every image is drawn with ``seed + s``, in [0, 2^64), of which the low 32 bits count: n and "
    "n + 2^32 give one picture.",
)
MARK = Setting(
    unit="phrase",
    advanced=True,
    help="A secret phrase by which ``verify`` knows the results again without their seed. See "
    "``prior.sample_latents``. The results differ from those without, and are no worse. None for no mark.",
)


STORE = python("Where the conditions of the images are kept for the next call; None for nowhere.")
TILE = count(
    0,
    note="0 chooses by free memory.",
    unit="pixels",
    most=4096,
    advanced=True,
    help="Side of the tiles in LR pixels, at least 32; 0 for the whole image if memory allows, else the largest "
    "tile that fits. Changes memory and time, not the picture (at most 1/255).",
)
HALO_SIDE = count(0, node=False, command=False, help="LR pixels read around every tile.")


class Option(NamedTuple):
    """An option of a task: a field of its settings."""

    name: str
    type: Any
    setting: Setting
    default: Any  # None: what the model's file states, or nothing
    text: str


@cache
def options_of(kind: type["RunOptions"]) -> list[Option]:
    """List the options of a task by the class of its settings, its own before those of every task."""
    typed = [(name, *of) for name, of in annotated_types(kind).items() if name not in kind.WITHOUT]
    typed.sort(key=lambda each: each[0] in RunOptions.__annotations__)
    return [Option(name, type, setting, getattr(kind, name), setting.help) for name, type, setting in typed]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a task runs; only a lower precision changes the result beyond rounding."""

    WITHOUT: ClassVar[tuple[str, ...]] = ()  # fields that a task inherits, but does not take as options

    precision: Annotated[
        Precision,
        Setting(
            advanced=True,
            help="Of encoder and conditioners; the flow itself stays in float32. On a CPU float16 becomes float32. "
            '"auto": the device\'s fastest, see ``device.preferred_precision``. "tf32": float32 on an NVIDIA GPU\'s '
            "tensor cores; elsewhere the same as float32.",
        ),
    ] = "float32"
    batch: Annotated[
        int | None,
        count(
            0,
            note="0 chooses by the image's size.",
            node=False,
            command=False,
            help="Images or samples that go through the flow at once; None or 0 chooses by their size.",
        ),
    ] = None
    progress: Annotated[
        Progress | None,
        python("Called with ``(done, total, preview)`` as the work advances; a preview with every finished picture."),
    ] = None
    cancelled: Annotated[
        Callable[[], bool] | None,
        python("Asked before every network layer; returns True (or raises) to stop, for which Cancelled is raised."),
    ] = None
    notify: Annotated[
        Callable[[str], None] | None,
        python("Called with a sentence when something differs from what was asked for; None logs it."),
    ] = None

    def __post_init__(self) -> None:
        for name, (kind, setting) in annotated_types(type(self)).items():
            value = check_value(name, getattr(self, name), kind, setting.bounds, setting.note)
            object.__setattr__(self, name, value)

    def tell(self, template: str, /, **values: object) -> None:
        """Pass a sentence, see ``say``, to the caller, or else to the log."""
        (self.notify or log.warning)(say(template, **values))

    def part(self, start: float, share: float) -> dict[str, Any]:
        """Return these options for one task among several, with its part of the progress; see ``part_of``."""
        options = {name: vars(self)[name] for name in RunOptions.__annotations__ if name in vars(self)}
        options = {name: value for name, value in options.items() if name not in self.WITHOUT}
        return {**options, "progress": part_of(self.progress, start, share)}

    def resolved(self, flow: FlowModel) -> Self:
        """Replace settings that are None by the model's defaults."""
        types, stated = annotated_types(type(self)), model_defaults(flow, vars(self))
        return replace(self, **{name: types[name][1].kind(value) for name, value in stated.items() if name in types})

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
class BatchOptions(RunOptions):
    """Options of a task that needs full precision."""

    WITHOUT = ("precision",)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(RunOptions):
    """Options of a task that is not done in batches."""

    WITHOUT = ("precision", "batch")


@dataclass(frozen=True, kw_only=True)
class TileSettings(RunOptions):
    """Options of every task that draws pictures in tiles."""

    temperature: Annotated[Temperature | None, TEMPERATURE] = None
    seed: Annotated[int, SEED] = 0
    tile: Annotated[int, TILE] = 0
    halo: Annotated[int, HALO_SIDE] = HALO

    @property
    def tau(self) -> Temperature:
        """The temperature of resolved settings."""
        assert self.temperature is not None
        return self.temperature


@dataclass(frozen=True, kw_only=True)
class DrawSettings(TileSettings):
    """Options of every task that draws several pictures of an image in tiles."""

    samples: Annotated[int, draws("Pictures per image, at least 1.")] = 1
    mark: Annotated[str | None, MARK] = None
    store: Annotated[ConditionStore | None, STORE] = None
