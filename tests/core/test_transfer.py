"""Style and content transfer: other images from the same latents."""

from __future__ import annotations

import pytest
import torch

from flowcore import latents as la
from flowcore.dequantization import quantize
from flowcore.errors import ConditionError, FlowError, ShapeError
from flowcore.tasks.sample import decode, dequantized_image, encode
from flowcore.tasks.transfer import content_transfer, style_transfer

from .generators import LABELED, close, images, make


@pytest.mark.parametrize("kind", LABELED)
def test_style_transfer_decodes_the_same_latents_with_other_labels(kind):
    flow = make(kind)
    image = images(2, flow.channels)
    result = style_transfer(flow, image, [0, 2], [2, 1, 0], seed=None)
    assert result.shape == (6, flow.channels, 8, 12)
    for i, own in enumerate((0, 2)):
        latents = encode(flow, image[i : i + 1], flow.encode_condition(torch.tensor([own])))
        for k, label in enumerate((2, 1, 0)):
            expected = decode(flow, latents, flow.encode_condition(torch.tensor([label]))).clamp(0, 1)
            close(result[3 * i + k : 3 * i + k + 1], expected)
    close(result[2:4], image, 1e-4)  # with its own label, each image again
    assert (result[0] - result[1]).abs().max() > 1e-3
    close(style_transfer(flow, image, 1, 1, seed=None), image, 1e-4)


def test_dequantized_images_are_noisy_within_their_bins_and_quantize_back():
    flow = make("digits")
    image = (images(3, 1) * 255).round() / 255
    noisy = dequantized_image(flow, image, seed=4)
    assert 0 < (noisy - image).abs().max() <= 1 / 255
    close(quantize(flow, noisy), image, 1e-6)
    assert torch.equal(dequantized_image(flow, image[1:], seed=5), noisy[1:])  # whatever the place in the batch
    assert not torch.equal(dequantized_image(flow, image, seed=5), noisy)
    close(style_transfer(flow, image, 1, 1), image, 1e-6)


def test_style_transfer_needs_labels():
    digits, image = make("digits"), images(2, 1)
    with pytest.raises(ConditionError, match="not conditioned on labels"):
        style_transfer(make("glow"), images(), 0, [1])
    with pytest.raises(ConditionError, match="Got 3 labels for 2 images"):
        style_transfer(digits, image, [0, 1, 2], [1])
    with pytest.raises(ConditionError):
        style_transfer(digits, image, 0, [1, 17])


def test_content_transfer_normalizes_the_latents_under_the_targets_lr():
    flow = make("srflow")
    edited, lr = images(2, 3, 16, 24), images(2, 3, 8, 12, seed=5)  # 4x6 positions: enough for windows
    close(content_transfer(flow, edited, lr, strength=0), edited, 1e-4)
    cond = flow.encode_condition(lr)
    latents = encode(flow, edited, cond)
    results = []
    for per, window in (("level", 9), ("channel", 9), ("local", 9), ("local", 5)):
        result = content_transfer(flow, edited, lr, strength=0.7, per=per, window=window)
        close(result, decode(flow, la.normalize(latents, 0.7, per, window=window), cond).clamp(0, 1))
        assert all((result - other).abs().max() > 1e-4 for other in results)
        results.append(result)
    one = content_transfer(flow, edited, lr[:1])
    close(one[1:], content_transfer(flow, edited[1:], lr[:1]))
    assert (one - edited).abs().max() > 0.01
    edited, lr = (edited * 255).byte(), (lr * 255).byte()
    close(content_transfer(flow, edited, lr), content_transfer(flow, edited / 255, lr / 255))


def test_content_transfer_refuses_what_does_not_fit():
    flow = make("srflow")
    with pytest.raises(FlowError, match="upscale needs"):
        content_transfer(make("glow"), images(), images(2, 3, 4, 6))
    for lr in (images(2, 3, 4, 8), images(3, 3, 4, 6)):
        with pytest.raises(ShapeError, match="2 times as large"):
            content_transfer(flow, images(), lr)
    with pytest.raises(ShapeError, match="divisible by 4"):
        content_transfer(flow, images(height=6), images(2, 3, 3, 6))
    with pytest.raises(FlowError, match="strength"):
        content_transfer(flow, images(), images(2, 3, 4, 6), strength=2)
