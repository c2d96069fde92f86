"""The time that a run says is left; for progress itself see `test_contracts.py`."""

import pytest

from flowcore.engine.progress import TimeLeft


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
