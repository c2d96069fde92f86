"""Our file format: round trip, errors for damaged files, and atomic saving."""

from __future__ import annotations

import json
import os
import struct
import sys

import pytest
import torch
from builders import TINY, build_tiny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowcore.checkpoints.file import FORMAT, KEY, is_ours, read, read_header, read_tasks, save
from flowcore.errors import CheckpointError
from flowcore.models import build, configure


@pytest.fixture(scope="module")
def flow():
    flow = build_tiny("srflow", perturb=0.1, scale=2, levels=2, encoder_width=4, stacked_blocks=(1, 0), residual=True)
    flow.provenance = {"source": "made for a test", "licence": "CC0-1.0", "metrics": {"psnr": 1.5}}
    return flow


@pytest.fixture
def file(flow, tmp_path):
    save(flow, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewrite(file, *, header=None, tensors=None, keep=True):
    """Write the file again with another header or other tensors."""
    header = header_of(file) if header is None else header
    metadata = {KEY: header if isinstance(header, str) else json.dumps(header)} if keep else {}
    save_file(load_file(file) if tensors is None else tensors, file, metadata=metadata)


def header_of(file):
    size = struct.unpack("<Q", file.read_bytes()[:8])[0]
    return json.loads(json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"][KEY])


# --- round trip -------------------------------------------------------------------------------------------------------


def test_round_trip_is_exact(flow, file):
    back = read(file)
    assert back.config == flow.config
    assert back.architecture == "srflow"
    assert back.provenance == flow.provenance
    assert back.state_dict().keys() == flow.state_dict().keys()
    assert all(torch.equal(t, flow.state_dict()[name]) for name, t in back.state_dict().items())
    lr, hr = torch.rand(1, 3, 2, 4), torch.rand(1, 3, 4, 8)
    assert torch.equal(back(hr, back.encode_condition(lr))[1], flow(hr, flow.encode_condition(lr))[1])
    assert not back.training
    assert {t.dtype for t in back.state_dict().values()} == {torch.float32}
    assert {t.device.type for t in back.state_dict().values()} == {"cpu"}
    assert all(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize("architecture", TINY)
def test_the_header_tells_what_a_model_is_made_for(tmp_path, architecture):
    flow = build_tiny(architecture)
    save(flow, tmp_path / "model.safetensors")
    assert read_tasks(tmp_path / "model.safetensors") == flow.capabilities.tasks


def test_the_tasks_of_other_files_are_unknown(file, tmp_path):
    assert read_tasks(file) == {"upscale"}
    rewrite(file, header=header_of(file) | {"config": {"scale": "large"}})
    assert read_tasks(file) is None
    rewrite(file, keep=False)
    assert read_tasks(file) is None
    file.write_bytes(b"no model")
    assert read_tasks(file) is None
    assert read_tasks(tmp_path / "missing.safetensors") is None


def test_float16_storage(flow, file, tmp_path):
    half = tmp_path / "half.safetensors"
    save(flow, half, dtype=torch.float16)
    parameters = sum(t.numel() for t in flow.state_dict().values())
    assert file.stat().st_size - half.stat().st_size == pytest.approx(2 * parameters, rel=0.05)
    back = read(half)
    assert {t.dtype for t in back.state_dict().values()} == {torch.float32}
    assert all(torch.equal(t, flow.state_dict()[name].half().float()) for name, t in back.state_dict().items())


def test_saving_any_memory_layout_does_not_change_the_flow(flow, tmp_path):
    shuffled = build("srflow", flow.config)
    shuffled.load_state_dict(flow.state_dict())
    shuffled = shuffled.to(memory_format=torch.channels_last)
    for dtype in (torch.float16, torch.float32):
        save(shuffled, tmp_path / "new folder" / "model.safetensors", dtype=dtype)
    for saved in (shuffled, read(tmp_path / "new folder" / "model.safetensors")):
        state = saved.state_dict()
        assert {t.dtype for t in state.values()} == {torch.float32}
        assert all(torch.equal(t, state[name]) for name, t in flow.state_dict().items())


def test_header_fields(flow, file):
    assert header_of(file).keys() == {"architecture", "format", "config", "provenance"}
    header = read_header(file)
    assert (header.architecture, header.format) == ("srflow", FORMAT)
    assert configure(header.architecture, header.config) == flow.config
    assert header.provenance == flow.provenance
    assert is_ours(file)


def test_overrides(flow, file):
    back = read(file, {"quant_bins": 64, "affine_eps": 0.0})
    assert (back.config.quant_bins, back.config.affine_eps) == (64, 0.0)
    assert back.config.scale == flow.config.scale
    with pytest.raises(CheckpointError, match="a configuration field given for it is wrong"):
        read(file, {"hidden": 16})
    with pytest.raises(CheckpointError, match="'colour'"):
        read(file, {"colour": 8})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the process's memory the Linux way")
def test_reading_the_header_reads_no_tensor(tmp_path):
    """On a sparse file of 4 GiB."""
    resource = pytest.importorskip("resource")
    size = 4 * 2**30
    header = {
        "__metadata__": {KEY: json.dumps({"architecture": "srflow", "format": 1, "config": {}, "provenance": {}})},
        "huge": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
    }
    encoded = json.dumps(header).encode()
    file = tmp_path / "huge.safetensors"
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        out.truncate(8 + len(encoded) + size)
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert read_header(file).architecture == "srflow"
    assert is_ours(file)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 64 * 1024  # KiB
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


# --- other and damaged files ------------------------------------------------------------------------------------------

NOT_A_MODEL = {
    "empty.safetensors": b"",
    "short.safetensors": b"abc",
    "text.safetensors": b"this is no model, whatever its name says\n" * 20,
    "zip.pth": b"PK\x03\x04" + bytes(200),
    "pickle.pt": b"\x80\x02cos\nsystem\nq\x00." + bytes(40),
    "greedy.safetensors": struct.pack("<Q", 2**62) + b"{}",
    "broken.safetensors": struct.pack("<Q", 9) + b'{"a": nul',
}


@pytest.mark.parametrize("name", NOT_A_MODEL)
def test_other_files_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(NOT_A_MODEL[name])
    for action in (read, read_header):
        with pytest.raises(CheckpointError, match=f"{name} is not a safetensors file, or it is truncated.*Supported"):
            action(tmp_path / name)
    assert not is_ours(tmp_path / name)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"no file gone\.safetensors"):
        read(tmp_path / "gone.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"no file folder\.safetensors"):
        read_header(tmp_path / "folder.safetensors")
    assert not is_ours(tmp_path / "gone.safetensors")
    for impossible in ("x" * 300, "a\0b"):
        with pytest.raises(CheckpointError):
            read(tmp_path / impossible)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_truncated_files_are_refused(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*truncated"):
        read(file)


def test_foreign_safetensors_are_refused_with_advice(file):
    rewrite(file, keep=False)
    assert not is_ours(file)
    for action in (read, read_header):
        with pytest.raises(CheckpointError, match=r"without a flowcore header.*python -m flowcore convert"):
            action(file)


@pytest.mark.parametrize(
    ("header", "config", "match"),
    [
        ({"format": FORMAT + 1}, {}, f"newer flowcore .format {FORMAT + 1}; this one reads up to {FORMAT}.*Update"),
        ({}, {"colour": 3}, "'colour'.*written by a newer flowcore"),
        ({"architecture": "tarflow"}, {}, "'tarflow'.*srflow"),
        ({}, {"scale": 3}, "scale must be 2, 4 or 8; got 3"),
        # Shapes are compared before any tensor of a terabyte exists.
        (
            {},
            {"hidden": 4096, "hidden_layers": 64, "hidden_kernel": 3, "encoder_width": 4096, "encoder_growth": 4096},
            "do not fit its configuration",
        ),
    ],
)
def test_invalid_headers_are_refused(file, header, config, match):
    before = header_of(file)
    rewrite(file, header={**before, **header, "config": {**before["config"], **config}})
    with pytest.raises(CheckpointError, match=match):
        read(file)


GOOD = {"architecture": "srflow", "format": 1, "config": {}, "provenance": {}}
DAMAGED = {"config": (3, "abc"), "provenance": (None,), "architecture": (3, ["srflow"]), "format": ("1", None, 0)}


@pytest.mark.parametrize(
    "header",
    [
        *("", "{", "[]", "null", "3", '"srflow"'),
        *(json.dumps({k: v for k, v in GOOD.items() if k != missing}) for missing in GOOD),
        *(json.dumps({**GOOD, field: value}) for field, values in DAMAGED.items() for value in values),
    ],
)
def test_damaged_headers_are_refused(file, header):
    rewrite(file, header=header)
    with pytest.raises(CheckpointError, match=r"header of model\.safetensors is damaged"):
        read_header(file)
    with pytest.raises(CheckpointError):
        read(file)


# --- tensors that do not fit ------------------------------------------------------------------------------------------

BIAS = "encoder.conv_first.bias"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(BIAS), f"in 1 places: {BIAS} is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra is not known"),
        (lambda t: t.update({BIAS: torch.zeros(7)}), rf"{BIAS} is \(7,\) instead of \(4,\)"),
    ],
)
def test_missing_unknown_and_misshapen_tensors_are_named(file, change, match):
    tensors = load_file(file)
    change(tensors)
    rewrite(file, header=header_of(file), tensors=tensors)
    with pytest.raises(CheckpointError, match=match):
        read(file)


# --- atomic saving ----------------------------------------------------------------------------------------------------


def test_saving_replaces_the_file(flow, file):
    save(flow, file, provenance={"source": "second"})
    assert read_header(file).provenance == {"source": "second"}
    assert os.listdir(file.parent) == [file.name]


def test_failed_save_keeps_the_previous_file(flow, file):
    resource = pytest.importorskip("resource")
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the write fails midway, as on a full disk
    try:
        with pytest.raises((OSError, SafetensorError), match="File too large"):
            save(flow, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(TypeError):
        save(flow, file, provenance={"source": object()})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_unwritable_target_leaves_no_partial_file(flow, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        save(flow, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]
