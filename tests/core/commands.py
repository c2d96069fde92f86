"""The command line as the tests run it: words in, files out, with small pictures."""

from pathlib import Path

import numpy as np
import torch
from builders import build_tiny
from PIL import Image

from flowcore import save
from flowcore.batch import folders
from flowcore.cli.main import main
from flowcore.images import files


def run(*words):
    """Run a command on the CPU and return its exit code."""
    return main([*map(str, words), "--device", "cpu"])


class StoppedAfter:
    """Ends a run like ``kill -9`` when so many frames were saved, and counts them."""

    def __init__(self, monkeypatch, number=99):
        self.left, self.saved, self._save = number, [], folders.save
        monkeypatch.setattr(folders, "save", self)

    def __call__(self, job, made):
        saved = self._save(job, made)
        self.saved.append(job.source.name)
        self.left -= 1
        if self.left == 0:
            raise SystemExit
        return saved


def photograph(path: Path, size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Path:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (4, 4, len(mode)), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def write_colorizer(path: Path, **changes: object) -> Path:
    flow = build_tiny("colorizer", perturb=0.05, hidden=(4, 4), widths=(4, 4, 8), **changes)
    with torch.no_grad():
        flow.preprocess.mean.fill_(128 / 255)
        flow.preprocess.matrix.mul_(20)  # chroma of a spread of 1/20
    save(flow, path, provenance={"licence": "CC0-1.0"})
    return path


def names(folder: Path) -> list[str]:
    """The files in a folder and below."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    """What a run has made in a folder, without its manifest."""
    return {name: (folder / name).read_bytes() for name in names(folder) if name != "manifest.csv"}


def pixels(path: Path) -> torch.Tensor:
    return files.read(path.read_bytes(), path.name).pixels[0, :3]


def near(path: Path, expected: torch.Tensor) -> None:
    """Expect a file of these pixels, but for the rounding to 8 bits."""
    assert (pixels(path) - expected[:3]).abs().max() <= 0.51 / 255


RECIPE = """
name = "tiny"
architecture = "srflow"
validation = 1
checkpoint_every = 2
init_batch = 8
precision = "float32"
model = {steps=1, hidden=4, encoder_blocks=1, encoder_width=4, encoder_growth=2, stacked_blocks=[], residual=true}
stages = [
    {name="encoder", objective="l1", steps=2, batch=2, crop=32},
    {name="flow", objective="likelihood", steps=2, batch=2, crop=32},
]
"""
