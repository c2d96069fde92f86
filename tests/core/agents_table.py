"""The table of docs/agents.md, made from the stories in API format; `.venv/bin/python tests/core/agents_table.py`."""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "host"))

from stories import APP  # noqa: E402  (run as a script, too)

PAGE = ROOT / "docs" / "agents.md"
TABLE = re.compile(r"(?<=\n)\| story \|.+?\n(?=\n)", re.DOTALL)
STORY = re.compile(r"<br>\*\*([\w-]+)\*\*: (.+?) \|")  # in the table of README
SCHEMAS = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text(encoding="utf-8"))
SAVING = re.compile(r"(Save|Preview)\w+")  # nodes whose entry in the history lists files, or a text


def graph(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def inputs(name: str) -> list[str]:
    """What App mode asks for, as `node.input` and the value there, if it has one."""
    nodes, shown = graph(name), []
    for node, widgets in APP[name].items():
        kind, given = nodes[node]["class_type"], nodes[node]["inputs"]
        known = {one["name"] for one in SCHEMAS[kind]["inputs"]} if kind in SCHEMAS else set(given)
        for widget in ("image",) if kind == "LoadImage" else widgets:
            if widget in known and not isinstance(given.get(widget), list):
                value = f" = {json.dumps(given[widget])}" if widget in given else ""
                shown.append(f"`{node}.{widget}{value}`")
    return shown


def render() -> str:
    lines = ["| story | what it makes | inputs, and what they are in the file | results |", "|---|---|---|---|"]
    for name, text in STORY.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        results = [f"`{node}`" for node, one in graph(name).items() if SAVING.fullmatch(one["class_type"])]
        lines.append(f"| `{name}` | {text} | {', '.join(inputs(name))} | {', '.join(results)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda _: render(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
