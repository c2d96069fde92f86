"""Generation and latents of images: one seed one image, and an exact way there and back."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from flowcore import latents as la
from flowcore.dequantization import quantize
from flowcore.errors import ConditionError, FlowError, ImageError, PrecisionError, ShapeError
from flowcore.inference.plan import Plan
from flowcore.models import build, configure
from flowcore.prior import sample_latents
from flowcore.tasks import Cancelled, directions
from flowcore.tasks.directions import apply_style, attribute_direction_from_folders
from flowcore.tasks.runner import images_at_once
from flowcore.tasks.sample import decode, dequantized_image, encode, reconstruct, sample
from flowcore.tasks.transfer import content_transfer, style_transfer

from .laws import perturbed
from .photographs import photograph

MODELS = {
    "glow": ("glow", {"levels": 2, "steps": 2, "hidden": 8, "image_size": [8, 12]}),
    "any size": ("glow", {"levels": 2, "steps": 1, "hidden": 8, "mixing": "conv"}),
    "glow of classes": ("glow", {"levels": 2, "steps": 2, "hidden": 8, "classes": 3, "image_size": [8, 12]}),
    "realnvp": ("realnvp", {"hidden": 8, "blocks": 1}),
    "digits": (
        "class_conditional",
        {"image_size": [8, 12], "classes": 3, "steps": 3, "hidden": 16, "styles": ["bold", "wide"]},
    ),
    "srflow": (
        "srflow",
        {
            "scale": 2,
            "levels": 2,
            "steps": 2,
            "hidden": 8,
            "encoder_blocks": 2,
            "encoder_width": 8,
            "encoder_growth": 4,
            "stacked_blocks": [1],
        },
    ),
}


def make(name):
    architecture, fields = MODELS[name]
    torch.manual_seed(3)
    flow = perturbed(build(architecture, configure(architecture, fields)), 0.05).eval()
    if name == "digits":
        with torch.no_grad():
            flow.style_directions.copy_(0.1 * torch.randn(flow.style_directions.shape))
    return flow


@pytest.fixture(scope="module")
def flows():
    return {name: make(name) for name in MODELS}


@pytest.fixture
def glow(flows):
    return flows["glow"]


@pytest.fixture
def digits(flows):
    return flows["digits"]


def picture(n=2, channels=3, height=8, width=12, seed=0, dtype=torch.float32):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def condition(flow, n):
    """What a model of each kind is told about n images of 8x12."""
    dtype = next(flow.parameters()).dtype
    if flow.architecture == "srflow":
        return flow.encode_condition(picture(n, 3, 4, 6, seed=5, dtype=dtype))
    if flow.classes:
        return flow.encode_condition(torch.eye(flow.classes, dtype=dtype)[torch.arange(n) % flow.classes])
    return None


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance


# --- sample -----------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_decoded_noise_of_its_seed(glow):
    came = sample(glow, 2, temperature=0.4, seed=7)
    with torch.no_grad():
        expected = glow.inverse(sample_latents(glow.latent_shapes(8, 12), 2, 0.4, 7)).clamp(0, 1)
    close(came, expected)
    assert came.dtype == torch.float32
    assert came.shape == (2, 3, 8, 12)
    assert not came.requires_grad


def test_sample_i_is_made_from_seed_plus_i_whatever_the_batch(glow):
    together = sample(glow, 5, seed=100)
    for batch in (1, 2, 3, 64):
        close(sample(glow, 5, seed=100, batch=batch), together)
    for i in range(5):
        close(sample(glow, 1, seed=100 + i), together[i : i + 1])
    assert (together[0] - together[1]).abs().max() > 0.01


def test_low_precision_stays_near_and_is_refused_if_unknown(glow):
    wide, narrow = sample(glow, 2, seed=3), sample(glow, 2, seed=3, precision="bfloat16")
    assert 0 < (wide - narrow).abs().mean() < 0.02
    assert torch.equal(sample(glow, 2, seed=3, precision="tf32"), wide)  # no tensor cores on a CPU
    with pytest.raises(FlowError, match="precision must be one of float32, bfloat16, float16, auto, tf32; got 'half'"):
        sample(glow, 1, precision="half")


def test_a_plan_may_be_given_in_place_of_the_flow(glow):
    for precision in ("float32", "bfloat16"):
        assert torch.equal(sample(Plan(glow, precision), 2, seed=3), sample(glow, 2, seed=3, precision=precision))


def test_samples_are_clamped_and_the_temperature_counts(glow):
    wild = sample(glow, 3, temperature=3.0)
    assert wild.min() == 0
    assert wild.max() == 1
    calm = sample(glow, 3, temperature=0)
    close(calm, calm[:1].expand(3, -1, -1, -1))
    with torch.no_grad():
        zeros = [torch.zeros(1, *shape) for shape in glow.latent_shapes(8, 12)]
        close(calm[:1], glow.inverse(zeros).clamp(0, 1))
    assert not torch.equal(sample(glow, 1), calm[:1])
    assert torch.equal(sample(glow, 1), sample(glow, 1, temperature=0.7))


def test_every_level_may_have_its_own_temperature(glow):
    came = sample(glow, 2, temperature=[0.2, 0.9], seed=4)
    z = la.scale(sample_latents(glow.latent_shapes(8, 12), 2, 1.0, 4), [0.2, 0.9])
    close(came, decode(glow, z).clamp(0, 1))
    with pytest.raises(ShapeError, match="2 levels"):
        sample(glow, 1, temperature=[0.2, 0.9, 1])


def test_a_model_is_asked_for_other_sizes_and_for_any_where_it_names_none(flows):
    assert sample(flows["glow"], 1, size=(16, 8)).shape == (1, 3, 16, 8)
    assert sample(flows["any size"], 1, size=8).shape == (1, 3, 8, 8)
    with pytest.raises(FlowError, match=r"Give one: size=\(height, width\), multiples of 4"):
        sample(flows["any size"], 1)
    with pytest.raises(ShapeError, match="divisible by 4; got 8x10"):
        sample(flows["any size"], 1, size=(8, 10))
    with pytest.raises(ShapeError, match="8x12 only"):
        sample(flows["digits"], 1, size=16, labels=0)
    for size in ((8,), (8, 8.0), (8, 8, 8)):
        with pytest.raises(FlowError, match="size must be"):
            sample(flows["any size"], 1, size=size)


@pytest.mark.parametrize("name", ["glow of classes", "digits"])
def test_labels_say_what_to_show(flows, name):
    flow = flows[name]
    each = sample(flow, 3, labels=[0, 1, 2], seed=9)
    assert torch.equal(each, sample(flow, 3, labels=torch.tensor([0, 1, 2]), seed=9))
    close(each, sample(flow, 3, labels=torch.eye(3, dtype=torch.float64), seed=9))
    for label in range(3):
        for labels in (label, [label], torch.tensor(label)):
            same = sample(flow, 3, labels=labels, seed=9)
            close(same[label], each[label])
            assert all((same[i] - each[i]).abs().max() > 1e-4 for i in range(3) if i != label)
    close(sample(flow, 3, labels=[0, 1, 2], seed=9, batch=2), each)


@pytest.mark.parametrize("name", ["glow of classes", "digits"])
def test_labels_that_make_no_sense_are_refused(flows, name):
    flow = flows[name]
    with pytest.raises(ConditionError, match="labels 0 to 2; got none"):
        sample(flow, 2)
    with pytest.raises(ConditionError, match="Got 3 labels for 2 images"):
        sample(flow, 2, labels=[0, 1, 2])
    for labels in (0.5, True, [], [[0, 1]], torch.zeros(2, 4)):
        with pytest.raises(ConditionError, match="expected one whole number"):
            sample(flow, 2, labels=labels)
    for labels in (7, -1):
        with pytest.raises(ConditionError):
            sample(flow, 2, labels=labels)


def test_a_class_conditional_model_samples_without_a_class_when_told_so(digits):
    assert sample(digits, 2, labels=digits.classes).shape == (2, 1, 8, 12)


def test_other_models_take_no_labels_and_an_srflow_no_sampling(flows):
    with pytest.raises(ConditionError, match="not conditioned on labels"):
        sample(flows["glow"], 2, labels=1)
    with pytest.raises(FlowError, match=r"sample needs a model that makes images"):
        sample(flows["srflow"], 2)


@pytest.mark.parametrize("arguments", [{"n": 0}, {"seed": -1}, {"seed": 2**64}, {"temperature": -1}, {"batch": -1}])
def test_arguments_out_of_range_are_refused(glow, arguments):
    with pytest.raises(FlowError):
        sample(glow, **{"n": 1, **arguments})


def test_the_last_seed_goes_on_with_the_first(glow):
    close(sample(glow, 2, seed=2**64 - 1)[1:], sample(glow, 1, seed=0))


def test_what_overflows_is_drawn_calmer_and_said(glow):
    said = []
    assert sample(glow, 2, seed=5, temperature=1e38, notify=said.append).isfinite().all()
    assert len(said) == 1
    assert "overflowed in 2 pictures" in said[0]
    assert "lower temperature" in said[0]


# --- encode, decode, reconstruct --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_decode_undoes_encode(name, dtype, tolerance):
    flow = make(name).to(dtype)
    image = picture(2, flow.channels, dtype=dtype)
    if name != "realnvp":  # its logit ends at 0 and 1
        image = 1.4 * image - 0.2  # not clamped on the way
    cond = condition(flow, 2)
    latents = encode(flow, image, cond)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes(8, 12)
    assert {z.dtype for z in latents} == {dtype}
    back = decode(flow, latents, cond)
    assert back.dtype == dtype
    assert not back.requires_grad
    close(back, image, tolerance)
    again, error = reconstruct(flow, image, cond)
    assert torch.equal(again, back)
    assert torch.equal(error, (back - image).abs().flatten(1).amax(1))
    # and there is something to undo
    assert (torch.cat([z.flatten(1) for z in latents], 1) - image.flatten(1)).abs().max() > 0.1


def test_encode_is_the_flow_on_the_pixels_as_they_are(glow):
    image = picture()
    with torch.no_grad():
        expected = glow(image)[0]
    for given in (image, image.double()):
        for x, y in zip(encode(glow, given), expected, strict=True):
            close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_8_bit_images_are_divided_by_255_and_come_back_exactly(dtype):
    flow = make("glow").to(dtype)
    image = (picture(dtype=torch.float64) * 255).round()
    latents = encode(flow, image.byte())
    assert all(torch.equal(x, y) for x, y in zip(latents, encode(flow, image.to(dtype) / 255), strict=True))
    assert torch.equal((decode(flow, latents) * 255).round().double(), image)


def test_an_error_is_measured_per_image(glow, monkeypatch):
    image = picture(3)
    true = Plan.inverse

    def spoilt(self, z, cond=None):
        x = true(self, z, cond)
        x[1, 2, 3, 4] -= 0.25
        return x

    monkeypatch.setattr(Plan, "inverse", spoilt)
    error = reconstruct(glow, image)[1]
    assert error[1].item() == pytest.approx(0.25, abs=1e-4)
    assert error[[0, 2]].max() < 1e-4


@pytest.mark.parametrize("name", ["glow", "digits", "srflow"])
def test_the_batch_makes_no_difference(flows, name):
    flow = flows[name]
    image = picture(5, flow.channels)
    cond = condition(flow, 5)
    latents = encode(flow, image, cond)
    for batch in (1, 2, 5):
        for x, y in zip(encode(flow, image, cond, batch=batch), latents, strict=True):
            close(x, y)
        close(decode(flow, latents, cond, batch=batch), image, 1e-4)


@pytest.mark.parametrize("name", ["glow of classes", "digits", "srflow"])
def test_one_condition_serves_many_images(flows, name):
    flow = flows[name]
    image, one = picture(3, flow.channels), condition(flow, 1)
    latents = encode(flow, image, one, batch=2)
    for i in range(3):
        alone = encode(flow, image[i : i + 1], one)
        for x, y in zip(latents, alone, strict=True):
            close(x[i : i + 1], y)
    close(decode(flow, latents, one, batch=2), image, 1e-4)
    with pytest.raises(ConditionError, match="of 2 images; got 3"):
        encode(flow, image, condition(flow, 2))
    with pytest.raises(ConditionError, match="of 2 images; got 3"):
        decode(flow, latents, condition(flow, 2))


@pytest.mark.parametrize("name", ["glow", "digits", "srflow"])
def test_autocast_is_kept_out(flows, name):
    flow = flows[name]
    image, cond = picture(2, flow.channels), condition(flow, 2)
    latents = encode(flow, image, cond)
    labels = 1 if flow.classes else None
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(x, y) for x, y in zip(encode(flow, image, cond), latents, strict=True))
        back, error = reconstruct(flow, image, cond)
        drawn = None if name == "srflow" else sample(flow, 1, labels=labels)
    assert torch.equal(back, decode(flow, latents, cond))
    assert error.max() < 1e-4
    if drawn is not None:
        assert torch.equal(drawn, sample(flow, 1, labels=labels))


def test_a_flow_in_low_precision_is_refused():
    flow = make("glow")
    latents = encode(flow, picture())
    for parameter in flow.parameters():
        parameter.data = parameter.data.half()  # .half() itself is refused
    for call in (lambda: encode(flow, picture()), lambda: decode(flow, latents), lambda: sample(flow, 1)):
        with pytest.raises(PrecisionError):
            call()


def test_conditions_that_are_missing_or_superfluous_are_refused(flows):
    with pytest.raises(ConditionError, match="a condition"):
        encode(flows["srflow"], picture())
    with pytest.raises(ConditionError, match="no condition"):
        encode(flows["glow"], picture(), condition(flows["digits"], 2))


def test_images_that_do_not_fit_are_refused(flows):
    glow, digits = flows["glow"], flows["digits"]
    for image in (picture(2, 1), picture()[0], picture()[:, :, None]):
        with pytest.raises(ShapeError, match=r"\(B, 3, H, W\); got"):
            encode(glow, image)
    with pytest.raises(ShapeError, match="to gray"):
        encode(digits, picture(), condition(digits, 2))
    with pytest.raises(ShapeError, match=r"divisible by 4; got 8x10\. Crop \(to 8x8\)"):
        encode(glow, picture(width=10))
    with pytest.raises(ShapeError, match="8x12 only"):
        encode(digits, picture(2, 1, 12, 12), condition(digits, 2))
    for image in (picture()[:0], picture()[..., :0]):
        with pytest.raises(ImageError, match="empty"):
            encode(glow, image)
    with pytest.raises(ImageError, match="uint8, or float"):
        encode(glow, picture().long())
    spoilt = picture()
    spoilt[0, 0, 0, :2] = math.nan
    with pytest.raises(ImageError, match="2 values"):
        encode(glow, spoilt)


def test_an_image_out_of_a_models_reach_is_named(flows):
    image = picture(3)
    image[1, 0, 0, 0] = 1.5
    for call in (encode, reconstruct):
        with pytest.raises(ImageError, match=r"Image 1 has no finite latents.* to 1\.5; expected are 0 to 1"):
            call(flows["realnvp"], image, batch=1)


def test_latents_that_do_not_fit_are_refused(flows):
    z = encode(flows["glow"], picture())
    for wrong in ([], z[0], [z[0], z[1][:1]], [z[0][:0], z[1][:0]]):
        with pytest.raises(ShapeError, match="finest first"):
            decode(flows["glow"], wrong)
    with pytest.raises(ShapeError, match="Expected latents of shapes"):
        decode(flows["glow"], z[::-1])
    with pytest.raises(ShapeError, match="Expected latents of shapes"):
        decode(flows["digits"], z, condition(flows["digits"], 2))


def test_nothing_is_changed(flows):
    state = torch.get_rng_state()
    for flow in flows.values():
        before = {name: t.clone() for name, t in flow.state_dict().items()}
        hooks = sum(len(m._forward_pre_hooks) for m in flow.modules())
        image, cond = picture(2, flow.channels), condition(flow, 2)
        latents = encode(flow, image, cond)
        kept = [z.clone() for z in latents]
        decode(flow, latents, cond).fill_(7)
        reconstruct(flow, image, cond)[0].fill_(7)
        assert torch.equal(image, picture(2, flow.channels))
        assert all(torch.equal(x, y) for x, y in zip(latents, kept, strict=True))
        assert all(torch.equal(t, before[name]) for name, t in flow.state_dict().items())
        assert sum(len(m._forward_pre_hooks) for m in flow.modules()) == hooks
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.gpu
def test_results_lie_where_their_input_did():
    flow, image = make("glow"), picture()
    latents, drawn = encode(flow, image), sample(flow, 2)
    flow = flow.to("cuda")
    assert {z.device.type for z in encode(flow, image)} == {"cpu"}
    assert {z.device.type for z in encode(flow, image.cuda())} == {"cuda"}
    for x, y in zip(encode(flow, image), latents, strict=True):
        close(x, y, 1e-3)
    assert decode(flow, latents).device.type == "cpu"
    again, error = reconstruct(flow, image.cuda())
    assert again.device.type == "cuda"
    assert error.max() < 1e-3
    assert sample(flow, 2).device.type == "cpu"
    close(sample(flow, 2), drawn, 1e-3)
    digits = make("digits").to("cuda")
    moved = apply_style(digits, encode(digits, picture(1, 1), condition_on(digits)), {"bold": 1.0})
    assert moved[0].device.type == "cpu"
    assert style_transfer(digits, picture(1, 1), 0, [1, 2]).device.type == "cpu"


def condition_on(flow):
    return flow.encode_condition(torch.tensor([0], device=next(flow.parameters()).device))


# --- progress, cancel, memory -----------------------------------------------------------------------------------------


def calls(flows):
    glow, digits, srflow = flows["glow"], flows["digits"], flows["srflow"]
    image, latents = picture(3), encode(glow, picture(3))
    small = picture(3, 3, 4, 6)
    return {
        "sample": (lambda **k: sample(glow, 3, batch=2, **k), 3),
        "encode": (lambda **k: encode(glow, image, batch=2, **k), 0),
        "decode": (lambda **k: decode(glow, latents, batch=2, **k), 3),
        "reconstruct": (lambda **k: reconstruct(glow, image, batch=2, **k), 3),
        "style_transfer": (lambda **k: style_transfer(digits, picture(2, 1), 0, [1, 2], seed=None, batch=3, **k), 4),
        "content_transfer": (lambda **k: content_transfer(srflow, image, small, batch=2, **k), 3),
    }


NAMES = ["sample", "encode", "decode", "reconstruct", "style_transfer", "content_transfer"]


@pytest.mark.parametrize("name", NAMES)
def test_progress_rises_to_its_end_and_shows_every_finished_image(flows, name):
    call, images = calls(flows)[name]
    log = []
    result = call(progress=lambda done, total, preview=None: log.append((done, total, preview)))
    done = [entry[0] for entry in log]
    assert done == sorted(done)
    assert {total for _, total, _ in log} == {done[-1]}
    assert min(done) > 0
    previews = [preview for _, _, preview in log if preview is not None]
    assert len(previews) == images
    pictures = result[0] if isinstance(result, tuple) else result
    for came, expected in zip(previews, pictures if images else [], strict=True):
        close(came, expected.clamp(0, 1), 0)
    if name != "style_transfer":
        assert len(log) > 10  # layer by layer, not image by image


@pytest.mark.parametrize("name", NAMES)
def test_every_task_stops_when_asked(flows, name):
    call, _ = calls(flows)[name]
    asked = []

    def after(count):
        def cancelled():
            asked.append(1)
            return len(asked) > count

        return cancelled

    for count in (0, 1):
        asked.clear()
        with pytest.raises(Cancelled):
            call(cancelled=after(count))
        assert len(asked) == count + 1
    asked.clear()
    call(cancelled=after(10**9))
    assert len(asked) > 2
    for flow in flows.values():
        assert not any(m._forward_pre_hooks for m in flow.modules())


def test_running_out_of_memory_goes_on_with_fewer_at_once(glow, monkeypatch):
    whole, seen, log = sample(glow, 7, seed=3), [], []
    true = Plan.inverse

    def short(self, z, cond=None):
        x = true(self, z, cond)
        seen.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return x

    monkeypatch.setattr(Plan, "inverse", short)
    limit = 2
    came = sample(glow, 7, seed=3, progress=lambda done, total, preview=None: log.append((done, total)))
    close(came, whole)
    assert seen == [7, 1, 1, 1, 1, 1, 1, 1]
    assert log[-1][0] == log[-1][1]
    limit = 0
    with pytest.raises(FlowError, match=r"Out of memory\. Choose a smaller size"):
        sample(glow, 7)


def test_other_errors_pass(glow, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(type(glow), "inverse", broken)
    with pytest.raises(RuntimeError, match="something else"):
        sample(glow, 1)


def test_large_images_go_in_small_batches():
    assert images_at_once(32, 32) == 64
    assert images_at_once(256, 256) == 4
    assert images_at_once(4096, 4096) == 1


# --- other images from the same latents -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glow of classes", "digits"])
def test_style_transfer_decodes_the_same_latents_with_other_labels(flows, name):
    flow = flows[name]
    image = picture(2, flow.channels)
    came = style_transfer(flow, image, [0, 2], [2, 1, 0], seed=None)
    assert came.shape == (6, flow.channels, 8, 12)
    for i, own in enumerate((0, 2)):
        latents = encode(flow, image[i : i + 1], flow.encode_condition(torch.tensor([own])))
        for k, label in enumerate((2, 1, 0)):
            expected = decode(flow, latents, flow.encode_condition(torch.tensor([label]))).clamp(0, 1)
            close(came[3 * i + k : 3 * i + k + 1], expected)
    close(came[2], image[0], 1e-4)  # the own label gives the image again
    close(came[3], image[1], 1e-4)
    assert (came[0] - came[1]).abs().max() > 1e-3
    close(style_transfer(flow, image, 1, 1, seed=None), image, 1e-4)


def test_a_dequantized_image_is_noisy_within_its_bins_and_snaps_back(flows):
    flow = flows["digits"]
    image = (picture(3, 1) * 255).round() / 255
    noisy = dequantized_image(flow, image, seed=4)
    assert 0 < (noisy - image).abs().max() <= 1 / 255
    close(quantize(flow, noisy), image, 1e-6)
    assert torch.equal(dequantized_image(flow, image[1:], seed=5), noisy[1:])  # whatever the place in the batch
    assert not torch.equal(dequantized_image(flow, image, seed=5), noisy)
    close(style_transfer(flow, image, 1, 1), image, 1e-6)


def test_samples_are_drawn_in_a_style():
    torch.manual_seed(0)
    config = {"image_size": 4, "classes": 2, "steps": 1, "hidden": 4, "styles": ("bold",)}
    flow = build("class_conditional", configure("class_conditional", config)).eval()
    flow.get_buffer("style_directions").fill_(0.3)
    came = sample(flow, 2, temperature=0.5, seed=3, labels=[0, 1], styles={"bold": 2.0})
    drawn = sample_latents(flow.latent_shapes(4, 4), 2, 0.5, 3)
    expected = decode(flow, [z + 0.6 for z in drawn], flow.encode_condition(torch.tensor([0, 1]))).clamp(0, 1)
    close(came, expected, 1e-6)
    assert not torch.equal(came, sample(flow, 2, temperature=0.5, seed=3, labels=[0, 1]))
    with pytest.raises(FlowError, match="bold"):
        sample(flow, 2, labels=[0, 1], styles={"curly": 1.0})


def test_style_transfer_needs_labels(flows):
    with pytest.raises(ConditionError, match="not conditioned on labels"):
        style_transfer(flows["glow"], picture(), 0, [1])
    with pytest.raises(ConditionError, match="Got 3 labels for 2 images"):
        style_transfer(flows["digits"], picture(2, 1), [0, 1, 2], [1])
    with pytest.raises(ConditionError):
        style_transfer(flows["digits"], picture(2, 1), 0, [1, 17])


def test_content_transfer_normalises_the_latents_under_the_targets_lr(flows):
    flow = flows["srflow"]
    edited, lr = picture(2, 3, 16, 24), picture(2, 3, 8, 12, seed=5)  # 4x6 positions: enough for windows
    close(content_transfer(flow, edited, lr, strength=0), edited, 1e-4)
    cond = flow.encode_condition(lr)
    latents = encode(flow, edited, cond)
    results = []
    for per, window in (("level", 9), ("channel", 9), ("local", 9), ("local", 5)):
        came = content_transfer(flow, edited, lr, strength=0.7, per=per, window=window)
        close(came, decode(flow, la.normalize(latents, 0.7, per, window=window), cond).clamp(0, 1))
        assert all((came - other).abs().max() > 1e-4 for other in results)
        results.append(came)
    one = content_transfer(flow, edited, lr[:1])
    close(one[1:], content_transfer(flow, edited[1:], lr[:1]))
    assert (one - edited).abs().max() > 0.01
    in_bytes = content_transfer(flow, (edited * 255).byte(), (lr * 255).byte())
    close(in_bytes, content_transfer(flow, (edited * 255).byte() / 255, (lr * 255).byte() / 255))


def test_content_transfer_refuses_what_does_not_fit(flows):
    flow = flows["srflow"]
    with pytest.raises(FlowError, match="upscale needs"):
        content_transfer(flows["glow"], picture(), picture(2, 3, 4, 6))
    for lr in (picture(2, 3, 4, 8), picture(3, 3, 4, 6)):
        with pytest.raises(ShapeError, match="2 times as large"):
            content_transfer(flow, picture(), lr)
    with pytest.raises(ShapeError, match="divisible by 4"):
        content_transfer(flow, picture(height=6), picture(2, 3, 3, 6))
    with pytest.raises(FlowError, match="strength"):
        content_transfer(flow, picture(), picture(2, 3, 4, 6), strength=2)


def test_styles_are_added_by_name(digits):
    latents = encode(digits, picture(2, 1), condition(digits, 2))
    styles = digits.styles
    came = apply_style(digits, latents, {"bold": 1.5, "wide": -1})
    expected = [z + 1.5 * d - e for z, d, e in zip(latents, styles["bold"], styles["wide"], strict=True)]
    for x, y in zip(came, expected, strict=True):
        close(x, y)
    assert all(torch.equal(x, y) for x, y in zip(apply_style(digits, latents, {}), latents, strict=True))


def test_messy_is_a_temperature_as_well():
    architecture, fields = MODELS["digits"]
    flow = build(architecture, configure(architecture, {**fields, "styles": ["messy", "bold"]}))
    with torch.no_grad():
        flow.style_directions.copy_(0.1 * torch.randn(flow.style_directions.shape))
    latents = [torch.randn(2, 96, 1, 1)]
    messy, bold = (flow.styles[name][0] for name in ("messy", "bold"))
    for strength in (1.0, -2):
        factor = math.exp(directions.MESSY_RATE * strength)
        expected = factor * latents[0] + strength * messy + 0.5 * bold
        close(apply_style(flow, latents, {"bold": 0.5, "messy": strength})[0], expected)
        close(apply_style(flow, latents, {"bold": [0.5], "messy": [strength]})[0], expected)
    assert directions.MESSY_RATE > 0


def test_an_unknown_style_is_answered_with_the_known_ones(flows):
    digits = flows["digits"]
    with pytest.raises(FlowError, match="no style 'italic'; it has bold, wide"):
        apply_style(digits, [torch.zeros(1, 96, 1, 1)], {"bold": 1, "italic": 1})
    with pytest.raises(FlowError, match="none at all"):
        apply_style(flows["glow"], encode(flows["glow"], picture()), {"bold": 1})
    with pytest.raises(ShapeError, match="fit together"):
        apply_style(digits, encode(flows["glow"], picture()), {"bold": 1})


# --- directions from folders ------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for name, sizes in (("with", [(8, 12), (30, 20), (9, 40)]), ("without", [(16, 24), (8, 12)])):
        for k, size in enumerate(sizes):
            deep = tmp_path / name / ("more" if k == 1 else "")
            deep.mkdir(parents=True, exist_ok=True)
            photograph(*size, seed=10 * len(name) + k).save(deep / f"{k}.png")
    return tmp_path / "with", tmp_path / "without"


def covered(path, mode="RGB"):
    """The middle of an image, resized to cover 8x12."""
    image = Image.open(path).convert(mode)
    factor = max(12 / image.width, 8 / image.height)
    width, height = 12 / factor, 8 / factor
    left, top = (image.width - width) / 2, (image.height - height) / 2
    cut = image.resize((12, 8), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return torch.tensor(list(cut.tobytes()), dtype=torch.uint8).view(1, 8, 12, -1).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", ["glow", "digits"])
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_a_direction_from_folders_is_the_difference_of_their_means(flows, folders, name, batch):
    flow = flows[name]
    label = 1 if flow.classes else None
    found = attribute_direction_from_folders(flow, *folders, label=label, batch=batch)
    assert found.counts == (3, 2)
    assert found.skipped == []
    mode = "RGB" if flow.channels == 3 else "L"
    cond = None if label is None else flow.encode_condition(torch.tensor([label]))
    means = []
    for folder in folders:
        encoded = [encode(flow, covered(path, mode), cond) for path in folder.rglob("*.png")]
        means.append([torch.cat(level).mean(0, keepdim=True) for level in zip(*encoded, strict=True)])
    for d, p, n in zip(found.direction, *means, strict=True):
        close(d, p - n)


def test_what_cannot_be_read_is_skipped_and_listed(glow, folders):
    expected = attribute_direction_from_folders(glow, *folders)
    (folders[0] / "broken.png").write_bytes(b"no picture")
    whole = (folders[0] / "0.png").read_bytes()
    (folders[0] / "half.png").write_bytes(whole[: len(whole) // 2])
    (folders[1] / "notes.txt").write_text("not asked for")
    log = []
    found = attribute_direction_from_folders(
        glow, *folders, batch=2, progress=lambda done, total, preview=None: log.append((done, total))
    )
    assert found.counts == (3, 2)
    assert sorted(line.split(":")[0] for line in found.skipped) == ["broken.png", "half.png"]
    for x, y in zip(found.direction, expected.direction, strict=True):
        close(x, y)
    assert [done for done, _ in log] == sorted(done for done, _ in log)
    assert log[-1][0] == log[-1][1]


def test_images_whose_latents_are_not_finite_are_left_out(glow, folders, monkeypatch):
    true = type(glow).forward

    def spoilt(self, x, cond=None):
        latents, logdet = true(self, x, cond)
        if len(x) == 3:
            latents[1][1, 0, 0, 0] = math.inf
        return latents, logdet

    monkeypatch.setattr(type(glow), "forward", spoilt)
    found = attribute_direction_from_folders(glow, *folders)
    assert found.counts == (2, 2)
    assert len(found.skipped) == 1
    assert "not finite" in found.skipped[0]
    assert all(z.isfinite().all() for z in found.direction)


def test_folders_that_cannot_be_used_are_refused(flows, folders, tmp_path):
    glow = flows["glow"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="No images in"):
        attribute_direction_from_folders(glow, folders[0], tmp_path / "empty")
    with pytest.raises(ImageError, match="No images in"):
        attribute_direction_from_folders(glow, tmp_path / "missing", folders[1])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"None of the 1 images.*a\.png"):
        attribute_direction_from_folders(glow, folders[0], tmp_path / "bad")
    with pytest.raises(FlowError, match="Give one: size"):
        attribute_direction_from_folders(flows["any size"], *folders)
    assert attribute_direction_from_folders(flows["any size"], *folders, size=8).direction[0].shape == (1, 6, 4, 4)
    with pytest.raises(ConditionError, match="got none"):
        attribute_direction_from_folders(flows["digits"], *folders)
    with pytest.raises(FlowError, match="sample needs"):
        attribute_direction_from_folders(flows["srflow"], *folders)


def test_reading_folders_stops_when_asked(glow, folders):
    with pytest.raises(Cancelled):
        attribute_direction_from_folders(glow, *folders, cancelled=lambda: True)
