"""Damaged image files, through the command line's reader: no program starts, and memory and time stay within bounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import LONG, tried

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
COUNT = 10_000 if LONG else 25  # of each format


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
def test_damaged_pictures_are_refused_within_bounds(tmp_path):
    seed = int.from_bytes(os.urandom(4), "big") if LONG else 0
    command = [sys.executable, HERE / "hostile_pictures.py", tmp_path, str(seed), str(COUNT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"seed {seed}: {result.stderr[-3000:]}"
    for line in result.stdout.splitlines():
        for format, found in json.loads(line).items():
            tried(f"damaged {format}", found["tried"])
    sys.stdout.write(result.stdout)
