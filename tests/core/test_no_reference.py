"""NIQE, BRISQUE and PIQE against the programs that their numbers in the literature come from; blocks and noise."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore.errors import ShapeError
from flowcore.quality.no_reference import brisque, niqe, piqe
from flowcore.tasks.intake import describe_damage

from .pictures_to_measure import PICTURES

# `python tests/core/record_measures.py values ...`: BasicSR 1.4.2, opencv-contrib-python-headless 5.0.0.93, pypiqe 1.2.
RECORDED = {
    "leaves": {"niqe": 12.860643720718544, "brisque": 42.67108917236328, "piqe": 30.703652355170384},
    "noisy": {"niqe": 14.676098016421065, "brisque": 57.18735122680664, "piqe": 58.276979276371655},
    "blocky": {"niqe": 19.328524365633616, "brisque": 64.03748321533203, "piqe": 86.34802606507027},
    "blurred": {"niqe": 9.267905103672177, "brisque": 52.32646560668945, "piqe": 74.15215307274953},
    "grey": {"niqe": 14.220441256137661, "brisque": 42.911495208740234, "piqe": 34.807684754047116},
    "dark": {"niqe": 13.311049027363666, "brisque": 19.2139892578125, "piqe": 36.29042088602956},
}
# The references round: BasicSR shrinks in float32, OpenCV does everything in float32.
NEAR = {"niqe": 2e-3, "brisque": 2e-2, "piqe": 2e-3}
# Where pictures are flat: what is flat, and what of it is noise of the arithmetic, is decided by that rounding. NIQE
# counts the signs of that noise, which processors do not share: "blocky" is 19.33 on an Intel Xeon and 19.46 on an AMD
# EPYC.
NEAR_IF_FLAT = {"niqe": 0.25, "brisque": 5e-2, "piqe": 3e-2}


def tensor(array):
    image = torch.from_numpy(array).float() / 255
    return image[None, None] if image.ndim == 2 else image.permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", PICTURES)
def test_values_match_the_reference_programs(name):
    picture = tensor(PICTURES[name]())
    for measure in (niqe, brisque, piqe):
        came, expected = measure(picture), RECORDED[name][measure.__name__]
        near = (NEAR_IF_FLAT if name in ("blocky", "dark") else NEAR)[measure.__name__]
        assert came.shape == (1,)
        assert came.dtype == torch.float64
        assert float(came) == pytest.approx(expected, abs=near), measure.__name__


@pytest.mark.parametrize("measure", [niqe, brisque, piqe])
def test_images_of_a_batch_are_measured_independently(measure):
    batch = torch.cat([tensor(PICTURES[name]()) for name in ("leaves", "noisy", "blurred")])
    before = batch.clone()
    assert measure(batch).tolist() == pytest.approx([float(measure(one[None])) for one in batch], rel=1e-9)
    assert torch.equal(batch, before)
    assert measure(batch.double()).tolist() == pytest.approx(measure(batch).tolist(), rel=1e-3)


def test_flat_images():
    flat = torch.full((1, 3, 200, 200), 0.5)
    assert float(piqe(flat)) == 100
    assert float(piqe(torch.zeros(1, 1, 20, 20))) == 100
    assert math.isnan(float(niqe(flat)))


def test_unsuitable_images_raise_readable_errors():
    for measure in (niqe, brisque, piqe):
        with pytest.raises(ShapeError, match=r"\(B, C, H, W\), C = 1 or 3; got \(1, 4, 200, 200\)"):
            measure(torch.rand(1, 4, 200, 200))
    with pytest.raises(ShapeError, match="96x96 and needs two at least"):
        niqe(torch.rand(1, 3, 191, 191))
    assert np.isfinite(float(niqe(tensor(PICTURES["leaves"]())[..., :96, :192])))
    with pytest.raises(ShapeError, match="BRISQUE needs sides of 16"):
        brisque(torch.rand(1, 3, 15, 90))


@pytest.fixture(scope="module")
def crops():
    """96 crops of 64x64 of twelve photographs of the pack, shrunk to half: as uint8 arrays."""
    pictures = Path(__file__).parents[2] / "workflows" / "pictures"
    names = ["lake", "desert", "canyon", "original", *(f"bread/{k:02}" for k in range(1, 9))]
    found = []
    for name in names:
        with Image.open(pictures / f"{name}.jpg") as opened:
            half = np.asarray(opened.convert("RGB").resize((opened.width // 2, opened.height // 2), Image.BICUBIC))
        found += [half[top : top + 64, left : left + 64] for top in (0, 50) for left in (0, 18, 37, 56)]
    return found


def told(crops):
    """How many of some crops are said to be damaged."""
    return sum(bool(describe_damage(torch.tensor(crop.copy()).permute(2, 0, 1) / 255)) for crop in crops)


def stored(crop, quality):
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def noisy(crop, rng):
    return (crop + rng.normal(0, 8, crop.shape)).clip(0, 255).round().astype(np.uint8)


def test_of_clean_photographs_no_damage_is_told(crops):
    assert len(crops) == 96
    assert told(crops) == 0


def test_blocks_of_jpeg_are_told_with_their_quality(crops):
    damaged = [stored(crop, 50) for crop in crops]
    assert told(damaged) >= 92
    cut = torch.tensor(damaged[0][3:, 5:].copy()).permute(2, 0, 1) / 255
    assert describe_damage(cut) == "JPEG blocks (about quality 50)"


def test_noise_is_told(crops):
    rng = np.random.default_rng(0)
    assert told([noisy(crop, rng) for crop in crops]) >= 90
