"""The parser of ``flowcore COMMAND``, which is also ``python -m flowcore COMMAND``, and what it returns to the shell.

What needs torch is imported once the words before and at the command are valid, so that ``--help`` answers at once; the
module of a command, when it runs, so that ``inspect`` does not wait for what ``train`` needs.
"""

import argparse
import copy
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import FlowError, printable
from ..tasks.table import HELP

# NAME: the module with ``prepare_NAME``, and its help; its options are ``commands.add_NAME``. Without these two
# functions, a task has ``make.prepare_task``, and the options of its row in ``tasks``.
COMMANDS = {
    **{name: ("make", text) for name, text in HELP.items()},
    "remember": ("make", "remember the colors of photographs, for colorize to color others alike"),
    "sample": ("make", "generate images from noise"),
    "interpolate": ("make", "morph one image into another, through their latents"),
    "score": ("measure", "rank images by the bits that a model needs for them"),
    "verify": ("trace", "tell which pictures a model made from a seed, and where they were edited since"),
    "trace": ("trace", "find pictures without metadata again in the record of batches: their source, model and seed"),
    "audit": ("trace", "show what an enlargement, by any upscaler, has that its small image does not support"),
    "credentials": ("credentials", "make a certificate for --credentials, or show the content credentials of pictures"),
    "convert": ("models", "write a public checkpoint, or a model of ours, as a flowcore model file"),
    "models": ("models", "list the shipped models: what they are for, their sizes and licenses"),
    "inspect": ("models", "show the header of a model file, or how a PNG image was made"),
    "train": ("models", "train a model on a folder of photographs"),
    "styles": ("models", "measure style directions on digits or faces, and store them in a model"),
    "eval": ("measure", "measure models of one kind on folders of images"),
}
# How often a thread of OpenMP looks for work before it sleeps, unless a variable of WAITING is set. Its own 300,000
# times take the time of the thread that is waited for, on a machine with other work: see docs/headless.md.
WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
SPINS = "3000"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status.

    0: all is done; 1: an error; 2: the command is not valid, and nothing was started; 3: some of the images failed;
    130: stopped with Ctrl-C. To that end, the function of a command, such as ``make.prepare_sample``, checks
    everything that can be checked, and returns the work.
    """
    _accept_all_names()
    with redirect_stdout(_Outliving(sys.stdout)), redirect_stderr(_Outliving(sys.stderr)):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        build_parser(with_options=False).parse_known_args(arguments)
        if not WAITING & os.environ.keys():
            os.environ["GOMP_SPINCOUNT"] = SPINS
        parsed = build_parser().parse_args(arguments)
    except SystemExit as end:
        if end.code:
            return 2
        raise
    from .output import QUIET, SomeFailed

    warnings.filterwarnings("ignore", module=r"PIL\.")  # notes and errors say what matters of a file
    quiet = QUIET.set(getattr(parsed, "quiet", False))
    work: Callable[[], None] | None = None
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see ``flowcore/__init__.py``
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _import_plugins(parsed.plugin)
        module = importlib.import_module(f".{COMMANDS[parsed.command][0]}", __package__)
        prepare: Callable[[argparse.Namespace], Callable[[], None]]
        prepare = getattr(module, f"prepare_{parsed.command}", None) or module.prepare_task
        work = prepare(parsed)
        work()
    except (FlowError, OSError) as error:
        sys.stderr.write(f"flowcore: {error if isinstance(error, FlowError) else printable(str(error))}\n")
        return 2 if work is None else 3 if isinstance(error, SomeFailed) else 1
    except KeyboardInterrupt:
        sys.stderr.write("flowcore: stopped\n")
        return 130
    finally:
        QUIET.reset(quiet)
    return 0


def _accept_all_names() -> None:
    """Let the streams write every name of a file, whatever their encoding: that of Windows' pipes has few letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _import_plugins(names: Sequence[str]) -> None:
    from ..models.plug_ins import find_plugins, load_plugins

    if names and not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())  # ``python -m flowcore`` finds modules there, too
    offered = {point.name for point in find_plugins()} if names else set[str]()
    for name in names:
        if name in offered:
            load_plugins(name)
            continue
        try:
            if not all(map(str.isidentifier, name.split("."))):
                raise ImportError("it is not the name of a module")
            importlib.import_module(name)
        except ImportError as error:
            where = "Give the name of a module that is installed or in this folder, or of a package's plug-in."
            raise FlowError(f"Cannot import the plug-in {name}: {error}. {where}") from error


def build_parser(*, with_options: bool = True) -> argparse.ArgumentParser:
    """Build the parser, without torch if it need not know the options of commands, whose ranges the tasks define."""
    called = "flowcore" if Path(sys.argv[0]).stem == "flowcore" else "python -m flowcore"
    parser = _Parser(prog=called, description="Normalizing flows for images.")
    parser.add_argument("--version", action="version", version=f"flowcore {__version__}")
    text = "a module or a package's plug-in with models or checkpoint sources, see docs/plug-ins.md; repeatable"
    parser.add_argument("--plugin", action="append", default=[], metavar="NAME", help=text)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, formatter_class=_HelpFormatter, add_help=with_options)
        if with_options:
            importlib.import_module(".commands", __package__).add_options(name, command)
    return parser


class _Outliving:
    """A stream of the process whose reader may leave, as ``head`` does: the work goes on, and its lines are dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._outlive(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._outlive(self._stream.flush)

    def _outlive(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))  # it quotes arguments, which a shell may have filled in from names of files


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Writes the defaults of options, except None, False and lists."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        if not isinstance(action, argparse.BooleanOptionalAction):  # other names of an option work, too
            long = [name for name in action.option_strings if name.startswith("--")]
            shown.option_strings = [name for name in action.option_strings if name not in long[1:]]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = isinstance(action.default, str | int | float) and action.default is not False
        return super()._get_help_string(action) if has_default else action.help
