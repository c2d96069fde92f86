"""HCFlow: samples of one LR image by a plan, and by a plain program of the same network that decodes each anew.

The plain program is the readable reference (``Flow``): layer by layer, with concatenations, whole images, and the
inverse of every 1x1 convolution in float64 per call, as published. Random weights of the published 4x network.
Seconds are of processor time of all threads, so that other programs on the machine matter less.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from flowcore.flow import Flow
from flowcore.inference.plan import Plan
from flowcore.models import build, configure
from flowcore.prior import sample_latents

from .fresh import fresh
from .measure import Program, Settings, by_turns, picture, times_as_fast
from .report import Table

SMALL = {"steps": 2, "detail_steps": 1, "hidden": 8, "detail_hidden": 8, "extractor_blocks": (1, 1)}
TIMED, HELD = 24, 64  # sides of the LR images for seconds and for memory
SAMPLES = (1, 4)


def measure(settings: Settings) -> list[Table]:
    """Measure seconds by the number of samples, and the memory of one sample."""
    lr, held = (8, 8) if settings.quick else (TIMED, HELD)
    rows = []
    for samples in SAMPLES:
        programs = {
            name: prepare(device=settings.device, quick=settings.quick, lr=lr, samples=samples, program=name)
            for name in ("plain", "flowcore")
        }
        taken = by_turns(programs, settings, warm_up=False, clock=time.process_time)
        medians = {f"{name}, s of processor": statistics.median(taken[name]) for name in programs}
        rows.append({"samples": samples, **medians, "times as fast": times_as_fast(taken["plain"], taken["flowcore"])})
    memory = [
        {
            "program": name,
            "beyond model MiB": fresh(prepare, settings, quick=settings.quick, lr=held, samples=1, program=name).beyond,
        }
        for name in ("plain", "flowcore")
    ]
    return [
        Table(subject="hcflow", title=f"4x decode of LR {lr}x{lr}, random weights", rows=rows),
        Table(subject="hcflow", title=f"memory, one sample of LR {held}x{held}", rows=memory),
    ]


def prepare(*, device: str, quick: bool, lr: int, samples: int, program: str) -> Program:
    """Get one enlargement ready, by the program "plain" or "flowcore"."""
    torch.manual_seed(0)
    flow = build("hcflow", configure("hcflow", SMALL if quick else {})).eval().to(device)
    image = picture(lr, lr).to(device)
    if program == "plain":
        return lambda: plain(flow, image, samples)
    plan = Plan(flow)
    return lambda: plan.inverse(_latents(plan, image, samples), plan.encode_condition(image))


@torch.no_grad()
def plain(flow: Flow, lr: Tensor, samples: int) -> Tensor:
    """Decode every sample by itself, each with its own encoding of the LR image."""
    drawn = _latents(flow, lr, samples)
    return torch.cat([flow.inverse([z[k, None] for z in drawn], flow.encode_condition(lr)) for k in range(samples)])


def _latents(flow: Flow | Plan, lr: Tensor, samples: int) -> list[Tensor]:
    shapes = flow.latent_shapes(4 * lr.shape[2], 4 * lr.shape[3])
    return [z.to(lr.device) for z in sample_latents(shapes, samples, 0.9, anchored=True)]
