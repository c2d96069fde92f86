"""The plugin that seeds all tests: each draws its own numbers, whichever tests run before it."""

pytest_plugins = ["pytester"]

TESTS = """
import random
import numpy as np
import pytest
import torch

draw = lambda: [random.random(), np.random.rand(), torch.rand(()).item()]

@pytest.fixture(scope="module")
def shared():
    return draw()

def test_one(shared, record_property):
    record_property("one", [shared, draw()])

def test_two(shared, record_property):
    record_property("two", [shared, draw()])
"""


def drawn(pytester, *arguments):
    """What each of the two tests drew: numbers of the shared fixture, and its own."""
    passed = pytester.inline_run("-p", "draws", *arguments).listoutcomes()[0]
    return dict(property for report in passed for property in report.user_properties)


def test_a_test_draws_the_same_numbers_alone_and_after_another(pytester):
    pytester.makepyfile(TESTS)
    both = drawn(pytester)
    assert drawn(pytester, "-k", "two") == {"two": both["two"]}
    numbers = [both["one"][0], both["one"][1], both["two"][1]]
    assert both["one"][0] == both["two"][0]
    assert len({*map(tuple, numbers)}) == 3


def test_another_seed_draws_other_numbers_in_another_order(pytester):
    pytester.makepyfile(TESTS)
    runs = [drawn(pytester, f"--seed={seed}") for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len({str(sorted(run.items())) for run in runs}) == 3
    assert {tuple(run) for run in runs} == {("one", "two"), ("two", "one")}


def test_a_module_that_draws_while_it_is_collected_is_refused(pytester):
    path = pytester.makepyfile(f"{TESTS}\nVALUES = draw()\n")
    result = pytester.runpytest_inprocess("-p", "draws", path)
    result.stdout.fnmatch_lines(["*drew from the global generator of torch, numpy, random while its tests were *"])
    result.assert_outcomes(errors=1)
