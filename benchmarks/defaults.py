"""How samples at several settings compare with temperature 0: the numbers by which an upscaler's defaults are chosen.

    python -m benchmarks.defaults FOLDER [FOLDER ...] [--model srflow-x4] [--crop 0] [--held-out NAME] [--limit 6]

A setting is TEMPERATURE:SHARE[:STRENGTH], where the temperature is one number or, with commas, one per level, the share
is ``calm_edges`` of ``flowcore.upscale``, and the strength that of the model's guide (0 if it is missing). The last
column says whether the setting keeps to the rule of docs/decisions/0015: it is at most 3 % further from the original
than temperature 0 by the feature distance, at most 0.4 dB below its PSNR, and has at most 1.5 times its false specks
plus 0.01 per mille.
"""

import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

import flowcore
from flowcore.engine.condition_cache import ConditionStore
from flowcore.flows.flow import Flow
from flowcore.images.color import as_stored
from flowcore.images.metrics import diversity, false_specks, grid_energy, lr_psnr, psnr
from flowcore.images.resize import downsample
from flowcore.training.evaluation.feature_distance import feature_distance
from flowcore.training.evaluation.image_set import list_images, read_cropped
from flowcore.training.recipe import held_out_names

from .measure import arguments, markdown, middle, recall, say
from .upscalers import INPUTS

# and their digits
MEASURES = {"PSNR": 2, "LR-PSNR": 1, "feature distance": 3, "false specks": 3, "grid": 0, "diversity": 2}
SAMPLES = 2
PLAIN = "0:0"  # what the others are compared with
SETTINGS = (PLAIN, "0.6:0", "0.7:0", "0.8:0", "0.9:0", "1:0", "1:0.3", "1:0.5")
FARTHER, LOSS, TIMES_SPECKS, MORE_SPECKS = 1.03, 0.4, 1.5, 0.01


def measure(flow: Flow, hr: Tensor, settings: list[str], kind: str) -> dict[str, list[float]]:
    """Measure settings on one image, enlarged from its LR image or from a degraded one."""
    lr = as_stored(downsample(hr, flow.condition_scale))
    source, store = INPUTS[kind](lr), ConditionStore()
    rows: dict[str, list[float]] = {}
    for setting in settings:
        of_levels, share, *strength = setting.split(":")
        taus = [float(tau) for tau in of_levels.split(",")]
        temperature = taus if len(taus) > 1 else taus[0]
        options = {"temperature": temperature, "calm_edges": float(share), "seed": 7, "store": store}
        samples = SAMPLES if any(taus) else 1
        guide = float(strength[0]) if strength else 0.0
        made = as_stored(flowcore.upscale(flow, source, **options, samples=samples, guide_strength=guide))
        values = (psnr(made, hr), lr_psnr(made, lr), feature_distance(made, hr), false_specks(made, hr))
        different = diversity(made) if samples > 1 else 0.0
        rows[setting] = [*(float(v.mean()) for v in (*values, grid_energy(made))), different]
    return rows


def follows_rule(row: list[float], plain: list[float]) -> bool:
    """Return True if means of a setting keep to the rule, beside those of temperature 0; both as ``MEASURES``."""
    quality, _, distance, specks, *_ = row
    return (
        quality >= plain[0] - LOSS
        and distance <= FARTHER * plain[2]
        and specks <= TIMES_SPECKS * plain[3] + MORE_SPECKS
    )


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "defaults")
    option = parser.add_argument
    option("folders", nargs="+", type=Path, help="HR images, or folders of them")
    option("--crop", type=int, default=0, help="side of the central crops (default: 0, whole images)")
    text = "folders of which only the images count that are on the list of held-out images"
    option("--held-out", nargs="+", default=[], metavar="NAME", help=text)
    option("--limit", type=int, help="at most so many images of a folder, evenly spread over their names")
    option("--model", default="srflow-x4")
    option("--input", choices=INPUTS, default="clean", help="as in benchmarks.upscalers")
    option("--settings", nargs="+", default=SETTINGS, metavar="TEMPERATURE:SHARE[:STRENGTH]")
    option("--json", type=Path, help="numbers of every image; what is there already is not measured again")
    options = parser.parse_args()
    settings = list(dict.fromkeys([PLAIN, *options.settings]))
    flow = flowcore.load(options.model)
    rows: dict[str, dict[str, list[float]]] = recall(options.json)
    files: list[Path] = []
    for folder in options.folders:
        only = held_out_names("standard") if folder.name in options.held_out else None
        files += [folder] if folder.is_file() else list_images(folder, only, options.limit)
    for path in files:
        row = rows.setdefault(path.name, {})
        if missing := [setting for setting in settings if setting not in row]:
            hr = read_cropped(path, 16)
            row |= measure(flow, middle(hr, options.crop or max(hr.shape)), missing, options.input)
            say(path.name)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    measured = [rows[path.name] for path in files]
    means = {s: [math.fsum(c) / len(measured) for c in zip(*(r[s] for r in measured), strict=True)] for s in settings}
    lines: list[list[str]] = []
    for setting, row in means.items():
        tau, share, *strength = setting.split(":")
        cells = [f"{value:.{digits}f}" for value, digits in zip(row, MEASURES.values(), strict=True)]
        lines.append([tau, share, *(strength or "0"), *cells, "yes" if follows_rule(row, means[PLAIN]) else ""])
    sys.stdout.write(markdown(["tau", "share", "strength", *MEASURES, "rule"], lines) + "\n")


if __name__ == "__main__":
    main()
