"""What callers from Python pass: flows in float64, arrays and PIL images, floats in [0, 255]; and what they ask for."""

import copy
import functools
import inspect
import math

import numpy as np
import pytest
import torch
from builders import build_tiny, random_image
from torch import nn

import flowcore
from flowcore import FlowError, ImageError, PrecisionError, ShapeError
from flowcore.flows.flow import Level
from flowcore.flows.likelihood import with_probes
from flowcore.flows.transforms import Chain, Coupling
from flowcore.images.resize import resize
from flowcore.tasks.faces import restore_faces
from flowcore.tasks.hints import hints_from_points, parse_points
from flowcore.tasks.sample import morph, normalize_image_latents
from flowcore.tasks.upscale import UpscaleSettings

from .calls import CALLS, PHOTO, SMALL, colorizer, glow, restorer, upscaler


def test_keywords_of_a_run_are_in_signature_and_help_and_others_are_refused():
    assert list(inspect.signature(flowcore.score).parameters)[-4:] == ["batch", "progress", "cancelled", "notify"]
    with pytest.raises(TypeError, match=r"score\(\) got an unexpected keyword argument 'precision'"):
        flowcore.score(glow(), SMALL, precision="bfloat16")


def test_settings_are_passed_by_name_or_as_one_object():
    settings = UpscaleSettings(seed=3, samples=2, factor=2.0)
    by_name = flowcore.upscale(upscaler(), SMALL, seed=3, samples=2, factor=2.0)
    assert torch.equal(flowcore.upscale(upscaler(), SMALL, settings=settings), by_name)
    with pytest.raises(TypeError, match="seed"):
        flowcore.upscale(upscaler(), SMALL, settings=settings, seed=4)
    with pytest.raises(TypeError, match=r"settings of score\(\) must be .*ScoreSettings"):
        flowcore.score(glow(), SMALL, settings=settings)


def test_help_has_the_options_of_every_task():
    assert "\n    calm_edges: How much lower any ``temperature`` is at edges" in inspect.getdoc(flowcore.upscale)
    for task in (flowcore.score, flowcore.match_source, morph, normalize_image_latents, restore_faces):
        assert "\n\nOptions:\n" in inspect.getdoc(task)
        assert "\n    cancelled: Asked before every network layer" in inspect.getdoc(task), task
        assert ("\n    precision: " in inspect.getdoc(task)) == (task is restore_faces)


# "audit" warns where it sees too little; "remember", "find_faces", "find_scratches" and "trace" make no pictures.
INEXACT = "audit", "remember", "find", "verify", "trace", "morph", "sample"
EXACT = [name for name in CALLS if not name.startswith(INEXACT)]


@pytest.mark.parametrize("name", EXACT)
def test_every_task_takes_float64(name):
    call = CALLS[name]
    exact = call(flow=in_float64(call.make())) if call.make else call(call.image.double())
    for one, other in zip(exact, call(), strict=True):
        assert (one - other).abs().max() < 2e-3 * max(1, float(other.abs().max()))


# Those that clamp what is outside of [0, 1].
CLAMPING = ["upscale matched", "colorize", "colorize_video", "upscale_video", "transfer_palette"]
CLAMPING += ["brighten", "clean", "shrink", "restore", "apply_chroma"]


@pytest.mark.parametrize("task", CLAMPING)
def test_layouts_types_and_values_outside_do_not_matter(task):
    run, image = picture_of(task)
    image = (image * 255).round() / 255
    image[..., 0, 0], image[..., 0, 1] = 0, 1
    expected = run(image)
    channels_last = image.contiguous(memory_format=torch.channels_last)
    loud = torch.where(image == 0, -3, torch.where(image == 1, 7, image))
    exact, strided = (to_bytes(image), image.double()), torch.stack([image, image], 4)[..., 0].requires_grad_()
    for other, tolerance in zip((*exact, channels_last, loud, strided), (0, 0, 1e-5, 1e-5, 1e-5), strict=True):
        made = run(other)
        assert (made - expected).abs().max() <= tolerance
        assert not made.requires_grad or task == "apply_chroma"  # which has no flow, and is differentiable
    assert (run(image.half()) - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    "task", ["upscale matched", "upscale_video", "brighten", "clean", "repair", "restore", "harmonize"]
)
def test_gray_stays_gray_in_one_channel_in_three_and_under_alpha(task):
    run, image = picture_of(task)
    gray = 0.25 + 0.75 * image[:, :1]
    one, *others = (run(gray.expand(-1, channels, -1, -1)) for channels in (1, 3, 4))
    assert one.shape[1] == 1
    for other in others:
        assert torch.equal(other[:, :3], one.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("task", [*(t for t in CLAMPING if t != "shrink"), "repair", "harmonize", "match_source"])
def test_alpha_is_kept_and_changes_no_visible_color(task):
    run, image = picture_of(task)
    alpha = 0.25 + 0.75 * random_image(len(image), 1, *image.shape[2:], seed=2)
    made, expected = run(torch.cat([image, alpha], dim=1)), run(image)
    assert torch.equal(made[:, :3], expected)
    kept = alpha if made.shape[2:] == alpha.shape[2:] else resize(alpha, *made.shape[2:]).clamp(0, 1)
    assert torch.equal(made[:, 3:], kept.repeat_interleave(len(made) // len(alpha), 0))


def picture_of(task):
    """A function that makes the picture of a task of an image, and an image."""
    return lambda image: CALLS[task](image)[0], CALLS[task].image.clone()


def in_float64(flow):
    return copy.deepcopy(flow).double()


def to_bytes(image):
    return (image * 255).round().to(torch.uint8)


def test_hints_and_locks_reach_a_colorizer_in_float64():
    hints = hints_from_points(parse_points("9,9,#ff8040"), (32, 40), radius=6, lock=True)
    pictures = [flowcore.colorize(f, PHOTO, hints=hints) for f in (colorizer(), in_float64(colorizer()))]
    assert (pictures[0] - pictures[1]).abs().max() < 2e-3


def test_floats_of_every_type_in_the_range_of_longer_integers_are_refused_and_highlights_are_not():
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ImageError, match=r"look like \[0, 65535\].*convert .* uint16"):
            flowcore.upscale(upscaler(), (65535 * SMALL).to(dtype))
    for image in (PHOTO * 1.2, PHOTO * 30 * (PHOTO > 0.98), PHOTO - 0.5, torch.zeros_like(PHOTO)):
        assert flowcore.colorize(colorizer(), image).isfinite().all()


def test_clamping_is_optional_for_samples_and_decoded_images():
    flow = glow()
    free = flowcore.sample(flow, 3, temperature=3.0, clamp=False)
    assert free.min() < 0
    assert free.max() > 1
    assert torch.equal(flowcore.sample(flow, 3, temperature=3.0), free.clamp(0, 1))
    latents = flowcore.encode(flow, free)
    decoded = flowcore.decode(flow, latents)
    assert (decoded - free).abs().max() < 1e-3
    assert torch.equal(flowcore.decode(flow, latents, clamp=True), decoded.clamp(0, 1))
    exact = flowcore.sample(in_float64(flow), 3, temperature=3.0, clamp=False)
    assert exact.dtype == torch.float64
    assert (exact - free).abs().max() < 1e-3


def test_images_from_minus_1_to_1_are_noted():
    notes = []
    flowcore.colorize(colorizer(), 2 * PHOTO - 1, notify=notes.append)
    assert [note for note in notes if "in [-1, 1], pass (image + 1) / 2" in note]
    notes.clear()
    flowcore.colorize(colorizer(), PHOTO - 0.1, notify=notes.append)
    assert not [note for note in notes if "[-1, 1]" in note]


def test_a_flow_refuses_batches_and_types_in_its_own_words():
    for error, image, words in (
        (ShapeError, SMALL[:0], "batch is empty"),
        (PrecisionError, SMALL.double(), r"of torch\.float32; got torch\.float64"),
        (PrecisionError, to_bytes(SMALL), "got torch.uint8"),
    ):
        with pytest.raises(error, match=words):
            glow().log_prob(image)
        with pytest.raises(error, match=words):
            upscaler().encode_condition(image)


def test_numbers_of_numpy_are_numbers():
    plain = flowcore.upscale(upscaler(), SMALL, seed=3, temperature=0.5, samples=2)
    numbers = {"seed": np.int64(3), "temperature": np.float32(0.5), "samples": np.int32(2)}
    assert torch.equal(flowcore.upscale(upscaler(), SMALL, **numbers), plain)


def own_flow(scaling):
    """Make a flow of one's own for points in the plane, whose conditioners have no bound."""
    generator, steps = torch.Generator().manual_seed(7), []
    for number in range(4):
        network = nn.Sequential(nn.Conv2d(1, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.7, generator=generator)
        steps.append(Coupling(network, scaling=scaling, swap=number % 2 == 1))
    return flowcore.Flow([Level(steps, squeeze=Chain(), downscale=1)], channels=2)


@torch.no_grad()
def test_the_log_density_of_an_own_flow_is_minus_infinity_where_its_latents_overflow():
    axis = torch.linspace(-40, 40, 100)
    points = torch.cartesian_prod(axis, axis)[:, :, None, None]
    density = own_flow("exp").log_prob(points)
    assert not density.isnan().any()
    assert density.isneginf().any()
    assert density.isfinite().any()
    assert own_flow("exp").log_prob(points * math.nan).isnan().all()  # what is no number has no density
    for safe in ("atan", "narrow", "sigmoid"):
        assert own_flow(safe).log_prob(points).isfinite().all()


def test_samples_that_overflow_are_refused_by_the_flow_and_calmed_by_the_task():
    flow = build_tiny("glow", perturb=0.5, image_size=(8, 12))
    with pytest.raises(FlowError, match=r"4 of 4 images overflowed.*Lower the temperature"):
        flow.sample(4, temperature=1e30)
    said = []
    assert flowcore.sample(flow, 4, temperature=1e30, notify=said.append).isfinite().all()
    assert "The model overflow" in said[0]


@pytest.mark.parametrize("n", [0, True, 2.0, "2", None, 2**21])
def test_flow_and_task_refuse_the_same_numbers_of_samples(n):
    for sample in (glow().sample, functools.partial(flowcore.sample, glow())):
        with pytest.raises(FlowError, match=r"samples must be a whole number in \[1, 1048576\]"):
            sample(n)


def test_seeds_are_integers_of_python_and_numpy():
    expected = glow().sample(2, seed=2**63 - 1)
    for seed in (np.int64(2**63 - 1), np.uint64(2**63 - 1)):
        assert torch.equal(glow().sample(2, seed=seed), expected)
        settings = UpscaleSettings(seed=seed, samples=2)
        assert type(settings.seed) is int
    for seed in (True, np.bool_(True), 3.0, "3", None, -1, 2**64):
        for task in (glow().sample, functools.partial(flowcore.sample, glow())):
            with pytest.raises(FlowError, match=r"eed must be a whole number in \[0, (2\^64\)|18446744073709551615\])"):
                task(1, seed=seed)
    few = build_tiny("ffjord")
    assert torch.equal(*(with_probes(few, (1, 3, 8, 8), seed).probes.vectors[0] for seed in (3, np.int64(3))))


def test_wrong_images_and_latents_of_a_flow_are_named():
    flow = glow()
    latents = [z.detach() for z in flow.encode(SMALL)]
    for image, said in (
        (SMALL.numpy(), r"takes tensors; got numpy\.ndarray"),
        (None, r"takes tensors; got builtins\.NoneType"),
        (SMALL.to("meta"), "This model is on cpu; got a tensor on meta"),
    ):
        with pytest.raises(FlowError, match=said):
            flow.log_prob(image)
    for wrong, said in (
        (latents[0], r"Expected a list of latents, .*got a tensor \(2, "),
        (None, "Expected a list of latents, .*got None"),
        ([z.numpy() for z in latents], r"takes tensors; got numpy\.ndarray"),
        ([z.to("meta") for z in latents], "This model is on cpu; got a tensor on meta"),
    ):
        with pytest.raises(FlowError, match=said):
            flow.inverse(wrong)
        with pytest.raises(FlowError, match=r"Expected (a list of )?latents"):
            flowcore.decode(flow, wrong)


@pytest.mark.parametrize("temperature", ["0.8x", {"temperature": "0.8x"}, [0.5, "0.8x"]])
def test_words_are_no_temperatures(temperature):
    with pytest.raises(FlowError, match=r"temperature must be a finite number >= 0; got .*0\.8x'.* Pass a number"):
        flowcore.upscale(restorer(), SMALL, temperature=temperature)
