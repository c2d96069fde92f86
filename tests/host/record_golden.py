"""What saved workflows depend on: the schemas of our nodes, kept in `tests/golden/object_info.json`.

    python tests/host/record_golden.py            record what has been appended
    python tests/host/record_golden.py --breaks   record whatever there is; say in the CHANGELOG whose workflows break

The canvas saves the values of widgets by position and wires by the number of an output; scripts send inputs by name and
leave out what is optional. So nodes, inputs, outputs and options may be appended, ranges may grow, required inputs may
get another default, and nothing else may change. Models that are no longer shipped stand in `catalog.REPLACED`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import comfyui

from flowcore.checkpoints import catalog

GOLDEN = comfyui.ROOT / "tests" / "golden" / "object_info.json"

# Of an input, what decides which values it takes, what it is when it is left out, and how many widgets it has.
KEPT = ("default", "min", "max", "step", "control_after_generate", "forceInput", "image_upload")


def kept(every: dict[str, Any], module: str) -> dict[str, Any]:
    """Reduce `/object_info` to what saved workflows of a pack depend on.

    Args:
        every: As a host serves it.
        module: What the names of the pack's modules end with.

    Returns:
        Node id to inputs in the order of the canvas, outputs in order, and whether it is an output node. The options of
        files hold what the pack brings, when the host's folders are empty; a host with files has more.
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


def _input(name: str, required: bool, kind: Any, properties: dict[str, Any]) -> dict[str, Any]:
    made = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "required": required}
    made |= {key: properties[key] for key in KEPT if properties.get(key) is not None}
    if made["type"] == "COMBO":
        made["options"] = kind if isinstance(kind, list) else properties["options"]
    return made


def changes(golden: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare schemas.

    Args:
        golden: As `kept` made it once.
        now: As `kept` makes it now.

    Returns:
        A sentence for everything that breaks saved workflows or changes what they make; appending breaks nothing.
    """
    found: list[str] = []
    for node, was in golden.items():
        if node not in now:
            found.append(f"{node} is gone: workflows with it do not load. Put a replacement into nodes/__init__.py.")
            continue
        found += [f"{node}: {sentence}" for sentence in _changed_inputs(was["inputs"], now[node]["inputs"])]
        found += [f"{node}: {sentence}" for sentence in _changed_outputs(was["outputs"], now[node]["outputs"])]
        if was["output_node"] != now[node]["output_node"]:
            found.append(f"{node} {'is no longer' if was['output_node'] else 'has become'} an output node.")
    return found


def _changed_inputs(golden: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    before, after = ({i["name"]: i for i in side} for side in (golden, now))
    found = [f"the input {name} is gone or has another name." for name in before if name not in after]
    found += [
        f"the new input {name} is required: prompts without it are refused. Make it optional, with a default."
        for name, i in after.items()
        if name not in before and i["required"]
    ]
    stayed, order = [n for n in before if n in after], [n for n in after if n in before]
    if stayed != order:
        found.append(f"the inputs have changed places, {', '.join(order)}: values are saved by position.")
    found += [
        f"the new input {name} stands before old ones: their values shift. Append it at the end."
        for place, name in enumerate(after)
        if name not in before and any(later in before for later in [*after][place:])
    ]
    for name in stayed:
        found += [f"the input {name} {what}" for what in _changed_input(before[name], after[name])]
    return found


def _changed_input(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found: list[str] = []
    if was["type"] != now["type"]:
        found.append(f"was {was['type']} and is {now['type']}.")
    if was["required"] != now["required"]:
        found.append(f"was {_asked(was)} and is {_asked(now)}.")
    # A required input has no default but for new nodes: every saved workflow and every prompt states its value.
    if "default" in was and was["default"] != now.get("default") and not (was["required"] and now["required"]):
        found.append(f"had the default {was['default']!r} and has {now.get('default')!r}: prompts without it change.")
    if "min" in now and now["min"] > was.get("min", float("-inf")):
        found.append(f"could be {was.get('min', 'anything')} and now begins at {now['min']}: saved values are refused.")
    if "max" in now and now["max"] < was.get("max", float("inf")):
        found.append(f"could be {was.get('max', 'anything')} and now ends at {now['max']}: saved values are refused.")
    if was.get("step") != now.get("step"):
        found.append(f"had steps of {was.get('step')} and has steps of {now.get('step')}: the canvas rounds to them.")
    gone = [o for o in was.get("options", []) if o not in now.get("options", []) and o not in catalog.REPLACED]
    found += [f"does not offer {option!r} any more." for option in gone]
    for key in ("control_after_generate", "forceInput", "image_upload"):
        # Not the same: False, and nothing, which gives whatever is called seed a control.
        if was.get(key) != now.get(key):
            found.append(f"had {key} {was.get(key)} and has {now.get(key)}, which is another number of widgets.")
    return found


def _asked(described: dict[str, Any]) -> str:
    return "required" if described["required"] else "optional"


def _changed_outputs(golden: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for place, was in enumerate(golden):
        found += [
            f"output {place} had the {key} {was[key]!r} and has {is_now!r}: wires go by the number of an output."
            for key in was
            if was[key] != (is_now := now[place][key] if place < len(now) else None)
        ]
    return found


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description="Record what saved workflows depend on.")
    parser.add_argument("--breaks", action="store_true", help="record changes that break saved workflows, too")
    options = parser.parse_args()
    sys.path.insert(0, str(comfyui.ROOT / "workflows" / "api"))
    from client import Client

    with (
        tempfile.TemporaryDirectory(prefix="flowcore-golden-") as base,
        comfyui.running(comfyui.tree(), Path(base)) as server,
    ):
        now = kept(Client(server.url).get_json("/object_info"), comfyui.PACK_NAME)
    found = changes(json.loads(GOLDEN.read_text()), now) if GOLDEN.exists() else []
    if found and not options.breaks:
        sys.exit("\n".join([*found, f"Nothing was recorded; --breaks records it nevertheless, in {GOLDEN.name}."]))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
    sys.stdout.write(f"{len(now)} nodes in {GOLDEN}\n")


if __name__ == "__main__":
    main()
