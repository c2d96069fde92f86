"""Facts in the documents: the walk-through runs, links lead somewhere, commands exist, bounds are those of the code."""

import doctest
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfyui
import nbformat
import pytest
import torch
from builders import build_tiny, build_upscaler
from nbclient import NotebookClient
from stories import TITLES

import flowcore
from flowcore.batch.tables import COLUMNS
from flowcore.cli.main import COMMANDS, build_parser
from flowcore.engine.options import options_of
from flowcore.flows.likelihood import bits_per_dim
from flowcore.images import files
from flowcore.models import model_file
from flowcore.models.realnvp import RealNVPConfig, realnvp
from flowcore.tasks.colorize import ColorizeSettings
from flowcore.tasks.upscale import UpscaleSettings

from . import agents_table, notebook
from . import options_table as options
from .cards import CARDS, HEAD, head

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
DOCUMENTS += sorted((ROOT / "web" / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text()


def test_no_advice_installs_flowcore_from_the_index():
    """There is no such package, so anybody could take the name."""
    texts = [*DOCUMENTS, *(file for room in ("flowcore", "nodes", "locales") for file in (ROOT / room).rglob("*.*"))]
    for file in texts:
        if file.suffix in (".md", ".py", ".json", ".toml"):
            for advice in re.findall(r"pip install [^.\n]*", file.read_text(encoding="utf-8")):
                assert "flowcore" not in advice or "@ git+" in advice, (file, advice)


@pytest.mark.slow
def test_walk_through_runs_as_a_notebook_and_makes_its_images(tmp_path):
    walk, results = notebook.build()
    assert notebook.NOTEBOOK.read_text(encoding="utf-8") == nbformat.writes(walk) + "\n"
    for cell in walk.cells:
        cell.source = re.sub(r"steps=\d{3,}", "steps=20", cell.source)
    client = NotebookClient(walk, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    outputs = [cell.outputs for cell in walk.cells if cell.cell_type == "code"]
    assert ["".join(output.data["text/plain"] for output in shown) for shown in outputs] == results
    pictures = set(re.findall(r"\(walk-through/([a-z]+\.png)\)", notebook.PAGE.read_text()))
    assert {file.name for file in tmp_path.glob("*.png")} == pictures
    assert {file.name for file in (ROOT / "docs" / "walk-through").iterdir()} == pictures


def test_every_card_begins_with_what_its_file_says():
    for file_of_model, card in CARDS.items():
        text = card.read_text(encoding="utf-8")
        assert HEAD.search(text)[0] == head(file_of_model), "write it anew: .venv/bin/python tests/core/cards.py"
        assert re.search(r"\n\*\*For\*\* .+\n\n\*\*Not for\*\* .+\n", text), card.name


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code.replace("range(20)", "range(2)"), names)  # noqa: S102
    assert names["samples"].shape == (4, 3, 64, 64)
    assert names["loss"].isfinite()


@pytest.mark.slow
def test_the_training_loop_of_the_readme_trains_a_real_nvp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    side = 16
    model = realnvp(RealNVPConfig(scales=2, hidden=16, blocks=4, image_size=side))
    photo = files.read((ROOT / "workflows" / "photo.png").read_bytes(), "photo.png").pixels[0]
    images = torch.stack([photo[:, k : k + side, k : k + side] for k in range(0, 80, 10)])
    loop = re.findall(r"data, held_out = .*?(?=```)", README, re.DOTALL)[0]
    loop, changed = re.subn(r"glow\(GlowConfig\(.+\)\)", "model", loop)
    names = {"torch": torch, "flowcore": flowcore, "images": images, "model": model}
    exec(loop, names)  # noqa: S102
    assert changed == 1
    assert bits_per_dim(-names["loss"], 3 * side**2, 1 / 256) < 6.8  # 7.2 by the moments of the first batch
    assert names["samples"].shape == (4, 3, side, side)


def test_the_first_lines_of_the_readme_say_how_to_see_and_check_it():
    lines = README.splitlines()
    assert len(lines) <= 130
    for command in ("make demo", "make test"):
        (line,) = (line for line in lines[:45] if line.startswith(f"    {command} "))
        assert re.search(r"in \d+ minutes?\b", line)


def found(pattern):
    """Where a pattern is in all documents: the document, and what it captures."""
    for document in DOCUMENTS:
        for text in re.findall(pattern, document.read_text(), re.MULTILINE):
            yield document, text


@pytest.mark.slow
def test_the_site_has_no_dead_link(tmp_path):
    """Mkdocs is strict: it fails at links, pictures and anchors of any document or docstring that lead nowhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    public = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert [name for name in flowcore.__all__ if name != "__version__" and f'id="flowcore.{name}"' not in public] == []
    assert (tmp_path / "stories" / "index.html").read_text(encoding="utf-8").count("<h2") == len(TITLES)
    listed = re.findall(r"^- \[.+?\]\((.+?)\)", (tmp_path / "llms.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed[0] == "docs/agents/"
    assert len(listed) > 60
    assert [page for page in listed if not (tmp_path / page / "index.html").is_file()] == []


def test_the_page_for_agents_lists_every_story():
    text = agents_table.PAGE.read_text(encoding="utf-8")
    assert agents_table.TABLE.search(text)[0] == agents_table.render(), "run tests/core/agents_table.py"
    stories = {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == stories


TRANSLATED = sorted((ROOT / "web" / "docs").glob("*/*.md"))


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_translated_help_pages_say_what_the_english_ones_say(page):
    """They have its headings, items and code, and name inputs and outputs as the locale does."""
    words = json.loads((ROOT / "locales" / page.stem / "nodeDefs.json").read_text())[page.parent.name]
    english, text = page.parent.with_suffix(".md").read_text(), page.read_text()
    form, code = r"^(#+ |- |```|</?details>)", r"(?<!`)`([^`\n]+)`(?!`)"
    assert re.findall(form, text, re.MULTILINE) == re.findall(form, english, re.MULTILINE)
    named = {name for name in words["inputs"] if name != "upload"}
    assert {*re.findall(code, text)} - named == {*re.findall(code, english)} - named
    assert text.startswith(f"# {words['display_name']}\n")
    missing = [name for name in named if f"**{words['inputs'][name]['name']}** (`{name}`)" not in text]
    missing += [one["name"] for one in words["outputs"].values() if f"**{one['name']}**" not in text]
    assert missing == []


def test_the_readme_names_every_command():
    assert [name for name in COMMANDS if not re.search(rf"flowcore {name} |`{name}`", README)] == []


def test_indented_commands_are_valid(capsys):
    commands = list(found(r"^    (?:python -m )?flowcore (.+)"))
    wrong = []
    for document, line in commands:
        try:
            build_parser().parse_args(shlex.split(line, comments=True))
        except SystemExit:
            wrong.append((str(document.relative_to(ROOT)), line, capsys.readouterr().err))
    assert wrong == []
    assert len(commands) >= 10


def test_make_targets_modules_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    missing = [target for _, target in found(r"(?:^    |`)make ([a-z]+)") if f"\n{target}:" not in makefile]
    files = [f"benchmarks/{module}.py" for _, module in found(r"python -m benchmarks\.([a-z_]+)")]
    files += [path for _, path in found(r"`((?:tests|flowcore|nodes|workflows|benchmarks)/[\w./-]+\.\w+)`")]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert missing == []
    assert len(files) > 20


def test_docs_headless_lists_the_columns_of_the_manifest_and_the_exit_codes():
    page = (ROOT / "docs" / "headless.md").read_text(encoding="utf-8")
    table = page[page.index("| column |") : page.index("    python -c")]
    assert tuple(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line))) == COLUMNS
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "3", "130"]


def test_actions_are_pinned():
    used = [line for path in (ROOT / ".github/workflows").glob("*.yml") for line in path.read_text().splitlines()]
    used = [line.partition("uses: ")[2] for line in used if "uses: " in line]
    assert [name for name in used if not re.match(r"\./|[\w/-]+@[0-9a-f]{40} # v", name)] == []
    assert len(used) >= 5


def test_checks_name_targets_and_hosts_that_exist():
    checks = (ROOT / ".github/workflows/checks.yml").read_text()
    targets = " ".join(re.findall(r"run: make ((?:[a-z]+ ?)+)", checks)).split()
    assert [target for target in targets if f"\n{target}:" not in (ROOT / "Makefile").read_text()] == []
    assert len(targets) == 4
    assert re.findall(r'-k "not (.+)"', checks) == [source.version for source in comfyui.SOURCES[1:]]


def test_bounds_are_those_of_the_code():
    for document in ("docs/reliability.md", "SECURITY.md"):
        bounds = re.findall(r"([\d,]+) tensors", (ROOT / document).read_text())
        assert {int(bound.replace(",", "")) for bound in bounds} == {model_file.MAX_TENSORS}, document


# What the examples in docstrings load by name, with few and random weights: architecture and fields.
LOADED: dict[str, tuple[str, dict[str, Any]]] = {
    "glow-photos": ("glow", {}),
    "color-photos": (
        "colorizer",
        {"steps": (1, 1, 1), "hidden": (4, 4, 4), "widths": (4, 4, 4, 8), "backbone": "efficientnet-lite0"},
    ),
    "hcflow-rescaling.safetensors": ("hcflow", {"rescaling": True}),
    "llflow.safetensors": ("llflow", {}),
    "srflow-x4-photo": ("srflow", {"guide_layers": 2, "guide_width": 4}),
    "tarflow.safetensors": ("tarflow", {"classes": 3}),
}


@functools.cache
def load_tiny(name):
    if name == "srflow-x4":
        return build_upscaler(4)
    architecture, fields = LOADED[name]
    return build_tiny(architecture, **fields)


def test_examples_of_public_names_run(monkeypatch, tmp_path, certificate):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flowcore, "load", load_tiny)
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder()
    named, code = {name: getattr(flowcore, name) for name in ["__doc__", *sorted(flowcore.__all__)]}, ""
    named["__doc__"] = type("flowcore", (), {"__doc__": flowcore.__doc__})
    for name, thing in named.items():
        for part in finder.find(thing, name, module=False, globs={"flowcore": flowcore, "torch": torch}):
            code += "".join(example.source for example in part.examples)
            assert runner.run(part).failed == 0, part.name
    shown = set(re.findall(r"flowcore\.(\w+)", code))
    # made by, or for, more than a line; and find_faces, which takes seconds whatever the image
    elsewhere = {"ColorMemory", "Transform", "find_faces", "register", "register_source", "Family", "looks"}
    behaves = {name for name in flowcore.__all__ if not name.endswith("Error")} - {"__version__", "Cancelled", "Face"}
    # which other names return
    returned = {"Condition", "FlowModel", "Score", "Verification", "Audit", "Credentials", "Trace"}
    assert behaves - shown - elsewhere == returned


def test_docs_options_is_what_the_signatures_say():
    (tables,) = options.TABLES.findall(options.PAGE.read_text(encoding="utf-8"))
    assert tables == options.render(), "write it anew: .venv/bin/python tests/core/options_table.py"


def test_an_option_that_is_left_out_is_the_same_everywhere_or_there_is_a_reason():
    tables = {title: options.rows(task) for title, task in options.TASKS.items()}
    different = {(title, name) for title, rows in tables.items() for name, row in rows.items() if options.differ(row)}
    assert different <= {*options.DIFFERENT}
    assert all(name in tables[title] for title, name in options.DIFFERENT)


def test_every_option_is_offered_where_its_field_says():
    for title, kind in (("Upscale", UpscaleSettings), ("Colorize", ColorizeSettings)):
        rows = options.rows(options.TASKS[title])
        for option in options_of(kind):
            offered = {place for place in ("command", "node") if getattr(option.setting, place)}
            assert offered <= rows.get(option.name, {}).keys(), option.name
            assert option.text.endswith("."), option.name


def test_photographs_of_a_folder_are_called_images_as_on_the_node():
    assert build_parser().parse_args(["colorize", "a.jpg", "b.jpg", "--frames", "images"]).frames == "images"


def test_every_option_of_a_node_or_of_python_has_the_name_of_the_command_line():
    """What is offered on both sides has one row; of what has two, the command line's alone would be left."""
    for task in options.TASKS.values():
        rows = options.rows(task)
        for name, row in rows.items():
            assert row.keys() - {"what"}, name
            twin = name.rstrip("s") if name.endswith("s") else f"{name}s"
            assert twin not in rows or twin in ("temperature", "temperatures"), name
