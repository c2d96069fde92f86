"""The ablations of SRFlow in one table: what each part is worth, at the same budget each.

    python -m benchmarks.ablation --data FOLDER --encoder MODEL --eval FOLDER [FOLDER ...] [--steps 300]

Trains the flow of MODEL's configuration as it is, without transition steps, without affine injectors, with half the
steps per level, and with half the width of the networks in injectors and couplings. All are trained on MODEL's encoder,
which is frozen, so that they see the same features and the budget goes to the flow; and on the same crops, noise and
schedule, for as many steps, or with --equal time for as long as the first one's steps take.

Prints JSON, then a table: bits per dimension of held-out crops (noise as in training; the same crops and noise for all,
so that the standard error is that of the difference), and on the folders of --eval what ``evaluate_upscaler`` measures.
Fewer bits are better; what that does to pictures is in the other columns. With --keep FOLDER, the models stay there.
With --estimate, it says how long the training would take, and stops.

Source: Lugmayr et al., "SRFlow", the ablation study; the last two are its "depth" and "width".
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcore.checkpoints.file import read, read_header
from flowcore.dequantization import dequantize
from flowcore.evaluation.upscaling import evaluate_upscaler
from flowcore.flow import Flow
from flowcore.likelihood import bits_per_dim, log_prob
from flowcore.models import build, configure
from flowcore.models.srflow import SRFlowConfig
from flowcore.training.data import open_data
from flowcore.training.loop import train
from flowcore.training.objective import Likelihood
from flowcore.training.photographs import Photographs
from flowcore.training.recipe import Recipe, parse_recipe

RECIPE = """
name = "ablation"
architecture = "srflow"
seed = {seed}
pyramid = [1.0, 0.5, 0.35]
validation = 6
ema = 0.99
checkpoint_every = 100000
recompute = "never"
precision = "{precision}"
init_batch = 128

[model]
{model}

[[stages]]
name = "flow"
objective = "likelihood"
steps = {steps}
batch = {batch}
crop = {crop}
learning_rate = 1e-3
warmup = {warmup}
clip = 1.0
train_encoder_after = 1.0
"""
TEMPERATURE = 0.8
MEASURES = {"psnr": "PSNR", "lr_psnr": "LR-PSNR", "diversity": "diversity", "lpips": "LPIPS"}  # the last if installed
ROUNDS = 5  # of timing
PART = 16  # crops measured at once


def main() -> None:
    """Train all variants, and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, any depth")
    parser.add_argument("--encoder", type=Path, required=True, help="model file: its encoder, and its configuration")
    parser.add_argument("--eval", type=Path, nargs="+", default=[], metavar="FOLDER", help="to measure on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--equal", default="steps", choices=["steps", "time"], help="the budget (default: steps)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=96, help="side of the crops in pixels (default: 96)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crops", type=int, default=128, help="held-out crops to measure on (default: 128)")
    parser.add_argument("--samples", type=int, default=8, help="per image, for diversity (default: 8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the runs there, and resume them")
    parser.add_argument("--estimate", action="store_true", help="time a few steps of each, and stop")
    options = parser.parse_args()
    header = read_header(options.encoder)
    if header.architecture != "srflow":
        parser.error(f"--encoder must be an srflow model; {options.encoder.name} is a {header.architecture} model")
    structures = variants(configure(header.architecture, header.config))
    with tempfile.TemporaryDirectory() as temporary:
        runs: Path = options.keep or Path(temporary)
        (runs / "cache").mkdir(parents=True, exist_ok=True)
        encoder = runs / "encoder.safetensors"  # a copy, since a training that goes on may replace the file meanwhile
        if not encoder.exists():
            shutil.copyfile(options.encoder, encoder)
        elif encoder.read_bytes() != options.encoder.read_bytes():
            parser.error(f"{runs} holds an ablation on another encoder; give another --keep")
        recipes = {name: recipe_of(config, options.steps, options) for name, config in structures.items()}
        photographs = open_data(recipes["baseline"], options.data, runs / "cache")
        assert isinstance(photographs, Photographs)
        seconds = seconds_per_step(recipes, photographs, options.device)
        if options.equal == "time":
            recipes = {
                name: recipe_of(recipe.model, round(options.steps * seconds["baseline"] / seconds[name]), options)
                for name, recipe in recipes.items()
            }
        total = sum(recipe.stages[0].steps * seconds[name] for name, recipe in recipes.items())
        sys.stderr.write(f"seconds per step: {json.dumps({k: round(v, 2) for k, v in seconds.items()})}\n")
        sys.stderr.write(f"training all of them takes about {total / 60:.0f} minutes; then they are measured\n")
        if options.estimate:
            return
        rows: dict[str, dict[str, Any]] = {}
        bits: dict[str, Tensor] = {}
        for name, recipe in recipes.items():
            run = runs / name.replace(" ", "-")
            share(runs / "cache", run)
            model = train(recipe, options.data, run, device=options.device, encoder_from=encoder)
            flow = read(model).to(options.device)
            begun = time.monotonic()
            bits[name] = held_out(flow, photographs, options.crop, options.crops)
            difference = bits[name] - bits["baseline"]
            rows[name] = {
                "flow_parameters": flow_parameters(recipe.model),
                "steps": recipe.stages[0].steps,
                "seconds_per_step": round(seconds[name], 3),
                "bits_per_dim": float(bits[name].mean()),
                "difference": float(difference.mean()),
                "standard_error": float(difference.std() / len(difference) ** 0.5),
                "sets": {folder.name: evaluated(flow, folder, options.samples) for folder in options.eval},
                "minutes_measuring": round((time.monotonic() - begun) / 60, 1),
            }
    budget = {key: getattr(options, key) for key in ("equal", "steps", "batch", "crop", "precision", "seed", "crops")}
    sys.stdout.write(json.dumps({"budget": budget, "encoder": options.encoder.name, "variants": rows}) + "\n\n")
    sys.stdout.write(table(rows, [folder.name for folder in options.eval]) + "\n")


# --- what is trained --------------------------------------------------------------------------------------------------


def variants(config: SRFlowConfig) -> dict[str, SRFlowConfig]:
    """Name the configurations: the first as it is, and one change each; without those that change nothing."""
    changes: dict[str, dict[str, Any]] = {
        "no transition steps": {"transition_steps": 0},
        "no affine injector": {"injector": False},
        "half the steps": {"steps": max(1, config.steps // 2)},
        "half the width": {"hidden": max(1, config.hidden // 2)},
    }
    changed = {name: dataclasses.replace(config, **fields) for name, fields in changes.items()}
    return {"baseline": config, **{name: other for name, other in changed.items() if other != config}}


def recipe_of(config: SRFlowConfig, steps: int, options: argparse.Namespace) -> Recipe:
    """Write the recipe of one variant; its text goes into the model file."""
    model = "\n".join(f"{name} = {json.dumps(value)}" for name, value in dataclasses.asdict(config).items())
    return parse_recipe(
        RECIPE.format(
            model=model,
            steps=steps,
            warmup=min(100, steps // 5),
            seed=options.seed,
            precision=options.precision,
            batch=options.batch,
            crop=options.crop,
        )
    )


def share(cache: Path, run: Path) -> None:
    """Let a run find the photographs that are decoded already; where links are not allowed, it decodes its own."""
    run.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        (run / "cache").symlink_to(cache.resolve(), target_is_directory=True)


def flow_parameters(config: SRFlowConfig) -> int:
    """Count the parameters of the flow, without its encoder."""
    with torch.device("meta"):
        flow = build("srflow", config)
    return sum(parameter.numel() for parameter in flow.levels.parameters())


# --- what is measured -------------------------------------------------------------------------------------------------


def seconds_per_step(recipes: dict[str, Recipe], photographs: Photographs, device: str) -> dict[str, float]:
    """Time loss and gradient of every variant, taking turns, so that what else the machine does slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in recipes}
    losses: dict[str, Likelihood] = {}
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        flow = build("srflow", recipe.model).to(device=device, memory_format=torch.channels_last)
        losses[name] = Likelihood(flow)
        losses[name].encoder_frozen = True
    for _ in range(1 + ROUNDS):  # the first one warms up
        for name, recipe in recipes.items():
            stage, loss = recipe.stages[0], losses[name]
            hr, lr = photographs.batch(stage.batch, stage.crop, 0, 0)
            assert lr is not None
            noise = loss.noise(tuple(hr.shape), torch.Generator().manual_seed(0)).to(device)
            begun = time.monotonic()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                value = loss(hr.to(device), lr.to(device), noise)
            value.backward()
            value.item()
            times[name].append(time.monotonic() - begun)
            loss.zero_grad(set_to_none=True)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


@torch.no_grad()
def held_out(flow: Flow, photographs: Photographs, crop: int, count: int) -> Tensor:
    """Bits per dimension of held-out crops, in float32, ``(count,)``: the same crops and noise for every model."""
    device = next(flow.parameters()).device
    generator = torch.Generator().manual_seed(0)
    values: list[Tensor] = []
    for number in range(-(-count // PART)):
        hr, lr = photographs.batch(PART, crop, 0, number, held_out=True)
        assert lr is not None
        cond = flow.encode_condition(lr.to(device))
        noisy = dequantize(hr, flow.config.quant_bins, generator).to(device)
        values.append(bits_per_dim(log_prob(flow, noisy, cond), hr[0].numel()).double().cpu())
    return torch.cat(values)[:count]


def evaluated(flow: Flow, folder: Path, samples: int) -> dict[str, float]:
    """Measure pictures: PSNR of the likeliest, and what a sample at the usual temperature is like."""
    methods = evaluate_upscaler(
        flow, folder, temperatures=(0.0, TEMPERATURE), samples=samples, measures=tuple(MEASURES)
    )
    return {"psnr_tau_0": methods["tau 0"]["psnr"], **methods[f"tau {TEMPERATURE:g}"]}


def table(rows: dict[str, dict[str, Any]], sets: list[str]) -> str:
    """Lay results out as a Markdown table."""
    titles = ["flow", "parameters", "steps", "s/step", "bits/dim", "against the first"]
    for name in sets:
        shown = [title for key, title in MEASURES.items() if key in rows["baseline"]["sets"][name]]
        titles += [f"{name}: PSNR, tau 0", *(f"{title}, tau {TEMPERATURE:g}" for title in shown)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        cells = [name, f"{row['flow_parameters']:,}", f"{row['steps']}", f"{row['seconds_per_step']:.2f}"]
        cells += [f"{row['bits_per_dim']:.3f}", f"{row['difference']:+.3f} ± {row['standard_error']:.3f}"]
        for values in row["sets"].values():
            cells += [f"{values[key]:.3f}" for key in ("psnr_tau_0", *MEASURES) if key in values]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
