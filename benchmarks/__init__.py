"""Measurements: they print JSON and assert nothing. Run ``python -m benchmarks.NAME --help`` from the root."""
