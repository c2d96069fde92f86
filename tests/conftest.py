"""What all tests share: a clean import path, seeds, GPU tests where there is a GPU, the count of generated cases."""

import importlib
import sys
from pathlib import Path
from typing import Any

import cases
import pytest
import torch

pytest_plugins = ["draws"]

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"

# The code beside these tests, whichever checkout is installed. The root does not stay on the path, where our nodes/
# would take the name of the host's nodes.py.
sys.path.insert(0, str(ROOT))
importlib.import_module("flowcore")
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if (room := item.path.relative_to(TESTS).parts[0]) in ("host", "browser"):
            item.add_marker(room)
        item.add_marker(pytest.mark.xdist_group(group(item)))


def group(item: pytest.Item) -> str:
    """What pytest-xdist runs in one process: a file, or all tests that share a server of the session."""
    room = item.path.relative_to(TESTS).parts[0]
    if room == "browser":
        return room
    server = item.callspec.params.get("server") if hasattr(item, "callspec") else None  # which version of ComfyUI
    return item.path.as_posix() if server is None else f"host {server}"


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
