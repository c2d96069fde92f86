"""The published network that upscalers stand on: as published, in strips, and taken over by a training."""

import dataclasses
from pathlib import Path

import pytest
import torch
from builders import build_minimal, random_image
from flowcore.testing import perturbed
from safetensors.torch import load_file, save_file

import flowcore
from flowcore import CompiledFlow, FlowError, save
from flowcore.engine.defaults import model_defaults
from flowcore.engine.guide import MATCHING, sharpen
from flowcore.images.grid import remove_grid
from flowcore.images.resize import back_project, enlarge
from flowcore.models import catalog
from flowcore.models.identity import model_sha256
from flowcore.models.model_file import read, read_header
from flowcore.models.srflow.imdn import IMDN, IMDNEncoder
from flowcore.training.checkpoint import load_encoder, load_weights, take_sampling_defaults, with_guide_of
from flowcore.training.stage import PeakMemory, recomputable_modules

RECORDING = Path(__file__).parents[1] / "conformance" / "imdn.safetensors"  # of the published program, in float64
GUIDE = RECORDING.with_name("realesr_general.safetensors")  # likewise, for half of each network


def tiny(seed=1, **fields):
    flow = build_minimal("srflow", seed=seed, **{"hidden": 6, "residual": True, "encoder": "imdn", **fields})
    return perturbed(flow, strength=0.05)


def image(height, width, batch=1):
    return random_image(batch, 3, height, width, seed=2)


@torch.no_grad()
def test_the_shipped_network_is_the_published_one():
    network, recording = read(catalog.path("srflow-x4")).encoder.backbone.double(), load_file(RECORDING)
    lr = recording["lr"].double()
    assert float((network(lr) - recording["sr"]).abs().max()) < 1e-9
    trunk, _ = network.features(lr)
    assert float((trunk - recording["trunk"]).abs().max()) < 1e-9 * float(recording["trunk"].abs().max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_strip_size_gives_the_same_bits(dtype):
    flow, lr = tiny(), image(150, 6, batch=2)
    conditions = []
    for strip_bytes in (2**10, 2**14, 2**26):
        fast = CompiledFlow(flow, dtype, strip_bytes=strip_bytes)
        fast.budget.usual_dense = strip_bytes
        conditions.append(fast.encode_condition(lr))
    for cond in conditions[1:]:
        assert torch.equal(cond.origin, conditions[0].origin)
        for one, other in zip(cond.features, conditions[0].features, strict=True):
            assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one.sources, other.sources, strict=True))


def test_the_picture_itself_is_never_rounded_to_bfloat16():
    flow, lr = tiny(), image(12, 8)
    torch.nn.init.zeros_(flow.encoder.backbone.conv_trunk.weight)  # nothing but the long skip
    torch.nn.init.zeros_(flow.encoder.backbone.conv_trunk.bias)
    exact = flow.encode_condition(lr).origin
    assert torch.allclose(CompiledFlow(flow, "bfloat16").encode_condition(lr).origin, exact, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(flow.encode_condition(lr).origin, exact, atol=1e-6)


def test_a_run_may_take_its_flow_from_one_model_and_its_encoder_from_another(tmp_path):
    old = tiny(seed=3, encoder="rrdb", stacked_blocks=(1,))
    save(old, tmp_path / "old.safetensors")
    flow = tiny(seed=4)
    encoder = {name: t.clone() for name, t in flow.encoder.state_dict().items()}
    with pytest.raises(FlowError, match="encoder is 'rrdb' instead of 'imdn'"):
        load_weights(flow, tmp_path / "old.safetensors")
    load_weights(flow, tmp_path / "old.safetensors", other_encoder=True)
    assert all(torch.equal(t, old.levels.state_dict()[name]) for name, t in flow.levels.state_dict().items())
    assert all(torch.equal(t, encoder[name]) for name, t in flow.encoder.state_dict().items())


def test_the_published_network_alone_can_be_loaded_and_its_picture_enlarged(tmp_path):
    source = tiny(seed=5).encoder.backbone
    save_file(source.state_dict(), tmp_path / "imdn.safetensors")
    flow = tiny(seed=6)
    assert load_encoder(flow, tmp_path / "imdn.safetensors") == "backbone"
    lr = image(6, 8)
    assert torch.equal(flow.encoder.enlargement(lr), source(lr))
    assert isinstance(flow.encoder, IMDNEncoder)
    assert set(flow.encoder.backbone.blocks) <= set(recomputable_modules(flow))  # in training

    larger = tiny(seed=7, scale=8, levels=4)
    load_encoder(larger, tmp_path / "imdn.safetensors")
    assert torch.equal(larger.encoder.enlargement(lr), enlarge(source(lr), 2))
    compiled = CompiledFlow(larger, "float32").encode_condition(lr).origin
    assert torch.allclose(compiled, enlarge(source(lr), 2), atol=1e-6)

    save_file(IMDN(4, 1, 3).state_dict(), tmp_path / "imdn.safetensors")
    with pytest.raises(FlowError, match=r"blocks\.1"):
        load_encoder(flow, tmp_path / "imdn.safetensors")


def test_what_others_published_stays_exact_in_a_file_of_8_bits(tmp_path):
    flow = tiny(encoder_growth=16, encoder_width=48)
    save(flow, tmp_path / "small.safetensors", dtype=torch.int8, exact="encoder.backbone")
    loaded = read(tmp_path / "small.safetensors")
    assert read_header(tmp_path / "small.safetensors").format == 2
    backbone = flow.encoder.backbone.state_dict()
    assert all(torch.equal(t, backbone[name]) for name, t in loaded.encoder.backbone.state_dict().items())
    assert not torch.equal(loaded.encoder.mix[0].weight, flow.encoder.mix[0].weight)


def guided(seed=1, **fields):
    """A flow whose own guide is a random enlargement."""
    return tiny(seed, guide_layers=5, guide_width=6, guide_strength=0.7, guide_match=0.9, **fields)


@torch.no_grad()
def test_the_shipped_guide_is_the_published_one_rounded_to_float16():
    network, recording = read(catalog.path("srflow-x4-photo")).guide.double(), load_file(GUIDE)
    assert float((network(recording["lr"]) - recording["sr"]).abs().max()) < 4e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_guide_is_the_same_in_strips_of_any_size(dtype):
    flow, lr = guided(), image(70, 6, batch=2)
    made = []
    for strip_bytes in (2**10, 2**26):
        fast = CompiledFlow(flow, dtype, strip_bytes=strip_bytes)
        fast.budget.usual_dense = strip_bytes
        made.append(fast.make_guide(lr))
    assert torch.equal(*made)
    assert torch.allclose(made[0], flow.guide(lr), atol=1e-5 if dtype == "float32" else 1e-2)
    assert float((made[0] - enlarge(lr, 4)).abs().max()) > 0.01


@torch.no_grad()
def test_the_network_of_a_guide_holds_a_few_rows_of_every_layer():
    """Measured: 1.2 MB beside the picture, where all layers of the whole image have 18 MB."""
    flow = tiny(guide_layers=34, guide_width=16)
    fast = CompiledFlow(flow)
    fast.budget.usual_dense = 1
    with PeakMemory() as memory:
        picture = fast.make_guide(image(130, 64))
    assert memory.peak - picture.nbytes < 2e6


def test_a_model_draws_with_the_guide_that_it_carries():
    flow, lr, pass_on = guided(), image(40, 36), {"temperature": 0.1, "seed": 3}
    own = flowcore.upscale(flow, lr, **pass_on)
    made = remove_grid(CompiledFlow(flow).make_guide(lr), lr).clamp(0, 1)
    torch.testing.assert_close(own, flowcore.upscale(flow, lr, guide=made, **pass_on), atol=1e-5, rtol=0)
    matched = made.lerp(back_project(made, lr, MATCHING, check=lambda: None), 0.9)
    torch.testing.assert_close(flowcore.upscale(flow, lr, guide_strength=1, **pass_on), matched, atol=2e-4, rtol=0)
    assert (flowcore.upscale(flow, lr, tile=32, **pass_on) - own).abs().max() <= 1 / 255
    shares = []
    flowcore.upscale(flow, lr, progress=lambda d, t, p=None: shares.append(d / t))
    assert shares[-1] == 1
    without = tiny()
    without.load_state_dict({k: v for k, v in flow.state_dict().items() if not k.startswith("guide.")})
    plain = flowcore.upscale(without, lr, **pass_on)
    assert torch.equal(flowcore.upscale(flow, lr, guide_strength=0, **pass_on), plain)
    assert (plain - own).abs().max() > 0.01


def test_a_guide_leaves_the_fingerprint_of_a_model_and_its_match_is_in_those_of_pictures():
    flow, other = guided(), guided()
    other.config = dataclasses.replace(other.config, guide_match=0.2, guide_sharpness=0.5)
    without = tiny()
    without.load_state_dict({k: v for k, v in flow.state_dict().items() if not k.startswith("guide.")})
    assert model_sha256(flow) == model_sha256(other) == model_sha256(without)
    stated = [model_defaults(one, {"guide_strength": 0.7}) for one in (flow, other, without)]
    assert stated[:2] == [
        {"guide_match": 0.9, "guide_sharpness": 0.0},
        {"guide_match": 0.2, "guide_sharpness": 0.5},
    ]
    assert not stated[2]


def test_one_number_goes_from_faithful_to_bold():
    flow, settings = guided(), {"temperature": None, "guide_strength": None}
    own = model_defaults(flow, settings)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    by_share = [model_defaults(flow, settings | {"boldness": share}) for share in shares]
    assert by_share[2] == own
    relative = [values["temperature"] / own["temperature"] for values in by_share]
    assert relative == pytest.approx([0, 0.5, 1, 1.3, 1.6])
    stated = guided(temperature=0.6, boldest_temperature=1.0)
    asked = [model_defaults(stated, settings | {"boldness": share})["temperature"] for share in shares]
    assert asked == pytest.approx([0, 0.3, 0.6, 0.8, 1.0])
    assert model_defaults(flow, {"temperature": 0.7, "boldness": 0.0}) == {}  # what is set holds


def test_the_share_of_a_models_own_guide_follows_the_temperature():
    flow, other = tiny(guide_layers=3, guide_strength=0.4, guide_temperatures=[0.8, 1.2]), guided()

    def share(of=flow, guide=None, **settings):
        return model_defaults(of, {"guide_strength": None, "guide": guide, **settings})["guide_strength"]

    taus = (0.0, 0.8, 0.9, 1.0, 1.2, 2.0)
    assert [share(temperature=tau) for tau in taus] == pytest.approx([0, 0, 0.1, 0.2, 0.4, 0.4])
    assert share() == share(temperature=None) == 0  # at the default, 0.8
    assert share(temperature=None, boldness=1.0) == pytest.approx(0.4)  # 1.28
    assert share(temperature=[0.0, 1.0]) == share(temperature=torch.tensor([[[[0.5, 1.0]]]])) == pytest.approx(0.2)
    assert share(guide=image(8, 8), temperature=0.0) == 0.4  # a guide that is given has all of it
    assert [share(other, temperature=tau) for tau in (0.0, 1.2)] == [other.config.guide_strength] * 2
    assert "guide_strength" not in model_defaults(flow, {"guide_strength": 0.7, "temperature": 0.0})  # is set


def test_pictures_and_grids_of_temperatures_have_the_share_of_their_temperature():
    flow, lr = guided(guide_temperatures=(0.3, 0.7)), image(12, 10)
    taus = [0.3, 0.5, 0.7]
    for tau, share in zip(taus, (0.0, 0.5, 1.0), strict=True):
        own = flowcore.upscale(flow, lr, temperature=tau, seed=4)
        expected = flowcore.upscale(
            flow, lr, temperature=tau, seed=4, guide_strength=share * flow.config.guide_strength
        )
        assert torch.equal(own, expected)
    grid = flowcore.temperature_grid(flow, lr, taus, seed=4, seeds=2)
    each = [flowcore.upscale(flow, lr, temperature=tau, seed=4, samples=2) for tau in taus]
    torch.testing.assert_close(grid, torch.cat(each), atol=1e-5, rtol=0)


def test_a_pattern_by_phase_is_removed_and_nothing_else():
    lr, pattern = image(24, 20), 0.02 * random_image(1, 3, 4, 4, seed=8).repeat(1, 1, 24, 20)
    plain = enlarge(lr, 4)
    assert torch.equal(remove_grid(plain, lr), plain)
    mean = pattern[..., :4, :4].mean((2, 3), keepdim=True)
    torch.testing.assert_close(remove_grid(plain + pattern, lr), plain + mean, atol=1e-6, rtol=0)
    half = pattern * (torch.arange(80) < 40)
    kept = remove_grid(plain + half, lr) - plain
    torch.testing.assert_close(kept[..., :20], mean.expand(1, 3, 96, 20), atol=1e-6, rtol=0)
    assert kept[..., 60:].abs().max() < 1e-6
    wide = enlarge(0.1 * random_image(1, 3, 12, 10, seed=9), 8)  # what is larger than an LR pixel has no phase
    assert (remove_grid(plain + wide, lr) - plain - wide).abs().max() < 0.01
    tiny_lr = image(3, 2)
    torch.testing.assert_close(remove_grid(enlarge(tiny_lr, 4) + 0.1, tiny_lr), enlarge(tiny_lr, 4) + 0.1)


def test_no_stripes_are_drawn_beside_a_level_line():
    lr = torch.full((1, 3, 12, 12), 0.5)
    drawn = enlarge(lr, 4)
    drawn[..., 21, :] -= 0.3  # in one row of an LR pixel, which the small image does not show
    assert (remove_grid(drawn, lr) - drawn).abs().max() < 0.5 / 255


@torch.no_grad()
def test_a_models_own_guide_is_sharpened_before_it_is_matched():
    flow, lr = guided(guide_sharpness=0.8), image(9, 8)
    made = remove_grid(CompiledFlow(flow).make_guide(lr), lr).clamp(0, 1)
    sharper = sharpen(made, 0.8).clamp(0, 1)
    assert (sharper - made).abs().max() > 0.002
    one, other = (flowcore.upscale(flow, lr, guide_strength=1, **more) for more in ({}, {"guide": sharper}))
    torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_a_strong_edge_is_sharpened_less_than_faint_detail():
    faint, strong = (0.5 + height * (torch.arange(64) // 32 - 0.5).expand(1, 3, 64, -1) for height in (0.02, 0.8))
    beyond = [(sharpen(edge, 0.6) - edge).abs().max() / (edge.max() - edge.min()) for edge in (faint, strong)]
    assert 0.15 < beyond[0] < 0.25
    assert beyond[1] < 0.02


def test_a_training_may_start_from_a_model_with_a_guide(tmp_path):
    licence = {"licence": "MIT; guide: another, BSD"}
    save(flow := guided(), tmp_path / "guided.safetensors", provenance=licence)
    assert torch.equal(read(tmp_path / "guided.safetensors").guide.convs[0].weight, flow.guide.convs[0].weight)
    other = tiny(seed=5)
    load_weights(other, tmp_path / "guided.safetensors")
    assert other.guide is None
    assert all(torch.equal(flow.state_dict()[name], t) for name, t in other.state_dict().items())
    take_sampling_defaults([other], tmp_path / "guided.safetensors")
    kept, of_guide = with_guide_of(other, tmp_path / "guided.safetensors")
    assert (kept.config, of_guide) == (flow.config, "; guide: another, BSD")
    assert all(torch.equal(flow.state_dict()[name], t) for name, t in kept.state_dict().items())
    assert with_guide_of(other, tmp_path / "none.safetensors") == (other, "")
