"""The core tests run on one thread: they are tiny, and sums in one order are the same numbers everywhere."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fixed_seed(one_thread):
    torch.manual_seed(0)
