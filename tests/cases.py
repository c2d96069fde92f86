"""How many cases the fuzz tests try: a few in `make test`, always the same; thousands of new ones in `make soak`."""

import os
from collections import Counter

from hypothesis import HealthCheck, settings

LONG = bool(os.environ.get("FLOWCORE_SOAK"))

TRIED: Counter[str] = Counter()  # cases by kind, printed at the end of a run


def cases(short: int, long: int) -> settings:
    """The settings of a fuzz test: ``short`` fixed cases in `make test`, ``long`` random ones in `make soak`."""
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def tried(kind: str, number: int = 1) -> None:
    """Count cases of a kind, such as "checkpoints"."""
    TRIED[kind] += number
