"""The command line: its commands, their options, results and error messages."""

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_tiny, build_upscaler, srflow_checkpoint
from PIL import Image

import flowcore
from flowcore import ColorMemory, FlowError, colorize, ranked, save, transfer_palette, upscale
from flowcore.batch import folders
from flowcore.batch.provenance import picture_fingerprint
from flowcore.batch.provenance import read as read_provenance
from flowcore.cli import batches
from flowcore.cli.main import main
from flowcore.engine.ranges import MAX_DRAWS
from flowcore.images import files
from flowcore.images.damage import crop_middle
from flowcore.models import catalog
from flowcore.models.identity import describe, model_sha256
from flowcore.models.model_file import reconfigure
from flowcore.tasks.faces import restore_faces
from flowcore.tasks.hints import hints_from_points
from flowcore.tasks.model_choice import upscaler_for_files
from flowcore.tasks.upscale import UpscaleSettings
from flowcore.training.evaluation.upscaling import MEASURES

from .commands import RECIPE, StoppedAfter, names, near, photograph, pixels, run, write_colorizer
from .digits import write_mnist

ROOT = Path(__file__).parents[2]


def test_the_console_script_names_a_function_that_runs(monkeypatch, capsys):
    ((module, function),) = re.findall(r'^flowcore = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    monkeypatch.setattr(sys, "argv", ["flowcore", "inspect", "mnist-styles"])
    assert getattr(importlib.import_module(module), function)() == 0
    assert "class_conditional" in capsys.readouterr().out


def test_faces_are_found_enlarged_and_pasted_and_a_second_run_makes_nothing(model, tmp_path, capsys):
    photo = ROOT / "workflows" / "pictures" / "group.png"
    words = ["faces", photo, "-o", tmp_path / "out", "--model", model, "--face-model", model]
    words += ["--factor", 2, "--number", 1, "--temperature", 0.5, "--largest", 0, "--paste-all"]
    run(*words)
    path = tmp_path / "out" / "group_tiny_faces_tau0.5_seed0.png"
    flow, image, made = flowcore.load(model), files.read(photo.read_bytes(), "a").pixels, pixels(path)
    near(path, restore_faces(flow, flow, image, factor=2, number=1, temperature=0.5, largest=0, check=False)[0])
    changed = (made - upscale(flow, image, factor=2)[0]).abs().amax(0) > 2 / 255
    rows, columns = changed.nonzero(as_tuple=True)
    assert 10 < rows.min() < rows.max() < 110  # around the largest of three faces alone
    assert columns.max() - columns.min() < 110
    run(*words)
    assert "1 of 1 were there already" in capsys.readouterr().err


def test_auto_takes_the_model_that_suits_each_picture_and_loads_it_once(
    model, tmp_path, capsys, monkeypatch, stderr_of
):
    loaded, photos, out = [], tmp_path / "photos", tmp_path / "out"
    monkeypatch.setattr(batches, "load", lambda name, *where: loaded.append(name) or flowcore.load(model, *where))
    clean = np.asarray(Image.open(photograph(photos / "a.png", (40, 40)))).astype(float)
    for name in ("b", "c"):
        noise = np.random.default_rng(0).normal(0, 8, clean.shape)
        Image.fromarray((clean + noise).clip(0, 255).round().astype(np.uint8)).save(photos / f"{name}.png")
    assert run("upscale", photos, "-o", out) == 0
    noisy = "srflow-x4-photo suits this picture: noise (about 7/255)."
    said = capsys.readouterr().err
    assert f"b.png: {noisy}" in said
    assert said.count("suits this picture") == 2  # nobody asked about the clean one
    with (out / "manifest.csv").open() as file:
        rows = {Path(row["input"]).name: row for row in csv.DictReader(file)}
    assert [rows[f"{name}.png"]["model"] for name in "abc"] == ["srflow-x4", *["srflow-x4-photo"] * 2]
    assert noisy in rows["c.png"]["note"]
    made = [name for name in names(out) if name.endswith(".png")]
    assert [name.split("_tau")[0] for name in made] == ["a_srflow-x4", "b_srflow-x4-photo", "c_srflow-x4-photo"]
    assert sorted(loaded) == ["srflow-x4", "srflow-x4-photo"]
    assert "3 of 3 were there already" in stderr_of("upscale", photos, "-o", out, code=0)


def test_auto_looks_at_a_single_picture_before_it_loads_a_model(model, tmp_path, monkeypatch):
    loaded, photo = [], photograph(tmp_path / "a.png", (40, 40))
    monkeypatch.setattr(batches, "load", lambda name, *where: loaded.append(name) or flowcore.load(model, *where))
    assert run("upscale", photo, "-o", tmp_path / "out") == 0
    assert loaded == ["srflow-x4"]


@pytest.fixture
def chosen(model, monkeypatch):
    """The pictures that were looked at to choose a model, in order; all models are the tiny one."""
    monkeypatch.setattr(batches, "load", lambda name, *where: flowcore.load(model, *where))
    looked, choose = [], batches.upscaler_for_files
    monkeypatch.setattr(batches, "upscaler_for_files", lambda paths: looked.append(paths[0].name) or choose(paths))
    return looked


def test_a_model_is_chosen_when_the_turn_of_a_picture_comes_and_a_resumed_run_looks_at_none_that_is_done(
    chosen, tmp_path, monkeypatch
):
    for number in range(4):
        photograph(tmp_path / "in" / f"{number}.png", (40, 40), seed=number)
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out"]
    for options in ([], ["--name", "{stem}"]):  # whether names tell the model or not
        with monkeypatch.context() as patch:
            StoppedAfter(patch, 2)
            with pytest.raises(SystemExit):
                run(*words, *options)
        assert chosen == ["0.png", "1.png"]  # the others' turn has not come
        chosen.clear()
        assert run(*words, *options) == 0
        assert chosen == ["2.png", "3.png"]
        chosen.clear()
        assert run(*words, *options) == 0
        assert chosen == []


def test_a_clip_that_is_resumed_keeps_the_model_of_its_frames(chosen, tmp_path, monkeypatch):
    for number in range(3):
        photograph(tmp_path / "in" / f"{number}.png", (16, 12))
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--steadiness", 0.5]
    with monkeypatch.context() as patch:
        StoppedAfter(patch, 1)
        with pytest.raises(SystemExit):
            run(*words)
    assert chosen == ["0.png"]
    assert run(*words) == 0
    assert chosen == ["0.png"]


def test_a_model_is_chosen_by_the_middle_as_if_all_was_read():
    image = np.random.default_rng(0).integers(0, 65536, (300, 210, 3))
    data = files.encode(torch.from_numpy(image / 65535).permute(2, 0, 1), bits=16)
    assert torch.equal(files.read_middle(data, "a", 192), crop_middle(files.read(data, "a").pixels))


def test_any_size_is_made_on_the_command_line_as_in_python(model, tmp_path, capsys):
    photo, out = photograph(tmp_path / "a.png", (12, 8)), tmp_path / "out"
    flow, image = flowcore.load(model), files.read(photo.read_bytes(), "a").pixels
    for words, options, name in (
        (["--factor", 2], {"factor": 2}, "x2"),
        (["--longest-side", 100], {"longest_side": 100}, "side100"),
        (["--match-source"], {"match_source": True}, "matched"),
        (["--factor", 3, "--longest-side", 30, "--match-source"], {"longest_side": 30, "match_source": True}, None),
    ):
        for _ in range(2):
            assert run("upscale", photo, "-o", out, "--model", model, *words) == 0
        path = out / f"a_tiny_tau0.8_{name or 'side30_matched'}_seed0.png"
        near(path, upscale(flow, image, **options)[0])
        (entry,) = read_provenance(path)
        assert {key: entry.settings[key] for key in options} == options
    assert capsys.readouterr().err.count("1 of 1 were there already") == 4
    assert run("upscale", photo, "-o", out, "--model", model, "--factor", 2, "--steadiness", 0.5) == 2
    assert "Only for photographs, not for the frames of a clip: --factor" in capsys.readouterr().err


def test_a_result_that_would_be_too_large_fails_alone(model, tmp_path, stderr_of):
    photograph(tmp_path / "in" / "a.png", (2, 2))
    Image.new("L", (9000, 1)).save(tmp_path / "in" / "b.png")
    said = stderr_of("upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--factor", 8, code=3)
    assert "b.png: A side of the result may have at most 65536 pixels; got 72000" in said
    assert names(tmp_path / "out") == ["a_tiny_tau0.8_x8_seed0.png", "manifest.csv"]


def test_repair_takes_the_model_that_suits_a_picture(model, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "load", lambda name, *where: flowcore.load(model, *where))
    assert run("repair", photograph(tmp_path / "a.png", (40, 32)), "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a_srflow-x4_repaired_tau0.8_seed0.png"]


def test_the_frames_of_a_clip_have_one_model(tmp_path):
    for number, scale in enumerate((0, 8)):
        rng = np.random.default_rng(number)
        image = (128 + rng.normal(0, scale, (40, 40, 3))).round().astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = [one.path for one in folders.list_inputs([str(tmp_path)])]
    assert [upscaler_for_files([path])[0] for path in paths] == ["srflow-x4", "srflow-x4-photo"]
    assert upscaler_for_files(paths)[0] == "srflow-x4-photo"
    assert upscaler_for_files([]) == ("srflow-x4", "")


def test_inspect_and_help(model, tmp_path, capsys):
    assert main(["inspect", str(model)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["architecture"] == "srflow"
    assert shown["config"]["stacked_blocks"] == [0]
    assert shown["provenance"]["licence"] == "CC0-1.0"
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert ", ".join(MEASURES) in " ".join(capsys.readouterr().out.split())
    path = tmp_path / "published.pth"
    torch.save(srflow_checkpoint(build_tiny("srflow_da", perturb=0.02)), path)
    assert main(["inspect", str(path), "--set", "stacked_blocks=1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["architecture"], shown["config"]["stacked_blocks"]) == ("srflow_da", [1])
    assert "CC BY-NC-SA 4.0" in shown["provenance"]["licence"]
    assert main(["inspect", str(path)]) == 1  # of another depth than those that are published
    assert "stacked_blocks is missing" in capsys.readouterr().err


def test_a_memory_of_colors_is_inspected_by_name_and_by_file(capsys):
    file = catalog.FOLDER / f"{catalog.STARTER_MEMORY}.safetensors"
    memory = ColorMemory.load(file)
    for word in (catalog.STARTER_MEMORY, str(file)):
        assert main(["inspect", word]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["memory"]["photographs"] == memory.photographs
        assert shown["provenance"] == memory.provenance


def test_help_names_the_program_as_it_was_called(monkeypatch, capsys):
    for program, name in (("bin/flowcore", "flowcore"), ("__main__.py", "python -m flowcore")):
        monkeypatch.setattr(sys, "argv", [program])
        with pytest.raises(SystemExit):
            main(["upscale", "--help"])
        assert capsys.readouterr().out.startswith(f"usage: {name} upscale ")


def test_inspect_imports_neither_the_trainer_nor_torchvision():
    program = (
        "import sys, flowcore.cli.main as cli; cli.main(['inspect', 'srflow-x4'])\n"
        "late = ('flowcore.training', 'flowcore.batch.job', 'torchvision')\n"
        "assert not [name for name in sys.modules if name.startswith(late)]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_loading_a_model_does_not_import_the_compiler():
    program = "import sys, flowcore; flowcore.load('srflow-x4'); assert not {'torch._dynamo', 'sympy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_convert_stores_half_precision_and_eight_bits(tmp_path, capsys):
    model, options = tmp_path / "model.safetensors", ("--half", "--eight-bits")
    save(build_upscaler(hidden=32), model, provenance={"licence": "CC0-1.0"})
    half, eight, copy = (tmp_path / f"{name}.safetensors" for name in ("half", "eight", "copy"))
    for option, path in zip(options, (half, eight), strict=True):
        assert main(["convert", str(model), str(path), option, "--set", "temperature=0.5"]) == 0
    assert eight.stat().st_size < half.stat().st_size < 0.7 * model.stat().st_size
    assert half.stat().st_mode & 0o044
    assert flowcore.load(half).provenance == flowcore.load(model).provenance
    assert UpscaleSettings().resolved(flowcore.load(eight)).temperature == 0.5
    lr = torch.rand(1, 3, 8, 8)
    exact, *stored = (upscale(flowcore.load(path), lr, temperature=0.8) for path in (model, half, eight))
    assert (stored[0] - exact).abs().max() <= 1 / 255
    assert 0 < (stored[1] - exact).abs().max() < 4 / 255
    assert main(["convert", str(eight), str(copy), "--set", "temperature=0.6"]) == 0  # ours stay as they are
    assert abs(copy.stat().st_size - eight.stat().st_size) <= 8
    assert main(["convert", str(model), str(copy), *options]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_sample_and_interpolate(small_glow, tmp_path):
    out, film, flow = tmp_path / "out", tmp_path / "film", flowcore.load(small_glow)
    words = ["sample", "--model", small_glow, "--out", out, "--samples", 2, "--seed", 5]
    assert run(*words, "--temperature", 0.2) == 0
    assert names(out) == ["small-glow_tau0.2_seed5.png", "small-glow_tau0.2_seed6.png"]
    near(out / names(out)[1], flowcore.sample(flow, 2, temperature=0.2, seed=5, snapped=True)[1])
    (entry,) = read_provenance(out / names(out)[1])
    assert (entry.node, entry.seed, entry.samples, entry.temperature) == ("FlowcoreSample", 5, 2, 0.2)
    assert entry.model == small_glow.name  # without its folder
    assert (entry.model_sha256, entry.version) == (model_sha256(flow), flowcore.__version__)
    assert entry.seed_of(picture_fingerprint(pixels(out / names(out)[1]))) == 6
    assert run(*words, "--size", 32, 8) == 0
    assert pixels(out / "small-glow_32x8_tau0.7_seed5.png").shape == (3, 32, 8)

    a, b = (photograph(tmp_path / "in" / f"{name}.png", (16, 16), seed=k) for k, name in enumerate("ab"))
    assert run("interpolate", a, b, "--model", small_glow, "--out", film, "--frames", 0) == 2
    assert run("interpolate", a, b, "--model", small_glow, "--out", film, "--frames", 3) == 0
    assert names(film) == [f"a_b_small-glow_slerp_00{k}.png" for k in range(3)]
    first, middle, last = (pixels(film / name) for name in names(film))
    assert torch.equal(first, pixels(a))
    assert torch.equal(last, pixels(b))
    assert not torch.equal(middle, last)
    assert read_provenance(film / names(film)[1])[0].settings == {"mode": "slerp", "frames": 3}


def test_score_ranks_images(small_glow, tmp_path, capsys):
    flat, noise, numbers = tmp_path / "flat.png", tmp_path / "noise.png", tmp_path / "numbers.json"
    Image.new("RGB", (16, 16), (120, 120, 120)).save(flat)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(noise)
    assert run("score", noise, flat, "--model", small_glow, "--json", numbers) == 0
    noise_row, flat_row = json.loads(numbers.read_text())  # by their complexity-corrected bits, as the node
    assert [noise_row["image"], flat_row["image"]] == [str(noise), str(flat)]
    assert noise_row["complexity_corrected"] < flat_row["complexity_corrected"]
    assert noise_row["bits_per_dim"] > flat_row["bits_per_dim"]
    assert sum(flat_row["per_level"]) == pytest.approx(flat_row["bits_per_dim"])
    expected = flowcore.score(flowcore.load(small_glow), (pixels(flat)[None] * 255).round().byte())
    assert flat_row["bits_per_dim"] == pytest.approx(float(expected.bits_per_dim))
    shown = capsys.readouterr().out
    assert f"| {flat} | {flat_row['bits_per_dim']:.4f} |  |" in shown
    assert " | 8 | 16x16 | all of 16x16. |" in shown
    assert run("score", noise, flat, "--model", small_glow, "--quiet", "--json") == 0  # without a file, to stdout
    told = capsys.readouterr()
    assert json.loads(told.out) == [noise_row, flat_row]
    assert told.err == ""


def test_score_does_not_rank_what_it_enlarged_and_prints_the_spread(small_glow, tmp_path, capsys):
    large, dot = photograph(tmp_path / "large.png", (40, 40)), photograph(tmp_path / "dot.png", (1, 1))
    for _ in range(2):  # the second time from the table
        assert run("score", dot, large, "--model", small_glow, "--samples", 3, "-o", tmp_path / "scores.csv") == 0
        (first, last) = capsys.readouterr().out.splitlines()[2:]
        assert first.startswith(f"| {large} |")
        assert re.fullmatch(r"\d\.\d{4}", first.split(" | ")[2])
        assert "of 1x1, enlarged so that it covers 16x16, and not ranked." in last


def test_score_reports_what_it_scored_and_how_it_fitted(small_glow, small_colorizer, model, tmp_path, capsys):
    photo = photograph(tmp_path / "a.png", (40, 48))

    def scored(*words):
        assert run("score", photo, "--model", *words) == 0
        cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
        return float(cells[1]), cells[-1].removesuffix(" |")

    resized, cropped = scored(small_glow), scored(small_glow, "--fit", "crop")
    assert resized[1] == "16x16 pixels in the middle of 40x48, resized so that it covers 16x16."
    assert cropped[1].endswith(" pixels in the middle of 40x48.") or cropped[1] == "all of 40x48."
    assert resized[0] != cropped[0]
    upscaler, hr = flowcore.load(model), pixels(photo)[None]
    lr = flowcore.images.resize.downsample(hr, upscaler.condition_scale).clamp(0, 1)
    expected = flowcore.score(upscaler, (hr * 255).round().byte(), upscaler.encode_condition(lr))
    assert scored(model) == (pytest.approx(float(expected.bits_per_dim), abs=1e-4), "all of 40x48.")
    assert re.fullmatch(r"the chroma of 40x48, shrunk to \d+x\d+, given its luma\.", scored(small_colorizer)[1])


def test_styles_are_measured_and_used(model_files, tmp_path, capsys, stderr_of):
    folder, styled, out = write_mnist(tmp_path / "digits", 60), tmp_path / "styled.safetensors", tmp_path / "out"
    assert main(["styles", str(model_files["digits"]), str(styled), "--data", str(folder)]) == 0
    assert list(flowcore.load(styled).styles) == ["bold", "wide", "slanted", "messy"]
    words = ["sample", "--model", styled, "--out", out, "--labels", 2, "--samples", 2]
    assert run(*words) == 0
    assert run(*words, "--style", "bold=2") == 0
    bold, as_drawn = (pixels(out / f"styled{style}_tau0.7_label2_seed1.png") for style in ("_bold2", ""))
    assert not torch.equal(bold, as_drawn)
    assert "bold" in stderr_of(*words, "--style", "curly=2")  # names those that there are
    for style in ("bold=abc", "bold=nan", "bold=1e9"):
        assert "The strength of style bold must lie in [-100, 100]" in stderr_of(*words, "--style", style)
    assert "Expected --style NAME=STRENGTH" in stderr_of(*words, "--style", "bold")
    assert run("eval", folder, "--model", styled) == 0
    assert "| digits | 30 |" in capsys.readouterr().out


def test_errors_are_one_sentence_and_an_exit_code(model, tmp_path, capsys):
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a model")
    empty = tmp_path / "a.png"
    empty.write_bytes(b"")
    for words, said in (
        (["inspect", junk], "flowcore: "),
        (["upscale", "x.png", "--model", junk], "flowcore: "),
        (["train", "no", "--data", "."], "flowcore: "),
        (["train", "srflow-x4", "--data", tmp_path, "--minutes", 0], "(--minutes) must be a finite number above 0"),
        (["upscale", "x.png", "--model", junk, "--set", "stacked_blocks"], "FIELD=VALUE"),
        (["faces", "x.png", "--factor", "nan"], "argument --factor: must be a finite number >= 0; got nan"),
        (["sample", "--model", "glow-photos", "--size", 10**30], "in [1, 65536]; got 1"),
        (["sample", "--model", model], "sample needs"),  # before it asks for a size
        (["colorize", "a.png", "--model", junk], "needs an output"),
        (["score", "x.png", "--model", model, "--samples", 10**30], f"in [1, {MAX_DRAWS}]; got 1{30 * '0'}."),
        (["upscale", empty, "-o", tmp_path / "out"], "flowcore: Cannot read a.png as an image: it is empty.\n"),
        (["train", "srflow-x4", "--data", tmp_path, "--device", "cudda"], "There is no device 'cudda' here."),
    ):
        assert main([*map(str, words)]) == (1 if words[0] == "inspect" or empty in words else 2)
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error


def test_a_training_that_is_refused_leaves_no_folder(tmp_path, capsys):
    photograph(tmp_path / "data" / "small.png", (40, 40))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.replace('"float32"', '"float32"\npyramid = [0.5]'))
    assert run("train", recipe, "--data", tmp_path / "data", "--run", tmp_path / "run") == 1
    assert "recipe's pyramid has shrunk it: that takes 64 pixels. Use larger" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_then_eval(tmp_path, capsys):
    for k in range(3):
        photograph(tmp_path / "data" / f"{k}.png", (64, 48), seed=k)
    recipe, folder, numbers = tmp_path / "tiny.toml", tmp_path / "run", tmp_path / "numbers.json"
    recipe.write_text(RECIPE)
    assert run("train", recipe, "--data", tmp_path / "data", "--run", folder) == 0
    assert "bits/dim" in (folder / "log.txt").read_text()
    assert len(list((folder / "sheets").glob("*.png"))) == 2
    assert flowcore.load(folder / "model.safetensors").provenance["steps"] == 4
    words = ["eval", tmp_path / "data", "--model", folder / "model.safetensors", "--samples", 2, "--json", numbers]
    assert run(*words) == 0
    assert "| data | bicubic |" in capsys.readouterr().out
    rows = json.loads(numbers.read_text())["data"]
    assert list(rows) == ["bicubic", "tau 0", "tau 0.8", "original"]
    assert rows["tau 0"]["diversity"] == 0 < rows["tau 0.8"]["diversity"]
    assert rows["bicubic"]["psnr"] > 25  # smooth pictures


def test_colorize_samples(small_colorizer, tmp_path, capsys, stderr_of):
    image, out = photograph(tmp_path / "in" / "old.png", (40, 28), mode="LA"), tmp_path / "out"
    words = ["--model", small_colorizer, "--samples", 2, "--seed", 3, "--temperature", 0.5]
    assert run("colorize", image, out, *words) == 0
    assert names(out) == [f"old_small-colorizer_color_tau0.5_detail0.3_seed{seed}.png" for seed in (3, 4)]
    scan = files.read(image.read_bytes(), "old.png").pixels
    gray, alpha = scan[:, :1], scan[0, 3:]
    expected = colorize(flowcore.load(small_colorizer), scan, temperature=0.5, seed=3, samples=2)
    for name, picture in zip(names(out), expected, strict=True):
        near(out / name, picture)
        assert torch.equal(files.read((out / name).read_bytes(), name).pixels[0, 3:], alpha)
        red, green, blue = (pixels(out / name) * 255).double()
        assert torch.equal((0.299 * red + 0.587 * green + 0.114 * blue).round(), (gray[0, 0] * 255).round().double())
    assert "in color" not in capsys.readouterr().err
    assert "alpha" in stderr_of("colorize", image, tmp_path / "x.jpg", *words, code=1)


def test_new_defaults_in_a_file_make_new_results(small_colorizer, tmp_path, stderr_of):
    image, target, model = (tmp_path / name for name in ("old.png", "out.png", "own.safetensors"))
    photograph(image, (40, 28))
    reconfigure(small_colorizer, model, {"saturation": 1.0})
    words = ["colorize", image, target, "--model", model]
    assert run(*words) == 0
    for stated in ({"saturation": 0.0}, {"coherence": 0.7}, {"coherence_scales": [0.5, 2.0]}):
        reconfigure(model, model, stated)
        assert "with other settings" in stderr_of(*words, code=1)
        assert run(*words, "--again") == 0
        (entry,) = read_provenance(target)
        assert all(entry.settings[name] == value for name, value in stated.items() if name != "coherence_scales")
        assert "were there already" in stderr_of(*words, code=0)
    assert (pixels(target) - pixels(target)[:1]).abs().max() == 0  # saturation 0 is gray


def test_colorize_keeps_the_best_samples(small_colorizer, tmp_path, capsys, stderr_of):
    image, out, single = photograph(tmp_path / "in" / "old.png", (40, 28)), tmp_path / "out", tmp_path / "one.png"
    words = ["--model", small_colorizer, "--samples", 5, "--seed", 3]
    flow, scan = flowcore.load(small_colorizer), pixels(image)[None]
    every = colorize(flow, scan, seed=3, samples=5)
    for by in ("consensus", "likelihood"):
        assert run("colorize", image, out, *words, "--keep", 2, "--by", by, "--again") == 0
        assert names(out) == [f"old_small-colorizer_color_tau0.9_detail0.3_seeds3-7_best{k}.png" for k in (1, 2)]
        order = ranked(every, scan, by, flow)[1][0, :2].tolist()
        for name, number in zip(names(out), order, strict=True):
            near(out / name, every[number])
            entry = read_provenance(out / name)[-1]
            assert entry.seed_of(picture_fingerprint(every[number], 8)) == 3 + number
        assert f"seed {', '.join(str(3 + number) for number in order)}" in capsys.readouterr().err
    assert "were there already" in stderr_of("colorize", image, out, *words, "--keep", 2, "--by", "likelihood", code=0)
    assert run("colorize", image, single, *words, "--keep", 1) == 0
    near(single, every[ranked(every, scan, "consensus")[1][0, 0]])
    for wrong, said in (
        (["--keep", 6], "--samples"),
        (["--keep", 0], "whole number >= 1; got 0"),
        (["--by", "likelihood"], "N"),
    ):
        assert said in stderr_of("colorize", image, out, *words, *wrong)


def test_colorize_with_colors(small_colorizer, tmp_path, stderr_of):
    Image.new("L", (40, 28), 128).save(tmp_path / "grey.png")
    reference = photograph(tmp_path / "reference.png", (36, 30), seed=5)
    flow, gray, target = flowcore.load(small_colorizer), torch.full((1, 3, 28, 40), 128 / 255), tmp_path / "out.png"
    words = ["colorize", tmp_path / "grey.png", target, "--model", small_colorizer, "--again"]
    assert run(*words) == 0
    free = pixels(target)

    assert run(*words, "--hint", "10,9,#a08060", "--hint", "30, 20, #6080a0", "--lock", "--radius", 3) == 0
    points = [(10, 9, "#a08060"), (30, 20, "#6080a0")]
    near(target, colorize(flow, gray, hints=hints_from_points(points, (28, 40), radius=3, lock=True))[0])
    red, green, blue = pixels(target)[:, 9, 10]
    assert red > green > blue
    red, green, blue = pixels(target)[:, 20, 30]
    assert red < green < blue

    assert run(*words, "--palette", "#c08040", "--palette", "#806040") == 0
    assert not torch.equal(pixels(target), free)
    assert run(*words, "--reference", reference, "--strength", 0.5) == 0
    near(target, transfer_palette(flow, gray, pixels(reference)[None], strength=0.5)[0])

    for wrong, said in (
        (["--hint", "10,9"], "x, y, #rrggbb"),
        (["--palette", "red"], "such as #e0b080; got 'red'"),
        (["--strength", 0.5], "--reference"),
        (["--lock"], "--hint"),
    ):
        assert said in stderr_of(*words, *wrong)


def test_eval_of_several_colorizers_and_sets(small_colorizer, tmp_path, capsys, small_glow, stderr_of):
    mine, single = str(small_colorizer), str(write_colorizer(tmp_path / "single.safetensors", structure="single"))
    for k in range(3):
        photograph(tmp_path / "sets" / ("a" if k else "b") / f"{k}.png", (40, 28), seed=k)
    a, b, numbers = tmp_path / "sets" / "a", tmp_path / "sets" / "b", tmp_path / "numbers.json"

    def rows(*words):
        assert run("eval", *words, "--json", numbers) == 0
        return json.loads(numbers.read_text())

    both = rows(a, b, "--samples", 3, "--model", mine, "--model", single)
    assert {name: list(by_model) for name, by_model in both.items()} == {"a": [mine, single], "b": [mine, single]}
    assert (both["a"][single]["images"], both["a"][single]["samples"]) == (2, 3)
    assert both["a"][single]["coherence"] != both["a"][mine]["coherence"]
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 4

    one = [a, "--samples", 3, "--model", mine, "--limit", 1]
    default = rows(*one)["a"][mine]
    assert default["images"] == 1
    by_tau = rows(*one, "--temperature", 0.5, "--temperature", 0.9, "--detail", 0.3)["a"]
    assert list(by_tau) == [f"{mine}, tau 0.5", f"{mine}, tau 0.9"]
    assert by_tau[f"{mine}, tau 0.9"] == default  # these are what it was made for
    assert by_tau[f"{mine}, tau 0.5"]["diversity"] < default["diversity"]
    for asked in (["--detail", 0.9], ["--working-size", 64]):
        assert rows(*one, *asked)["a"][mine]["rmse"] != default["rmse"], asked
    assert 0 <= rows(b, "--portraits", "--samples", 3, "--model", mine)["b"][mine]["skin_outside"] <= 1
    (pooled,) = rows(a, b, "--samples", 3, "--together", "--model", mine).items()
    assert (pooled[0], pooled[1][mine]["images"]) == ("a + b", 3)

    capsys.readouterr()
    coloring = ["--portraits"], ["--detail", 0.5], ["--coherence", 0], ["--working-size", 64]
    for words in (*coloring, ["--temperature", 0.5], ["--limit", 0]):
        assert words[0] in stderr_of("eval", b, "--model", small_glow, *words)
    assert "one kind" in stderr_of("eval", b, "--model", small_glow, "--model", mine)
    assert run("eval", a, "--model", small_glow, "--model", small_glow) == 0
    table = capsys.readouterr().out
    assert "| a | 2 |" in table  # one model given twice is one
    assert "compare" not in table


def test_eval_compares_models_that_stand_before_the_folder(small_colorizer, tmp_path, capsys, stderr_of):
    other = write_colorizer(tmp_path / "other.safetensors", structure="single")
    photograph(tmp_path / "set" / "0.png", (40, 28), seed=0)
    assert run("eval", small_colorizer, other, tmp_path / "set", "--samples", 2) == 0
    table = capsys.readouterr().out
    assert all(f"| set | 1 | {model} |" in table for model in (small_colorizer, other))
    assert "srflow-4x is neither a folder of images, nor a model file" in stderr_of("eval", "srflow-4x", tmp_path)
    assert "no folder of images" in stderr_of("eval", small_colorizer, "srflow-x4")


STOPPED = FlowError("Stopped after 3 of 9 images were decoded.")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, None), (signal.SIGTERM, STOPPED)])
def test_interrupted_training_exits_with_130(number, error, tmp_path, monkeypatch):
    def train(*words, cancelled, **options):
        assert not cancelled()
        os.kill(os.getpid(), number)
        assert cancelled()
        if error is not None:
            raise error

    monkeypatch.setattr("flowcore.training.loop.train", train)
    assert run("train", "srflow-x4", "--data", tmp_path, "--run", tmp_path) == 130


def test_training_takes_shipped_models_by_name(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr("flowcore.training.loop.train", lambda *words, **options: taken.append(options))
    for option in ("start", "encoder_from"):
        for name, file in (("srflow-x4", catalog.path("srflow-x4")), ("mine.x", Path("mine.x"))):
            assert run("train", "srflow-x4", "--data", tmp_path, f"--{option.replace('_', '-')}", name) == 0
            assert taken.pop()[option] == file


def test_brighten_writes_exposures_and_what_made_them(tmp_path, model_files):
    photo, out = photograph(tmp_path / "a.png", (21, 13)), tmp_path / "out"
    words = ["brighten", photo, "-o", out, "--model", model_files["night"]]
    assert run(*words, "--strength", 0.5) == 0
    assert run(*words, "--temperature", 0.5, "--samples", 2, "--seed", 7) == 0
    assert names(out) == [f"a_night_light_tau{end}.png" for end in ("0.5_seed7", "0.5_seed8", "0_strength0.5_seed0")]
    (entry,) = read_provenance(out / names(out)[1])
    assert (entry.node, entry.architecture, entry.temperature) == ("FlowcoreBrighten", "llflow", 0.5)
    flow = flowcore.load(model_files["night"])
    near(out / names(out)[1], flowcore.brighten(flow, pixels(photo)[None], temperature=0.5, seed=8)[0])


def test_repair_draws_what_a_mask_covers(tmp_path, model):
    photo, out = photograph(tmp_path / "a.png", (40, 32)), tmp_path / "out"
    covered = torch.zeros(1, 1, 32, 40)
    covered[..., 12:15, 10:30] = 1
    Image.fromarray((255 * covered[0, 0]).byte().numpy()).save(tmp_path / "mask.png")
    assert run("repair", photo, "-o", out, "--model", model, "--mask", tmp_path / "mask.png") == 0
    (name,) = names(out)
    near(out / name, flowcore.repair(flowcore.load(model), pixels(photo)[None], mask=covered)[0])
    assert [entry.node for entry in read_provenance(out / name)] == ["FlowcoreRepair"]


def test_a_guide_strength_without_a_guide_is_in_neither_name_nor_recipe(model, tmp_path, capsys):
    photo, out = photograph(tmp_path / "a.png", (12, 8)), tmp_path / "out"
    assert run("upscale", photo, "-o", out, "--model", model, "--guide-strength", 0.5) == 0
    assert "guide_strength is ignored: there is no guide." in capsys.readouterr().err
    (name,) = names(out)
    assert "guided" not in name
    assert "guide_strength" not in read_provenance(out / name)[0].settings


def test_warnings_of_pillow_are_not_shown(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # above twice as many it refuses
    photo = photograph(tmp_path / "a.png", (10, 7))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run("upscale", photo, "--model", model, "-o", tmp_path / "out") == 0
    assert not caught


def test_a_guide_is_one_file_or_that_of_each_name_and_part_of_what_identifies_a_result(tmp_path, capsys, stderr_of):
    model, photos, guides = tmp_path / "own.safetensors", tmp_path / "photos", tmp_path / "guides"
    save(flow := build_upscaler(), model)
    photograph(photos / "a.png", (10, 7))
    photograph(photos / "b.png", (10, 7), seed=1)
    guide = photograph(guides / "a.jpg", (40, 28), seed=2)
    words = ["upscale", photos, "-o", tmp_path / "out", "--model", model, "--guide-strength", 0.6, "--guide"]
    assert run(*words, guide) == 0
    (entry,) = read_provenance(made := tmp_path / "out" / "a_own_tau0.8_guided0.6_seed0.png")
    lr, shown = (files.read(path.read_bytes(), "a picture").pixels for path in (photos / "a.png", guide))
    near(made, flowcore.upscale(flow, lr, guide=shown, guide_strength=0.6)[0])
    assert entry.settings["guide_strength"] == 0.6
    assert entry.sources["guide"] == describe(shown)
    before = made.read_bytes()
    assert run(*words, guide) == 0
    assert run(*words, photograph(tmp_path / "other.png", (40, 28), seed=3)) == 1
    assert "made by another model, with other settings or from another picture" in capsys.readouterr().err
    assert made.read_bytes() == before
    assert "Expected one guide named b" in stderr_of(*words, guides, code=3)
