"""Memory that runs out, anywhere: once, and the result is the same; for good, and the error names what to change.

A site is a line of flowcore and an operation of torch that makes a new tensor there. The allocator of a test refuses at
one site, or to make tensors beyond a size.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import random_image as noise
from cases import LONG, tried
from small_flows import flow
from torch.utils._python_dispatch import TorchDispatchMode

import flowcore
from flowcore import score
from flowcore.engine.compiled import drop_compiled

from .calls import CALLS

pytestmark = pytest.mark.fuzz

PACKAGE = str(Path(flowcore.__file__).parent)
# Where a flow computes: files, below the package; encoders are elsewhere, and see one image for all samples.
OF_THE_FLOW = ("flows/transforms", "flows/networks", "engine/co", "engine/fold", "engine/st")


class Allocator(TorchDispatchMode):
    """Refuses tensors: the n-th of a site, or all from there on, or all of the flow's beyond a number of bytes."""

    def __init__(self, site=None, number=1, *, for_good=False, most=0):
        super().__init__()
        self.site, self.number, self.for_good, self.most = site, number, for_good, most
        self.seen, self.refused, self.largest = Counter(), 0, 0  # the largest of the flow's

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        tensors = [t for t in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(t, torch.Tensor)]
        storages = [t.untyped_storage() for t in tensors]
        size = sum(storage.nbytes() for storage in storages if storage.data_ptr() not in known)
        place = self._place() if size else None
        if place is None:
            return made
        site = f"{place} {func.overloadpacket.__name__}"
        self.seen[site] += 1
        of_the_flow = place.startswith(OF_THE_FLOW)
        self.largest = max(self.largest, size if of_the_flow else 0)
        here = site == self.site and self.seen[site] >= self.number and (self.for_good or not self.refused)
        if here or (of_the_flow and 0 < self.most < size):
            self.refused += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes. (A test.)")
        return made

    @staticmethod
    def _place():
        frame = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        return None if frame is None else f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"


# What the advice of a task names.
ADVICE = {
    "upscale": ("tile", "samples", "smaller image"),
    "colorize": ("working_size", "samples"),
    "colorize by hints": ("working_size", "samples"),
    "colorize_video": ("working_size",),
    "encode_colors": ("working_size",),
    "sample": ("size", "samples"),
    "sample digits": ("size", "samples"),
    "encode": ("size",),
    "decode": ("size",),
    "score": ("samples", "smaller"),
}


def run(task, **options):
    """The result of a task as tensors, without a cached compiled flow."""
    drop_compiled()
    return CALLS[task](**options)


def assert_close(made, known, tolerance=1 / 255):
    assert len(made) == len(known)
    for one, other in zip(made, known, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance


@pytest.fixture(params=list(ADVICE))
def task(request, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # in a process of many tests it takes a while
    return request.param


def sites(task, most):
    """Sites of a task, how often each allocates, and the task's result; in the short form, some of the sites."""
    known = run(task)
    with Allocator() as allocator:
        run(task)
    found = list(allocator.seen.items())
    assert len(found) > 20
    return (found if LONG else found[:: max(1, len(found) // most)]), known


def test_one_failed_allocation_changes_nothing_and_is_reported(task):
    found, known = sites(task, 6)
    for site, count in found:
        for number in {1, count} if LONG else {count}:
            sentences = []
            with Allocator(site, number) as allocator:
                made = run(task, notify=sentences.append)
            assert allocator.refused == 1, site
            assert_close(made, known)
            assert sentences, site
            tried("allocations refused once")


def test_lasting_lack_of_memory_raises_an_error_with_advice(task):
    found, known = sites(task, 4)
    for site, _ in found:
        with Allocator(site, for_good=True) as allocator:
            try:
                made = run(task)
            except flowcore.FlowError as error:
                text = str(error)
                assert "Out of memory" in text
                assert all(word in text for word in ADVICE[task]), f"{site}: {text}"
            else:
                assert_close(made, known)  # there was another way
        assert allocator.refused
        tried("allocations refused for good")


@pytest.mark.parametrize("name", ["colorize", "encode", "decode", "score"])
def test_a_batch_that_does_not_fit_is_processed_one_by_one(name):
    """Two images never fit into this device, and one just does."""
    glow, color = flow("small-glow"), flow("small-color")
    gray, large = noise(1, 1, 24, 32), noise(1, 3, 12, 16)
    shapes = glow.latent_shapes(12, 16)
    calls = {
        "colorize": lambda n, notify: flowcore.colorize(color, gray, samples=n, notify=notify),
        "encode": lambda n, notify: flowcore.encode(glow, large.expand(n, -1, -1, -1), notify=notify)[0],
        "decode": lambda n, notify: flowcore.decode(glow, [noise(n, *shape) for shape in shapes], notify=notify),
        "score": lambda n, notify: score(glow, large.expand(n, -1, -1, -1), complexity=False, notify=notify).map,
    }
    known, sentences = calls[name](8, print), []
    with Allocator() as one:
        calls[name](1, print)
    with Allocator(most=one.largest) as limited:
        made = calls[name](8, sentences.append)
    assert limited.refused
    assert sentences
    assert_close([made], [known], 1e-5)


@pytest.mark.parametrize("task", ["sample", "encode", "colorize", "score"])
def test_results_computed_before_the_failure_do_not_come_twice(task):
    """Memory runs out in the callback that is shown the last pictures."""
    reports = []
    known = run(task, batch=1, progress=lambda *_: reports.append(1))
    for moment in range(len(reports) - 2, len(reports)):
        calls = []

        def show(*_, moment=moment, calls=calls):
            calls.append(1)
            if len(calls) == moment + 1:
                raise torch.OutOfMemoryError("CUDA out of memory. (A test: where a picture is shown.)")

        assert_close(run(task, batch=1, progress=show), known, 1e-5)
        assert len(calls) > moment + 1
