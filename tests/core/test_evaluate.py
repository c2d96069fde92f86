"""Evaluation of colorizers and upscalers: on models and colorings whose numbers are known."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import build_tiny
from PIL import Image

from flowcore import FlowError, ImageError, ShapeError, colorize, save, score, upscale
from flowcore.engine.model_input import resize_to_own
from flowcore.images import metrics, perceptual
from flowcore.images.color import NEUTRAL, as_stored, compress, merge, split
from flowcore.images.resize import downsample, enlarge
from flowcore.training.evaluation import colorization
from flowcore.training.evaluation.colorization import colorizer_table, evaluate_colorizer
from flowcore.training.evaluation.feature_distance import feature_distance
from flowcore.training.evaluation.image_set import evaluate_density
from flowcore.training.evaluation.upscaling import MEASURES, evaluate_upscaler, missing_measures, upscaler_table
from flowcore.training.recipe import held_out_names

from .commands import run
from .photographs import photograph

SPREAD = 0.05  # of the chroma that the models below draw


def model(perturb=0.0, **fields):
    """A small colorizer; without perturbation its chroma is white noise of a known spread, whatever the luma."""
    flow = build_tiny("colorizer", perturb=perturb, hidden=(4, 4), widths=(4, 4, 8), **fields)
    with torch.no_grad():
        flow.preprocess.mean.fill_(NEUTRAL)
        flow.preprocess.matrix.copy_(torch.eye(2) / SPREAD)
    return flow


def pale(size, seed=0):
    """A photograph of medium luma, pale, with an odd seed paler: all of its colors are within the RGB cube."""
    array = np.asarray(photograph(*size, seed=seed), dtype=float)
    return Image.fromarray((90 + array * (0.2 if seed % 2 else 0.4)).round().astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for k in range(2):
        pale((32, 48), seed=k).save(tmp_path / "set" / f"{k}.png")  # the working size of the models above
    return tmp_path / "set"


def rgb(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].double() / 255


def chroma_of(folder):
    return [split(rgb(path))[1] for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("structure", ["pyramid", "single"])
def test_bits_are_those_of_the_normal_distribution(folder, structure):
    row = evaluate_colorizer(model(structure=structure), folder, samples=2)
    expected = []
    for chroma in chroma_of(folder):
        z = F.avg_pool2d(chroma, 4) / SPREAD
        expected.append(float((0.5 * z.square() + 0.5 * math.log(2 * math.pi) + math.log(SPREAD)).mean() / math.log(2)))
    expected = torch.tensor(expected) + math.log2(255)
    assert row["bits_per_dim"] == pytest.approx(float(expected.mean()), abs=5e-3)  # the noise of one bin
    assert row["standard_error"] == pytest.approx(float(expected.std() / 2**0.5), rel=0.05)
    assert row["images"] == row["samples"] == 2


def test_coherence_of_white_noise_and_of_a_coarse_grid(folder):
    """An 8x12 grid: noise on all of it shares 1/96; its 48 coarsest numbers, 2 of them global, 2/48."""
    row = evaluate_colorizer(model(), folder, samples=48, temperature=1.0, detail=0.0)
    assert row["global_share"] == pytest.approx(1 / 96, rel=0.2)
    assert row["global_share_default"] == pytest.approx(2 / 48, rel=0.2)
    for end in ("", "_default"):
        assert row[f"coherence{end}"] == pytest.approx(row[f"global_share{end}"] / row[f"global_share_truth{end}"])
    calm = evaluate_colorizer(model(), folder, samples=2, temperature=1e-4, detail=0.0)  # their mean is gray
    truth = [float(metrics.global_share(F.avg_pool2d(chroma, 4))) for chroma in chroma_of(folder)]
    assert calm["global_share_truth_default"] == pytest.approx(sum(truth) / 2, rel=1e-2)
    still = evaluate_colorizer(model(), folder, samples=48, temperature=0, detail=0)
    assert math.isnan(still["coherence_default"])
    assert still["coherence"] == row["coherence"]  # at temperature 1 whatever is asked for


def fake(monkeypatch, paint):
    """Replace colorize: ``paint(y, number of the image, sample)`` is the coloring; returns the calls made."""
    calls = []

    def colorize(flow, image, **options):
        calls.append(options)
        assert image.dtype == torch.uint8
        assert image.shape[:2] == (1, 1)
        number = (len(calls) - 1) // 2  # each image is colored by samples, and at temperature 0
        y = image.double() / 255
        return torch.cat([paint(y, number, s) for s in range(options.get("samples", 1))])

    monkeypatch.setattr(colorization, "colorize", colorize)
    return calls


def test_gray_colorings_are_as_far_as_gray(folder, monkeypatch):
    calls = fake(monkeypatch, lambda y, number, s: y.expand(-1, 3, -1, -1))
    row = evaluate_colorizer(model(), folder, samples=3, seed=10, temperature=0.7, working_size=48)
    expected = [float(chroma.square().mean().sqrt()) for chroma in chroma_of(folder)]
    for name in ("rmse", "rmse_best", "rmse_mean", "rmse_calm", "rmse_grey"):
        assert row[name] == pytest.approx(sum(expected) / 2, rel=1e-6), name
    assert [row["diversity"], row["colourfulness"]] == pytest.approx([0, 0], abs=1e-12)
    assert row["colourfulness_gap"] == pytest.approx(-1)
    assert row["luma_error"] < 1e-12
    assert row["luma_kept"] == 1
    assert [row[f"{name}_of_grey"] for name in ("rmse", "rmse_best", "rmse_calm")] == pytest.approx([1, 1, 1])
    for by in ("consensus", "likelihood"):
        assert row[f"rmse_{by}_of_grey"] == pytest.approx(1)
    assert math.isnan(row["seams"])
    first, calm, second, _ = calls
    asked = {"temperature": 0.7, "detail": None, "coherence": None, "seed": 10, "samples": 3, "working_size": 48}
    assert first == asked
    assert calm == {"temperature": 0, "detail": 0, "working_size": 48}
    assert second["seed"] == 13  # no two images share their draws


def test_errors_of_perfect_half_and_pale_colorings(folder, monkeypatch):
    truth = chroma_of(folder)
    fake(monkeypatch, lambda y, number, s: compress(y, truth[number]))
    row = evaluate_colorizer(model(), folder, samples=2)
    for name in ("rmse", "rmse_best", "rmse_mean", "rmse_calm", "diversity", "colourfulness_gap"):
        assert row[name] == pytest.approx(0, abs=1e-9), name
    assert row["rmse_grey"] > 0.01
    assert row["seams"] == pytest.approx(row["seams_truth"])
    assert row["colourfulness"] == pytest.approx(row["colourfulness_truth"]) == pytest.approx(row["rmse_grey"] * 2**0.5)

    # Two colorings, each right where the other is gray: by pixel they are perfect together.
    def half(y, number, s):
        chroma = truth[number].clone()
        chroma[..., 16:] *= s
        chroma[..., :16] *= 1 - s
        return merge(y, chroma)

    fake(monkeypatch, half)
    row = evaluate_colorizer(model(), folder, samples=2)
    left, right = (
        [float((chroma[..., part].square().sum() / chroma.numel()).sqrt()) for chroma in truth]
        for part in (slice(16), slice(16, None))
    )  # what is missed by the second, by the first
    assert row["rmse_best"] == pytest.approx(sum(map(min, left, right)) / 2, rel=1e-6)
    assert row["rmse"] == pytest.approx((sum(left) + sum(right)) / 4, rel=1e-6)
    assert row["rmse_mean"] == pytest.approx(row["rmse_grey"] / 2, rel=1e-6)
    assert row["diversity"] == pytest.approx(sum(float(chroma.abs().mean()) for chroma in truth) / 4, rel=1e-6)

    # The second image half and nine tenths as colorful: relative to gray, errors are a ratio of sums.
    fake(monkeypatch, lambda y, number, s: merge(y, truth[number] * (0.5, 0.9)[s] if number else truth[number]))
    row = evaluate_colorizer(model(), folder, samples=2)
    first, second = (float(chroma.square().mean().sqrt()) for chroma in truth)
    assert row["rmse_of_grey"] == pytest.approx((0 + 0.3 * second) / (first + second))
    assert row["rmse_best_of_grey"] == pytest.approx((0 + 0.1 * second) / (first + second))
    assert row["rmse_calm_of_grey"] == pytest.approx((0 + 0.5 * second) / (first + second))


@pytest.mark.parametrize(("cell", "size"), [(16, (32, 48)), (8, (64, 96))])
def test_seams_are_found_at_the_size_of_the_photograph(tmp_path, monkeypatch, cell, size):
    """Colors in steps from cell to cell of one grid, at once and at twice the working size."""
    (tmp_path / "set").mkdir()
    for k in range(2):
        Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(tmp_path / "set" / f"{k}.png")
    side = cell * size[0] // 32

    def in_cells(y, number, s):
        places = [torch.arange(length, dtype=y.dtype) for length in size]
        row, column = (0.1 * (place // side) / side + 0.01 * place / side for place in places)
        return merge(y, (0.2 * row[:, None] - 0.3 * column).expand(1, 2, -1, -1) * (number == 0))

    fake(monkeypatch, in_cells)
    row = evaluate_colorizer(model(), tmp_path / "set", samples=2)
    assert row["seams"] == row[f"seams_{cell}"] > 1.5
    assert row["seams_8" if cell == 16 else "seams_16"] < row["seams"]
    assert math.isnan(row["seams_truth"])


def test_skin_of_portraits_is_judged(folder, monkeypatch):
    brown, blue = (torch.tensor([cb, cr]).double()[:, None, None] for cb, cr in ((-0.08, 0.09), (0.09, -0.02)))

    def paint(y, number, s):
        return merge(y, (blue if number and s == 2 else brown * (s > 0)).expand(1, 2, 32, 48))

    fake(monkeypatch, paint)
    row = evaluate_colorizer(model(), folder, samples=4, portraits=True)
    assert row["skin_outside"] == 1 / 8
    assert row["skin_grey"] == 2 / 8
    assert "skin_outside" not in evaluate_colorizer(model(), folder, samples=2)


def test_small_luma_errors_are_detected(folder, monkeypatch):
    def spotted(y, number, s):
        picture = y.expand(-1, 3, -1, -1).clone()
        picture[:, :, 5, 6] += (0.004 if s else 0) * (number == 1)
        return picture

    def rounded_up(y, number, s):
        """Green by 0.6 of a step: luma rounds to what it was, but green does not, and changes luma."""
        green = torch.tensor([0, 0.6 / 255, 0], dtype=y.dtype)[:, None, None]
        return y + green * number

    for paint, error in ((spotted, 0.004), (rounded_up, 0.587 * 0.6 / 255)):
        fake(monkeypatch, paint)
        row = evaluate_colorizer(model(), folder, samples=2)
        assert row["luma_error"] == pytest.approx(error)
        assert row["luma_kept"] == 0.5


def test_results_are_those_of_the_task(tmp_path):
    (tmp_path / "set").mkdir()
    lines, expected = [], []
    for k in range(3):
        pale((41, 30), seed=k).save(tmp_path / "set" / f"{k}.png")  # resized, padded, enlarged
    flow = model(perturb=0.05)
    options = {"samples": 2, "seed": 3, "limit": 2}
    row = evaluate_colorizer(flow, tmp_path / "set", **options, log=lines.append)
    assert row["images"] == 2
    assert [line.split(":")[0] for line in lines] == ["0.png", "2.png"]  # evenly spread
    assert all(math.isfinite(value) for value in row.values())
    for number, name in enumerate(("0.png", "2.png")):
        y, chroma = split(rgb(tmp_path / "set" / name))
        pictures = colorize(flow, (y * 255).round().byte(), samples=2, seed=3 + 2 * number)
        expected.append(float(metrics.chroma_rmse(split(pictures.double())[1], chroma).mean()))
    assert row["rmse"] == pytest.approx(sum(expected) / 2, rel=1e-6)
    assert evaluate_colorizer(flow, tmp_path / "set", **options) == row
    assert evaluate_colorizer(flow, tmp_path / "set", **{**options, "seed": 4})["rmse"] != row["rmse"]
    other = evaluate_colorizer(flow, tmp_path / "set", **options, working_size=64)
    assert other["bits_per_dim"] != row["bits_per_dim"]
    assert other["rmse"] != row["rmse"]


def test_invalid_arguments_raise_readable_errors(folder, tmp_path):
    for flow, options, message in (
        (build_tiny("glow"), {}, r"got a model made to sample \(glow\)"),
        (model(), {"samples": 1}, "at least 2 samples"),
        (model(), {"temperature": -1}, "temperature must be a finite number >= 0; got -1"),
    ):
        with pytest.raises(FlowError, match=message):
            evaluate_colorizer(flow, folder, **options)
    with pytest.raises(ImageError, match="No images in"):
        evaluate_colorizer(model(), tmp_path / "nowhere")


def test_table_has_a_row_per_set_and_model(folder):
    row = evaluate_colorizer(model(), folder, samples=2)
    lines = colorizer_table({"photos": {"pyramid": row, "single": {**row, "coherence": 0.25}}}).splitlines()
    titles, first, second = ([cell.strip() for cell in lines[k].split("|")[1:-1]] for k in (0, 2, 3))
    assert len(titles) == len(first) == len(second) == lines[1].count("---")
    assert first[2] == "pyramid"
    expected = {"set": "photos", "model": "single", "coherence, tau 1": "0.250", "8-bit luma kept": "100%"}
    expected |= {"bits/dim": f"{row['bits_per_dim']:.3f}", "best of 2": f"{row['rmse_best']:.4f}"}
    expected |= {"gap": f"{row['colourfulness_gap']:+.0%}"}
    assert expected.items() <= dict(zip(titles, second, strict=True)).items()
    assert "not skin" not in titles
    both = colorizer_table({"photos": {"a": row}, "faces": {"a": {**row, "skin_outside": 0.045, "skin_grey": 0.0}}})
    assert [line.split("|")[-3].strip() for line in both.splitlines()] == ["not skin", "---", "-", "4.5%"]


def upscaler():
    return build_tiny("srflow", perturb=0.02, scale=4, steps=1, encoder_blocks=1, stacked_blocks=(0,))


def crop(image, side):
    return image[..., : image.shape[-2] // side * side, : image.shape[-1] // side * side]


@pytest.fixture
def enlarged(tmp_path):
    (tmp_path / "hr").mkdir()
    for name, size in (("large", (98, 197)), ("small", (40, 50))):
        photograph(*size, seed=len(name)).save(tmp_path / "hr" / f"{name}.png")
    return tmp_path / "hr"


def test_measures_of_an_upscaler_are_means_over_images(enlarged, monkeypatch):
    """LPIPS, a package that need not be there, is another distance here."""
    monkeypatch.setattr(perceptual, "lpips_missing", lambda: None)
    monkeypatch.setattr(perceptual, "lpips", lambda a, b: (a - b).abs().mean((1, 2, 3)))
    monkeypatch.setattr(perceptual, "lpips_map", lambda a, b: (a - b).abs().mean(1, keepdim=True))
    flow = upscaler()
    rows = evaluate_upscaler(flow, enlarged, temperatures=(0, 0.7), samples=3, measures=MEASURES)
    assert list(rows) == ["bicubic", "tau 0", "tau 0.7", "original"]
    expected, original_grid = {key: [] for key in (*MEASURES, "base")}, math.nan
    for name in ("large", "small"):
        hr = crop(rgb(enlarged / f"{name}.png").float(), 4)
        lr = as_stored(downsample(hr, 4))
        pictures = as_stored(upscale(flow, lr, temperature=0.7, seed=0, samples=3))
        assert not torch.equal(pictures[0], pictures[1])
        for measure in (metrics.psnr, metrics.ssim, metrics.false_specks):
            expected[measure.__name__].append(float(measure(pictures[:1], hr)))
        expected["lpips"].append(float((pictures[0] - hr).abs().mean()))
        expected["diversity_score"].append(perceptual.diversity_score(pictures, hr))
        expected["lr_psnr"].append(float(metrics.lr_psnr(pictures[:1], lr)))
        expected["base"].append(float(metrics.psnr(as_stored(enlarge(lr, 4)), hr)))
        expected["diversity"].append(metrics.diversity(pictures))
        expected["feature_distance"].append(float(feature_distance(pictures[:1], hr)))
        if name == "large":
            expected["grid"].append(float(metrics.grid_energy(pictures[:1])))
            original_grid = float(metrics.grid_energy(hr))
        hr = crop(hr, flow.size_multiple)
        cond = flow.encode_condition(as_stored(downsample(hr, 4)))
        expected["bits_per_dim"].append(float(score(flow, (hr * 255).round().byte(), cond).bits_per_dim))
    expected = {key: sum(values) / len(values) for key, values in expected.items() if values}
    base = expected.pop("base")
    expected["gain"] = expected["psnr"] - base
    assert rows["tau 0.7"] == pytest.approx(expected, rel=1e-4, abs=1e-4)  # the grid is that of the large one alone
    assert rows["bicubic"]["psnr"] == pytest.approx(base, abs=1e-4)
    assert rows["bicubic"]["gain"] == rows["bicubic"]["diversity"] == 0
    assert "bits_per_dim" not in rows["bicubic"]
    assert rows["original"].keys() == {"false_specks", "grid"}
    assert rows["original"]["grid"] == pytest.approx(original_grid)
    assert rows["original"]["false_specks"] == 0


def test_only_the_requested_measures_are_taken_and_means_are_finite(enlarged):
    flow, lines = upscaler(), []
    options = {"temperatures": (0,), "log": lines.append}
    rows = evaluate_upscaler(flow, enlarged, **options, measures=("grid", "ssim", "lpips", "bits_per_dim"))
    assert set(rows["bicubic"]) == {"ssim", "grid"}
    assert set(rows["tau 0"]) == {"ssim", "grid", "bits_per_dim"}
    assert all("dB" in line for line in lines)
    usual = evaluate_upscaler(flow, enlarged, temperatures=(0,))["tau 0"]
    assert list(usual)[:4] == ["psnr", "ssim", "lr_psnr", "diversity"]  # as older result files do
    assert "bits_per_dim" not in usual
    calm = build_tiny("srflow", temperature=0.6, calm_edges=0.75)
    assert list(evaluate_upscaler(calm, enlarged, measures=("psnr",))) == ["bicubic", "tau 0", "tau 0.6, calm 0.75"]
    with pytest.raises(FlowError, match="fid"):
        evaluate_upscaler(flow, enlarged, measures=("psnr", "fid"))
    (enlarged / "large.png").unlink()
    assert "grid" not in evaluate_upscaler(flow, enlarged, temperatures=(0,))["tau 0"]  # no image is large enough
    flow, lines = upscaler(), []
    options = {"temperatures": (0,), "measures": ("psnr", "gain", "lr_psnr")}
    expected = evaluate_upscaler(flow, enlarged, **options)
    Image.new("RGB", (32, 32), (90, 90, 90)).save(enlarged / "flat.png")  # which bicubic enlarges without an error
    assert evaluate_upscaler(flow, enlarged, **options, log=lines.append) == expected
    assert any(line.startswith("flat.png: gain, lr_psnr, psnr left out") for line in lines)


def test_the_feature_distance_is_that_of_normalized_features(monkeypatch):
    """With a network of one value per pixel and layer, so that positions have directions to compare."""

    class Stub:
        def outputs(self, y):
            assert y.shape[1] == 1
            return iter([torch.cat([y, 1 - y], 1) * k for k in range(1, 9)])

    monkeypatch.setattr("flowcore.training.evaluation.feature_distance._network", Stub)
    a, b = torch.ones(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    b[0, ..., :4] = 0  # a quarter of the positions point at a right angle: |difference|^2 = 2, in 5 layers
    assert feature_distance(a, b).tolist() == pytest.approx([5 * 2 / 4, 0])
    with pytest.raises(ShapeError):
        feature_distance(a[..., :15], b[..., :15])


def test_the_feature_distance_of_the_shipped_network_prefers_the_sharp():
    image = torch.from_numpy(np.array(photograph(160, 160, seed=31))).permute(2, 0, 1)[None].float() / 255
    blurred = enlarge(downsample(image, 4), 4)
    assert feature_distance(image, image).tolist() == [0]
    assert (
        0.2 < float(feature_distance(enlarge(downsample(image, 2), 2), image)) < float(feature_distance(blurred, image))
    )


def test_missing_measures_are_marked_and_named(monkeypatch):
    row = {"psnr": 20.0, "ssim": 0.5, "lr_psnr": 40.0, "diversity": 0.0, "gain": -1.0}
    results = {"a": {"bicubic": row, "tau 0": {**row, "bits_per_dim": 2.0}}}
    old = "| set | method | PSNR | SSIM | LR-PSNR | diversity |"
    assert upscaler_table(results).startswith(old[:-1])
    assert "missing" not in upscaler_table(results)
    lines = upscaler_table(results, [*MEASURES]).splitlines()
    columns = " gain | diversity score (LPIPS) | LPIPS | bits/dim | false specks, per mille | feature distance | "
    assert lines[0] == old + columns + "grid energy |"
    assert lines[1] == "|" + "---|" * 13
    missing = " missing |" * 2
    assert lines[2] == f"| a | bicubic | 20.00 | 0.5000 | 40.00 | 0.00 | -1.00 |{missing} - | missing |{missing}"
    assert lines[3].endswith(f"| 2.0000 | missing |{missing}")
    monkeypatch.setattr(perceptual, "lpips_missing", lambda: "a package")
    assert missing_measures(["psnr"]) is None
    score = "the diversity score on LPIPS"
    for measures, names in (((), f"LPIPS and {score}"), ((["lpips"],), "LPIPS"), ((["diversity_score"],), score)):
        assert missing_measures(*measures) == f"Missing: {names}. To get it: a package."
    monkeypatch.setattr(perceptual, "lpips_missing", lambda: None)
    assert missing_measures() is None


def test_the_command_line_chooses_measures(enlarged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(perceptual, "lpips_missing", lambda: "a package")
    save(upscaler(), tmp_path / "model.safetensors")
    save(model(), tmp_path / "colorizer.safetensors")
    numbers = tmp_path / "numbers.json"

    def shown(*words, code=0, name="model"):
        words = [enlarged, "--model", tmp_path / f"{name}.safetensors", "--temperature", 0, "--json", numbers, *words]
        assert run("eval", *words) == code
        return capsys.readouterr()

    captured = shown("--measures", "LR-PSNR,feature-distance")
    assert captured.out.splitlines()[0] == "| set | method | LR-PSNR | feature distance |"
    assert "Missing" not in captured.err
    assert set(json.loads(numbers.read_text())["hr"]["tau 0"]) == {"lr_psnr", "feature_distance"}
    captured = shown()
    assert captured.out.count("missing") == 4  # two measures of bicubic and tau 0
    assert captured.err.strip().splitlines()[-1].startswith("Missing: LPIPS and")
    assert "Unknown measure 'fid'" in shown("--measures", "psnr,fid", code=2).err
    assert "--measures is for upscalers" in shown("--measures", "psnr", code=2, name="colorizer").err


def test_folders_of_one_name_have_a_row_each(enlarged, tmp_path):
    save(upscaler(), tmp_path / "own.safetensors")
    folders = [tmp_path / name / "hr" for name in ("set1", "set2")]
    for folder in folders:
        shutil.copytree(enlarged, folder)
    words = ["--model", tmp_path / "own.safetensors", "--measures", "psnr", "--temperature", 0]
    assert run("eval", *folders, *words, "--json", tmp_path / "numbers.json") == 0
    assert [*json.loads((tmp_path / "numbers.json").read_bytes())] == [*map(str, folders)]


def test_held_out_images_alone_are_measured(enlarged, folder, tmp_path, capsys):
    listed = sorted(held_out_names("standard"))[0]
    (enlarged / "small.png").rename(enlarged / listed)
    save(upscaler(), tmp_path / "model.safetensors")
    words = ["eval", enlarged, "--model", tmp_path / "model.safetensors", "--held-out"]
    assert run(*words, "--temperature", 0, "--measures", "psnr") == 0
    captured = capsys.readouterr()
    assert listed in captured.err
    assert "large.png" not in captured.err
    (enlarged / listed).unlink()
    assert run(*words) == 1
    assert "held-out images" in capsys.readouterr().err
    assert evaluate_colorizer(model(), folder, samples=2, only={"1.png"})["images"] == 1
    glow = build_tiny("glow", image_size=16)
    assert evaluate_density(glow, folder, only={"0.png", "other.png"})["images"] == 1
    with pytest.raises(ImageError, match="None of the images"):
        evaluate_density(glow, folder, only={"other.png"})


def test_image_size_is_suggested_only_for_models_that_take_one():
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(FlowError, match="glow-photos"):
        resize_to_own(build_tiny("hcflow", rescaling=True), image)
    with pytest.raises(FlowError, match="image_size=32"):
        resize_to_own(build_tiny("glow", image_size=None), image)


def test_incomparable_densities_are_marked(folder, tmp_path, capsys):
    words = list[object](["eval", folder])
    for name, fields in {"a": {}, "b": {"n_bits": 5}, "c": {"image_size": 8}}.items():
        save(build_tiny("glow", **{"image_size": 16, **fields}), tmp_path / f"{name}.safetensors")
        words += ["--model", tmp_path / f"{name}.safetensors"]
    assert run(*words) == 0
    table = capsys.readouterr().out
    ends = [line.split(" | ")[-2:] for line in table.splitlines()[2:5]]
    assert ends == [["8", "16x16 |"], ["5", "16x16 |"], ["8", "8x8 |"]]
    assert "Only rows of the same bits and size compare" in table


def test_densities_are_measured_with_the_noise_that_is_named(folder, tmp_path, capsys):
    glow = build_tiny("glow", image_size=16, dequantizer_steps=1)
    save(glow, tmp_path / "model.safetensors")
    for kind in ("uniform", "variational"):
        assert run("eval", folder, "--model", tmp_path / "model.safetensors", "--dequantization", kind) == 0
        measured = evaluate_density(glow, folder, dequantization=kind)
        assert f"| {measured['bits_per_dim']:.4f} |" in capsys.readouterr().out
    assert measured != evaluate_density(glow, folder)
