"""Compare SRFlow of the published size with a plain program: seconds, errors, memory, operations per second.

Also measures other methods on the same LR image: bicubic, an RRDB network, the shipped ``srflow-x4``.
"""

import importlib
import importlib.util
import statistics
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import flowcore
from flowcore.engine.compiled import CompiledFlow
from flowcore.flows.prior import sample_latents
from flowcore.images.resize import enlarge
from flowcore.models.srflow import SRFlowConfig

from . import published
from .fresh import fresh
from .measure import Program, Settings, Table, by_turns, picture, seconds, times_as_fast

SMALL: dict[str, Any] = {"steps": 2, "hidden": 16, "encoder_blocks": 2, "encoder_width": 16, "encoder_growth": 8}
SMALL |= {"stacked_blocks": (0, 1)}
TEMPERATURE = 0.9
LARGE = 512  # side of the LR image whose enlargement shall fit into LIMIT
LIMIT = 2.5 * 1024  # MiB


def measure(settings: Settings) -> list[Table]:
    """Measure seconds, memory, and other methods."""
    return [_speed(settings), _memory(settings), _yardsticks(settings)]


# --- seconds ----------------------------------------------------------------------------------------------------------


def _speed(settings: Settings) -> Table:
    flow = published.random_srflow(**(SMALL if settings.quick else {})).to(settings.device)
    precisions = ["float32", "bfloat16"] + (["float16"] if settings.device.startswith("cuda") else [])
    cases = [(precision, samples) for precision in precisions for samples in settings.samples]
    made: dict[str, Tensor] = {}
    compiled: dict[str, CompiledFlow] = {}
    folding = {
        p: seconds(lambda p=p: compiled.update({p: CompiledFlow(flow, cast(Any, p))}), settings.device)
        for p in precisions
    }
    lr = picture(settings.lr, settings.lr).to(settings.device)

    def theirs(small: Tensor) -> None:
        made["published"] = published.decode(flow, small, _latents(flow, small))

    def ours(small: Tensor, precision: str, samples: int) -> None:
        options = {"temperature": TEMPERATURE, "samples": samples}
        made[f"{precision}, {samples}"] = flowcore.upscale(compiled[precision], small, **options)

    programs: dict[str, Program] = {"published": lambda: theirs(lr)}
    programs |= {f"{p}, {n}": lambda p=p, n=n: ours(lr, p, n) for p, n in cases}
    little = lr[..., :16, :16]
    theirs(little)  # warms up
    for precision in precisions:
        ours(little, precision, 1)
    taken = by_turns(programs, settings, warm_up=settings.device.startswith("cuda"))
    work = multiply_adds(flow.config)
    pixels = (settings.lr * flow.config.scale) ** 2
    inside = (made["published"] > 0) & (made["published"] < 1)
    rows = []
    for precision, samples in cases:
        own = taken[f"{precision}, {samples}"]
        loop = [samples * t for t in taken["published"]]
        flops = 2 * pixels * (work.shared + samples * work.per_sample) / statistics.median(own)
        apart = (made[f"{precision}, {samples}"][:1] - made["published"])[inside]
        row = {
            "precision": precision,
            "samples": samples,
            "published s": statistics.median(loop),
            "flowcore s": statistics.median(own),
            "times as fast": times_as_fast(loop, own),
            "max error": float(apart.abs().max()),
            "rms error": float(apart.square().mean().sqrt()),
            "TFLOP/s": flops / 1e12,
        }
        rows.append(row)
    return Table(
        subject="srflow",
        title=f"{flow.config.scale}x decode of LR {settings.lr}x{settings.lr}, random weights",
        rows=rows,
        notes=[
            "Published: benchmarks/published.py in float32; its decode of one sample is measured once a round, and "
            "multiplied by the samples: N samples are N decodes there, encoder included.",
            f"Rounds: {settings.pairs}; seconds and ratios are their medians. Folding the flow, once per model and "
            f"precision, is not in them: {', '.join(f'{t:.2f} s in {p}' for p, t in folding.items())}.",
            "Errors: of the first sample against published, where that lies in (0, 1) "
            f"({100 * inside.float().mean():.1f} % of the values), since upscale clamps.",
            f"TFLOP/s: what the network takes, {2 * work.shared:,.0f} operations per HR pixel and "
            f"{2 * work.per_sample:,.0f} more per pixel and sample, over the seconds; a program that finds an exact "
            "way to do with fewer is credited for all of them.",
        ],
    )


def _latents(flow: Any, lr: Tensor) -> list[Tensor]:
    """Latents of the first sample of ``upscale`` with seed 0."""
    height, width = (side * flow.config.scale for side in lr.shape[-2:])
    return [z.to(lr.device) for z in sample_latents(flow.latent_shapes(height, width), 1, TEMPERATURE, seed=0)]


@dataclass(frozen=True, kw_only=True)
class MultiplyAdds:
    """Multiply-adds of the convolutions of an SRFlow's decode, per HR pixel."""

    shared: float  # of encoder, injectors, and couplings' first convolutions as far as they see the condition
    per_sample: float  # of the rest of a decode
    dead: float  # of what the published program does besides, and nothing reads


def multiply_adds(config: SRFlowConfig) -> MultiplyAdds:
    """Count, per HR pixel, from the configuration of a network with injectors."""
    scale, width, growth, hidden = config.scale, config.encoder_width, config.encoder_growth, config.hidden
    dense = sum(9 * (width + k * growth) * (growth if k < 4 else width) for k in range(5))
    trunk = 9 * 3 * width + 3 * config.encoder_blocks * dense + 9 * width**2  # per LR pixel
    enlarging, grid = 0.0, 2
    while grid < scale:  # the convolution that ends at the HR image's grid is dead
        enlarging += 9 * width**2 * (grid / scale) ** 2
        grid *= 2
    shared = trunk / scale**2 + enlarging
    per_sample = 0.0
    features = width * (1 + len(config.stacked_blocks))
    between = config.hidden_layers * config.hidden_kernel**2 * hidden**2
    channels = 3
    for level in range(1, config.levels + 1):
        channels *= 4
        injector = 9 * features * hidden + between + 9 * hidden * 2 * channels
        of_condition = 9 * features * hidden
        of_sample = 9 * channels // 2 * hidden + between + 9 * hidden * channels
        shared += config.steps * (injector + of_condition) / 4**level
        mixing = (config.steps + config.transition_steps) * channels**2
        per_sample += (config.steps * of_sample + mixing) / 4**level
        if level < config.levels - 1:
            per_sample += 9 * channels // 2 * channels / 4**level
            channels //= 2
    return MultiplyAdds(shared=shared, per_sample=per_sample, dead=2 * 9 * width**2 + 9 * width * 3)


# --- memory -----------------------------------------------------------------------------------------------------------


def prepare(*, device: str, quick: bool, lr: int, samples: int, precision: str) -> Program:
    """Get one enlargement ready, for a fresh process; the precision "published" stands for that program."""
    flow = published.random_srflow(**(SMALL if quick else {})).to(device)
    image = picture(lr, lr).to(device)
    if precision == "published":
        latents = _latents(flow, image)
        return lambda: published.decode(flow, image, latents)
    options = {"temperature": TEMPERATURE, "samples": samples, "precision": precision}
    return lambda: flowcore.upscale(flow, image, **cast(Any, options))


def _memory(settings: Settings) -> Table:
    large = 2 * settings.lr if settings.quick else LARGE
    cases = [("published", settings.lr, 1)]
    cases += [("float32", settings.lr, n) for n in settings.samples]
    cases += [("bfloat16", settings.lr, settings.samples[0]), ("float32", large, 1)]
    rows: list[dict[str, Any]] = []
    for precision, lr, samples in cases:
        cost = fresh(prepare, settings, quick=settings.quick, lr=lr, samples=samples, precision=precision)
        row: dict[str, Any] = {
            "program": "published" if precision == "published" else f"flowcore, {precision}",
            "output": f"{4 * lr}x{4 * lr}",
            "samples": samples,
            "peak MiB": cost.peak,
            "beyond model MiB": cost.beyond,
        }
        if rows and lr == settings.lr:
            row["peak, of published"] = _part(cost.peak, rows[0]["peak MiB"])
            row["beyond, of published"] = _part(cost.beyond, rows[0]["beyond model MiB"])
        if lr == large:
            row["peak, of 2.5 GiB"] = _part(cost.peak, LIMIT)
        rows.append(row)
    return Table(
        subject="srflow",
        title="memory, each in a fresh process",
        rows=rows,
        notes=[
            "Peak: all that the process ever held (on a GPU, what torch gave out), with interpreter, torch, weights "
            "and results; beyond model: less what it held just before the first decode."
        ],
    )


def _part(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole


# --- yardsticks -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _yardsticks(settings: Settings) -> Table:
    lr = picture(settings.lr, settings.lr).to(settings.device)
    own, rrdb = "flowcore.upscale", "RRDB of spandrel"
    models = {
        f"{own}, published size": published.random_srflow(**(SMALL if settings.quick else {})),
        f"{own}, srflow-x4 as shipped": flowcore.load("srflow-x4"),
    }
    if importlib.util.find_spec("spandrel") is not None:
        architecture: Any = importlib.import_module("spandrel.architectures.ESRGAN")
        torch.manual_seed(0)
        models[rrdb] = architecture.ESRGAN(num_filters=64, num_blocks=2 if settings.quick else 23, scale=4).eval()
    programs: dict[str, Program] = {"bicubic": lambda: enlarge(lr, 4)}
    for name, model in models.items():
        model.to(settings.device)
        programs[name] = (lambda m=model: m(lr)) if name == rrdb else (lambda m=model: flowcore.upscale(m, lr))
    taken = by_turns(programs, settings, warm_up=True)
    rows = [
        {
            "program": name,
            "parameters": sum(p.numel() for p in models[name].parameters()) if name in models else 0,
            "s": statistics.median(each),
        }
        for name, each in taken.items()
    ]
    if rrdb not in taken:
        rows.append({"program": rrdb, "parameters": "not installed: pip install spandrel"})
    title = f"4x of LR {settings.lr}x{settings.lr}, one sample, float32"
    notes = ["Weights of RRDB and of the published size are random."]
    return Table(subject="srflow", title=title, rows=rows, notes=notes)
