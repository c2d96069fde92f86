"""Compare all families of flows on the same photographs and training time: bits per dimension, cost, samples.

    python -m benchmarks.families --data photos-small --minutes 60                    trains all, then makes the table
    python -m benchmarks.families --data photos-small --minutes 60 --only ffjord      trains one, then makes the table
    python -m benchmarks.families --data photos-small --minutes 0                     makes the table of trained models

Trains each family with the standard trainer in ``runs/families/NAME`` (stopped runs resume), on photographs of 32x32
pixels and 8 bits, without those listed in ``flowcore/training/held_out.txt``. These are then scored. The table is
written to ``docs/bits-per-dimension.md``, samples of each family to ``docs/bits-per-dimension.jpg``. Minutes are wall
time, so reserve a core for it (``taskset``). Measurements are stored beside each model, and not repeated.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import flowcore
from flowcore.engine.model_input import resize_to_own
from flowcore.flows.flow import Flow
from flowcore.images.contact_sheet import contact_sheet
from flowcore.models.model_file import read_header
from flowcore.training.data import open_data
from flowcore.training.evaluation.image_set import evaluate_density, list_images, read_upright
from flowcore.training.loop import train
from flowcore.training.recipe import Recipe, held_out_names, parse_recipe

from .measure import arguments, as_image, say, seconds

SIDE = 32
STEPS = 100_000  # of a recipe: no core makes as many in the minutes given, which then decide
CHECKPOINTS = 8
TEMPERATURE, SAMPLES = 0.8, 8
DRAWS = (1, 4, 16)
TIMED = 8  # images that are scored, sampled and decoded for seconds and round trips
BEGIN, END = "<!-- written by python -m benchmarks.families -->", "<!-- until here -->"

GLOW = "levels = 3\nsteps = 8\nhidden = 128\naffine_eps = 0.1"
ABLATION = {
    f"glow-{coupling}-{mixing}": ("glow", f'{GLOW}\ncoupling = "{coupling}"\nmixing = "{mixing}"', "")
    for coupling in ("affine", "additive")
    for mixing in ("reverse", "shuffle", "conv", "lu")
}
BLOCKS = "blocks = [4, 4, 4]\nhidden = 64\nfull_blocks = 2\nfull_hidden = 32"
PATHS = "kinetic_weight = 0.01\njacobian_weight = 0.01"
FAMILIES: dict[str, tuple[str, str, str]] = {  # to architecture, fields of the model, and of the stage
    "realnvp": ("realnvp", "scales = 3\nhidden = 16\nblocks = 2", ""),
    **ABLATION,
    "residual-flow": ("residual_flow", BLOCKS, "warmup = 500"),
    "tarflow": ("tarflow", "patch = 4\nwidth = 128\nhidden = 512\nblocks = 4\nlayers = 2", "warmup = 100"),
    "ffjord": ("ffjord", "scales = 4\nblocks = 1\nhidden = [32, 32]\nsteps = 4", PATHS),
}
VARIATIONAL = "glow-affine-conv-variational"
FAMILIES[VARIATIONAL] = ("glow", f"{ABLATION['glow-affine-conv'][1]}\ndequantizer_steps = 4", "")
TITLES = {"realnvp": "Real NVP", "residual-flow": "Residual Flow", "tarflow": "TarFlow", "ffjord": "FFJORD"}
RECIPE = """
name = "{name}"
architecture = "{architecture}"
seed = 1
short_sides = [{side}]
held_out = "standard"
ema = 0.999
checkpoint_every = {every}
evaluate = 64
init_batch = 256
turn = false
precision = "float32"
licence = "MIT; trained on freely licensed photographs, named in flowcore/weights/SOURCES.tsv"
[model]
{model}
image_size = {side}
[[stages]]
name = "flow"
objective = "likelihood"
steps = {steps}
batch = 32
crop = {side}
learning_rate = 1e-3
clip = 1.0
{stage}
"""


def main() -> None:
    """Train, measure, write."""
    parser = arguments(__doc__, "families")
    parser.add_argument("--data", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, for each; 0 for none; default 60")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, metavar="FAMILY", help="what to train")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="folder; default runs/families")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of text and picture; default docs")
    parser.add_argument("--limit", type=int, default=10_000, help="held-out photographs to score; default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only if options.minutes else ():
        say(f"training {name}")
        train_family(name, options.data, options.runs / name, options.minutes)
    write(options.data, options.runs, options.docs, options.limit)


def recipe(name: str) -> Recipe:
    """Make the recipe of a family."""
    architecture, model, stage = FAMILIES[name]
    fields = {"name": name, "architecture": architecture, "model": model, "stage": stage}
    return parse_recipe(RECIPE.format(**fields, side=SIDE, steps=STEPS, every=STEPS // CHECKPOINTS))


def train_family(name: str, data: Path, run: Path, minutes: float) -> None:
    """Train a family for its remaining minutes; the trainer fits the number of steps and the rates to them."""
    decoded = run.parent / "cache"  # by all families, and before the minutes begin
    open_data(recipe(name), data, decoded)
    run.mkdir(exist_ok=True)
    if not (run / "cache").exists():
        (run / "cache").symlink_to(decoded.resolve())
    model = run / "model.safetensors"
    left = minutes - (read_header(model).provenance["minutes"] if model.exists() else 0)
    if left > 0:
        train(recipe(name), data, run, minutes=left)


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(name: str, data: Path, run: Path, limit: int) -> dict[str, Any] | None:
    """Measure a trained model, or return the stored measurements of the same file; None if there is no model."""
    file, kept = run / "model.safetensors", run / "measured.json"
    if not file.exists():
        return None
    stamp = [file.stat().st_mtime_ns, limit]
    if kept.exists() and (row := json.loads(kept.read_text()))["stamp"] == stamp:
        return row
    say(f"measuring {name}")
    flow, provenance = flowcore.load(file), read_header(file).provenance
    only = held_out_names("standard")
    density = evaluate_density(flow, data, only=only, limit=limit)
    images = held_out(flow, data, TIMED)
    n = len(images)
    programs = {
        "score": lambda: flowcore.score(flow, images, complexity=False),
        "sample": lambda: flowcore.sample(flow, n, temperature=TEMPERATURE),
    }
    for program in programs.values():
        program()  # prepares what is cached
    row: dict[str, Any] = {
        "stamp": stamp,
        "minutes": provenance["minutes"],
        "steps": provenance["steps"],
        "parameters": sum(p.numel() for key, p in flow.named_parameters() if not key.startswith("dequantizer.")),
        **density,
        **{name: seconds(program, "cpu", time.process_time) / n for name, program in programs.items()},
        "round trip": float((flowcore.decode(flow, flowcore.encode(flow, images)) - images).abs().max()),
    }
    if name == VARIATIONAL:
        row["dequantization"] = {
            kind: [
                evaluate_density(flow, data, dequantization=kind, samples=draws, only=only, limit=limit)
                for draws in DRAWS
            ]
            for kind in ("uniform", "gaussian", "variational")
        }
    kept.write_text(json.dumps(row))
    return row


def held_out(flow: Flow, data: Path, limit: int) -> Tensor:
    """Read held-out photographs at the size of a model, ``(B, 3, H, W)`` uint8."""
    files = list_images(data, held_out_names("standard"), limit)
    return torch.stack([resize_to_own(flow, read_upright(file)) for file in files])


# --- writing ----------------------------------------------------------------------------------------------------------


def write(data: Path, runs: Path, docs: Path, limit: int) -> None:
    """Write table and picture of all trained models."""
    rows = {name: row for name in FAMILIES if (row := measured(name, data, runs / name, limit)) is not None}
    if not rows:
        say(f"nothing has been trained in {runs} yet")
        return
    docs.mkdir(parents=True, exist_ok=True)
    picture(rows, data, runs).save(docs / "bits-per-dimension.jpg", quality=92, subsampling=0)
    page = docs / "bits-per-dimension.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Bits per dimension\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{after}", encoding="utf-8")
    say(f"wrote {page}")


def title(name: str) -> str:
    """Return the readable name of a family."""
    if name in TITLES:
        return TITLES[name]
    _, coupling, mixing, *variational = name.split("-")
    mixing = {"conv": "1x1 convolution", "lu": "1x1 convolution as LU"}.get(mixing, mixing)
    return f"Glow, {coupling}, {mixing}{', variational noise' if variational else ''}"


def tables(rows: dict[str, dict[str, Any]]) -> str:
    """Write the tables in Markdown."""
    counts = {row["images"] for row in rows.values()}
    heads = ["family", "parameters", "minutes", "steps", "bits per dimension", "score, s", "sample, s", "round trip"]
    lines = [
        f"{'/'.join(map(str, sorted(counts)))} held-out photographs of {SIDE}x{SIDE}, 8 bits, one draw of uniform "
        "noise; bits per dimension with the standard error of the mean. Seconds are processor time per image on one "
        f"core, in batches of {TIMED}; the round trip is the largest error of a pixel in [0, 1] after encoding and "
        "decoding.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" + "|---:" * (len(heads) - 1) + "|",
    ]
    lines += [
        f"| {title(name)} | {row['parameters']:,} | {row['minutes']:.0f} | {row['steps']:,} | "
        f"{_bits(row)} | {row['score']:.2g} | {row['sample']:.2g} | {row['round trip']:.0e} |"
        for name, row in rows.items()
    ]
    missing = [title(name) for name in FAMILIES if name not in rows]
    lines += ["", f"Not trained yet: {'; '.join(missing)}."] if missing else []
    if VARIATIONAL in rows:
        lines += [
            "",
            f"{title(VARIATIONAL)}: three kinds of noise, and importance weighting with k draws:",
            "",
            f"| noise | {' | '.join(f'k = {k}' for k in DRAWS)} |",
            "|---|" + "---:|" * len(DRAWS),
        ]
        draws = rows[VARIATIONAL]["dequantization"]
        lines += [f"| {kind} | {' | '.join(map(_bits, values))} |" for kind, values in draws.items()]
    lines += [
        "",
        f"Samples at temperature {TEMPERATURE}, seeds 0 to {SAMPLES - 1}; below, held-out photographs:",
        "",
        "![Samples of every family](bits-per-dimension.jpg)",
    ]
    return "\n".join(lines)


def _bits(row: dict[str, float]) -> str:
    return f"{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}"


def picture(rows: dict[str, dict[str, Any]], data: Path, runs: Path) -> Image.Image:
    """Draw samples of every family, one row per family, and held-out photographs below."""
    shown: list[Tensor] = []
    for name in rows:
        flow = flowcore.load(runs / name / "model.safetensors")
        shown.append(flowcore.sample(flow, SAMPLES, temperature=TEMPERATURE))
    real = held_out(flow, data, SAMPLES).float() / 255
    shown.append(real.repeat(SAMPLES, 1, 1, 1)[:SAMPLES])
    images = torch.nn.functional.interpolate(torch.cat(shown), scale_factor=3, mode="nearest")
    sheet = contact_sheet(images, [*map(title, rows), "photographs"], [str(k) for k in range(SAMPLES)])
    return as_image(sheet)


if __name__ == "__main__":
    main()
