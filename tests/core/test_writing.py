"""Atomic writes: errors of a full disk, and partial files of killed processes."""

import errno
import os

import pytest
import torch

from flowcore import FlowError
from flowcore.checkpoints import writing
from flowcore.checkpoints.writing import SavingError, clear_abandoned, replacing, write_atomic

DEAD = 2**22 + 1  # more than any process of Linux


def partial(folder, process, age=0.0, name="x.safetensors"):
    file = folder / f".{name}.{process}.partial"
    file.write_bytes(b"half")
    when = file.stat().st_mtime - age
    os.utime(file, (when, when))
    return file


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "The disk is full (No space"), (errno.EDQUOT, "The disk is full ("), (errno.EACCES, "Could not")],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_is_a_readable_error_and_changes_nothing(tmp_path, monkeypatch, number, words, step):
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


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(SavingError, match=r"Could not save a\.safetensors"):
        write_atomic(tmp_path / "folder" / "a.safetensors", b"")


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


def test_undeletable_files_are_ignored(tmp_path, monkeypatch):
    left = partial(tmp_path, DEAD, 3600)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(writing.Path, "unlink", refuse)
    clear_abandoned(tmp_path)
    assert left.exists()
