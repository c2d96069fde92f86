"""Styles measured from a table of attributes: what the table may hold, and that directions are those of the data."""

import math

import numpy as np
import pytest
import torch
from builders import build_tiny
from PIL import Image

import flowcore
from flowcore import FlowError, save
from flowcore.cli.main import main
from flowcore.tasks.styles import apply_style
from flowcore.training.styles import measure_attributes, parse_attribute, read_attribute_table, read_images

SIDE = 16
TOP, BOTTOM = slice(0, SIDE // 2), slice(SIDE // 2, SIDE)
HEADER = "file\tgender\tbirth_year\tlips_parted"
PLAIN = ("smile=lips_parted", "age=-birth_year", "gender=gender:F/M")


@pytest.fixture(scope="module")
def glow():
    return build_tiny("glow", image_size=SIDE, n_bits=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose lower half is brighter when they smile, and whose upper half is brighter when they are old.

    Smiles come with age, so a plain difference of means would mix both; judges are brighter and smile less, and their
    year of birth is not known.
    """
    folder = tmp_path_factory.mktemp("portraits")
    (folder / "train").mkdir()
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for k in range(160):
        judge = k % 4 == 0
        old = rng.random() < 0.5
        smiles = rng.random() < (0.15 if judge else 0.75 if old else 0.35)
        pixels = 110 + 40 * judge + rng.normal(0, 6, (SIDE, SIDE, 3))
        pixels[BOTTOM] += 30 * smiles
        pixels[TOP] += 24 * old
        name = f"train/{'judge' if judge else 'member'}-{k}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        year = "" if judge else str(1940 if old else 1970)
        lines.append(f"{name}\t{'FM'[k % 2] if k % 5 else ''}\t{year}\t{'' if k % 7 == 0 else int(smiles)}")
    (folder / "attributes.tsv").write_text("\n".join(lines) + "\n")
    return folder


def table(folder, *texts, **options):
    return read_attribute_table(folder / "attributes.tsv", [parse_attribute(t) for t in texts or PLAIN], **options)


def test_a_table_is_read_with_its_gaps(folder):
    read = table(folder, held_out=frozenset({"member-1.png"}))
    assert len(read.paths) == 157  # of judge-0 and judge-140 nothing is known
    by_name = dict(zip((path.stem for path in read.paths), read.values.tolist(), strict=True))
    smile, age, gender = by_name["judge-8"]
    assert smile in (0, 1)
    assert math.isnan(age)
    assert gender == 1  # F
    assert by_name["member-3"][1] in (-1940, -1970)  # born earlier is older
    assert math.isnan(by_name["member-5"][2])
    assert len(set(read.sources.tolist())) == 2
    kept = table(folder, held_out=frozenset({"member-1.png"}), keep=True)
    assert [path.name for path in kept.paths] == ["member-1.png"]


def test_invalid_attributes_are_refused():
    for text in ("smile", "=lips", "smile=", "a=b:c", "a=b:c/", "a=-b:c/d", "a=b*", "a=b*-2", "a=b*c", ""):
        with pytest.raises(FlowError, match="smile=lips_parted"):
            parse_attribute(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "could not be read"),
        ("", "has no column file"),
        ("file\tgender\na.png\tM\n", "no column lips_parted, birth_year; it has file, gender"),
        (HEADER + "\na.png\tM\t1950\twide\n", "line 2: could not convert"),
    ],
)
def test_an_unusable_table_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "attributes.tsv").write_text(text)
    with pytest.raises(FlowError, match=words):
        table(tmp_path)


def test_constant_attributes_and_other_models_are_refused(glow, folder, tmp_path):
    lines = (folder / "attributes.tsv").read_text().splitlines()
    constant = [lines[0] + "\tknown", *(f"{folder}/{line}\t1" for line in lines[1:])]
    (tmp_path / "attributes.tsv").write_text("\n".join(constant))
    with pytest.raises(FlowError, match="glad"):
        measure_attributes(glow, table(tmp_path, "glad=known"))
    for flow in (build_tiny("class_conditional"), build_tiny("glow", image_size=None)):
        with pytest.raises(FlowError, match="image_size"):
            measure_attributes(flow, table(folder))


@pytest.fixture(scope="module")
def styled(glow, folder):
    lines: list[str] = []
    return measure_attributes(glow, table(folder), log=lines.append), lines


@torch.no_grad()
def changes(flow, folder, styles):
    """How much brighter a style makes both halves, in 8-bit steps."""
    x = read_images(flow, table(folder).paths[:8])
    latents, _ = flow(x)
    difference = 255 * (flow.inverse(apply_style(flow, latents, styles)) - flow.inverse(latents)).mean((0, 1, 3))
    return float(difference[TOP].mean()), float(difference[BOTTOM].mean())


def test_a_style_changes_its_attribute_alone(styled, folder):
    """In standard deviations: half of the members smile, at 30 steps; half of them are old, at 24."""
    flow, lines = styled
    assert flow.config.styles == ("smile", "age", "gender")
    top, bottom = changes(flow, folder, {"smile": 2.0})
    assert bottom == pytest.approx(2 * 30 / 2, rel=0.2)
    assert abs(top) < 3  # without the joint regression: about 6; without the sources: about -20
    top, bottom = changes(flow, folder, {"age": 2.0})
    assert top == pytest.approx(2 * 24 / 2, rel=0.2)
    assert abs(bottom) < 3
    # Gender is drawn at random: what is left of its direction is short beside what chance alone gives.
    length = {name: math.sqrt(sum(float(z.square().sum()) for z in zs)) for name, zs in flow.styles.items()}
    assert length["gender"] < 0.4 * length["smile"]
    before = float(lines[2].split(" of ")[1].split()[0])
    assert lines[2].startswith("gender: 128 images")
    assert length["gender"] < 0.6 * before
    for name, shown, other in (("smile", BOTTOM, TOP), ("age", TOP, BOTTOM)):
        finest = flow.styles[name][0][0].square().mean((0, 2)).repeat_interleave(2)  # by row of the image
        assert float(finest[other].mean()) < 0.004 * float(finest[shown].mean()), name  # unshrunk: 0.008 of age


def test_gains_lengthen_styles(glow, folder):
    texts = "smile=lips_parted*1.5", "age=-birth_year", "gender=gender:F/M*3"
    gained, plain = (measure_attributes(glow, table(folder, *words)).styles for words in (texts, PLAIN))
    for name, gain in (("smile", 1.5), ("age", 1), ("gender", 3)):
        for a, b in zip(gained[name], plain[name], strict=True):
            torch.testing.assert_close(a, gain * b)


def test_the_command_stores_styles_that_sampling_takes(glow, folder, tmp_path, capsys):
    plain, target, out = tmp_path / "plain.safetensors", tmp_path / "styled.safetensors", tmp_path / "out"
    save(glow, plain, provenance={"licence": "CC0-1.0"})
    words = ["styles", str(plain), str(target), "--data", str(folder)]
    assert main([*words, "--attribute", "smile=lips_parted", "--held-out", ""]) == 0
    assert "smile: 137 images" in capsys.readouterr().err
    assert list(flowcore.load(target).styles) == ["smile"]
    assert main(["sample", "--model", str(target), "--out", str(out), "--style", "smile=2", "--device", "cpu"]) == 0
