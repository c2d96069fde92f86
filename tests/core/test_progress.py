"""Progress of every task: it never falls, never exceeds its total, and ends at it."""

import inspect

import pytest
import torch
from builders import random_image as noise
from small_flows import flow

import flowcore
from flowcore.engine.progress import TimeLeft

GRAY, SMALL = noise(1, 1, 24, 32), noise(2, 3, 10, 12)
MASK = torch.zeros(2, 1, 10, 12)
MASK[0, :, 4:6, 3:9] = 1  # there is nothing to repair in the second
TASKS = {
    "audit": lambda **run: flowcore.audit(flow("small-srflow"), noise(2, 3, 20, 24), SMALL, **run),
    "brighten": lambda **run: flowcore.brighten(flow("small-dark"), noise(1, 3, 16, 24), samples=2, **run),
    "clean": lambda **run: flowcore.clean(flow("small-restorer"), SMALL, **run),
    "colorize": lambda **run: flowcore.colorize(flow("small-color"), GRAY, samples=2, **run),
    "colorize_video": lambda **run: flowcore.colorize_video(flow("small-color"), noise(3, 1, 24, 32), **run),
    "decode": lambda **run: flowcore.decode(flow("small-glow"), latents(), **run),
    "encode": lambda **run: flowcore.encode(flow("small-glow"), noise(3, 3, 12, 16), **run),
    "encode_colors": lambda **run: flowcore.encode_colors(flow("small-color"), noise(2, 3, 24, 32), **run),
    "find_faces": lambda **run: flowcore.find_faces(noise(2, 3, 40, 48), **run),
    "find_scratches": lambda **run: flowcore.find_scratches(noise(2, 1, 40, 48), **run),
    "match_source": lambda **run: flowcore.match_source(noise(2, 3, 20, 24), SMALL, **run),
    "ranked": lambda **run: flowcore.ranked(noise(4, 3, 20, 24), SMALL, "likelihood", flow("small-srflow"), **run),
    "remember": lambda **run: flowcore.remember(flowcore.load("color-photos"), noise(2, 3, 192, 192), **run),
    "repair": lambda **run: flowcore.repair(flow("small-srflow"), SMALL, MASK, **run),
    "restore": lambda **run: flowcore.restore(flow("small-rescaler"), SMALL, samples=2, **run),
    "sample": lambda **run: flowcore.sample(flow("small-glow"), 3, **run),
    "score": lambda **run: flowcore.score(flow("small-glow"), noise(2, 3, 12, 16), samples=3, **run),
    "shrink": lambda **run: flowcore.shrink(flow("small-rescaler"), noise(2, 3, 20, 24), **run),
    "temperature_grid": lambda **run: flowcore.temperature_grid(flow("small-srflow"), SMALL, [0.0, 0.8], **run),
    "upscale": lambda **run: flowcore.upscale(flow("small-srflow"), noise(2, 3, 40, 36), samples=2, tile=32, **run),
    "upscale_video": lambda **run: flowcore.upscale_video(flow("small-srflow"), SMALL, **run),
    "verify": lambda **run: flowcore.verify(flow("small-srflow"), noise(2, 3, 20, 24), seed=3, **run),
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


def test_the_time_left_follows_the_share_that_is_done():
    now = 0.0
    left = TimeLeft(lambda: now)
    assert left.after(0) is None
    now = 10.0
    assert left.after(0.25) == 30
    now = 10.5
    assert left.after(0.3) is None  # just told
    now = 15.0
    assert left.after(0.75) == 5
    now = 18.0
    assert left.after(0.9) == pytest.approx(2)  # counts down to the end
    assert left.after(1) is None


def test_a_short_wait_is_not_told():
    now = 0.0
    left = TimeLeft(lambda: now)
    now = 2.0
    assert left.after(0.5) is None
