"""Facts in the documents: the walk-through runs, links lead somewhere, commands exist, bounds are those of the code."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from flowcore.checkpoints import file
from flowcore.cli.main import build_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "web" / "docs").glob("*.md"),
    ]
)
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@pytest.mark.slow
def test_walk_through_runs_and_makes_its_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "walk-through.md"), module_relative=False)
    assert tried > 30
    assert failed == 0
    made = {file.name for file in tmp_path.iterdir()}
    shown = set(re.findall(r"\(walk-through/([a-z]+\.png)\)", (ROOT / "docs" / "walk-through.md").read_text()))
    assert made == shown == {file.name for file in (ROOT / "docs" / "walk-through").iterdir()}


@every_document
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), target


@every_document
def test_indented_commands_are_valid(document):
    for line in re.findall(r"^    python -m flowcore (.+)", document.read_text(), re.MULTILINE):
        build_parser().parse_args(shlex.split(line, comments=True))


@every_document
def test_make_targets_and_modules_exist(document):
    text, makefile = document.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for module in re.findall(r"python -m benchmarks\.([a-z_]+)", text):
        assert (ROOT / "benchmarks" / f"{module}.py").exists(), module
    for path in re.findall(r"`((?:tests|flowcore|nodes|workflows|benchmarks)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", ["docs/reliability.md", "SECURITY.md"])
def test_bounds_are_those_of_the_code(document):
    bounds = re.findall(r"([\d,]+) tensors", (ROOT / document).read_text())
    assert bounds
    assert {int(bound.replace(",", "")) for bound in bounds} == {file.MAX_TENSORS}
