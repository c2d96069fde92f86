"""Published Glows and a Real NVP against tensors recorded from the programs; see glow/README.md."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcore import load
from flowcore.flows import latents as latents_
from flowcore.flows import likelihood, prior
from flowcore.flows.transforms import CheckerboardSqueeze

from .published import error, recorded_glow, recording

CASES: dict[str, dict] = {
    "y0ast_affine_lu_learntop": {},
    "y0ast_additive_nolu_ycond": {},
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
# Of bits per dimension and of latents, in float64. Rosinality's plain 1x1 takes its determinant in float32; OpenAI's is
# recorded in float32; GlowBase's means and deviations and net_actnorm's shifts are products, rounded in a table.
TOLERANCES = dict.fromkeys(CASES, (1e-9, 1e-9)) | {
    "rosinality_affine_nolu_8bit": (1e-8, 1e-9),
    "openai_affine_1x1_learntop_8bit": (2e-5, 2e-6),
    "normflows_glowbase_additive_plain": (1e-7, 1e-6),
    "normflows_netactnorm_grey": (1e-7, 1e-6),
}
WITHOUT_SAMPLES = (
    "chaiyujin_affine_nolu",
    "normflows_glowbase_additive_plain",
    "normflows_diagonal_grey",
    "chrischute_realnvp_2scale",  # has its own
)


class Case:
    """One recorded network as ours, with its recorded inputs and outputs."""

    def __init__(self, name: str, folder: Path) -> None:
        file = folder / f"{name}.safetensors"
        save_file(recorded_glow(name), file)
        self.bits, self.close = TOLERANCES[name]
        self.flow32 = load(file, **CASES[name])
        self.flow = load(file, **CASES[name]).double()
        self.io = recording(f"glow/{name}_io")
        for key in [key for key in self.io if key.endswith("_nhwc")]:
            self.io[key.removesuffix("_nhwc")] = self.io.pop(key).permute(0, 3, 1, 2)
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
def cases(tmp_path_factory):
    """Every case by its name, loaded once."""
    folder = tmp_path_factory.mktemp("published")
    return functools.cache(lambda name: Case(name, folder))


@pytest.mark.parametrize("name", CASES)
def test_bits_per_dimension_the_way_back_and_samples(cases, name):
    case = cases(name)
    for flow, t, other, tolerance in ((case.flow, "f64", "f32", case.bits), (case.flow32, "f32", "f64", 2e-5)):
        recorded = case.io.get(f"bpd_{t}", case.io.get(f"bpd_{other}"))
        cond = None if case.labels is None else flow.encode_condition(case.labels)
        log_prob = likelihood.log_prob(flow, case.x.to(next(flow.parameters()).dtype), cond)
        bits = likelihood.bits_per_dim(log_prob.double(), case.x[0].numel(), case.width)
        assert error(bits, recorded) < tolerance, t
    latents, _ = case.flow(case.x, case.cond)
    assert error(case.flow.inverse(latents, case.cond), case.x) < 1e-12
    found = [key for key in case.io if key.startswith("sample_T")]
    for key in found:
        image = case.decode([float(key[8:11]) * z for z in case.sampled()])
        assert error(image, case.io[key]) < (case.close if case.io[key].dtype == torch.float64 else 1e-5)
    assert bool(found) == (name not in WITHOUT_SAMPLES)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("normflows", "chrischute"))])
def test_whitened_latents_and_logdet(cases, name):
    case = cases(name)
    latents, logdet = case.flow(case.x, case.cond)
    recorded = case.encoded()
    assert len(latents) == len(recorded) >= 2
    for ours, theirs in zip(latents, recorded, strict=True):
        assert error(ours, theirs) < case.close
    if "logdet_total_f64" in case.io:  # theirs counts the whitening with the prior, ours with the flow
        whitening = sum(
            case.io[f"logp_level{i}_f64"] - prior.log_density(z).sum((1, 2, 3)) for i, z in enumerate(recorded)
        )
        assert error(logdet, case.io["logdet_total_f64"] + whitening) < (1e-4 if "nolu_8bit" in name else 1e-8)


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
        assert error(ours, (raw - mean) / log_std.exp()) < case.close


def test_latents_and_samples_of_real_nvp(cases):
    """Theirs keep the image's shape; ours are the factored-out half, in the grid of the split, and the rest."""
    case = cases("chrischute_realnvp_2scale")
    (gone, rest), logdet = case.flow(case.x)
    assert gone.shape == rest.shape == (2, 6, 16, 16)
    assert error(CheckerboardSqueeze().inverse(torch.cat([rest, gone], dim=1)), case.io["z_f64"]) < 1e-9
    assert error(logdet, case.io["sldj_f64"]) < 1e-8
    rest, gone = CheckerboardSqueeze()(case.io["sample_z"].double())[0].chunk(2, dim=1)
    alpha = case.flow.config.alpha
    image = alpha + (1 - 2 * alpha) * case.flow.inverse([gone, rest])
    assert error(image, torch.sigmoid(case.io["sample_logit_f64"])) < 1e-9


@pytest.mark.parametrize(("mode", "key"), [("linear", "interp_lin_eps"), ("slerp", "interp_slerp_per_level_eps")])
def test_interpolations(cases, mode, key):
    case = cases("y0ast_affine_lu_learntop")
    latents = case.flow(case.x)[0]
    first, second = [z[:1] for z in latents], [z[1:2] for z in latents]
    images = [case.decode(latents_.interpolate(first, second, t, mode=mode)) for t in (0.25, 0.5, 0.75)]
    assert error(torch.cat(images), case.io[f"{key}_t025_050_075_f64"]) < 1e-6


def test_conversion_moves_values_and_changes_signs_and_rounds_nothing(cases):
    for name in CASES:
        if "glowbase" in name or "netactnorm" in name:  # products in float64, rounded once
            continue
        stored = torch.cat([t.float().abs().flatten() for t in recorded_glow(name).values()])
        tensors = [t for t in cases(name).flow32.state_dict().values() if t.is_floating_point()]
        used = torch.cat([t.abs().flatten() for t in tensors])
        assert torch.isin(used[used > 0], stored).all(), name
