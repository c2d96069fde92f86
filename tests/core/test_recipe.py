"""Recipes in PNG files: read back as they were written, bounded whatever a file holds; models found by their hash."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from cases import cases, tried
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flowcore import FlowError, load
from flowcore.checkpoints import catalog, save
from flowcore.checkpoints.latents_file import model_sha256
from flowcore.models import build, configure
from flowcore.provenance import (
    MOST_TEXT,
    SIGNATURE,
    Recipe,
    RecipeError,
    chosen,
    find_model,
    fingerprint,
    is_plain,
    read,
    source,
)

RECIPE = Recipe(
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


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path, text, kind="tEXt"):
    """A picture that holds a text, however it is stored."""
    content = {
        "tEXt": lambda: b"flowcore\0" + text.encode("latin-1"),
        "zTXt": lambda: b"flowcore\0\0" + zlib.compress(text.encode("latin-1")),
        "iTXt": lambda: b"flowcore\0\0\0en\0flowcore\0" + text.encode(),
        "iTXt packed": lambda: b"flowcore\0\1\0\0\0" + zlib.compress(text.encode()),
    }[kind]()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk(kind[:4].encode(), content) + whole[33:])  # after the header
    return path


def written(recipe=RECIPE, **changes):
    return json.dumps([recipe.to_json() | changes])


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt packed"])
def test_a_recipe_comes_back_as_it_was_written(tmp_path, kind):
    path = png(tmp_path / "a.png", written(), kind)
    assert read(path) == [RECIPE]
    assert Image.open(path).size == (3, 2)


def test_a_recipe_that_another_library_wrote_is_read(tmp_path):
    text = PngInfo()
    text.add_text("prompt", "{}" * 1000)
    text.add_text("flowcore", json.dumps([RECIPE.to_json(), RECIPE.to_json() | {"node_id": "5"}]))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=text)
    assert [recipe.node_id for recipe in read(tmp_path / "a.png")] == ["3", "5"]


def test_what_a_newer_flowcore_adds_is_left_out(tmp_path):
    assert read(png(tmp_path / "a.png", written(mood="calm"))) == [RECIPE]


WRONG = {
    "not JSON": ("{", "not JSON"),
    "nested": ("[" * 200_000, "not JSON"),
    "a digit too many": ("9" * 10_000, "not JSON"),
    "a number": ("7", "list of 1 to 64"),
    "nothing in it": ("[]", "list of 1 to 64"),
    "too much in it": (json.dumps([RECIPE.to_json()] * 65), "list of 1 to 64"),
    "no object": ("[3]", "is a int"),
    "no seed": (written().replace('"seed"', '"sneed"'), "no seed"),
    "text for a seed": (written(seed="1; import os"), "seed in the recipe is '1; import os'"),
    "true for a seed": (written(seed=True), "seed in the recipe is True"),
    "a seed below 0": (written(seed=-1), "seed in the recipe is -1"),
    "a seed beyond 64 bits": (written(seed=2**64), "expected a whole number from 0"),
    "NaN": (written(temperature=float("nan")), "temperature in the recipe is nan"),
    "infinite": (written(temperature=float("inf")), "temperature in the recipe is inf"),
    "a path for a hash": (written(model_sha256="../" * 21 + "x"), "expected 64 hex digits"),
    "a list for a name": (written(model=["srflow-x4"]), "model in the recipe is a list"),
    "a long name": (written(model="x" * 1000), "expected a short text"),
    "no samples": (written(samples=0), "samples in the recipe is 0"),
    "a text for settings": (written(settings="tile"), "settings in the recipe is 'tile'"),
    "numbers for pictures": (written(pictures=[1, 2]), "expected a list of fingerprints"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_recipe_gets_a_sentence(tmp_path, what):
    text, words = WRONG[what]
    with pytest.raises(RecipeError) as refused:
        read(png(tmp_path / "odd.png", text))
    assert words in str(refused.value)
    assert "odd.png" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_text_of_a_hundred_megabytes_is_refused_before_it_is_read(tmp_path):
    start = time.monotonic()
    with (tmp_path / "a.png").open("wb") as file:
        file.write(SIGNATURE + struct.pack(">I", 100 * 2**20) + b"tEXtflowcore\0")
        file.truncate(101 * 2**20)
    with pytest.raises(RecipeError, match="bytes long"):
        read(tmp_path / "a.png")
    # Of other texts only the beginning is looked at.
    with (tmp_path / "b.png").open("wb") as file:
        file.write(SIGNATURE + struct.pack(">I", 100 * 2**20) + b"tEXtprompt\0")
        file.truncate(101 * 2**20)
    with pytest.raises(RecipeError, match="no recipe"):
        read(tmp_path / "b.png")
    assert time.monotonic() - start < 20


def test_a_text_that_unpacks_to_too_much_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=f"more than {MOST_TEXT}"):
        read(png(tmp_path / "a.png", " " * (MOST_TEXT + 1), "zTXt"))


def test_what_is_no_png_or_no_file_gets_a_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\xff\xd8\xff\xe0 a photograph")
    (tmp_path / "b.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    for name, words in {
        "a.png": "not a PNG",
        "b.png": "not a PNG",
        "c.png": "no recipe",
        "d.png": "No such file",
        "\0": "read",
        ".": "read",
    }.items():
        with pytest.raises(RecipeError, match=words):
            read(tmp_path / name)


@pytest.mark.fuzz
@cases(150, 5000)
@given(st.data())
def test_a_changed_file_gives_recipes_or_a_sentence(tmp_path_factory, data):
    path = png(
        tmp_path_factory.mktemp("png") / "a.png", written(), data.draw(st.sampled_from(["tEXt", "zTXt", "iTXt"]))
    )
    whole = bytearray(path.read_bytes())
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=6)):
        whole[place] = value
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    tried("changed PNG files")
    with contextlib.suppress(FlowError):
        assert all(isinstance(recipe, Recipe) for recipe in read(path))


def test_the_seed_of_one_of_several_pictures():
    assert [RECIPE.seed_of(letter * 12) for letter in "abcd"] == [2**64 - 1, 0, 1, 2]
    two = Recipe(**{**RECIPE.__dict__, "samples": 2, "seed": 7})  # of two images
    assert [two.seed_of(letter * 12) for letter in "abcd"] == [7, 8, 7, 8]
    assert RECIPE.seed_of("e" * 12) == RECIPE.seed
    clip = Recipe(**{**RECIPE.__dict__, "settings": {"frames": "video"}})
    assert clip.seed_of("b" * 12) == RECIPE.seed


def test_the_recipe_that_made_a_picture_is_chosen():
    other = Recipe(**{**RECIPE.__dict__, "node_id": "9", "pictures": ("e" * 12,)})
    assert chosen([RECIPE, other], "b" * 12) is RECIPE
    assert chosen([other, RECIPE], "e" * 12) is other
    assert chosen([RECIPE, other], "f" * 12) is other  # changed since: the last to have run


def test_a_fingerprint_is_that_of_the_saved_file(tmp_path):
    torch.manual_seed(0)
    picture = torch.rand(3, 9, 7)
    saved = np.clip(255.0 * picture.permute(1, 2, 0).numpy(), 0, 255).astype(np.uint8)  # as ComfyUI writes it
    Image.fromarray(saved).save(tmp_path / "a.png")
    back = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    assert fingerprint(picture) == fingerprint(back)
    assert fingerprint(picture.flip(0)) != fingerprint(back)
    assert fingerprint(picture.transpose(1, 2)) != fingerprint(back)
    assert source(picture)["shape"] == [3, 9, 7]
    assert source(picture)["sha256"] != source(picture + 1e-6)["sha256"]


def test_what_stands_in_a_recipe_is_json():
    assert [is_plain(value) for value in (1, 0.5, "a", True, float("nan"), float("inf"), None, [1], {})] == [
        *[True] * 4,
        *[False] * 5,
    ]


def small_glow(seed):
    torch.manual_seed(seed)
    return build("glow", configure("glow", {"levels": 1, "steps": 1, "hidden": 4, "image_size": [4, 4]})).eval()


@pytest.fixture
def models(tmp_path):
    """Two models of one shape, and something else."""
    for seed, name in enumerate(("mine", "other")):
        save(small_glow(seed), tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    return tmp_path


def recipe_for(flow, name="mine.safetensors"):
    fields = {"model": name, "model_sha256": model_sha256(flow), "architecture": flow.architecture}
    return Recipe(**{**RECIPE.__dict__, **fields})


def test_a_model_is_found_by_its_name_or_else_by_its_hash(models):
    recipe = recipe_for(small_glow(0))
    every = [(path.name, path) for path in sorted(models.iterdir())]
    shipped = [(name, catalog.path(name)) for name in catalog.names()]
    assert find_model(recipe, models / "mine.safetensors", [])[0] == "mine.safetensors"
    shutil.move(models / "mine.safetensors", models / "renamed.safetensors")
    every = [(path.name, path) for path in sorted(models.iterdir())]
    name, flow = find_model(recipe, None, [*shipped, *every])
    assert name == "renamed.safetensors"
    assert model_sha256(flow) == recipe.model_sha256
    # And where another one has taken its name.
    shutil.copy(models / "other.safetensors", models / "mine.safetensors")
    assert find_model(recipe, models / "mine.safetensors", every)[0] == "renamed.safetensors"


def test_another_model_under_the_same_name_is_named_by_both_hashes(models):
    recipe, other = recipe_for(small_glow(0)), load(models / "other.safetensors")
    with pytest.raises(RecipeError) as refused:
        find_model(recipe, models / "other.safetensors", [])
    for sha in (recipe.model_sha256, model_sha256(other)):
        assert sha[:12] in str(refused.value)
    with pytest.raises(RecipeError, match=r"no such model here.*models/flows"):
        find_model(recipe, None, [("other", models / "other.safetensors"), ("broken", models / "broken.safetensors")])
