"""The tables of docs/options.md: where an option is offered, and what it is when left out, from the signatures.

.venv/bin/python tests/core/options_table.py      writes them anew
"""

import argparse
import inspect
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flowcore
from flowcore.cli.main import build_parser
from flowcore.tasks.faces import restore_faces

ROOT = Path(__file__).parents[2]
PAGE, TABLES = ROOT / "docs" / "options.md", re.compile(r"(?<=<!-- tables -->\n).*(?=<!-- end -->)", re.DOTALL)
GOLDEN = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text())
TEXTS = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
OPENED = {"flow", "face_flow", "lr", "image", "images", "frames", "small", "reference", "model", "source"}
IN_PYTHON = {"halo", "store", "before", "batch", "progress", "cancelled", "notify", "options", "chunk"}
IN_PYTHON |= {"clamp", "noise"}
ON_CANVAS = {"pick", "mask", "outside", "landmarks", "label"}
STATED = (None, "", -0.1)  # nothing; what a slider sends while it follows the model's file


class Task(NamedTuple):
    """Where one task is offered."""

    python: Callable[..., Any]
    command: str
    node: str
    python_names: dict[str, str] = {}  # noqa: RUF012  (name there to name in the table)
    node_names: dict[str, str] = {}  # noqa: RUF012


CLIP = {"clip": "frames"}  # of which only what Python has is listed
SIZE = {"width": "size", "height": "size"}
TASKS = {
    "Upscale": Task(flowcore.upscale, "upscale", "FlowcoreUpscale"),
    "Upscale a clip": Task(flowcore.upscale_video, "upscale", "FlowcoreUpscaleVideo", CLIP),
    "Colorize": Task(flowcore.colorize, "colorize", "FlowcoreColorize"),
    "Colorize a clip": Task(flowcore.colorize_video, "colorize", "FlowcoreColorize", CLIP),
    "Brighten": Task(flowcore.brighten, "brighten", "FlowcoreBrighten"),
    "Clean": Task(flowcore.clean, "clean", "FlowcoreClean"),
    "Restore": Task(flowcore.restore, "restore", "FlowcoreRestore", {}, SIZE),
    "Faces": Task(restore_faces, "faces", "FlowcoreAlignFace"),
    "Sample": Task(flowcore.sample, "sample", "FlowcoreSample", {"n": "samples", "snapped": "snap"}, SIZE),
    "Score": Task(flowcore.score, "score", "FlowcoreScore"),
}
SHARED = {  # what all commands share that read a folder, and what it is called in the node
    **{"out": "subfolder", "model": "model"},
    **dict.fromkeys(("again", "manifest", "name", "time-limit", "json", "quiet", "format", "bits", "quality"), ""),
    "credentials": "",
    **dict.fromkeys(("max-megapixels", "yes", "device", "ray"), ""),
}
DIFFERENT = {  # by table and option: why it is something else when left out here than there
    ("Upscale a clip", "steadiness"): "**Without it the command enlarges every frame alone.**",
    ("Colorize a clip", "carry"): "**0.5 on the command line, 0 elsewhere.**",
    ("Colorize", "memory"): "**`model`, and nothing elsewhere, is the one that the model comes with.**",
    ("Faces", "largest"): "**On a canvas every face is cut out; the story *faces* sets 36.**",
    ("Sample", "samples"): "**`n` in Python, where it is required.**",
    ("Sample", "snap"): "**`snapped` in Python; the command always does it.**",
}


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a command, by every one of their names."""
    return {name[2:]: action for action in parser._actions for name in action.option_strings if name.startswith("--")}


def command(name: str) -> dict[str, argparse.Action]:
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    return options_of(commands[name])


def rows(task: Task) -> dict[str, dict[str, Any]]:
    """Name in the table to where it is offered ("python", "command", "node"), its default there, and what it is."""
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in inspect.signature(task.python).parameters.items():
        if name not in OPENED | IN_PYTHON:
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            found.setdefault(task.python_names.get(name, name), {})["python"] = default
    for asked in GOLDEN[task.node]["inputs"]:
        if (name := asked["name"]) not in OPENED | ON_CANVAS:
            row = found.setdefault(task.node_names.get(name, name), {})
            tooltip = TEXTS[task.node]["inputs"].get(name, {}).get("tooltip", "")
            row |= {"node": asked.get("default"), "what": re.split(r"(?<=[^0-9])[.:;] ", f"{tooltip} ")[0].rstrip(". ")}
    for action in dict.fromkeys(command(task.command).values()):
        names = [name[2:].replace("-", "_") for name in action.option_strings if name.startswith("--")]
        denied = [
            name[3:] for name in names if name.startswith("no_") and name[3:] not in names
        ]  # --no-check is False of check
        if {*names} & {*(one.replace("-", "_") for one in SHARED), "set", "help"} or names[0].startswith("ray_"):
            continue
        name = next((name for name in [*names, *denied, action.dest] if name in found), names[0])
        row = found.setdefault(name, {})
        row["command"] = not action.default if name in denied else action.default
        row.setdefault("what", re.split(r" \(default|; ", (action.help or "").replace("%%", "%"))[0])
    described = dict(re.findall(r"^    (\w+): (.+?)[.:;](?: |$)", inspect.getdoc(task.python) or "", re.MULTILINE))
    for name, row in found.items():
        row["what"] = row.get("what") or described.get(name, "")
    return {name: found[name] for name in sorted(found) if "clip" not in task.python_names or "python" in found[name]}


def shown(default: Any) -> str:
    if default in STATED or default == [] or default is False or isinstance(default, dict):  # the last of a wire
        return "-"
    return f"{default:g}" if type(default) is float else "on" if default is True else str(default)


def differ(row: dict[str, Any]) -> bool:
    """Whether an option is something else when left out here than there; 0 of a widget may stand for nothing."""
    values = {place: row[place] for place in ("python", "command", "node") if place in row}
    empty = any(value in STATED for value in values.values())
    return len({"-" if empty and value == 0 else shown(value) for value in values.values()}) > 1


def render() -> str:
    lines: list[str] = []
    for title, task in TASKS.items():
        node = TEXTS[task.node]["display_name"]
        lines += ["", f"## {title}", ""]
        lines += [f"| option | `{task.python.__name__}` | `flowcore {task.command}` | *{node}* | what it is |"]
        lines += ["|---|---|---|---|---|"]
        for name, row in rows(task).items():
            cells = [shown(row[place]) if place in row else "" for place in ("python", "command", "node")]
            what = ". ".join(filter(None, [row["what"], DIFFERENT.get((title, name), "")]))
            lines.append(f"| `{name}` | {' | '.join(cells)} | {what} |")
    lines += ["", "## Folders", "", "| `flowcore upscale` | `batch.py` | *Flow Folder* |", "|---|---|---|"]
    of_batch = options_of(runpy.run_path(str(ROOT / "workflows" / "api" / "batch.py"))["build_parser"]())
    for name, node in SHARED.items():
        lines.append(f"| `--{name}` | {f'`--{name}`' if name in of_batch else ''} | {f'`{node}`' if node else ''} |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    PAGE.write_text(TABLES.sub(lambda _: render(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
