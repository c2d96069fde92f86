"""A seed of its own for every test and every wider fixture, and no draw while tests are collected: a pytest plugin.

``--seed N`` draws other numbers and shuffles files, and tests within a file. A test that fails under a seed, and passes
by itself under the same one, depends on what ran before it.
"""

import random
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowcore.flows.testing import _random_states


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="global seed of all draws, and of the order of tests unless 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if seed := config.getoption("seed"):
        order = random.Random(seed)
        files: dict[Path, float] = {}
        items.sort(key=lambda item: (files.setdefault(item.path, order.random()), order.random()))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
    before = _random_states()
    report = yield
    if drawn := [name for name, state in _random_states().items() if state != before[name]]:
        report.outcome = "failed"
        report.longrepr = (
            f"{collector.nodeid} drew from the global generator of {', '.join(drawn)} while its tests were collected. "
            "Draw in the test or in a fixture, which have seeds of their own."
        )
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
    """Seed a fixture that several tests share, and put the generators back for the test that happens to ask first."""
    if fixturedef.scope == "function":
        return (yield)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (the global generator is the point)
    with torch.random.fork_rng():
        seed_all(request.config, f"{fixturedef.baseid}::{fixturedef.argname}")
        try:
            return (yield)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@pytest.fixture(autouse=True)
def seeds(request: pytest.FixtureRequest) -> None:
    """Seed the global generators before a test by its name."""
    seed_all(request.config, f"{request.node.path.name}::{request.node.name}")


def seed_all(config: pytest.Config, name: str) -> None:
    seed = zlib.crc32(f"{config.getoption('seed')} {name}".encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
