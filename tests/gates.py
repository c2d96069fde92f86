"""The gates of others: what the tools of the registry and of the community say of this pack, and whether it runs.

    .gates/bin/python tests/gates.py      (or `make gates`, which installs these tools into .gates)

None needs a network once it is installed. They look at a clean clone, since they would walk through environments and
hosts, too, and at the archive that the first of them packs for the registry: comfy-test lints it, bandit and the rules
of guarddog, by which published packages are scanned for malware, look for what reads like an attack, and a story runs
out of it in ComfyUI.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import yara

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

# What comfy-test's level SYNTAX holds against every package that also runs without ComfyUI: it asks for the host's own
# layers and loaders. Those of flowcore are torch's; foreign files are opened by torch.load(weights_only=True) only.
BY_DESIGN = re.compile(
    r"nn\.(Conv\*d|Linear|GroupNorm|LayerNorm|Embedding)\(\)|torch\.autocast\(\)|torch\.load\(\)|torch\.cuda\.empty_cache\(\)"
)

STORY = "tests/host/test_workflows.py::test_a_template_runs[0.30.0-upscale]"


def run(*command: str, cwd: Path, home: Path, **variables: str) -> tuple[int, str]:
    """Run a tool without a terminal and with a home of its own; its status and output."""
    environment = os.environ | {"HOME": str(home), "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"} | variables
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, timeout=300, check=False, **both)
    return done.returncode, done.stdout


def main() -> int:
    """Run all gates; how many did not pass."""
    with tempfile.TemporaryDirectory() as folder:
        home, clone = Path(folder) / "home", Path(folder) / "flowcore"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        comfy, comfy_test = (str(BIN / "comfy"), "--skip-prompt", "node"), (str(BIN / "comfy-test"), "lint", "--check")
        status, said = run(*comfy, "validate", cwd=clone, home=home)
        valid = status == 0 and "warnings found" not in said and "rror" not in said
        failed = report("comfy node validate", valid, said)
        status, said = run(*comfy, "pack", cwd=clone, home=home)
        archive, pack = clone / "node.zip", Path(folder) / "published"
        packed = status == 0 and archive.exists()
        failed += report("comfy node pack", packed, said)
        if not packed:
            return failed
        with zipfile.ZipFile(archive) as files:
            size = sum(file.file_size for file in files.infolist())
            sys.stdout.write(f"        {archive.stat().st_size / 1e6:.1f} MB, unpacked {size / 1e6:.1f}\n")
            files.extractall(pack)
        status, said = run(*comfy_test, "javascript", cwd=pack, home=home)
        failed += report("comfy-test lint, JAVASCRIPT", status == 0, said)
        status, said = run(*comfy_test, "syntax", cwd=pack, home=home)
        complaints = [line.strip() for line in said.splitlines() if re.match(r"\s+Line \d+: ", line)]
        others = [line for line in complaints if not BY_DESIGN.search(line)]
        syntax = not others and "Unicode check: OK" in said
        by_design = f"comfy-test lint, SYNTAX, {len(complaints)} complaints by design"
        failed += report(by_design, syntax, "\n".join(others) or said)
        status, said = run(str(BIN / "bandit"), "-q", "-r", ".", "--skip", "B101", cwd=pack, home=home)  # assert
        failed += report("bandit", status == 0, said)
        threats = malware(pack)
        failed += report("guarddog's rules of threats", not threats, "\n".join(threats))
        pytest = ROOT / ".venv" / BIN.name / "pytest"
        status, said = run(str(pytest), "-q", STORY, cwd=ROOT, home=home, FLOWCORE_PACK=str(pack))
        failed += report("a story, out of the archive, in ComfyUI", status == 0 and "1 passed" in said, said)
    return failed


def malware(pack: Path) -> list[str]:
    """What the rules of guarddog find in code; they are used alone, since it fetches lists when it is imported."""
    rules = Path(str(find_spec("guarddog").origin)).parent / "analyzer" / "sourcecode"
    paths = {rule.stem: str(rule) for rule in rules.glob("threat-*.yar")}
    assert paths
    threats, code = yara.compile(filepaths=paths), [path for path in pack.rglob("*") if path.suffix in (".py", ".js")]
    return [f"{match.rule} in {path.relative_to(pack)}" for path in code for match in threats.match(str(path))]


def report(gate: str, passed: bool, said: str) -> int:
    """Say how a gate went, and why if it did not pass; how many did not."""
    sys.stdout.write(f"{'passed' if passed else 'FAILED'}  {gate}\n")
    if not passed:
        sys.stdout.write(said.rstrip() + "\n")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
