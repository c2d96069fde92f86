"""Untrusted files are read, or refused by a readable error, in bounded time and memory, whatever is in them.

`hostile.py` builds them, and watches a child process that reads them. Every past finding has its own test; generated
cases (`fuzz`) search for more.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import socket
import struct
import sys
import warnings
import zipfile

import pytest
import torch
from builders import TINY, build_tiny, hcflow_checkpoint, srflow_checkpoint
from cases import cases, tried
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as parse
from safetensors.torch import save as serialize

from flowcore.checkpoints import read, save
from flowcore.checkpoints.file import MAX_HEADER
from flowcore.checkpoints.latents_file import save_latents
from flowcore.errors import FlowError
from flowcore.models import ARCHITECTURES
from flowcore.training.styles import with_styles

from . import hostile
from .hostile import archive, dictionary, legacy, parts, safetensors, tensor, text, whole, with_config, with_header

# Fields that differ from TINY: with channel orders and labels in the file.
FIELDS = {"glow": {"mixing": "shuffle", "classes": 2, "image_size": 8}}
SHA = "0123456789abcdef" * 4


def torch_file(content, *, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


class Files(dict):
    def __repr__(self):
        return "the good files"  # hypothesis would print them


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Contents of good files of every kind, by name."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    files = Files()
    for name in TINY:
        flow = build_tiny(name, perturb=0.1, **FIELDS.get(name, {}))
        if name == "class_conditional":
            flow = with_styles(flow, ("bold",), torch.ones(1, flow.channels * math.prod(flow.image_size)))
        save(flow, folder / name)
        files[name] = (folder / name).read_bytes()
    save(build_tiny("glow", perturb=0.1, steps=1, hidden=32), folder / "eight bits", dtype=torch.int8)
    files["eight bits"] = (folder / "eight bits").read_bytes()
    state = srflow_checkpoint(build_tiny("srflow", perturb=0.1))
    files["published safetensors"] = serialize(state)
    for name in ("srflow_da", "llflow"):
        files[f"published {name}"] = serialize(srflow_checkpoint(build_tiny(name, perturb=0.02)))
    files["published hcflow"] = serialize(hcflow_checkpoint(build_tiny("hcflow", perturb=0.1)))
    files["published pth"] = torch_file(state)
    files["published old pth"] = torch_file(state, old=True)
    latents = [torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 3)]
    for name, source in {"latents": None, "latents with source": torch.rand(1, 3, 2, 2)}.items():
        save_latents(folder / name, latents, model=SHA, architecture="glow", extra={"labels": [1, 2]}, source=source)
        files[name] = (folder / name).read_bytes()
    return files


PUBLISHED = (
    "published safetensors",
    "published srflow_da",
    "published llflow",
    "published hcflow",
    "published pth",
    "published old pth",
)
MODELS = (*TINY, "eight bits", *PUBLISHED)
LATENTS = ("latents", "latents with source")


def overrides_for(name: str) -> dict:
    return {"stacked_blocks": (1,)} if name.startswith("published") and "hcflow" not in name else {}


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip("the child's memory is read the Linux way")
    child = hostile.Child(tmp_path_factory.mktemp("hostile"))
    yield child
    child.stop()


@pytest.fixture(scope="module")
def look_at(child):
    """Let the child read a path within its limits, and return the errors by function."""

    def look_at(path, overrides=None):
        verdict = child.look(path, overrides)
        assert verdict["wrong"] == []
        return verdict["errors"]

    return look_at


@pytest.fixture(scope="module")
def look(child, look_at):
    """Let the child read a content, and return the errors by function."""

    def look(content: bytes, suffix: str = ".safetensors", overrides=None):
        path = child.folder / f"file{suffix}"
        path.write_bytes(content)
        errors = look_at(path, overrides)
        path.unlink()
        return errors

    return look


def refused(errors: dict[str, str], *words: str) -> None:
    """Check that `load` refused the file with an error that has these words."""
    assert errors["load"], "it was loaded"
    for word in words:
        assert word in errors["load"], errors["load"]


# --- good files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *LATENTS])
def test_good_files_are_read(good, look, name):
    ways = ("read_latents_header", "load_latents") if name in LATENTS else ("load",)
    for suffix in (".safetensors", ".pth", ""):
        errors = look(good[name], suffix, overrides_for(name))
        assert {errors[way] for way in ways} == {""}


@pytest.mark.parametrize("target", ["file", "link to a file"])
def test_symlinks_are_followed(good, look_at, tmp_path, target):
    (tmp_path / "file").write_bytes(good["glow"])
    (tmp_path / "link to a file").symlink_to(tmp_path / "file")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / target)
    assert look_at(tmp_path / "link.safetensors")["load"] == ""


# --- not files, not models --------------------------------------------------------------------------------------------

SPECIAL_FILES = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("kind", [*SPECIAL_FILES, "socket"])
def test_special_files_are_refused_without_waiting(look_at, tmp_path, kind):
    path = tmp_path / "odd.safetensors"
    with socket.socket(socket.AF_UNIX) as opened:
        make = SPECIAL_FILES.get(kind) or (lambda path: opened.bind(str(path)))
        make(path)
        refused(look_at(path), "odd.safetensors")


@pytest.mark.parametrize(
    "name", ["x" * 300, "a\0b", "~nobody-of-that-name/x", "x" * 5000, "\udcff"], ids=lambda name: ascii(name)[:12]
)
def test_impossible_names_are_refused(child, look_at, name):
    refused(look_at(child.folder / name if name[0] != "~" else name))


OTHER_FILES = {
    "one byte": b"\x80",
    "gzip bomb": gzip.compress(bytes(2**22)),
    "only a length": struct.pack("<Q", 2),
    "a length of 4 EiB": struct.pack("<Q", 2**62) + b"{}",
    "a broken header": struct.pack("<Q", 9) + b'{"a": nul',
    "text": b"this is no model, whatever its name says\n" * 20,
    "eight zeros": bytes(8),
    "magic of a zip": b"PK\x03\x04",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_refused(look, name):
    for suffix in (".safetensors", ".pth"):
        errors = look(OTHER_FILES[name], suffix)
        refused(errors)
        for way in ("read_header", "read_latents_header", "load_latents"):
            assert "not a safetensors file, or it is truncated" in errors[way], errors[way]


# --- past findings: each one made the reader crash, hang, use too much memory, or report nonsense ---------------------

HASHED_FOREVER = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
IDEOGRAMS = "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(20000))
PUNYCODE = b"c_codecs\nencode\n" + text(IDEOGRAMS) + text("punycode") + b"\x86R"
SHARED = b"".join(
    b"q" + bytes([i]) + b"}" + b"(" + b"".join(text(str(k)) + b"h" + bytes([i]) for k in range(400)) + b"u"
    for i in range(5)
)
NO_ITEMS = b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\x05s" + text("values") + b"K\x05s"

PICKLES = {
    "a key that takes an hour to hash": (dictionary(b"K\x01", b")" + HASHED_FOREVER), "nests tuples"),
    "a key a hundred thousand tuples deep": (dictionary(b"K\x01", b")" + b"\x85" * 100_000), "nests tuples"),
    "a key five thousand tuples deep": (dictionary(b"K\x01", b")" + b"\x85" * 5_000), "holds no weights"),
    "a value a hundred thousand lists deep": (dictionary(b"]" * 100_000 + b"a" * 99_999), "holds no weights"),
    "a gigabyte of zeros by name": (dictionary(b"cbuiltins\nbytearray\n" + whole(2**30) + b"\x85R"), "would import"),
    "a codec that takes a minute": (dictionary(PUNYCODE), "would import _codecs.encode"),
    "a set by name": (dictionary(b"cbuiltins\nset\n]\x85R"), "would import builtins.set"),
    "a storage that is made": (dictionary(b"ctorch.storage\nUntypedStorage\n" + whole(2**32) + b"\x85R"), "unusual"),
    "a tensor that is made": (dictionary(b"ctorch\nTensor\n" + whole(2**30) + b"\x85R"), "would import torch.Tensor"),
    "an object that is made": (dictionary(b"ctorch\nSize\n(K\x01tt\x81"), "truncated or damaged"),
    "a million opcodes": (dictionary(b"N0" * 500_000 + b"N"), "more than 500000 steps"),
    "dictionaries that share their parts": (b"\x80\x02}" + SHARED + b".", "holds no weights"),
    "an ordered dictionary whose items are none": (b"\x80\x02" + NO_ITEMS + b"b.", "holds no weights"),
    "a count of what a tensor holds": (
        dictionary(b"ccollections\nCounter\n" + tensor(1, [2**40], [0]) + b"\x85R"),
        "in an unusual way",
    ),
    "a tensor without numbers": (dictionary(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(NtR"), "would import"),
    "a tensor larger than its storage": (dictionary(tensor(1, [2**30], [1])), "does not fit"),
    "a storage larger than the file": (dictionary(tensor(2**32, [1], [1])), "claim"),
    "a storage of too many numbers": (dictionary(tensor(2**62, [1], [1])), "claim"),
    "a storage of fewer than no numbers": (dictionary(tensor(-1, [1], [1])), "truncated or damaged"),
    "a shape that overflows": (dictionary(tensor(1, [2**40, 2**40], [2**40, 1])), "does not fit"),
    "a negative side": (dictionary(tensor(4, [-4], [1])), "truncated or damaged"),
    "a negative step": (dictionary(tensor(4, [4], [-1])), "truncated or damaged"),
    "a name of a megabyte": (dictionary(tensor(0, [0], [1]), text("module." * 150_000)), "longer than 1000"),
    "a text of 4 GiB": (b"\x80\x02}X\xff\xff\xff\xff" + text("weight") + b"Ns.", "truncated or damaged"),
    "bytes of 8 EiB": (b"\x80\x04}\x8e" + b"\xff" * 7 + b"\x7f" + text("weight") + b"Ns.", "truncated or damaged"),
    "memo that was never written": (b"\x80\x02h\x05.", "truncated or damaged"),
    "nothing on the stack": (b"\x80\x02" + b"0" * 50 + b".", "truncated or damaged"),
    "marks without end": (b"\x80\x02" + b"(" * 100_000 + b".", "truncated or damaged"),
}


SLOW = {"a million opcodes", "a value a hundred thousand lists deep", "marks without end"}  # to unpickle


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "archive") for name in PICKLES]
    + [pytest.param(name, "old", marks=[pytest.mark.soak] if name in SLOW else []) for name in PICKLES],
)
def test_pickles_that_ask_for_too_much(look, name, form):
    pickled, words = PICKLES[name]
    content = archive(pickled, extra={"m/data/0": bytes(4)}) if form == "archive" else legacy(pickled)
    errors = look(content, ".pth")
    refused(errors)
    # an old file has its numbers behind its pickles, and torch may complain of these first
    assert words in errors["load"] or (form == "old" and "truncated or damaged" in errors["load"]), errors["load"]


class Payload:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("form", "protocol"),
    # A name is written in three ways, by protocol: as a line, as a line with a later opcode, and from the stack.
    [("archive", 2), *((form, protocol) for form in ("archive", "old", "bare") for protocol in (0, 3, 4))],
)
def test_code_in_pickles_is_not_run(child, look, form, protocol):
    trace = child.folder.parent / "trace"
    payload = Payload(os.system, f"touch {trace}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickled = pickle.dumps({"weight": payload}, protocol)
    content = {"archive": archive(pickled), "old": legacy(pickled), "bare": pickled}[form]
    refused(look(content, ".pth"))
    assert not trace.exists()


def _unpacks_to_gigabytes(_) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", dictionary(b"K\x01"))
        with file.open("m/data/0", "w") as entry:
            for _ in range(2**8):
                entry.write(bytes(2**20))
    return out.getvalue()


def _claims(content: bytes, place: int, value: bytes) -> bytes:
    """Change bytes in the entry of the table of contents for the pickle."""
    start = content.index(b"PK\x01\x02") + place
    return content[:start] + value + content[start + len(value) :]


ARCHIVES = {
    "that unpacks to 256 MiB": (_unpacks_to_gigabytes, "unpacks to more than its own size"),
    "that is compressed": (lambda _: archive(dictionary(text("x" * 99)) + bytes(900), deflate=True), ""),
    "with a comment": (lambda c: c[:-2] + b"\x04\x00" + b"note", "does not end with"),
    "with something behind it": (lambda c: c + b"more", "does not end with"),
    "with two tables": (lambda c: c[:-2] + struct.pack("<H", len(c)) + c, ""),
    "with one name twice": (
        lambda _: archive(dictionary(b"K\x01"), extra={"m/data.PKL": b"\x80\x02cos\nsystem\n."}),
        "two files of one name",
    ),
    "with a way out": (lambda _: archive(b"\x80\x02K\x01.", name="../../m/data.pkl"), "m"),
    "with an absolute name": (lambda _: archive(b"\x80\x02K\x01.", name="/m/data.pkl"), ""),
    "whose pickle claims 4 GiB": (lambda c: _claims(c, 20, b"\xff" * 8), ""),
    "whose pickle starts elsewhere": (lambda c: _claims(c, 42, b"\xf0\xff\xff\xff"), ""),
    "whose pickle is encrypted": (lambda c: _claims(c, 8, b"\x01\x00"), ""),
    "whose pickle is of an unknown method": (lambda c: _claims(c, 10, b"\x63\x00"), ""),
    "whose name is longer than the file": (lambda c: _claims(c, 28, b"\xff\xff"), ""),
    "whose table is elsewhere": (lambda c: c[:-6] + b"\xff\xff\xff\x7f" + c[-2:], ""),
    "whose table is larger than any": (lambda c: c[:-10] + b"\xff\xff\xff\x7f" + c[-6:], "larger than that of any"),
    "with many entries that are none": (lambda c: c[:-14] + b"\xff\xff\xff\xff" + c[-10:], ""),
    "without a pickle": (lambda _: archive(b"", name="m/other"), "not a checkpoint"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(look, name):
    change, words = ARCHIVES[name]
    good_pickle = archive(dictionary(b"K\x01"), extra={"m/data/0": bytes(400)})
    refused(look(change(good_pickle), ".pth"), words)


HUGE = {
    "srflow of a million convolutions": (
        "srflow",
        {"steps": 256, "transition_steps": 16, "scale": 8, "levels": 4, "hidden_layers": 64, "encoder_blocks": 256},
    ),
    "glow of 2048 steps": ("glow", {"levels": 8, "steps": 256, "image_size": 256}),
    "realnvp of 8 scales": ("realnvp", {"scales": 8, "blocks": 64, "image_size": None}),
    "ffjord of a thousand widths": ("ffjord", {"scales": 1, "hidden": [4096] * 1000, "image_size": None}),
    "ffjord of 64 blocks": ("ffjord", {"scales": 8, "blocks": 64, "hidden": [4096] * 16, "image_size": None}),
    "residual flow of 2048 blocks": ("residual_flow", {"blocks": [256] * 8, "full_blocks": 64, "image_size": 128}),
    "residual flow of a large image": (
        "residual_flow",
        {"blocks": [1], "hidden": 4096, "full_hidden": 4096, "image_size": 16384},
    ),
    "colorizer of 512 steps": (
        "colorizer",
        {"steps": [64] * 8, "hidden": [4096] * 8, "widths": [4096] * 9, "merged": 1024, "features": 1024},
    ),
    "digits of 65536 pixels": ("class_conditional", {"steps": 64, "hidden": 4096, "image_size": [256, 256]}),
    "hcflow of 512 steps and blocks": (
        "hcflow",
        {"scale": 8, "steps": 256, "detail_steps": 256, "hidden": 4096, "extractor_blocks": [256, 256]},
    ),
    "blocks a million times": ("srflow", {"stacked_blocks": [0] * 1_000_000}),
    "styles by the thousand": ("class_conditional", {"styles": [f"style {i}" for i in range(100_000)]}),
}


@pytest.mark.parametrize("name", [next(iter(HUGE)), *(pytest.param(n, marks=pytest.mark.soak) for n in [*HUGE][1:])])
def test_huge_configurations_are_refused_quickly(good, look, name):
    architecture, fields = HUGE[name]
    refused(look(with_config(good[architecture], fields)))


@pytest.mark.parametrize(
    ("name", "key", "place"), [("glow", "flowcore", "config"), ("latents", "flowcore_latents", "extra")]
)
def test_json_within_json(good, look, name, key, place):
    header = json.loads(parts(good[name])[0]["__metadata__"][key])
    for depth in (500, 985, 990, 995, 1000, 100_000):
        nested = "[" * depth + "]" * depth
        for text_ in (nested, json.dumps({**header, place: "here"}).replace('"here"', '{"hidden": ' + nested + "}")):
            look(with_header(good[name], key, text_))


def test_messages_are_bounded(good, look):
    fields = {
        "realnvp": "hidden", "srflow": "stacked_blocks", "colorizer": "temperatures", "class_conditional": "styles",
    }  # fmt: skip
    for value in ("x" * 10**5, {"x": "y" * 10**5}, 10**4000, [[[["x"] * 99] * 9] * 9]):
        for architecture, field in (*fields.items(), ("glow", "image_size"), ("glow", "grid")):
            look(with_config(good[architecture], {field: value}))
    refused(look(with_config(good["glow"], {"x" * 10**6: 1})), "newer flowcore")
    refused(look(with_header(good["glow"], "flowcore", {"architecture": "x" * 10**6})), "Unknown architecture")
    header, data = parts(good["glow"])
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}
    refused(look(safetensors({**header, "x" * 10**6: empty}, data)))
    refused(look(safetensors({"a": {"dtype": "x" * 10**6, "shape": [], "data_offsets": [0, 4]}}, bytes(4))))


def test_oversized_headers_are_not_parsed(look):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    content = safetensors({f"t{i}": entry for i in range(80_000)}, b"")
    assert len(content) > MAX_HEADER
    refused(look(content), "header of")
    assert look(content, ".pth")["load_latents"]


WRONG_TYPES = {"BOOL": 1, "I8": 1, "I32": 4, "U64": 8, "C64": 8, "F8_E4M3": 1, "F8_E8M0": 1}  # to bytes per value


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_weights_of_another_type_are_refused(good, look, kind):
    # a published file in eight bits is widened like any other
    for name in ("realnvp", "latents", *(["published safetensors"] if kind[:2] != "F8" else [])):
        header, tensors = parts(good[name])[0], parse(good[name])
        key = next(k for k, t in tensors.items() if t.ndim == 4)
        size = tensors.pop(key).numel() * WRONG_TYPES[kind]
        others, data = parts(serialize(tensors))
        moved = {k: {**v, "data_offsets": [n + size for n in v["data_offsets"]]} for k, v in others.items()}
        first = {**header[key], "dtype": kind, "data_offsets": [0, size]}
        metadata = {k: v for k, v in header.items() if k == "__metadata__"}
        errors = look(safetensors({**metadata, key: first, **moved}, bytes(size) + data), overrides=overrides_for(name))
        assert errors["load_latents" if name == "latents" else "load"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("realnvp", value) for value in (math.nan, math.inf, -math.inf, 1e60)]
    + [("published safetensors", math.nan), ("published pth", 1e60), ("published old pth", math.nan)],
)
def test_nonfinite_weights_are_counted_and_named(good, look, name, value):
    flat = good["published safetensors" if name.startswith("published") else name]
    tensors = {key: t.double() if t.is_floating_point() else t for key, t in parse(flat).items()}
    key = next(k for k, t in sorted(tensors.items()) if t.ndim == 4 and t.is_floating_point())
    tensors[key].view(-1)[1:3] = value
    metadata = parts(flat)[0].get("__metadata__")
    content = serialize(tensors, metadata) if "pth" not in name else torch_file(tensors, old="old" in name)
    errors = look(content, overrides=overrides_for(name))
    refused(errors, "2 values that are not finite", "in 1 of its tensors")


def test_invalid_channel_orders_are_refused(good, look):
    tensors = parse(good["glow"])
    key = next(k for k in tensors if k.endswith(".order"))
    for order in ([0] * len(tensors[key]), [*range(1, len(tensors[key]) + 1)], [-1, *range(len(tensors[key]) - 1)]):
        changed = serialize({**tensors, key: torch.tensor(order)}, parts(good["glow"])[0]["__metadata__"])
        refused(look(changed), key, "does not list each of 0 to")


@pytest.mark.parametrize(
    ("model", "end", "value", "words"),
    [
        ("colorizer", "matrix", 0.0, "singular"),
        ("srflow", "weight", 1.0, "singular"),
        ("realnvp", "var", -1.0, "negative"),
    ],
)
def test_values_without_inverse_are_refused(good, look, model, end, value, words):
    tensors = parse(good[model])
    key = next(
        k for k, t in tensors.items() if k.endswith(end) and t.ndim < 3 and (end == "var" or len(t) == t.shape[1])
    )
    changed = {**tensors, key: torch.full_like(tensors[key], value)}
    changed = serialize(changed, parts(good[model])[0]["__metadata__"])
    refused(look(changed), words)


def test_loaded_model_is_independent_of_its_file(good, tmp_path):
    """Shared pages would let an overwritten file change the model, and a truncated one kill the process."""
    for name in TINY:
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(good[name])
        flow = read(path)
        before = {key: t.clone() for key, t in flow.state_dict().items()}
        with path.open("r+b") as file:
            file.write(b"\xff" * len(good[name]))
        assert all(torch.equal(t, before[key]) for key, t in flow.state_dict().items())


def test_unreadable_files_are_not_saved(tmp_path):
    flow = build_tiny("realnvp")
    with torch.no_grad():
        name, large = next(iter(flow.named_parameters()))
        large.view(-1)[0] = 1e5
    with pytest.raises(FlowError, match=rf"{name} holds numbers that are too large for torch.float16"):
        save(flow, tmp_path / "half.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    for kind in (torch.bfloat16, torch.float32):
        save(flow, tmp_path / "model.safetensors", dtype=kind)
        read(tmp_path / "model.safetensors")


# --- generated --------------------------------------------------------------------------------------------------------


def boundaries(content: bytes) -> list[int]:
    """Offsets at which parts of a file begin or end."""
    places = {0, 1, 4, 7, 8, 9, len(content) - 1, len(content)}
    if content.startswith(b"PK"):
        found = [i for i in range(len(content) - 1) if content[i : i + 2] == b"PK"]
        places |= {i + k for i in found for k in (0, 2, 4, 12, 18, 22, 26, 28, 30, 46)}
    elif not content.startswith(b"\x80"):
        header, data = parts(content)
        start = len(content) - len(data)
        ends = [n for entry in header.values() for n in entry.get("data_offsets", ())]
        places |= {start, start - 1, start + 1} | {start + n + k for n in ends for k in (-1, 0, 1)}
    return sorted(n for n in places if 0 <= n <= len(content))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file with a few random changes."""
    edges = boundaries(content)
    for _ in range(draw(st.integers(1, 3))):
        size = len(content)
        place = min(draw(st.one_of(st.sampled_from(edges), st.integers(0, size))), size)
        end = place + draw(st.one_of(st.integers(0, 16), st.integers(0, max(1, size)), st.just(size)))
        other = draw(st.integers(0, size))
        old = content[place:end]
        flipped = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in old[:1]) + old[1:]
        pieces = [b"", old * 2, flipped, content[other : other + 64], bytes(len(old))]
        piece = draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=64)))
        content = content[:place] + piece + content[end:]
    return content


ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 3, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**9, 10**18, 10**400, 0.5, 1e300, -0.0]
)
ODD = st.one_of(
    ODD_NUMBERS,
    st.sampled_from([None, True, False, "", "x", "conv", "a\0b", "\ud800", "x" * 3000, float("nan"), float("inf")]),
    st.lists(ODD_NUMBERS, max_size=5),
    st.lists(st.sampled_from(["bold", "", None, [], {}]), max_size=3),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)),
    st.integers(-5, 70),
    st.floats(),
)
JSON_TRICKS = st.sampled_from(
    [
        *("", "{", "null", "[]", "7", '"text"', "NaN", "Infinity", "-Infinity", "\ufeff{}", "{}\0", "\x00"),
        *("[" * 100_000, "[" * 990 + "]" * 990, '{"a":' * 100_000),
        *('{"format": 1, "format": 2}', '{"format": NaN}', '{"format": 1e400}', '{"format": ' + "9" * 5000 + "}"),
        '{"architecture": "glow", "format": 1, "config": [["levels", 1]], "provenance": {}}',
        '{"architecture": "glow", "format": 1, "config": {}, "provenance": []}',
    ]
)
DTYPES = ["F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F4", "F6_E2M3", "F8_E5M2", "C64", "XX", "", None, 3]
ENTRY = {  # what a header says of a tensor
    "dtype": st.sampled_from(DTYPES),
    "shape": st.one_of(ODD, st.lists(ODD_NUMBERS, max_size=6)),
    "data_offsets": st.one_of(ODD, st.lists(ODD_NUMBERS, min_size=2, max_size=2)),
}
METADATA = st.one_of(ODD, st.dictionaries(st.sampled_from(["flowcore", "flowcore_latents", "x"]), ODD, max_size=2))


@st.composite
def odd_headers(draw, content: bytes) -> bytes:
    """A safetensors file with a changed header."""
    header, data = parts(content)
    good = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*good]))
        what = draw(st.sampled_from([*ENTRY, "nudge", "gone", "more", "metadata", "odd"]))
        if what in ENTRY:
            header[name] = {**good[name], what: draw(ENTRY[what])}
        elif what == "nudge":
            nudged = [n + draw(st.sampled_from([-4, -1, 0, 1, 4])) for n in good[name]["data_offsets"]]
            header[name] = {**good[name], "data_offsets": nudged}
        elif what == "gone":
            header.pop(name, None)
        elif what == "more":
            header[draw(st.text(max_size=20))] = draw(st.one_of(ODD, st.just(good[name])))
        elif what == "metadata":
            header["__metadata__"] = draw(METADATA)
        else:
            header[name] = draw(st.one_of(ODD, st.sampled_from([*good.values()])))
    raw = json.dumps(header).encode()
    how = draw(st.sampled_from(["", "", "", "length", "duplicate", "bytes", "deep", "spaces"]))
    length = draw(ODD_NUMBERS.filter(lambda n: isinstance(n, int))) if how == "length" else None
    if how == "duplicate":
        raw = raw[:-1] + b"," + raw[1:]
    elif how == "bytes":
        at = draw(st.integers(0, len(raw)))
        tricks = [b"\xff", b"\0", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"1e999", b"NaN"]
        raw = raw[:at] + draw(st.sampled_from(tricks)) + raw[at:]
    elif how == "deep":
        raw = raw[:-1] + b',"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    elif how == "spaces":
        raw += b" " * draw(st.integers(1, 5000))
    return safetensors(raw, data, length=length)


@st.composite
def odd_configurations(draw, files: dict[str, bytes]) -> bytes:
    """A model file with odd values in its configuration or header."""
    name = draw(st.sampled_from(sorted(TINY)))
    fields = sorted(ARCHITECTURES[name].config.__dataclass_fields__)
    if draw(st.integers(0, 4)) == 0:
        part = draw(st.sampled_from(["architecture", "format", "config", "provenance", "more"]))
        value = draw(st.one_of(ODD, st.sampled_from(sorted(TINY))))
        return with_header(files[name], "flowcore", draw(st.one_of(JSON_TRICKS, st.just({part: value}))))
    changed = draw(
        st.dictionaries(st.sampled_from(fields), st.one_of(ODD, st.integers(1, 4096)), min_size=1, max_size=4)
    )
    return with_config(files[name], changed)


GLOBALS = """torch FloatStorage, torch._utils _rebuild_tensor_v2, torch Size, collections OrderedDict,
collections Counter, torch._utils _rebuild_parameter, torch._utils _rebuild_sparse_tensor,
torch.serialization _get_layout, os system, builtins eval, torch int64, torch device"""
OPCODES = [
    *(bytes([code]) for code in b"(t\x85\x86\x87)]}aesuRbQN0\x88\x89\x81\x8f21.\x94"),
    *(f"c{name}\n".replace(" ", "\n").encode() for name in GLOBALS.replace("\n", " ").split(", ")),
    *(text(word) for word in ("weight", "storage", "0", "cpu", "torch.sparse_coo")),
    *(b"q\0", b"h\0", b"q\1", b"h\1", b"K\1", b"\x8a\x00", b"\x8c\x01a", b"G" + bytes(8), b"J\xff\xff\xff\xff"),
    *(whole(2**40), tensor(1, [1], [1]), tensor(1, [1, 1], [1, 1]), tensor(100, [100], [1], key="1")),
]


@st.composite
def odd_pickles(draw, state: bytes) -> bytes:
    """A torch file around a random or damaged pickle."""
    if draw(st.booleans()):
        pickled = b"\x80\x02" + b"".join(draw(st.lists(st.sampled_from(OPCODES), max_size=40))) + b"."
    else:
        pickled = draw(damaged(b"\x80\x02" + dictionary(tensor(1, [1], [1]))[2:-2] + b"s."))
    if draw(st.booleans()):
        return legacy(pickled)
    return archive(pickled, extra={"m/data/0": bytes(4), "m/data/1": bytes(400)}, deflate=draw(st.integers(0, 9)) == 0)


def fuzz(short: int, long: int):
    """Run a test on generated data; see ``cases`` for the numbers of cases."""
    return lambda test: pytest.mark.fuzz(cases(short=short, long=long)(given(data=st.data())(test)))


@fuzz(70, 4500)
def test_damaged_models(good, look, data):
    name = data.draw(st.sampled_from(MODELS))
    content = data.draw(damaged(good[name]))
    look(content, data.draw(st.sampled_from([".pth", ".safetensors"])), overrides_for(name))
    tried("checkpoints")


@fuzz(30, 2500)
def test_models_with_odd_headers(good, look, data):
    name = data.draw(st.sampled_from([*TINY, "published safetensors"]))
    look(data.draw(odd_headers(good[name])), overrides=overrides_for(name))
    tried("checkpoints")


@fuzz(60, 3500)
def test_models_with_odd_configurations(good, look, data):
    look(data.draw(odd_configurations(good)))
    tried("checkpoints")


@fuzz(30, 2500)
def test_odd_pickles(good, look, data):
    look(data.draw(odd_pickles(good["published pth"])), ".pth")
    tried("checkpoints")


@fuzz(20, 500)
def test_random_bytes(look, data):
    start = data.draw(st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{"]))
    look(start + data.draw(st.binary(max_size=2000)), ".pth")
    tried("checkpoints")


@fuzz(30, 1500)
def test_damaged_latents(good, look, data):
    look(data.draw(damaged(good[data.draw(st.sampled_from(LATENTS))])))
    tried("latents files")


@fuzz(30, 1500)
def test_latents_with_odd_headers(good, look, data):
    content = good[data.draw(st.sampled_from(LATENTS))]
    if data.draw(st.booleans()):
        content = data.draw(odd_headers(content))
    else:
        fields = ["format", "model_sha256", "model_name", "architecture", "shapes", "extra", "source", "more"]
        change = st.dictionaries(st.sampled_from(fields), ODD, min_size=1, max_size=3)
        content = with_header(content, "flowcore_latents", data.draw(st.one_of(JSON_TRICKS, change)))
    look(content)
    tried("latents files")
