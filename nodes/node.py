"""The base class of our nodes: texts from the English locale, and values checked against the schema."""

import hashlib
import json
import math
import operator
import os
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from ..flowcore import FlowError
from .host.compat import io
from .host.paths import input_path
from .host.ui import Notes
from .sockets import BY_PICTURE, SOCKETS, TASKS, WIRES, ModelByPicture, shown, to_image
from .widgets import OWN, FileNames

WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "COLOR"}


def _english(file: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "locales" / "en" / file).read_text(encoding="utf-8"))


# All texts of the nodes. The other languages translate these files, and the frontend reads them, too.
WORDS = _english("nodeDefs.json")
TEXTS: dict[str, Any] = _english("main.json")["flowcore"]


@cache
def _without_path(kind: type[FlowError]) -> type[FlowError]:
    """Derive a class of errors of the same name, whose module is "flowcore"."""
    return type(kind.__name__, (kind,), {"__module__": "flowcore"})


@cache
def _inputs(run: Callable[..., Any]) -> dict[str, tuple[Callable[[str], Any], bool]]:
    """Read the annotations of a `run`, see `FlowNode`: for each input what describes it, and if it takes a list."""
    found: dict[str, tuple[Callable[[str], Any], bool]] = {}
    for name, hint in get_type_hints(run, include_extras=True).items():
        if name == "return":
            continue
        options: dict[str, Any] = {}
        if type(None) in get_args(hint):
            hint, options = get_args(hint)[0], {"optional": True}
        is_list = get_origin(hint) is list
        hint = get_args(hint)[0] if is_list else hint
        describe = hint.__metadata__[0] if get_origin(hint) is Annotated else WIRES[hint].Input
        found[name] = partial(describe, **options), is_list
    return found


class FlowNode(io.ComfyNode):
    """A node; every run has an instance, whose method `run` gets a value of every input.

    The annotations of `run` describe the inputs: `Annotated[type, describe]`, where `describe(name)` returns the host's
    input, or a class of `WIRES` in `sockets.py`; `... | None` is an optional input. If one is a `list[...]`, the node
    runs once for the lists of all inputs, of which the others take the first value. Saved workflows hold widget values
    and wires by position: append inputs and outputs, never reorder them. The node's id is the name of the class, and
    its texts come from the English locale.
    """

    MENU: ClassVar[str | None] = None  # None: the name of the module
    ALIASES: ClassVar[str]  # words under which the search finds it, separated by ", "
    ESSENTIALS: ClassVar[str | None] = None  # its place among the host's essential nodes, if it has one
    OUTPUTS: ClassVar[tuple[Any, ...]] = ()  # the host's, without display names and tooltips
    HIDDEN: ClassVar[tuple[Any, ...]] = ()  # inputs besides `unique_id`
    # Whether it shows text. Text reaches the history of every run, also of one that finds the result cached.
    REPORTS: ClassVar[bool] = True
    LIVE: ClassVar[str] = ""  # "small" or "detail": what is made again of its pictures while numbers are dragged
    IS_OUTPUT_NODE: ClassVar[bool] = False  # whether it runs although nothing is connected to it

    run: Callable[..., Any]

    @classmethod
    def define_schema(cls) -> Any:
        # The host runs a clone of the class, whose name is another.
        node_id = next((kind.__name__ for kind in cls.__mro__ if kind.__name__ in WORDS), cls.__name__)
        words, annotated = WORDS[node_id], _inputs(cls.run)
        inputs = [describe(name) for name, (describe, _) in annotated.items()]
        texts = [words["inputs"][described.id] for described in inputs]
        texts += [words["outputs"][str(place)] for place in range(len(cls.OUTPUTS))]
        for described, text in zip([*inputs, *cls.OUTPUTS], texts, strict=True):
            described.display_name, described.tooltip = text["name"], text["tooltip"]
        return io.Schema(
            node_id=node_id,
            display_name=words["display_name"],
            category=f"flowcore/{cls.MENU or cls.__module__.rpartition('.')[2]}",
            description=words["description"],
            search_aliases=cls.ALIASES.split(", "),
            essentials_category=cls.ESSENTIALS,
            inputs=inputs,
            outputs=list(cls.OUTPUTS),
            hidden=[io.Hidden.unique_id, *cls.HIDDEN] if cls.REPORTS else [],
            has_intermediate_output=cls.REPORTS and not cls.IS_OUTPUT_NODE,
            is_output_node=cls.IS_OUTPUT_NODE,
            is_input_list=any(is_list for _, is_list in annotated.values()),
        )

    @classmethod
    def execute(cls, **values: Any) -> Any:
        try:
            return cls().answer(cls.validated(values))
        except FlowError as error:
            # The host shows an error's class and module before its sentence; the module's name is a path on the server.
            error.__class__ = _without_path(type(error))
            raise error  # not a bare raise, which keeps the old class in Python 3.10

    @classmethod
    def validated(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Check values against the schema, drop others, and fill in defaults; None for settings left to the model."""
        result: dict[str, Any] = {}
        for wanted in cls.SCHEMA.inputs:  # which the host has built by `define_schema`
            name, is_list = wanted.id, _inputs(cls.run)[wanted.id][1]
            if name in values and cls.SCHEMA.is_input_list:
                every = [_validated(wanted, value) for value in values[name]]
                result[name] = every if is_list and every != [None] else every[0]
            elif name in values:
                result[name] = _validated(wanted, values[name])
            elif wanted.optional:
                default = _or_own(wanted, wanted.default) if str(wanted.get_io_type()) in WIDGETS else None
                result[name] = [default] if is_list and default is not None else default
            else:
                raise FlowError(f"{name} is missing: nothing came along its wire. Connect it.")
        return result

    @classmethod
    def validated_numbers(cls, values: dict[str, Any]) -> dict[str, Any] | None:
        """Check numbers that are not whole against the schema; None if there are others."""
        wanted = {each.id: each for each in cls.SCHEMA.inputs if str(each.get_io_type()) == "FLOAT"}
        return {k: _validated(wanted[k], v) for k, v in values.items()} if values.keys() <= wanted.keys() else None

    def answer(self, values: dict[str, Any]) -> Any:
        """Return the host's output for valid values: here what `run` makes of them."""
        return self.run(**values)

    def output(self, *values: Any, **ui: Any) -> Any:
        """Pass values on, pictures (B, C, H, W), or lists of them, as IMAGE; show `ui`, notes before its text."""
        if "text" in ui or self.notes.lines:  # the keys of all runs over a list must be the same
            ui["text"] = [*self.notes.lines, *ui.get("text", [])]
        if ui:  # the notes alone: the page shows them as warnings, and workflows/api/batch.py reports them
            ui["flowcore_notes"] = self.notes.lines
        return io.NodeOutput(*map(_sent, self.OUTPUTS, values), ui=ui or None)

    @cached_property  # which the host's lock on attributes does not see
    def notes(self) -> Notes:
        return Notes(self.SCHEMA.display_name, self.hidden.unique_id)


class FileNode(FlowNode):
    """A node whose only input names a file."""

    @classmethod
    def locate(cls, name: str) -> Path | None:
        """Find the file, here in the input folder; None if there is none."""
        return input_path(name)

    @classmethod
    def missing(cls, name: Any) -> str:
        """Return the message of the error for a name without a file."""
        raise NotImplementedError

    @classmethod
    def found(cls, name: str) -> Path:
        """Find the file, or raise a FlowError."""
        if path := cls.locate(name):
            return path
        raise FlowError(cls.missing(name))

    @classmethod
    def validate_inputs(cls, **named: Any) -> bool | str:
        name = next(iter(named.values()), None)  # None: it comes along a wire, or the host finds it missing
        return name is None or (isinstance(name, str) and cls.locate(name) is not None) or cls.missing(name)

    @classmethod
    def fingerprint_inputs(cls, **named: Any) -> Any:
        name = next(iter(named.values()), None)
        return file_fingerprint(cls.locate(name) if isinstance(name, str) else None)


def file_fingerprint(path: Path | None) -> str:
    """Hash what makes a node run again when its file has changed; the host writes it into every file that it saves."""
    if path is None:
        return ""
    stat = path.stat()
    return hashlib.sha256(os.fsencode(f"{path} {stat.st_size} {stat.st_mtime_ns}")).hexdigest()


def _sent(output: Any, value: Any) -> Any:
    """Convert pictures for an output of IMAGE: a batch, or a list of them."""
    if output.get_io_type() != "IMAGE":
        return value
    return [*map(to_image, value)] if isinstance(value, list) else to_image(value)


def _validated(described: Any, value: Any) -> Any:
    # The host (ComfyUI) checks only what is typed into widgets, except for NaN, and nothing that comes along a wire.
    name, kind = described.id, str(described.get_io_type())
    if isinstance(value, ModelByPicture) and BY_PICTURE not in described.extra_dict.get(TASKS, ()):
        raise FlowError(
            f"{name}: the upscaler that suits the picture is for nodes that enlarge pictures, and this one needs a "
            "certain model. Choose one in Load Flow Model, such as srflow-x4."
        )
    if kind in SOCKETS:
        return None if value is None and described.optional else SOCKETS[kind](value, name)
    if kind in ("INT", "FLOAT"):
        number = _integer(value, name) if kind == "INT" else _finite(value, name)
        least, most = described.min, described.max
        if (least is not None and number < least) or (most is not None and number > most):
            raise FlowError(f"{name} must lie in {least} to {most}; got {number:.6g}. Choose a value in between.")
        return _or_own(described, number)
    if kind == "BOOLEAN" and not isinstance(value, bool):
        raise FlowError(f"{name} is on or off; got {shown(value)}. Send true or false.")
    if kind in ("STRING", "COMBO", "COLOR"):
        if not isinstance(value, str):
            raise FlowError(f"{name} must be text; got {shown(value)}. Send a string.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FlowError(f"{name} holds half of a character (a lone surrogate). Type it again.") from None
        options = getattr(described, "options", None)
        if options is not None and not isinstance(options, FileNames) and value not in options:
            raise FlowError(f"{name} must be one of {', '.join(options)}; got {shown(value)}.")
    return value


def _or_own(described: Any, value: Any) -> Any:
    """Turn a value below 0 into None, the model's own, for an input whose slider begins at `OWN`."""
    return None if getattr(described, "min", None) == OWN and value < 0 else value


def _integer(value: Any, name: str) -> int:
    if isinstance(value, float) and value.is_integer():  # as nodes for arithmetic make it
        return int(value)
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise FlowError(f"{name} must be a whole number; got {shown(value)}. Send one, or connect one.") from None


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise FlowError(f"{name} must be a finite number; got {shown(value)}. Send one, or connect one.")
    return number
