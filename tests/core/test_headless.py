"""What docs/headless.md promises of a run of many pictures: one table, one summary, one exit code."""

import csv
import re
from pathlib import Path

import pytest

from flowcore.batch.tables import COLUMNS

from .commands import photograph, run

PAGE = (Path(__file__).parents[2] / "docs" / "headless.md").read_text(encoding="utf-8")


def test_the_page_lists_the_columns_of_the_manifest():
    table = PAGE[PAGE.index("| column |") : PAGE.index("    python -c")]
    assert tuple(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line))) == COLUMNS


def test_exit_codes_and_the_line_for_each_failure(model, tmp_path, capsys):
    photos, words = tmp_path / "photos", ["-o", tmp_path / "out", "--model", model]
    photograph(photos / "a.png", (8, 6))
    codes = {0: run("upscale", photos, *words)}
    (photos / "bad.png").write_bytes(b"")
    codes[3] = run("upscale", photos, *words)
    assert f"\n  {photos / 'bad.png'}: Cannot read bad.png as an image: it is empty." in capsys.readouterr().err
    codes[1] = run("upscale", photos / "bad.png", *words)
    with pytest.raises(SystemExit) as usage:
        run("upscale", photos, "--no-such-option")
    codes[2] = usage.value.code
    assert {code: code for code in codes} == codes
    assert {*map(int, re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE))} == {*codes, 130}
    with (tmp_path / "out" / "manifest.csv").open() as file:
        failed = [row["input"] for row in csv.DictReader(file) if not row["output"]]
    assert failed == [str(photos / "bad.png")]
