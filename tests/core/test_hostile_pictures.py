"""Damaged image files, through the command line's reader: no program starts, and memory and time stay within bounds."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cases import LONG, tried

from flowcore.images.opening import IMAGE_SUFFIXES

from .commands import photograph, run
from .hostile_pictures import damage, originals

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]

TESTS = Path(__file__).resolve().parents[1]
COUNT = 10_000 if LONG else 25  # of each format


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
def test_damaged_pictures_are_refused_within_bounds(tmp_path):
    seed = int.from_bytes(os.urandom(4), "big") if LONG else 0
    command = [sys.executable, "-m", "core.hostile_pictures", tmp_path, str(seed), str(COUNT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"seed {seed}: {result.stderr[-3000:]}"
    for line in result.stdout.splitlines():
        for format, found in json.loads(line).items():
            tried(f"damaged {format}", found["tried"])
    sys.stdout.write(result.stdout)


def test_a_folder_of_damaged_pictures_is_reported_file_by_file(model_files, tmp_path, capsys):
    folder, out, rng = tmp_path / "in", tmp_path / "out", random.Random(5)
    good = photograph(folder / "good.png", (16, 12))
    made = originals()
    everything = [data for data_of in made.values() for data in data_of]
    for number in range(24):
        data = damage(rng.choice(everything), rng.choice(everything), rng)
        (folder / f"{number}{rng.choice(sorted(IMAGE_SUFFIXES))}").write_bytes(data)
    assert run("upscale", folder, "-o", out, "--model", model_files["tiny"], "--name", "{stem}", "--seed", 1) == 3
    rows = [*csv.DictReader((out / "manifest.csv").read_text().splitlines())]
    assert {row["input"] for row in rows} == {str(file) for file in folder.iterdir()}
    assert all(bool(row["output"]) != row["note"].startswith("Cannot read") for row in rows)
    assert str(good) in {row["input"] for row in rows if row["output"]}
