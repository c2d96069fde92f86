"""What is shipped is what the README says: small, licensed, consistent with its input, and diverse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowcore
from flowcore.checkpoints import catalog
from flowcore.checkpoints.file import read_header
from flowcore.flow import Flow
from flowcore.metrics import diversity, lr_psnr, psnr
from flowcore.resize import enlarge, shrink

PHOTO = Path(__file__).parents[2] / "workflows" / "photo.png"


@pytest.fixture(scope="module")
def flow() -> Flow:
    return flowcore.load("srflow-x4")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """The face of the sample photograph, 64x64."""
    with Image.open(PHOTO) as opened:
        pixels = torch.from_numpy(np.array(opened.convert("RGB")))
    return pixels[20:84, 84:148].permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", catalog.names())
def test_every_shipped_model_is_small_and_says_where_it_comes_from(name: str) -> None:
    path = catalog.path(name)
    assert path.stat().st_size <= 12_000_000
    provenance = read_header(path).provenance
    assert provenance["licence"].startswith("MIT")
    assert provenance["recipe"]
    assert name in (path.parent / "README.md").read_text()


def test_samples_shrink_to_their_input_and_differ(flow: Flow, photo: torch.Tensor) -> None:
    samples = flowcore.upscale(flow, photo, temperature=0.8, samples=4)
    assert float(lr_psnr(samples, photo).min()) > 42
    assert diversity(samples) > 2
    calm = flowcore.upscale(flow, photo, temperature=0)
    assert float(lr_psnr(calm, photo)) > 42


def test_the_calm_picture_is_nearer_to_the_original_than_bicubic(flow: Flow, photo: torch.Tensor) -> None:
    small = (shrink(photo, 4).clamp(0, 1) * 255).round() / 255
    bicubic = enlarge(small, 4).clamp(0, 1)
    assert float(psnr(flowcore.upscale(flow, small, temperature=0), photo) - psnr(bicubic, photo)) > 0.8


def test_tiles_and_samples_of_a_real_model_do_not_show(flow: Flow) -> None:
    with Image.open(PHOTO) as opened:
        lr = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None, :, :100, :120].float() / 255
    whole = flowcore.upscale(flow, lr, temperature=0.8, seed=3)
    tiled = flowcore.upscale(flow, lr, temperature=0.8, seed=2, samples=2, tile=48)
    assert float((tiled[1:] - whole).abs().max()) <= 1 / 255
