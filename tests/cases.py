"""How many cases the fuzz tests try: a few in `make test`, always the same; thousands of new ones in `make soak`."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import HealthCheck, settings

LONG = bool(os.environ.get("FLOWCORE_SOAK"))

# Kind of case to how many were tried; printed at the end of a run.
TRIED: Counter[str] = Counter()


def cases(short: int, long: int) -> settings:
    """Say how many cases a test tries.

    Args:
        short: In `make test`, the same ones every time.
        long: In `make soak`, new ones every time.

    Returns:
        What to decorate the test with, outside `given`.
    """
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def tried(kind: str, number: int = 1) -> None:
    """Count cases.

    Args:
        kind: Of what, such as "checkpoints".
        number: How many.
    """
    TRIED[kind] += number
