"""Repair, and finding scratches: ``tasks/repair.py``, ``tasks/finders/scratches.py`` and ``images/fill.py``."""

import math
from pathlib import Path

import pytest
import torch
from builders import build_upscaler
from torch import Tensor

import flowcore
from flowcore.images.files import read
from flowcore.images.fill import bend, fill
from flowcore.images.resize import enlarge
from flowcore.models.catalog import FOLDER
from flowcore.tasks.finders.scratches import reconstruct
from flowcore.tasks.repair import opening

model = pytest.fixture(scope="module")(build_upscaler)


def picture(channels: int = 3, height: int = 48, width: int = 61) -> Tensor:
    """Waves that no fill can miss, (1, C, H, W)."""
    y, x = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    return 0.5 + 0.2 * torch.stack([(x + k).sin() + y.cos() for k in range(channels)])[None] * 0.9


def scratch(image: Tensor, thick: int = 3) -> Tensor:
    mask = torch.zeros_like(image[:, :1])
    mask[..., 20 : 20 + thick, 8:52] = 1
    return mask


def test_outside_of_the_mask_no_bit_changes(model: flowcore.Flow) -> None:
    image = picture()
    mask = scratch(image)
    repaired = flowcore.repair(model, image, mask, samples=2)
    assert repaired.shape == (2, 3, 48, 61)
    outside = (mask < 0.5).expand_as(image)
    assert torch.equal(repaired[1:][outside], image[outside])


def test_a_repair_is_near_the_undamaged_picture() -> None:
    image = picture()
    mask = scratch(image)
    repaired = flowcore.repair(flowcore.load("srflow-x4"), image * (1 - mask), mask)
    assert float((repaired - image)[mask.expand_as(image) > 0].abs().mean()) < 0.03


def test_images_of_a_batch_have_masks_of_their_own(model: flowcore.Flow) -> None:
    image = picture()
    masks = torch.cat([torch.zeros_like(image[:, :1]), scratch(image)])
    one, other = flowcore.repair(model, image.expand(2, -1, -1, -1), masks)
    assert torch.equal(one, image[0])
    assert not torch.equal(other, image[0])


def test_places_too_wide_to_repair_stay_and_are_reported(model: flowcore.Flow) -> None:
    image, told = picture(), list[str]()
    repaired = flowcore.repair(model, image, scratch(image, 26), notify=told.append)
    assert torch.equal(repaired, image)
    assert "wider than 24 pixels, or 12 at an edge" in told[0]


@pytest.mark.parametrize(("width", "stays"), [(12, False), (13, True)])
def test_half_as_wide_is_too_wide_at_an_edge(model: flowcore.Flow, width: int, stays: bool) -> None:
    image, told = picture(), list[str]()
    mask = torch.zeros_like(image[:, :1])
    mask[..., :width] = 1
    assert torch.equal(flowcore.repair(model, image, mask, notify=told.append), image) == stays
    assert len(told) == stays


def test_a_bent_plate_continues_a_slope_exactly() -> None:
    slope = torch.linspace(0.2, 0.8, 64).expand(1, 1, 64, 64)
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 20:30, 20:44] = True
    assert torch.allclose(bend(slope.masked_fill(hole, 0), hole), slope, atol=1e-5)


def test_a_fill_continues_a_pattern() -> None:
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 3, 64, 64)
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 28:36, 26:38] = True
    filled = fill(stripes.masked_fill(hole, 0.5), hole)
    assert float((filled - stripes).abs().max()) < 0.05


def test_a_fill_averages_places_that_differ_less_than_can_be_seen() -> None:
    noise = torch.randn(1, 3, 64, 16, generator=torch.Generator().manual_seed(12))
    faint = 0.5 + 0.004 * noise.repeat(1, 1, 1, 4)  # with exact copies of every place
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 30:32, 46:48] = True
    filled = fill(faint.masked_fill(hole, 0.5), hole)
    assert float((filled - 0.5)[..., 30:32, 46:48].std()) < 0.6 * 0.004


def test_opening_keeps_the_blotch_and_removes_the_line_through_it() -> None:
    hole = torch.zeros(1, 1, 80, 80, dtype=torch.bool)
    hole[..., 40:43, :] = True
    hole[..., 30:60, 20:50] = True
    wide = opening(hole.float(), 25) > 0
    assert bool(wide[..., 30:60, 20:50].all())
    assert not bool(wide[..., 60:].any())


def marked(image: Tensor) -> Tensor:
    return flowcore.find_scratches(image) > 0


def noisy(seed: int = 1) -> Tensor:
    return 0.45 + 0.005 * torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("value", [0.95, 0.05])
def test_a_slanted_line_is_found(value: float) -> None:
    image, line = noisy(), torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    for step in range(90):
        line[..., 20 + step, 30 + step // 3 : 32 + step // 3] = True
    found = marked(image.masked_fill(line, value))
    assert float(found[line].float().mean()) > 0.9
    assert float(found.float().mean()) < 4 * float(line.float().mean())


def test_a_speck_is_found_and_a_large_spot_is_not() -> None:
    image = noisy()
    image[..., 30:35, 30:35] = 0.9
    image[..., 80:100, 80:100] = 0.9
    found = marked(image)
    assert bool(found[..., 30:35, 30:35].all())
    assert float(found[..., 75:105, 75:105].float().mean()) < 0.03


def test_railings_are_no_scratches() -> None:
    image = noisy()
    image[..., 20:110, ::9] = 0.9
    image[..., 20:110, 1::9] = 0.9
    assert not bool(marked(image).any())


def test_a_higher_sensitivity_marks_all_of_a_lower_one() -> None:
    image = noisy()
    image[..., 20:110, 60:61] += torch.linspace(0, 0.2, 90)[:, None]
    low, high = (flowcore.find_scratches(image, sensitivity=s) > 0 for s in (0.1, 1.0))
    assert not bool((low & ~high).any())
    assert int(high.sum()) > int(low.sum())


def test_marks_are_the_same_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    image = 0.4 + 0.02 * torch.rand(1, 1, 300, 350, generator=torch.Generator().manual_seed(4))
    image[..., 10:290, 100:102] = image[..., 150:152, 20:330] = 0.9
    whole = flowcore.find_scratches(image, sensitivity=0.9)
    assert 0.001 < float(whole.mean()) < 0.1
    monkeypatch.setattr("flowcore.tasks.finders.scratches.TILE", 64)
    assert torch.equal(flowcore.find_scratches(image, sensitivity=0.9), whole)


def test_marks_lie_in_the_middle_of_the_lines_that_they_mark() -> None:
    image = 0.4 + 0.02 * torch.rand(1, 1, 128, 160, generator=torch.Generator().manual_seed(2811))
    image[..., 60:62, 10:150] = 0.9
    for across, mask in (("rows", flowcore.find_scratches(image)), ("columns", flowcore.find_scratches(image.mT).mT)):
        rows = mask[0, 0, :, 40:120].nonzero()[:, 0].float()
        assert abs(float(rows.mean()) - 60.5) < 0.4, across


def test_highlights_of_eyes_are_no_dust_but_a_scratch_across_an_eye_is_one() -> None:
    file = Path(__file__).parents[2] / "workflows/pictures/portrait-1.jpg"
    image = enlarge(read(file.read_bytes(), file.name).pixels, 2).clamp(0, 1)
    ((face,),) = flowcore.find_faces(image)
    (x, y), apart = face.eyes[1], math.dist(*face.eyes)
    row, column, cheek = round(y), round(x), round(y + 0.8 * apart)
    for top, value in ((row, 1.0), (cheek, 0.0)):
        image[..., top - 2 : top + 2, column - 2 : column + 2] = value
    assert not bool(marked(image)[..., row - 1 : row + 1, column - 1 : column + 1].any())
    assert bool(marked(image)[..., cheek - 1 : cheek + 1, column - 1 : column + 1].all())
    image[..., :, column : column + 2] = 1.0
    assert bool(marked(image)[..., row - 2 : row + 2, column : column + 2].all())


def test_a_reconstruction_spreads_as_dilation_step_by_step_does() -> None:
    generator = torch.Generator().manual_seed(73)
    limit = torch.rand(23, 17, generator=generator)
    seeds = limit * (torch.rand(23, 17, generator=generator) > 0.9)
    expected = seeds
    for _ in range(limit.numel()):
        expected = torch.minimum(torch.nn.functional.max_pool2d(expected[None, None], 3, 1, 1)[0, 0], limit)
    assert torch.equal(reconstruct(seeds, limit), expected)


def test_the_scratch_finder_is_small() -> None:
    assert (FOLDER / "scratch-finder.safetensors").stat().st_size < 100_000


def test_a_mask_has_the_proportions_of_its_image_and_any_size(model: flowcore.Flow) -> None:
    image = torch.rand(1, 3, 40, 60)
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., 10:14, 8:52] = 1
    large = mask.repeat_interleave(3, -1).repeat_interleave(3, -2)
    assert torch.equal(flowcore.repair(model, image, large), flowcore.repair(model, image, mask))
    with pytest.raises(flowcore.ImageError, match="58x40"):
        flowcore.repair(model, image, mask[..., :58])
    assert torch.equal(flowcore.repair(model, image, torch.zeros(1, 1, 64, 64)), image)  # of one value
