"""Write `locales/en/nodeDefs.json` from the schemas of our nodes, in which the English words are written.

    python tests/host/record_english.py

The frontend takes what a language's file says before what a schema says, so the English file must never be older than
the schemas. The other languages are written by hand; `test_locales.py` says what is missing there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import comfyui

LOCALES = comfyui.ROOT / "locales"


def english(every: dict[str, Any], module: str) -> dict[str, Any]:
    """Say what the frontend asks of a language, as the schemas have it.

    Args:
        every: `/object_info` of a host.
        module: What the names of the pack's modules end with.

    Returns:
        The content of nodeDefs.json.
    """
    return {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                label: {"name": label, "tooltip": described[1]["tooltip"]}
                for group in ("required", "optional")
                for label, described in info["input"].get(group, {}).items()
            },
            "outputs": {
                str(place): {"name": label, "tooltip": tooltip}
                for place, (label, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        for name, info in sorted(every.items())
        if info["python_module"].endswith(module)
    }


def main() -> None:
    """Record what the newest host says."""
    sys.path.insert(0, str(comfyui.ROOT / "workflows" / "api"))
    from client import Client

    with tempfile.TemporaryDirectory() as base, comfyui.running(comfyui.tree(), Path(base)) as server:
        words = english(Client(server.url).get_json("/object_info"), comfyui.PACK_NAME)
    target = LOCALES / "en" / "nodeDefs.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(f"{len(words)} nodes in {target}\n")


if __name__ == "__main__":
    main()
