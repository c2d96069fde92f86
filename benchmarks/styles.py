"""How far the styles of a digits model do what their names say: measured attributes against the strength of each.

    python -m benchmarks.styles [--model mnist-styles] [--count 400] [--sheet FILE.jpg]

Prints JSON: style -> strength -> change of every attribute, in its standard deviations over plain samples. The sheet
shows one digit of every class, a row a style: as drawn, then every style at -2 and 2, the last one at -3 and 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image

import flowcore
from flowcore.dequantization import quantize
from flowcore.flow import Flow
from flowcore.images.contact_sheet import contact_sheet
from flowcore.images.rounding import to_uint8
from flowcore.prior import sample_latents
from flowcore.tasks.directions import apply_style
from flowcore.training.styles import STYLES, attributes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist-styles")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    if options.sheet:
        Image.fromarray(to_uint8(sheet(flow)).permute(1, 2, 0).contiguous().numpy()).save(options.sheet, quality=90)
    assert flow.image_size is not None
    cond = flow.encode_condition(torch.arange(options.count) % flow.classes)
    latents = sample_latents(flow.latent_shapes(*flow.image_size), options.count, 0.8, seed=100)

    def measured(styles: dict[str, float]) -> torch.Tensor:
        return attributes(quantize(flow, flowcore.decode(flow, apply_style(flow, latents, styles), cond)))

    plain = measured({})
    rows = {
        style: {
            strength: dict(
                zip(STYLES, ((measured({style: strength}) - plain).mean(0) / plain.std(0)).tolist(), strict=True)
            )
            for strength in (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
        }
        for style in STYLES
    }
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


def sheet(flow: Flow) -> torch.Tensor:
    """Draw one digit of every class in every style, ``(3, height, width)``."""
    assert flow.image_size is not None
    cond = flow.encode_condition(torch.arange(flow.classes))
    latents = sample_latents(flow.latent_shapes(*flow.image_size), flow.classes, 0.8, seed=3)
    ways: list[dict[str, float]] = [{}]
    for style in STYLES:
        strength = 3.0 if style == STYLES[-1] else 2.0
        ways += [{style: -strength}, {style: strength}]
    digits = torch.cat([quantize(flow, flowcore.decode(flow, apply_style(flow, latents, way), cond)) for way in ways])
    shown = digits.expand(-1, 3, -1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    rows = [", ".join(f"{style} {strength:+g}" for style, strength in way.items()) or "as drawn" for way in ways]
    return contact_sheet(shown, rows, [str(label) for label in range(flow.classes)])


if __name__ == "__main__":
    main()
