"""What is published: licenses that permit its use, no word that scanners flag without a reason, no dead link."""

import ast
import collections
import csv
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

from safetensors import safe_open

from flowcore import ColorMemory
from flowcore.models import catalog
from flowcore.models.colorizer.color_memory import KEY as MEMORY
from flowcore.models.model_file import KEY
from flowcore.training.recipe import held_out_names

from .imports import imports, targets

ROOT = Path(__file__).parents[2]

# What scanners report: modules that are imported, and words, wherever they stand.
IMPORTED = re.compile(
    r"^\s*(?:import|from) (socket|ssl|http|urllib|ftplib|smtplib|requests|httpx|aiohttp|websockets|ctypes|marshal"
    r"|shelve|dill|joblib|runpy|base64|pty|webbrowser|multiprocessing|yaml|huggingface_hub)\b",
    re.MULTILINE,
)
WORDS = re.compile(
    r"\b(import_module|__import__|environ|getenv|putenv|subprocess|popen|os\.(?:system|exec\w+|spawn\w+|fork|posix_spawn\w*)"
    r"|(?i:\w*pickle\w*)|torch\.(?:load|hub|package|jit\.load)|np\.load|XMLHttpRequest|WebSocket|EventSource)\b"
    r"|(?<![.\w])(eval|exec|compile|fetch)\("
)
REASONS = {
    ("flowcore/__init__.py", "import_module"): "its own modules, when one of their names is first asked for",
    ("flowcore/batch/credentials.py", "environ"): "variables that name files of a certificate and its key",
    ("flowcore/models/model_file.py", "torch.load"): "a message says how to load a flow without a configuration",
    ("flowcore/models/published.py", "torch.load"): "a message says how to extract one of several models",
    ("flowcore/models/torch_file.py", "pickle"): "pickletools lists the steps of a file, and runs none",
    ("flowcore/models/torch_file.py", "torch.load"): "weights_only=True, see below",
    ("flowcore/training/checkpoint.py", "torch.load"): "weights_only=True, see below",
    ("nodes/__init__.py", "environ"): "a variable that removes Flow Train",
    ("prestartup_script.py", "environ"): "how threads of OpenMP wait, unless somebody has said how",
    ("nodes/host/routes.py", "aiohttp"): "answers on the server that the host runs",
}


def test_every_word_that_a_scanner_reports_has_a_reason(shipped):
    found = set()
    for name in shipped:
        if name.endswith((".py", ".js")):
            text = (ROOT / name).read_text(encoding="utf-8")
            words = [next(filter(None, groups)) for groups in WORDS.findall(text)] + IMPORTED.findall(text)
            found |= {(name, "pickle" if "pickle" in word.lower() else word) for word in words}
    assert found == REASONS.keys()


def test_the_archive_has_all_that_its_nodes_import(shipped):
    """It leaves out the command line, clusters, measures, and whatever else its nodes do not import."""
    missing, used = [], set()
    for path in (ROOT / name for name in shipped if re.match(r"(flowcore|nodes)/.*\.py$", name)):
        for _, _, parts, names in imports(path):
            for target in targets(parts, names) if parts[:1] in (("flowcore",), ("nodes",)) else []:
                files = {"/".join(target) + ".py", "/".join(target) + "/__init__.py"}
                missing += [] if files & {*shipped} else [f"{path.relative_to(ROOT)} imports {'.'.join(target)}"]
                used |= files
    assert missing == []
    assert [name for name in shipped if re.match(r"flowcore/.*(?<!__init__)\.py$", name) and name not in used] == []


def test_torch_load_reads_weights_only():
    loads = [
        ast.unparse(call)
        for path in (ROOT / "flowcore").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load"
    ]
    assert loads
    assert [load for load in loads if "weights_only=True" not in load] == []


def test_links_are_absolute_in_what_is_published(shipped):
    """README and other pages of the archive link to files that it leaves out."""
    absolute, linked = runpy.run_path(str(ROOT / ".github" / "addresses.py"))["absolute"], []
    for page in map(Path, shipped):
        if page.suffix == ".md" and page.parts[0] != "web":  # help pages link to nothing
            text = absolute((ROOT / page).read_text(encoding="utf-8"), page.parent.as_posix(), "https://host/us", "v1")
            linked += re.findall(r"(!?)\[[^]]*\]\(([^)#\s]+)", text)
    relative = [target for _, target in linked if not re.match(r"https?://|mailto:", target)]
    ours = [target.partition("/us/")[2].split("/v1/") for _, target in linked if "//host/us/" in target]
    assert relative == []
    assert [path for _, path in ours if not (ROOT / unquote(path)).exists()] == []
    assert {Path(path).suffix for kind, path in ours if kind == "raw"} == {".jpg", ".webp"}


# Images that flowcore made from images that README names: thumbnails, sample sheets, strips.
OURS = re.compile(r"workflows/[A-Z][A-Za-z -]+\.jpg|(workflows|flowcore/weights|docs)/[a-z0-9_-]+\.jpg")

# Files that mention the licenses of others.
MENTIONS = {
    "README.md",
    "CHANGELOG.md",
    "docs/published-weights.md",
    "flowcore/models/hcflow/published.py",
    "flowcore/models/llflow/published.py",
    "flowcore/models/srflow/published.py",
    "flowcore/weights/SOURCES.tsv",
    "flowcore/weights/srflow.licences.txt",
    "web/docs/FlowcoreLoadModel.md",
}
UNFREE = re.compile(r"non-?commercial|BY-NC|General Public Licen[cs]e|all rights reserved", re.IGNORECASE)


def text(name):
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def license_section():
    return (ROOT / "README.md").read_text().split("\n## License\n")[1].split("\n## ")[0]


def sources(folder):
    """The rows of the SOURCES.tsv of a folder."""
    with (ROOT / folder / "SOURCES.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_binary_file_is_named_in_the_readme_or_in_a_list_that_it_names(shipped):
    weights = [name for name in shipped if name.endswith(".safetensors")]
    pictures = [name for name in shipped if text(name) is None and name not in weights]
    assert len(weights) >= 7
    assert len(pictures) >= 10
    section = license_section()
    assert "`workflows/pictures/SOURCES.tsv`" in section
    listed = {f"workflows/pictures/{row['file']}" for row in sources("workflows/pictures")}
    assert listed <= set(pictures)
    unnamed = [name for name in pictures if name not in listed and f"`{name}`" not in section]
    assert [name for name in unnamed if not OURS.fullmatch(name)] == []


def test_pictures_of_the_stories_are_free():
    free = re.compile(r"CC0|CC BY \d|public domain|US government work|unrestricted use", re.IGNORECASE)
    for row in sources("workflows/pictures"):
        assert free.search(row["licence"]), row["file"]
        assert "CC BY" not in row["licence"] or "©" in row["author"], row["file"]
        assert row["author"], row["file"]
        assert row["origin"], row["file"]


def test_license_of_every_model_matches_the_readme(shipped):
    section = license_section()
    for name in shipped:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(ROOT / name, framework="pt") as file:
            notes = file.metadata() or {}
        header = notes.get(KEY) or notes.get(MEMORY)
        model = Path(name).stem
        if header is None:
            assert Path(name).with_suffix(".licences.txt").as_posix() in section
        else:
            line = next(line for line in section.splitlines() if f"`{model}`" in line)
            assert ('"licence": "MIT' in header) == ("MIT" in line)
            assert ('"licence": "Research only' in header) == ("research only" in line)


def test_training_photographs_are_free():
    rows = sources("flowcore/weights")
    sets = collections.Counter(row["set"] for row in rows)
    assert sets == {"photos": 199, "photos-large": 315, "photos-small": 3121, "photos-more": 1900, "faces": 1278}
    assert {row["class"] for row in rows} == {"CC0/public domain", "CC BY", "MIT/Apache/BSD", "share-alike"}
    assert not [row for row in rows if re.search(r"\bN[CD]\b", row["licence"])]
    assert held_out_names("standard") <= {Path(row["file"]).name for row in rows}


def test_the_starter_memory_remembers_no_photograph_that_is_held_out_or_share_alike():
    memory = ColorMemory.load(catalog.FOLDER / f"{catalog.STARTER_MEMORY}.safetensors")
    classes = {Path(row["file"]).name: row["class"] for row in sources("flowcore/weights")}
    names = memory.provenance["photographs"]
    assert len(names) == memory.photographs == 4732
    assert "share-alike" not in {classes[name] for name in names}
    assert not held_out_names("standard") & set(names)


def test_no_text_has_a_restrictive_license(shipped):
    found = [name for name in shipped if name not in MENTIONS and UNFREE.search(text(name) or "")]
    assert found == []
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_no_file_runs_code_when_opened(tracked):
    dangerous = {".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".bin", ".npy", ".npz", ".so", ".exe", ".whl"}
    assert [name for name in tracked if Path(name).suffix in dangerous] == []


def test_pages_that_messages_and_help_pages_name_are_shipped(shipped):
    telling = filter(re.compile(r"(flowcore/(?!weights)|nodes|web|locales|subgraphs|workflows)/").match, shipped)
    told = "\n".join(filter(None, map(text, telling)))
    named = set(re.findall(r"docs/[\w/-]+\.md", told))
    assert named
    assert named <= set(shipped)
