"""What all tests share: a clean import path, GPU tests where there is a GPU, and the count of generated cases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cases
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

# With the root on the path our nodes/ would take the name of the host's nodes.py.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        # With pytest-xdist, a file is run by one process, and so are all tests that share the servers of the session.
        room = item.path.relative_to(TESTS).parts[0]
        shares_servers = room in ("host", "browser")
        item.add_marker(pytest.mark.xdist_group("host" if shares_servers else item.path.as_posix()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["tried"] = dict(cases.TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    cases.TRIED.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if cases.TRIED:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(cases.TRIED.items()))
        terminalreporter.write_line(f"cases tried: {counts}")
