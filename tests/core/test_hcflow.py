"""HCFlow: pictures of any size, what samples share, files that are nearly one; and its rescaling."""

import re

import pytest
import torch
from builders import build_hcflow, build_tiny, hcflow_checkpoint
from builders import random_image as picture
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import flowcore
from flowcore import CheckpointError, ConditionError, FlowError, ImageError, ShapeError, restore, save, shrink, upscale
from flowcore.flows.prior import sample_latents
from flowcore.flows.transforms import Coupling
from flowcore.images.color import as_stored
from flowcore.images.resize import downsample as bicubic
from flowcore.models.srflow.rrdb import DenseConvs
from flowcore.tasks.rescale import NOT_SHRUNK
from flowcore.training.objective import NO_PENALTIES, Rescaling
from flowcore.training.recipe import Stage

from .commands import photograph, pixels, run

flow = pytest.fixture(scope="module")(build_hcflow)


def test_a_sample_belongs_to_the_lr_image_exactly(flow):
    flow = build_hcflow().double()
    lr = picture(2, 3, 5, 7).double()
    cond = flow.encode_condition(lr)
    drawn = [z.double() for z in sample_latents(flow.latent_shapes(20, 28), 2, 0.9, 3, predicts_lr=True)]
    with torch.no_grad():
        hr = flow.inverse(drawn, cond)
        assert torch.allclose(flow.reduce(hr), lr, atol=1e-12)
        latents = flow(hr, cond)[0]
    for z, expected in zip(latents, drawn, strict=True):
        assert torch.allclose(z, expected, atol=1e-9)


def test_only_the_lr_image_of_an_anchored_flow_is_an_image(flow):
    with pytest.raises(ShapeError):
        flow.reduce(picture(1, 3, 6, 8))
    with pytest.raises(ConditionError):
        flowcore.load("srflow-x4").reduce(picture(1, 3, 8, 8))
    for task, other in ((upscale, build_hcflow(rescaling=True)), (restore, flow)):
        with pytest.raises(FlowError, match="needs"):
            task(other, picture(1, 3, 5, 7))


def test_a_picture_is_what_the_model_decodes(flow):
    lr = picture(1, 3, 5, 7)
    drawn = sample_latents(flow.latent_shapes(20, 28), 1, 0.8, 11, predicts_lr=True)
    with torch.no_grad():
        expected = flow.inverse(drawn, flow.encode_condition(lr)).clamp(0, 1)
    assert torch.allclose(upscale(flow, lr, temperature=0.8, seed=11), expected, atol=1e-5)


def test_strips_and_tiles_give_the_same_picture(flow):
    lr = picture(1, 3, 40, 70)
    whole = upscale(flow, lr, seed=2, temperature=0.6)
    tiled = upscale(flow, lr, seed=2, temperature=0.6, tile=32)
    assert float((whole - tiled).abs().max()) < 1e-5  # 2e-4 with a halo of 4


def write(path, state):
    torch.save(state, path)
    return path


def test_a_published_file_becomes_the_same_model(tmp_path):
    flow = build_hcflow(scale=2, extractor_blocks=(2, 1))
    back = flowcore.load(write(tmp_path / "SR.pth", hcflow_checkpoint(flow)))
    assert (back.config.scale, back.config.quant_bins, back.config.temperature) == (2, 64, 0.9)
    assert all(torch.equal(back.state_dict()[name], t) for name, t in flow.state_dict().items())
    assert "non-commercial" in back.provenance["licence"]


def without(pattern):
    return lambda s: {k: t for k, t in s.items() if not re.search(pattern, k)}


def changed(name, change):
    return lambda s: {**s, name: change(s[name])}


NEARLY = {  # and whether it is one for rescaling
    "HCFlow.*trunk": (False, without(r"^flow\.layers\.")),
    "HCFlow.*conv_first.weight is": (
        False,
        changed("flow.level0_condFlow.conv_first.weight", lambda t: t.repeat(1, 2, 1, 1)),
    ),
    "singular": (False, changed("flow.layers.1.permute.weight", torch.zeros_like)),
    r"layers\.0\.haar_weights": (True, changed("flow.layers.0.haar_weights", lambda t: t / 4)),
    r"layers\.4\.haar_weights": (True, without(r"layers\.4\.haar")),
}


@pytest.mark.parametrize("words", NEARLY)
def test_what_is_nearly_one_is_named(tmp_path, words):
    rescaling, change = NEARLY[words]
    with pytest.raises(CheckpointError, match=words):
        flowcore.load(write(tmp_path / "x.pth", change(hcflow_checkpoint(build_hcflow(rescaling=rescaling)))))


def test_the_folded_file_of_hcflow_rs_is_named(tmp_path):
    state: dict[str, Tensor] = {"l0.steps.0.w_rev": torch.ones(2, 2), "l0.steps.0.an_scale": torch.ones(2)}
    save_file(state, tmp_path / "hcflow_x4.safetensors", metadata={"format": "hcflow-safetensors-v1"})
    with pytest.raises(CheckpointError, match=r"hcflow-rs.*SR_DF2K_X4_HCFlow\+\+\.pth"):
        flowcore.load(tmp_path / "hcflow_x4.safetensors")


@pytest.fixture(scope="module")
def rescaler():
    return build_hcflow(rescaling=True, temperature=0.05)  # its priors are bounded: at 1 it overflows


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 12), (10, 13)])
def test_any_size_is_shrunk_and_comes_back(rescaler, size):
    notes: list[str] = []
    small = shrink(rescaler, picture(2, 3, *size), notify=notes.append)
    assert small.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    assert [*notes] == [] if size == (8, 12) else "extended" in notes[0]
    assert torch.equal((small * 255).round() / 255, small)
    assert restore(rescaler, small, size=size).shape == (2, 3, *size)
    assert restore(rescaler, small, samples=2).shape == (4, 3, small.shape[2] * 4, small.shape[3] * 4)


def test_small_and_restored_pictures_are_the_models_own(rescaler):
    hr = picture(1, 3, 16, 24)
    with torch.no_grad():
        own = rescaler.reduce(hr).clamp(0, 1)
    assert torch.equal(shrink(rescaler, hr), as_stored(own))
    small = shrink(rescaler, picture(1, 3, 16, 24))
    drawn = sample_latents(rescaler.latent_shapes(16, 24), 1, rescaler.config.temperature, 5, predicts_lr=True)
    with torch.no_grad():
        expected = rescaler.inverse(drawn, rescaler.encode_condition(small)).clamp(0, 1)
    assert torch.allclose(restore(rescaler, small, seed=5), expected, atol=1e-5)


def test_training_gains_nothing_from_a_small_picture_that_is_out_of_range(rescaler, monkeypatch):
    small = torch.tensor([-0.5, 0.2, 1.5]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    monkeypatch.setattr(rescaler, "reduce", lambda _: small, raising=False)
    _, restored = Rescaling(rescaler, NO_PENALTIES).restore(picture(1, 3, 16, 16))
    gradient = torch.autograd.grad(restored.square().sum(), small)[0].abs().amax((0, 2, 3))
    assert [*(gradient > 0)] == [False, True, False]


def test_alpha_is_shrunk_beside_the_colors(rescaler):
    image = (picture(1, 4, 16, 24, seed=11) * 223 + 32).byte()  # visible everywhere
    small = shrink(rescaler, image)
    torch.testing.assert_close(small[:, :3], shrink(rescaler, image[:, :3]))
    torch.testing.assert_close(small[:, 3:], as_stored(bicubic(image[:, 3:] / 255, 4)))


def test_gray_stays_gray_through_a_small_picture_in_color(rescaler):
    gray, color = picture(1, 1, 20, 24), picture(1, 3, 20, 24, seed=2)
    small = shrink(rescaler, torch.cat([gray.expand(-1, 3, -1, -1), color]))
    assert not torch.equal(small[0, 0], small[0, 1])
    for place, was_gray in ((0, True), (1, False)):
        back = restore(rescaler, (small[place : place + 1] * 255).round().byte(), gray=was_gray)[0]
        assert torch.equal(back[:1].expand(3, -1, -1), back) == was_gray
    assert restore(rescaler, gray[..., :5, :6]).shape == (1, 1, 20, 24)


def test_every_small_picture_is_shown(rescaler):
    seen: list[Tensor | None] = []
    shrink(rescaler, picture(3, 3, 8, 8), progress=lambda done, total, preview: seen.append(preview))
    assert len(seen) == 3
    assert all(preview is not None for preview in seen)


def test_a_size_of_another_picture_is_refused(rescaler):
    for size in ((16, 20), (12, 24), (17, 24)):
        with pytest.raises(ImageError, match="such as 16x24"):
            restore(rescaler, picture(1, 3, 4, 6), size=size)


def test_dense_couplings_start_as_the_identity():
    flow = build_tiny("hcflow", rescaling=True)
    networks = [part.conditioner for part in flow.modules() if isinstance(part, Coupling)]
    last = [network.convs[-1].weight for network in networks if isinstance(network, DenseConvs)]
    assert last
    assert not any(bool(weight.any()) for weight in last)


def test_training_lowers_the_loss_of_small_and_restored_pictures():
    flow = build_tiny("hcflow", rescaling=True)
    ramp = torch.linspace(0.1, 0.9, 16).expand(1, 3, 16, 16)
    hr = (ramp + 0.1 * (torch.arange(16) // 2 % 2)[:, None]).contiguous()  # stripes, which a thumbnail loses
    lr = bicubic(hr, 4)
    stage = Stage(name="rescale", objective="rescale", steps=20, lr_consistency=0.5)
    objective = Rescaling(flow, stage)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        losses.append(objective(hr, lr))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(FlowError, match="needs"):
        Rescaling(build_hcflow(), stage)


def test_the_file_of_a_small_picture_says_whether_the_photograph_was_gray(rescaler, tmp_path, capsys):
    save(rescaler, tmp_path / "model.safetensors", provenance={"licence": "CC0", "source": "a test"})
    model, small = ["--model", tmp_path / "model.safetensors"], tmp_path / "gray_model_small.png"
    photograph(tmp_path / "color.png", (25, 18))
    Image.open(tmp_path / "color.png").convert("L").save(tmp_path / "gray.png")
    assert run("shrink", tmp_path / "gray.png", "-o", tmp_path, *model) == 0
    assert Image.open(small).text["flowcore-size"] == "25x18 gray"
    assert run("restore", small, *model, "-o", tmp_path / "back.png") == 0
    assert NOT_SHRUNK not in capsys.readouterr().err
    back = pixels(tmp_path / "back.png")
    assert back.shape[1:] == (18, 25)
    assert torch.equal(back[:1].expand(3, -1, -1), back.expand(3, -1, -1))
    assert run("restore", tmp_path / "color.png", *model, "-o", tmp_path / "not.png") == 0
    assert NOT_SHRUNK in capsys.readouterr().err
