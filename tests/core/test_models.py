"""What every registered model keeps to: the law, its condition, its sizes, its file, its configuration."""

import copy
import dataclasses
import itertools
import math
import re
import typing

import pytest
import torch
from builders import MODELS, build_minimal, build_model, encode_source, random_image, sides_of, source_of
from flowcore.testing import check
from safetensors import safe_open
from torch import nn

from flowcore import CheckpointError, Condition, ConditionError, FlowError, ShapeError, register, save
from flowcore.flows.prior import sample_latents
from flowcore.flows.transforms import ActNorm, BatchNorm, ChannelWhitening, InvertibleConv, SignedActNorm
from flowcore.models import ARCHITECTURES, build, configure
from flowcore.models.fields import Range, annotated_types, short_repr
from flowcore.models.model_file import read, read_config
from flowcore.models.residual_flow.contractive import LipschitzConv
from flowcore.models.srflow.rrdb import RRDBEncoder

every_model = pytest.mark.parametrize("model", MODELS)
every_architecture = pytest.mark.parametrize("model", [*ARCHITECTURES, "srflow on imdn"])


def image(flow, batch=2):
    return random_image(batch, flow.channels, *sides_of(flow), seed=6)


def condition_of(flow, batch=2):
    return encode_source(flow, source_of(flow, *sides_of(flow), batch))


def untrained(flow):
    """Parameters that neither latents nor images depend on."""
    starts, encoder = ("dequantizer.",), getattr(flow, "encoder", None)
    if not getattr(flow.config, "residual", False):  # of the published encoder's enlargement
        starts += ("encoder.conv_hr.", "encoder.conv_last.", "encoder.backbone.conv_last.")
        if isinstance(encoder, RRDBEncoder):
            used = flow.condition_scale // int(getattr(flow.config, "layers", "s2")[1])  # of the finest grid to LR
            starts += tuple(f"encoder.conv_up.{k}." for k in range(len(encoder.conv_up)) if 2**k >= used)
    return [name for name, _ in flow.named_parameters() if name.startswith(starts)]


def outputs(flow):
    """Latents, logdet and an image from noise, flat."""
    cond = condition_of(flow)
    with torch.no_grad():
        latents, logdet = flow(image(flow), cond)
        drawn = sample_latents(flow.latent_shapes(*sides_of(flow)), 2, seed=3)
        return torch.cat([*(z.flatten() for z in latents), logdet, flow.inverse(drawn, cond).flatten()])


@every_model
def test_latent_shapes_are_those_of_latents_and_tensors_are_known_without_values(model):
    flow = build_model(model)
    height, width = sides_of(flow)
    assert height % flow.size_multiple == width % flow.size_multiple == 0
    assert (flow.condition_encoder is None) == (flow.capabilities.source == "none")
    shapes = flow.latent_shapes(height, width)
    assert sum(c * h * w for c, h, w in shapes) == flow.channels * height * width
    assert [tuple(z.shape[1:]) for z in flow(image(flow), condition_of(flow))[0]] == shapes
    with torch.device("meta"):
        other = build(flow.architecture, flow.config)
    assert {t.device.type for t in other.state_dict().values()} == {"meta"}
    expected = {name: (t.shape, t.dtype) for name, t in flow.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in other.state_dict().items()} == expected


@every_architecture
def test_a_model_asks_for_its_condition_or_refuses_any(model):
    flow = build_model(model)
    x, cond = image(flow), condition_of(flow)
    latents = flow(x, cond)[0]
    if cond is None:
        with pytest.raises(ConditionError):
            flow.encode_condition(torch.tensor([0, 1]))
        wrong, sentence = Condition(features=(None,) * len(flow.levels), labels=torch.eye(3)[:2]), "takes no condition"
    else:
        wrong, sentence = None, "takes a condition; make one with"
    for ask, data in ((flow, x), (flow.inverse, latents), (flow.forward_with_logdet_map, x), (flow.initialize, x)):
        with pytest.raises(ConditionError, match=sentence):
            ask(data, wrong)


@pytest.mark.parametrize("model", ["glow with labels", "glow by table", "class_conditional", "tarflow with labels"])
def test_labels_may_be_mixed_and_those_of_another_batch_or_model_are_refused(model):
    flow = build_model(model)
    x, each = image(flow), flow.encode_condition(torch.tensor([2, 2]))
    first, second, mixed = (
        flow(x, flow.encode_condition(torch.tensor([w, w])))[1] for w in ([1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0])
    )
    for one, two in ((first, second), (first, mixed), (second, mixed)):
        assert (one - two).abs().max() > 1e-3
    cond = flow.encode_condition(torch.tensor([0, 1, 2]))
    for ask in (lambda: flow(x, cond), lambda: flow.inverse(flow(x, each)[0], cond)):
        with pytest.raises(ConditionError):
            ask()
    with pytest.raises(ConditionError):
        flow(x, dataclasses.replace(each, labels=torch.eye(7)[:2]))


def test_wrong_labels_are_refused():
    wrong = [0, 4], [-1, 1], [0.0, 1.0], [True, False], [[0, 1], [1, 0]], [[0.5, 0.5]], 1
    for model, labels in itertools.product(("glow with labels", "class_conditional", "tarflow with labels"), wrong):
        with pytest.raises(ConditionError):
            build_model(model).encode_condition(torch.tensor(labels))


@every_architecture
def test_images_and_latents_that_do_not_fit_are_refused(model):
    flow = build_model(model)
    cond, (height, width) = condition_of(flow), sides_of(flow)
    for shape in ((2, 5, 4, 8), (5, 4, 8)):
        with pytest.raises(ShapeError, match=re.escape(f"(B, {flow.channels}, H, W); got {shape}")):
            flow(torch.zeros(shape), cond)
    advice = "Resize" if flow.fixed_size else f"Crop .to {height}x{width}"
    for ask in (lambda x: flow(x, cond), lambda x: flow.latent_shapes(*x.shape[2:])):
        with pytest.raises(ShapeError, match=advice):
            ask(torch.zeros(2, flow.channels, height + 1, width))

    *rest, deep = sample_latents(flow.latent_shapes(height, width), 2)
    wider = [torch.cat([z, z], dim=-1) for z in (*rest, deep)]
    wrong = [[], [*rest, deep, deep], [*rest, deep.flatten(1)], [*rest, deep[:, :-1]]]
    wrong += [[deep], [*wider[:-1], deep], [*rest, deep[:1]]] if rest else []
    for latents in wrong:
        with pytest.raises(ShapeError):
            flow.inverse(latents, cond)
    if flow.fixed_size:
        with pytest.raises(ShapeError):
            flow.inverse(wider, cond)


@every_architecture
def test_a_copy_is_independent_of_the_original(model):
    """Closures over the original would make a moving average of weights run with the original's."""
    flow = build_model(model)
    twin = copy.deepcopy(flow)
    before = outputs(flow)
    assert torch.equal(outputs(twin), before)
    ours = {t.data_ptr() for t in flow.state_dict().values()}
    assert not ours & {t.data_ptr() for t in twin.state_dict().values()}
    with torch.no_grad():
        for t in flow.state_dict().values():
            t.zero_()  # whatever the original becomes
    assert torch.equal(outputs(twin), before)


@every_architecture
def test_a_file_gives_the_model_back_or_rounds_it_to_float16(model, tmp_path):
    flow, path = build_model(model), tmp_path / "model.safetensors"
    flow.provenance = {"source": "made for a test"}
    state = flow.state_dict()
    for dtype in (torch.float32, torch.float16):
        save(flow, path, dtype=dtype)
        back = read(path)
        assert read_config(path).tasks == flow.capabilities.tasks
        assert (back.config, back.architecture) == (flow.config, flow.architecture)
        assert back.provenance == flow.provenance
        assert back.state_dict().keys() == state.keys()
        for name, t in back.state_dict().items():
            assert t.dtype == state[name].dtype
            assert torch.equal(t, state[name].to(dtype).float() if t.is_floating_point() else state[name])
        if dtype == torch.float32:
            assert torch.equal(outputs(back), outputs(flow))
    x, cond = image(flow), condition_of(back)
    assert torch.allclose(back.inverse(back(x, cond)[0], cond), x, atol=1e-3)
    if flow.fixed_size:
        with pytest.raises(CheckpointError, match="do not fit its configuration"):
            read(path, {"image_size": (8, 8)})


@every_architecture
def test_a_file_in_eight_bits_rounds_networks_and_keeps_the_inverse(model, tmp_path, monkeypatch):
    monkeypatch.setattr("flowcore.models.model_file.MIN_SIZE", 1)
    flow, path = build_model(model), tmp_path / "model.safetensors"
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
    x, cond = image(flow), condition_of(back)
    assert torch.allclose(back.inverse(back(x, cond)[0], cond), x, atol=1e-3)
    save(back, tmp_path / "again.safetensors", dtype=torch.int8)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


INITIALIZED = ["srflow on imdn", "srflow without injector", "srflow without transition steps", "colorizer on one grid"]
INITIALIZED += ["glow signed", "glow log3", "glow principal", "glow by table"]


@pytest.mark.parametrize("model", [*ARCHITECTURES, *INITIALIZED, "tarflow of shifts"])
def test_initialize_normalizes_and_returns_the_latents_that_forward_then_makes(model):
    """The deepest grid has more pixels in the batch than channels, for the sake of principal axes."""
    flow = build_model(model).double()
    height, width = sides_of(flow, 4)
    x = random_image(16, flow.channels, height, width, seed=6).double()
    cond = encode_source(flow, source_of(flow, height, width, 16))
    before = {name: t.clone() for name, t in flow.state_dict().items()}
    latents = flow.initialize(x, cond)
    after = {name: t.clone() for name, t in flow.state_dict().items()}
    written = {name for name, t in after.items() if not torch.equal(t, before[name])}
    assert bool(written) == (model not in ("class_conditional", "ffjord", "tarflow"))  # nothing depends on data
    endings = (".bias", ".log_scale", ".scale", ".mean", ".var", ".matrix", ".u", ".v")
    principal = {f"{n}." for n, m in flow.named_modules() if isinstance(m, InvertibleConv) and m.start == "principal"}
    assert all(name.endswith(endings) or name.startswith(tuple(principal)) for name in written)
    assert not any(name.startswith(("encoder", "dequantizer", "top")) for name in written)
    kinds = (ActNorm, SignedActNorm, BatchNorm)
    norms = {name: part for name, part in flow.levels.named_modules() if isinstance(part, kinds)}
    for name, norm in norms.items():  # also those of networks
        assert {f"levels.{name}.{end}" for end in ("bias", "mean") if hasattr(norm, end)} <= written, name
    seen = []
    for name, norm in norms.items():
        if ".conditioner." not in name and flow.architecture != "residual_flow":  # which bounds its scales
            norm.register_forward_hook(lambda part, arguments, result: seen.append((part, result[0])))
    for training in (True, False):
        again = flow.train(training)(x, cond)[0]
        for one, two in zip(again, latents, strict=True):
            assert torch.allclose(one, two, atol=1e-9)
    for norm, z in seen:
        assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-8
        eps = 0.2 if isinstance(norm, BatchNorm) else 1e-3
        assert (z.var(dim=(0, 2, 3), correction=0) - 1).abs().max() < eps
    flow.inverse(latents, cond)
    flow.forward_with_logdet_map(x, cond)
    assert all(torch.equal(t, after[name]) for name, t in flow.state_dict().items())


def test_default_configurations_are_valid_and_frozen_and_refuse_unknown_fields():
    for architecture in ARCHITECTURES:
        config = configure(architecture, {})
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, 1)
        with pytest.raises(CheckpointError, match="hue"):
            configure(architecture, {"hue": 1})


SIZE = [0, -4, 4.0, "4", (4,), (4, 4, 4), (4, "4"), (4.0, 4.0), True, (True, 4), 16388]
STYLES = ["smile", 3, None, [None], ("smile", 3), ("smile", "smile"), ("",)]
LAYERS = ["", "s2", "s2d", "s3pc", "pc", "s2pcd", "s2pcdd", "s2pcds2", "S2PC", "s8pcs2c", 3, None, ("s2", "p")]
STACKED = [(24,), (-1,), (1.0,), "12", 3, None, (True,)]
PAIR = [1.0, None, (), (1.0,), (1.0, 0.3, 0.1), "ab", (1, -0.1), (1, 2000), (math.nan, 1), (True, 1)]
# Values that the annotation of a field does not tell.
WRONG = {
    "hcflow": {"extractor_blocks": [7, (7,), (7, 7, 7)]},
    "srflow": {"levels": [0, 4, -1, "3", 3.0, None, True], "stacked_blocks": [(23,), *STACKED[1:]]},
    "srflow_da": {
        "layers": LAYERS,
        "residual_blocks": [3],  # no divisor of hidden_layers
        "stacked_blocks": [(23,), *STACKED[1:]],
    },
    "llflow": {"stacked_blocks": STACKED},
    "glow": {
        "image_size": [*SIZE, 12, (8, 12)],  # not multiples of 2^3
        "styles": [*STYLES, ("smile",)],  # the last for want of image_size
    },
    "residual_flow": {
        "blocks": [(), (1,) * 9],
        "kernels": [(), (2,), (3,) * 17],
        "image_size": [*SIZE, 30, (8, 14)],  # not multiples of 2^2
    },
    "ffjord": {
        "strides": [(2, 2, 1, 1), (1, 1), (1.0, 1, 1, 1)],
        "image_size": [*SIZE, 12, (8, 12)],  # not multiples of 2^3
    },
    "realnvp": {"image_size": [*SIZE, 3, (4, 3)]},  # not multiples of 2
    "class_conditional": {"image_size": [*SIZE, None, 257], "styles": STYLES},  # 257^2 is more than 2^16 subpixels
    "tarflow": {"image_size": [*SIZE, None, 12, (8, 12)], "labels": STYLES},  # not multiples of 8
    "colorizer": {"temperatures": PAIR, "coherence_scales": PAIR},
}


def wrong_values(kind, bound):
    """What the annotation of a field excludes: values out of bounds, and of other types."""
    if kind is bool:
        return [1, 0, "yes", None]
    if typing.get_origin(kind) is typing.Literal:
        return ["no choice", -1, 3.0, "3", None, True]
    if not isinstance(bound, Range):
        return []
    if kind is int:
        return [bound.low - 1, bound.high + 1, bound.low + 0.5, float(bound.low), str(bound.low), None, True]
    if kind is float:
        end = bound.high if bound.open else bound.high + 0.1
        return [bound.low - 0.1, end, math.nan, math.inf, str(bound.low), None, True]
    item, *others = typing.get_args(kind)
    no_number = bound.low + 0.5 if item is int else math.nan
    length = 1 if Ellipsis in others else 1 + len(others)
    items = [bound.low - 1, bound.high + 1, no_number, True, None]
    return [*((value,) * length for value in items), "12", 3, None]


def answer(architecture, field, value):
    """What the configuration says to a value."""
    try:
        configure(architecture, {field: value})
    except FlowError as error:
        return str(error)
    return "nothing"


def test_wrong_values_of_every_field_are_named():
    unnamed = []
    for architecture, entry in ARCHITECTURES.items():
        for field, (kind, bound) in annotated_types(entry.config).items():
            values = wrong_values(kind, bound) + WRONG[architecture].get(field, [])
            assert values, f"{architecture}: {field}"
            for value in values:
                said = answer(architecture, field, value)
                if not said.startswith(f"{field} must") or short_repr(value) not in said:
                    unnamed.append(f"{architecture}: {field}={short_repr(value)} gets {said}")
    assert unnamed == []


def test_a_square_is_given_by_its_side():
    for architecture in (a for a, fields in WRONG.items() if "image_size" in fields):
        assert configure(architecture, {"image_size": 16}).image_size == (16, 16)
        assert configure(architecture, {"image_size": [16, 8]}).image_size == (16, 8)


def test_fields_that_do_not_go_together_are_named():
    for architecture, fields, word in (
        ("glow", {"split_prior": "table"}, "image_size"),
        ("glow", {"network": "plain", "edge": "flag"}, "edge"),
        ("ffjord", {"scales": 2, "strides": (2, -2), "hidden": (8,)}, "single grid"),
        ("ffjord", {"scales": 2, "batch_norm": True}, "single grid"),
        ("ffjord", {"scales": 1, "strides": (2, 2), "hidden": (8,)}, "as many"),
        ("ffjord", {"scales": 1, "strides": (1,), "hidden": (8,)}, "2 of"),
        ("ffjord", {"hidden": (8,) * 17}, "at most 16"),
        ("tarflow", {"width": 100}, "width"),
        ("residual_flow", {"image_size": None}, "image_size"),
        ("tarflow", {"labels": ("cat", "dog"), "classes": 3}, "labels"),
    ):
        with pytest.raises(FlowError, match=word):
            configure(architecture, fields)


SHAPES = [  # architecture, fields that differ from the minimal ones, sides, shapes of the latents, size multiple
    ("srflow", {"scale": 8, "levels": 4}, (160, 96), [(6, 80, 48), (12, 40, 24), (192, 10, 6)], 16),
    ("realnvp", {"scales": 3}, (8, 16), [(6, 4, 8), (12, 2, 4), (12, 2, 4)], 4),
    ("ffjord", {"channels": 3, "scales": 4}, (32, 32), [(6, 16, 16), (12, 8, 8), (24, 4, 4), (24, 4, 4)], 8),
    ("colorizer", {}, (4, 8), [(6, 2, 4), (8, 1, 2)], 4),
    ("colorizer", {"structure": "single"}, (4, 6), [(8, 2, 3)], 2),
]


@pytest.mark.parametrize(("architecture", "fields", "sides", "expected", "multiple"), SHAPES, ids=str)
def test_latent_shapes(architecture, fields, sides, expected, multiple):
    flow = build_minimal(architecture, **fields)
    assert flow.latent_shapes(*sides) == expected
    assert flow.size_multiple == multiple


def test_an_architecture_is_known_by_name_and_registered_once():
    with pytest.raises(CheckpointError, match=r"'starflow'.*srflow"):
        configure("starflow", {})
    entry = ARCHITECTURES["glow"]
    with pytest.raises(ValueError, match="already an architecture 'glow'"):
        register("glow", entry.config, entry.build)
    register(entry, replace=True)
    assert ARCHITECTURES["glow"] is entry
    with pytest.raises(ValueError, match="already a source 'Glow by y0ast'"):
        register(dataclasses.replace(entry, name="another"))
    for config, builder in ((dict, entry.build), (entry.config, None)):
        with pytest.raises(TypeError, match="needs a dataclass and a function"):
            register("another", config, builder)
    with pytest.raises(FlowError, match="needs a colorizer"):
        build_model("glow").require("colorize")


@every_model
def test_models_obey_the_law(model):
    flow = build_model(model)
    for part in flow.modules():
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0  # it works in training alone
    networks = flow.architecture not in ("ffjord", "residual_flow")
    local = networks and flow.architecture != "class_conditional"
    check(flow, image(flow), condition_of, dead=untrained(flow), networks=networks, local=local, strength=0.0)
