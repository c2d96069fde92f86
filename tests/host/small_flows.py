"""Small random flows that the tests put into the server's models/flows, one of every kind."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import torch

from flowcore import Flow
from flowcore.checkpoints import save
from flowcore.models import build, configure
from flowcore.training.styles import with_styles
from flowcore.transforms import ActNorm

GLOW = {"levels": 2, "steps": 2, "hidden": 8, "image_size": [12, 16]}
KINDS = {
    "small-glow": ("glow", GLOW),
    "other-glow": ("glow", GLOW),
    "free-glow": ("glow", {"levels": 2, "steps": 2, "hidden": 8, "n_bits": 5}),
    "small-digits": ("class_conditional", {"image_size": [8, 12], "classes": 3, "steps": 3, "hidden": 16}),
    "small-srflow": (
        "srflow",
        {
            "scale": 2,
            "levels": 2,
            "steps": 2,
            "hidden": 8,
            "encoder_blocks": 2,
            "encoder_width": 8,
            "encoder_growth": 4,
            "stacked_blocks": [1],
        },
    ),
    "small-color": (
        "colorizer",
        {
            "steps": [1, 1],
            "hidden": [8, 8],
            "widths": [8, 8, 16],
            "merged": 8,
            "features": 4,
            "working_size": 64,
        },
    ),
    "other-color": (
        "colorizer",
        {"steps": [1], "hidden": [8], "widths": [8, 8], "merged": 8, "features": 4, "working_size": 64},
    ),
}


@functools.cache
def flow(name: str) -> Flow:
    """Make a small flow; the same one every time."""
    architecture, fields = KINDS[name]
    torch.manual_seed(list(KINDS).index(name))
    made = build(architecture, configure(architecture, fields))
    with torch.no_grad():
        for parameter in made.parameters():  # away from the identity, where couplings start
            parameter += 0.05 * torch.randn(parameter.shape)
        if architecture == "srflow":  # as in trained models, most latents mean pictures: the guard looks on
            next(m for m in made.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    if architecture == "class_conditional":
        made = with_styles(made, ("bold", "wide"), torch.randn(2, 8 * 12))
    return made.eval()


def install(name: str, models: Path, store: Path) -> str:
    """Put a small flow into a folder of models, unless it is there; its name in the loader."""
    kept = store / f"{name}.safetensors"
    if not kept.exists():
        save(flow(name), kept, provenance={"licence": "CC0", "source": "a test"})
    if not (models / kept.name).exists():
        shutil.copy2(kept, models / kept.name)
    return kept.name
