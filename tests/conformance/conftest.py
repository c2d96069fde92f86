"""What tests of published programs share: a small SRFlow; and gradients only where a test asks for them."""

import pytest
import torch
from torch import Tensor

from . import published


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def small_state() -> dict[str, Tensor]:
    """A small SRFlow under published names; its stacked blocks are (2, 0, 3, 1)."""
    return published.small_srflow()
