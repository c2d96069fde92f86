"""The gates of others: what the tools of the registry and of the community say of this pack.

    .gates/bin/python tests/gates.py      (or `make gates`, which installs comfy-cli and comfy-test into .gates)

Neither needs a network once it is installed. They look at a clean clone, since they would walk through environments and
hosts, too.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

# What comfy-test's level SYNTAX holds against every package that also runs without ComfyUI: it asks for the host's own
# layers and loaders. Those of flowcore are torch's; foreign files are opened by torch.load(weights_only=True) only.
BY_DESIGN = re.compile(
    r"nn\.(Conv\*d|Linear|GroupNorm|LayerNorm|Embedding)\(\)|torch\.autocast\(\)|torch\.load\(\)|torch\.cuda\.empty_cache\(\)"
)


def run(*command: str, cwd: Path, home: Path) -> tuple[int, str]:
    """Run a tool without a terminal and with a home of its own; its status and output."""
    environment = os.environ | {"HOME": str(home), "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, timeout=300, check=False, **both)
    return done.returncode, done.stdout


def main() -> int:
    """Run all gates; how many did not pass."""
    with tempfile.TemporaryDirectory() as folder:
        home, clone = Path(folder) / "home", Path(folder) / "flowcore"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        status, said = run(str(BIN / "comfy"), "--skip-prompt", "node", "validate", cwd=clone, home=home)
        valid = status == 0 and "warnings found" not in said and "rror" not in said
        report("comfy node validate", valid, said)
        for line in (clone / ".comfyignore").read_text().splitlines():
            if line.endswith("/") and not line.startswith("#"):
                shutil.rmtree(clone / line, ignore_errors=True)  # from here on, what is published
        status, said = run(str(BIN / "comfy-test"), "lint", "--check", "javascript", cwd=clone, home=home)
        script = status == 0
        report("comfy-test lint, JAVASCRIPT", script, said)
        status, said = run(str(BIN / "comfy-test"), "lint", "--check", "syntax", cwd=clone, home=home)
        complaints = [line.strip() for line in said.splitlines() if re.match(r"\s+Line \d+: ", line)]
        others = [line for line in complaints if not BY_DESIGN.search(line)]
        syntax = not others and "Unicode check: OK" in said
        report(f"comfy-test lint, SYNTAX, {len(complaints)} complaints by design", syntax, "\n".join(others) or said)
    return (not valid) + (not script) + (not syntax)


def report(gate: str, passed: bool, said: str) -> None:
    """Say how a gate went, and why if it did not pass."""
    sys.stdout.write(f"{'passed' if passed else 'FAILED'}  {gate}\n")
    if not passed:
        sys.stdout.write(said.rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main())
