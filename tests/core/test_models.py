"""What every registered model keeps to."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re

import pytest
import torch
from safetensors import safe_open

from flowcore import likelihood
from flowcore.checkpoints.file import read, save
from flowcore.condition import Condition
from flowcore.errors import CheckpointError, ConditionError, FlowError, ShapeError
from flowcore.models import ARCHITECTURES, build, configure, register
from flowcore.models.fields import short_repr
from flowcore.networks.contractive import LipschitzConv
from flowcore.prior import sample_latents
from flowcore.transforms import ActNorm, BatchNorm, ChannelWhitening, InvertibleConv

from .laws import check, perturbed

# architecture, fields of a small one, its image (C, H, W)
SRFLOW = {"scale": 2, "levels": 2, "steps": 1, "transition_steps": 1, "hidden": 4, "residual": True}
SRFLOW |= {"encoder_blocks": 2, "encoder_width": 4, "encoder_growth": 3, "stacked_blocks": (1,)}
BARE = {**SRFLOW, "transition_steps": 0, "injector": False, "stacked_blocks": ()}
DEEP = {"scale": 2, "layers": "s2pcdc", "hidden": 4, "hidden_layers": 2, "residual_blocks": 1}
DEEP |= {"encoder_blocks": 2, "encoder_width": 4, "encoder_growth": 3, "stacked_blocks": (1,)}
DARK = {"steps": 1, "transition_steps": 1, "hidden": 4, "encoder_blocks": 2, "encoder_width": 4, "encoder_growth": 3}
DARK |= {"stacked_blocks": (1,)}
GLOW = {"levels": 2, "steps": 1, "hidden": 6}
STYLED = {**GLOW, "image_size": (4, 8), "styles": ("smile",)}
LABELED = {**GLOW, "channels": 1, "classes": 3}
TABLE = {"split_prior": "table", "image_size": (4, 8), "network": "plain", "actnorm": "signed", "last_mixing": "conv"}
DIGITS = {"image_size": (3, 4), "classes": 3, "steps": 2, "hidden": 6, "styles": ("bold", "slanted")}
COLORS = {"steps": (1, 1), "hidden": (6, 6), "widths": (4, 4, 8), "merged": 8, "features": 2}
SINGLE = {"structure": "single", "steps": (2,), "hidden": (6,), "widths": (4, 4), "merged": 4, "features": 2}
HCFLOW = {"steps": 2, "detail_steps": 1, "hidden": 4, "detail_hidden": 4}
HCFLOW |= {"extractor_blocks": (1, 1), "extractor_width": 4, "extractor_growth": 2}
SMALL = {
    "hcflow": ("hcflow", HCFLOW, (3, 4, 8)),
    "hcflow for rescaling": ("hcflow", {**HCFLOW, "scale": 2, "rescaling": True}, (3, 4, 6)),
    "srflow": ("srflow", SRFLOW, (3, 4, 8)),
    "srflow without injectors": ("srflow", BARE, (3, 4, 8)),
    "srflow_da": ("srflow_da", DEEP, (3, 4, 8)),
    "llflow": ("llflow", DARK, (3, 8, 16)),
    "glow": ("glow", {**GLOW, "mixing": "shuffle"}, (3, 4, 8)),
    "glow with styles": ("glow", STYLED, (3, 4, 8)),
    "glow with labels": ("glow", {**LABELED, "dequantizer_steps": 1}, (1, 4, 8)),
    "glow by table": ("glow", {**LABELED, **TABLE}, (1, 4, 8)),
    "realnvp": ("realnvp", {"scales": 2, "hidden": 4, "blocks": 1}, (3, 4, 6)),
    "ffjord": ("ffjord", {"scales": 2, "blocks": 1, "hidden": (3,), "steps": 1, "how": "exact"}, (3, 4, 6)),
    "residual_flow": (
        "residual_flow",
        {"blocks": (1, 1), "hidden": 3, "full_blocks": 1, "full_hidden": 3, "image_size": (4, 6)},
        (3, 4, 6),
    ),
    "class_conditional": ("class_conditional", DIGITS, (1, 3, 4)),
    "colorizer": ("colorizer", COLORS, (2, 4, 8)),
    "colorizer on one grid": ("colorizer", SINGLE, (2, 4, 8)),
}
# Parameters, by the start of their names, that neither latents nor images depend on.
UNTRAINED = {
    "glow with labels": ("dequantizer.",),
    # of the encoder's enlargement, which published files hold and this flow, not residual, has no use for
    "srflow_da": ("encoder.conv_up.0.", "encoder.conv_hr.", "encoder.conv_last."),
}
every_model = pytest.mark.parametrize("model", SMALL)


def strength(model):
    """Of noise on all parameters; more of it would leave a mixing of 192 channels ill-conditioned."""
    return 0.02 if model == "llflow" else 0.05


def small(model, seed=4):
    """A small model away from its start, buffers included, in float32."""
    architecture, fields, _ = SMALL[model]
    torch.manual_seed(seed)
    flow = perturbed(build(architecture, configure(architecture, fields)), strength(model))
    generator = torch.Generator().manual_seed(seed)
    for part in flow.modules():
        if isinstance(part, BatchNorm):
            part.mean.copy_(0.3 * torch.randn(part.mean.shape, generator=generator))
            part.var.copy_(0.5 + torch.rand(part.var.shape, generator=generator))
        if isinstance(part, ChannelWhitening):
            part.mean.copy_(0.3 + 0.3 * torch.rand(part.mean.shape, generator=generator))
            part.matrix.copy_(2 * torch.eye(2) + torch.rand(2, 2, generator=generator).tril())
    if flow.styles:
        directions = flow.get_buffer("style_directions")
        directions.copy_(torch.randn(directions.shape, generator=generator))
    return flow


def image(model, batch=2, seed=6):
    return torch.rand(batch, *SMALL[model][2], generator=torch.Generator().manual_seed(seed))


def source(model, batch=2):
    """What the model is conditioned on; None for nothing."""
    architecture, fields, (_, height, width) = SMALL[model]
    if architecture in ("srflow", "srflow_da", "hcflow"):
        scale = fields.get("scale", 4)
        return torch.rand(batch, 3, height // scale, width // scale, generator=torch.Generator().manual_seed(5))
    if SMALL[model][0] == "llflow":
        return torch.rand(batch, 3, 8, 16, generator=torch.Generator().manual_seed(5)) ** 3
    if SMALL[model][0] == "colorizer":  # luma, hints and a palette
        given = torch.rand(batch, 8, 16, 32, generator=torch.Generator().manual_seed(5))
        given[:, 4:] = given[:, 4:, :1, :1]
        return given
    return torch.tensor([2, 1, 0, 1])[:batch] if small(model).classes else None


def condition_of(flow, model, batch=2):
    given = source(model, batch)
    if given is None:
        return None
    return flow.encode_condition(given.to(next(flow.parameters()).dtype) if given.is_floating_point() else given)


def outputs(flow, model):
    """Latents, logdet and an image from noise, flat."""
    cond = condition_of(flow, model)
    with torch.no_grad():
        latents, logdet = flow(image(model), cond)
        drawn = sample_latents(flow.latent_shapes(*SMALL[model][2][1:]), 2, seed=3)
        return torch.cat([*(z.flatten() for z in latents), logdet, flow.inverse(drawn, cond).flatten()])


def test_every_architecture_is_here():
    assert {architecture for architecture, _, _ in SMALL.values()} == ARCHITECTURES.keys()


# --- attributes -------------------------------------------------------------------------------------------------------


@every_model
def test_attributes_and_latent_shapes(model):
    architecture, fields, (channels, height, width) = SMALL[model]
    flow = small(model)
    assert flow.architecture == architecture
    assert flow.channels == channels
    assert flow.config == configure(architecture, fields)
    assert flow.image_size == fields.get("image_size")
    assert flow.classes == (fields.get("classes") or 0)
    assert (flow.dequantizer is not None) == bool(fields.get("dequantizer_steps"))
    assert flow.fixed_size == (model in ("glow by table", "class_conditional", "residual_flow"))
    assert height % flow.size_multiple == width % flow.size_multiple == 0
    upscalers = dict.fromkeys(("srflow", "srflow_da", "hcflow"), "low_resolution")
    sources = {**upscalers, "colorizer": "luma", "llflow": "low_light"}
    assert flow.capabilities.source == sources.get(architecture, "labels" if flow.classes else "none")
    assert (flow.condition_encoder is None) == (flow.capabilities.source == "none")
    shapes = flow.latent_shapes(height, width)
    assert sum(c * h * w for c, h, w in shapes) == channels * height * width
    assert [tuple(z.shape[1:]) for z in flow(image(model), condition_of(flow, model))[0]] == shapes


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [m for m in SMALL if source(m) is None])
def test_an_unconditional_model_refuses_a_condition(model):
    flow = small(model)
    x = image(model)
    with pytest.raises(ConditionError, match=f"{flow.architecture} model is unconditional"):
        flow.encode_condition(torch.tensor([0, 1]))
    cond = Condition(features=(None,) * len(flow.levels), labels=torch.eye(3)[:2])
    for ask in (
        lambda: flow(x, cond),
        lambda: flow.inverse(flow(x)[0], cond),
        lambda: flow.by_position(x, cond),
        lambda: flow.initialize(x, cond),
    ):
        with pytest.raises(ConditionError, match="takes no condition"):
            ask()


@pytest.mark.parametrize("model", [m for m in SMALL if source(m) is not None])
def test_a_conditional_model_asks_for_its_condition(model):
    flow = small(model)
    x = image(model)
    latents = flow(x, condition_of(flow, model))[0]
    for ask in (lambda: flow(x), lambda: flow.inverse(latents), lambda: flow.by_position(x)):
        with pytest.raises(ConditionError, match="takes a condition; make one with"):
            ask()


labeled = pytest.mark.parametrize("model", [m for m in SMALL if small(m).classes])


@labeled
def test_integer_and_one_hot_weights_are_the_same_labels(model):
    flow = small(model)
    x = image(model)
    results = [
        flow(x, flow.encode_condition(labels))
        for labels in (torch.tensor([2, 1]), torch.tensor([2, 1], dtype=torch.int32), torch.eye(3)[[2, 1]])
    ]
    for latents, logdet in results[1:]:
        assert torch.equal(logdet, results[0][1])
        assert all(torch.equal(one, two) for one, two in zip(latents, results[0][0], strict=True))


@labeled
def test_labels_change_the_latents_and_may_be_mixed(model):
    flow = small(model).double()
    x = image(model, batch=1).double()
    first, second, mixed = (
        flow.encode_condition(torch.tensor([weights], dtype=torch.float64))
        for weights in ([1, 0, 0], [0, 1, 0], [0.5, 0.5, 0])
    )
    assert (likelihood.log_prob(flow, x, first) - likelihood.log_prob(flow, x, second)).abs() > 1e-3
    for other in (first, second):
        assert not torch.allclose(flow(x, mixed)[0][-1], flow(x, other)[0][-1], atol=1e-6)


@labeled
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 4], "knows the labels 0 to .*; got 0 to 4"),
        ([-1, 1], "knows the labels 0 to .*; got -1 to 1"),
        ([0.0, 1.0], r"whole numbers of shape \(B,\).*got \(2,\) torch.float32"),
        ([True, False], r"whole numbers.*got \(2,\) torch.bool"),
        ([[0, 1], [1, 0]], r"got \(2, 2\) torch.int64"),
        ([[0.5, 0.5]], r"weights of shape \(B, .*got \(1, 2\) torch.float32"),
        (1, r"got \(\) torch.int64"),
    ],
    ids=str,
)
def test_wrong_labels_are_refused_with_what_came(model, labels, sentence):
    with pytest.raises(ConditionError, match=sentence):
        small(model).encode_condition(torch.tensor(labels))


@labeled
def test_labels_of_another_batch_or_model_are_refused(model):
    flow = small(model)
    x = image(model)
    latents = flow(x, condition_of(flow, model))[0]
    cond = flow.encode_condition(torch.tensor([0, 1, 2]))
    for ask in (lambda: flow(x, cond), lambda: flow.inverse(latents, cond)):
        with pytest.raises(ConditionError, match="2 items"):
            ask()
    cond = dataclasses.replace(flow.encode_condition(torch.tensor([0, 1])), labels=torch.eye(7)[:2])
    with pytest.raises(ConditionError, match=r"2 items and \d classes; the condition has 2 and 7"):
        flow(x, cond)


@labeled
def test_a_condition_of_one_item_serves_several_and_expands(model):
    flow = small(model)
    x = image(model)
    one, each = (flow.encode_condition(torch.tensor(labels)) for labels in ([2], [2, 2]))
    assert (one.batch, one.expand(2).batch) == (1, 2)
    # only a prior takes a condition of one item as it is
    for cond in (one.expand(2), one)[: 1 + (flow.architecture == "glow")]:
        assert torch.allclose(flow(x, cond)[1], flow(x, each)[1], atol=1e-5)


# --- sizes ------------------------------------------------------------------------------------------------------------


@every_model
def test_images_that_do_not_fit_are_refused(model):
    flow = small(model)
    cond = condition_of(flow, model)
    for shape in ((2, 5, 4, 8), (5, 4, 8)):
        with pytest.raises(ShapeError, match=re.escape(f"(B, {flow.channels}, H, W); got {shape}")):
            flow(torch.zeros(shape), cond)
    height, width = SMALL[model][2][1:]
    if flow.fixed_size:
        sentence = f"images of {height}x{width} only; got {height + 1}x{width}. Resize the image."
    else:
        m = flow.size_multiple
        sentence = f"sides divisible by {m}; got {height + 1}x{width}. Crop \\(to {height}x{width}\\) or pad it."
    with pytest.raises(ShapeError, match=sentence):
        flow(torch.zeros(2, flow.channels, height + 1, width), cond)
    with pytest.raises(ShapeError, match=sentence):
        flow.latent_shapes(height + 1, width)


@every_model
def test_latents_that_do_not_fit_are_refused(model):
    flow = small(model)
    cond = condition_of(flow, model)
    *rest, deep = sample_latents(flow.latent_shapes(*SMALL[model][2][1:]), 2)
    wider = [torch.cat([z, z], dim=-1) for z in (*rest, deep)]
    wrong = [[], [*rest, deep, deep], [*rest, deep.flatten(1)], [*rest, deep[:, :-1]]]
    wrong += [[deep], [*wider[:-1], deep], [*rest, deep[:1]]] if rest else []
    for latents in wrong:
        with pytest.raises(ShapeError, match="Expected"):
            flow.inverse(latents, cond)
    if flow.fixed_size:
        with pytest.raises(ShapeError, match="Expected latents of shapes"):
            flow.inverse(wider, cond)


# --- copies and files -------------------------------------------------------------------------------------------------


@every_model
def test_a_copy_is_independent_of_the_original(model):
    """Closures over the original would make a moving average of weights run with the original's."""
    flow = small(model)
    twin = copy.deepcopy(flow)
    before = outputs(flow, model)
    assert torch.equal(outputs(twin, model), before)
    ours = {t.data_ptr() for t in flow.state_dict().values()}
    assert not ours & {t.data_ptr() for t in twin.state_dict().values()}
    with torch.no_grad():
        for t in flow.state_dict().values():
            t.zero_()  # whatever the original becomes
    assert torch.equal(outputs(twin, model), before)


@every_model
def test_a_file_gives_the_model_back(model, tmp_path):
    flow = small(model)
    flow.provenance = {"source": "made for a test"}
    save(flow, tmp_path / "model.safetensors")
    back = read(tmp_path / "model.safetensors")
    assert back.config == flow.config
    assert back.architecture == flow.architecture
    assert back.provenance == flow.provenance
    state, actual = flow.state_dict(), back.state_dict()
    assert actual.keys() == state.keys()
    assert all(torch.equal(t, state[name]) and t.dtype == state[name].dtype for name, t in actual.items())
    assert torch.equal(outputs(back, model), outputs(flow, model))


@every_model
def test_a_file_in_float16_keeps_whole_numbers_and_rounds_the_rest(model, tmp_path):
    flow = small(model)
    save(flow, tmp_path / "model.safetensors", dtype=torch.float16)
    back = read(tmp_path / "model.safetensors")
    state = flow.state_dict()
    for name, t in back.state_dict().items():
        assert t.dtype == state[name].dtype
        assert torch.equal(t, state[name].half().float() if t.is_floating_point() else state[name])
    x, cond = image(model), condition_of(back, model)
    assert torch.allclose(back.inverse(back(x, cond)[0], cond), x, atol=1e-3)


@every_model
def test_a_file_in_eight_bits_rounds_networks_and_keeps_the_inverse(model, tmp_path, monkeypatch):
    monkeypatch.setattr("flowcore.checkpoints.file.MIN_SIZE", 1)
    flow, path = small(model), tmp_path / "model.safetensors"
    save(flow, path, dtype=torch.int8)
    back, scales = read(path), {}
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, t in flow.state_dict().items():
        kept, loaded = stored.pop(name), back.state_dict()[name]
        assert loaded.dtype == t.dtype
        if kept.dtype == torch.int8:
            scales[name] = stored.pop(f"{name}.scale").float()
            step = scales[name].repeat_interleave(64, 1)[:, : t[0].numel()].reshape(t.shape)
            assert torch.equal(loaded, kept * step)
            assert bool(((loaded - t).abs() <= 0.5001 * step).all())
        else:
            assert torch.equal(loaded, t.half().float() if t.is_floating_point() else t)
    assert stored == {}
    exact = (InvertibleConv, ActNorm, BatchNorm, ChannelWhitening, LipschitzConv)
    inverted = {f"{path}.{name}" for path, m in flow.named_modules() if isinstance(m, exact) for name in m.state_dict()}
    assert not scales.keys() & inverted
    assert bool(scales) == (model != "residual_flow")
    x, cond = image(model), condition_of(back, model)
    assert torch.allclose(back.inverse(back(x, cond)[0], cond), x, atol=1e-3)
    save(back, tmp_path / "again.safetensors", dtype=torch.int8)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_file_of_another_size_is_refused(tmp_path):
    save(small("glow by table"), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)do not fit its configuration.*prior"):
        read(tmp_path / "model.safetensors", {"image_size": (8, 8)})


@every_model
def test_a_model_builds_on_the_meta_device(model):
    architecture, fields, _ = SMALL[model]
    with torch.device("meta"):
        flow = build(architecture, configure(architecture, fields))
    assert {t.device.type for t in flow.state_dict().values()} == {"meta"}
    expected = {name: (t.shape, t.dtype) for name, t in small(model).state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in flow.state_dict().items()} == expected


# --- the one call that writes -----------------------------------------------------------------------------------------


@every_model
def test_initialize_returns_the_latents_that_forward_then_makes(model):
    flow = small(model).double()
    x, cond = image(model, batch=4).double(), condition_of(flow, model, batch=4)
    before = {name: t.clone() for name, t in flow.state_dict().items()}
    latents = flow.initialize(x, cond)
    after = {name: t.clone() for name, t in flow.state_dict().items()}
    written = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert bool(written) == (model not in ("class_conditional", "ffjord"))  # these have nothing that depends on data
    endings = (".bias", ".log_scale", ".scale", ".mean", ".var", ".matrix", ".u", ".v")
    sorting = tuple(
        f"{name}." for name, m in flow.named_modules() if isinstance(m, InvertibleConv) and m.start == "principal"
    )
    assert all(name.endswith(endings) or name.startswith(sorting) for name in written)
    assert not any(name.startswith(("encoder", "dequantizer", "top")) for name in written)
    for training in (True, False):
        again = flow.train(training)(x, cond)[0]
        for one, two in zip(again, latents, strict=True):
            assert torch.allclose(one, two, atol=1e-9)
    flow.inverse(latents, cond)
    flow.by_position(x, cond)
    assert all(torch.equal(t, after[name]) for name, t in flow.state_dict().items())


# --- configuration ----------------------------------------------------------------------------------------------------


@every_model
def test_a_configuration_survives_json(model):
    architecture, fields, _ = SMALL[model]
    config = configure(architecture, fields)
    back = configure(architecture, json.loads(json.dumps(dataclasses.asdict(config))))
    assert back == config
    assert hash(back) == hash(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_default_configuration_is_valid_and_frozen(architecture):
    config = configure(architecture, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_unknown_field_was_written_by_a_newer_flowcore(architecture):
    with pytest.raises(CheckpointError, match=f"Unknown {architecture} field 'hue'.*newer flowcore, or misspelt"):
        configure(architecture, {"hue": 1})


N_BITS = [0, 9, 8.0, "8", None, True]
CHANNELS = [0, 2, 4, "3", 3.0, None, True]
GRID = ["", "Bins", None, 0]
SWITCH = [1, 0, "yes", None]
SIZE = [0, -4, 4.0, "4", (4,), (4, 4, 4), (4, "4"), (4.0, 4.0), True, (True, 4), 16388]
WRONG = {
    "hcflow": {
        "scale": [3, 16, 4.0, None, True],
        "steps": [0, 257, 1.5, None],
        "detail_steps": [0, 257, 1.5, None],
        "hidden": [0, 4097, None],
        "detail_hidden": [0, 4097, None],
        "extractor_blocks": [7, None, "77", (7, -1), (257, 1), (1.0, 1)],
        "extractor_width": [0, 4097, None],
        "extractor_growth": [0, 4097, None],
        "quant_bins": [0, 65537, None],
        "rescaling": [1, "yes", None],
        "temperature": [-0.1, 10, math.nan, None, "1", True],
        "calm_edges": [-0.1, 1.1, math.nan, None, "1", True],
    },
    "srflow": {
        "scale": [3, 0, -4, "4", 4.0, None, True],
        "levels": [0, 4, -1, "3", 3.0, None, True],
        "steps": [0, -1, 257, 1.5, "16", None, True],
        "transition_steps": [-1, 17, 0.5, None],
        "injector": [1, 0, "no", None],
        "hidden": [0, 5000, "64", None],
        "hidden_layers": [-1, 65, 1.0],
        "hidden_kernel": [0, 2, 5, "3", 3.0, None, True],
        "encoder_blocks": [0, 1000, None],
        "encoder_width": [0, 5000],
        "encoder_growth": [0, 5000],
        "stacked_blocks": [(23,), (-1,), (1.0,), "12", 3, None, (True,)],
        "affine_eps": [-1e-4, 1, 2.0, math.nan, math.inf, "1e-4", None],
        "temperature": [-0.1, 10, math.nan, math.inf, "0.8", None, True],
        "calm_edges": [-0.1, 1.1, math.nan, math.inf, "0", None, True],
        "quant_bins": [0, -1, 65537, 32.0],
        "residual": [1, 0, "yes", None],
        "mixing": ["", "random", None, 3],
    },
    "srflow_da": {
        "scale": [3, 0, -4, "4", 4.0, None, True],
        "layers": [
            "",
            "s2",
            "s2d",
            "s3pc",
            "pc",
            "s2pcd",
            "s2pcdd",
            "s2pcds2",
            "S2PC",
            3,
            None,
            ("s2", "p"),
            "s8pcs2c",
        ],
        "hidden": [0, 5000, "64", None],
        "hidden_layers": [-1, 257, 1.0, None],
        "residual_blocks": [-1, 257, 3, 1.0, None, True],
        "temperature": [-0.1, 10, math.nan, math.inf, "0.8", None, True],
        "calm_edges": [-0.1, 1.1, math.nan, math.inf, "0", None, True],
        "encoder_blocks": [0, 1000, None],
        "encoder_width": [0, 5000],
        "encoder_growth": [0, 5000],
        "stacked_blocks": [(23,), (-1,), (1.0,), "12", 3, None, (True,)],
        "affine_eps": [-1e-4, 1, 2.0, math.nan, math.inf, "1e-4", None],
        "quant_bins": [0, -1, 65537, 32.0],
    },
    "llflow": {
        "steps": [0, -1, 257, 1.5, "12", None, True],
        "transition_steps": [-1, 17, 0.5, None],
        "hidden": [0, 5000, "64", None],
        "encoder_blocks": [0, 1000, None],
        "encoder_width": [0, 5000],
        "encoder_growth": [0, 5000],
        "stacked_blocks": [(24,), (-1,), (1.0,), "12", 3, None, (True,)],
        "affine_eps": [-1e-4, 1, 2.0, math.nan, math.inf, "1e-4", None],
        "quant_bins": [0, -1, 65537, 32.0],
        "temperature": [-0.1, 10, math.nan, math.inf, "0", None, True],
    },
    "glow": {
        "channels": CHANNELS,
        "levels": [0, 9, 1.0, None, True],
        "steps": [0, 257, 1.5, "8", None],
        "hidden": [0, 4097, None],
        "coupling": ["", "Affine", None, 1],
        "mixing": ["", "1x1", None],
        "mixing_start": ["", "reverse", None],
        "affine_eps": [-1e-4, 1, math.nan, math.inf, "0", None, True],
        "learned_top": SWITCH,
        "classes": [-1, 10_001, 1.0, None, True],
        "n_bits": N_BITS,
        "grid": GRID,
        "image_size": [*SIZE, 12, (8, 12)],  # not multiples of 2^3
        "dequantizer_steps": [-1, 65, 1.0, None],
        "pixels": ["", "logit", None],
        "edge": ["", "reflect", None],
        "network": ["", "dense", None],
        "actnorm": ["", "exp", None],
        "scaled": SWITCH,
        "split_prior": ["", "none", None],
        "last_mixing": ["1x1", None, 0],
        "styles": ["smile", [None], ("smile", "smile"), ("smile",)],  # the last for want of image_size
    },
    "residual_flow": {
        "channels": CHANNELS,
        "blocks": [(), (0,), (257,), (1.5,), (1,) * 9, "12", 3, None],
        "hidden": [0, 4097, 1.5, None, True],
        "full_blocks": [-1, 65, 1.5, None],
        "full_hidden": [0, 4097, None],
        "kernels": [(), (2,), (17,), (3,) * 17, "313", 3, None],
        "activation": ["", "relu", None, 0],
        "leading": SWITCH,
        "first_leading": SWITCH,
        "coefficient": [0, 1, -0.5, math.nan, "0.9", None],
        "lipschitz": ["", "norm", None],
        "factor_out": SWITCH,
        "squeeze_first": SWITCH,
        "first_actnorm": SWITCH,
        "alpha": [0, 0.5, -0.1, math.nan, "0.05", None, True],
        "n_bits": N_BITS,
        "grid": GRID,
        "image_size": [*SIZE, 30, (8, 14)],  # not multiples of 2^2
    },
    "ffjord": {
        "channels": CHANNELS,
        "scales": [0, 9, 2.0, None, True],
        "blocks": [0, 65, 1.5, None],
        "hidden": [(0,), (4097,), (1.5,), (True,), "12", 3, None],
        "strides": [(2, 2, 1, 1), (1, 1), (3, 1, 1, 1), (1.0, 1, 1, 1), "2", 3, None],
        "time": ["", "hyper", None, 0],
        "activation": ["", "gelu", None, 0],
        "batch_norm": SWITCH,
        "steps": [0, 1025, 1.5, None, True],
        "solver": ["", "dopri5", None],
        "how": ["", "series", None],
        "alpha": [0.5, -0.1, math.nan, "0.05", None, True],
        "n_bits": N_BITS,
        "grid": GRID,
        "image_size": [*SIZE, 12, (8, 12)],  # not multiples of 2^3
    },
    "realnvp": {
        "channels": CHANNELS,
        "scales": [0, 9, 2.0, None, True],
        "hidden": [0, 4097, 1.5],
        "blocks": [-1, 65, 1.5, None],
        "batch_norm": SWITCH,
        "mask_channel": SWITCH,
        "alpha": [0, 0.5, -0.1, math.nan, "0.05", None, True],
        "n_bits": N_BITS,
        "grid": GRID,
        "image_size": [*SIZE, 3, (4, 3)],  # not multiples of 2
    },
    "class_conditional": {
        "channels": CHANNELS,
        "image_size": [*SIZE, None, 257],  # more than 2^16 subpixels
        "classes": [0, 1001, 1.0, None, True],
        "steps": [0, 65, None],
        "hidden": [0, 4097, 1.5],
        "shift": [-11, 10, math.nan, "0", None],
        "width": [0, -1.0, 100, math.inf, math.nan, None],
        "n_bits": N_BITS,
        "grid": GRID,
        "styles": ["bold", 3, None, ("bold", 3), [None], ("bold", "bold"), ("",)],
    },
    "colorizer": {
        "structure": ["", "Pyramid", "haar", None, 1],
        "steps": [4, None, "4", (0, 1), (65,), (1.0, 1), (True,), ("4",)],
        "hidden": [48, None, (0,), (4097,), (1.5,), (None,)],
        "widths": [48, None, (0, 4), (4097, 4), (4, 4.0)],
        "merged": [0, 1025, 1.0, "64", None, True],
        "features": [0, 1025, 1.0, None, True],
        "dropout": [-0.1, 1, math.nan, "0.3", None, True],
        "backbone": ["", "efficientnet", None, True],
        "predicts_chroma": [1, 0, "yes", None],
        "residual": [1, 0, "yes", None],
        "smooth": [1, 0, "yes", None],
        "working_size": [15, 4097, 256.0, "256", None],
        "temperatures": [1.0, None, (), (1.0,), (1.0, 0.3, 0.1), "ab", (1, -0.1), (11, 1), (math.nan, 1), (True, 1)],
    },
}


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [(a, field, value) for a, fields in WRONG.items() for field, values in fields.items() for value in values],
    ids=str,
)
def test_a_wrong_value_is_named(architecture, field, value):
    with pytest.raises(FlowError, match=f"^{field} must") as caught:
        configure(architecture, {field: value})
    assert short_repr(value) in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_field_has_wrong_values_in_this_file(architecture):
    assert WRONG[architecture].keys() == {f.name for f in dataclasses.fields(ARCHITECTURES[architecture].config)}


@pytest.mark.parametrize("architecture", [a for a, fields in WRONG.items() if "image_size" in fields])
def test_a_square_is_given_by_its_side(architecture):
    assert configure(architecture, {"image_size": 16}).image_size == (16, 16)
    assert configure(architecture, {"image_size": [16, 8]}).image_size == (16, 8)


def test_an_unknown_architecture_is_named():
    with pytest.raises(CheckpointError, match=r"'tarflow'.*srflow"):
        configure("tarflow", {})


def test_an_architecture_is_registered_once():
    entry = ARCHITECTURES["glow"]
    with pytest.raises(ValueError, match="already an architecture 'glow'"):
        register("glow", entry.config, entry.build)


def test_a_task_of_another_architecture_is_refused():
    with pytest.raises(FlowError, match=r"colorize needs a colorizer.*got a glow model"):
        small("glow").require("colorize")


# --- the law ----------------------------------------------------------------------------------------------------------


@every_model
def test_small_models_obey_the_law(model):
    dead = [name for name, _ in small(model).named_parameters() if name.startswith(UNTRAINED.get(model, ()))]
    check(small(model), image(model), lambda flow: condition_of(flow, model), dead=dead, strength=strength(model))
