"""Measure how often the shipped models overflow, and the result of the guard.

The numbers of docs/decisions/0013 and docs/reliability.md, and their picture:

    python -m benchmarks.overflow FOLDER              shares, by model and temperature, over the images of a folder
    python -m benchmarks.overflow --sheet PICTURE     a photograph at 0.8 and 1.5, and one with a dithered square:
                                                      without the guard, and with it
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import flowcore
from flowcore.engine.compiled import compiled
from flowcore.engine.overflow import bounded_decoder, decode_with_backoff
from flowcore.flows.flow import Flow
from flowcore.flows.prior import sample_latents
from flowcore.images.folders import image_files
from flowcore.images.resize import enlarge
from flowcore.tasks.upscale import MAX_DEVIATION
from flowcore.training.evaluation.image_set import read_cropped

from .measure import arguments, as_image, middle

MODELS = ("srflow-x4", "srflow-x8")
TEMPERATURES = (0.0, 0.8, 1.0, 1.2, 1.5)
SIDE = 64  # of the LR images
PHOTO = Path(__file__).parents[1] / "workflows" / "photo.png"


def main() -> None:
    """Measure and print, or draw."""
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="images, taken as LR images from their middle")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"(default: {' '.join(MODELS)})")
    parser.add_argument("--sheet", type=Path, help="where to draw the picture")
    options = parser.parse_args()
    if options.folder is not None:
        sys.stdout.write(json.dumps(shares(options.folder, options.models), indent=2) + "\n")
    if options.sheet is not None:
        sheet().save(options.sheet, quality=88)


def shares(folder: Path, models: Sequence[str] = MODELS) -> dict[str, dict[str, dict[str, float]]]:
    """Count images that overflow, the mean shares of pixels redrawn and filled, and the cost."""
    whole = [read_cropped(path, 1) for path in image_files(folder)]
    images = [middle(image, SIDE) for image in whole if min(image.shape[-2:]) >= SIDE]
    found: dict[str, dict[str, dict[str, float]]] = {"images": {"count": {"": len(images)}}}
    for name in models:
        flow = flowcore.load(name)
        found[name] = {}
        for temperature in TEMPERATURES:
            rows = [_one(flow, lr, temperature) for lr in images]
            overflowing, attenuated, filled, plain, guarded = (sum(column) for column in zip(*rows, strict=True))
            found[name][str(temperature)] = {
                "images that overflow": overflowing,
                "calmed %": round(100 * attenuated / len(images), 3),
                "filled %": round(100 * filled / len(images), 3),
                "times the seconds": round(guarded / plain, 2),
            }
    return found


def _one(flow: Flow, lr: Tensor, temperature: float) -> tuple[bool, float, float, float, float]:
    fast, side = compiled(flow), SIDE * flow.condition_scale
    z = sample_latents(flow.latent_shapes(side, side), 1, temperature, 0)
    cond = fast.encode_condition(lr)
    begun = time.process_time()
    fast.inverse(z, cond)
    plain = time.process_time() - begun
    done = decode_with_backoff(bounded_decoder(fast, cond, MAX_DEVIATION), z, lambda: enlarge(lr, flow.condition_scale))
    guarded = time.process_time() - begun - plain
    if done.attenuated is None or done.filled is None:
        return False, 0.0, 0.0, plain, guarded
    return True, float(done.attenuated.float().mean()), float(done.filled.float().mean()), plain, guarded


def sheet() -> Image.Image:
    """Draw results without and with the guard."""
    flow = flowcore.load("srflow-x4")
    fast = compiled(flow)
    photo = read_cropped(PHOTO, 1)[..., 20 : 20 + SIDE, 84 : 84 + SIDE].contiguous()
    square = photo.clone()
    steps = torch.arange(20)
    square[..., 34:54, 10:30] = ((steps[:, None] + steps) % 2).float()
    above: list[Tensor] = []
    below: list[Tensor] = []
    for lr, temperature in ((photo, 0.8), (photo, 1.5), (square, 0.8)):
        z = sample_latents(flow.latent_shapes(4 * SIDE, 4 * SIDE), 1, temperature, 0)
        above.append(fast.inverse(z, fast.encode_condition(lr))[0].nan_to_num(0, 0, 0))
        below.append(flowcore.upscale(flow, lr, temperature=temperature, seed=0)[0])
    return as_image(torch.cat([torch.cat(above, dim=2), torch.cat(below, dim=2)], dim=1))


if __name__ == "__main__":
    main()
