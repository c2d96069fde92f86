"""Large results: size, memory and time are said before the first step, and very large ones are asked about."""

import itertools
import re
import sys
import types
from pathlib import Path

import pytest
from builders import build_upscaler
from PIL import Image

from flowcore.batch.job import Work
from flowcore.cli import batches
from flowcore.cli.main import main
from flowcore.images import files
from flowcore.inference.plan import Plan, planned
from flowcore.tasks import forecast as task
from flowcore.tasks.forecast import forecast
from flowcore.tasks.upscale import memory_required

from .commands import photograph, run

SMALL = {"steps": 1, "hidden": 4, "encoder_blocks": 1, "stacked_blocks": (0,)}


@pytest.fixture
def words(model, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "PROBE", 16)
    monkeypatch.setattr(batches, "NOTEWORTHY", 0.01)  # megapixels: what is large here is said of 64x48 pixels
    photograph(tmp_path / "in" / "a.png", (16, 12))
    photograph(tmp_path / "in" / "b.png", (60, 50))
    return ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model]


def test_it_counts_what_is_to_come(monkeypatch):
    monkeypatch.setattr(task, "PROBE", 16)
    flow, clock = build_upscaler(**SMALL), iter([10.0, 10.5])  # one sample of one small image
    monkeypatch.setattr(task, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    coming = forecast(flow, [(100, 50), (30, 20)], [(400, 200), (120, 80)], samples=4)
    assert (coming.pictures, coming.largest) == (8, (400, 200))
    assert coming.megapixels == pytest.approx(4 * (400 * 200 + 120 * 80) / 1e6)
    assert coming.memory == memory_required(flow, 100, 50, 100) + 24 * 4 * 400 * 200
    plan = planned(flow)
    shared = 4 * (plan.encoder_units + plan.prepare_units)
    work = (shared + 4 * plan.units) / (shared + plan.units)
    assert coming.seconds == pytest.approx(0.5 * work / 16**2 * (100 * 50 + 30 * 20))
    assert coming.sentence().startswith("8 pictures of up to 200x400, 0 megapixels in all, will take about ")


def test_it_counts_the_passes_of_guides(monkeypatch):
    monkeypatch.setattr(task, "PROBE", 16)
    flow, sizes = build_upscaler(**SMALL), ([(100, 50)], [(400, 200)])
    units, encode = list[int](), Plan.encode_guide
    monkeypatch.setattr(Plan, "encode_guide", lambda *args: units.append(1) or encode(*args))
    monkeypatch.setattr(task, "time", types.SimpleNamespace(perf_counter=itertools.count().__next__))
    alone, guided = (forecast(flow, *sizes, guided=guide) for guide in (False, True))
    plan = planned(flow)
    shared = 4 * (plan.encoder_units + plan.prepare_units)
    assert guided.seconds / alone.seconds == pytest.approx((shared + 2 * plan.units) / (shared + plan.units))
    assert guided.memory - alone.memory == 3 * 4 * 3 * 400 * 200
    assert units == []
    forecast(flow, *sizes, steadiness=0.9)
    assert units == [1]  # a second frame is what is timed


def test_one_trial_is_enough(monkeypatch):
    decode, trials = Plan.inverse, list[int]()
    monkeypatch.setattr(Plan, "inverse", lambda *args: trials.append(1) or decode(*args))
    forecast(build_upscaler(**SMALL), [(100, 50)], [(400, 200)])
    assert len(trials) == 1


def test_size_memory_and_time_are_announced_first(words, tmp_path, monkeypatch, capsys):
    assert run(*words, "--samples", 2) == 0
    said = capsys.readouterr().err
    first = said.splitlines()[0]
    assert re.fullmatch(
        r"4 pictures of up to 240x200, 0 megapixels in all, will take about \d.\d GB .* and .*\.", first
    )
    looked_at = list[bytes]()
    monkeypatch.setattr(files, "is_whole", lambda data, look=files.is_whole: looked_at.append(data) or look(data))
    assert run(*words, "--samples", 2) == 0  # there is nothing to do, so nothing to say
    assert "will take" not in capsys.readouterr().err
    assert len(looked_at) == 4  # each once


def test_the_size_of_an_image_is_read_from_its_header(tmp_path, monkeypatch):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("A whole file was read."))
    work = Work(command="upscale", model="", scale=4)
    assert (files.upright_size(tmp_path / "a.png"), work.size_of(tmp_path / "a.png")) == ((50, 60), (200, 240))


def test_small_results_are_not_announced_and_help_states_the_limit(words, monkeypatch, capsys):
    monkeypatch.setattr(batches, "NOTEWORTHY", 16)
    assert run(*words) == 0
    assert "will take" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["upscale", "--help"])
    assert "0: never ask (default: 100)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_too_many_megapixels_need_confirmation(words, tmp_path, monkeypatch, capsys, answer):
    asked = types.SimpleNamespace(isatty=lambda: True, readline=lambda: answer)
    monkeypatch.setattr(sys, "stdin", asked)
    code = run(*words, "--max-megapixels", 0.04)
    said = capsys.readouterr().err
    assert "b.png: A result would have 240x200 pixels, 0.048 megapixels; --max-megapixels is 0.04." in said
    assert "Go on? [y/N]" in said
    assert code == (answer != "y\n")
    assert (tmp_path / "out").exists() == (answer == "y\n")
    assert run(*words, "--max-megapixels", 0, "--again") == 0


def test_without_a_terminal_the_other_results_are_made(words, tmp_path, monkeypatch, capsys):
    """Below what is noteworthy in total, too."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    monkeypatch.setattr(batches, "NOTEWORTHY", 16)
    assert run(*words, "--max-megapixels", 0.04) == 3
    assert f"{tmp_path / 'in' / 'b.png'}: A result would have 240x200 pixels" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a_tiny_tau0.8_seed0.png"]
    rows = (tmp_path / "out" / "manifest.csv").read_text().splitlines()
    assert ["a.png" in row for row in rows[1:]] == [True, False]
    assert "megapixels" in rows[2]


def test_a_disk_that_is_too_small_needs_confirmation(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100_000))
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    assert run(*words) == 1
    assert f"and 0.0 GB are free in {tmp_path / 'out'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
