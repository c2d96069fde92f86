"""A small SRFlow."""

import pytest
from torch import Tensor

from . import published


@pytest.fixture(scope="session")
def small_state() -> dict[str, Tensor]:
    """A small SRFlow under published names; its stacked blocks are (2, 0, 3, 1)."""
    return published.small_srflow()
