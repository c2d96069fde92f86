"""TarFlow: its inverse with a cache, labels by name, guidance, noise, and what is said and counted meanwhile."""

import math

import pytest
import torch
from builders import build_tiny, random_image

import flowcore
from flowcore import CompiledFlow, ConditionError, FlowError
from flowcore.cli.main import main
from flowcore.engine.memory import memory_required
from flowcore.tasks import sample as sampling
from flowcore.tasks.sample import dequantized_image
from flowcore.training.objective import Likelihood

NAMED = {"classes": 3, "labels": ("cat", "dog", "wild")}


def tiny(**fields):
    return build_tiny("tarflow", perturb=0.1, **fields)


def latents(flow, batch=2):
    return [torch.randn(batch, *flow.latent_shapes(8, 12)[0], generator=torch.Generator().manual_seed(3))]


def test_labels_by_name_are_those_by_number():
    flow = tiny(**NAMED)
    assert torch.equal(flowcore.sample(flow, 2, labels=["Dog", "2"]), flowcore.sample(flow, 2, labels=[1, 2]))
    assert torch.equal(flowcore.sample(flow, 1, labels="wild"), flowcore.sample(flow, 1, labels=2))
    with pytest.raises(ConditionError):
        flowcore.sample(flow, 1, labels="bird")
    with pytest.raises(ConditionError):
        flowcore.sample(flow, 1)


def test_guidance_changes_samples_and_zero_changes_nothing():
    flow = tiny(**NAMED)
    plain, led = (flowcore.sample(flow, 2, labels="cat", guidance=weight, clamp=False) for weight in (0, 2))
    assert torch.equal(plain, flowcore.sample(flow, 2, labels="cat", clamp=False))
    assert (plain - led).abs().max() > 1e-3
    shifts = flowcore.sample(flow, 2, labels="cat", guidance=flowcore.Guidance(2, scale=False), clamp=False)
    assert (shifts - led).abs().max() > 1e-3


def test_guidance_is_refused_where_it_cannot_be():
    flow = tiny(**NAMED)
    cond = flow.encode_condition(torch.tensor([0, 1])).guided(1.5)
    with pytest.raises(ConditionError):
        flow(random_image(2, 3, 8, 12), cond)
    for model in (tiny(), build_tiny("glow", image_size=(8, 8))):
        with pytest.raises(ConditionError):
            flowcore.sample(model, 1, guidance=1.5)
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(FlowError, match="guidance must be a finite number >= 0"):
            flowcore.sample(flow, 1, labels=0, guidance=wrong)
    digits = build_tiny("class_conditional")
    with pytest.raises(ConditionError):
        digits.inverse([torch.zeros(1, 96, 1, 1)], digits.encode_condition(torch.tensor([0])).guided(1))


def test_training_and_encoding_draw_the_noise_that_the_model_states():
    flow = tiny(noise=0.2)
    objective, x = Likelihood(flow), random_image(4, 3, 8, 12)
    (noise,) = objective.noise(tuple(x.shape), torch.Generator().manual_seed(1))
    expected = flowcore.flows.likelihood.bits_per_dim(flow.log_prob(x + 0.1 * noise), x[0].numel(), 1 / 256).mean()
    assert torch.allclose(objective(x, None, (noise,)), expected)
    assert bool((noise < 0).any())
    assert 0.08 < float((dequantized_image(flow, x) - x).std()) < 0.12


def test_every_patch_is_counted_and_may_be_the_last():
    flow, seen = tiny(), []
    flowcore.sample(flow, 2, progress=lambda done, total, preview: seen.append(done / total))
    assert len(seen) > 40  # of 2 blocks of 24 patches
    assert seen == sorted(seen)
    assert seen[-1] == 1
    asked = iter(range(1000))
    with pytest.raises(flowcore.Cancelled):
        flowcore.sample(flow, 2, cancelled=lambda: next(asked) > 30)
    assert next(asked) < 40


def test_large_memory_and_time_are_announced(monkeypatch):
    said = []
    flowcore.sample(tiny(), 2, notify=said.append)
    assert said == []
    monkeypatch.setattr(sampling, "NOTEWORTHY", 1)
    flowcore.sample(tiny(), 2, notify=said.append)
    assert len(said) == 1
    assert said[0].startswith("2 pictures, each of 48 patches one after the other, will take about 0.0 GB of memory")
    assert said[0].endswith(" s.")


def test_the_memory_of_the_published_size_is_that_of_its_keys_and_values_and_of_a_copy():
    with torch.device("meta"):
        flow = flowcore.models.build("tarflow", flowcore.models.configure("tarflow", {"classes": 3}))
    weights, cache = 4 * 463_481_856, 2 * 8 * 2 * 1024 * 768 * 4
    assert sum(t.nbytes for t in flow.parameters()) == weights
    assert 0 < memory_required(flow, 1, 256, 256) - weights - cache < 10e6


def test_a_compiled_flow_in_low_precision_is_near():
    flow = tiny(**NAMED)
    cond = flow.encode_condition(torch.tensor([0, 1]))
    ours = CompiledFlow(flow, "bfloat16").inverse(latents(flow), cond)
    assert (ours - flow.inverse(latents(flow), cond)).abs().max() < 0.05


def test_the_command_line_takes_names_guidance_and_noise(tmp_path):
    flowcore.models.save(tiny(**NAMED, noise=0.1), tmp_path / "animals.safetensors")
    words = ["sample", "--model", str(tmp_path / "animals.safetensors"), "-o", str(tmp_path / "out"), "--samples", "2"]
    main([*words, "--labels", "dog", "--guidance", "1.5", "--keep-noise"])
    main([*words, "--labels", "dog", "cat"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name.partition("animals_")[2] for name in names] == [
        "guided1.5_noisy_tau0.7_label1_seed0.png",
        "guided1.5_noisy_tau0.7_label1_seed1.png",
        "tau0.7_label0_seed1.png",
        "tau0.7_label1_seed0.png",
    ]
