"""Where to lower the temperature: four maps of edges, by false specks, naturalness and fidelity at several settings.

The tables of flowcore/weights/README.md:

    python -m benchmarks.calm_edges FOLDER [FOLDER ...] [--model srflow-x4] [--crop 320] [--held-out NAME] [--limit 6]

none        the same temperature everywhere
edges       what flowcore has: ``tasks.calm_edges.edge_map``
gradient    gradient of the enlarged image's luma, its maximum over 9 pixels averaged over 9, from 0.02 to 0.06
coherence   the part of that gradient that has one direction: difference of the structure tensor's singular values
spread      the model's own: standard deviations that the injectors of the finest level predict, geometric mean
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import list_images, read_cropped
from flowcore.flow import Flow
from flowcore.images.color import luma
from flowcore.images.resize import enlarge, shrink
from flowcore.images.rounding import as_stored
from flowcore.inference.condition_cache import ConditionStore
from flowcore.quality.metrics import diversity, false_specks, lr_psnr, psnr
from flowcore.quality.no_reference import niqe
from flowcore.tasks.calm_edges import edge_map
from flowcore.training.recipe import held_out_names
from flowcore.transforms import Injector

from .measure import arguments, markdown, middle, say
from .upscalers import INPUTS

MEASURES = ("specks", "niqe", "psnr", "lr_psnr", "diversity")
SAMPLES = 2
SETTINGS = (
    *(f"none:{tau}:0" for tau in (0.0, 0.3, 0.4, 0.5, 0.6, 0.8)),
    *(f"{name}:1:0.75" for name in ("edges", "gradient", "coherence", "spread")),
    *(f"{name}:0.85:0.75" for name in ("edges", "gradient", "coherence", "spread")),
    *("edges:1:0.9", "edges:1:0.7", "edges:0.95:0.65", "edges:0.9:0.6", "edges:0.8:0.5"),
)

Map = Callable[[Flow, Tensor], Tensor]


def _gradient(flow: Flow, lr: Tensor) -> Tensor:
    dx, dy = _differences(flow, lr)
    return _ramp(_mean(F.max_pool2d((dx.square() + dy.square()).sqrt(), 9, 1, 4)), 0.02, 0.06)


def _coherence(flow: Flow, lr: Tensor) -> Tensor:
    dx, dy = _differences(flow, lr)
    xx, xy, yy = _mean(dx * dx), _mean(dx * dy), _mean(dy * dy)
    root = ((xx - yy).square() + 4 * xy * xy).sqrt()
    large, small = (xx + yy + root) / 2, ((xx + yy - root) / 2).clamp_min(0)
    return _ramp(_mean(F.max_pool2d(large.sqrt() - small.sqrt(), 9, 1, 4)), 0.0108, 0.0324)


def _spread(flow: Flow, lr: Tensor) -> Tensor:
    features: Any = flow.encode_condition(lr).features[0]
    total = torch.zeros(1)
    injectors = [m for m in flow.levels[0].modules() if isinstance(m, Injector)]
    for injector in injectors:
        zeros = torch.zeros(1, 12, *features.shape[-2:])
        total = total - injector.by_position(zeros, features)[1][:, None] / 12
    return _ramp(total, -0.49, -0.29)


MAPS: dict[str, Map] = {
    "none": lambda _, lr: torch.zeros(1, 1, *lr.shape[-2:]),
    "edges": lambda _, lr: edge_map(lr),
    "gradient": _gradient,
    "coherence": _coherence,
    "spread": _spread,
}


def measure(flow: Flow, hr: Tensor, settings: list[str], kind: str) -> dict[str, dict[str, float]]:
    """Measure all settings on one image, enlarged from its LR image or from a degraded one."""
    lr = as_stored(shrink(hr, flow.condition_scale))
    source = INPUTS[kind](lr)
    store = ConditionStore()
    maps = {name: MAPS[name](flow, source) for name in {setting.split(":")[0] for setting in settings}}
    rows: dict[str, dict[str, float]] = {}
    for setting in settings:
        name, tau, share = setting.split(":")
        temperature = float(tau) * (1 - float(share) * maps[name]) if float(share) else float(tau)
        made = flowcore.upscale(flow, source, temperature=temperature, samples=SAMPLES, seed=7, store=store)
        made = as_stored(made)
        values = (false_specks(made, hr), niqe(made), psnr(made, hr), lr_psnr(made, lr))
        rows[setting] = dict(zip(MEASURES, [*(float(v.mean()) for v in values), diversity(made)], strict=True))
    return rows


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "calm_edges")
    option = parser.add_argument
    option("folders", nargs="+", type=Path, help="HR images")
    option("--crop", type=int, default=320, help="side of the central crops; 0 for whole images (default: 320)")
    text = "folders of which only the images count that are on the list of held-out images"
    option("--held-out", nargs="+", default=[], metavar="NAME", help=text)
    option("--limit", type=int, help="at most so many images of a folder, evenly spread over their names")
    option("--model", default="srflow-x4")
    option("--input", choices=INPUTS, default="clean", help="as in benchmarks.upscalers")
    option("--settings", nargs="+", default=SETTINGS, metavar="MAP:TEMPERATURE:SHARE", help="share: as calm_edges")
    option("--json", type=Path, help="also write the numbers of every image to this file")
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with torch.no_grad():
        for name, hr in crops(options):
            rows[name] = measure(flow, hr, options.settings, options.input)
            say(name)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    lines: list[list[str]] = []
    for setting in options.settings:
        means = [math.fsum(row[setting][key] for row in rows.values()) / len(rows) for key in MEASURES]
        cells = [f"{value:.{digits}f}" for value, digits in zip(means, (3, 2, 2, 1, 2), strict=True)]
        lines.append([*setting.split(":"), *cells])
    heads = ["map", "tau", "share", "false specks", "NIQE", "PSNR", "LR-PSNR", "diversity"]
    sys.stdout.write(markdown(heads, lines) + "\n")


def _differences(flow: Flow, lr: Tensor) -> tuple[Tensor, Tensor]:
    y = F.pad(luma(enlarge(lr, flow.condition_scale)), (1, 1, 1, 1), mode="replicate")
    return (y[..., 1:-1, 2:] - y[..., 1:-1, :-2]) / 2, (y[..., 2:, 1:-1] - y[..., :-2, 1:-1]) / 2


def _mean(t: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(t, (4, 4, 4, 4), mode="replicate"), 9, 1)


def _ramp(t: Tensor, low: float, high: float) -> Tensor:
    return ((t - low) / (high - low)).clamp(0, 1)


def crops(options: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """Read the middle of every chosen image; shorter sides stay."""
    for folder in options.folders:
        only = held_out_names("standard") if folder.name in options.held_out else None
        for path in list_images(folder, only, options.limit):
            hr = read_cropped(path, 16)
            yield path.name, middle(hr, options.crop or max(hr.shape))


if __name__ == "__main__":
    main()
