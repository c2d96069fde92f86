"""Small flows of every architecture and random images, for all tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowcore.checkpoints.sources.hcflow import hcflow_origins
from flowcore.checkpoints.sources.llflow import llflow_origins
from flowcore.checkpoints.sources.srflow import srflow_origins
from flowcore.checkpoints.sources.srflow_da import srflow_da_origins
from flowcore.flow import Capabilities, Flow, Level
from flowcore.models import build, configure
from flowcore.transforms import ActNorm

TINY: dict[str, dict[str, Any]] = {
    "glow": {"levels": 2, "steps": 2, "hidden": 8},
    "realnvp": {"scales": 2, "hidden": 3, "blocks": 1},
    "ffjord": {"scales": 2, "blocks": 1, "hidden": (4, 5), "steps": 2},
    "residual_flow": {
        "blocks": (2, 1),
        "hidden": 6,
        "full_blocks": 1,
        "full_hidden": 4,
        "image_size": (8, 12),
    },
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
    "srflow_da": {
        "layers": "s2pccds2pc",
        "hidden": 8,
        "hidden_layers": 2,
        "encoder_blocks": 2,
        "encoder_width": 8,
        "encoder_growth": 4,
        "stacked_blocks": (1,),
    },
    "hcflow": {
        "steps": 2,
        "detail_steps": 1,
        "hidden": 6,
        "detail_hidden": 6,
        "extractor_blocks": (1, 1),
        "extractor_width": 4,
        "extractor_growth": 3,
    },
    "llflow": {
        "steps": 1,
        "transition_steps": 1,
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
        flow.normalize()
    return flow


def build_upscaler(scale: int = 4, **fields: Any) -> Flow:
    """Build a small SRFlow whose samples are pictures, as those of trained models are: nothing overflows.

    Args:
        scale: 2, 4 or 8.
        fields: Other fields of the configuration that differ from ``TINY``.

    Returns:
        The flow in evaluation mode.
    """
    flow = build_tiny("srflow", **{"scale": scale, "levels": {2: 2, 4: 3, 8: 4}[scale], "residual": True, **fields})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if not name.startswith("encoder"):
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    return flow


def build_hcflow(**fields: Any) -> Flow:
    """Build a small HCFlow whose samples are pictures: what it adds to the LR image is small.

    Args:
        fields: Fields of the configuration that differ from ``TINY``.

    Returns:
        The flow in evaluation mode.
    """
    flow = build_tiny("hcflow", perturb=0.02, **fields)
    with torch.no_grad():
        for level in flow.levels:
            prior = level.details.transform.parts()[-1]  # pyright: ignore
            prior.conditioner.bias[1::2] += 3  # log scales
    return flow


def hcflow_checkpoint(flow: Flow) -> dict[str, Tensor]:
    """Convert an HCFlow of ours to a state dict of the published program."""
    ours = flow.state_dict()
    state: dict[str, Tensor] = {}
    for origin in hcflow_origins(flow.config):
        t = origin.forms[0].to_ours(ours[origin.ours])  # a change of sign, which undoes itself, or none
        state[origin.names[0]] = t.reshape(origin.forms[0].shape(tuple(ours[origin.ours].shape))).clone()
    if flow.config.rescaling:
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).reshape(4, 1, 2, 2)
        for level in range(flow.config.levels):
            state[f"flow.layers.{level * (flow.config.steps + 2)}.haar_weights"] = signs.repeat(3 * 2**level, 1, 1, 1)
    return state


def assemble(levels: Sequence[Level], *, channels: int) -> Flow:
    """Assemble an unconditional flow of no architecture."""
    capabilities = Capabilities(source="none", tasks=frozenset())
    return Flow(levels, channels=channels, config=None, architecture="test", capabilities=capabilities)


def random_image(*shape: int, seed: int = 0) -> Tensor:
    """Draw an image, uniform in [0, 1), the same for the same arguments."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def srflow_checkpoint(flow: Flow) -> dict[str, Tensor]:
    """Convert an SRFlow or a descendant of ours to a state dict of the published program."""
    ours = flow.state_dict()
    origins = {"srflow": srflow_origins, "srflow_da": srflow_da_origins, "llflow": llflow_origins}[flow.architecture]
    return {
        origin.names[0]: ours[origin.ours].reshape(origin.forms[0].shape(tuple(ours[origin.ours].shape))).clone()
        for origin in origins(flow.config)
    }
