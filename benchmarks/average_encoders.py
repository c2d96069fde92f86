"""Average the encoders of two colorizers, and measure the chroma that they predict.

    python -m benchmarks.average_encoders EARLY LATE --shares 0 0.3 0.5 1
        --photographs eval/kodak eval/cbsd68 --held-out photos-small
    python -m benchmarks.average_encoders EARLY LATE --shares 0.4 -o AVERAGE.safetensors

EARLY and LATE are files of one training, an early step and its end. For each share s, the encoder is s times the early
one plus 1 - s times the late one; everything else is that of the late file. Measured is the RMSE of the finest
predicted chroma at the working size, relative to that of gray, over the images of both sets; lower is better.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022): between the weights before and after a
fine-tuning lie weights that are better on other data than either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.checkpoints.file import save
from flowcore.errors import FlowError
from flowcore.evaluation.image_set import list_images, read_upright
from flowcore.flow import Flow
from flowcore.images import color
from flowcore.images.resize import resize_bilinear
from flowcore.networks import LumaEncoder
from flowcore.networks.luma import CHROMA_UNIT, HINT_PLANES, PALETTE_PLANES, STRIDE
from flowcore.training.recipe import held_out_names

from .mix_weights import mix

MULTIPLE = 64  # of the sides that are measured; LumaEncoder says what it needs


def main() -> None:
    """Average, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("early", type=Path)
    parser.add_argument("late", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--photographs", type=Path, nargs="+", metavar="FOLDER", help="test photographs")
    parser.add_argument("--held-out", type=Path, nargs="+", metavar="FOLDER", help="the data of the training")
    parser.add_argument("-o", "--out", type=Path, help="where the average of the last share goes")
    options = parser.parse_args()
    flow = flowcore.load(options.late)
    early = flowcore.load(options.early).state_dict()
    late = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    sets = [
        [read(file, flow.config.working_size) for file in list_images(folders, only)]
        for folders, only in ((options.photographs, None), (options.held_out, held_out_names("standard")))
        if folders
    ]
    for share in options.shares:
        flow.load_state_dict(mix(early, late, 1 - share, 1.0))
        print(f"{share:.2f}", *(f"{relative_error(flow, images):.3f}" for images in sets), flush=True)
    if options.out:
        save(flow, options.out)


def read(file: Path, working_size: int) -> Tensor:
    """Read a photograph ``(1, 3, H, W)`` in [0, 1], its shorter side about the working size."""
    rgb = torch.from_numpy(np.array(read_upright(file))).permute(2, 0, 1)[None].float() / 255
    factor = working_size / min(rgb.shape[-2:])
    height, width = (max(1, round(side * factor / MULTIPLE)) * MULTIPLE for side in rgb.shape[-2:])
    return resize_bilinear(rgb, (height, width))


@torch.inference_mode()
def relative_error(flow: Flow, images: list[Tensor]) -> float:
    """RMSE of predicted chroma, sum over images, relative to that of gray."""
    encoder = flow.encoder
    if not isinstance(encoder, LumaEncoder) or encoder.chroma is None:
        raise FlowError("Expected a colorizer whose encoder predicts chroma (predicts_chroma = true).")
    error = gray = 0.0
    for rgb in images:
        y, chroma = color.split(rgb)
        hints, palette = rgb.new_zeros(1, HINT_PLANES, *rgb.shape[-2:]), rgb.new_zeros(1, PALETTE_PLANES)
        truth = F.avg_pool2d(chroma, STRIDE)  # (1, 2, H / 4, W / 4)
        predicted = resize_bilinear(encoder.predict_chroma(y, hints, palette)[0], truth.shape[-2:]) * CHROMA_UNIT
        error += float((predicted - truth).square().mean().sqrt())
        gray += float(truth.square().mean().sqrt())
    return error / gray


if __name__ == "__main__":
    main()
