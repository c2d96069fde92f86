"""The recorded SRFlow, and a small one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowcore.checkpoints.sources import SRFLOW
from flowcore.flow import Flow

from . import published as checkpoints


@pytest.fixture(scope="session")
def recorded() -> dict[str, Tensor]:
    """Everything that was recorded of the published program."""
    files = ("tiny4x_io", "tiny4x_train")
    return {name: t for file in files for name, t in load_file(checkpoints.SRFLOW / f"{file}.safetensors").items()}


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """The recorded network's state dict, under its published names."""
    return checkpoints.recorded_srflow()


@pytest.fixture(scope="session", params=["float32", "float64"])
def flow(request, published) -> Flow:
    """The recorded network as ours, in two precisions; tests do not change it."""
    return SRFLOW.convert(published, {"stacked_blocks": (0, 1, 2, 3)}).to(dtype=getattr(torch, request.param))


@pytest.fixture
def flow64(published) -> Flow:
    """The recorded network as ours in float64, for tests that change it."""
    return SRFLOW.convert(published, {"stacked_blocks": (0, 1, 2, 3)}).to(dtype=torch.float64)


@pytest.fixture(scope="session")
def small_state() -> dict[str, Tensor]:
    """A small SRFlow under published names; its stacked blocks are (2, 0, 3, 1)."""
    return checkpoints.small_srflow()
