"""What storing a model in float16 changes in its pictures.

The number of flowcore/weights/README.md:

    python -m benchmarks.half MODEL IMAGE [IMAGE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

import flowcore
from flowcore.checkpoints.file import save


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="a model file stored in float32")
    parser.add_argument("images", nargs="+", type=Path, help="LR images")
    options = parser.parse_args()
    full = flowcore.load(options.model)
    with TemporaryDirectory() as folder:
        save(full, Path(folder) / "half.safetensors", dtype=torch.float16)
        half = flowcore.load(Path(folder) / "half.safetensors")
    results: dict[str, float] = {}
    for path in options.images:
        with Image.open(path) as opened:
            lr = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        for tau in (0.0, 0.8):
            pictures = [flowcore.upscale(flow, lr, temperature=tau) for flow in (full, half)]
            results[f"{path.name}, tau {tau:g}"] = float((pictures[0] - pictures[1]).abs().max()) * 255
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
