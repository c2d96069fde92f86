"""The core tests run on one thread: they are tiny, and sums in one order are the same numbers everywhere."""

from __future__ import annotations

import pytest
import torch

from .photographs import photographs


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three small photographs to train on, which no test changes."""
    return photographs(tmp_path_factory.mktemp("data") / "photos", [(48, 64), (56, 40), (40, 48)])


@pytest.fixture(autouse=True)
def fixed_seed(one_thread):
    torch.manual_seed(0)
