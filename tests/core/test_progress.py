"""Whoever runs a plan can follow it and stop it, and nobody else's run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from builders import build_tiny, random_image

from flowcore.inference.plan import Plan
from flowcore.inference.progress import observed
from flowcore.prior import sample_latents

MODELS = {"glow": (8, 12), "srflow": (16, 24), "realnvp": (8, 12), "colorizer": (8, 16)}


def sources(plan, height, width):
    if plan.architecture == "srflow":
        return random_image(1, 3, height // 4, width // 4)
    return random_image(1, 8, 4 * height, 4 * width) if plan.architecture == "colorizer" else None


@pytest.mark.parametrize("architecture", MODELS)
def test_all_units_of_work_are_reported(architecture):
    plan, (height, width) = Plan(build_tiny(architecture)), MODELS[architecture]
    source, reports, cond = sources(plan, height, width), [], None
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


def test_an_observer_stops_its_own_thread_only():
    plan = Plan(build_tiny("glow", perturb=0.05))
    latents = sample_latents(plan.latent_shapes(8, 12), 1, 0.7, 0)
    expected, barrier = plan.inverse(latents), Barrier(2, timeout=60)

    class Stop(Exception):
        pass

    def stopped():
        def stop(units):
            barrier.wait()
            raise Stop

        with observed(stop):
            plan.inverse(latents)

    def undisturbed():
        seen = []

        def meet(units):
            if not seen:
                barrier.wait()
            seen.append(units)

        with observed(meet):
            return plan.inverse(latents), sum(seen)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(stopped), pool.submit(undisturbed)
        with pytest.raises(Stop):
            first.result()
        x, units = second.result()
    assert torch.equal(x, expected)
    assert units == plan.units
