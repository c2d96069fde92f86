"""The base class of our nodes: texts from the English locale, and values checked against the schema."""

import json
import math
import operator
import os
from collections.abc import Callable
from copy import copy
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from flowcore import FlowError
from flowcore.engine.options import Option, RunOptions, options_of
from flowcore.errors import Argument, Message
from flowcore.flows.model import TASKS as MODELS_BY_TASK
from flowcore.models.identity import fingerprint

from .host.compat import io
from .host.paths import input_path
from .host.ui import Notes, send_failure, translatable
from .sockets import BY_PICTURE, SOCKETS, TASKS, WIRES, ModelByPicture, shown, to_image
from .widgets import FROM_MODEL, FileNames, of_option

WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "COLOR"}


def _english(file: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "locales" / "en" / file).read_text(encoding="utf-8"))


# All texts of the nodes. The other languages translate these files, and the frontend reads them, too.
WORDS = _english("nodeDefs.json")
TEXTS: dict[str, Any] = _english("main.json")["flowcore"]


@cache
def _inputs(run: Callable[..., Any]) -> dict[str, tuple[Callable[[str], Any], bool]]:
    """Read the annotations of a `run`: by input, the function that describes it, and whether it takes a list."""
    inputs: dict[str, tuple[Callable[[str], Any], bool]] = {}
    for name, hint in get_type_hints(run, include_extras=True).items():
        if name in _settings(run):
            inputs |= {each.name: (of_option(each), False) for each in options_of(hint) if each.setting.node}
            continue
        if name == "return":
            continue
        options: dict[str, Any] = {}
        if type(None) in get_args(hint):
            hint, options = get_args(hint)[0], {"optional": True}
        is_list = get_origin(hint) is list
        hint = get_args(hint)[0] if is_list else hint
        describe = hint.__metadata__[0] if get_origin(hint) is Annotated else WIRES[hint].Input
        inputs[name] = partial(describe, **options), is_list
    return inputs


@cache
def _settings(run: Callable[..., Any]) -> dict[str, type[RunOptions]]:
    """Find the parameters of a `run` that stand for several inputs: the options of a task."""
    classes = {name: hint for name, hint in get_type_hints(run).items() if isinstance(hint, type)}
    return {name: kind for name, kind in classes.items() if get_origin(kind) is None and issubclass(kind, RunOptions)}


class FlowNode(io.ComfyNode):
    """A node. The host calls `execute`, which checks the values and passes them by `answer` to `run` of a new instance.

    The annotations of `run` describe the inputs. Each is `Annotated[type, describe]`, where `describe(name)` returns
    the host's input, such as `samples: Annotated[int, widgets.integer(1, 1, 64)]`; or it is a class of `WIRES` in
    `sockets.py`. `... | None` is an optional input; the class of a task's settings, such as `UpscaleSettings`, stands
    for one input per option, in the order of the English locale. If any input is a `list[...]`, the node runs once for
    the whole list, and the other inputs take their first value. `run` returns `output(...)`. The node's id is the name
    of the class, and its texts come from the English locale.
    """

    # Append only: saved workflows hold widget values and wires by position, so inputs and outputs must keep theirs.
    run: Callable[..., Any]
    MENU: ClassVar[Literal["enlarge", "color", "repair", "trace", "files", "experiments"]] = "experiments"
    ALIASES: ClassVar[str]  # search words, separated by ", "
    OUTPUTS: ClassVar[tuple[Any, ...]] = ()  # the host's outputs, without display names and tooltips
    HIDDEN: ClassVar[tuple[Any, ...]] = ()  # hidden inputs besides `unique_id`
    # Whether the node shows text. Text reaches the history of every run, even of one that finds the result cached.
    REPORTS: ClassVar[bool] = True
    PREVIEW: ClassVar[str] = ""  # redrawn while numbers are dragged: "small", "whole", a "detail", or nothing
    IS_OUTPUT_NODE: ClassVar[bool] = False  # whether it runs even if nothing is connected to its outputs

    @classmethod
    def define_schema(cls) -> Any:
        # The host runs a clone of the class under another name, so its bases have the id.
        node_id = next((kind.__name__ for kind in cls.__mro__ if kind.__name__ in WORDS), cls.__name__)
        words, annotated = WORDS[node_id], _inputs(cls.run)
        inputs = [describe(name) for name, (describe, _) in annotated.items()]
        order = [*words["inputs"]]  # options of settings have another; new ones come last, with texts of their own
        inputs.sort(key=lambda spec: order.index(spec.id) if spec.id in order else len(order))
        outputs = [copy(output) for output in cls.OUTPUTS]  # two nodes may share them, with texts of their own
        own = {spec.id: {"name": spec.id.replace("_", " "), "tooltip": spec.tooltip} for spec in inputs if spec.tooltip}
        texts = [(own | words["inputs"])[spec.id] for spec in inputs]
        texts += [words["outputs"][str(place)] for place in range(len(outputs))]
        for spec, text in zip([*inputs, *outputs], texts, strict=True):
            spec.display_name, spec.tooltip = text["name"], text["tooltip"]
        return io.Schema(
            node_id=node_id,
            display_name=words["display_name"],
            category=f"flowcore/{cls.MENU}",
            description=words["description"],
            search_aliases=cls.ALIASES.split(", "),
            inputs=inputs,
            outputs=outputs,
            hidden=[io.Hidden.unique_id, *cls.HIDDEN] if cls.REPORTS else [],
            has_intermediate_output=cls.REPORTS and not cls.IS_OUTPUT_NODE,
            is_output_node=cls.IS_OUTPUT_NODE,
            is_input_list=any(is_list for _, is_list in annotated.values()),
        )

    @classmethod
    def execute(cls, **values: Any) -> Any:
        try:
            output = cls().answer(cls.validated(values))
        except FlowError as error:
            send_failure(error.message)
            # The host shows the class of an error with its module, which here would be a path on the server.
            error_class = type(type(error).__name__, (FlowError,), {"__module__": "flowcore"})
            raise error_class(str(error)) from error
        if output.ui and "text" in output.ui:  # the same texts, for the page to translate
            ui = {**output.ui, "flowcore_messages": translatable(output.ui["text"])}
            output = io.NodeOutput(*output.args, ui=ui)
        return output

    @classmethod
    def validated(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Check values against the schema, drop unknown ones, and fill in defaults."""
        result: dict[str, Any] = {}
        for spec in cls.SCHEMA.inputs:  # built by the host with `define_schema`
            name, (_, is_list) = spec.id, _inputs(cls.run)[spec.id]
            if name in values:
                received = values[name] if cls.SCHEMA.is_input_list else [values[name]]  # the host passes lists here
                valid = [_validated(spec, value) for value in received]
            elif spec.optional:
                is_widget = str(spec.get_io_type()) in WIDGETS
                valid = [_or_model_value(spec, spec.default) if is_widget else None]
            else:
                raise FlowError("{name} is missing: nothing came through its wire. Connect it.", name=Argument(name))
            result[name] = valid if is_list and valid != [None] else valid[0]  # [None]: no wire
        return result

    @classmethod
    def validated_numbers(cls, values: dict[str, Any]) -> dict[str, Any] | None:
        """Check values of FLOAT inputs against the schema; None if another input is among them."""
        floats = {each.id: each for each in cls.SCHEMA.inputs if str(each.get_io_type()) == "FLOAT"}
        if not values.keys() <= floats.keys():
            return None
        return {name: _validated(floats[name], value) for name, value in values.items()}

    def answer(self, values: dict[str, Any]) -> Any:
        """Return the host's output for valid values."""
        return self.run(**self.arguments(values))

    @classmethod
    def arguments(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `run`: the values of inputs, those of its settings as one object."""
        for name, kind in _settings(cls.run).items():
            options = {each.name: each for each in options_of(kind) if each.setting.node and each.name in values}
            chosen: dict[str, Any] = {each: _or_none(option, values[each]) for each, option in options.items()}
            values = {each: value for each, value in values.items() if each not in options}
            values[name] = kind(**chosen)
        return values

    def output(self, *values: Any, **ui: Any) -> Any:
        """Build the host's NodeOutput: pictures (B, C, H, W) become IMAGEs, and the notes come before the text in `ui`.

        The node folds everything after the first empty line of the text.
        """
        if "text" in ui or self.notes.lines:  # the keys of all runs over a list must be the same
            ui["text"] = [*self.notes.lines, *ui.get("text", [])]
        if ui:  # the page shows these as warnings, and workflows/api/batch.py reports them
            ui["flowcore_notes"] = [*self.notes.lines]
        return io.NodeOutput(*map(_to_wire, self.OUTPUTS, values), ui=ui or None)

    @cached_property  # writes into `__dict__`, because the host forbids setting attributes of a node
    def notes(self) -> Notes:
        return Notes(self.SCHEMA.display_name, self.hidden.unique_id)


class FileNode(FlowNode):
    """A node whose only input names a file. Subclasses add `missing_message`, and `locate` for other folders."""

    @classmethod
    def locate(cls, name: str) -> Path | None:
        """Find the file, here in the input folder; None if there is none."""
        return input_path(name)

    @classmethod
    def exists(cls, name: str) -> bool:
        """Whether there is such a file, as far as can be told while the host waits."""
        return cls.locate(name) is not None

    @classmethod
    def missing_message(cls, name: Any) -> str:
        """Return the message of the error for a name without a file."""
        raise NotImplementedError

    @classmethod
    def require_file(cls, name: str) -> Path:
        """Find the file, or raise a FlowError."""
        if path := cls.locate(name):
            return path
        raise FlowError(cls.missing_message(name))

    @classmethod
    def validate_inputs(cls, **named: Any) -> bool | str:
        name = next(iter(named.values()), None)  # None: it comes through a wire, or the host finds it missing
        return name is None or (isinstance(name, str) and cls.exists(name)) or cls.missing_message(name)

    @classmethod
    def fingerprint_inputs(cls, **named: Any) -> Any:
        name = next(iter(named.values()), None)
        return file_fingerprint(cls.locate(name) if isinstance(name, str) else None)


def file_fingerprint(path: Path | None) -> str:
    """Hash a file's path, size and time, so that a node runs again when the file has changed.

    A hash, because the host writes fingerprints into every file that it saves.
    """
    if path is None:
        return ""
    stat = path.stat()
    return fingerprint(os.fsencode(f"{path} {stat.st_size} {stat.st_mtime_ns}"))


def _to_wire(output: Any, value: Any) -> Any:
    if output.get_io_type() != "IMAGE":
        return str(value) if isinstance(value, Message) else value
    return [*map(to_image, value)] if isinstance(value, list) else to_image(value)


def _validated(spec: Any, value: Any) -> Any:
    # ComfyUI checks only what is typed into widgets (but lets NaN pass), and nothing that comes through a wire.
    name, kind = spec.id, str(spec.get_io_type())
    if isinstance(value, ModelByPicture) and BY_PICTURE not in spec.extra_dict.get(TASKS, ()):
        raise FlowError(
            "{name}: the upscaler that suits the picture works only in nodes that enlarge pictures; this node needs "
            "{suitable}. Choose one in Load Flow Model.",
            name=Argument(name),
            suitable=MODELS_BY_TASK[spec.extra_dict[TASKS][0]][1],
        )
    if kind in SOCKETS:
        return None if value is None and spec.optional else SOCKETS[kind](value, name)
    if kind in ("INT", "FLOAT"):
        number = _integer(value, name) if kind == "INT" else _finite(value, name)
        least, most = spec.min, spec.max
        if (least is not None and number < least) or (most is not None and number > most):
            raise FlowError(
                "{name} must be from {least} to {most}; got {value}. Choose a value in that range.",
                name=Argument(name),
                least=least,
                most=most,
                value=f"{number:.6g}",
            )
        return _or_model_value(spec, number)
    if kind == "BOOLEAN" and not isinstance(value, bool):
        raise FlowError(f"{name} must be on or off; got {shown(value)}. Send true or false.")
    if kind in ("STRING", "COMBO", "COLOR"):
        if not isinstance(value, str):
            raise FlowError(f"{name} must be text; got {shown(value)}. Send a string.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FlowError(f"{name} contains half of a character (a lone surrogate). Type it again.") from None
        options = getattr(spec, "options", None)
        if options is not None and not isinstance(options, FileNames) and value not in options:
            raise FlowError(
                "{name} must be one of {options}; got {value}.",
                name=Argument(name),
                options=", ".join(options),
                value=shown(value),
            )
    return value


def _or_none(option: Option, value: Any) -> Any:
    """Return the value of a widget; None for an empty text, or 0, of an option that is None when it is left out."""
    value = value.strip() if isinstance(value, str) else value
    is_empty = isinstance(value, (str, int)) and not value
    return None if option.default is None and is_empty else value


def _or_model_value(spec: Any, value: Any) -> Any:
    """Return None, which leaves the value to the model, for a value below 0 on a slider that starts at `FROM_MODEL`."""
    return None if getattr(spec, "min", None) == FROM_MODEL and value < 0 else value


def _integer(value: Any, name: str) -> int:
    if isinstance(value, float) and value.is_integer():  # arithmetic nodes make such floats
        return int(value)
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise FlowError(f"{name} must be a whole number; got {shown(value)}. Send or connect one.") from None


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise FlowError(f"{name} must be a finite number; got {shown(value)}. Send or connect one.")
    return number
