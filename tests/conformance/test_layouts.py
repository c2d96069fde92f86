"""Every published layout is recognized, uses every tensor, and computes what its program computes.

The numbers in ``layouts.safetensors`` come from a second implementation of the programs, written without flowcore and
held against the recorded tensors; it was last part of the tests at commit 236c108.
"""

import json
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from builders import srflow_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from flowcore import CheckpointError, load
from flowcore.flows import likelihood
from flowcore.models.family import sources
from flowcore.models.glow import GlowConfig
from flowcore.models.hcflow import HCFlowConfig
from flowcore.models.hcflow.published import HCFLOW
from flowcore.models.llflow import LLFlowConfig
from flowcore.models.llflow.published import LLFLOW
from flowcore.models.model_file import build_on_meta
from flowcore.models.realnvp import RealNVPConfig
from flowcore.models.realnvp.published import CHRISCHUTE
from flowcore.models.source import Checkpoint
from flowcore.models.srflow import SRFlowConfig, SRFlowDAConfig
from flowcore.models.srflow.published import SRFLOW, SRFLOW_DA
from flowcore.models.tarflow import TarFlowConfig

from .published import (
    HERE,
    KEYS,
    SMALL,
    UNUSED,
    Shapes,
    image,
    keys,
    meta,
    random_state,
    recording,
    sample_of,
    shrink,
    small_srflow,
    srflow_shapes,
)


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


SRFLOW_LAYOUTS = {
    "4x": {},
    "4x one block twice": {"stacked_blocks": (1, 1)},
    "4x nothing stacked": {"stacked_blocks": ()},
    "8x": {"scale": 8, "levels": 4, "steps": 2, "transition_steps": 2},
    "8x of five blocks": {"scale": 8, "levels": 4, "encoder_blocks": 5, "stacked_blocks": (4, 1, 0)},
    "8x on three levels": {"scale": 8, "levels": 3, "transition_steps": 0},
    "subnets of four 3x3 convolutions": {"hidden_layers": 4, "hidden_kernel": 3},
    "subnets without hidden convolutions": {"hidden_layers": 0},
    "other widths": {"encoder_width": 10, "encoder_growth": 3, "hidden": 5},
}


@pytest.mark.parametrize("layout", SRFLOW_LAYOUTS)
def test_srflow_layout(layout):
    fields = {**SMALL, **SRFLOW_LAYOUTS[layout]}
    state = small_srflow(**fields)
    flow = SRFLOW.load(state, {"stacked_blocks": fields["stacked_blocks"]})
    assert flow.config == SRFlowConfig(**fields)
    back = srflow_checkpoint(flow)
    assert back.keys() == {name for name in state if not name.startswith("flowUpsamplerNet.f.")}
    assert all(torch.equal(t, state[name]) for name, t in back.items())

    flow, scale = flow.double(), fields["scale"]
    expected = recording("srflow/layouts")
    hr, cond = image(1, 2, 3, 4 * scale, 6 * scale), flow.encode_condition(image(2, 2, 3, 4, 6))
    latents, logdet = flow(hr, cond)
    for i, z in enumerate(sample_of(latents)):
        near(z, expected[f"{layout}.latent{i}"])
    near(logdet, expected[f"{layout}.logdet"])
    near(flow.inverse(latents, cond), hr, 1e-5)


# Published files by source: tensor names and shapes, the configuration that they tell, and which tensors nothing reads.
DA, DA_UNREAD = keys("srflow_da"), r"flowUpsamplerNet\.f\.0\.(weight|bias)"
LL_UNREAD = r"(RRDB\.(downconv3|HRconv|conv_last|awb_para)|flowUpsamplerNet\.f\.0)\.(weight|bias)"
BY_8 = {"scale": 8, "levels": 4, "stacked_blocks": (1, 3, 5, 7)}
RESCALING = {"steps": 8, "detail_steps": 6, "hidden": 32, "extractor_blocks": (2, 1), "extractor_growth": 16}
CONFIGS = {
    "SRFlow_DF2K_4X": SRFlowConfig(),
    "SRFlow_DF2K_8X": SRFlowConfig(**BY_8),
    "SRFlow_CelebA_8X": SRFlowConfig(**BY_8, encoder_blocks=8),
    "SRFlow-DA_DF2K_4X": SRFlowDAConfig(),
    "SR_DF2K_X4": HCFlowConfig(),
    "SR_CelebA_X8": HCFlowConfig(scale=8, extractor_blocks=(5, 5), quant_bins=256, temperature=0.8),
    "Rescaling_DF2K_X4": HCFlowConfig(**RESCALING, rescaling=True, temperature=1.0),
    "LOL_smallNet": LLFlowConfig(steps=4, encoder_blocks=4, encoder_width=32, stacked_blocks=(1,)),
    "LOL-pc": LLFlowConfig(),
}
SRFLOWS = {name: json.loads((HERE / "srflow" / f"keys_{name}.json").read_text()) for name in [*CONFIGS][:3]}
FILES = [
    *((SRFLOW, name, shapes, r"flowUpsamplerNet\.f\..*") for name, shapes in SRFLOWS.items()),
    *((SRFLOW_DA, name, known["shapes"], DA_UNREAD) for name, known in DA.items()),
    *((HCFLOW, name, shapes, r".*haar_weights") for name, shapes in keys("hcflow").items()),
    *((LLFLOW, name, shapes, LL_UNREAD) for name, shapes in keys("llflow").items()),
]


@pytest.mark.parametrize(("source", "name", "shapes", "unread"), FILES, ids=[name for _, name, *_ in FILES])
def test_a_published_file_is_recognized_and_every_tensor_used_once(source, name, shapes, unread):
    state = meta(shapes)
    layout = source.layout(Checkpoint(source.name, state), {})
    assert layout.config == CONFIGS.get(name, layout.config)
    used = [name for origin in layout.origins for name in origin.names]
    assert len(set(used)) == len(used)
    assert {key for key in shapes if not re.fullmatch(unread, key)} == set(used)
    ours = build_on_meta(layout.architecture, layout.config).state_dict()
    assert {origin.ours for origin in layout.origins} == ours.keys()
    for origin in layout.origins:
        assert origin.convert(state[origin.names[0]]).shape == ours[origin.ours].shape


def test_deep_subnets_are_recognized_and_missing_injectors_refused(small_state):
    fields = {**SMALL, "hidden_layers": 36, "hidden_kernel": 3}
    config = SRFLOW.load(meta(srflow_shapes(**fields)), {"stacked_blocks": [2, 0, 3, 1]}).config
    assert (config.hidden_layers, config.hidden_kernel) == (36, 3)
    with pytest.raises(CheckpointError, match=r"affine\.fFeatures\.\S+ is not known"):
        SRFLOW.load(small_state, {"stacked_blocks": (2, 0, 3, 1), "injector": False})


FOREIGN = "jet_pytorch_imagenet64_200m"
TARFLOW = "tarflow_afhq256"
REAL_NVP = "chrischute_realnvp_cifar10_published"


def source_of(state: dict[str, Tensor]):
    found = [source for source in sources() if any(source.detect.match(name.removeprefix("module.")) for name in state)]
    assert len(found) == 1
    return found[0]


def openai_with_labels() -> Shapes:
    labels = {
        "prior/y_emb/W": (7, 96), "prior/y_emb/b": (1, 96), "prior/y_emb/logs": (1, 96),
        "classifier/W": (48, 7), "classifier/b": (1, 7), "classifier/logs": (1, 7),
    }  # fmt: skip
    return shrink("openai_cifar10_abl-1x1-add") | {f"model/{name}": sides for name, sides in labels.items()}


def without(shapes: Shapes, pattern: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not re.match(pattern, name)}


VARIANTS: dict[str, tuple[Callable[[], Shapes], dict]] = {
    name: (lambda name=name: shrink(name), {"n_bits": 8} if name.startswith(("ros", "open")) else {})
    for name in KEYS
    if name not in (FOREIGN, REAL_NVP, TARFLOW) and "shuffle" not in name.replace("abl-shuffle", "")
}
VARIANTS |= {
    "y0ast reversing": (lambda: shrink("y0ast_cifar10_shuffle"), {"mixing": "reverse"}),
    "openai with labels": (openai_with_labels, {"n_bits": 5}),
    "openai with labels alone": (lambda: without(openai_with_labels(), "model/prior/p/"), {"n_bits": 8}),
    "openai with a standard normal": (lambda: without(shrink("openai_lsun64_rnvp"), "model/prior/"), {"n_bits": 8}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_glow_layout(variant):
    make, overrides = VARIANTS[variant]
    state = random_state(make())
    flow = source_of(state).load(state, overrides).double()
    multiple = 2**flow.config.levels
    x = image(2, 2, 3, *(flow.image_size if flow.fixed_size else (multiple, 2 * multiple)))
    cond = None
    if flow.classes:
        cond = flow.encode_condition(F.one_hot(torch.tensor([1, flow.classes - 1]), flow.classes).double())
    expected = recording("glow/layouts")
    latents, _ = flow(x, cond)
    assert len(latents) == flow.config.levels
    for i, z in enumerate(sample_of(latents)):
        near(z, expected[f"{variant}.latent{i}"])
    near(likelihood.log_prob(flow, x, cond), expected[f"{variant}.log_prob"], 1e-8)
    near(flow.inverse(latents, cond), x)


FIVE = {"n_bits": 5}
PLAIN = {"batch_norm": False, "mask_channel": False, "hidden": 64, "blocks": 8}
CIFAR = {"levels": 3, "steps": 32, "hidden": 512}
ROSINALITY = {"edge": "ones", "network": "plain", "actnorm": "signed", "steps": 32, "hidden": 512}
OPENAI = {**CIFAR, "edge": "flag", "actnorm": "log3", "mixing": "conv"}
NORMFLOWS = {
    "levels": 3, "mixing": "lu", "network": "plain", "scaled": False, "split_prior": "table", "pixels": "unit",
    "classes": 10, "image_size": 32,
}  # fmt: skip
CHAIYUJIN = {**CIFAR, "image_size": (64, 64), "pixels": "unit", "grid": "levels"}

PUBLISHED: dict[str, tuple[dict, GlowConfig]] = {
    "y0ast_cifar10_published": ({}, GlowConfig(**CIFAR, image_size=(32, 32))),
    "y0ast_cifar10_additive_ycond": ({}, GlowConfig(**CIFAR, image_size=(32, 32), coupling="additive", classes=10)),
    "y0ast_cifar10_noLU_nolearntop": ({}, GlowConfig(**CIFAR, image_size=(32, 32), mixing="conv", learned_top=False)),
    "y0ast_cifar10_shuffle": ({"mixing": "reverse"}, GlowConfig(**CIFAR, image_size=(32, 32), mixing="reverse")),
    "chaiyujin_celeba64_published": ({}, GlowConfig(**CHAIYUJIN, mixing="conv", learned_top=False)),
    "chaiyujin_celeba64_LU_learntop_ycond": ({}, GlowConfig(**CHAIYUJIN, classes=40)),
    "rosinality_default_64_additive_lu": (FIVE, GlowConfig(**ROSINALITY, **FIVE, levels=4, coupling="additive")),
    "rosinality_64_affine_lu": (FIVE, GlowConfig(**ROSINALITY, **FIVE, levels=4)),
    "rosinality_64_affine_nolu": (
        {"n_bits": 8, "image_size": 64},
        GlowConfig(**ROSINALITY, levels=4, mixing="conv", last_mixing="lu", image_size=(64, 64)),
    ),
    "rosinality_cifar_3x32_affine_lu": ({"n_bits": 8}, GlowConfig(**ROSINALITY, levels=3)),
    "openai_cifar10_abl-1x1-aff": ({"n_bits": 8}, GlowConfig(**OPENAI)),
    "openai_cifar10_abl-1x1-add": ({"n_bits": 8}, GlowConfig(**{**OPENAI, "coupling": "additive"})),
    "openai_cifar10_abl-reverse-aff": ({"n_bits": 8}, GlowConfig(**{**OPENAI, "mixing": "reverse"})),
    "openai_cifar10_abl-shuffle-aff": ({"n_bits": 8}, GlowConfig(**{**OPENAI, "mixing": "shuffle"})),
    "openai_lsun64_rnvp": ({"n_bits": 8}, GlowConfig(**{**OPENAI, "steps": 48})),
    "normflows_glow_K32_h512": ({}, GlowConfig(**NORMFLOWS, steps=32, hidden=512)),
    "normflows_glow_notebook_cifar10": ({}, GlowConfig(**NORMFLOWS, steps=16, hidden=256)),
    REAL_NVP: ({}, RealNVPConfig(**PLAIN, alpha=(1 - float(torch.tensor(0.9))) / 2)),
    TARFLOW: ({}, TarFlowConfig(variances=True, classes=3, labels=("cat", "dog", "wild"), noise=0.07)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration_is_recognized_and_every_tensor_used(name):
    program = name.split("_")[0]
    overrides, expected = PUBLISHED[name]
    shapes = {key: tuple(shape) for key, (shape, _) in KEYS[name].items()}
    state = meta(shapes, {key: dtype for key, (_, dtype) in KEYS[name].items()})
    if program == "chrischute":
        state["data_constraint"] = torch.tensor([0.9])
    source = source_of(state)
    assert source.name.lower().endswith(program)
    assert source.load(state, overrides).config == expected
    for key, t in state.items():  # the file reader's condition
        assert t.is_floating_point() or source.integers.fullmatch(key)
    layout = source.layout(Checkpoint(source.name, state), overrides)
    used = {name for origin in layout.origins for name in origin.names}
    assert used <= shapes.keys()
    assert all(bool(re.fullmatch(UNUSED[program], key)) == (key not in used) for key in shapes)


def test_transformer_flows_are_refused_by_name(tmp_path):
    save_file({key: torch.zeros(1) for key in KEYS[FOREIGN]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"They look like Jet, a transformer flow.*Supported"):
        load(tmp_path / "model.safetensors")


def test_real_nvp_of_three_scales():
    shapes = without(shrink(REAL_NVP), r"flows\.next_block\.")
    levels = {"flows.": {name: shape for name, shape in shapes.items() if name.startswith("flows.")}}
    for depth in (1, 2):  # every level has twice the channels of the one before
        prefix = "flows." + "next_block." * depth
        levels[prefix] = {
            name: tuple(2 * side if n < 2 and side > 1 else side for n, side in enumerate(shape))
            for name, shape in levels["flows." + "next_block." * (depth - 1)].items()
        }
    state: dict[str, Tensor] = {"data_constraint": torch.tensor([0.8], dtype=torch.float64)}
    for prefix, level in levels.items():
        for name, shape in level.items():
            if not (prefix.count("next") == 2 and ".out_couplings." in name):
                state[name.replace("flows.", prefix)] = torch.empty(shape, device="meta")
    last = "flows.next_block.next_block.in_couplings."
    state |= {name.replace(".2.", ".3.", 1): t for name, t in state.items() if name.startswith(f"{last}2.")}
    config = CHRISCHUTE.load(state, {"image_size": (32, 48)}).config
    assert (config.scales, config.channels, config.hidden, config.blocks) == (3, 3, 64, 8)
    assert config.alpha == pytest.approx(0.1, abs=1e-12)
    assert config.image_size == (32, 48)
