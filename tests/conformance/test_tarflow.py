"""TarFlow against tensors recorded from the published program; see tarflow/README.md."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcore import CheckpointError, Flow, FlowError, Guidance, decode, load
from flowcore.models import build, configure
from flowcore.models.tarflow import TarFlowConfig
from flowcore.models.tarflow.published import TARFLOW, tarflow_origins

from .published import PRECISIONS, as_ours, near, recording, same

CASES = ("cond", "uncond_vp")
GUIDED = {
    "1.5": 1.5,
    "1.5_b": Guidance(1.5, scale=False),
    "2_annealed": Guidance(2, annealed=True),
    "1.5_temp_0.8": Guidance(1.5, temperature=0.8),
}
every_case = pytest.mark.parametrize("name", CASES)


WEIGHTS = {name: recording(f"tarflow/{name}_weights") for name in CASES}
RECORDED = {name: recording(f"tarflow/{name}_io") for name in CASES}


def sequence(grid: Tensor) -> Tensor:
    return grid.flatten(2).mT


def in_model(flow: Flow, name: str):
    """The recorded images in [0, 1], the latents that were drawn, and the condition, as the flow takes them."""
    io, like = RECORDED[name], next(flow.parameters())
    grid = flow.latent_shapes(*flow.image_size)[0][1:]
    cond = flow.encode_condition(io["y"]) if flow.classes else None
    cond = cond and cond.map_tensors(lambda t: t.to(like))
    return ((io["x"] + 1) / 2).to(like), io["eps"].mT.unflatten(2, grid).to(like), cond


@every_case
@pytest.mark.parametrize("precision", PRECISIONS)
def test_latents_logdet_and_samples(name, precision):
    flow, io = as_ours(TARFLOW, WEIGHTS[name], precision), RECORDED[name]
    x, eps, cond = in_model(flow, name)
    (z,), logdet = flow(x, cond)
    near(sequence(z) * WEIGHTS[name]["var"].to(z).sqrt(), io["z"])
    preprocess = x[0].numel() * math.log(2)  # from [0, 1] to [-1, 1]
    near(logdet - preprocess + WEIGHTS[name]["var"].to(z).log().sum() / 2, io["logdet"])
    near(2 * flow.inverse([eps], cond) - 1, io["sample"])
    first = flow.levels[0].steps.transforms[0]
    near(sequence(first(flow.levels[0].squeeze(2 * x - 1)[0], cond and cond.at_level(0))[0]), io["block0"])


def test_without_a_label_there_is_the_mean_over_classes():
    flow = as_ours(TARFLOW, WEIGHTS["cond"], "float64")
    x, _, cond = in_model(flow, "cond")
    unlabeled = flow.encode_condition(torch.full((4,), 4)).map_tensors(lambda t: t.to(cond.labels))
    near(sequence(flow(x, unlabeled)[0][0]), RECORDED["cond"]["z_without_label"])


@pytest.mark.parametrize("guidance", GUIDED)
def test_guided_samples(guidance):
    flow = as_ours(TARFLOW, WEIGHTS["cond"], "float64")
    _, eps, cond = in_model(flow, "cond")
    near(2 * flow.inverse([eps], cond.guided(GUIDED[guidance])) - 1, RECORDED["cond"][f"sample_guided_{guidance}"])


@every_case
def test_noise_is_removed_also_in_inference_mode(name):
    with torch.inference_mode():
        flow = TARFLOW.load(WEIGHTS[name], {"noise": 0.07}).double()
        _, eps, cond = in_model(flow, name)
        near(2 * decode(flow, [eps], cond) - 1, RECORDED[name]["sample"])
        near(2 * decode(flow, [eps], cond, denoise=True) - 1, RECORDED[name]["denoised_0.07"])


def checkpoint_of(flow: Flow) -> dict[str, Tensor]:
    ours, state = flow.state_dict(), {}
    for origin in tarflow_origins(flow.config):
        t, (name,) = ours[origin.ours], origin.names
        if name == "var":
            t = sequence(t[None])[0]
        elif name.endswith("pos_embed") and int(name.split(".")[1]) % 2:
            t = t.flip(0)
        elif name.endswith("class_embed"):
            t = t[:, None]
        state[name] = t.clone()
    return state


STRUCTURES = [
    {"image_size": (4, 4), "patch": 1, "channels": 1, "scale": False, "variances": True, "blocks": 4, "hidden": 32},
    {"image_size": (4, 4), "patch": 2, "width": 128, "blocks": 1, "layers": 3, "classes": 1},
    {"image_size": (9, 9), "patch": 3, "variances": True, "blocks": 3, "layers": 2, "hidden": 96, "classes": 5},
]


@pytest.mark.parametrize("fields", STRUCTURES, ids=str)
def test_any_structure_is_read_from_a_file(tmp_path, fields):
    flow = build("tarflow", TarFlowConfig(**{"width": 64, **fields})).eval()
    for parameter in flow.parameters():
        parameter += 0.1 * torch.rand_like(parameter)
    state = {name: t.contiguous() for name, t in checkpoint_of(flow).items()}
    masks = {f"blocks.{k}.attn_mask": torch.ones(2, 2, dtype=torch.bool) for k in range(flow.config.blocks)}
    torch.save({**state, **masks}, tmp_path / "model.pth")
    assert same(load(tmp_path / "model.pth"), flow)


def test_patches_that_make_no_square_need_a_size():
    wide = TarFlowConfig(image_size=(4, 6), patch=2, width=64, blocks=1, layers=1)
    state = checkpoint_of(build("tarflow", wide))
    with pytest.raises(CheckpointError, match=r"6 patches, which make no square.*multiples of 2.*image_size=\(2, 12\)"):
        TARFLOW.load(state, {})
    assert TARFLOW.load(state, {"image_size": (4, 6)}).config.image_size == (4, 6)


DAMAGES = [
    (lambda s: s.pop("blocks.1.attn_blocks.1.attention.proj.bias"), "attention.proj.bias is missing"),
    (lambda s: [s.pop(n) for n in [*s] if n.startswith("blocks.0.")], "blocks.0.pos_embed.*missing"),
    (lambda s: s.update({"blocks.0.proj_in.weight": torch.ones(128, 26)}), "patches of 26 numbers"),
    (lambda s: s.update({"blocks.0.proj_out.weight": torch.ones(40, 128)}), "predicts 40 numbers"),
    (lambda s: s.update({"blocks.0.pos_embed": torch.ones(16, 100)}), "width must be a multiple of head"),
    (lambda s: s.update(var=s["var"].T.contiguous().view(-1, 4, 4)), r"var .* unexpected shape, \(\d+, 4, 4\)"),
    (lambda s: s["var"].fill_(-1), "transforms.2.var in .* is not positive"),
]


def test_damaged_files_are_refused_with_a_reason(tmp_path):
    for change, sentence in DAMAGES:
        state = recording("tarflow/cond_weights")
        change(state)
        save_file(state, tmp_path / "damaged.safetensors")
        with pytest.raises(FlowError, match=rf"(?s)damaged\.safetensors.*{sentence}"):
            load(tmp_path / "damaged.safetensors")


def test_overrides_may_not_contradict_the_tensors():
    with pytest.raises(CheckpointError, match=r"patch=2 was given.*tell patch=3"):
        TARFLOW.load(WEIGHTS["cond"], {"patch": 2})
    assert TARFLOW.load(WEIGHTS["cond"], {"labels": ["a", "b", "c", "d"]}).config.labels == ("a", "b", "c", "d")
    assert configure("tarflow", {}).classes == 0
