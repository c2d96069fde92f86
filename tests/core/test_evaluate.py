"""Measures of colorizers: on models whose numbers are known, and on colourings that are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flowcore import FlowError, ImageError
from flowcore.color import NEUTRAL, compress, luma, merge, split
from flowcore.metrics import chroma_rmse, global_share
from flowcore.models import build, configure
from flowcore.models.colorizer import ColorizerConfig, colorizer
from flowcore.tasks.colorize import colorize
from flowcore.training import evaluate
from flowcore.training.evaluate import color_table, evaluate_colorizer

from .photographs import photograph

SPREAD = 0.05  # of the chroma that the models below draw


def model(perturbed=False, **changes):
    """A small colorizer; without perturbation its chroma is white noise of a known spread, whatever the luma."""
    torch.manual_seed(0)
    sizes = {"steps": (1, 1), "hidden": (4, 4), "widths": (4, 4, 8), "merged": 8, "features": 4, "working_size": 32}
    flow = colorizer(ColorizerConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in flow.parameters() if perturbed else ():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        flow.prelude.mean.fill_(NEUTRAL)
        flow.prelude.matrix.copy_(torch.eye(2) / SPREAD)
    return flow


def pale(size, seed=0):
    """A photograph of middling luma, pale, and with an odd seed paler: there is room for all of its colours."""
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
def test_bits_are_those_of_the_normal_distribution_that_the_model_is(folder, structure):
    row = evaluate_colorizer(model(structure=structure), folder, samples=2)
    expected = []
    for chroma in chroma_of(folder):
        z = F.avg_pool2d(chroma, 4) / SPREAD
        expected.append(float((0.5 * z.square() + 0.5 * math.log(2 * math.pi) + math.log(SPREAD)).mean() / math.log(2)))
    expected = torch.tensor(expected) + math.log2(255)
    assert row["bits_per_dim"] == pytest.approx(float(expected.mean()), abs=5e-3)  # the noise of one bin
    assert row["standard_error"] == pytest.approx(float(expected.std() / 2**0.5), rel=0.05)
    assert row["images"] == row["samples"] == 2


def test_coherence_tells_white_noise_from_what_the_coarsest_grid_decides(folder):
    """An 8x12 grid: noise on all of it shares 1/96; its 48 coarsest numbers, 2 of them global, 2/48."""
    row = evaluate_colorizer(model(), folder, samples=128, temperature=1.0, detail=0.0)
    assert row["global_share"] == pytest.approx(1 / 96, rel=0.2)
    assert row["global_share_default"] == pytest.approx(2 / 48, rel=0.2)
    for end in ("", "_default"):
        assert row[f"coherence{end}"] == pytest.approx(row[f"global_share{end}"] / row[f"global_share_truth{end}"])
    calm = evaluate_colorizer(model(), folder, samples=2, temperature=1e-4, detail=0.0)  # their mean is grey
    truth = [float(global_share(F.avg_pool2d(chroma, 4))) for chroma in chroma_of(folder)]
    assert calm["global_share_truth_default"] == pytest.approx(sum(truth) / 2, rel=1e-2)
    still = evaluate_colorizer(model(), folder, samples=128, temperature=0, detail=0)
    assert math.isnan(still["coherence_default"])
    assert still["coherence"] == row["coherence"]  # at temperature 1 whatever is asked for


def fake(monkeypatch, colour):
    """Replace colorize: ``colour(y, number of the image, sample)`` is the picture; returns the calls made."""
    calls = []

    def colorize(flow, image, **options):
        calls.append(options)
        assert image.dtype == torch.uint8
        assert image.shape[:2] == (1, 1)
        number = (len(calls) - 1) // 2  # each image is coloured by samples, and calmly
        y = image.double() / 255
        return torch.cat([colour(y, number, s) for s in range(options.get("samples", 1))])

    monkeypatch.setattr(evaluate, "colorize", colorize)
    return calls


def test_grey_colourings_are_as_far_as_grey(folder, monkeypatch):
    calls = fake(monkeypatch, lambda y, number, s: y.expand(-1, 3, -1, -1))
    row = evaluate_colorizer(model(), folder, samples=3, seed=10, temperature=0.7, working_size=48)
    expected = [float(chroma.square().mean().sqrt()) for chroma in chroma_of(folder)]
    for name in ("rmse", "rmse_best", "rmse_mean", "rmse_calm", "rmse_grey"):
        assert row[name] == pytest.approx(sum(expected) / 2, rel=1e-6), name
    assert row["diversity"] == pytest.approx(0, abs=1e-12)
    assert row["colourfulness"] == pytest.approx(0, abs=1e-12)
    assert row["colourfulness_gap"] == pytest.approx(-1)
    assert row["luma_error"] < 1e-12
    assert row["luma_kept"] == 1
    first, calm, second, _ = calls
    assert first == {"temperature": 0.7, "detail": None, "seed": 10, "samples": 3, "working_size": 48}
    assert calm == {"temperature": 0, "detail": 0, "working_size": 48}
    assert second["seed"] == 13  # no two images share their draws


def test_perfect_colourings_miss_nothing(folder, monkeypatch):
    truth = chroma_of(folder)
    fake(monkeypatch, lambda y, number, s: compress(y, truth[number]))
    row = evaluate_colorizer(model(), folder, samples=2)
    for name in ("rmse", "rmse_best", "rmse_mean", "rmse_calm", "diversity", "colourfulness_gap"):
        assert row[name] == pytest.approx(0, abs=1e-9), name
    assert row["rmse_grey"] > 0.01
    assert row["colourfulness"] == pytest.approx(row["colourfulness_truth"]) == pytest.approx(row["rmse_grey"] * 2**0.5)


def test_the_best_of_several_is_a_whole_picture(folder, monkeypatch):
    """Two colourings, each right where the other is grey: by pixel they are perfect together."""
    truth = chroma_of(folder)

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


def test_one_wrong_pixel_of_luma_is_seen(folder, monkeypatch):
    def spotted(y, number, s):
        picture = y.expand(-1, 3, -1, -1).clone()
        picture[:, :, 5, 6] += (0.004 if s else 0) * (number == 1)
        return picture

    fake(monkeypatch, spotted)
    row = evaluate_colorizer(model(), folder, samples=2)
    assert row["luma_error"] == pytest.approx(0.004)
    assert row["luma_kept"] == 0.5

    def rounded_up(y, number, s):
        """Green by 0.6 of a step: luma rounds to what it was, but green does not, and takes luma along."""
        green = torch.tensor([0, 0.6 / 255, 0], dtype=y.dtype)[:, None, None]
        return y + green * number

    fake(monkeypatch, rounded_up)
    row = evaluate_colorizer(model(), folder, samples=2)
    assert row["luma_error"] == pytest.approx(0.587 * 0.6 / 255)
    assert row["luma_kept"] == 0.5


def test_the_task_and_the_model_are_what_is_measured(tmp_path):
    (tmp_path / "set").mkdir()
    lines = []
    for k in range(3):
        pale((41, 30), seed=k).save(tmp_path / "set" / f"{k}.png")  # resized, padded, enlarged
    flow = model(perturbed=True)
    row = evaluate_colorizer(flow, tmp_path / "set", samples=2, seed=3, limit=2, log=lines.append)
    assert row["images"] == 2
    assert [line.split(":")[0] for line in lines] == ["0.png", "2.png"]  # evenly spread
    assert all(math.isfinite(value) for value in row.values())
    assert row["luma_error"] < 1e-6
    assert row["luma_kept"] == 1
    expected = []
    for number, name in enumerate(("0.png", "2.png")):
        y, chroma = split(rgb(tmp_path / "set" / name))
        pictures = colorize(flow, (y * 255).round().byte(), samples=2, seed=3 + 2 * number)
        assert (luma(pictures) - y).abs().max() < 0.51 / 255
        expected.append(float(chroma_rmse(split(pictures.double())[1], chroma).mean()))
    assert row["rmse"] == pytest.approx(sum(expected) / 2, rel=1e-6)
    again = evaluate_colorizer(flow, tmp_path / "set", samples=2, seed=3, limit=2)
    assert again == row
    assert evaluate_colorizer(flow, tmp_path / "set", samples=2, seed=4, limit=2)["rmse"] != row["rmse"]
    other = evaluate_colorizer(flow, tmp_path / "set", samples=2, seed=3, limit=2, working_size=64)
    assert other["bits_per_dim"] != row["bits_per_dim"]
    assert other["rmse"] != row["rmse"]


def test_errors_say_what_would_do(folder, tmp_path):
    with pytest.raises(FlowError, match="got a glow model"):
        evaluate_colorizer(build("glow", configure("glow", {"levels": 1, "steps": 1, "hidden": 4})), folder)
    with pytest.raises(FlowError, match="at least 2 samples"):
        evaluate_colorizer(model(), folder, samples=1)
    with pytest.raises(FlowError, match="temperature must be a finite number >= 0; got -1"):
        evaluate_colorizer(model(), folder, temperature=-1)
    with pytest.raises(ImageError, match="No images in"):
        evaluate_colorizer(model(), tmp_path / "nowhere")
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"Cannot read broken\.png"):
        evaluate_colorizer(model(), folder, samples=2)


def test_the_table_has_a_row_per_set_and_model(folder):
    row = evaluate_colorizer(model(), folder, samples=2)
    lines = color_table({"photos": {"pyramid": row, "single": {**row, "coherence": 0.25}}}).splitlines()
    titles, first, second = ([cell.strip() for cell in lines[k].split("|")[1:-1]] for k in (0, 2, 3))
    assert len(titles) == len(first) == len(second) == lines[1].count("---")
    shown = dict(zip(titles, second, strict=True))
    assert shown["set"] == "photos"
    assert shown["model"] == "single"
    assert shown["coherence, tau 1"] == "0.250"
    assert shown["bits/dim"] == f"{row['bits_per_dim']:.3f}"
    assert shown["best of 2"] == f"{row['rmse_best']:.4f}"
    assert shown["gap"] == f"{row['colourfulness_gap']:+.0%}"
    assert shown["8-bit luma kept"] == "100%"
    assert first[2] == "pyramid"
