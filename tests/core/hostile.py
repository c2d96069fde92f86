"""Builders of hostile files, and a child process that reads them under observation.

The child imports flowcore once and then reads any number of files, one JSON line each: crashes, hangs and the memory of
every file are seen without an import per file. The tests start it as ``python tests/core/hostile.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MAX_SECONDS = 5.0  # to read a file
TIMEOUT = 20  # seconds, after which the child is considered to hang
MAX_MEMORY = 256 * 2**20  # bytes beside eight times the file, see flowcore/checkpoints/file.py
MAX_MESSAGE = 1500  # characters


# --- safetensors, by hand: the library refuses to write invalid files -------------------------------------------------


def safetensors(header: bytes | str | dict, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Write a file of any header, right or wrong."""
    raw = json.dumps(header) if isinstance(header, dict) else header
    raw = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if length is None else length % 2**64) + raw + data


def parts(content: bytes) -> tuple[dict, bytes]:
    """Take a good file apart."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(content: bytes, key: str, change: dict | str) -> bytes:
    """Change the JSON under a metadata key: some fields, or all of the text."""
    header, data = parts(content)
    if isinstance(change, str):
        header["__metadata__"][key] = change
    else:
        header["__metadata__"][key] = json.dumps({**json.loads(header["__metadata__"][key]), **change})
    return safetensors(header, data)


def with_config(content: bytes, change: dict) -> bytes:
    """Change fields of the configuration in a model file."""
    header, _ = parts(content)
    config = json.loads(header["__metadata__"]["flowcore"])["config"]
    return with_header(content, "flowcore", {"config": {**config, **change}})


# --- pickles, by hand -------------------------------------------------------------------------------------------------


def archive(pickled: bytes, *, name: str = "m/data.pkl", extra: dict[str, bytes] | None = None, deflate=False) -> bytes:
    """Write a torch archive around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as file:
        file.writestr(name, pickled)
        for other, content in {"m/version": b"3\n", "m/byteorder": b"little", **(extra or {})}.items():
            file.writestr(other, content)
    return out.getvalue()


def text(value: str) -> bytes:
    """The opcode that pushes a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    """The opcode that pushes a whole number of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(numbers: int, sides: list[int], strides: list[int], *, offset: int = 0, key: str = "0") -> bytes:
    """The opcodes that rebuild a tensor, with any claims."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + whole(numbers) + b"tQ"
    shape = b"".join(b"(" + b"".join(map(whole, values)) + b"t" for values in (sides, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + shape + b"\x89" + hooks + b"tR"


def dictionary(value: bytes, key: bytes | None = None) -> bytes:
    """A pickle of a dictionary with one entry."""
    return b"\x80\x02}" + (text("weight") if key is None else key) + value + b"s."


def legacy(pickled: bytes) -> bytes:
    """Put a pickle into a torch file of the old kind."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    return magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickled + b"\x80\x02](" + text("0") + b"e."


# --- the child --------------------------------------------------------------------------------------------------------


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _surroundings(path: Path) -> dict:
    folders = {folder for folder in (path.parent, Path.cwd()) if os.path.isdir(folder)}
    return {
        str(entry): (entry.lstat().st_size, entry.lstat().st_mtime_ns)
        for folder in folders
        for entry in folder.iterdir()
    }


def _check_model(flow) -> None:
    """Check that a loaded model matches its configuration, in finite float32."""
    import torch

    from flowcore.models import build

    with torch.device("meta"):
        expected = build(flow.architecture, flow.config).state_dict()
    state = flow.state_dict()
    assert state.keys() == expected.keys()
    for name, t in state.items():
        assert t.shape == expected[name].shape, name
        assert t.dtype == (torch.float32 if expected[name].is_floating_point() else torch.int64), (name, t.dtype)
        assert t.device.type == "cpu", name
        assert bool(t.isfinite().all()), name


def _check_latents(levels) -> None:
    import torch

    for z in levels:
        assert z.dtype == torch.float32
        assert z.ndim == 4
        assert bool(z.isfinite().all())


def _look(path: Path, overrides: dict) -> dict:
    """Read a file with every reader; return the error of each, and violations of the limits."""
    import traceback

    import flowcore
    from flowcore.checkpoints import convert, is_ours, latents_file, read, read_header

    ways = {
        "read_header": lambda: read_header(path),
        "is_ours": lambda: is_ours(path),
        "load": lambda: _check_model(flowcore.load(path, **overrides)),
        "read": lambda: read(path),
        "convert": lambda: convert(path, overrides),
        "read_latents_header": lambda: latents_file.read_latents_header(path),
        "load_latents": lambda: _check_latents(latents_file.load_latents(path)[0]),
    }
    errors, wrong = {}, []
    del ways["read" if is_ours(path) else "convert"]  # load does it
    for name, way in ways.items():
        start = time.process_time()  # not wall time: other tests may run; TIMEOUT limits waiting
        try:
            way()
            errors[name] = ""
        except flowcore.FlowError as error:
            errors[name] = message = str(error)
            if len(message) > MAX_MESSAGE or "\n" in message or not message.rstrip().endswith((".", "convert IN OUT.")):
                wrong.append(f"{name}: not a sentence: {message[:300]!r} ({len(message)} characters)")
            if path.name[:20] not in message:
                wrong.append(f"{name}: does not name the file: {message[:300]!r}")
        except BaseException:
            errors[name] = "raised"
            wrong.append(f"{name}:\n{traceback.format_exc(limit=-6)[-1500:]}")
        seconds = time.process_time() - start
        if seconds > MAX_SECONDS:
            wrong.append(f"{name} took {seconds:.1f} s")
    return {"errors": errors, "wrong": wrong}


def serve() -> None:
    """Run the child: a line with a path in, a line with a verdict out."""
    import faulthandler
    import warnings

    sys.path.insert(0, str(ROOT))
    import torch

    import flowcore
    from flowcore.checkpoints.file import build_on_meta
    from flowcore.models import configure

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in ("glow", "class_conditional"):  # torch imports modules for its meta device once
        build_on_meta(name, configure(name, {}))
    torch.randperm(4, device="meta"), flowcore.CheckpointError("")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        path = Path(request["path"])
        before, resident, virtual = _surroundings(path), _status("VmRSS"), _status("VmPeak")
        with contextlib.suppress(OSError):  # not permitted everywhere; then the peak is that of all files so far
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
        faulthandler.dump_traceback_later(TIMEOUT, exit=True)
        verdict = _look(path, request["overrides"])
        faulthandler.cancel_dump_traceback_later()
        grown = {"resident": _status("VmHWM") - resident, "reserved": _status("VmPeak") - virtual}
        bound = MAX_MEMORY + 8 * (path.stat().st_size if os.path.isfile(path) else 0)
        verdict["wrong"] += [f"{kind} memory grew by {n >> 20} MiB" for kind, n in grown.items() if n > bound]
        if _surroundings(path) != before:
            verdict["wrong"].append("something was written")
        verdict["grown"] = grown["resident"]
        print(json.dumps(verdict), file=answers, flush=True)


class Child:
    """The process that reads hostile files; started on demand, and again after a crash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.log = folder.parent / f"{folder.name}.log"

    def look(self, path: Path, overrides: dict | None = None) -> dict:
        """Let it read a file, and return its verdict, or how it died."""
        if self.process is None:
            self.start()
        self.process.stdin.write(json.dumps({"path": str(path), "overrides": overrides or {}}) + "\n")
        self.process.stdin.flush()
        answer = self._answer(TIMEOUT + 10)
        if answer:
            return json.loads(answer)
        code = self.stop()
        log = self.log.read_text(errors="replace")[-3000:]
        return {"errors": {}, "wrong": [f"the process died with {code}:\n{log}"], "grown": 0}

    def start(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert json.loads(self._answer(120) or "{}") == {"ready": True}, self.log.read_text()

    def stop(self) -> int | None:
        process, self.process = self.process, None
        if process is None:
            return None
        try:
            process.stdin.close()
            process.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        process.stdout.close()
        return process.returncode

    def _answer(self, seconds: float) -> str:
        """Read a line; nothing if it died or took too long."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            return self.process.stdout.readline()
        finally:
            timer.cancel()


if __name__ == "__main__":
    serve()
