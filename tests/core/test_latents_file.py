"""Files of latents: round trip, refusal of other models, fingerprints, and damaged files."""

import dataclasses
import json
import struct
from types import SimpleNamespace

import pytest
import torch
from builders import build_tiny
from safetensors.torch import load_file, save_file

from flowcore import CheckpointError, FlowError, ShapeError, save
from flowcore.flows.prior import sample_latents
from flowcore.models import build
from flowcore.models.glow import GlowConfig
from flowcore.models.identity import model_sha256
from flowcore.models.latents_file import FORMAT, KEY, load_latents, read_latents_header, save_latents
from flowcore.models.model_file import read
from flowcore.training.styles import with_styles

SHA = "0123456789abcdef" * 4
SHAPES = [(6, 8, 10), (12, 4, 5), (24, 2, 3)]


@pytest.fixture
def latents():
    return sample_latents(SHAPES, 2, 0.7, 3)


EXTRA = {"label": "é", "size": [16, 20], "seed": 3, "labels": [1, 2]}


@pytest.fixture
def file(latents, tmp_path):
    path = tmp_path / "face.safetensors"
    save_latents(path, latents, model=SHA, model_name="glow-photos", architecture="glow", extra=EXTRA)
    return path


def rewrite(file, *, tensors=None, raw=None, **fields):
    """Write the file again with other tensors or another header."""
    with file.open("rb") as opened:
        size = struct.unpack("<Q", opened.read(8))[0]
        metadata = json.loads(opened.read(size))["__metadata__"]
    header = {**json.loads(metadata[KEY]), **fields}
    header = {name: value for name, value in header.items() if value != "left out"}
    save_file(tensors or load_file(file), file, metadata={KEY: json.dumps(header) if raw is None else raw})


def test_round_trip_is_exact(latents, file, tmp_path):
    back, header, _ = load_latents(file)
    assert all(torch.equal(x, y) and y.dtype == torch.float32 for x, y in zip(latents, back, strict=True))
    assert (header.format, header.model_sha256, header.model_name) == (FORMAT, SHA, "glow-photos")
    assert header.architecture == "glow"
    assert header.shapes == ((2, 6, 8, 10), (2, 12, 4, 5), (2, 24, 2, 3))
    assert header.extra == EXTRA
    assert read_latents_header(file) == header
    tensors = load_file(file)
    assert tensors.keys() == {"level0", "level1", "level2"}
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    file.write_bytes(b"\xff" * file.stat().st_size)  # the loaded latents are independent of the file
    assert all(torch.equal(x, y) for x, y in zip(latents, back, strict=True))
    many = [torch.full((1, 1, 1, 1), float(k)) for k in range(12)]
    save_latents(tmp_path / "z.safetensors", many, model=SHA, architecture="glow")
    assert [z.item() for z in load_latents(tmp_path / "z.safetensors")[0]] == list(range(12))
    odd = [z.double().to(memory_format=torch.channels_last).requires_grad_() for z in latents]
    save_latents(tmp_path / "new folder" / "z.safetensors", odd, model=SHA, architecture="glow")
    back, header, _ = load_latents(tmp_path / "new folder" / "z.safetensors")
    assert all(torch.equal(x, y) for x, y in zip(latents, back, strict=True))
    assert header.model_name == "glow"


def test_invalid_latents_are_not_saved(latents, tmp_path):
    path = tmp_path / "z.safetensors"
    for kind, match, levels, fields in (
        (ShapeError, "finest first", [], {}),
        (ShapeError, "one batch", [latents[0], latents[1][:1]], {}),
        (FlowError, "64 hexadecimal", latents, {"model": "glow-photos"}),
        (FlowError, "not finite", [z / 0 for z in latents], {}),
        (FlowError, "not finite", [z.double() * 1e60 for z in latents], {}),
        (FlowError, "JSON", latents, {"extra": {"flow": object()}}),
        (FlowError, "JSON", latents, {"extra": {"seed": float("nan")}}),
    ):
        with pytest.raises(kind, match=match):
            save_latents(path, levels, **{"model": SHA, "architecture": "glow", **fields})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def flow():
    return build_tiny("glow", perturb=0.1, steps=1, hidden=4, image_size=8)


def copy_of(flow, config=None):
    copy = build("glow", config or flow.config)
    copy.load_state_dict(flow.state_dict())
    return copy


def test_fingerprint_is_of_weights_and_fields_alone(flow, tmp_path):
    sha = model_sha256(flow)
    assert len(sha) == 64
    save(flow, tmp_path / "model.safetensors")
    assert model_sha256(read(tmp_path / "model.safetensors")) == sha
    assert model_sha256(copy_of(flow).to(memory_format=torch.channels_last)) == sha
    assert model_sha256(copy_of(flow).double()) == sha
    for name, tensor in flow.state_dict().items():
        if tensor.is_floating_point():
            other = copy_of(flow)
            value = other.state_dict()[name].view(-1)
            value[-1] = torch.nextafter(value[-1], torch.tensor(9e9))
            assert model_sha256(other) != sha, name
    assert model_sha256(copy_of(flow, dataclasses.replace(flow.config, n_bits=5))) != sha
    other = copy_of(flow)
    other.architecture = "realnvp"
    assert model_sha256(other) != sha

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(GlowConfig):
        novelty: int = 0

    later = copy_of(flow)
    for novelty in (0, 1):
        later.config = Later(**dataclasses.asdict(flow.config), novelty=novelty)
        assert (model_sha256(later) == model_sha256(flow)) == (novelty == 0)
    flow = build_tiny("class_conditional")
    assert model_sha256(with_styles(flow, ("bold",), torch.ones(1, 96))) == model_sha256(flow)
    assert model_sha256(build_tiny("class_conditional", seed=1)) != model_sha256(flow)


def test_fingerprint_separates_names_shapes_and_values():
    def fingerprint(**tensors):
        return model_sha256(SimpleNamespace(architecture="glow", config=GlowConfig(), state_dict=lambda: tensors))

    one, two, none = torch.ones(2), torch.zeros(2), torch.zeros(0)
    both = torch.cat([one, two])
    different = [{"a": one, "b": two}, {"a": one, "z": two}, {"b": one, "a": two}, {"a": one, "b": two, "c": none}]
    different += [{"a": both}, {"a": both.view(2, 2)}, {"a": both.view(1, 4)}]
    assert len({fingerprint(**tensors) for tensors in different}) == 7
    assert fingerprint(b=two, a=one) == fingerprint(a=one, b=two)


def refused(file, *words):
    """Check that loading is refused with an error that has these words."""
    with pytest.raises(CheckpointError) as caught:
        load_latents(file)
    for word in (file.name, *words):
        assert word in str(caught.value)


HEADERS = {
    "format": ("1", 0, True),
    "model_sha256": ("left out", 7, SHA.upper(), SHA[:-1]),
    "model_name": (7,),
    "architecture": (None,),
    "extra": ([], "left out"),
    "shapes": (
        *([], 7, [7], [[2, 6, 8]], [[2, 6, 8, 0]], [[2, 6, 8, 10], [1, 12, 4, 5]], [[1, 1, 1, 1]] * 65),
        [[2, 6, 8, 10.0], [2, 12, 4, 5], [2, 24, 2, 3]],
    ),
    "raw": ("", "{", "[]", "7", "null", '"text"', "{}", "[" * 100_000, '{"format": 1}'),  # all of the header
}
UNMATCHED = (  # the tensors of the file
    [[2, 6, 8, 10], [2, 12, 4, 5]],
    [[2, 6, 8, 10], [2, 12, 4, 5], [2, 24, 3, 2]],
    [[2, 6, 8, 10], [2, 12, 4, 5], [2, 24, 2, 3], [2, 1, 1, 1]],
    [[2, 6, 8, 10], [2, 12, 4, 5], [2, 24, 2**30, 2**30]],
)
DAMAGED, NEWER = ("header of", "is damaged ("), ("newer flowcore",)


def test_invalid_headers(file):
    whole = file.read_bytes()
    for field, value, words in (
        *((field, value, DAMAGED) for field, values in HEADERS.items() for value in values),
        *(("format", 2, NEWER), ("colour", "red", DAMAGED)),
        *(("shapes", value, ("claims",)) for value in UNMATCHED),
    ):
        file.write_bytes(whole)
        rewrite(file, **{field: value})
        refused(file, *words)


def test_tensors_that_do_not_match_and_other_files(file, flow, tmp_path):
    good = load_file(file)
    half = {name: t.half() for name, t in good.items()}
    named = {name.replace("level2", "deepest"): t for name, t in good.items()}
    for tensors in (half, named, {**good, "more": torch.zeros(1)}, {**good, "level1": good["level1"].double()}):
        rewrite(file, tensors=tensors)
        refused(file, "claims")
    rewrite(file, tensors=good)
    load_latents(file)
    save(flow, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "a flowcore model", "save_latents")
    save_file(load_file(file), file)
    refused(file, "without a flowcore_latents header")


def test_nonfinite_values(file):
    for value in (float("nan"), float("inf"), -float("inf")):
        tensors = load_file(file)
        tensors["level1"][0, 3, 2, 1] = value
        rewrite(file, tensors=tensors)
        refused(file, "1 values that are not finite")


def test_source_image_is_stored(latents, tmp_path):
    path, small = tmp_path / "up.safetensors", torch.rand(1, 3, 4, 5)
    save_latents(path, latents, model=SHA, architecture="srflow", source=small)
    levels, header, source = load_latents(path)
    assert len(levels) == len(header.shapes) == 3
    assert header.source == (1, 3, 4, 5)
    assert torch.equal(source, small)
    save_latents(path, latents, model=SHA, architecture="glow")
    assert read_latents_header(path).source is None
    assert load_latents(path)[2] is None
    with pytest.raises(ShapeError):
        save_latents(path, latents, model=SHA, architecture="srflow", source=torch.rand(7, 3, 4, 5))
    with pytest.raises(FlowError, match="not finite"):
        save_latents(path, latents, model=SHA, architecture="srflow", source=small / 0)


def test_invalid_sources(latents, tmp_path):
    path = tmp_path / "up.safetensors"
    for source in ([1, 3, 4], [0, 3, 4, 5], [7, 3, 4, 5], [1, 3, 4, 6], "x", [1, 3, 4, 5.0]):
        save_latents(path, latents, model=SHA, architecture="srflow", source=torch.rand(1, 3, 4, 5))
        rewrite(path, source=source)
        refused(path, "damaged")
