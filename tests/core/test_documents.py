"""What the documents say is so: the walk-through runs, and links and pictures are there."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


def test_the_walk_through_runs_and_makes_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "walk-through.md"), module_relative=False)
    assert tried > 30
    assert failed == 0
    made = {file.name for file in tmp_path.iterdir()}
    shown = set(re.findall(r"\(walk-through/([a-z]+\.png)\)", (ROOT / "docs" / "walk-through.md").read_text()))
    assert made == shown == {file.name for file in (ROOT / "docs" / "walk-through").iterdir()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), target
