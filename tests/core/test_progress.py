"""Progress of every task: it never falls, never exceeds its total, and ends at it."""

import inspect

import pytest
import torch
from builders import random_image as noise
from small_flows import flow

import flowcore

GRAY, SMALL = noise(1, 1, 24, 32), noise(2, 3, 10, 12)
MASK = torch.zeros(2, 1, 10, 12)
MASK[0, :, 4:6, 3:9] = 1  # there is nothing to repair in the second
TASKS = {
    "audit": lambda **follow: flowcore.audit(flow("small-srflow"), noise(2, 3, 20, 24), SMALL, **follow),
    "brighten": lambda **follow: flowcore.brighten(flow("small-dark"), noise(1, 3, 16, 24), samples=2, **follow),
    "clean": lambda **follow: flowcore.clean(flow("small-restorer"), SMALL, **follow),
    "colorize": lambda **follow: flowcore.colorize(flow("small-color"), GRAY, samples=2, **follow),
    "colorize_video": lambda **follow: flowcore.colorize_video(flow("small-color"), noise(3, 1, 24, 32), **follow),
    "decode": lambda **follow: flowcore.decode(flow("small-glow"), latents(), **follow),
    "encode": lambda **follow: flowcore.encode(flow("small-glow"), noise(3, 3, 12, 16), **follow),
    "encode_colors": lambda **follow: flowcore.encode_colors(flow("small-color"), noise(2, 3, 24, 32), **follow),
    "find_faces": lambda **follow: flowcore.find_faces(noise(2, 3, 40, 48), **follow),
    "find_scratches": lambda **follow: flowcore.find_scratches(noise(2, 1, 40, 48), **follow),
    "match_source": lambda **follow: flowcore.match_source(noise(2, 3, 20, 24), SMALL, **follow),
    "ranked": lambda **follow: flowcore.ranked(
        noise(4, 3, 20, 24), SMALL, "likelihood", flow("small-srflow"), **follow
    ),
    "remember": lambda **follow: flowcore.remember(flowcore.load("color-photos"), noise(2, 3, 192, 192), **follow),
    "repair": lambda **follow: flowcore.repair(flow("small-srflow"), SMALL, MASK, **follow),
    "restore": lambda **follow: flowcore.restore(flow("small-rescaler"), SMALL, samples=2, **follow),
    "sample": lambda **follow: flowcore.sample(flow("small-glow"), 3, **follow),
    "score": lambda **follow: flowcore.score(flow("small-glow"), noise(2, 3, 12, 16), samples=3, **follow),
    "shrink": lambda **follow: flowcore.shrink(flow("small-rescaler"), noise(2, 3, 20, 24), **follow),
    "temperature_grid": lambda **follow: flowcore.temperature_grid(flow("small-srflow"), SMALL, [0.0, 0.8], **follow),
    "upscale": lambda **follow: flowcore.upscale(
        flow("small-srflow"), noise(2, 3, 40, 36), samples=2, tile=32, **follow
    ),
    "upscale_video": lambda **follow: flowcore.upscale_video(flow("small-srflow"), SMALL, **follow),
    "verify": lambda **follow: flowcore.verify(flow("small-srflow"), noise(2, 3, 20, 24), seed=3, **follow),
}


def latents():
    return [noise(2, *shape, seed=k) for k, shape in enumerate(flow("small-glow").latent_shapes(12, 16))]


def test_every_task_that_reports_is_here():
    public = (getattr(flowcore, name) for name in flowcore.__all__)
    functions = [each for each in public if inspect.isroutine(each)]
    assert {f.__name__ for f in functions if "progress" in inspect.signature(f).parameters} == TASKS.keys()


@pytest.mark.parametrize("task", TASKS)
def test_progress_rises_to_its_total(task):
    reports = []
    TASKS[task](progress=lambda done, total, preview=None: reports.append((done, total)), notify=lambda _: None)
    done, totals = zip(*reports, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
