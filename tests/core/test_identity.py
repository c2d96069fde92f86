"""Fingerprints by content: what differs, what does not, and the forms that files have recorded."""

import dataclasses
import enum
import hashlib

import pytest
import torch
from builders import build_tiny

from flowcore import ColorMemory
from flowcore.batch.job import JobSpec, Worker
from flowcore.models.colorizer.color_index import CellMemory
from flowcore.models.identity import describe, fingerprint, model_fingerprint, model_sha256


@dataclasses.dataclass
class Numbers:
    values: tuple[int, ...]


@dataclasses.dataclass
class Weights:
    values: tuple[int, ...]


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


def test_values_that_differ_anywhere_have_other_fingerprints(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    different = [
        *(None, False, True, 0, 1, 0.5, "", "1", b"", b"x", [], [1], [[1]], {}, {"a": 1}, {"a": None}),
        *(Mode.FAST, Mode.SLOW, Numbers((1,)), Numbers((1, 2)), Weights((1,)), tmp_path / "file"),
        *(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), torch.zeros(2, dtype=torch.bool), torch.ones(2)),
        *(torch.tensor([0.0, 1e-9]), torch.zeros(0), {"a": torch.zeros(2)}, {"a": [torch.zeros(2), Numbers(())]}),
    ]
    assert len({fingerprint(value) for value in different}) == len(different)


def test_equal_content_has_one_fingerprint(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    pairs = [
        (tmp_path / "file", b"content"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.25]).half()),
        (torch.zeros(2, 6), torch.zeros(2, 12)[:, ::2]),
    ]
    for one, other in pairs:
        assert fingerprint(one) == fingerprint(other)
    value = {"image": torch.rand(2), "file": b"content", "mode": Mode.FAST, "numbers": Numbers((1,))}
    assert fingerprint(describe(value)) == fingerprint(value)


def test_an_unknown_type_raises_at_any_depth():
    for value in (object(), {1, 2}, lambda: 0, {1: "a"}, torch.nn.Linear(1, 1), Numbers, [{"a": object()}]):
        with pytest.raises(TypeError):
            fingerprint(value)


def test_a_model_differs_by_what_its_bijection_leaves_out():
    plain = build_tiny("srflow", guide_layers=2, guide_width=4)
    other_guide = build_tiny("srflow", guide_layers=2, guide_width=4)
    with torch.no_grad():
        next(other_guide.guide.parameters()).add_(1)
    bolder = build_tiny("srflow", guide_layers=2, guide_width=4, temperature=0.3)
    assert len({model_sha256(flow) for flow in (plain, other_guide, bolder)}) == 1
    assert len({fingerprint(flow) for flow in (plain, other_guide, bolder)}) == 3
    spec = JobSpec(command="clean", model="m")
    assert len({Worker(spec, flow).ids(b"picture")[0] for flow in (plain, other_guide, bolder)}) == 3
    assert fingerprint(plain) == fingerprint(build_tiny("srflow", guide_layers=2, guide_width=4))
    assert fingerprint(plain) == model_fingerprint(plain, model_sha256(plain))


def test_two_memories_of_equal_settings_differ_by_their_colors():
    red, blue = (ColorMemory(CellMemory(3), "backbone") for _ in range(2))
    blue.places.get_buffer("chroma").fill_(7)
    assert fingerprint([{"memory": red}]) != fingerprint([{"memory": blue}])


def test_forms_that_files_have_recorded_stay_as_they_are(tmp_path):
    """Another ID makes a run over a folder refuse its own results; another source is not that of a recipe."""
    picture = torch.arange(6.0).reshape(1, 1, 2, 3)
    content = hashlib.sha256(picture.numpy().tobytes()).hexdigest()
    assert describe(picture) == {"shape": [1, 1, 2, 3], "sha256": content[:12]}
    faint = ColorMemory(CellMemory(3), "backbone", strength=0.5)
    assert fingerprint(faint) == "f30915f1f583726c703ce0fa08dc8748c7fdb210c3cf61b3e8845df854d50fcf"
    (tmp_path / "guide.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    settings = {"points": ("1,2 #fff",), "tile": 64, "temperature": None}
    spec = JobSpec(
        command="colorize",
        model="m",
        settings=settings,
        model_defaults={"temperature": 0.5},
        seed=3,
        samples=2,
        reference=b"reference",
        memory=faint,
        guide=tmp_path / "guide.png",
    )
    assert spec.ids(b"picture", "ab" * 32) == ["f10c0de57a788e0892f5a7a62e9fc9ad", "f10c0de51465e52c555b593f9db593cc"]
