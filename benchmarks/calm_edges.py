"""False specks, naturalness and fidelity at several temperatures and calm edges.

The tables of flowcore/weights/README.md:

    python -m benchmarks.calm_edges FOLDER [FOLDER ...] [--model srflow-x4] [--crop 320] [--held-out NAME] [--limit 6]

A setting is TEMPERATURE:SHARE, where the share is ``calm_edges`` of ``flowcore.upscale``.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

import flowcore
from flowcore.evaluation.image_set import list_images, read_cropped
from flowcore.flow import Flow
from flowcore.images.color import as_stored
from flowcore.images.resize import shrink
from flowcore.inference.condition_cache import ConditionStore
from flowcore.quality.metrics import diversity, false_specks, lr_psnr, psnr
from flowcore.quality.no_reference import niqe
from flowcore.training.recipe import held_out_names

from .measure import arguments, markdown, means, middle, say
from .upscalers import INPUTS

MEASURES = {"false specks": 3, "NIQE": 2, "PSNR": 2, "LR-PSNR": 1, "diversity": 2}  # and their digits
SAMPLES = 2
SETTINGS = ("0:0", "0.6:0", "0.8:0", "1:0", "1:0.3", "1:0.4", "1:0.5", "1:0.75")


def measure(flow: Flow, hr: Tensor, settings: list[str], kind: str) -> dict[str, list[float]]:
    """Measure all settings on one image, enlarged from its LR image or from a degraded one."""
    lr = as_stored(shrink(hr, flow.condition_scale))
    source, store = INPUTS[kind](lr), ConditionStore()
    rows: dict[str, list[float]] = {}
    for setting in settings:
        temperature, share = map(float, setting.split(":"))
        options = {"temperature": temperature, "calm_edges": share, "samples": SAMPLES, "seed": 7, "store": store}
        made = as_stored(flowcore.upscale(flow, source, **options))
        values = (false_specks(made, hr), niqe(made), psnr(made, hr), lr_psnr(made, lr))
        rows[setting] = [*(float(v.mean()) for v in values), diversity(made)]
    return rows


@torch.no_grad()
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
    option("--settings", nargs="+", default=SETTINGS, metavar="TEMPERATURE:SHARE")
    option("--json", type=Path, help="also write the numbers of every image to this file")
    options = parser.parse_args()
    flow = flowcore.load(options.model)
    rows: dict[str, dict[str, list[float]]] = {}
    for folder in options.folders:
        only = held_out_names("standard") if folder.name in options.held_out else None
        for path in list_images(folder, only, options.limit):
            hr = read_cropped(path, 16)
            rows[path.name] = measure(flow, middle(hr, options.crop or max(hr.shape)), options.settings, options.input)
            say(path.name)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    lines: list[list[str]] = []
    for setting in options.settings:
        lines.append([*setting.split(":"), *means([row[setting] for row in rows.values()], MEASURES.values())])
    sys.stdout.write(markdown(["tau", "share", *MEASURES], lines) + "\n")


if __name__ == "__main__":
    main()
