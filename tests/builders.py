"""Small flows of every architecture and random images, for all tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowcore import Flow
from flowcore.models import build, configure

TINY: dict[str, dict[str, Any]] = {
    "glow": {"levels": 2, "steps": 2, "hidden": 8},
    "realnvp": {"scales": 2, "hidden": 3, "blocks": 1},
    "class_conditional": {"image_size": (8, 12), "classes": 3, "steps": 2, "hidden": 8},
    "srflow": {
        "levels": 3,
        "steps": 2,
        "hidden": 8,
        "encoder_blocks": 2,
        "encoder_width": 8,
        "encoder_growth": 4,
        "stacked_blocks": (1,),
    },
    "colorizer": {
        "steps": (1, 1),
        "hidden": (8, 8),
        "widths": (8, 8, 16),
        "merged": 8,
        "features": 4,
        "working_size": 32,
    },
}


def build_tiny(architecture: str, *, seed: int = 0, perturb: float = 0.0, **fields: Any) -> Flow:
    """Build a small flow with random weights, the same for the same arguments.

    Args:
        architecture: A key of ``TINY``.
        seed: Of all weights.
        perturb: Standard deviation of noise on every parameter. A coupling that starts at zero is nearly the identity
            and lets wrong code pass, so anything that is to be tested as a flow wants 0.05 to 0.1.
        fields: Fields of the configuration that differ from ``TINY``.

    Returns:
        The flow in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = build(architecture, configure(architecture, {**TINY[architecture], **fields})).eval()
        with torch.no_grad():
            for parameter in flow.parameters() if perturb else ():
                parameter += perturb * torch.randn_like(parameter)
    return flow


def random_image(*shape: int, seed: int = 0) -> Tensor:
    """Draw an image, uniform in [0, 1), the same for the same arguments."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
