"""What every shipped model makes of one seed, as recorded in `tests/golden/pictures`.

    .venv/bin/python tests/core/golden_pictures.py     record anew

A change of a picture changes what people get from workflows that they have saved: the reason belongs into CHANGELOG.md
under "Pictures that change", and `flowcore.errors.PICTURE_VERSION` is raised. `picture_version.json` has the sums of
that version, of these pictures and those of `benchmarks.equal`; with other sums, a test fails until it is raised.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import flowcore
from flowcore import Flow
from flowcore.errors import PICTURE_VERSION
from flowcore.images.color import luma

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "pictures"
RECORD = GOLDEN.parent / "picture_version.json"


def photo(height: int, width: int) -> Tensor:
    """A piece of the sample photograph, (1, 3, height, width): a painted face."""
    with Image.open(ROOT / "workflows" / "photo.png") as opened:
        pixels = torch.from_numpy(np.array(opened.convert("RGB")))
    return pixels[20 : 20 + height, 84 : 84 + width].permute(2, 0, 1)[None].float() / 255


def upscaled(flow: Flow, calm_edges: float = 0.0, guide_strength: float = 0.0, **options: object) -> Tensor:
    """With explicit values only, as in a saved workflow, so that other defaults of a file change nothing."""
    small = photo(160 // flow.condition_scale, 144 // flow.condition_scale)
    options |= {"calm_edges": calm_edges, "guide_strength": guide_strength}
    return flowcore.upscale(flow, small, seed=7, samples=2, temperature=0.8, **options)


def colorized(flow: Flow, **options: object) -> Tensor:
    return flowcore.colorize(flow, luma(photo(64, 80)), seed=7, samples=2, **options)


def sampled(flow: Flow, **options: object) -> Tensor:
    labels = [3, 8] if flow.classes else None
    return flowcore.sample(flow, 2, seed=7, temperature=0.7, labels=labels, **options)


def brightened(flow: Flow, **options: object) -> Tensor:
    return flowcore.brighten(flow, photo(64, 80) / 4, seed=7, samples=2, temperature=0.8, **options)


def rescaled(flow: Flow, **options: object) -> Tensor:
    return flowcore.restore(flow, flowcore.shrink(flow, photo(64, 80)), **options)


MAKERS: dict[str, Callable[..., Tensor]] = {
    "srflow-x4": partial(upscaled, calm_edges=0.5, guide_strength=0.5),
    "srflow-x4-photo": partial(upscaled, calm_edges=0.3, guide_strength=0.6),
    "srflow-x8": partial(upscaled, calm_edges=0.4),
    "srflow-faces-x8": upscaled,
    "srflow-faces-x8-photo": upscaled,
    "color-photos": colorized,
    "glow-photos": sampled,
    "glow-faces": sampled,
    "realnvp-photos": sampled,
    "mnist-styles": sampled,
    "brighten-photos": brightened,
    "rescale-x4": rescaled,
}


def eight_bits(pictures: Tensor) -> np.ndarray:
    """All pictures beside each other, as they are saved: (H, B * W) or (H, B * W, 3), uint8."""
    pixels = pictures.mul(255).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def sums() -> dict[str, str]:
    """The sum of every recorded picture, by its name; those of `benchmarks.equal` by machine, too."""
    equal = json.loads((GOLDEN.parent / "equal.json").read_text())
    machines = {f"{machine}: {name}": part for machine, parts in equal.items() for name, part in parts.items()}
    exact = {k: v for k, v in machines.items() if k.endswith((": pictures", ": tasks"))}
    parts = {f"{key}: {name}": each for key, part in exact.items() for name, each in part.items()}
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sorted(GOLDEN.iterdir())} | parts


def record_version() -> None:
    """Record the pictures of the present version; those of one that is recorded stay as they are."""
    before, now = json.loads(RECORD.read_text()), sums()
    changed = [name for name in before["sums"].keys() & now.keys() if before["sums"][name] != now[name]]
    if changed and before["picture_version"] >= PICTURE_VERSION:
        sys.exit(
            f"Raise PICTURE_VERSION in flowcore/errors.py, and record again; changed: {', '.join(sorted(changed))}"
        )
    RECORD.write_text(json.dumps({"picture_version": PICTURE_VERSION, "sums": now}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, make in MAKERS.items():
        Image.fromarray(eight_bits(make(flowcore.load(name)))).save(GOLDEN / f"{name}.png", optimize=True)
    record_version()
