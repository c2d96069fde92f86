"""Flows among other upscaling models: in the host's own loader and upscaler, and beside spandrel's architectures."""

import functools
import shutil
import subprocess
import sys

import comfyui
import numpy as np
import pytest
import small_flows
import torch
from builders import build_tiny, srflow_checkpoint
from client import RunError
from PIL import Image
from talk import WORKFLOWS, array, graph, loader, refusal, upscale

import flowcore
from flowcore.models import CheckpointError, catalog
from flowcore.models.model_file import save
from flowcore.tasks.integrations import ID, OURS, Upscaler, descriptor, detect, flow_of, support

spandrel = pytest.importorskip("spandrel")

ONE = 1.001 / 255  # the last bit of a picture

# Of a released scale and number of blocks, so that the file tells all; otherwise as small as can be.
PUBLISHED = {"scale": 8, "levels": 4, "steps": 1, "transition_steps": 1, "hidden": 6}
PUBLISHED |= {"encoder_blocks": 8, "encoder_width": 8, "encoder_growth": 4, "stacked_blocks": (1, 3, 5, 7)}


@functools.cache
def small(**fields):
    return build_tiny("srflow", **(PUBLISHED | fields))


def photograph(width, height, left=100, top=30):
    return Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((left, top, left + width, top + height))


def pixels(image):
    return torch.from_numpy(array(image)).permute(2, 0, 1)[None].float()  # (1, 3, H, W)


def stock(name, photo):
    """The host's own nodes; what they load and make."""
    return graph(
        photo=("LoadImage", {"image": photo}),
        loader=("UpscaleModelLoader", {"model_name": name}),
        upscale=("ImageUpscaleWithModel", {"upscale_model": "loader.0", "image": "photo.0"}),
        save=("SaveImage", {"images": "upscale.0", "filename_prefix": "stock"}),
    )


@pytest.fixture
def upscale_models(host):
    folder = host.server.base / "models" / "upscale_models"
    folder.mkdir(exist_ok=True)
    return folder


def test_a_file_of_ours_works_in_the_stock_nodes_without_a_seam(host, upscale_models):
    shutil.copy(catalog.path("srflow-x4"), upscale_models / "srflow-x4.safetensors")
    # Two tiles of 512, with a seam in the second half.
    wide = Image.new("RGB", (560, 8))
    for left in range(0, 560, 140):
        piece = photograph(140, 8, 20, 10 + left // 4)
        wide.paste(piece if left // 140 % 2 else piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (left, 0))
    photo = host.put("wide.png", wide)
    (calm,) = host.images(upscale(photo=photo, temperature=0.0))
    (made,) = host.images(stock("srflow-x4.safetensors", photo))
    assert made.size == (2240, 32)
    assert np.abs(array(made) - array(calm)).max() <= 2 * ONE
    assert np.abs(array(made) - array(calm)).mean() <= 0.05 / 255


def test_other_file_formats_work_in_the_stock_nodes(host, photo, upscale_models):
    (upscale_models / "sub").mkdir(exist_ok=True)
    for name, dtype in (("sub/half.safetensors", torch.float16), ("sub/8.safetensors", torch.int8)):
        save(small_flows.flow("small-srflow"), upscale_models / name, dtype=dtype)
    state = srflow_checkpoint(small())
    torch.save(state, upscale_models / "published.pth")
    torch.save({"state_dict": state}, upscale_models / "nested.pth")
    image = pixels(photograph(24, 16, 120, 40))
    for name in ("sub/half.safetensors", "sub/8.safetensors", "published.pth", "nested.pth"):
        (made,) = host.images(stock(name, photo))
        wanted = flowcore.upscale(flowcore.load(upscale_models / name), image, temperature=0.0)
        assert made.size == (wanted.shape[3], wanted.shape[2])
        assert (pixels(made) - wanted).abs().max() <= 2 / 255


def test_foreign_and_damaged_files_are_refused(host, photo, upscale_models):
    save(small_flows.flow("free-glow"), upscale_models / "glow.safetensors")
    torch.save(srflow_checkpoint(small(stacked_blocks=(0, 2))), upscale_models / "odd.pth")
    state = srflow_checkpoint(small())
    state.pop("RRDB.conv_first.bias")
    torch.save(state, upscale_models / "cut.pth")
    for name, words in {
        "glow.safetensors": "UpscaleModelLoader",  # by spandrel, which knows no such thing
        "odd.pth": "stacked_blocks.*convert IN OUT",
        "cut.pth": "RRDB.conv_first.bias",
    }.items():
        with pytest.raises(RunError, match=words):
            host.run(stock(name, photo))


def as_model(photo, model="srflow-x4", **values):
    baked = ("FlowcoreAsUpscaleModel", {"model": "model.0", "temperature": 0.0, "seed": 0} | values)
    return graph(stock("", photo), model=loader(model), loader=baked)


def test_a_flow_as_an_upscale_model_does_what_flow_upscale_does_when_calm(host, photo):
    (calm,) = host.images(upscale(photo=photo, temperature=0.0))
    (made,) = host.images(as_model(photo))
    assert np.abs(array(made) - array(calm)).max() <= ONE
    # The flow is still where Flow Upscale looks for it, and the same.
    (again,) = host.images(upscale(photo=photo, temperature=0.0, samples=1, tile=4096))
    assert np.array_equal(array(again), array(calm))


def test_temperature_and_seed_are_baked_in(host, photo, flows):
    def draw(**values):
        return array(host.images(as_model(photo, flows["small-srflow"], **values))[0])

    calm, first, other = draw(), draw(temperature=0.8, seed=1), draw(temperature=0.8, seed=2)
    host.forget()
    again = draw(temperature=0.8, seed=1)
    assert np.array_equal(first, again)
    assert np.abs(first - calm).mean() > 1 / 255
    assert np.abs(first - other).mean() > 1 / 255


def test_the_node_warns_of_seams_and_refuses_what_is_no_upscaler(host, photo, flows):
    outputs = host.outputs(as_model(photo, flows["small-srflow"], temperature=0.5))
    assert "seams" in outputs["loader"]["text"][0]
    refusal(host, as_model(photo, flows["free-glow"]), "made of an SRFlow; got a glow model")


# --- without a host ---------------------------------------------------------------------------------------------------


def shipped():
    return [catalog.path(name) for name in catalog.names()]


@pytest.fixture
def registry():
    kept = spandrel.MAIN_REGISTRY.copy()
    kept.add(support(shipped))
    return kept


def test_only_srflow_is_claimed_and_nobody_else_claims_it(registry):
    states = {name: flowcore.load(name).state_dict() for name in catalog.names()}
    for name, state in {**states, "srflow, published": srflow_checkpoint(small())}.items():
        claimants = [known.architecture.id for known in registry.architectures("detection") if known.detect(state)]
        assert claimants == ([ID] if name.startswith("srflow") else [])


OTHERS = {
    "ESRGAN": {"num_filters": 4, "num_blocks": 1},
    "Compact": {"num_feat": 4, "num_conv": 2},
    "SwinIR": {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4},
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8},
    "PLKSR": {"dim": 8, "n_blocks": 1},
}


def test_other_architectures_load_as_before(registry):
    for name, fields in OTHERS.items():
        kind = getattr(getattr(spandrel.architectures, name), name)
        state = kind(**fields).state_dict()
        assert not detect(state)
        before = spandrel.ArchRegistry()
        before.add(*[known for known in registry if known.architecture.id != ID])
        assert type(registry.load(dict(state)).model) is type(before.load(dict(state)).model) is kind
    for state in ({}, {"model": 3}, {"encoder.conv_first.weight": 1}, dict.fromkeys(sorted(OURS[0])[:2])):
        assert not detect(state)


def test_a_file_is_known_by_all_of_its_tensors(tmp_path):
    path, mine = tmp_path / "mine.safetensors", small(affine_eps=0.25, residual=True)  # neither shows in a shape
    save(mine, path)
    state = mine.state_dict()
    flow = flow_of(state, lambda: [tmp_path / "gone.safetensors", *shipped(), path])
    assert (flow.config.affine_eps, flow.config.residual) == (0.25, True)
    other = {**state, "encoder.conv_first.bias": state["encoder.conv_first.bias"] + 1}
    with pytest.raises(CheckpointError, match=r"the header .* did not come with them"):
        flow_of(other, lambda: [*shipped(), path])
    grown = srflow_checkpoint(small()) | {"RRDB.conv_first.bias": torch.zeros(1).expand(8)}
    with pytest.raises(CheckpointError, match="not a plain tensor"):
        flow_of(grown, shipped)


def test_noise_depends_on_tile_and_seed_only():
    left, right = pixels(photograph(64, 16)).split(32, dim=-1)
    flow = small_flows.flow("small-srflow")
    upscaler, calm = Upscaler(flow, temperature=0.7, seed=3), Upscaler(flow)

    def noise(image, model=upscaler):
        return model(image) - calm(image)

    assert torch.equal(upscaler(left), upscaler(left.clone()))
    assert (upscaler(torch.cat([right, left]))[1:] - upscaler(left)).abs().max() <= ONE  # whatever is beside it
    assert upscaler(left.half()).dtype == torch.float16
    assert (upscaler(left.half()).float() - upscaler(left)).abs().max() < 0.02  # the same noise
    # No two tiles repeat their noise, and no two seeds.
    for a, b in ((noise(left), noise(right)), (noise(left), noise(left, Upscaler(flow, temperature=0.7, seed=4)))):
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] < 0.2


def test_an_upscale_model_has_what_others_ask_for():
    flow = small_flows.flow("small-srflow")
    model = descriptor(Upscaler(flow))
    assert isinstance(model, spandrel.ImageModelDescriptor)
    assert (model.scale, model.input_channels, model.output_channels, model.purpose) == (2, 3, 3, "SR")
    assert model.eval().to("cpu").to(torch.device("cpu")) is model
    assert model(torch.full((1, 3, 5, 7), 0.5)).shape == (1, 3, 10, 14)
    with pytest.raises(spandrel.UnsupportedDtypeError):
        model.half()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descriptor(Upscaler(flow, cancelled=stop))(torch.full((1, 3, 5, 7), 0.5))


def test_without_spandrel_registering_raises_a_readable_error():
    program = """
import sys; sys.modules["spandrel"] = None
import flowcore, flowcore.tasks.integrations as s
try: s.register(lambda: [])
except flowcore.FlowError as error: print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=comfyui.ROOT / "tests")
    assert "spandrel" in done.stdout, done.stderr
