"""Published Glows and a Real NVP against tensors recorded from the programs; see glow/README.md."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcore import dequantization, likelihood, prior
from flowcore import latents as latents_
from flowcore.checkpoints import load, read, save
from flowcore.transforms import OrderedSqueeze

from .published import GLOW, recorded_glow

CASES: dict[str, dict] = {
    "y0ast_affine_lu_learntop": {},
    "y0ast_additive_nolu_ycond": {},
    "y0ast_affine_shuffle": {},
    "chaiyujin_affine_nolu": {},
    "rosinality_affine_lu_5bit": {"n_bits": 5},
    "rosinality_affine_nolu_8bit": {"n_bits": 8},
    "openai_affine_1x1_learntop_8bit": {"n_bits": 8},
    "normflows_glow_classcond_lu": {},
    "normflows_glowbase_additive_plain": {"image_size": (8, 12)},
    "normflows_diagonal_grey": {},
    "normflows_netactnorm_grey": {},
    "chrischute_realnvp_2scale": {},
}
# Bits per dimension in float64. Rosinality's plain 1x1 takes its determinant in float32; OpenAI's case was recorded in
# float32; GlowBase's means and deviations and net_actnorm's shifts are products, which a float32 table rounds.
BITS = dict.fromkeys(CASES, 1e-9) | {
    "rosinality_affine_nolu_8bit": 1e-8,
    "openai_affine_1x1_learntop_8bit": 2e-5,
    "normflows_glowbase_additive_plain": 1e-7,
    "normflows_netactnorm_grey": 1e-7,
}
LATENTS = dict.fromkeys(CASES, 1e-9) | {
    "openai_affine_1x1_learntop_8bit": 2e-6,
    "normflows_glowbase_additive_plain": 1e-6,
    "normflows_netactnorm_grey": 1e-6,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint of each case."""
    folder = tmp_path_factory.mktemp("published")
    for case in CASES:
        save_file(recorded_glow(case), folder / f"{case}.safetensors")
    return folder


class Case:
    """One recorded network as ours, with its recorded inputs and outputs."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.flow32 = load(file, **CASES[name])
        self.flow = load(file, **CASES[name]).double()
        recorded = load_file(GLOW / f"{name}_io.safetensors")
        self.io = {
            key.removesuffix("_nhwc"): t.permute(0, 3, 1, 2) if key.endswith("_nhwc") else t
            for key, t in recorded.items()
        }
        n_bits = self.flow.config.n_bits
        pixels = torch.floor(self.io["x_uint8"].double() / 2 ** (8 - n_bits))
        self.width = 2.0**-n_bits
        if "noise_normal01" in self.io:
            self.x = pixels / 255 + self.io["noise_normal01"].double() / 256
        else:
            self.x = (pixels + self.io["u01"].double()) * self.width
        labels = self.io.get("y", self.io.get("y_onehot"))
        self.labels = labels.double() if labels is not None and labels.ndim == 2 else labels
        self.cond = None if self.labels is None else self.flow.encode_condition(self.labels)

    def decode(self, latents: list[Tensor]) -> Tensor:
        """Decode to the program's own range of pixels."""
        own = self.flow.inverse(latents, self.cond)
        return own - 0.5 if getattr(self.flow.config, "pixels", "unit") == "centred" else own

    def sampled(self) -> list[Tensor]:
        count = sum(key.startswith("sample_eps") for key in self.io)
        if "sample_eps0_deep_to_shallow" in self.io:
            return [self.io[f"sample_eps{i}_deep_to_shallow"].double() for i in reversed(range(count))]
        return [self.io[f"sample_eps{i}"].double() for i in range(count)]

    def encoded(self) -> list[Tensor]:
        count = sum(key.startswith("eps") for key in self.io)
        return [self.io.get(f"eps{i}_f64", self.io.get(f"eps{i}_f32")).double() for i in range(count)]


@pytest.fixture(scope="module")
def cases(files):
    """Every case, loaded once."""
    loaded: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in loaded:
            loaded[name] = Case(name, files / f"{name}.safetensors")
        return loaded[name]

    return get


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())


# --- from image to latents --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_bits_per_dimension(cases, name):
    case = cases(name)
    recorded = case.io.get("bpd_f64", case.io.get("bpd_f32"))
    log_prob = likelihood.log_prob(case.flow, case.x, case.cond)
    assert error(likelihood.bits_per_dim(log_prob, case.x[0].numel(), case.width), recorded) < BITS[name]


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_bits_per_dimension_in_float32(cases, name):
    case = cases(name)
    recorded = case.io.get("bpd_f32", case.io.get("bpd_f64"))
    cond = None if case.labels is None else case.flow32.encode_condition(case.labels)
    log_prob = likelihood.log_prob(case.flow32, case.x.float(), cond)
    assert error(likelihood.bits_per_dim(log_prob.double(), case.x[0].numel(), case.width), recorded) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("normflows", "chrischute"))])
def test_whitened_latents_and_logdet(cases, name):
    case = cases(name)
    latents, logdet = case.flow(case.x, case.cond)
    recorded = case.encoded()
    assert len(latents) == len(recorded) >= 2
    for ours, theirs in zip(latents, recorded, strict=True):
        assert error(ours, theirs) < LATENTS[name]
    if "logdet_total_f64" in case.io:  # theirs counts the whitening with the prior, ours with the flow
        whitening = sum(
            case.io[f"logp_level{i}_f64"] - prior.log_density(z).sum((1, 2, 3)) for i, z in enumerate(recorded)
        )
        assert error(logdet, case.io["logdet_total_f64"] + whitening) < (1e-4 if "nolu_8bit" in name else 1e-8)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("normflows")])
def test_latents_of_normflows(cases, name):
    """Theirs are not whitened, and deepest first."""
    case, state = cases(name), {k: t.double() for k, t in recorded_glow(name).items()}
    latents, _ = case.flow(case.x, case.cond)
    for number, ours in enumerate(reversed(latents)):
        raw, base = case.io[f"z{number}_deep_to_shallow_f64"], f"q0.{number}"
        if f"{base}.loc_cc" in state:
            y = case.io["y"]
            mean, log_std = (
                state[f"{base}.{part}"] * (3 * state[f"{base}.{part}_logs"]).exp()
                + state[f"{base}.{part}_cc"][y][:, :, None, None]
                for part in ("loc", "log_scale")
            )
        elif case.flow.classes:
            mean, log_std = (state[f"{base}.{part}"][..., case.io["y"]].movedim(-1, 0) for part in ("loc", "log_scale"))
        else:
            mean, log_std = state[f"{base}.loc"], state[f"{base}.log_scale"]
        assert error(ours, (raw - mean) / log_std.exp()) < LATENTS[name]


@torch.no_grad()
def test_latents_of_real_nvp(cases):
    """Theirs keep the image's shape; ours are the factored-out half, in the grid of the split, and the rest."""
    case = cases("chrischute_realnvp_2scale")
    (gone, rest), logdet = case.flow(case.x)
    assert gone.shape == rest.shape == (2, 6, 16, 16)
    assert error(OrderedSqueeze().inverse(torch.cat([rest, gone], dim=1)), case.io["z_f64"]) < 1e-9
    assert error(logdet, case.io["sldj_f64"]) < 1e-8


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_encode_then_decode(cases, name):
    case = cases(name)
    latents, _ = case.flow(case.x, case.cond)
    assert error(case.flow.inverse(latents, case.cond), case.x) < 1e-12


WITHOUT_SAMPLES = (
    "chaiyujin_affine_nolu",
    "normflows_glowbase_additive_plain",
    "normflows_diagonal_grey",
    "chrischute_realnvp_2scale",  # has its own
)

# --- from latents to images -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_samples_at_every_temperature(cases, name):
    case = cases(name)
    found = [key for key in case.io if key.startswith("sample_T")]
    for key in found:
        image = case.decode([float(key[8:11]) * z for z in case.sampled()])
        assert error(image, case.io[key]) < (LATENTS[name] if case.io[key].dtype == torch.float64 else 1e-5)
    assert bool(found) == (name not in WITHOUT_SAMPLES)


@torch.no_grad()
def test_samples_of_real_nvp(cases):
    case = cases("chrischute_realnvp_2scale")
    rest, gone = OrderedSqueeze()(case.io["sample_z"].double())[0].chunk(2, dim=1)
    alpha = case.flow.config.alpha
    image = alpha + (1 - 2 * alpha) * case.flow.inverse([gone, rest])
    assert error(image, torch.sigmoid(case.io["sample_logit_f64"])) < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("name", ["y0ast_affine_lu_learntop", "y0ast_affine_shuffle"])
@pytest.mark.parametrize(("mode", "key"), [("linear", "interp_lin_eps"), ("slerp", "interp_slerp_per_level_eps")])
def test_interpolations(cases, name, mode, key):
    case = cases(name)
    latents = case.flow(case.x)[0]
    first, second = [z[:1] for z in latents], [z[1:2] for z in latents]
    images = [case.decode(latents_.interpolate(first, second, t, mode=mode)) for t in (0.25, 0.5, 0.75)]
    assert error(torch.cat(images), case.io[f"{key}_t025_050_075_f64"]) < 1e-6


# --- labels -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["y0ast_additive_nolu_ycond", "normflows_glow_classcond_lu"])
def test_labels_and_one_hot_labels(cases, name):
    case = cases(name)
    numbers = case.labels if case.labels.ndim == 1 else case.labels.argmax(1)
    one_hot = torch.nn.functional.one_hot(numbers.long(), case.flow.classes).double()
    a = likelihood.log_prob(case.flow, case.x, case.flow.encode_condition(numbers.long()))
    b = likelihood.log_prob(case.flow, case.x, case.flow.encode_condition(one_hot))
    c = likelihood.log_prob(case.flow, case.x, case.flow.encode_condition((numbers.long() + 1) % case.flow.classes))
    assert torch.equal(a, b)
    assert (a - c).abs().min() > 1


# --- converted models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_saved_flow_is_read_bit_for_bit(cases, name, tmp_path):
    flow = cases(name).flow32
    save(flow, tmp_path / "ours.safetensors")
    again = read(tmp_path / "ours.safetensors")
    assert again.config == flow.config
    assert again.provenance == flow.provenance
    x, labels = cases(name).x.float(), cases(name).labels
    with torch.no_grad():
        ours, theirs = (f(x, None if labels is None else f.encode_condition(labels)) for f in (again, flow))
    assert all(torch.equal(a, b) for a, b in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True))


def test_pixel_conventions(cases):
    """chaiyujin's pixel values are the centers of their bins."""
    case = cases("chaiyujin_affine_nolu")
    assert (case.flow.config.grid, case.flow.config.pixels) == ("levels", "unit")
    quantization = dequantization.quantization(case.flow)
    assert (quantization.n_bits, quantization.grid) == (8, "levels")
    for name in ("y0ast_affine_shuffle", "rosinality_affine_lu_5bit", "openai_affine_1x1_learntop_8bit"):
        assert (cases(name).flow.config.grid, cases(name).flow.config.pixels) == ("bins", "centred")
    assert cases("normflows_diagonal_grey").flow.config.pixels == "unit"


def test_native_sizes(cases):
    sizes = {name: cases(name).flow.image_size for name in CASES}
    assert sizes == {
        "y0ast_affine_lu_learntop": (32, 32),
        "y0ast_additive_nolu_ycond": (32, 32),
        "y0ast_affine_shuffle": (16, 16),
        "chaiyujin_affine_nolu": (32, 32),
        "rosinality_affine_lu_5bit": None,
        "rosinality_affine_nolu_8bit": None,
        "openai_affine_1x1_learntop_8bit": None,
        "normflows_glow_classcond_lu": (32, 32),
        "normflows_glowbase_additive_plain": (8, 12),
        "normflows_diagonal_grey": (8, 12),
        "normflows_netactnorm_grey": (8, 12),
        "chrischute_realnvp_2scale": None,
    }


def test_masked_triangles_of_lu_factors_are_zeroed(cases):
    factor = {
        "y0ast_affine_lu_learntop": "flow.layers.1.invconv.lower",
        "normflows_glow_classcond_lu": "flows.0.0.flows.1.L",
        "rosinality_affine_lu_5bit": "module.blocks.0.flows.0.invconv.w_l",
    }
    for name, prefix in factor.items():
        masked = recorded_glow(name)[prefix].triu()
        assert masked.abs().max() > 0
        factors = {key: t for key, t in cases(name).flow.state_dict().items() if key.endswith((".lower", ".upper"))}
        assert factors
        for key, t in factors.items():
            assert torch.equal(t, t.tril(-1) if key.endswith(".lower") else t.triu(1))
            assert t.abs().max() > 0


def test_stored_numbers_are_not_rounded(cases):
    """Conversion only moves values and changes signs."""
    for name in CASES:
        if "glowbase" in name or "netactnorm" in name:  # products in float64, rounded once
            continue
        stored = torch.cat([t.float().abs().flatten() for t in recorded_glow(name).values()])
        tensors = [t for t in cases(name).flow32.state_dict().values() if t.is_floating_point()]
        used = torch.cat([t.abs().flatten() for t in tensors])
        assert torch.isin(used[used > 0], stored).all(), name


@torch.no_grad()
def test_reported_bits_of_chaiyujin(cases):
    """It divides by pixels, not by dimensions: bits = reported / 3 + 16 / 3."""
    case = cases("chaiyujin_affine_nolu")
    log_prob = likelihood.log_prob(case.flow, case.x)
    pixels = 32 * 32
    reported = -(log_prob - math.log(256) * pixels) / (math.log(2) * pixels)
    assert error(reported / 3 + 16 / 3, case.io["bpd_f64"]) < 1e-9
