"""Untrusted files are read, or refused by a readable error, in bounded time and memory, whatever is in them.

`hostile.py` builds them, and looks on while they are read. Generated cases (`fuzz`) search for more.
"""

import functools
import gzip
import io
import json
import math
import operator
import os
import pickle
import socket
import struct
import sys

import pytest
import torch
from builders import TINY, build_tiny, hcflow_checkpoint, srflow_checkpoint
from cases import cases, tried
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as parse
from safetensors.torch import save as serialize

from flowcore import FlowError, save
from flowcore.models import configure
from flowcore.models.latents_file import save_latents
from flowcore.models.model_file import MAX_HEADER, build_on_meta, read
from flowcore.training.styles import with_styles

from .hostile import (
    archive,
    dictionary,
    legacy,
    look_at,
    parts,
    safetensors,
    tensor,
    text,
    whole,
    with_config,
    with_header,
)

# Fields that differ from TINY: with channel orders and labels in the file.
FIELDS = {"glow": {"mixing": "shuffle", "classes": 2, "image_size": 8}}
SHA = "0123456789abcdef" * 4


def torch_file(content, *, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


class Files(dict):
    __repr__ = object.__repr__  # hypothesis would print all


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Contents of good files of every kind, by name."""
    folder = tmp_path_factory.mktemp("good")
    files = Files()
    for name in TINY:
        flow = build_tiny(name, perturb=0.1, **FIELDS.get(name, {}))
        if name == "class_conditional":
            flow = with_styles(flow, ("bold",), torch.ones(1, flow.channels * math.prod(flow.image_size)))
        save(flow, folder / f"{name}.safetensors")
        files[name] = (folder / f"{name}.safetensors").read_bytes()
    save(build_tiny("glow", perturb=0.1, steps=1, hidden=32), folder / "8.safetensors", dtype=torch.int8)
    files["eight bits"] = (folder / "8.safetensors").read_bytes()
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


PUBLISHED = tuple(f"published {kind}" for kind in ("safetensors", "srflow_da", "llflow", "hcflow", "pth", "old pth"))
MODELS = (*TINY, "eight bits", *PUBLISHED)
LATENTS = ("latents", "latents with source")


def overrides_for(name: str) -> dict:
    return {"stacked_blocks": (1,)} if name.startswith("published") and "hcflow" not in name else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for files, in which nothing else is written."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the memory of the process is read the Linux way")
    for name in ("glow", "class_conditional"):  # torch imports modules for its meta device once
        build_on_meta(name, configure(name, {}))
    torch.randperm(4, device="meta")
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def look(folder):
    """Read a content within the limits, and return the errors by function."""

    def look(content: bytes, suffix: str = ".safetensors", overrides=None):
        path = folder / f"file{suffix}"
        path.write_bytes(content)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # elsewhere other processes write
            errors = look_at(path, overrides)
        path.unlink()
        return errors

    return look


def refused(errors: dict[str, str], *words: str) -> None:
    """Check that `load` refused the file with an error that has these words."""
    assert errors["load"], "it was loaded"
    for word in words:
        assert word in errors["load"], errors["load"]


@pytest.mark.parametrize("name", [*MODELS, *LATENTS])
def test_good_files_are_read(good, look, name):
    ways = ("read_latents_header", "load_latents") if name in LATENTS else ("load",)
    errors = look(good[name], ".safetensors", overrides_for(name))
    assert {errors[way] for way in ways} == {""}


@pytest.mark.parametrize("suffix", [".pth", ""])
def test_a_file_is_what_it_holds_whatever_its_name(good, look, suffix):
    for name in ("glow", "published safetensors", "published pth", "published old pth"):
        assert look(good[name], suffix, overrides_for(name))["load"] == ""


def test_symlinks_are_followed(good, folder, tmp_path):
    (tmp_path / "file").write_bytes(good["glow"])
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "file")
    assert look_at(tmp_path / "link.safetensors")["load"] == ""


SPECIAL_FILES = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("kind", [*SPECIAL_FILES, "socket"])
def test_special_files_are_refused_without_waiting(folder, tmp_path, kind):
    path = tmp_path / "odd.safetensors"
    with socket.socket(socket.AF_UNIX) as opened:
        make = SPECIAL_FILES.get(kind) or (lambda path: opened.bind(str(path)))
        make(path)
        refused(look_at(path), "odd.safetensors")


def test_impossible_names_are_refused(folder):
    for name in ("x" * 300, "a\0b", "x" * 5000, "\udcff"):
        refused(look_at(folder / name))
    refused(look_at("~nobody-of-that-name/x"))


OTHER_FILES = [
    *(b"\x80", bytes(8), bytes(100_000), b"\xff" * 100_000, b"this is no model, whatever its name says\n" * 20),
    *(b"PK\x03\x04", b"PK\x05\x06" + bytes(18)),  # the magic of a zip, and an empty one
    gzip.compress(bytes(2**22)),
    struct.pack("<Q", 2),  # only a length
    struct.pack("<Q", 2**62) + b"{}",
    struct.pack("<Q", 9) + b'{"a": nul',
]


def test_other_files_are_refused(look):
    for content in OTHER_FILES:
        for suffix in (".safetensors", ".pth"):
            errors = look(content, suffix)
            refused(errors)
            for way in ("read_header", "read_latents_header", "load_latents"):
                assert "not a safetensors file, or it is truncated" in errors[way], errors[way]


HASHED_FOREVER = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
RECALLED_TWICE = b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))
IDEOGRAMS = "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(20000))
PUNYCODE = b"c_codecs\nencode\n" + text(IDEOGRAMS) + text("punycode") + b"\x86R"
SHARED = b"".join(
    b"q" + bytes([i]) + b"}" + b"(" + b"".join(text(str(k)) + b"h" + bytes([i]) for k in range(400)) + b"u"
    for i in range(5)
)
# Steps of a tensor of a million rows that are one number.
ROWS = tensor(1, [2**20, 2], [0, 0])
IN_PAIRS = b"".join(b"K\x01\x86" for _ in range(100_000))
# Steps that enlarge the tensor in the memo twice; torch copies its numbers the second time.
LARGER = b"".join(b"(h\x09K\x00" + whole(2**28 + more) + b"\x85K\x01\x85tb" for more in (0, 1))
NO_ITEMS = b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\x05s" + text("values") + b"K\x05s"

PICKLES = {
    "a key that takes an hour to hash": (dictionary(b"K\x01", b")" + HASHED_FOREVER), "nests tuples"),
    "a key of pairs that are recalled twice": (dictionary(b"K\x01", b")" + RECALLED_TWICE), "nests tuples"),
    "a key a hundred thousand tuples deep": (dictionary(b"K\x01", b")" + b"\x85" * 100_000), "nests tuples"),
    "a key that nests a hundred thousand pairs": (dictionary(b"K\x01", b")" + IN_PAIRS), "nests tuples"),
    "a storage whose key takes an hour to hash": (
        dictionary(
            b"(" + text("storage") + b"ctorch\nFloatStorage\n" + b")" + b"\x85K\x01\x86" + text("cpu") + b"K\x01tQ"
        ),
        "unusual",
    ),
    "a dictionary made of the rows of a tensor": (
        dictionary(b"ccollections\nOrderedDict\n" + ROWS + b"\x85R"),
        "unusual",
    ),
    "a key five thousand tuples deep": (dictionary(b"K\x01", b")" + b"\x85" * 5_000), "holds no weights"),
    "a value twenty thousand lists deep": (dictionary(b"]" * 20_000 + b"a" * 19_999), "holds no weights"),
    "a gigabyte of zeros by name": (dictionary(b"cbuiltins\nbytearray\n" + whole(2**30) + b"\x85R"), "would import"),
    "a codec that takes a minute": (dictionary(PUNYCODE), "would import _codecs.encode"),
    "a storage that is made": (
        dictionary(b"ctorch.storage\nUntypedStorage\n" + whole(2**32) + b"\x85R"),
        "would import",
    ),
    "an object that is made": (dictionary(b"ctorch\nSize\n(K\x01tt\x81"), "would import"),
    "a million opcodes": (dictionary(b"N0" * 500_000 + b"N"), "far longer than any"),
    "dictionaries that share their parts": (b"\x80\x02}" + SHARED + b".", "holds no weights"),
    "an ordered dictionary whose items are none": (b"\x80\x02" + NO_ITEMS + b"b.", "holds no weights"),
    "a count of a tensor": (
        dictionary(b"ccollections\nCounter\n" + tensor(1, [2**40], [0]) + b"\x85R"),
        "would import",
    ),
    "a tensor without numbers": (dictionary(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(NtR"), "would import"),
    "a storage of too many numbers": (dictionary(tensor(2**62, [1], [1])), "claim"),
    "tensors that enlarge their storage": (
        b"\x80\x02](" + tensor(1, [2**28], [1]) + tensor(1, [2**28 + 1], [1]) + b"e.",
        "does not fit into its storage",
    ),
    "a tensor that is enlarged": (
        dictionary(tensor(1, [1], [1]) + b"q\x09)b" + LARGER),
        "does not fit into its storage",
    ),
    "storages that exceed the file together": (
        b"\x80\x02](" + b"".join(tensor(10**5, [1], [1], key=str(k)) for k in range(1500)) + b"e.",
        "truncated or damaged",
    ),
    "a storage whose size is shared": (
        b"\x80\x02](" + whole(2**28) + b"q\x05" + tensor(7, [1], [1]).replace(whole(7), b"h\x05", 1) + b"e.",
        "shares numbers",
    ),
    "a storage of fewer than no numbers": (dictionary(tensor(-1, [1], [1])), "truncated or damaged"),
    "a shape that overflows": (dictionary(tensor(1, [2**40, 2**40], [2**40, 1])), "truncated or damaged"),
    "a negative side": (dictionary(tensor(4, [-4], [1])), "truncated or damaged"),
    "a name of a megabyte": (dictionary(tensor(0, [0], [1]), text("module." * 150_000)), "longer than 1000"),
    "a text of 4 GiB": (b"\x80\x02}X\xff\xff\xff\xff" + text("weight") + b"Ns.", "truncated or damaged"),
    "memo that was never written": (b"\x80\x02h\x05.", "truncated or damaged"),
    "pairs of numbers that are used twice": (
        b"\x80\x02]" + text("betas") + b"aG" + bytes(8) + b"G" + bytes(8) + b"\x86q\x01ah\x01ah\x01a.",
        "holds a list",
    ),
    "marks without end": (b"\x80\x02" + b"(" * 100_000 + b".", "truncated or damaged"),
}


SLOW = {"a million opcodes", "marks without end"}  # to unpickle


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_too_much(look, name):
    pickled, words = PICKLES[name]
    errors = look(archive(pickled, extra={"m/data/0": bytes(4)}), ".pth")
    refused(errors, words)
    if name not in SLOW:
        # an old file has its numbers behind its pickles, and torch may complain of these first
        errors = look(legacy(pickled), ".pth")
        assert words in errors["load"] or "truncated or damaged" in errors["load"], errors["load"]


class Payload:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])  # of which a name is a line, or comes from the stack
def test_code_in_pickles_is_not_run(folder, look, protocol):
    trace = folder.parent / "trace"
    pickled = pickle.dumps({"weight": Payload(os.system, f"touch {trace}")}, protocol)
    for content in (archive(pickled), legacy(pickled), pickled):
        refused(look(content, ".pth"))
        assert not trace.exists()


def _claims(content: bytes, place: int, value: bytes) -> bytes:
    """Change bytes in the entry of the table of contents for the pickle."""
    start = content.index(b"PK\x01\x02") + place
    return content[:start] + value + content[start + len(value) :]


ARCHIVES = {
    "that unpacks to 16 MiB": (
        lambda _: archive(dictionary(b"K\x01"), extra={"m/data/0": bytes(2**24)}, deflate=True),
        "unpacks to more than its own size",
    ),
    "that is compressed": (lambda _: archive(dictionary(text("x" * 99)) + bytes(900), deflate=True), ""),
    "with a comment": (lambda c: c[:-2] + b"\x04\x00" + b"note", "does not end with"),
    "with something behind it": (lambda c: c + b"more", "does not end with"),
    "with two tables": (lambda c: c[:-2] + struct.pack("<H", len(c)) + c, ""),
    "with one name twice": (lambda _: archive(dictionary(b"K\x01"), extra={"m/data.PKL": b"."}), "two files of one"),
    "with a way out": (lambda _: archive(b"\x80\x02K\x01.", name="../../m/data.pkl"), "m"),
    "with an absolute name": (lambda _: archive(b"\x80\x02K\x01.", name="/m/data.pkl"), ""),
    "whose pickle claims 4 GiB": (lambda c: _claims(c, 20, b"\xff" * 8), ""),
    "whose pickle starts elsewhere": (lambda c: _claims(c, 42, b"\xf0\xff\xff\xff"), ""),
    "whose pickle is encrypted": (lambda c: _claims(c, 8, b"\x01\x00"), ""),
    "whose table is larger than any": (lambda c: c[:-10] + b"\xff\xff\xff\x7f" + c[-6:], "larger than that of any"),
    "with many entries that are none": (lambda c: c[:-14] + b"\xff\xff\xff\xff" + c[-10:], ""),
    "without a pickle": (lambda _: archive(b"", name="m/other"), "not a checkpoint"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(look, name):
    change, words = ARCHIVES[name]
    good_pickle = archive(dictionary(b"K\x01"), extra={"m/data/0": bytes(400)})
    refused(look(change(good_pickle), ".pth"), words)


HUGE = [  # by architecture: more tensors, or larger ones, than any model has
    ("hcflow", {"scale": 8, "steps": 256, "detail_steps": 256, "hidden": 4096, "extractor_blocks": [256, 256]}),
    ("srflow", {"steps": 256, "scale": 8, "levels": 4, "hidden_layers": 64, "encoder_blocks": 256}),
    ("srflow", {"stacked_blocks": [0] * 1_000_000}),
    ("residual_flow", {"blocks": [256] * 8, "full_blocks": 64, "image_size": 128}),
    ("colorizer", {"steps": [64] * 8, "hidden": [4096] * 8, "widths": [4096] * 9, "merged": 1024, "features": 1024}),
]


@pytest.mark.parametrize("huge", [HUGE[0], *(pytest.param(huge, marks=pytest.mark.soak) for huge in HUGE[1:])])
def test_huge_configurations_are_refused_quickly(good, look, huge):
    refused(look(with_config(good[huge[0]], huge[1])))


def test_json_within_json(good, look):
    for name, key, place in (("glow", "flowcore", "config"), ("latents", "flowcore_latents", "extra")):
        header = json.loads(parts(good[name])[0]["__metadata__"][key])
        holed = json.dumps({**header, place: "here"})
        for depth in (500, *range(850, 1001, 10), 100_000):  # about the limit of recursion, from wherever it counts
            nested = "[" * depth + "]" * depth
            for text_ in (nested, holed.replace('"here"', '{"hidden": ' + nested + "}")):
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


WRONG_TYPES = {"BOOL": 1, "I32": 4, "C64": 8, "F8_E8M0": 1}  # to bytes per value


def test_weights_of_another_type_are_refused(good, look):
    for name in ("realnvp", "latents", "published safetensors"):
        header = parts(good[name])[0]
        for kind, width in WRONG_TYPES.items():
            if name.startswith("published") and kind[:2] == "F8":
                continue  # widened like any other
            tensors = parse(good[name])
            key = next(k for k, t in tensors.items() if t.ndim == 4)
            size = tensors.pop(key).numel() * width
            others, data = parts(serialize(tensors))
            moved = {k: {**v, "data_offsets": [n + size for n in v["data_offsets"]]} for k, v in others.items()}
            moved |= {key: {**header[key], "dtype": kind, "data_offsets": [0, size]}}
            metadata = {k: v for k, v in header.items() if k == "__metadata__"}
            content = safetensors(metadata | moved, bytes(size) + data)
            errors = look(content, overrides=overrides_for(name))
            assert errors["load_latents" if name == "latents" else "load"]


NONFINITE = [("realnvp", 1e60), ("realnvp", -math.inf), ("published safetensors", math.nan), ("published pth", 1e60)]


def test_nonfinite_weights_are_counted_and_named(good, look):
    for name, value in NONFINITE:
        flat = good["published safetensors" if name.startswith("published") else name]
        tensors = {key: t.double() if t.is_floating_point() else t for key, t in parse(flat).items()}
        key = next(k for k, t in sorted(tensors.items()) if t.ndim == 4 and t.is_floating_point())
        tensors[key].view(-1)[1:3] = value
        metadata = parts(flat)[0].get("__metadata__")
        content = torch_file(tensors) if "pth" in name else serialize(tensors, metadata)
        errors = look(content, overrides=overrides_for(name))
        refused(errors, "2 values that are not finite", "in 1 of its tensors")


def test_invalid_channel_orders_are_refused(good, look):
    tensors = parse(good["glow"])
    key = next(k for k in tensors if k.endswith(".order"))
    for order in ([0] * len(tensors[key]), [*range(1, len(tensors[key]) + 1)], [-1, *range(len(tensors[key]) - 1)]):
        changed = serialize({**tensors, key: torch.tensor(order)}, parts(good["glow"])[0]["__metadata__"])
        refused(look(changed), key, "does not list each of 0 to")


def test_values_without_inverse_are_refused(good, look):
    for model, end, value, words in (
        ("colorizer", "matrix", 0.0, "singular"),
        ("srflow", "weight", 1.0, "singular"),
        ("realnvp", "var", -1.0, "negative"),
    ):
        tensors = parse(good[model])
        named = {k: t for k, t in tensors.items() if k.endswith(end) and t.ndim < 3}
        key = next(k for k, t in named.items() if end == "var" or len(t) == t.shape[1])
        changed = {**tensors, key: torch.full_like(tensors[key], value)}
        refused(look(serialize(changed, parts(good[model])[0]["__metadata__"])), words)


def test_loaded_model_is_independent_of_its_file(good, tmp_path):
    """Shared pages would let an overwritten file change the model, and a truncated one kill the process."""
    for name in ("glow", "eight bits"):
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
    with torch.no_grad():
        large.view(-1)[0] = math.nan
    with pytest.raises(FlowError, match=rf"1 of them in {name}\. It was not saved"):
        save(flow, tmp_path / "model.safetensors")
    colorizer = build_tiny("colorizer")
    colorizer.preprocess.matrix.zero_()
    with pytest.raises(FlowError, match=r"singular, so nothing can be decoded\. It was not saved"):
        save(colorizer, tmp_path / "model.safetensors")
    read(tmp_path / "model.safetensors")  # the one from before


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


WHOLE = [0, -1, 1, 2, 3, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**9, 10**18, 10**400]
ODD_NUMBERS = st.sampled_from([*WHOLE, 0.5, 1e300, -0.0])
WORDS = ["", "x", "conv", "glow", "F16", "I8", "BOOL", "F4", "F8_E5M2", "C64", "a\0b", "\ud800", "x" * 3000]
ODD = st.one_of(
    ODD_NUMBERS,
    st.sampled_from([None, True, False, *WORDS, float("nan"), float("inf")]),
    st.lists(ODD_NUMBERS, max_size=6),
    st.lists(st.sampled_from(["bold", "", None, [], {}]), max_size=3),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)),
    st.integers(-5, 4096),
    st.floats(),
)
CUT = st.sampled_from([*[0] * 9, 1, 2**20])  # characters that the JSON of the metadata lacks


def places(value, path=()) -> list[tuple]:
    """Where values are within JSON: the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@st.composite
def odd_headers(draw, content: bytes) -> bytes:
    """A safetensors file with odd values in its header, or in the JSON of its metadata."""
    header, data = parts(content)
    header["__metadata__"] = {key: json.loads(value) for key, value in header.get("__metadata__", {}).items()}
    for _ in range(draw(st.integers(1, 4))):
        every = places(header)[1:]
        deep = [place for place in every if place[0] == "__metadata__"]
        *path, last = draw(st.sampled_from(draw(st.sampled_from([every, deep or every]))))
        owner = functools.reduce(operator.getitem, path, header)
        near = [owner[last] + k for k in (-4, -1, 1, 4)] if isinstance(owner[last], int) else []
        others = [*(owner.values() if isinstance(owner, dict) else owner)]
        if draw(st.integers(0, 5)) == 0:
            del owner[last]
        else:
            owner[last] = draw(st.one_of(ODD, st.sampled_from([*near, *others])))
    if isinstance(metadata := header.get("__metadata__"), dict):
        header["__metadata__"] = {key: json.dumps(value)[draw(CUT) :] for key, value in metadata.items()}
    raw = json.dumps(header).encode()
    return safetensors(raw, data, length=draw(st.sampled_from([*[len(raw)] * 20, *WHOLE])))


STARTS = st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{"])
RANDOM = st.builds(bytes.__add__, STARTS, st.binary(max_size=2000))


@pytest.mark.fuzz
@cases(210, 13_500)
@given(data=st.data())
def test_generated_models(good, look, data):
    how = data.draw(st.sampled_from([damaged, damaged, odd_headers, odd_headers, None]))
    name = data.draw(st.sampled_from([*TINY, "published safetensors"] if how is odd_headers else MODELS))
    content = data.draw(RANDOM if how is None else how(good[name]))
    suffix = ".safetensors" if how is odd_headers else data.draw(st.sampled_from([".pth", ".safetensors"]))
    look(content, suffix, overrides_for(name))
    tried("checkpoints")


@pytest.mark.fuzz
@cases(60, 3000)
@given(data=st.data())
def test_generated_latents(good, look, data):
    how = data.draw(st.sampled_from([damaged, odd_headers]))
    look(data.draw(how(good[data.draw(st.sampled_from(LATENTS))])))
    tried("latents files")
