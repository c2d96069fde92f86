"""Our file format: round trip, errors for damaged files; atomic writes, full disks and killed processes."""

import errno
import json
import os
import struct
import sys

import pytest
import torch
from builders import build_tiny
from safetensors.torch import load_file, save_file

from flowcore import CheckpointError, FlowError, save
from flowcore.models import build, writing
from flowcore.models.model_file import FORMAT, KEY, is_flowcore_file, read, read_config, read_header, reconfigure
from flowcore.models.writing import SavingError, replacing, write_atomic


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


def test_a_model_is_read_for_evaluation_and_training(file):
    back = read(file)
    assert not back.training
    assert all(p.requires_grad for p in back.parameters())


def test_the_tasks_of_other_files_are_unknown(file, tmp_path):
    assert read_config(file).tasks == {"upscale"}
    rewrite(file, header=header_of(file) | {"config": {"scale": "large"}})
    assert read_config(file) is None
    rewrite(file, keep=False)
    assert read_config(file) is None
    file.write_bytes(b"no model")
    assert read_config(file) is None
    assert read_config(tmp_path / "missing.safetensors") is None


@pytest.fixture
def eight_bits(tmp_path):
    """A file in 8 bits, and the flow that it was made of."""
    flow = build_tiny("glow", perturb=0.1, hidden=48)
    save(flow, tmp_path / "eight.safetensors", dtype=torch.int8)
    return flow, tmp_path / "eight.safetensors"


KERNEL = "levels.0.steps.transforms.0.transforms.2.conditioner.hidden.1.weight"


def test_eight_bit_storage_survives_another_configuration(eight_bits, tmp_path):
    flow, file = eight_bits
    before = load_file(file)
    rounded = {name for name, t in before.items() if t.dtype == torch.int8}
    assert rounded == {name for name, t in flow.state_dict().items() if t.ndim == 4 and t.numel() >= 1024}
    assert int(before[KERNEL].abs().max()) == 127
    other = tmp_path / "other.safetensors"
    flow = reconfigure(file, other, {"n_bits": 5})
    assert read_header(file).format == read_header(other).format == 2
    assert read_header(other).config["n_bits"] == 5
    after = load_file(other)
    assert after.keys() == before.keys()
    assert all(t.dtype == before[name].dtype and torch.equal(t, before[name]) for name, t in after.items())
    assert all(torch.equal(t, read(file).state_dict()[name]) for name, t in flow.state_dict().items())


def test_rows_of_any_size_survive_eight_bits(tmp_path):
    flow = build_tiny("glow", hidden=48)
    with torch.no_grad():
        kernel = flow.get_parameter(KERNEL)
        kernel[0], kernel[1], kernel[2], kernel[3, 0] = 0, 1e-40, -1e30, 70_000  # more than float16 holds
    save(flow, tmp_path / "model.safetensors", dtype=torch.int8)
    back = read(tmp_path / "model.safetensors").state_dict()[KERNEL]
    assert not back[0].any()
    assert back[1].abs().max() < 1e-37
    torch.testing.assert_close(back[2], kernel[2], rtol=0.5 / 127, atol=0)
    torch.testing.assert_close(back[3, 0], kernel[3, 0], rtol=0.5 / 127, atol=0)


SCALE = f"{KERNEL}.scale"
ACTNORM = "levels.0.steps.transforms.0.transforms.0.bias"


DAMAGES = [  # to the tensors of a file in 8 bits, and what is said
    (lambda t: t.pop(SCALE), f"{SCALE} is missing"),
    (lambda t: t.pop(KERNEL), f"{KERNEL} is missing"),
    (lambda t: t.update({KERNEL: t[KERNEL].half()}), f"{SCALE} is not known"),
    (lambda t: t.update({SCALE: t[SCALE][1:]}), f"{SCALE} is "),
    (lambda t: t.update({SCALE: t[SCALE].long()}), f"{SCALE} in .* type"),
    (lambda t: t.update({SCALE: -t[SCALE]}), f"{SCALE} in .* positive"),
    (lambda t: t.update({SCALE: t[SCALE].double() + 1e300}), f"not finite.*{KERNEL}"),
    (lambda t: t.update({ACTNORM: t[ACTNORM].to(torch.int8)}), f"{ACTNORM} in .* type"),
]


def test_damaged_eight_bits_are_refused(eight_bits):
    _, file = eight_bits
    whole = file.read_bytes()
    for change, match in DAMAGES:
        file.write_bytes(whole)
        tensors = load_file(file)
        change(tensors)
        rewrite(file, header=header_of(file), tensors=tensors)
        with pytest.raises(CheckpointError, match=match):
            read(file)
    file.write_bytes(whole)
    rewrite(file, header=header_of(file) | {"format": 1})  # which has no 8 bits
    with pytest.raises(CheckpointError, match=r"weight\.scale is not known"):
        read(file)


def test_saving_any_memory_layout_does_not_change_the_flow(flow, tmp_path):
    shuffled = build("srflow", flow.config)
    shuffled.load_state_dict(flow.state_dict())
    shuffled = shuffled.to(memory_format=torch.channels_last)
    for dtype in (torch.int8, torch.float16, torch.float32):
        save(shuffled, tmp_path / "new folder" / "model.safetensors", dtype=dtype)
    for saved in (shuffled, read(tmp_path / "new folder" / "model.safetensors")):
        state = saved.state_dict()
        assert {t.dtype for t in state.values()} == {torch.float32}
        assert all(torch.equal(t, state[name]) for name, t in flow.state_dict().items())


def test_header_fields_and_overrides(flow, file):
    assert header_of(file).keys() == {"architecture", "format", "config", "provenance"}
    header = read_header(file)
    assert (header.architecture, header.format) == ("srflow", 1)  # which the first version reads
    assert is_flowcore_file(file)
    back = read(file, {"quant_bins": 64, "affine_eps": 0.0})
    assert (back.config.quant_bins, back.config.affine_eps) == (64, 0.0)
    assert back.config.scale == flow.config.scale
    with pytest.raises(CheckpointError, match="field given"):
        read(file, {"hidden": 16})
    rewrite(file, header=header_of(file) | {"format": 2})
    assert all(torch.equal(t, flow.state_dict()[name]) for name, t in read(file).state_dict().items())


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
    assert is_flowcore_file(file)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 64 * 1024  # KiB
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_missing_and_foreign_files_are_refused_by_name(tmp_path, file):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        read(tmp_path / "gone.safetensors")
    assert not is_flowcore_file(tmp_path / "gone.safetensors")
    rewrite(file, keep=False)
    assert not is_flowcore_file(file)
    for action in (read, read_header):
        with pytest.raises(CheckpointError, match="flowcore convert"):
            action(file)


GOOD = {"architecture": "srflow", "format": 1, "config": {}, "provenance": {}}
DAMAGED = {"config": (3, "abc"), "provenance": (None,), "architecture": (3, ["srflow"]), "format": ("1", None, 0)}


def test_damaged_headers_and_those_of_a_newer_program_are_refused(file):
    rewrite(file, header=header_of(file) | {"format": FORMAT + 1})
    with pytest.raises(CheckpointError, match="newer flowcore"):
        read(file)
    for header in (
        *("", "{", "[]", "null", "3", '"srflow"'),
        *(json.dumps({k: v for k, v in GOOD.items() if k != missing}) for missing in GOOD),
        *(json.dumps({**GOOD, field: value}) for field, values in DAMAGED.items() for value in values),
    ):
        rewrite(file, header=header)
        with pytest.raises(CheckpointError, match=r"header.*damaged"):
            read_header(file)
        with pytest.raises(CheckpointError):
            read(file)


DEAD = 2**22 + 1  # more than any process of Linux


def partial(folder, process, age=0.0, name="x.safetensors"):
    file = folder / f".{name}.{process}.partial"
    file.write_bytes(b"half")
    when = file.stat().st_mtime - age
    os.utime(file, (when, when))
    return file


def test_a_model_is_replaced_only_by_one_that_can_be_read(flow, file):
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="has a header of"):
        save(flow, file, provenance={"licence": "x" * 2**22})
    assert file.read_bytes() == before


FAILURES = [
    ("fsync", errno.ENOSPC, "is full (No space"),
    ("fsync", errno.EDQUOT, "is full ("),
    ("replace", errno.EACCES, "Could not"),
]


@pytest.mark.parametrize(("step", "number", "words"), FAILURES)
def test_failed_write_is_a_readable_error_and_changes_nothing(tmp_path, monkeypatch, step, number, words):
    (tmp_path / "a.safetensors").write_bytes(b"before")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing.os, step, refuse)
    with pytest.raises(SavingError) as refused:
        write_atomic(tmp_path / "a.safetensors", bytes(2_000_000))
    text = str(refused.value)
    for expected in (words, "a.safetensors", "2.0 MB", "MB are free", "The previous file was not changed"):
        assert expected in text
    assert isinstance(refused.value, FlowError)
    assert isinstance(refused.value, OSError)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.safetensors": b"before"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without a device that is always full")
def test_full_disk_under_torch_save(tmp_path):
    content = {"weights": torch.zeros(100_000)}
    with (
        pytest.raises(SavingError, match="The disk is full"),
        replacing(tmp_path / "checkpoint.pt"),
        open("/dev/full", "wb") as full,
    ):
        torch.save(content, full)
    with pytest.raises(RuntimeError, match="another matter"), replacing(tmp_path / "checkpoint.pt"):
        raise RuntimeError("another matter")
    assert list(tmp_path.iterdir()) == []


def test_next_save_removes_abandoned_files(tmp_path):
    gone = [partial(tmp_path, DEAD, 3600), partial(tmp_path, os.getpid(), 3600, "a.safetensors")]
    living = [
        partial(tmp_path, DEAD, 5, "young.safetensors"),  # it may be written from another machine
        partial(tmp_path, os.getppid(), 3600, "parent.safetensors"),
        partial(tmp_path, DEAD, 3600).rename(tmp_path / ".not-ours.partial"),
    ]
    write_atomic(tmp_path / "a.safetensors", b"whole")
    assert not [file for file in gone if file.exists()]
    assert all(file.exists() for file in living)
    assert (tmp_path / "a.safetensors").read_bytes() == b"whole"
