"""What is shipped is free, and says what it is: every file that an installation holds."""

import csv
import re
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open

from flowcore.checkpoints.file import KEY

ROOT = Path(__file__).parents[2]

# Whole words of licences that let pictures be used, changed and learnt from, by anyone.
FREE = {"CC0-1.0", "CC0", "CC-BY", "CC-BY-SA", "GPL", "LGPL", "Apache", "BSD", "MIT", "Expat", "public-domain", "GFDL"}

# Pictures that flowcore made, of pictures that README names: thumbnails, sample sheets, strips.
OURS = re.compile(r"(workflows|flowcore/weights|docs)/[a-z0-9-]+\.jpg")

# Where the licence of somebody else is spoken of.
SPOKEN_OF = {
    "README.md",
    "CHANGELOG.md",
    "flowcore/checkpoints/sources/srflow.py",
    "flowcore/weights/README.md",
    "flowcore/weights/SOURCES.tsv",
    "flowcore/quality/no_reference.licences.txt",
    "web/docs/FlowcoreLoadModel.md",
}
UNFREE = re.compile(r"non-?commercial|BY-NC|General Public Licen[cs]e|all rights reserved", re.IGNORECASE)


@pytest.fixture(scope="module")
def shipped():
    """Every file of the registry's archive: what git knows, less what .comfyignore leaves out."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is nothing that says which files belong to it")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    left_out = [line for line in (ROOT / ".comfyignore").read_text().splitlines() if line and not line.startswith("#")]
    return [
        name
        for name in listed.splitlines()
        if not any(name == entry or (entry.endswith("/") and name.startswith(entry)) for entry in left_out)
    ]


def text(name):
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def licence_section():
    return (ROOT / "README.md").read_text().split("\n## Licence\n")[1].split("\n## ")[0]


def test_every_file_that_is_not_text_is_accounted_for(shipped):
    weights = [name for name in shipped if name.endswith(".safetensors")]
    pictures = [name for name in shipped if text(name) is None and name not in weights]
    assert len(weights) >= 7
    assert len(pictures) >= 10
    said = licence_section()
    unknown = [name for name in pictures if f"`{name}`" not in said and not OURS.fullmatch(name)]
    assert unknown == []


def test_every_model_says_its_licence_and_the_readme_agrees(shipped):
    said = licence_section()
    for name in shipped:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(ROOT / name, framework="pt") as file:
            header = (file.metadata() or {}).get(KEY)
        model = Path(name).stem
        if header is None:
            assert f"flowcore/{model}.licences.txt" in said
        else:
            line = next(line for line in said.splitlines() if f"`{model}`" in line)
            assert ('"licence": "MIT' in header) == ("MIT" in line)
            assert ('"licence": "Research only' in header) == ("research only" in line)


def test_every_photograph_that_was_learnt_from_is_free():
    with (ROOT / "flowcore" / "weights" / "SOURCES.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    assert len(rows) == 199
    for row in rows:
        words = set(re.split(r"[\s,/]+|-\d[\d.+]*\+?", row[3].replace("?", "")))
        assert words & FREE, row
        assert "NC" not in row[3]


def test_no_text_carries_a_licence_that_is_not_ours(shipped):
    found = [name for name in shipped if name not in SPOKEN_OF and UNFREE.search(text(name) or "")]
    assert found == []
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_nothing_that_could_run_code_when_it_is_opened_is_kept_at_all():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    dangerous = {".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".bin", ".npy", ".npz", ".so", ".exe", ".whl"}
    assert [name for name in listed.splitlines() if Path(name).suffix in dangerous] == []


def test_an_installation_installs_nothing():
    asked = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert not "".join(asked).strip()
    assert re.search(r"^dependencies = \[\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
