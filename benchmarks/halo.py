"""How far tiles are from the whole image, by the halo that they read.

The numbers of docs/decisions/0004:

    python -m benchmarks.halo IMAGE [IMAGE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import flowcore


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", nargs="+", type=Path, help="LR images")
    parser.add_argument("--model", default="srflow-x4")
    parser.add_argument("--tile", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.8)
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    results: dict[str, dict[str, float]] = {}
    for path in options.images:
        with Image.open(path) as opened:
            lr = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        whole = flowcore.upscale(flow, lr, temperature=options.temperature, tile=max(lr.shape))
        results[path.name] = {}
        for halo in (8, 12, 16, 20, 24):
            tiled = flowcore.upscale(flow, lr, temperature=options.temperature, tile=options.tile, halo=halo)
            results[path.name][f"halo {halo}"] = float((tiled - whole).abs().max()) * 255
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
