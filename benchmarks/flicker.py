"""How steady a colored clip is: one set of latents for all frames, with and without carry, against a seed per frame.

    python -m benchmarks.flicker FOLDER [--model color-photos]

FOLDER holds the frames of a clip as image files, in order of their names. Flicker is ``metrics.flicker``: the mean
change of chroma from frame to frame where the luma stands still. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import flowcore
from flowcore.images import color
from flowcore.images.files import image_files
from flowcore.quality.color_metrics import flicker

from .hints import read


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="frames of a clip")
    parser.add_argument("--model", default="color-photos")
    parser.add_argument("--limit", type=int, default=24)
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    frames = torch.cat([read(file) for file in image_files(options.folder)[: options.limit]])
    y, truth = color.split(frames)
    ways = {
        "a seed per frame": torch.cat([flowcore.colorize(flow, y[i : i + 1], seed=1000 * i) for i in range(len(y))]),
        "one seed": flowcore.colorize_video(flow, y),
        "one seed, carry 0.5": flowcore.colorize_video(flow, y, carry=0.5),
        "one seed, carry 0.9": flowcore.colorize_video(flow, y, carry=0.9),
    }
    results = {"the clip's own colours": flicker(truth, y)}
    results |= {name: flicker(color.split(clip)[1], y) for name, clip in ways.items()}
    sys.stdout.write(json.dumps({"frames": len(y), **{k: round(v, 5) for k, v in results.items()}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
