"""What is shipped is what the README says: small, licensed, consistent with its input, and diverse."""

import functools
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import flowcore
from flowcore.engine.defaults import model_defaults
from flowcore.flows.dequantization import quantize
from flowcore.flows.likelihood import log_prob
from flowcore.flows.prior import sample_latents
from flowcore.images import color
from flowcore.images.color import as_stored, to_uint8
from flowcore.images.files import read
from flowcore.images.metrics import chroma_rmse, colorfulness, diversity, false_specks, lr_psnr, psnr
from flowcore.images.resize import downsample, enlarge
from flowcore.models import catalog
from flowcore.models.model_file import read_header
from flowcore.tasks.model_choice import better_model
from flowcore.tasks.styles import apply_style
from flowcore.tasks.upscale import UpscaleSettings
from flowcore.training.evaluation.feature_distance import feature_distance
from flowcore.training.styles import STYLES, attributes, read_images

PHOTO = Path(__file__).parents[2] / "workflows" / "photo.png"


def pixels(data):
    return read(data, "a picture").pixels


def jpeg(image, quality):
    """An image of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)[0].permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
    return pixels(buffer.getvalue())


load = functools.cache(flowcore.load)


@pytest.fixture(scope="module")
def flow():
    return load("srflow-x4")


@pytest.fixture(scope="module")
def photo():
    """The face of the sample photograph, 64x64."""
    return pixels(PHOTO.read_bytes())[..., 20:84, 84:148]


def test_every_shipped_model_and_all_together_are_small_and_say_where_they_come_from():
    sizes = {name: catalog.path(name).stat().st_size for name in catalog.names()}
    assert max(sizes.values()) <= 16_000_000
    assert sum(sizes.values()) <= 75_000_000
    for name in sizes:
        provenance = read_header(catalog.path(name)).provenance
        assert provenance["licence"].startswith("MIT"), name
        assert provenance["recipe"], name
        assert f"[{name}]({name}.md)" in (catalog.path(name).parent / "README.md").read_text()


@pytest.mark.parametrize("damage", ["JPEG", "noise"])
def test_the_model_of_damaged_photographs_takes_the_damage_away(flow, damage):
    hr = pixels(PHOTO.read_bytes())
    lr = as_stored(downsample(hr, 4))  # (1, 3, 31, 47)
    if damage == "noise":
        lr = as_stored(lr + 10 / 255 * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0)))
    else:
        lr = jpeg(lr, 40)
    plain, restored = (
        [float(feature_distance(flowcore.upscale(model, lr, seed=1, temperature=t), hr)) for t in (0.0, None)]
        for model in (flow, load("srflow-x4-photo"))
    )
    assert all(after < before - 0.8 for before, after in zip(plain, restored, strict=True))


def test_a_dark_photograph_becomes_light(photo):
    dark = as_stored(
        photo * 0.12 ** (1 / 2.2) + 0.01 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    )
    light = flowcore.brighten(load("brighten-photos"), dark)
    assert psnr(light, photo) > psnr(dark, photo) + 6


def test_a_photograph_comes_back_from_a_sixteenth_of_its_pixels(flow, photo):
    model = load("rescale-x4")
    small, ordinary = flowcore.shrink(model, photo), as_stored(downsample(photo, 4))
    assert psnr(small, ordinary) > 30
    enlarged = flowcore.upscale(flow, ordinary, temperature=0.0)
    assert psnr(flowcore.restore(model, small), photo) > psnr(enlarged, photo) + 0.5


def test_a_model_of_clean_photographs_names_the_one_for_damaged_ones(flow, photo):
    damaged, said = jpeg(photo, 50), []
    options = {"temperature": 0.0, "notify": said.append}
    for model, picture in ((flow, photo), (load("srflow-x4-photo"), damaged), (flow, damaged)):
        flowcore.upscale(model, picture, **options)
    flowcore.upscale(flow, damaged, **options, advise=False)
    assert said == ["This picture has JPEG blocks (about quality 50); srflow-x4-photo is made for it."]
    assert [better_model(flow, picture) for picture in (damaged, photo)] == ["srflow-x4-photo", None]
    assert better_model(load("srflow-x4-photo"), damaged) is None


def test_colourings_are_various_and_colourful_and_one_of_them_is_nearer_than_grey():
    flow = load("color-photos")
    rgb = pixels(PHOTO.read_bytes())
    y, truth = color.split(rgb)
    pictures = flowcore.colorize(flow, y, samples=8)
    assert float((color.luma(pictures) - y).abs().max()) <= 1e-6
    chroma = color.split(pictures)[1]
    assert float(chroma.std(0).mean()) > 0.01
    assert 0.4 < float(colorfulness(chroma).mean() / colorfulness(truth)) < 2
    grey = float(chroma_rmse(torch.zeros_like(truth), truth))
    assert float(chroma_rmse(chroma, truth.expand(8, -1, -1, -1)).min()) < grey


@pytest.mark.parametrize("name", ["glow-photos", "glow-faces", "realnvp-photos"])
def test_a_photograph_is_likelier_than_noise_and_comes_back_exactly(name, photo):
    flow = load(name)
    side = flow.image_size[0]
    pair = torch.stack([photo[0, :, :side, :side], torch.rand(3, side, side)])
    bits = flowcore.score(flow, pair).bits_per_dim
    assert bits[0] < flow.config.n_bits < bits[1]
    again = flowcore.decode(flow, flowcore.encode(flow, pair[:1]))
    assert float((again - pair[:1]).abs().max()) < 1e-3
    samples = flowcore.sample(flow, 4, temperature=0.8)
    assert samples.isfinite().all()
    assert diversity(samples) > 5


def test_digits_are_what_their_label_says_and_styles_what_their_names_say():
    flow = load("mnist-styles")
    labels = torch.arange(10).repeat(4)
    latents = sample_latents(flow.latent_shapes(28, 28), 40, 0.8, seed=50)
    cond = flow.encode_condition(labels)
    digits = flowcore.decode(flow, latents, cond)
    likelihoods = torch.stack([log_prob(flow, digits, flow.encode_condition(torch.full((40,), y))) for y in range(10)])
    assert (likelihoods.argmax(0) == labels).float().mean() > 0.9
    for column, style in enumerate(STYLES[:3]):
        drawn = [flowcore.decode(flow, apply_style(flow, latents, {style: s}), cond) for s in (-2, 0, 2)]
        less, plain, more = (attributes(quantize(flow, x))[:, column].mean() for x in drawn)
        assert less < plain < more, style


def test_styles_of_faces_change_what_they_name_and_leave_the_person():
    """On the portraits of the story `smile`, which the model was not trained on."""
    flow = load("glow-faces")
    files = sorted((PHOTO.parent / "pictures").glob("portrait-*.jpg"))
    faces = quantize(flow, read_images(flow, files))
    latents = flowcore.encode(flow, faces)
    again = flowcore.decode(flow, latents)
    assert float((again - faces).abs().max()) < 1e-3

    def moved(**styles: float) -> torch.Tensor:
        return color.luma(flowcore.decode(flow, apply_style(flow, latents, styles)).clamp(0, 1))

    plain = color.luma(faces)
    for style, place, shown in (
        ("smile", (..., slice(42, 52), slice(22, 42)), torch.std),  # teeth between lips
        ("age", (..., slice(4, 18), slice(16, 48)), torch.mean),  # gray hair
    ):
        less, more = moved(**{style: -2.0}), moved(**{style: 2.0})
        weak, strong = (shown(x[place].flatten(1), 1) for x in (less, more))
        assert (strong > weak).all(), style
        change = (more - plain).abs().mean((0, 1))
        assert float(change[place].mean()) > 2 * float(change.mean()), style
        for x in (less, more):
            distances = torch.cdist(x.flatten(1), plain.flatten(1))
            assert torch.equal(distances.argmin(1), torch.arange(len(files))), style


def test_samples_shrink_to_their_input_and_the_calm_one_beats_bicubic(flow, photo):
    samples = flowcore.upscale(flow, photo, temperature=1.0, samples=4)
    assert float(lr_psnr(samples, photo).min()) > 42
    assert diversity(samples) > 1
    calm = flowcore.upscale(flow, photo, temperature=0)
    assert float(lr_psnr(calm, photo)) > 42
    small = (downsample(photo, 4).clamp(0, 1) * 255).round() / 255
    bicubic = enlarge(small, 4).clamp(0, 1)
    assert float(psnr(flowcore.upscale(flow, small, temperature=0), photo) - psnr(bicubic, photo)) > 0.8


@pytest.mark.parametrize("name", ["srflow-x4", "srflow-x8"])
def test_defaults_are_nearly_as_close_to_the_original_as_temperature_0_and_samples_differ(name):
    """On the knitwear and ribbons of the sample photograph, where the previous defaults were 18 and 10 % farther."""
    flow = load(name)
    hr = pixels(PHOTO.read_bytes())[..., :120, :184]
    lr = downsample(hr, flow.condition_scale).clamp(0, 1)
    settings = UpscaleSettings().resolved(flow)
    assert (settings.temperature, settings.calm_edges) == (flow.config.temperature, flow.config.calm_edges)
    own, lively, calm = (
        flowcore.upscale(flow, lr, samples=4, **options)
        for options in ({}, {"temperature": 1.0, "calm_edges": 0.0}, {"temperature": 0.0})
    )
    assert float(false_specks(own, hr).mean()) <= 0.6 * float(false_specks(lively, hr).mean())
    distances = [float(feature_distance(pictures[:1], hr)) for pictures in (own, calm)]
    assert distances[0] <= 1.06 * distances[1]
    assert diversity(own) > 0.3


@pytest.mark.parametrize(("name", "at_default"), [("srflow-x4", 0), ("srflow-x4-photo", 0.9)])
def test_the_guide_has_all_of_its_share_at_the_bold_end_and_at_the_default_for_damaged_pictures(name, at_default):
    flow = load(name)
    taus = (0.0, flow.config.temperature, flow.config.boldest_temperature)
    shares = [
        model_defaults(flow, {"temperature": tau, "guide_strength": None})["guide_strength"] for tau in (*taus, None)
    ]
    assert shares == [0, at_default, flow.config.guide_strength, at_default]


def test_damaged_faces_are_drawn_by_the_model_that_is_made_for_them():
    face = pixels((PHOTO.parent / "pictures" / "face.png").read_bytes())[..., 8:32, 13:37]
    noisy = (face + 8 / 255 * torch.randn(face.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    clean, made_for_damage = (load(f"srflow-faces-x8{suffix}") for suffix in ("", "-photo"))
    expected = flowcore.upscale(clean, face, temperature=0.0)
    errors = [
        (flowcore.upscale(flow, noisy, temperature=0.0) - expected).square().mean() for flow in (clean, made_for_damage)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert catalog.robust_upscaler(8, faces=True) == "srflow-faces-x8-photo"
    assert catalog.robust_upscaler(8, faces=False) is None
