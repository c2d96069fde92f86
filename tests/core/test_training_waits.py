"""No training step waits for the device: nothing in it reads a number off a tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowcore.dequantization import round_to_integers, to_integers
from flowcore.models.glow import GlowConfig, glow
from flowcore.training.objective import Likelihood

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += func in WAITS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mixing", ["conv", "lu"])
@pytest.mark.parametrize("dequantizer_steps", [0, 1])
def test_loss_and_gradient_wait_for_nothing(mixing, dequantizer_steps):
    flow = glow(GlowConfig(levels=2, steps=1, hidden=8, mixing=mixing, dequantizer_steps=dequantizer_steps))
    x, noise = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    with Waits() as waits:
        Likelihood(flow)(x, None, noise).backward()
    assert waits.count == 0
    with Waits() as waits:
        to_integers(x)  # which looks for NaN
    assert waits.count == 1


@pytest.mark.parametrize("n_bits", [8, 5])
def test_integers_are_those_of_the_look(n_bits):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8) * 1.2 - 0.1
    assert torch.equal(round_to_integers(x, n_bits), to_integers(x, n_bits)[0])
    assert torch.equal(round_to_integers((x * 255).byte(), n_bits), to_integers((x * 255).byte(), n_bits)[0])
    x[0, 0, 0, 0] = torch.nan
    assert round_to_integers(x, n_bits).isnan().sum() == 1
