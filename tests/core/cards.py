"""The head of each model's card, flowcore/weights/NAME.md, from the header of its file.

.venv/bin/python tests/core/cards.py      writes them anew
"""

import json
import re
from pathlib import Path

from flowcore.models import catalog
from flowcore.models.model_file import open_safetensors

HEAD = re.compile(r"(?<=<!-- head -->\n).*(?=<!-- end -->)", re.DOTALL)
CARDS = {path: path.with_suffix(".md") for path in sorted(catalog.FOLDER.glob("*.safetensors"))}


def head(path: Path) -> str:
    """What `flowcore inspect` says of a file, without its recipe and configuration."""
    with open_safetensors(path, "") as file:
        header = json.loads(next(iter((file.metadata() or {"": "{}"}).values())))
    made = header.get("provenance", header)
    rows = {"architecture": header.get("architecture"), "source": made.get("source"), "license": made.get("licence")}
    rows["size"] = f"{path.stat().st_size / 1e6:.1f} MB"
    if steps := made.get("steps"):
        rows["last run"] = f"{steps:,} steps, {made['minutes']:.0f} minutes"
    rows["measured at its end"] = ", ".join(f"{name} {value:g}" for name, value in made.get("metrics", {}).items())
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value), ""])


if __name__ == "__main__":
    for path, card in CARDS.items():
        card.write_text(HEAD.sub(lambda _: head(path), card.read_text(encoding="utf-8")), encoding="utf-8")  # noqa: B023
