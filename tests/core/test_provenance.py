"""Provenance in PNG files: round trip, limits on hostile files, and finding the model by its fingerprint."""

import contextlib
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import build_tiny
from cases import cases, tried
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flowcore import FlowError, load, save
from flowcore.batch import provenance
from flowcore.batch.provenance import Provenance, ProvenanceError
from flowcore.cli.main import main
from flowcore.errors import PICTURE_VERSION
from flowcore.images import files
from flowcore.models import catalog
from flowcore.models.identity import describe, model_sha256

from . import golden_pictures
from .commands import run

ENTRY = Provenance(
    node_id="3",
    node="FlowcoreUpscale",
    model="srflow-x4",
    model_sha256="ab" * 32,
    architecture="srflow",
    temperature=0.8,
    seed=2**64 - 1,
    samples=4,
    settings={"tile": 0, "precision": "float32"},
    sources={"image": {"shape": [1, 2, 3, 3], "sha256": "0" * 12}},
    pictures=("a" * 12, "b" * 12, "c" * 12, "d" * 12),
    version="0.1.0",
)


def png(path, text, kind="tEXt"):
    """Write a PNG with our text in a chunk of some kind."""
    chunks = PngInfo()
    add = chunks.add_itxt if kind.startswith("iTXt") else chunks.add_text
    add("flowcore", text, zip=kind in ("zTXt", "iTXt packed"))
    Image.new("RGB", (3, 2), (9, 8, 7)).save(path, pnginfo=chunks)
    return path


def to_text(**changes):
    return json.dumps([ENTRY.to_json() | changes])


def test_every_kind_of_text_chunk_is_read(tmp_path):
    for kind in ("tEXt", "zTXt", "iTXt", "iTXt packed"):
        path = png(tmp_path / "a.png", to_text(), kind)
        assert provenance.read(path) == [ENTRY], kind
        assert Image.open(path).size == (3, 2)


def test_text_of_pillow_and_of_newer_versions_is_read(tmp_path):
    text = PngInfo()
    text.add_text("prompt", "{}" * 1000)
    text.add_text("flowcore", json.dumps([ENTRY.to_json(), ENTRY.to_json() | {"node_id": "5"}]))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=text)
    assert [entry.node_id for entry in provenance.read(tmp_path / "a.png")] == ["3", "5"]
    assert provenance.read(png(tmp_path / "a.png", to_text(mood="calm"))) == [ENTRY]


def test_pictures_made_through_the_api_are_described_by_their_prompt(tmp_path):
    path, text = tmp_path / "a.png", PngInfo()
    inputs = {"image": ["1", 0], "temperature": 0.5}
    upscale, saved = {"class_type": "FlowcoreUpscale", "inputs": inputs}, {"class_type": "SaveImage", "inputs": {}}
    text.add_text("prompt", json.dumps({"2": upscale, "3": saved}))
    Image.new("RGB", (4, 4)).save(path, pnginfo=text)
    assert provenance.describe(path) == [{"node_id": "2", "node": "FlowcoreUpscale", "settings": inputs}]
    text.add_text("flowcore", to_text())
    Image.new("RGB", (4, 4)).save(path, pnginfo=text)
    assert provenance.describe(path) == [ENTRY.to_json()]
    for prompt in ("{", "[]", "7", '{"1": 2}', json.dumps({"3": saved})):
        text = PngInfo()
        text.add_text("prompt", prompt)
        Image.new("RGB", (4, 4)).save(path, pnginfo=text)
        with pytest.raises(ProvenanceError, match="holds no recipe"):
            provenance.describe(path)


INVALID = {
    "nested": ("[" * 200_000, "not JSON"),
    "a digit too many": ("9" * 10_000, "not JSON"),
    "a number": ("7", "list of 1 to 64"),
    "too much in it": (json.dumps([ENTRY.to_json()] * 65), "list of 1 to 64"),
    "no object": ("[3]", "is a int"),
    "no seed": (to_text().replace('"seed"', '"sneed"'), "no seed"),
    "text for a seed": (to_text(seed="1; import os"), "seed in the recipe is '1; import os'"),
    "true for a seed": (to_text(seed=True), "seed in the recipe is True"),
    "a seed beyond 64 bits": (to_text(seed=2**64), "expected a whole number from 0"),
    "NaN": (to_text(temperature=float("nan")), "temperature in the recipe is nan"),
    "a path for a hash": (to_text(model_sha256="../" * 21 + "x"), "expected 64 hex digits"),
    "a list for a name": (to_text(model=["srflow-x4"]), "model in the recipe is ['srflow-x4']"),
    "a long name": (to_text(model="x" * 1000), "expected a short text"),
    "no samples": (to_text(samples=0), "samples in the recipe is 0"),
    "a text for settings": (to_text(settings="tile"), "settings in the recipe is 'tile'"),
    "numbers for pictures": (to_text(pictures=[1, 2]), "expected a list of fingerprints"),
}


def test_invalid_entries_raise_readable_error(tmp_path):
    for text, words in INVALID.values():
        with pytest.raises(ProvenanceError) as refused:
            provenance.read(png(tmp_path / "odd.png", text))
        assert words in str(refused.value)
        assert "odd.png" in str(refused.value)
        assert len(str(refused.value)) < 400


def test_oversized_text_is_refused(tmp_path):
    for text, kind in ((" " * (provenance.MAX_HEAD + 1), "tEXt"), (" " * 2**21, "zTXt"), (" " * 2**21, "iTXt packed")):
        with pytest.raises(ProvenanceError, match="cannot be read"):
            provenance.read(png(tmp_path / "a.png", text, kind))


def test_other_files_raise_readable_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    (tmp_path / "b.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    said = {"a.png": "not a PNG", "b.png": "not a PNG", "c.png": "no recipe", "d.png": "No such file"}
    for name, words in (said | {"\0": "read", ".": "read"}).items():
        with pytest.raises(ProvenanceError, match=words):
            provenance.read(tmp_path / name)


@pytest.mark.fuzz
@cases(150, 5000)
@given(st.data())
def test_corrupted_files_are_read_or_refused(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["tEXt", "zTXt", "iTXt"]))
    path = png(tmp_path_factory.mktemp("png") / "a.png", to_text(), kind)
    whole = bytearray(path.read_bytes())
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        whole[place] = value
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    tried("changed PNG files")
    with contextlib.suppress(FlowError):
        assert all(isinstance(entry, Provenance) for entry in provenance.read(path))


def test_seed_and_entry_of_a_picture():
    assert [ENTRY.seed_of(letter * 12) for letter in "abcd"] == [2**64 - 1, 0, 1, 2]
    two = replace(ENTRY, samples=2, seed=7)  # of two images
    assert [two.seed_of(letter * 12) for letter in "abcd"] == [7, 8, 7, 8]
    assert ENTRY.seed_of("e" * 12) == ENTRY.seed
    clip = Provenance(**{**ENTRY.__dict__, "settings": {"frames": "video"}})
    assert clip.seed_of("b" * 12) == ENTRY.seed
    enlarged = replace(ENTRY, node=provenance.CLIP, seed=7, samples=1)
    assert [(enlarged.seed_of(letter * 12), enlarged.drawn_with(letter * 12)) for letter in "ac"] == [(7, 7), (7, 9)]
    frame = replace(enlarged, seed=9, settings={"frame": 2}, pictures=("c" * 12,))
    assert (frame.seed_of("c" * 12), frame.drawn_with("c" * 12)) == (7, 9)
    other = replace(ENTRY, node_id="9", pictures=("e" * 12,))
    assert provenance.select([ENTRY, other], "b" * 12) is ENTRY
    assert provenance.select([other, ENTRY], "e" * 12) is other
    assert provenance.select([ENTRY, other], "f" * 12) is other  # changed since it was made


def test_fingerprints_and_plain_values(tmp_path):
    picture = torch.rand(3, 9, 7)
    saved = np.clip(255.0 * picture.permute(1, 2, 0).numpy(), 0, 255).astype(np.uint8)  # as ComfyUI writes it
    Image.fromarray(saved).save(tmp_path / "a.png")
    back = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1) / 255
    assert provenance.picture_fingerprint(picture) == provenance.picture_fingerprint(back)
    assert provenance.picture_fingerprint(picture.flip(0)) != provenance.picture_fingerprint(back)
    assert provenance.picture_fingerprint(picture.transpose(1, 2)) != provenance.picture_fingerprint(back)
    for bits in (8, 16):
        stored = files.read(files.encode(picture, bits=bits), "x").pixels[0]
        assert provenance.picture_fingerprint(picture, bits) == provenance.picture_fingerprint(stored)
    every = torch.arange(65536).view(1, 256, 256)
    assert provenance.picture_fingerprint(every / 65535) == provenance.picture_fingerprint((every * 255 // 65535) / 255)
    assert describe(picture)["shape"] == [3, 9, 7]
    assert describe(picture)["sha256"] != describe(picture + 1e-6)["sha256"]
    assert all(map(provenance.is_plain, (1, 0.5, "a", True)))
    assert not any(map(provenance.is_plain, (float("nan"), float("inf"), None, [1], {})))


@pytest.fixture
def models(tmp_path):
    """A folder with two models of one shape and a broken file."""
    for seed, name in enumerate(("mine", "other")):
        save(build_tiny("glow", seed=seed), tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    return tmp_path


def provenance_of(flow, name="mine.safetensors"):
    fields = {"model": name, "model_sha256": model_sha256(flow), "architecture": flow.architecture}
    return replace(ENTRY, **fields)


def test_find_model_by_name_or_fingerprint(models):
    entry = provenance_of(build_tiny("glow"))
    shipped = [(name, catalog.path(name)) for name in catalog.names()]
    assert provenance.find_model(entry, models / "mine.safetensors", [])[0] == "mine.safetensors"
    shutil.move(models / "mine.safetensors", models / "renamed.safetensors")
    every = [(path.name, path) for path in sorted(models.iterdir())]
    name, flow = provenance.find_model(entry, None, [*shipped, *every])
    assert name == "renamed.safetensors"
    assert model_sha256(flow) == entry.model_sha256
    # Another model has taken its name.
    shutil.copy(models / "other.safetensors", models / "mine.safetensors")
    assert provenance.find_model(entry, models / "mine.safetensors", every)[0] == "renamed.safetensors"


def test_of_two_models_that_differ_by_their_guide_the_one_of_the_recipe_is_found(tmp_path):
    named, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    guides = [build_tiny("srflow", seed=5, guide_layers=2, guide_width=width) for width in (4, 5)]
    for path, flow in zip((named, other), guides, strict=True):
        save(flow, path)
    values = {"temperature": 0.5, "seed": 1, "samples": 1}
    fields = {"node_id": "3", "node": "FlowcoreUpscale", "model": named.name, "model_sha256": model_sha256(guides[0])}
    entry = Provenance.of(values, guides[1], [], **fields)
    assert provenance.find_model(entry, named, [(other.name, other)])[0] == other.name
    # without that one, and with a recipe that does not tell, the other is used
    assert provenance.find_model(entry, named, [])[0] == named.name
    assert not provenance.is_same(entry, guides[0])
    older = Provenance.from_json({name: v for name, v in entry.to_json().items() if name != "model_fingerprint"})
    assert provenance.find_model(older, named, [(other.name, other)])[0] == named.name
    assert provenance.is_same(older, guides[0])


def test_missing_model_error_names_both_fingerprints(models):
    entry, other = provenance_of(build_tiny("glow")), load(models / "other.safetensors")
    with pytest.raises(ProvenanceError) as refused:
        provenance.find_model(entry, models / "other.safetensors", [])
    for sha in (entry.model_sha256, model_sha256(other)):
        assert sha[:12] in str(refused.value)
    with pytest.raises(ProvenanceError, match="models/flows"):
        provenance.find_model(entry, None, [(name, models / f"{name}.safetensors") for name in ("other", "broken")])


def test_the_picture_version_is_that_of_the_recorded_pictures():
    """If pictures have changed: raise ``PICTURE_VERSION``, and run ``golden_pictures.py``, which records them."""
    recorded = json.loads(golden_pictures.RECORD.read_text())
    assert recorded == {"picture_version": PICTURE_VERSION, "sums": golden_pictures.sums()}


def test_the_changelog_says_which_pictures_changed_with_each_version():
    text = (golden_pictures.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition("### Pictures that change\n")[2].partition("\n### ")[0]
    numbers = re.findall(r"^- \*\*.+\*\* \(picture version (\d+)", section, re.MULTILINE)
    assert len(numbers) == section.count("\n- ")
    assert [*map(int, numbers)] == sorted(map(int, numbers), reverse=True)
    assert int(numbers[0]) == PICTURE_VERSION


def test_a_changed_picture_is_not_recorded_under_the_version_of_another(tmp_path, monkeypatch):
    recorded = json.loads(golden_pictures.RECORD.read_text())
    changed = {**recorded, "sums": {**recorded["sums"], "srflow-x4": "0" * 16}}
    (tmp_path / "version.json").write_text(json.dumps(changed))
    monkeypatch.setattr(golden_pictures, "RECORD", tmp_path / "version.json")
    with pytest.raises(SystemExit, match=r"Raise PICTURE_VERSION .* changed: srflow-x4$"):
        golden_pictures.record_version()
    monkeypatch.setattr(golden_pictures, "PICTURE_VERSION", PICTURE_VERSION + 1)
    golden_pictures.record_version()
    assert json.loads((tmp_path / "version.json").read_text())["picture_version"] == PICTURE_VERSION + 1


def test_recipes_state_the_picture_version_and_others_are_told_apart(tmp_path, capsys):
    flow = build_tiny("glow")
    save(flow, tmp_path / "glow.safetensors")
    words = ("--model", tmp_path / "glow.safetensors", "--out", tmp_path / "made.png", "--samples", 1, "--seed", 5)
    assert run("sample", *words, "--size", 32, "--temperature", 1) == 0
    (entry,) = provenance.read(tmp_path / "made.png")
    assert entry.picture_version == PICTURE_VERSION
    assert provenance.drawn_otherwise(entry) == ""
    older = entry.to_json() | {"picture_version": 0}
    text = PngInfo()
    text.add_text("flowcore", json.dumps([older]))
    with Image.open(tmp_path / "made.png") as opened:
        opened.save(tmp_path / "older.png", pnginfo=text)
    said = f"picture version {PICTURE_VERSION} here, 0 there): made again, it may differ"
    capsys.readouterr()
    assert run("verify", tmp_path / "older.png", "--model", tmp_path / "glow.safetensors", "--json") == 0
    assert said in json.loads(capsys.readouterr().out)["notes"][0]
    assert main(["inspect", str(tmp_path / "older.png")]) == 0
    assert said in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "made.png")]) == 0
    assert capsys.readouterr().err == ""
