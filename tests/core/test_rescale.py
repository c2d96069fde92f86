"""Shrink and restore: any size, eight bits, and what comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import build_hcflow
from builders import random_image as picture
from PIL import Image

import flowcore
from flowcore import FlowError, ImageError, restore, shrink
from flowcore.checkpoints import save
from flowcore.cli.main import main
from flowcore.images.files import read
from flowcore.images.resize import shrink as bicubic
from flowcore.models import build, configure
from flowcore.prior import sample_latents
from flowcore.training.objective import Rescaling
from flowcore.training.recipe import Stage


@pytest.fixture(scope="module")
def flow():
    return build_hcflow(rescaling=True, temperature=0.05)  # its priors are bounded: at 1 it overflows


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 12), (10, 13)])
def test_any_size_is_shrunk_and_comes_back(flow, size):
    notes: list[str] = []
    small = shrink(flow, picture(2, 3, *size), notify=notes.append)
    assert small.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    assert [*notes] == [] if size == (8, 12) else "extended" in notes[0]
    assert torch.equal((small * 255).round() / 255, small)
    assert restore(flow, small, size=size).shape == (2, 3, *size)
    assert restore(flow, small, samples=2).shape == (4, 3, small.shape[2] * 4, small.shape[3] * 4)


def test_small_and_restored_pictures_are_the_models_own(flow):
    hr = picture(1, 3, 16, 24)
    with torch.no_grad():
        own = flow.reduce(hr).clamp(0, 1)
    assert float((shrink(flow, hr) - own).abs().max()) <= 0.5 / 255 + 1e-6
    small = shrink(flow, picture(1, 3, 16, 24))
    drawn = sample_latents(flow.latent_shapes(16, 24), 1, 0.1, 5, anchored=True)
    with torch.no_grad():
        expected = flow.inverse(drawn, flow.encode_condition(small)).clamp(0, 1)
    assert torch.allclose(restore(flow, small, temperature=0.1, seed=5), expected, atol=1e-5)
    own = restore(flow, small)  # at the temperature that the configuration states
    assert torch.allclose(own, restore(flow, small, temperature=flow.config.temperature), atol=1e-6)


def test_eight_bit_files_and_alpha_pass_through(flow):
    image = (picture(1, 4, 16, 24) * 255).byte()
    small = shrink(flow, image)
    assert small.shape == (1, 4, 4, 6)
    assert torch.allclose(shrink(flow, image[:, :3]), small[:, :3])
    stored = (small * 255).round().byte()
    assert torch.allclose(restore(flow, stored), restore(flow, small), atol=1e-5)
    assert shrink(flow, image[:, :1]).shape == (1, 3, 4, 6)


def test_previews_cancelling_and_refusals(flow):
    seen: list[tuple[int, int, bool]] = []
    shrink(flow, picture(3, 3, 8, 8), progress=lambda done, total, preview: seen.append((done, total, preview is None)))
    assert seen == [(1, 3, False), (2, 3, False), (3, 3, False)]
    with pytest.raises(flowcore.Cancelled):
        shrink(flow, picture(1, 3, 8, 8), cancelled=lambda: True)
    with pytest.raises(flowcore.Cancelled):
        restore(flow, picture(1, 3, 2, 2), cancelled=lambda: True)
    with pytest.raises(FlowError, match=r"rescale needs .*rescale-x4; got a srflow model"):
        shrink(flowcore.load("srflow-x4"), picture(1, 3, 8, 8))
    with pytest.raises(FlowError, match="got a hcflow model"):
        restore(build_hcflow(), picture(1, 3, 2, 2))
    with pytest.raises(ImageError, match="not finite"):
        shrink(flow, picture(1, 3, 8, 8) / 0)


def test_a_size_of_another_picture_is_refused(flow):
    for size in ((16, 20), (12, 24), (17, 24)):
        with pytest.raises(ImageError, match="such as 16x24"):
            restore(flow, picture(1, 3, 4, 6), size=size)


def test_training_lowers_the_loss_of_small_and_restored_pictures():
    fields = {"steps": 2, "detail_steps": 1, "hidden": 8, "detail_hidden": 8, "rescaling": True}
    fields |= {"extractor_blocks": (1, 1), "extractor_width": 8, "extractor_growth": 4}
    torch.manual_seed(0)
    flow = build("hcflow", configure("hcflow", fields))
    ramp = torch.linspace(0.1, 0.9, 32).expand(2, 3, 32, 32)
    hr = (ramp + 0.1 * (torch.arange(32) // 2 % 2)[:, None]).contiguous()  # stripes, which a thumbnail loses
    lr = bicubic(hr, 4)
    stage = Stage(name="rescale", objective="rescale", steps=30, lr_consistency=0.5)
    objective = Rescaling(flow, stage)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(30):
        loss = objective(hr, lr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(FlowError, match="rescale needs"):
        Rescaling(build_hcflow(), stage)


def test_the_command_line_shrinks_and_restores(flow, tmp_path, capsys):
    save(flow, tmp_path / "model.safetensors", provenance={"licence": "CC0", "source": "a test"})
    pixels = (picture(1, 3, 18, 25)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = ["--model", str(tmp_path / "model.safetensors"), "--device", "cpu"]
    assert main(["shrink", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *model]) == 0
    small = Image.open(tmp_path / "out" / "a_model_small.png")
    assert (small.size, small.text["flowcore-size"]) == ((7, 5), "25x18")
    words = ["restore", str(tmp_path / "out" / "a_model_small.png"), "-o", str(tmp_path / "back"), "--samples", "2"]
    words += model
    assert main(words) == 0
    for seed in (0, 1):
        back = Image.open(tmp_path / "back" / f"a_model_restored_tau0.05_seed{seed}.png")
        assert back.size == (25, 18)
        hr = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
        expected = restore(flow, hr, seed=seed, size=(18, 25))[0].permute(1, 2, 0) * 255
        assert np.abs(np.array(back) - expected.round().numpy()).max() <= 1
    assert main([*words, "--bits", "16", "-o", str(tmp_path / "deep")]) == 0
    deep = (tmp_path / "deep" / "a_model_restored_tau0.05_seed0.png").read_bytes()
    assert read(deep, "deep").bits == 16
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(tmp_path / "deep.png")
    assert main(["shrink", str(tmp_path / "deep.png"), "-o", str(tmp_path / "out"), *model]) == 0
    assert "It has 16 bits per channel, and its result has 8." in capsys.readouterr().err
