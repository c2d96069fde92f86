"""Small random flows that the tests put into the server's models/flows, one of every kind."""

import functools
import shutil
from pathlib import Path
from typing import Any

import torch
from builders import build_tiny

from flowcore import Flow, save
from flowcore.flows.transforms import ActNorm
from flowcore.training.styles import with_styles

ANIMALS = ("cat", "dog", "wild")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "small-glow": ("glow", {"image_size": (12, 16)}),
    "other-glow": ("glow", {"image_size": (12, 16)}),
    "small-ffjord": ("ffjord", {"image_size": (12, 16)}),
    "small-residual": ("residual_flow", {"image_size": (12, 16)}),
    "free-glow": ("glow", {"n_bits": 5}),
    "small-digits": ("class_conditional", {"steps": 3, "hidden": 16}),
    "small-srflow": ("srflow", {"scale": 2, "levels": 2}),
    "small-color": ("colorizer", {"working_size": 64}),
    "other-color": ("colorizer", {"steps": (1,), "hidden": (8,), "widths": (8, 8), "working_size": 64}),
    "small-dark": ("llflow", {}),
    "small-animals": ("tarflow", {"image_size": (12, 16), "classes": 3, "labels": ANIMALS, "noise": 0.07}),
    "small-rescaler": ("hcflow", {"rescaling": True}),
    "small-restorer": ("srflow", {"scale": 2, "levels": 2, "guide_layers": 2, "guide_width": 4}),
}
# Node to the flow that it works with; the others take "small-glow".
USED_BY = {"FlowcoreColorize": "small-color", "FlowcoreEncodeColor": "small-color", "FlowcoreBrighten": "small-dark"}
USED_BY |= {"FlowcoreClean": "small-restorer"}
USED_BY |= {"FlowcoreShrink": "small-rescaler", "FlowcoreRestore": "small-rescaler"}
_ENLARGING = (
    "Upscale",
    "UpscaleVideo",
    "TemperatureGrid",
    "BestOf",
    "AsUpscaleModel",
    "Harmonize",
    "Folder",
    "Repair",
    "Audit",
)
USED_BY |= dict.fromkeys((f"Flowcore{name}" for name in _ENLARGING), "small-srflow")
PERTURB = {"hcflow": 0.02, "llflow": 0.02}  # noise on all parameters; with the others' 0.05 samples are no pictures


@functools.cache
def flow(name: str) -> Flow:
    """Build a small flow; the same one every time."""
    architecture, fields = KINDS[name]
    made = build_tiny(architecture, seed=list(KINDS).index(name), perturb=PERTURB.get(architecture, 0.05), **fields)
    if architecture in ("srflow", "llflow"):  # as in trained models, most latents mean pictures: overflow is checked
        with torch.no_grad():
            next(m for m in made.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    if architecture == "class_conditional":
        directions = torch.randn(2, 8 * 12, generator=torch.Generator().manual_seed(0))
        made = with_styles(made, ("bold", "wide"), directions).eval()
    return made


def install(name: str, models: Path, store: Path) -> str:
    """Put a small flow into a folder of models, unless it is there; its name in the loader."""
    saved = store / f"{name}.safetensors"
    if not saved.exists():
        save(flow(name), saved, provenance={"licence": "CC0", "source": "a test"})
    if not (models / saved.name).exists():
        shutil.copy2(saved, models / saved.name)
    return saved.name
