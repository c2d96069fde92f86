"""What all tests share: a clean import path, GPU tests where there is a GPU, and a count of what was tried."""

from __future__ import annotations

import sys
from pathlib import Path

import cases
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# With the root on the path our nodes/ would take the name of the host's nodes.py.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if cases.TRIED:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(cases.TRIED.items()))
        terminalreporter.write_line(f"cases tried: {counts}")
