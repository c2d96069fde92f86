"""How good an SRFlow is before its first step, by what it measures from and how its 1x1 convolutions start.

The numbers of docs/decisions/0001:

    python -m benchmarks.start_of_training --data FOLDER --encoder runs/srflow-x4/model.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from flowcore.checkpoints.file import read
from flowcore.dequantization import dequantize
from flowcore.likelihood import bits_per_dim, log_prob
from flowcore.models.srflow import srflow
from flowcore.prior import sample_latents
from flowcore.quality.metrics import lr_psnr, psnr
from flowcore.training.photographs import Photographs


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--encoder", type=Path, required=True, help="model file whose encoder to use")
    parser.add_argument("--crops", type=int, default=96, help="crops of the initialising batch")
    options = parser.parse_args()
    source = read(options.encoder)
    assert source.encoder is not None
    results: list[dict[str, float | str | bool]] = []
    with TemporaryDirectory() as cache:
        photographs = Photographs(options.data, Path(cache), scale=source.config.scale, validation=6)
        hr, lr = photographs.batch(options.crops, 96, 0, 0)
        held_hr, held_lr = photographs.batch(12, 96, 0, 0, held_out=True)
        for mixing, residual in (("orthogonal", False), ("orthogonal", True), ("principal", True)):
            torch.manual_seed(0)
            flow = srflow(dataclasses.replace(source.config, mixing=mixing, residual=residual))
            assert flow.encoder is not None
            flow.encoder.load_state_dict(source.encoder.state_dict())
            generator = torch.Generator().manual_seed(0)
            flow.initialize(dequantize(hr, flow.config.quant_bins, generator), flow.encode_condition(lr))
            cond = flow.encode_condition(held_lr)
            density = log_prob(flow, dequantize(held_hr, flow.config.quant_bins, generator), cond)
            row: dict[str, float | str | bool] = {"mixing": mixing, "residual": residual}
            row["bits_per_dim"] = float(bits_per_dim(density, held_hr[0].numel()).mean())
            for tau in (0.0, 0.8):
                latents = sample_latents(flow.latent_shapes(96, 96), len(held_hr), tau)
                picture = flow.inverse(latents, cond).clamp(0, 1)
                row[f"psnr_tau{tau:g}"] = float(psnr(picture, held_hr).mean())
                row[f"lr_psnr_tau{tau:g}"] = float(lr_psnr(picture, held_lr).mean())
            results.append(row)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
