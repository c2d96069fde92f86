"""Threads that share a flow do not notice each other: progress, previews, cancelling and memory belong to the call."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from builders import build_tiny, random_image
from cases import LONG, tried

import flowcore
from flowcore.engine.compiled import compiled, drop_compiled

from .calls import CALLS

ROUNDS = 200 if LONG else 6  # of every task


@dataclass
class Caller:
    """Follows one call, and cancels it when it has been asked a number of times."""

    patience: float = float("inf")
    asked: int = 0
    reports: list[tuple[int, int]] = field(default_factory=list)
    previews: list[torch.Tensor] = field(default_factory=list)

    def progress(self, done, total, preview=None):
        self.reports.append((done, total))
        if preview is not None:
            self.previews.append(preview.clone())

    def cancelled(self):
        self.asked += 1
        return self.asked > self.patience

    def run(self, task):
        return CALLS[task](progress=self.progress, cancelled=self.cancelled)


@pytest.fixture
def often_switching():
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.fuzz
@pytest.mark.parametrize("task", ["upscale", "colorize", "sample", "encode", "decode", "score"])
def test_progress_is_whole_and_cancelling_one_of_two_calls_changes_nothing_in_the_other(task, often_switching):
    alone = Caller()
    expected = alone.run(task)
    assert alone.asked > 10
    assert not alone.previews or torch.equal(torch.stack(alone.previews), expected[0].clamp(0, 1))
    rng = random.Random(None if LONG else 0)
    with ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            if number % 3 == 0:
                drop_compiled()  # both ask for the compiled flow that one of them makes
            stopped, undisturbed = Caller(rng.randrange(alone.asked)), Caller()
            calls = [pool.submit(caller.run, task) for caller in rng.sample([stopped, undisturbed], 2)]
            results = {}
            for call in calls:
                try:
                    results["kept"] = call.result(timeout=120)
                except flowcore.Cancelled:
                    results["cancelled"] = None
            assert set(results) == {"kept", "cancelled"}, f"{stopped.patience} of {alone.asked}"
            assert stopped.asked == stopped.patience + 1
            assert all(map(torch.equal, results["kept"], expected))
            assert (undisturbed.asked, undisturbed.reports) == (alone.asked, alone.reports)
            assert len(undisturbed.previews) == len(alone.previews)
            assert all(map(torch.equal, undisturbed.previews, alone.previews))
            tried("calls beside a cancelled one")


def test_a_call_that_runs_out_of_memory_lowers_its_own_strips_until_its_end():
    """Its own thread and another one are asked for the strips of the same compiled flow while it runs."""
    flow, seen = build_tiny("glow"), []
    fast = compiled(flow)
    usual = fast.budget.strip
    with ThreadPoolExecutor(1) as pool:

        def look():
            seen.append((fast.budget.strip, pool.submit(lambda: fast.budget.strip).result()))
            if len(seen) == 1:
                raise MemoryError
            return False

        flowcore.encode(flow, random_image(1, 3, 8, 8), cancelled=look, notify=lambda sentence: None)
    assert seen[0] == (usual, usual)
    assert set(seen[1:]) == {(2**18, usual)}
    assert fast.budget.strip == usual > 2**18
