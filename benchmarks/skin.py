"""The hue of human skin, from portraits: where ``SKIN_HUES`` and ``SKIN_MIN_CHROMA`` of color_metrics come from.

    python -m benchmarks.skin faces/train

Prints percentiles over the portraits of the angle of (Cb, Cr), in degrees, and of its length, for the mean chroma of
``SKIN_PATCH``; which portraits are at the ends, to look at (a black-and-white one has length 0); and how many portraits
of the folder ``skin_verdict`` takes for no human skin, or for gray.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from flowcore.images.color import split
from flowcore.images.files import image_files
from flowcore.quality.color_metrics import skin_color, skin_verdict

from .hints import read

PERCENTILES = (0.0, 0.1, 1.0, 50.0, 99.0, 99.9, 100.0)
ENDS = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="portraits, all aligned alike")
    folder = parser.parse_args().folder
    files = image_files(folder)
    chromas = [split(read(file).double())[1] for file in files]
    hues, lengths = (torch.cat(values) for values in zip(*map(skin_color, chromas), strict=True))
    verdicts = torch.stack([torch.cat(skin_verdict(chroma)) for chroma in chromas])  # (portraits, 2)
    say = sys.stdout.write
    say(f"| {len(files)} portraits | {' | '.join(f'{p:g} %' for p in PERCENTILES)} |\n{'|---' * 8}|\n")
    for name, values, digits in (("hue", hues, 1), ("length", lengths, 4)):
        cells = torch.quantile(values, torch.tensor(PERCENTILES, dtype=values.dtype) / 100).tolist()
        say(f"| {name} | {' | '.join(f'{cell:.{digits}f}' for cell in cells)} |\n")
    for name, values, digits in (("hue", hues, 1), ("length", lengths, 4)):
        order = values.argsort().tolist()
        for end, numbers in (("least", order[:ENDS]), ("greatest", order[: -ENDS - 1 : -1])):
            say(f"{end} {name}: {', '.join(f'{files[k].name} {values[k]:.{digits}f}' for k in numbers)}\n")
    outside, gray = verdicts.sum(0).tolist()
    say(f"no human skin: {outside} of {len(files)}; gray: {gray}\n")


if __name__ == "__main__":
    main()
