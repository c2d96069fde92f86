"""Results of ``python -m benchmarks``: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .measure import Settings, markdown


@dataclass(frozen=True, kw_only=True)
class Table:
    """Some rows, and what one must know to read them."""

    subject: str  # as ``--only`` names it
    title: str  # what the rows have in common
    # By column; a row need not have every column, and None is a number that could not be had.
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)  # sentences

    def markdown(self) -> str:
        """Write a title, the table, and the notes."""
        heads = list(dict.fromkeys(head for row in self.rows for head in row))
        cells = [[_written(row.get(head, "")) for head in heads] for row in self.rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.subject}: {self.title}", "", markdown(heads, cells), "", *notes, ""])


def write(path: Path, found: dict[str, Any], settings: Settings, tables: list[Table]) -> tuple[str, str]:
    """Write tables and what they were measured on to ``path`` as .md and .json; also return both, JSON in a line."""
    head = ", ".join(f"{name}: {value}" for name, value in found.items())
    quick = ["Quick: small networks and pictures; the numbers mean nothing.", ""] if settings.quick else []
    text = "\n".join([head, "", *quick, *(table.markdown() for table in tables)])
    result = {"machine": found, "settings": vars(settings), "tables": [vars(table) for table in tables]}
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    return text, json.dumps(result)


def machine(settings: Settings) -> dict[str, Any]:
    """Tell what was measured on: processor, cores, threads, device, versions."""
    found = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": settings.threads,
        "device": settings.device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if settings.device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(settings.device)
    return found


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _written(value: Any) -> str:
    if value is None:
        return "?"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value == 0 or 0.01 <= abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1e}"
