"""The core tests run on one thread: they are tiny, and sums in one order are the same numbers everywhere."""

import pytest
import torch
from builders import build_tiny

from flowcore.checkpoints.file import save
from flowcore.transforms import ActNorm

from .commands import write_colorizer
from .photographs import photographs


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three small photographs to train on, which no test changes."""
    return photographs(tmp_path_factory.mktemp("data") / "photos", [(48, 64), (56, 40), (40, 48)])


@pytest.fixture(autouse=True)
def fixed_seed(one_thread):
    torch.manual_seed(0)


# --- small models for the command line, which no test changes ---------------------------------------------------------


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """An upscaler."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    small = {"steps": 1, "hidden": 4, "encoder_blocks": 1, "encoder_width": 4, "encoder_growth": 2}
    flow = build_tiny("srflow", **small, stacked_blocks=(0,), residual=True)
    with torch.no_grad():  # as in trained models, most latents mean pictures: the guard looks on
        next(m for m in flow.levels.modules() if isinstance(m, ActNorm)).log_scale += 3
    save(flow, path, provenance={"licence": "CC0-1.0", "source": "a test"})
    return path


@pytest.fixture(scope="session")
def small_glow(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small-glow.safetensors"
    flow = build_tiny("glow", steps=1, hidden=4, image_size=16, mixing="conv")
    save(flow, path, provenance={"licence": "CC0-1.0"})
    return path


@pytest.fixture(scope="session")
def small_colorizer(tmp_path_factory):
    return write_colorizer(tmp_path_factory.mktemp("models") / "small-colorizer.safetensors")
