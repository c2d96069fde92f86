"""Builders of hostile files, and a look at what the readers do with a file: errors, seconds, memory, traces."""

import contextlib
import faulthandler
import io
import json
import os
import struct
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import torch

import flowcore
from flowcore.errors import printable
from flowcore.models import build, latents_file
from flowcore.models.model_file import is_flowcore_file, read, read_header
from flowcore.models.published import convert

MAX_SECONDS = 5.0  # to read a file
TIMEOUT = 60  # seconds, after which a hang ends the process with a traceback
MAX_MEMORY = 256 * 2**20  # bytes beside eight times the file, see flowcore/models/model_file.py
MAX_MESSAGE = 1500  # characters


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
    """Put a pickle into a torch file of the old kind, where a storage may also be a part of another."""
    pickled = pickled.replace(b"tQ", b"NtQ")
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    return magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickled + b"\x80\x02](" + text("0") + b"e."


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _surroundings(path: Path) -> dict:
    folders = {folder for folder in (path.parent, Path.cwd()) if os.path.isdir(folder)}
    entries = [(entry, entry.lstat()) for folder in folders for entry in folder.iterdir()]
    return {str(entry): (stat.st_size, stat.st_mtime_ns) for entry, stat in entries}


def _check_model(flow) -> None:
    """Check that a loaded model matches its configuration, in finite float32."""
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
    assert all(z.dtype == torch.float32 and z.ndim == 4 and bool(z.isfinite().all()) for z in levels)


def _read(path: Path, overrides: dict) -> tuple[dict[str, str], list[str]]:
    """Read a file with every reader; return the error of each, and what was wrong with how it went."""
    ways = {
        "read_header": lambda: read_header(path),
        "is_flowcore_file": lambda: is_flowcore_file(path),
        "load": lambda: _check_model(flowcore.load(path, **overrides)),
        "read": lambda: read(path),
        "convert": lambda: convert(path, overrides),
        "read_latents_header": lambda: latents_file.read_latents_header(path),
        "load_latents": lambda: _check_latents(latents_file.load_latents(path)[0]),
    }
    errors, wrong = {}, []
    del ways["read" if is_flowcore_file(path) else "convert"]  # load does it
    for name, way in ways.items():
        start = time.process_time()  # not wall time: other tests may run; TIMEOUT limits waiting
        try:
            way()
            errors[name] = ""
        except flowcore.FlowError as error:
            errors[name] = message = str(error)
            if len(message) > MAX_MESSAGE or "\n" in message or not message.rstrip().endswith((".", "convert IN OUT.")):
                wrong.append(f"{name}: not a sentence: {message[:300]!r} ({len(message)} characters)")
            if printable(path.name[:20]) not in message:
                wrong.append(f"{name}: does not name the file: {message[:300]!r}")
        except BaseException:
            errors[name] = "raised"
            wrong.append(f"{name}:\n{traceback.format_exc(limit=-6)[-1500:]}")
        seconds = time.process_time() - start
        if seconds > MAX_SECONDS:
            wrong.append(f"{name} took {seconds:.1f} s")
    return errors, wrong


def look_at(path: Path, overrides: dict | None = None) -> dict[str, str]:
    """Read a file with every reader, within the limits; return the error of each."""
    path = Path(path)
    before, resident = _surroundings(path), _status("VmRSS")
    with contextlib.suppress(OSError):  # not permitted everywhere; then the peak is that of all files so far
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
    reserved = _status("VmPeak")
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors, wrong = _read(path, overrides or {})
    faulthandler.cancel_dump_traceback_later()
    grown = {"resident": _status("VmHWM") - resident, "reserved": _status("VmPeak") - reserved}
    bound = MAX_MEMORY + 8 * (path.stat().st_size if os.path.isfile(path) else 0)
    wrong += [f"{kind} memory grew by {n >> 20} MiB" for kind, n in grown.items() if n > bound]
    if _surroundings(path) != before:
        wrong.append("something was written")
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        wrong.append("gradients were left off")
    assert not wrong, "\n".join(wrong)
    return errors
