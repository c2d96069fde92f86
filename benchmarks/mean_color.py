"""How far the mean color of enlargements is from that of the small images, and how to make up for it.

    python -m benchmarks.mean_color FOLDER [FOLDER ...] [--model srflow-x4] [--held-out NAME] [--limit 6]
    python -m benchmarks.mean_color FOLDER [FOLDER ...] --model MODEL -o CORRECTED.safetensors

Measured at temperature 0 and at the model's default, in 1/255. The corrected model differs in three numbers: the bias
of the last convolution of its encoder, to which a flow with ``residual`` adds what it decodes. So every picture is
shifted by one color, the same for all, by which the means of both temperatures are 0 on these images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import flowcore
from flowcore.checkpoints import catalog
from flowcore.checkpoints.file import read, read_header, save
from flowcore.errors import FlowError
from flowcore.flow import Flow
from flowcore.images.resize import shrink
from flowcore.images.rounding import as_stored
from flowcore.training.objective import lr_encoder

from .calm_edges import add_crop_options, crops
from .measure import say


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srflow-x4")
    add_crop_options(parser)
    parser.add_argument("-o", "--out", type=Path, help="where the corrected model goes")
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    rows: list[Tensor] = []
    with torch.no_grad():
        for name, hr in crops(options):
            rows.append(differences(flow, hr))
            say(f"{name} {describe(rows[-1])}")
    every = torch.stack(rows)
    print(f"mean of {len(rows)}: {describe(every.mean(0))}; mean size: {describe(every.abs().mean(0))}")
    if options.out:
        path = Path(options.model) if Path(options.model).is_file() else catalog.path(options.model)
        save(corrected(read(path), every.mean((0, 1))), options.out, provenance=read_header(path).provenance)


def differences(flow: Flow, hr: Tensor) -> Tensor:
    """Mean color of an image's enlargement minus that of its LR image: at temperature 0 and the default, (2, 3)."""
    lr = as_stored(shrink(hr, flow.condition_scale))
    made = [flowcore.upscale(flow, lr, temperature=tau, seed=7) for tau in (0.0, None)]
    return torch.stack([(sr.mean((0, 2, 3)) - lr.mean((0, 2, 3))) for sr in made])


def corrected(flow: Flow, difference: Tensor) -> Flow:
    """Shift all pictures of an upscaler with ``residual`` by a color, (3,), the other way."""
    if not getattr(flow.config, "residual", False):
        raise FlowError("Expected an upscaler with residual = true: only to such a one the bias is added.")
    bias = lr_encoder(flow).conv_last.bias
    assert bias is not None
    with torch.no_grad():
        bias -= difference
    return flow


def describe(difference: Tensor) -> str:
    """Write red, green and blue at both temperatures, in 1/255."""
    zero, default = ("/".join(f"{255 * float(x):.2f}" for x in row) for row in difference)
    return f"temperature 0 {zero}, default {default}"


if __name__ == "__main__":
    main()
