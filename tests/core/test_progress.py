"""Whoever runs a plan can follow it unit by unit; test_threads.py has two who do so at once."""

import pytest
import torch
from builders import build_model, build_tiny
from every_task import sides, source_of

from flowcore.inference.convolutions import Conv
from flowcore.inference.plan import Plan
from flowcore.inference.strips import observed
from flowcore.prior import sample_latents


@pytest.mark.parametrize("architecture", ["glow", "srflow", "realnvp", "colorizer"])
def test_all_units_of_work_are_reported(architecture):
    flow = build_tiny(architecture)
    plan, (height, width), source = Plan(flow), sides(flow), source_of(flow, 1)
    reports, cond = [], None
    with observed(reports.append):
        if source is not None:
            cond = plan.encode_condition(source)
        assert sum(reports) == plan.encoder_units
        assert (plan.encoder_units > 0) == (source is not None)
        reports.clear()
        if cond is not None:
            cond.prepare(plan)
        assert sum(reports) == plan.prepare_units
        assert (plan.prepare_units > 0) == (source is not None)
        reports.clear()
        x = plan.inverse(sample_latents(plan.latent_shapes(height, width), 1, 0.7, 0), cond)
        assert sum(reports) == plan.units > 0
        assert reports.count(0) > plan.units  # before every convolution
        for encode in (plan, plan.by_position):
            reports.clear()
            encode(x, cond)
            assert sum(reports) == plan.units
    reports.clear()
    plan.inverse(sample_latents(plan.latent_shapes(height, width), 1, 0.7, 0), cond)
    assert not reports


@pytest.mark.parametrize("model", ["srflow", "srflow on imdn"])
def test_no_convolution_takes_a_whole_image_during_which_nobody_could_stop_it(model, monkeypatch):
    flow, rows, run = build_model(model), list[int](), Conv.forward
    monkeypatch.setattr(Conv, "forward", lambda conv, x, *span: rows.append(span[1] - span[0]) or run(conv, x, *span))
    plan = Plan(flow, strip_bytes=1)
    plan.budget.usual_dense = 1
    plan.encode_condition(torch.rand(1, 3, 64, 8))
    assert max(rows) < 64
