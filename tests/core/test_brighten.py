"""Brighten: the published picture at temperature 0, exposures above it, and any size, format and tile."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_tiny

import flowcore
from flowcore import FlowError
from flowcore.engine.model_input import prepare_input
from flowcore.flows.transforms import ActNorm
from flowcore.images.color import luma
from flowcore.images.files import read
from flowcore.images.gain_grid import bilateral_gain
from flowcore.models.llflow.low_light import equalize

PICTURES = Path(__file__).parents[2] / "workflows" / "pictures"


@pytest.fixture(scope="module")
def flow():
    """A small LLFlow whose pictures are pictures: the latents say little."""
    flow = build_tiny("llflow", perturb=0.02)
    with torch.no_grad():
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 2
    return flow


def dark(height=21, width=29, batch=1):
    return 0.2 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def test_temperature_0_is_the_decoded_mean_of_the_padded_photograph(flow):
    image = (dark() * 255).byte()
    padded = torch.from_numpy(np.pad(image[0].numpy(), ((0, 0), (5, 6), (1, 2)), mode="symmetric"))[None].float() / 255
    with torch.no_grad():
        expected = flow.inverse([torch.zeros(1, 192, 4, 4)], flow.encode_condition(padded))
    expected = expected[:, :, 5:26, 1:30].clamp(0, 1)
    for options in ({}, {"temperature": 0.0, "seed": 5}):
        torch.testing.assert_close(flowcore.brighten(flow, image, **options), expected, atol=1e-5, rtol=0)


def test_samples_differ_by_maps_of_temperatures(flow):
    image, tau = dark(48, 48), torch.zeros(1, 1, 48, 48)
    tau[..., :8] = 1
    still, painted = (flowcore.brighten(flow, image, temperature=t, seed=1) for t in (0.0, tau))
    change = (still - painted).abs().amax((0, 1, 2))
    assert change[:8].max() > 1e-3
    assert change[:8].max() > 10 * change[-8:].max()


def test_tiles_are_nearly_the_whole_picture(flow):
    image = dark(40, 300)
    whole, tiled = (flowcore.brighten(flow, image, temperature=0.5, tile=tile) for tile in (0, 128))
    assert float((whole - tiled).abs().max()) < 1e-5  # 0.002 with a halo of 8


def test_tiles_of_the_shipped_model_are_the_whole_photograph():
    """With a halo of 64, these differ by 17/255, at an edge that lies beyond it."""
    photograph = read((PICTURES / "dark.jpg").read_bytes(), "dark.jpg").pixels
    whole, tiled = (flowcore.brighten(flowcore.load("brighten-photos"), photograph, tile=tile) for tile in (4096, 128))
    assert 255 * float((whole - tiled).abs().max()) < 0.1


def test_an_overflow_is_counted_without_halo_and_border(flow):
    notes = []
    flowcore.brighten(flow, dark(40, 300), temperature=400.0, tile=128, notify=notes.append)
    assert "overflowed in 1 picture, 100.0 % of it" in notes[0]


def test_a_picture_that_is_not_dark_is_said_to_be(flow):
    notes = []
    pair = torch.cat([dark(), 0.5 + dark()])
    flowcore.brighten(flow, pair, notify=notes.append)
    (note,) = notes
    percent = 100 * float(luma(pair)[1].median())
    assert note == f"Picture 2 is not dark: half of it is above {percent:.0f} % of white."


@pytest.mark.parametrize(("height", "width", "gain_cells"), [(1, 1, 0), (1, 1, 6), (2, 33, 6)])
def test_odd_sizes(flow, height, width, gain_cells):
    result = flowcore.brighten(flow, dark(height, width), temperature=0.3, gain_cells=gain_cells)
    assert result.shape == (1, 3, height, width)
    assert bool(result.isfinite().all())


def test_channels_whose_values_are_all_one_stay(flow):
    for value in (0.0, 0.5, 1.0):
        assert bool(flowcore.brighten(flow, torch.full((1, 3, 8, 8), value)).isfinite().all())
    assert torch.equal(equalize(torch.full((1, 3, 4, 4), 51 / 255)), torch.full((1, 3, 4, 4), 51 / 255))


def test_a_stop_doubles_the_light(flow):
    plain, lighter = (flowcore.brighten(flow, dark(), exposure=stops) for stops in (0.0, 1.0))
    torch.testing.assert_close(lighter**2.2, (2 * plain**2.2).clamp(max=1), atol=1e-5, rtol=0)


def test_strength_goes_from_the_photograph_to_the_picture_in_stops(flow):
    image = dark(batch=2)
    drawn, half, none = (flowcore.brighten(flow, image, strength=s, exposure=0.5, samples=2) for s in (1.0, 0.5, 0.0))
    photographs = image.repeat_interleave(2, 0)
    assert torch.equal(none, photographs)
    step = 1 / 255
    torch.testing.assert_close((half + step) ** 2, (photographs + step) * (drawn + step), atol=1e-5, rtol=0)


def uneven(height=96, width=128):
    """A photograph of four lumas, and a picture of it, four times as light, with a ghost cloud in its blacks."""
    photograph = torch.tensor([0.01, 0.05, 0.1, 0.2]).repeat_interleave(width // 4).expand(1, 3, height, width).clone()
    picture = 4 * photograph
    picture[..., 30:60, 4:28] = 0.3
    return photograph, picture


def test_a_ghost_in_a_black_place_is_removed_and_the_gain_stays():
    photograph, picture = uneven()
    made = bilateral_gain(photograph, picture, 6)
    blacks, lights = made[..., 2:-2, 4:28], made[..., 100:124]
    assert float(blacks.max() - blacks.min()) < 0.08  # 0.26 in the picture
    torch.testing.assert_close(lights, picture[..., 100:124], atol=0.05, rtol=0)


def test_the_hue_of_what_the_photograph_shows_is_kept():
    photograph = torch.tensor([0.24, 0.16, 0.10]).view(1, 3, 1, 1).expand(1, 3, 96, 128).clone()
    picture = (2.5 * photograph).clamp(0, 1)
    picture[:, :, :, 64:] = picture[:, :, :, 64:].flip(1)  # another hue, as a model draws it in a cell
    made = bilateral_gain(photograph, picture, 6)
    hue = photograph / photograph.sum(1, keepdim=True)
    torch.testing.assert_close(made / made.sum(1, keepdim=True), hue, atol=0.02, rtol=0)


def test_black_stays_black_though_the_picture_lifts_it():
    photograph, picture = uneven()
    photograph[..., :32] = 1 / 255
    picture[..., :32] = 0.2
    assert float(bilateral_gain(photograph, picture, 6)[..., 4:28].max()) < 0.06


def test_lit_skin_in_a_dark_photograph_stays_nearly_as_it_is():
    photograph, picture = uneven()
    photograph[..., 96:] = torch.tensor([0.95, 0.75, 0.6]).view(3, 1, 1)
    picture = (4 * photograph).clamp(0, 1)
    lit, made, lifted = (
        float(luma(x)[..., 104:120].mean()) for x in (photograph, bilateral_gain(photograph, picture, 6), picture)
    )
    assert abs(made - lit) < 0.5 * (lifted - lit)


def test_noise_that_the_picture_does_not_show_is_not_brightened():
    photograph, _ = uneven()
    noise = 0.01 * torch.randn(photograph.shape, generator=torch.Generator().manual_seed(3))
    made = bilateral_gain((photograph + noise).clamp(0, 1), 4 * photograph, 6)
    assert float(made[..., 100:124].std()) < 0.5 * 4 * 0.01


def test_a_grid_of_gains_is_the_files_in_tiles_and_for_each_image_alone(flow):
    other = build_tiny("llflow", perturb=0.02, gain_cells=3)
    other.load_state_dict(flow.state_dict())
    image = dark(40, 300, batch=2)
    evened = flowcore.brighten(other, image)
    assert torch.equal(evened, flowcore.brighten(flow, image, gain_cells=3))
    assert torch.equal(flowcore.brighten(other, image, gain_cells=0), flowcore.brighten(flow, image))
    assert not torch.allclose(evened, flowcore.brighten(flow, image), atol=0.01)
    torch.testing.assert_close(flowcore.brighten(other, image[1:], tile=128)[0], evened[1], atol=1e-3, rtol=0)


def test_other_nodes_are_refused(flow):
    with pytest.raises(FlowError, match="use Flow Brighten"):
        prepare_input(flow, dark(), fit="resize", label=-1, source=None, notify=print)
