"""Batches of pictures through the command line: resume, metadata, failures, clips, and tables of scores."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageCms

import flowcore
from flowcore import FlowError, save, upscale
from flowcore.batch import folders
from flowcore.batch.folders import Job, Outputs, claim
from flowcore.batch.job import JobSpec
from flowcore.batch.provenance import picture_fingerprint
from flowcore.batch.provenance import read as read_provenance
from flowcore.batch.tables import WHOLE_NUMBERS, Scores
from flowcore.cli.main import main
from flowcore.images import files
from flowcore.images.folders import image_files, walk_files
from flowcore.models.identity import model_sha256
from flowcore.models.writing import SavingError
from flowcore.training.image_sources import find_images

from .colorings import tiny_colorizer
from .commands import StoppedAfter, contents, names, photograph, pixels, run

NAMES = ["a2.png", "a10.png", "deep/b.png", "deep/er/c.png"]


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(NAMES):
        photograph(tmp_path / "in" / name, (8 + k, 6), seed=k)
    return tmp_path / "in"


def stamps(out):
    return {name: (out / name).stat().st_mtime_ns for name in contents(out)}


def test_folder_keeps_its_structure_and_resumes(model, folder, tmp_path, capsys, stderr_of):
    out = tmp_path / "in" / "out"  # which is not searched
    words = ["upscale", folder, "-o", out, "--model", model]
    (folder / "bad.jpg").write_bytes(b"nothing")
    assert run(*words) == 3
    said = capsys.readouterr().err
    assert f"1 of 5 images could not be done:\n  {folder / 'bad.jpg'}: Cannot read bad.jpg" in said
    assert said.index("a2.png") < said.index("a10.png") < said.index("b.png")
    made = [str(Path(name).with_suffix("")) + "_tiny_tau0.8_seed0.png" for name in NAMES]
    before, stamped = contents(out), stamps(out)
    assert sorted(before) == sorted(made)

    (folder / "bad.jpg").unlink()
    (out / made[0]).unlink()
    (out / f".{made[0]}.999999999.partial").write_bytes(b"half")  # of a run that was killed
    assert "3 of 4 were there already" in stderr_of(*words, code=0)
    after = stamps(out)
    assert [name for name in made if after[name] != stamped[name]] == made[:1]
    assert run(*words, "--again") == 0  # all of them, and the same
    assert all(stamped[name] != stamps(out)[name] for name in made)
    assert {name: contents(out)[name] for name in made} == before


def test_metadata_is_kept(model, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[271], exif[0x0112] = "Maker", 6
    picture, photo = Image.open(photograph(tmp_path / "made.png", (12, 7))), tmp_path / "photo.jpg"
    picture.save(photo, exif=exif, icc_profile=profile, dpi=(240, 240), xmp=b"<x:xmpmeta/>")
    expected = upscale(flowcore.load(model), files.read(photo.read_bytes(), "x").pixels, temperature=0)
    words = ["upscale", photo, "--model", model, "--temperature", 0]
    for format, bits in (("png", 8), ("png", 16), ("tiff", 16), ("jpeg", 8), ("webp", 8)):
        file = tmp_path / f"{bits}{files.SUFFIXES[format]}"
        assert run(*words, "-o", file, "--format", format, "--bits", bits) == 0
        came = files.read(file.read_bytes(), file.name)
        assert came.pixels.shape == (1, 3, 48, 28)  # it stands upright
        assert (came.metadata.icc, came.metadata.xmp) == (profile, b"<x:xmpmeta/>")
        assert came.metadata.dpi == pytest.approx((240, 240), rel=1e-3)
        assert came.metadata.exif[271] == "Maker"
        close = {"png": 0.51, "tiff": 0.51, "jpeg": 20, "webp": 60}[format] / (2**bits - 1)
        assert (came.pixels - expected).abs().max() <= close


def test_lost_frames_and_profiles_are_named_with_their_picture(model, small_colorizer, tmp_path, capsys):
    frames, profile = [Image.new("L", (8, 6), k) for k in (50, 90)], ImageCms.createProfile("sRGB")
    gray = ImageCms.ImageCmsProfile(profile).tobytes()
    gray = gray[:16] + b"GRAY" + gray[20:]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:], icc_profile=gray)
    for command, path in (("upscale", model), ("colorize", small_colorizer)):
        out = tmp_path / f"{command}.png"
        assert run(command, tmp_path / "scan.tif", "-o", out, "--model", path) == 0
        said = capsys.readouterr().err
        assert "scan.tif: It has 2 frames or pages; only the first is used." in said
        kept = files.read(out.read_bytes(), "x").metadata.icc == gray
        assert kept == (command == "upscale") == ("gray color profile does not fit" not in said)
        assert "Frames or pages of a file that were left out: 1." in said


def test_16_bits_stay_16_bits_where_the_format_can(model, tmp_path, capsys):
    image = tmp_path / "deep.png"
    image.write_bytes(files.encode(torch.rand(3, 6, 8), bits=16))
    for end, wanted in ((["a.png"], 16), (["a.tif"], 16), (["a.webp"], 8), (["b.png", "--bits", "8"], 8)):
        target = tmp_path / end[0]
        for _ in range(2):  # the second time it is there already
            assert run("upscale", image, "--model", model, "-o", target, *end[1:]) == 0
        assert files.bits_per_channel(target) == files.read(target.read_bytes(), "x").bits == wanted
    assert picture_fingerprint(pixels(tmp_path / "a.png")) in read_provenance(tmp_path / "a.png")[0].pictures
    said = capsys.readouterr().err
    assert said.count("deep.png: It has 16 bits per channel, and its result has 8.") == 1
    assert said.count("bits per channel") == 1
    assert said.count("were there already") == 4


def test_png_has_provenance(model, folder, tmp_path, capsys):
    words = ["upscale", folder / "a2.png", "-o", tmp_path, "--model", model, "--samples", 2]
    assert run(*words, "--seed", 7) == 0
    file = tmp_path / "a2_tiny_tau0.8_seed8.png"
    (recipe,) = read_provenance(file)
    assert (recipe.temperature, recipe.seed, recipe.samples) == (0.8, 7, 2)
    assert recipe.seed_of(picture_fingerprint(pixels(file))) == 8
    capsys.readouterr()
    assert main(["inspect", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model_sha256"] == recipe.model_sha256
    Image.new("RGB", (4, 4)).save(folder / "photo.WEBP")
    for name, said in (("a2.png", "holds no recipe"), ("photo.WEBP", "Only PNG and EXR files hold what made them")):
        assert main(["inspect", str(folder / name)]) == 1
        assert said in capsys.readouterr().err


def test_patterns_and_name_collisions(folder, tmp_path):
    def inside(*words):
        return [str(file.relative) for file in folders.list_inputs(list(words))]

    assert inside(f"{folder}/*.png") == ["a2.png", "a10.png"]
    assert inside(f"{folder}/**/*.png") == ["a2.png", "a10.png", "deep/b.png", "deep/er/c.png"]
    assert inside(f"{folder}/de*/*.png", f"{folder}/deep/b.png") == ["deep/b.png"]
    assert inside(str(folder / "deep" / "er"), str(folder / "a2.png")) == ["c.png", "a2.png"]
    photograph(folder / "x[1].png", (4, 4))
    assert inside(f"{folder}/x[1].png") == ["x[1].png"]
    beside = folders.list_inputs([str(folder)], folder.parent)  # where results go
    assert len(beside) == len(folders.list_inputs([str(folder)]))
    (tmp_path / "empty").mkdir()
    for message, *arguments in (
        ("Nothing matches", [f"{folder}/*.tif"]),
        ("No images in", [str(tmp_path / "empty")]),
        ("Choose another folder", [str(folder)], folder),
    ):
        with pytest.raises(FlowError, match=message):
            folders.list_inputs(*arguments)

    def targets(*words):
        made = folders.make_jobs(
            folders.list_inputs(list(words)), Path("out"), lambda path, kind: [f"{path.name}_new.png"]
        )
        return [str(job.targets[0]) for job in made]

    photograph(folder / "other" / "b.png", (4, 4))
    named = targets(f"{folder}/deep/b.png", f"{folder}/other/b.png", f"{folder}/a10.png")
    assert named == ["out/deep/b.png_new.png", "out/other/b.png_new.png", "out/a10.png_new.png"]
    with pytest.raises(FlowError, match="would overwrite"):
        folders.make_jobs(folders.list_inputs([f"{folder}/a10.png"]), folder, lambda path, kind: [path.name])


def test_names_depend_on_the_picture_alone_and_keep_sequences(model, tmp_path, capsys):
    for name in ("same.png", "same.jpg", "same.JPEG", "shot.v01.0001.png", "shot.v01.0002.png", "v1.2.png"):
        photograph(tmp_path / "in" / name, (4, 4 if name.endswith(".png") else len(name)))

    def made(out, *options, code=0):
        assert run("upscale", tmp_path / "in", "--model", model, "-o", tmp_path / out, *options) == code
        return sorted(contents(tmp_path / out))

    assert made("a") == [
        *(f"same_{kind}_tiny_tau0.8_seed0.png" for kind in ("JPEG", "jpg", "png")),
        *("shot.v01_tiny_tau0.8_seed0.0001.png", "shot.v01_tiny_tau0.8_seed0.0002.png"),
        "v1.2_tiny_tau0.8_seed0.png",
    ]
    (tmp_path / "in" / "same.png").unlink()
    (tmp_path / "in" / "same.JPEG").unlink()
    before = stamps(tmp_path / "a")
    assert made("a") == sorted([*before, "same_tiny_tau0.8_seed0.png"])  # there is no other of this name
    assert {name: stamps(tmp_path / "a")[name] for name in before} == before
    assert made("b", "--name", "{base}-{suffix}_{model}{sample}{frame}") == [
        *("same-jpg_tiny.png", "shot.v01-png_tiny.0001.png", "shot.v01-png_tiny.0002.png", "v1.2-png_tiny.png")
    ]
    several = ["--samples", "2", "--seed", "5"]
    assert made("c", "--name", "{stem}{sample}.png", *several)[:2] == ["same_seed5.png", "same_seed6.png"]
    capsys.readouterr()
    for options, said in (
        (["--name", "{stem}_{what}"], "--name may hold {stem}, {base}, {frame}"),
        *((["--name", f"{{stem{more}}}"], "written just so") for more in (".__class__", "[0]", "!r", ":>99999999")),
        (["--name", "{stem"], "written just so"),
        (["--name", "{}"], "written just so"),
        (["--name", "{stem}", *several], "2 results of an image would have one name. Add {sample}"),
        (["--name", "{model}"], "have the same names as those of"),
    ):
        made("d", *options, code=3 if "{model}" in options else 2)
        assert said in capsys.readouterr().err
    image = tmp_path / "in" / "same.jpg"
    assert run("upscale", image, "--model", model, "-o", tmp_path / "x.png", "--name", "{stem}") == 2
    assert "--name names results in a folder" in capsys.readouterr().err


def test_links_are_followed_named_or_counted(model, folder, tmp_path, capsys):
    photograph(tmp_path / "elsewhere" / "e.png", (4, 4))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "to").symlink_to(folder)  # a loop through two links
    (folder / "deep" / "up").symlink_to("..")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "lost").symlink_to("nowhere")
    for word in (str(folder), f"{folder}/**/*"):
        said = []
        found = {str(one.relative) for one in folders.list_inputs([word], notify=said.append)}
        assert found == {*NAMES, "gone.png", "linked/e.png"}
        (line,) = said
        assert "a broken link" in line
        assert "a link that leads back" in line
    assert run("upscale", folder, "-o", tmp_path / "out", "--model", model) == 3
    assert "gone.png: Cannot read gone.png as an image: No such file" in capsys.readouterr().err
    assert len(contents(tmp_path / "out")) == 5


def test_results_are_lines_of_stdout_for_scripts(model, folder, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"nothing")
    words = ["upscale", folder, "-o", tmp_path / "out", "--model", model]
    for _ in range(2):  # those that are there already, too
        assert run(*words) == 3
        lines = capsys.readouterr().out.splitlines()
        assert sorted(lines) == sorted(str(tmp_path / "out" / name) for name in contents(tmp_path / "out"))
    assert run(*words, "--json", "--quiet") == 3
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    keys = ["input", "outputs", "seeds", "model", "model_sha256", "seconds", "notes", "error"]
    assert all(list(row) == keys for row in rows)
    assert shown.err.startswith("flowcore: 1 of 5 images could not be done:")


def test_an_image_that_takes_too_long_is_skipped(model, folder, tmp_path, stderr_of):
    words = ["upscale", folder, "-o", tmp_path / "out", "--model", model, "--time-limit"]
    assert "a2.png: It took longer than --time-limit, 0 s." in stderr_of(*words, 0, code=1)
    assert contents(tmp_path / "out") == {}
    assert run(*words, 100) == 0


# A program whose process has the number of all others: in containers that share a folder, all are process 1.
CONTAINER = "import os, sys; os.getpid = lambda: 1; from flowcore.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_containers_share_a_folder(model, folder, tmp_path):
    for k in range(8):
        photograph(folder / f"more{k}.png", (60, 50), seed=k)
    out = tmp_path / "out"
    words = ["upscale", str(folder), "-o", str(out), "--model", str(model), "--device", "cpu"]
    program = [sys.executable, "-c", CONTAINER, *words, "--json"]
    started = [subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    rows = [[json.loads(line) for line in process.communicate(timeout=200)[0].splitlines()] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    made = [row["input"] for process in rows for row in process if row["seconds"] is not None]
    assert len(made) == len({*made}) == 12  # each once
    assert all(len(process) == 12 for process in rows)  # and both tell of all
    assert len((out / "manifest.csv").read_text().splitlines()) == 13
    assert not [*out.rglob(".*")]


def test_a_claim_lasts_until_its_process_ends_and_waiting_for_it_is_said(tmp_path):
    target, said = tmp_path / "a.png", []
    program = "import os, sys, time; os.getpid = lambda: {}; from flowcore.batch.folders import claim; "
    program += "from pathlib import Path; lock = claim(Path(sys.argv[1])); print(lock.is_locked, flush=True); "
    program += "time.sleep(60)"
    command = [sys.executable, "-c", program.format(os.getpid()), str(target)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    assert claim(target) is None

    def notify(line):
        said.append((line, target.exists()))
        other.kill()
        other.wait()

    job, done = Job(tmp_path / "in.png", (target,)), lambda job: target.exists()
    for _, state in folders.iter_pending([[job]], done, notify=notify):
        assert state == "pending"
        folders.save(job, Outputs([b"x"]))
    assert said == [("Waiting for 1 images that other processes are working on.", False)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_lock_file_of_a_killed_or_stopped_process_is_removed(tmp_path):
    job, lock = Job(tmp_path / "in.png", (tmp_path / "a.png",)), tmp_path / ".a.png.lock"
    lock.write_bytes(b"")
    assert [*folders.iter_pending([[job]], lambda job: True)] == [(job, "done")]
    assert not lock.exists()
    with pytest.raises(ZeroDivisionError):  # when it looks again, because the job is claimed
        next(folders.iter_pending([[job]], lambda _: 1 / 0 if lock.exists() else False))
    assert not lock.exists()


def test_files_that_are_not_read_are_counted(folder):
    for name in ("notes.txt", "scan.exr", "deep/LICENSE", ".hidden"):
        (folder / name).write_text("no picture")
    said = []
    assert len(folders.list_inputs([str(folder), f"{folder}/*"], notify=said.append)) == len(NAMES)
    assert said == [
        "Skipped 3 files that flowcore does not read (.exr, .txt, no suffix): LICENSE, notes.txt, scan.exr."
    ]


def test_what_a_folder_skips_is_in_the_manifest(model, folder, tmp_path, capsys):
    (folder / "notes.txt").write_text("no picture")
    if os.name != "nt":
        os.mkfifo(folder / "pipe.jpg")
    for _ in range(2):
        assert run("upscale", folder, "-o", tmp_path / "out", "--model", model) == (0 if os.name == "nt" else 3)
    rows = csv.DictReader((tmp_path / "out" / "manifest.csv").read_text().splitlines())
    notes = {Path(row["input"]).name: row["note"] for row in rows if not row["output"]}
    assert notes.pop("notes.txt") == "Skipped: .txt."
    assert os.name == "nt" or notes == {"pipe.jpg": "Cannot read pipe.jpg as an image: it is a pipe, not a file."}


def test_companions_of_macos_are_no_pictures(folder):
    (folder / "._a2.png").write_bytes(b"\0\5\x16\7")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.write(folder / "a2.png", "b.png")
        archive.writestr("._b.png", b"\0\5\x16\7")
    assert len(folders.list_inputs([str(folder)])) == len(NAMES)
    assert len(image_files(folder)) == len(find_images(folder)) == len(NAMES)
    assert [source.name for source in find_images(folder / "photos.zip")] == ["b.png"]


def test_a_folder_of_guides_is_listed_once_until_it_changes(tmp_path, monkeypatch):
    guides, listed = tmp_path / "guides", []
    for k in range(3):
        photograph(guides / f"{k}.png", (8, 6), seed=k)
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or listing(path))
    spec = JobSpec(command="upscale", model="x", guide=guides)
    for k in range(3):
        assert spec.guide_and_mask(f"{k}.jpg") == {"guide": (guides / f"{k}.png").read_bytes()}
    assert listed == [guides]
    photograph(guides / "3.PNG", (8, 6))
    os.utime(guides, ns=(0, 0))  # whatever the clock's steps are
    assert spec.guide_and_mask("3.jpg") == {"guide": (guides / "3.PNG").read_bytes()}
    (guides / "3.bmp").write_bytes(b"")
    with pytest.raises(FlowError, match=r"Expected one guide named 3 in .*; got 2"):
        spec.guide_and_mask("3.jpg")


def test_junctions_that_lead_back_are_not_followed(tmp_path, monkeypatch):
    """Of Windows; simulated by a link that is none for `islink` but has the mark of a junction."""
    (tmp_path / "a.txt").touch()
    (tmp_path / "back").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    look = os.lstat
    tagged = SimpleNamespace(st_reparse_tag=0xA0000003, st_mode=look(tmp_path / "back").st_mode)
    monkeypatch.setattr(os, "lstat", lambda path: tagged if Path(path).name == "back" else look(path))
    skipped = {}
    assert [path.name for path in walk_files(tmp_path, skipped)] == ["a.txt"]
    assert skipped == {tmp_path / "back": "a link that leads back"}


def test_unsaved_results_stop_the_run(model, folder, tmp_path, monkeypatch, stderr_of):
    saved = []

    def save(target, data):
        saved.append(target)
        raise SavingError("The disk is full.")

    monkeypatch.setattr(folders, "write_atomic", save)
    assert "The disk is full" in stderr_of("upscale", folder, "-o", tmp_path / "out", "--model", model, code=1)
    assert len(saved) == 1
    assert names(tmp_path / "out") == []


def clip_of(folder):
    return torch.cat([files.read(path.read_bytes(), "x").pixels for path in folder])


def test_clip_carries_colors_over(tmp_path, capsys, stderr_of):
    frames = [photograph(tmp_path / "clip" / f"f{k}.png", (24, 16), seed=k) for k in (1, 2, 9, 10, 11)]
    out, flow, model, clip = tmp_path / "out", tiny_colorizer(), tmp_path / "model.safetensors", clip_of(frames)
    save(flow, model)
    words = ["colorize", tmp_path / "clip", "-o", out, "--model", model]
    video = [*words, "--frames", "video", "--seed", 3, "--bits", 16, "--carry", 0.9]
    assert run(*video) == 0
    expected, alone = (flowcore.colorize_video(flow, clip, seed=3, carry=c) for c in (0.9, 0.0))
    came = clip_of(out / frame.name for frame in frames)
    assert (came - expected).abs().max() < 5e-4 < 2e-3 < (alone - expected).abs().max()
    before = contents(out)
    (out / "f10.png").unlink()
    for _ in range(2):
        capsys.readouterr()
        assert run(*video) == 0
        assert contents(out) == before
    assert "5 of 5 were there already" in capsys.readouterr().err
    video = ["--frames", "video"]
    wrong = {"--frames video": ["--carry", 0.5], "--samples": [*video, "--samples", 2], "--ray": [*video, "--ray"]}
    for option, arguments in wrong.items():
        assert option in stderr_of(*words, *arguments)


def test_frames_of_a_folder_are_enlarged_as_one_clip(model, tmp_path, stderr_of):
    frames = [photograph(tmp_path / "clip" / f"f{k}.png", (24, 16), seed=1) for k in (9, 10)]
    out = tmp_path / "out"
    words = ["upscale", tmp_path / "clip", "-o", out, "--steadiness", 0.9, "--model", model]
    expected = flowcore.upscale_video(flowcore.load(model), clip_of(frames), seed=3)
    for _ in range(2):
        assert run(*words, "--seed", 3) == 0
        assert (clip_of(out / frame.name for frame in frames) - expected).abs().max() < 1 / 255
        (out / "f10.png").unlink()
    for wrong in (["--samples", 2], ["--ray"]):
        assert wrong[0] in stderr_of(*words, *wrong)


def test_an_animated_image_is_enlarged_as_one_clip(model, tmp_path, stderr_of):
    clip = (torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    times = {"duration": [40, 80, 120], "loop": 0}
    (tmp_path / "a.webp").write_bytes(
        files.encode(clip[0], format="webp", quality=100, more_frames=clip[1:], times=times)
    )
    words = ["upscale", tmp_path / "a.webp", "-o", tmp_path / "b.png", "--model", model]
    assert "only the first is used" not in stderr_of(*words, "--steadiness", 0.8, code=0)
    expected = flowcore.upscale_video(flowcore.load(model), clip, steadiness=0.8)
    made = (tmp_path / "b.png").read_bytes()
    assert (files.read_frames(made, "b.png")[:, :3] - expected).abs().max() < 1 / 255
    assert files.frame_times(made) == times


@pytest.mark.parametrize("command", ["upscale", "colorize"])
def test_a_clip_that_was_stopped_goes_on_after_its_last_whole_frame(model_files, tmp_path, monkeypatch, command):
    for k in range(5):
        photograph(tmp_path / "clip" / f"f{k}.png", (16, 12), seed=k // 3)
    model, how = {
        "upscale": ("tiny", ["--steadiness", 0.9, "--temperature", 0.1]),
        "colorize": ("small-colorizer", ["--frames", "video", "--carry", 0.9, "--bits", 16]),
    }[command]
    words = [command, tmp_path / "clip", "--model", model_files[model], *how, "-o"]
    assert run(*words, tmp_path / "whole") == 0
    StoppedAfter(monkeypatch, 3)
    with pytest.raises(SystemExit):
        run(*words, tmp_path / "out")
    monkeypatch.undo()
    rest = StoppedAfter(monkeypatch)
    assert run(*words, tmp_path / "out") == 0
    # the state of the third was not written any more
    assert rest.saved == ["f2.png", "f3.png", "f4.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_clip_without_carried_colors_still_shares_those_of_its_first_frame(model_files, tmp_path):
    for k in range(3):
        photograph(tmp_path / "clip" / f"f{k}.png", (16, 12), seed=k)
    words = ["colorize", tmp_path / "clip", "-o", tmp_path / "out", "--model", model_files["small-colorizer"]]
    words += ["--frames", "video", "--carry", 0, "--coherence", 0.5, "--bits", 16]
    assert run(*words) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "f2.png").unlink()
    assert run(*words) == 0
    assert contents(tmp_path / "out") == before


def test_scores_are_a_resumable_table(small_glow, folder, tmp_path, capsys, stderr_of):
    table, other = tmp_path / "out" / "scores.csv", tmp_path / "other.csv"
    words = ["score", folder, "--model", small_glow, "-o"]

    def rows(code=0, there=0, *options):
        capsys.readouterr()
        assert run(*words, table.parent, *options) == code
        assert (f"{there} of 4 were there already" in capsys.readouterr().err) == bool(there)
        return list(csv.DictReader(table.read_text().splitlines()))

    (folder / "bad.png").write_bytes(b"nothing")
    first = rows(code=3)
    assert [Path(row["image"]).name for row in first] == ["a2.png", "a10.png", "bad.png", "b.png", "c.png"]
    assert first[2]["error"].startswith("Cannot read bad.png as an image: its contents are of none of the formats AVIF")
    (folder / "bad.png").unlink()
    expected = rows(there=4)
    assert {row["model_sha256"] for row in expected} == {model_sha256(flowcore.load(small_glow))}
    assert {(row["n_bits"], row["channels"], row["height"], row["width"]) for row in expected} == {
        ("8", "3", "16", "16")
    }
    assert "bad.png" not in table.read_text()
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:3]) + lines[3][:-20])  # killed while writing
    assert [row["bits_per_dim"] for row in rows(there=2)] == [row["bits_per_dim"] for row in expected]
    assert rows(0, 0, "--seed", "1") != expected
    other.write_text("a,b\n1,2\n")
    assert "exists and is not a table of scores" in stderr_of(*words, other)
    assert other.read_text() == "a,b\n1,2\n"


def test_two_runs_of_scores_in_one_table_keep_the_rows_of_both(tmp_path):
    tables = [Scores(tmp_path / "scores.csv") for _ in range(2)]
    known = {"bits_per_dim": 1.5, "complexity_corrected": None, "per_level": [], "notes": [], "spread": None}
    known |= {"id": "0" * 32, "enlarged": False, "model_sha256": "0" * 64} | dict.fromkeys(WHOLE_NUMBERS, 1)
    rows = [{**known, "image": name} for name in ("a", "b")]
    for table, row in zip(tables, rows, strict=True):
        table.append(row)
    for table, row in zip(tables, rows, strict=True):
        table.finish([row])
    assert {*Scores(tmp_path / "scores.csv").rows} == {"a", "b"}


def test_a_row_of_scores_that_was_cut_off_anywhere_is_no_row_and_harms_no_other(tmp_path):
    known = {"bits_per_dim": 1.5, "complexity_corrected": None, "per_level": [0.25], "notes": [], "spread": None}
    known |= {"id": "0" * 32, "enlarged": False, "model_sha256": "0" * 64} | dict.fromkeys(WHOLE_NUMBERS, 1280)
    whole, path = Scores(tmp_path / "scores.csv"), tmp_path / "scores.csv"
    whole.append({**known, "image": "whole"})
    before = path.read_bytes()
    whole.append({**known, "image": "cut, \N{SNOWMAN}"})
    after = path.read_bytes()
    for length in range(len(before) + 1, len(after)):
        path.write_bytes(after[:length])
        assert {*Scores(path).rows} == {"whole"}
        path.write_bytes(after[:length])
        whole.append({**known, "image": "later"})  # by a process that had opened the table before
        assert {name: row["width"] for name, row in Scores(path).rows.items()} == {"whole": 1280, "later": 1280}
    path.write_bytes(after[:-3] + b"later.png,1.5\r\n" + after[len(before) :])  # by an earlier version
    assert {*Scores(path).rows} == {"whole", "cut, \N{SNOWMAN}"}


def test_terminal_shows_a_bar(model, folder, tmp_path, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", shown)
    assert run("upscale", folder, "-o", tmp_path / "out", "--model", model) == 0
    drawn = shown.getvalue().split("\r")
    assert any("%|#" in line and "3/4 b.png" in line for line in drawn)
    assert not any(re.search(r"<|to go", line) for line in drawn if "1/4" in line or "2/4" in line)
    assert re.search(r"3/4 b.png: 100%, \S+ s, about .* to go\n", shown.getvalue())
    assert re.search(r"4/4 c.png: 100%, \S+ s\n", shown.getvalue())
    assert re.search(r"\r4 done, in \S+ s.\n$", shown.getvalue())
