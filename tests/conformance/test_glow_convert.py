"""Reading checkpoints of Glows and a Real NVP: wrappers, missing fields, contradictions, and damaged tensors."""

import re
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcore import FlowError, load
from flowcore.models.glow.normflows import NORMFLOWS
from flowcore.models.glow.published import CHAIYUJIN, OPENAI, ROSINALITY, Y0AST
from flowcore.models.realnvp.published import CHRISCHUTE

from .published import UNUSED, random_state, recorded_glow, same, shrink

CASES = {  # program to its source, a recorded case and overrides
    "y0ast": (Y0AST, "y0ast_affine_lu_learntop", {}),
    "chaiyujin": (CHAIYUJIN, "chaiyujin_affine_nolu", {}),
    "rosinality": (ROSINALITY, "rosinality_affine_nolu_8bit", {"n_bits": 8}),
    "openai": (OPENAI, "openai_affine_1x1_learntop_8bit", {"n_bits": 8}),
    "normflows": (NORMFLOWS, "normflows_glow_classcond_lu", {}),
    "normflows net_actnorm": (NORMFLOWS, "normflows_netactnorm_grey", {}),
    "chrischute": (CHRISCHUTE, "chrischute_realnvp_2scale", {}),
}


def weights(program: str) -> dict[str, Tensor]:
    return {name.removeprefix("module."): t for name, t in recorded_glow(CASES[program][1]).items()}


def convert(program: str, state: dict[str, Tensor] | None = None, **overrides):
    source, _, needed = CASES[program]
    return source.load(weights(program) if state is None else state, {**needed, **overrides})


def refusal(action: Callable, *arguments, **overrides) -> str:
    with pytest.raises(FlowError) as caught:
        action(*arguments, **overrides)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


WRAPPED = {
    "chaiyujin": lambda state: {
        "global_step": 45000,
        "graph": state,
        "optim": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        "criterion": {"y_condition": {}},
    },
    "chrischute": lambda state: {"net": {f"module.{k}": t for k, t in state.items()}, "test_loss": 3.7, "epoch": 99},
    "rosinality": lambda state: {k: t for k, t in state.items() if not k.endswith("initialized")},
    "y0ast": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "openai": lambda state: {
        **{f"{k}:0": t for k, t in state.items()},
        **{f"{k}/{slot}": t + 1 for k, t in state.items() for slot in ("Adam", "Adam_1", "ExponentialMovingAverage")},
        "global_step": torch.tensor(7),
        "adam_t": torch.tensor(7.0),
        "Variable_12": torch.ones(2, 2),
        "beta1_power": torch.tensor(0.9),
    },
    "normflows": lambda state: {f"module.{k}": t for k, t in state.items()},
}


@pytest.mark.parametrize("program", CASES)
def test_files_as_the_programs_write_them_in_any_precision(tmp_path, program):
    _, case, overrides = CASES[program]
    program_name = program.split()[0]
    torch.save(WRAPPED[program_name](recorded_glow(case)), tmp_path / "model.pt")
    flow = load(tmp_path / "model.pt", **overrides)
    assert same(flow, convert(program))
    assert program_name in flow.provenance["source"].lower()
    assert "MIT for the program" in flow.provenance["licence"]
    state = {
        name: t if name == "data_constraint" else t.half() if t.is_floating_point() else t.to(torch.int32)
        for name, t in recorded_glow(case).items()
    }
    save_file(state, tmp_path / "model.safetensors")
    flow = load(tmp_path / "model.safetensors", **overrides)
    assert {t.dtype for t in flow.state_dict().values()} == {torch.float32}


def test_weight_normalization_has_two_names_and_a_sign():
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    old_state = weights("chrischute")
    state = {re.sub(r"weight_[gv]$", lambda m: new[m[0]], name): t for name, t in old_state.items()}
    assert any("parametrizations" in name for name in state)
    assert same(convert("chrischute", state), convert("chrischute"))
    assert "is not known" in refusal(convert, "chrischute", {**state, **old_state})
    # Published as length and direction; of a single number, the direction is its sign, whatever its size.
    state = weights("chrischute")
    state["flows.in_couplings.1.rescale.weight_g"] = torch.tensor([0.5, 2.0, -3.0]).reshape(3, 1, 1)
    state["flows.in_couplings.1.rescale.weight_v"] = torch.tensor([-7.0, 0.1, -0.2]).reshape(3, 1, 1)
    rescale = convert("chrischute", state).state_dict()["levels.0.steps.transforms.1.conditioner.rescale"]
    assert rescale.tolist() == [-0.5, 2.0, 3.0]


@pytest.mark.parametrize(
    ("state", "field", "advice"),
    [
        (lambda: weights("rosinality"), "n_bits", "5"),
        (lambda: weights("openai"), "n_bits", "5"),
        (lambda: random_state(shrink("y0ast_cifar10_shuffle")), "mixing", "reverse"),
        (lambda: recorded_glow("normflows_glowbase_additive_plain"), "image_size", "32"),
    ],
)
def test_fields_that_no_tensor_tells_are_asked_for(tmp_path, state, field, advice):
    save_file(state(), tmp_path / "model.safetensors")
    message = refusal(load, tmp_path / "model.safetensors")
    assert f"the field {field} is missing" in message
    assert f"--set {field}={advice}" in message


def test_the_orders_of_shuffles_cannot_be_read():
    state = random_state(shrink("y0ast_cifar10_shuffle"))
    assert "cannot be read" in refusal(Y0AST.load, state, {"mixing": "shuffle"})
    reverse = Y0AST.load(state, {"mixing": "reverse"})
    orders = [t.tolist() for name, t in reverse.state_dict().items() if name.endswith(".order")]
    assert orders == [[*range(len(order))][::-1] for order in orders]


def test_contradicting_unknown_and_consistent_overrides():
    for program, overrides, says in (
        ("y0ast", {"levels": 4}, "tell levels=3"),
        ("y0ast", {"image_size": 64}, "tell image_size=(32, 32)"),
        ("rosinality", {"last_mixing": ""}, "tell last_mixing='lu'"),
        ("chrischute", {"batch_norm": True}, "tell batch_norm=False"),
        ("y0ast", {"nbits": 8}, "'nbits'"),
        ("y0ast", {"dequantizer_steps": 2}, "no checkpoint of Glow by y0ast has"),
        ("rosinality", {"permutations": []}, "'permutations'"),
    ):
        assert says in refusal(convert, program, **overrides)
    config = convert("y0ast", levels=3, image_size=32, pixels="unit", grid="levels").config
    assert (config.levels, config.image_size, config.pixels, config.grid) == (3, (32, 32), "unit", "levels")


@pytest.mark.parametrize("program", CASES)
def test_missing_and_misshapen_tensors_are_named(program):
    """One of every kind that the program reads."""
    state, unused = weights(program), re.compile(UNUSED[program.split()[0]])
    kinds = {
        tuple(re.split(r"[./]", re.sub(r"\d", "", name))[-2:]): name for name in state if not unused.fullmatch(name)
    }
    assert len(kinds) >= 9
    kinds |= {"": "data_constraint"} if "data_constraint" in state else {}
    for name in kinds.values():
        assert name in refusal(convert, program, {key: t for key, t in state.items() if key != name})
        for misshapen in [torch.ones(5, 5, 5)] + [torch.ones(1)] * (name != "data_constraint"):  # which is one number
            assert name in refusal(convert, program, {**state, name: misshapen})


NEVER, NOT_AS_MADE = "was never initialized", "is not what the program makes of it"
CHANGED = {
    "prior_h": ("y0ast", lambda t: t + 1e-3, "is expected to be zero"),
    "blocks.1.flows.1.actnorm.initialized": ("rosinality", lambda t: t * 0, NEVER),
    "flows.1.1.flows.2.data_dep_init_done": ("normflows", lambda t: t * 0, NEVER),
    "flows.1.1.flows.0.flows.1.param_map.net.4.actNorm.data_dep_init_done": (
        *("normflows net_actnorm", lambda t: t * 0, NEVER),
    ),
    "blocks.2.flows.0.invconv.l_mask": ("rosinality", lambda t: t.T.contiguous(), NOT_AS_MADE),
    "blocks.2.flows.0.invconv.u_mask": ("rosinality", lambda t: t * 2, NOT_AS_MADE),
    "blocks.2.flows.0.invconv.l_eye": ("rosinality", lambda t: t * 0, NOT_AS_MADE),
    "flows.0.0.flows.1.eye": ("normflows", lambda t: t + 1, NOT_AS_MADE),
}


def test_unused_tensors_with_unexpected_values():
    for name, (program, change, says) in CHANGED.items():
        state = weights(program)
        message = refusal(convert, program, {**state, name: change(state[name])})
        assert message.startswith(name)
        assert says in message


def test_invalid_stored_permutations(tmp_path):
    state, name = random_state(shrink("openai_cifar10_abl-shuffle-aff")), "model/0/1/shuffle/indices"
    torch.save({**state, name: state[name].to_sparse()}, tmp_path / "model.pt")
    assert "_rebuild_sparse_tensor" in refusal(load, tmp_path / "model.pt")
    torch.save({**state, name: state[name].to(torch.complex64)}, tmp_path / "model.pt")
    assert f"{name} is a torch.complex64" in refusal(load, tmp_path / "model.pt")
    state[name] = state[name] + 1
    assert "does not list each of 0 to 11 once" in refusal(OPENAI.load, state, {"n_bits": 8})


def test_unsupported_variants():
    state, bias = weights("y0ast"), "flow.layers.1.actnorm.bias"
    assert "has 16 channels" in refusal(convert, "y0ast", {**state, bias: torch.ones(1, 16, 1, 1)})
    last = "flow.layers.1.block.4.conv.weight"
    assert "has 9 outputs" in refusal(convert, "y0ast", {**state, last: torch.ones(9, 24, 3, 3)})
    state = weights("normflows")
    affine = {k.replace("q0.0.loc", "q0.0.transform.s"): t for k, t in state.items()}
    assert "q0.0 has log_scale, transform.s" in refusal(convert, "normflows", affine)


def test_missing_steps_and_absurd_indices():
    for program, prefix, says in (
        *(("y0ast", f"flow.layers.{layer}.", "lacks layers|is missing") for layer in (1, 4, 9, 13)),
        *(("openai", prefix, "The file lacks tensors") for prefix in ("model/0/", "model/2/1/")),
        ("rosinality", "blocks.1.flows.0.", "The file lacks tensors"),
        ("normflows", "flows.0.1.", "The file lacks tensors"),
    ):
        state = {k: t for k, t in weights(program).items() if not k.startswith(prefix)}
        assert re.search(says, refusal(convert, program, state))
    for program, name in (
        ("y0ast", "flow.layers.99999999999999.actnorm.bias"),
        ("rosinality", "blocks.99999999999999.flows.99999999999999.actnorm.loc"),
        ("openai", "model/0/9999/actnorm_center/b"),
        ("normflows", "flows.99999999999999.0.flows.2.t"),
        ("chrischute", "flows.in_couplings.0.st_net.blocks.999999.in_norm.weight"),
        ("chrischute", "flows." + "next_block." * 1000 + "in_couplings.0.st_net.in_norm.weight"),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            convert(program, {**weights(program), name: torch.ones(1)})
