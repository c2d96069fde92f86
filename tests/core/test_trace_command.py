"""The command verify: seeds from recipes and from options, folders, exit codes and maps."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from flowcore.cli.options import seeds

from .commands import photograph, pixels, run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a sample of glow-photos, as PNG with a recipe, and as JPEG without; and its manifest's JPEG."""
    folder = tmp_path_factory.mktemp("made")
    assert run("sample", "--samples", 2, "--seed", 5, "--size", 64, "--out", folder / "png") == 0
    first = sorted((folder / "png").glob("*.png"))[0]
    with Image.open(first) as opened:
        opened.convert("RGB").save(folder / "stripped.jpg", quality=97)
    return folder


def rows_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_recipes_tell_model_and_seed(made, capsys):
    assert run("verify", made / "png", "--json") == 0
    rows = rows_of(capsys)
    assert [(row["verified"], row["seed"], row["model"]) for row in rows] == [
        (True, 5, "glow-photos"),
        (True, 6, "glow-photos"),
    ]
    assert run("verify", made / "png", "--seed", 9) == 1  # what is given counts
    assert "not verified" in capsys.readouterr().out


def test_without_a_recipe_the_seed_must_be_given(made, tmp_path, capsys):
    stripped = made / "stripped.jpg"
    assert run("verify", stripped) == 1
    assert "recipe missing: give --seed" in capsys.readouterr().err
    assert run("verify", stripped, "--seed", 5, "--model", "glow-photos", "--maps", tmp_path) == 0
    assert capsys.readouterr().out.startswith("verified")
    assert pixels(tmp_path / "stripped_edited.png").shape == (3, 64, 64)


def test_a_seed_is_looked_for_in_a_range(made, capsys):
    words = ("verify", made / "stripped.jpg", "--model", "glow-photos", "--json", "--seed")
    assert run(*words, "0-199") == 0
    assert rows_of(capsys)[0]["seed"] == 5
    assert run(*words, "6-199") == 1
    for wrong in ("9-3", "some", "0-", "-1", "0-4294967296"):
        assert run(*words, wrong) == 2
    assert "expected" in capsys.readouterr().err
    assert seeds("any") == range(2**20)


def test_pictures_of_one_name_keep_their_maps_apart(made, tmp_path, capsys):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        shutil.copy(made / "stripped.jpg", folder / "a.jpg")
    words = ["--seed", 5, "--model", "glow-photos", "--json"]
    assert run("verify", *folders, *words, "--maps", tmp_path / "maps") == 0
    maps = [row["map"] for row in rows_of(capsys)]
    assert maps == [str(tmp_path / "maps" / folder.name / "a_edited.png") for folder in folders]
    assert all(pixels(Path(each)).shape == (3, 64, 64) for each in maps)


def test_a_map_that_cannot_be_written_is_refused_before_the_work(made, tmp_path, capsys):
    stripped, a_file = made / "stripped.jpg", tmp_path / "file"
    a_file.write_bytes(b"")
    assert run("verify", stripped, "--seed", 5, "--model", "glow-photos", "--maps", a_file) == 2
    assert "Cannot save stripped_edited.png" in capsys.readouterr().err
    assert run("audit", stripped, stripped, "--model", "srflow-x4", "--map", a_file / "map.png") == 2
    assert "Cannot save map.png" in capsys.readouterr().err


def test_a_map_replaces_no_other_file_and_an_earlier_map_only_if_asked(made, tmp_path, capsys):
    target, words = tmp_path / "stripped_edited.png", ("--seed", 5, "--model", "glow-photos", "--maps", tmp_path)
    shutil.copy(made / "stripped.jpg", target)
    for again in ([], ["--again"]):
        assert run("verify", made / "stripped.jpg", *words, *again) == 2
        assert "is not a map of flowcore" in capsys.readouterr().err
    assert target.read_bytes() == (made / "stripped.jpg").read_bytes()
    target.unlink()
    assert run("verify", made / "stripped.jpg", *words) == 0
    capsys.readouterr()
    assert run("verify", made / "stripped.jpg", *words) == 2
    assert "exists. Replace it with --again" in capsys.readouterr().err
    assert run("verify", made / "stripped.jpg", *words, "--again") == 0


def test_the_manifest_of_a_batch_is_a_recipe(made, tmp_path, capsys):
    with Image.open(made / "stripped.jpg") as opened:
        opened.save(tmp_path / "picture.jpg", quality=97)
    row = "photo.jpg,elsewhere/picture.jpg,5,{},{},1.0,\n"
    (tmp_path / "manifest.csv").write_text(
        "input,output,seed,model,model_sha256,seconds,note\n" + row.format("glow-photos", "")
    )
    assert run("verify", tmp_path / "picture.jpg") == 0
    (tmp_path / "manifest.csv").write_text(
        "input,output,seed,model,model_sha256,seconds,note\n" + row.format("glow-photos", "0" * 64)
    )
    assert run("verify", tmp_path / "picture.jpg") == 1
    assert "made with another glow-photos: expected sha 000000000000" in capsys.readouterr().err


def test_a_picture_of_another_origin_is_not_verified_and_a_damaged_one_is_reported(tmp_path, capsys):
    photograph(tmp_path / "photo.png", (64, 64))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert run("verify", tmp_path, "--seed", 1, "--model", "glow-photos") == 3
    told = capsys.readouterr()
    assert "not verified" in told.out
    assert "broken.png" in told.err
    assert run("verify", tmp_path / "photo.png", "--seed", 1, "--model", "glow-photos") == 1


def test_a_mark_is_drawn_and_found_and_its_phrase_is_nowhere_in_the_file(tmp_path, capsys):
    words = ["sample", "--samples", 1, "--seed", 5, "--size", 96, "--mark", "my secret words"]
    assert run(*words, "--out", tmp_path / "marked") == 0
    capsys.readouterr()
    assert run("verify", tmp_path / "marked", "--mark", "My secret words", "--model", "glow-photos", "--json") == 0
    assert rows_of(capsys)[0]["mark"] == "My secret words"
    assert run("verify", tmp_path / "marked", "--mark", "my other words", "--model", "glow-photos") == 1
    assert all(b"secret" not in file.read_bytes() for file in (tmp_path / "marked").iterdir())


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A picture of srflow-x4 with seed 7, and the same with a red disc."""
    folder = tmp_path_factory.mktemp("painted")
    photograph(folder / "small.png", (48, 40))
    assert run("upscale", folder / "small.png", "--seed", 7, "--temperature", 0.8, "--out", folder / "whole.png") == 0
    with Image.open(folder / "whole.png") as opened:
        edited = opened.copy()
    ImageDraw.Draw(edited).ellipse((110, 60, 150, 100), fill=(200, 20, 20))
    edited.save(folder / "painted.png")
    return folder


WORDS = ("--seed", 7, "--model", "srflow-x4")


def test_edits_are_stated_with_their_share_and_place(painted, capsys):
    assert run("verify", painted / "whole.png", painted / "painted.png", *WORDS, "--json") == 0
    whole, edited = rows_of(capsys)
    assert (whole["verified"], whole["edited"], whole["boxes"], whole["notes"]) == (True, 0, [], [])
    assert edited["verified"]
    assert 0.005 < edited["edited"] < 0.1  # the disc has 4 %, whose middle is flat
    left, top, right, bottom = edited["boxes"][0]
    assert (left < 150, right > 110, top < 100, bottom > 60) == (True,) * 4
    assert edited["notes"] == [f"About {100 * edited['edited']:.2g} % was edited since."]
    assert run("verify", painted / "painted.png", *WORDS) == 0
    told = capsys.readouterr()
    assert f"Most edited: {left},{top} to {right},{bottom}" in told.out
    assert edited["notes"][0] in told.err


def test_a_crop_that_is_not_verified_is_told_what_it_needs(painted, tmp_path, capsys):
    with Image.open(painted / "whole.png") as opened:
        opened.crop((17, 9, 17 + 140, 9 + 140)).save(tmp_path / "crop.png")
        opened.crop((0, 0, 100, 100)).save(tmp_path / "tiny.png")  # too small to be found
    assert run("verify", tmp_path, *WORDS, "--json") == 1
    crop, tiny = rows_of(capsys)
    assert crop["notes"] == ["If it is a crop, give --source, what it was made from, or --size, what it was."]
    assert tiny["notes"] == []
    assert run("verify", tmp_path / "crop.png", *WORDS, "--source", painted / "small.png") == 0


def test_strict_fails_if_a_picture_was_edited(painted, capsys):
    assert run("verify", painted / "whole.png", *WORDS, "--strict") == 0
    assert run("verify", painted / "whole.png", painted / "painted.png", *WORDS, "--strict") == 1
    assert "1 of 2 pictures were edited since, or may have been" in capsys.readouterr().err


def test_audit_takes_no_picture_of_other_proportions(tmp_path, capsys):
    small = photograph(tmp_path / "small.png", (24, 18))
    for name, size in {"rotated": (72, 96), "stretched": (96, 60), "rounded": (65, 49)}.items():
        photograph(tmp_path / f"{name}.png", size)
    assert run("audit", tmp_path / "rotated.png", small) == 1
    assert "it lies on its side. Rotate it back" in capsys.readouterr().err
    assert run("audit", tmp_path / "stretched.png", small) == 1
    assert "other proportions than those of its source, 24x18" in capsys.readouterr().err
    assert run("audit", tmp_path / "rounded.png", small) == 0
