"""What is published: no word that scanners flag without a reason, no unsafe torch.load, no link that leads nowhere."""

import ast
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]

# What scanners report: modules that are imported, and words, wherever they stand.
IMPORTED = re.compile(
    r"^\s*(?:import|from) (socket|ssl|http|urllib|ftplib|smtplib|requests|httpx|aiohttp|websockets|ctypes|marshal"
    r"|shelve|dill|joblib|runpy|base64|pty|multiprocessing|yaml|huggingface_hub)\b",
    re.MULTILINE,
)
WORDS = re.compile(
    r"\b(import_module|__import__|environ|getenv|putenv|subprocess|popen|os\.system|(?i:\w*pickle\w*)|torch\.(?:load|hub|package|jit\.load)|np\.load"
    r"|XMLHttpRequest|WebSocket|EventSource)\b|(?<![.\w])(eval|exec|compile|fetch)\("
)
REASONS = {
    ("flowcore/batch/cluster.py", "environ"): "tells Ray to report no statistics",
    ("flowcore/batch/cluster.py", "socket"): "connects to the address that the user gives",
    ("flowcore/checkpoints/pickled.py", "pickle"): "looks through foreign checkpoints before torch reads them",
    ("flowcore/checkpoints/pickled.py", "torch.load"): "a message says how to save such a file again",
    ("flowcore/checkpoints/published.py", "pickle"): "calls pickled.py",
    ("flowcore/checkpoints/published.py", "torch.load"): "weights_only=True, see below",
    ("flowcore/cli/main.py", "import_module"): "--plugin names a module; each command is imported when it runs",
    ("flowcore/device.py", "ctypes"): "on the command line, the C library is told to keep freed memory",
    ("flowcore/quality/metrics.py", "torch.hub"): "the name of torch's folder of weights, for LPIPS",
    ("flowcore/quality/metrics.py", "torch.load"): "weights_only=True, see below",
    ("flowcore/training/checkpoint.py", "torch.load"): "weights_only=True, see below",
    ("flowcore/training/run.py", "environ"): "torchrun says there how many processes train together",
    ("nodes/host/routes.py", "aiohttp"): "answers on the server that the host runs",
    ("prestartup_script.py", "import_module"): "plug-ins import the pack's own flowcore under that name",
    ("web/js/gallery.js", "fetch"): "asks the host whether a picture is there",
}


def test_every_word_that_a_scanner_reports_has_a_reason(shipped, tracked):
    """In the registry's archive and in the wheel."""
    found = set()
    for name in {*shipped, *(name for name in tracked if name.startswith("flowcore/"))}:
        if name.endswith((".py", ".js")):
            text = (ROOT / name).read_text(encoding="utf-8")
            words = [next(filter(None, groups)) for groups in WORDS.findall(text)] + IMPORTED.findall(text)
            found |= {(name, "pickle" if "pickle" in word.lower() else word) for word in words}
    assert found == REASONS.keys()


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
