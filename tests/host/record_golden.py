"""What saved workflows depend on: the schemas of our nodes, and the stories, kept in `tests/golden`.

    python tests/host/record_golden.py            record what has been appended
    python tests/host/record_golden.py --breaks   record whatever there is; say in the CHANGELOG whose workflows break

The canvas saves the values of widgets by position and wires by the number of an output; scripts send inputs by name and
leave out what is optional. So nodes, inputs, outputs and options may be appended, ranges may grow, required inputs may
get another default, and nothing else may change. A story that has changed is kept beside its older versions, as
`workflows/STORY.2.json` and so on; with `--breaks` it replaces the newest.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import comfyui
from client import Client
from stories import TITLES, canvas_file

GOLDEN = comfyui.ROOT / "tests" / "golden" / "object_info.json"
RELEASED = GOLDEN.parent / "workflows"

# Of an input, what decides which values it takes, what it is when it is left out, and how many widgets it has.
KEPT = ("default", "min", "max", "step", "control_after_generate", "forceInput", "image_upload")
NOTES = {"MarkdownNote", "Note"}  # nodes for people, which a host does not know


def kept(every: dict[str, Any], module: str) -> dict[str, Any]:
    """Reduce `/object_info` to what saved workflows of a pack depend on; its modules' names end with `module`.

    The options of files hold what the pack brings, when the host's folders are empty; a host with files has more.
    """
    return {
        name: {
            "inputs": [
                _input(label, group == "required", *described)
                for group in ("required", "optional")
                for label, described in info["input"].get(group, {}).items()
            ],
            "outputs": [
                {"name": label, "type": kind, "list": many}
                for label, kind, many in zip(info["output_name"], info["output"], info["output_is_list"], strict=True)
            ],
            "output_node": info["output_node"],
        }
        for name, info in sorted(every.items())
        if info["python_module"].endswith(module)
    }


def served() -> dict[str, Any]:
    """What `kept` makes of the schemas that a ComfyUI with this pack and empty folders serves."""
    with (
        tempfile.TemporaryDirectory(prefix="flowcore-golden-") as base,
        comfyui.running(comfyui.tree(), Path(base)) as server,
    ):
        return kept(Client(server.url).get_json("/object_info"), comfyui.PACK_NAME)


def as_text(kept: dict[str, Any]) -> str:
    """Write what is kept as JSON, an innermost list or object that fits in one line."""

    def one_line(found: re.Match[str]) -> str:
        flat = re.sub(r"\s*\n\s*", " ", found[0])
        return flat if len(flat) <= 120 else found[0]

    return re.sub(r"[\[{][^\[\]{}]*[\]}]", one_line, json.dumps(kept, indent=1)) + "\n"


def _input(name: str, required: bool, kind: Any, properties: dict[str, Any]) -> dict[str, Any]:
    made = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "required": required}
    made |= {key: properties[key] for key in KEPT if properties.get(key) is not None}
    if made["type"] == "COMBO":
        made["options"] = kind if isinstance(kind, list) else properties["options"]
    return made


def changes(golden: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare schemas: a sentence for everything that breaks saved workflows or changes what they make."""
    found: list[str] = []
    for node, was in golden.items():
        if node not in now:
            found.append(f"{node} is gone: workflows with it do not load. Register an `io.NodeReplace` with the host.")
            continue
        before, after = ({i["name"]: i for i in side["inputs"]} for side in (was, now[node]))
        if [*before] != [*after][: len(before)]:
            says = "values are saved by position. Append new ones."
            found.append(f"{node}: the inputs {[*before]} are {[*after]}: {says}")
        for name, described in after.items():
            if name in before:
                found += [f"{node}: the input {name} {what}." for what in _changed(before[name], described)]
            elif described["required"]:
                found.append(f"{node}: the new input {name} is required: prompts without it are refused.")
        if was["outputs"] != now[node]["outputs"][: len(was["outputs"])]:
            found.append(f"{node}: the outputs {was['outputs']} have changed: wires go by the number of an output.")
        if was["output_node"] != now[node]["output_node"]:
            found.append(f"{node} {'is no longer' if was['output_node'] else 'has become'} an output node.")
    return found


def _changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed of an input, but for wider ranges and more options."""
    offered = now.get("options", [])
    found = [f"does not offer {option!r} any more" for option in was.get("options", []) if option not in offered]
    for key in ("type", "required", *KEPT):
        one, other = was.get(key), now.get(key)
        wider = (
            (key == "type" and set(one.split(",")) <= set(other.split(",")))
            or (key == "min" and (other is None or (one is not None and other <= one)))
            or (key == "max" and (other is None or (one is not None and other >= one)))
            # Every saved workflow and every prompt states the value of a required input.
            or (key == "default" and (one is None or (was["required"] and now["required"])))
        )
        if one != other and not wider:
            found.append(f"had {key} {one!r} and has {other!r}")
    return found


# --- workflows --------------------------------------------------------------------------------------------------------


def kept_workflow(workflow: dict[str, Any]) -> dict[str, Any]:
    """Reduce a workflow for the canvas to what it does: without places, sizes, notes, and the release that wrote it."""
    if "nodes" not in workflow:
        return workflow
    return {
        "nodes": [
            {
                **{key: node[key] for key in ("id", "type", "title", "mode", "widgets_values") if key in node},
                "inputs": [{"name": slot["name"], "link": slot["link"]} for slot in node["inputs"]],
                "outputs": [slot["type"] for slot in node["outputs"]],
            }
            for node in workflow["nodes"]
            if node["type"] not in NOTES
        ],
        "links": sorted(workflow["links"]),
    }


def versions(place: str, story: str) -> list[tuple[Path, dict[str, Any]]]:
    """Read all kept versions of a story, of the canvas (".") or the prompts ("api"), oldest first."""
    files = sorted((RELEASED / place).glob(f"{story}.*.json"), key=lambda path: int(path.suffixes[0][1:]))
    return [(path, json.loads(path.read_text())) for path in files]


def shipped(place: str) -> dict[str, dict[str, Any]]:
    """Read the workflows that the pack ships, as they are to be kept: story to content."""
    api = canvas_file("upscale").parent / "api"
    files = {name: canvas_file(name) if place == "." else api / f"{name}.json" for name in sorted(TITLES)}
    return {name: kept_workflow(json.loads(file.read_text())) for name, file in files.items()}


def record_workflows(replace: bool) -> None:
    """Keep every story that has changed, in place of its newest version or beside it, in both formats."""
    now = {place: shipped(place) for place in (".", "api")}
    for story in now["."]:
        old = {place: versions(place, story) for place in now}
        if any(not old[place] or old[place][-1][1] != now[place][story] for place in now):
            number = max(1, len(old["."]) + (not replace))
            for place, stories in now.items():
                path = RELEASED / place / f"{story}.{number}.json"
                path.write_text(as_text(stories[story]))
                sys.stdout.write(f"{path}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record what saved workflows depend on.")
    parser.add_argument("--breaks", action="store_true", help="record changes that break saved workflows, too")
    options = parser.parse_args()
    now = served()
    found = changes(json.loads(GOLDEN.read_text()), now) if GOLDEN.exists() else []
    if found and not options.breaks:
        sys.exit("\n".join([*found, f"Nothing was recorded; --breaks records it nevertheless, in {GOLDEN.name}."]))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(as_text(now))
    sys.stdout.write(f"{len(now)} nodes in {GOLDEN}\n")
    record_workflows(replace=options.breaks)


if __name__ == "__main__":
    main()
