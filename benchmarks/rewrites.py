"""What each rewrite of ``flowcore/inference`` gives by itself, on SRFlow of the published size."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowcore.condition import MultiScaleFeatures
from flowcore.inference.plan import Plan
from flowcore.networks import RRDBEncoder
from flowcore.prior import sample_latents

from . import published
from .measure import Program, Settings, by_turns, picture, times_as_fast
from .report import Table
from .srflow import SMALL

MORE = 8  # samples


@torch.no_grad()
def measure(settings: Settings) -> list[Table]:
    """Measure pairs of programs that differ in one thing."""
    flow = published.random_srflow(**(SMALL if settings.quick else {})).to(settings.device)
    lr = picture(settings.lr, settings.lr).to(settings.device)
    plan, high, low = Plan(flow), Plan(flow, strip_bytes=2**40), Plan(flow, "bfloat16")
    side = settings.lr * flow.config.scale
    z, several = (_latents(plan, side, n, settings.device) for n in (1, MORE))
    cond = plan.encode_condition(lr)
    whole = replace(cond, features=tuple(f.merged() if isinstance(f, MultiScaleFeatures) else f for f in cond.features))
    narrow, ready = low.encode_condition(lr), cond.prepare(plan)
    assert isinstance(flow.encoder, RRDBEncoder)
    encoder, folded, levels = flow.encoder, plan.encoder, len(flow.levels)
    assert folded is not None

    def one_by_one() -> None:
        for k in range(MORE):
            plan.inverse([t[k : k + 1] for t in several], cond)

    pairs: dict[str, tuple[str, str, Program, Program]] = {
        "dense blocks in strips": (
            *("encoder", "folded encoder"),
            lambda: encoder(lr, levels, with_enlargement=flow.config.residual),
            lambda: folded(lr, levels, with_enlargement=flow.config.residual),
        ),
        "folding, one inverse per 1x1 convolution, no logdet": (
            *("flow.inverse", "plan.inverse, features enlarged before"),
            lambda: flow.inverse(z, whole),
            lambda: plan.inverse(z, whole),
        ),
        "features convolved before they are enlarged": (
            *("plan.inverse, features enlarged before", "plan.inverse"),
            lambda: plan.inverse(z, whole),
            lambda: plan.inverse(z, cond),
        ),
        "strips": (
            *("plan.inverse, whole canvas", "plan.inverse"),
            lambda: high.inverse(z, cond),
            lambda: plan.inverse(z, cond),
        ),
        f"{MORE} samples share a condition": (
            *(f"{MORE} times plan.inverse", f"plan.inverse of {MORE}"),
            one_by_one,
            lambda: plan.inverse(several, cond),
        ),
        "a prepared condition": (
            *("plan.inverse", "the same, prepared"),
            lambda: plan.inverse(z, cond),
            lambda: plan.inverse(z, ready),
        ),
        "bfloat16 conditioners": (
            *("plan.inverse", "the same in bfloat16"),
            lambda: plan.inverse(z, cond),
            lambda: low.inverse(z, narrow),
        ),
        "bfloat16 encoder": (
            *("plan.encode_condition", "the same in bfloat16"),
            lambda: plan.encode_condition(lr),
            lambda: low.encode_condition(lr),
        ),
    }
    rows: list[dict[str, Any]] = []
    for change, (before, after, first, second) in pairs.items():
        taken = by_turns({"before": first, "after": second}, settings, warm_up=True)
        rows.append(
            {
                "change": change,
                "before": before,
                "s": statistics.median(taken["before"]),
                "after": after,
                "s after": statistics.median(taken["after"]),
                "times as fast": times_as_fast(taken["before"], taken["after"]),
            }
        )
    notes = [
        f"LR {settings.lr}x{settings.lr}, float32 where nothing else is said. Rounds: {settings.pairs}; seconds and "
        "ratios are their medians.",
        f"The condition holds {cond.nbytes / 2**20:,.0f} MiB, prepared {ready.nbytes / 2**20:,.0f} MiB.",
    ]
    title = f"what each change gives, {flow.config.scale}x of LR {settings.lr}x{settings.lr}"
    return [Table(subject="rewrites", title=title, rows=rows, notes=notes)]


def _latents(plan: Plan, side: int, samples: int, device: str) -> list[Tensor]:
    return [t.to(device) for t in sample_latents(plan.latent_shapes(side, side), samples, 0.9, seed=0)]
