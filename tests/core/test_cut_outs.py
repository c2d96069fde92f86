"""Cut-outs: what lies under alpha 0, mostly black, is not seen in what is made of them."""

import pytest
import torch
import torch.nn.functional as F

import flowcore
from flowcore.engine.image_batch import ImageBatch
from flowcore.images.fill import extend_colors, extend_over_blank

COLOR = torch.tensor([0.9, 0.6, 0.3]).view(1, 3, 1, 1)


def disc(size=48):
    """An antialiased disc of one color on nothing, with black under alpha 0."""
    line = torch.arange(8 * size) - 4 * size + 0.5
    alpha = F.avg_pool2d((line[:, None].hypot(line) < 3 * size).float()[None, None], 8)
    return torch.cat([COLOR * (alpha > 0), (255 * alpha).round() / 255], 1)


def fringe(picture):
    """How far a picture of the disc on white is from its color, of 255."""
    return float(255 * ((picture[:, :3] - COLOR).abs() * picture[:, 3:]).max())


def test_an_enlarged_cut_out_has_no_dark_fringe():
    assert fringe(flowcore.upscale(flowcore.load("srflow-x4"), disc(), temperature=0)) < 3


def test_a_cut_out_that_is_shrunk_and_restored_has_no_dark_fringe():
    flow = flowcore.load("rescale-x4")
    assert fringe(flowcore.restore(flow, flowcore.shrink(flow, disc()), temperature=0)) < 3


def test_a_cut_out_is_colored_up_to_its_edge():
    made = flowcore.colorize(flowcore.load("color-photos"), disc(), temperature=0)
    chroma = made[0, :3] - made[0, :3].mean(0)
    edge, inside = (chroma[:, where].mean(1) for where in ((made[0, 3] > 0) & (made[0, 3] < 1), made[0, 3] == 1))
    assert torch.equal(made[:, 3:], disc()[:, 3:])
    assert (edge - inside).abs().max() < 0.03


def test_what_lies_under_a_painted_mask_stays():
    blank, painted = disc(16), disc(16)
    painted[:, :3] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    dotted = painted.clone()
    dotted[:, 3] = 0.05
    dotted[:, 3, 3, 3] = 0
    pictures = torch.cat([blank, painted, dotted])
    rgb = extend_over_blank(pictures[:, :3], pictures[:, 3:])
    assert torch.allclose(rgb[:1], COLOR.expand(1, 3, 16, 16), atol=1e-6)
    assert torch.equal(rgb[1:], pictures[1:, :3])


@pytest.mark.parametrize("size", [(13, 17), (1, 5), (32, 32)])
def test_colors_are_extended_and_what_is_visible_stays(size):
    generator = torch.Generator().manual_seed(3)
    rgb = torch.rand(2, 1, *size, generator=generator).expand(-1, 3, -1, -1)
    alpha = torch.rand(2, 1, *size, generator=generator).round()
    alpha[0, 0, 0, 0], alpha[1] = 1, 0
    extended = extend_colors(rgb, alpha)
    visible = alpha[:1].expand(-1, 3, -1, -1) == 1
    assert torch.equal(extended[:1][visible], rgb[:1][visible])
    assert torch.equal(extended[1], rgb[1])  # nowhere visible
    assert torch.equal(extended[:, :1].expand_as(extended), extended)  # gray stays gray
    assert extended[0].min() >= rgb[:1][visible].min() - 1e-6


def test_results_have_the_channels_the_alpha_and_the_gray_of_their_images():
    generator = torch.Generator().manual_seed(3)
    gray, colored = (
        torch.rand(1, 1, 6, 5, generator=generator).expand(-1, 3, -1, -1),
        torch.rand(1, 3, 6, 5, generator=generator),
    )
    alpha, made = torch.rand(2, 1, 6, 5, generator=generator), torch.rand(4, 3, 12, 10, generator=generator)
    of_gray, of_colored = ImageBatch(torch.cat([gray, colored])).to_input_layout(made.clone()).split(2)
    assert torch.equal(of_gray, made[:2, :1].expand(-1, 3, -1, -1))
    assert torch.equal(of_colored, made[2:])
    assert torch.equal(ImageBatch(gray[:, :1]).to_input_layout(made.clone()), made[:, :1])
    shown = ImageBatch(torch.cat([torch.cat([gray, colored]), alpha], 1)).to_input_layout(made.clone())
    assert shown.shape == (4, 4, 12, 10)
    assert torch.equal(shown[0, 3], shown[1, 3])
    assert not torch.equal(shown[1, 3], shown[2, 3])
