"""Morph and harmonize: films through images, and images as a model would have drawn them."""

import pytest
import torch
from builders import build_tiny

from flowcore import FlowError, ImageError
from flowcore.images.resize import pad_symmetric, shrink
from flowcore.latents import interpolate, normalize
from flowcore.tasks.sample import decode, encode, harmonize, morph


def glow():
    return build_tiny("glow", seed=3)


def images(count, height, width, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loop", [False, True])
def test_every_image_stands_in_the_film_once(loop):
    flow = glow()
    size = flow.image_size or (2 * flow.size_multiple, 3 * flow.size_multiple)
    three = images(3, *size)
    seen = []
    film = morph(flow, three, frames=4, loop=loop, progress=lambda *facts: seen.append(facts), notify=pytest.fail)
    assert len(film) == (9 if loop else 7)
    for k in range(3):
        torch.testing.assert_close(film[3 * k], three[k], atol=1e-4, rtol=0)
    latents = encode(flow, three)
    a, b = ([level[k : k + 1] for level in latents] for k in (0, 1))
    middle = decode(flow, interpolate(a, b, 1 / 3)).clamp(0, 1)
    torch.testing.assert_close(film[1:2], middle, atol=1e-5, rtol=0)
    done, total, _ = seen[-1]
    assert done == total
    assert [facts[0] for facts in seen] == sorted(facts[0] for facts in seen)


def test_images_of_different_sizes_stand_in_a_film_of_the_models_size():
    flow = build_tiny("glow", seed=3, image_size=16)
    film = morph(flow, [images(1, 20, 16), images(2, 16, 24)], frames=2)
    assert film.shape == (3, 3, 16, 16)
    torch.testing.assert_close(film[1:2], images(2, 16, 24)[:1, ..., 4:20], atol=1e-4, rtol=0)
    with pytest.raises(ImageError, match="needs images of one size"):
        morph(flow, [images(1, 20, 16), images(2, 16, 24)], fit="crop")


def test_what_makes_no_film_is_refused():
    with pytest.raises(ImageError, match="two images or more"):
        morph(glow(), images(1, 16, 16))
    with pytest.raises(FlowError, match="sample needs"):
        morph(build_tiny("srflow"), images(2, 16, 16))
    with pytest.raises(FlowError, match="frames must be at least 2; got 1"):
        morph(glow(), images(2, 16, 16), frames=1)


def test_harmonize_leaves_gray_gray():
    gray = images(1, 16, 16)[:, :1]
    flow = build_tiny("srflow", perturb=0.1)
    assert harmonize(flow, gray).shape == (1, 1, 16, 16)
    made = harmonize(flow, gray.expand(-1, 3, -1, -1))
    assert torch.equal(made[:, :1].expand_as(made), made)


def test_harmonize_decodes_normalized_latents_under_the_small_image():
    flow = build_tiny("srflow", seed=2)
    step = flow.condition_scale * flow.size_multiple
    image = images(2, 3 * step + 1, 2 * step + 3)
    padded = pad_symmetric(image, (0, 5, 0, 7))  # to sides that 8 divides
    torch.testing.assert_close(harmonize(flow, image, strength=0.0), image, atol=1e-4, rtol=0)
    seen = []
    changed = harmonize(flow, image, per="level", progress=lambda *facts: seen.append(facts[:2]))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)
    cond = flow.encode_condition(shrink(padded, flow.condition_scale).clamp(0, 1))
    wanted = decode(flow, normalize(encode(flow, padded, cond)), cond, clamp=True)
    torch.testing.assert_close(changed, wanted[..., : 3 * step + 1, : 2 * step + 3])
    assert (changed - image).abs().mean() > 1e-3
    with pytest.raises(FlowError, match="upscale needs"):
        harmonize(glow(), images(1, 16, 16))
