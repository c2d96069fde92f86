"""Training data: aligned pairs, a function of (seed, step), and no photograph where it must not be."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from flowcore.resize import shrink
from flowcore.training.data import Photographs
from flowcore.transforms import ImageError

from .photographs import photograph, photographs


def opened(folder, tmp_path, **options):
    return Photographs(folder, tmp_path / "cache", **{"scale": 2, **options})


@pytest.fixture
def folder(tmp_path):
    return photographs(tmp_path / "photos", [(48, 64), (56, 40), (40, 48)])


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 4])
def test_lr_crops_are_the_shrunk_hr_crops(folder, tmp_path, scale):
    """Away from the crop's border, where only the whole image knows what comes next; to half a step of 8 bits."""
    crop = 32
    hr, lr = opened(folder, tmp_path, scale=scale).batch(16, crop, seed=1, step=0)
    assert (hr.shape, lr.shape) == ((16, 3, crop, crop), (16, 3, crop // scale, crop // scale))
    inner = slice(2, -2)
    difference = (shrink(hr, scale) - lr)[..., inner, inner].abs().max()
    assert difference <= 0.5 / 255 + 1e-6
    assert hr.std() > 0.1  # of something, not of a constant


def test_lr_images_are_made_from_whole_images(tmp_path):
    folder = photographs(tmp_path / "photos", [(32, 32)])
    hr, lr = opened(folder, tmp_path).batch(1, 32, seed=0, step=0)
    expected = (shrink(hr, 2).clamp(0, 1) * 255).round() / 255
    assert torch.allclose(lr, expected, atol=1e-6)


def test_pixels_are_those_of_the_files_and_eight_bit(tmp_path):
    folder = photographs(tmp_path / "photos", [(32, 48)])
    data = opened(folder, tmp_path)
    file = np.asarray(Image.open(next(folder.iterdir())))
    for step in range(8):
        hr, lr = data.batch(1, 32, seed=0, step=step)
        for tensor in (hr, lr):
            assert tensor.dtype == torch.float32
            assert tensor.min() >= 0
            assert tensor.max() <= 1
            assert torch.allclose(tensor * 255, (tensor * 255).round(), atol=1e-4)
        crop = (hr[0] * 255).round().byte().permute(1, 2, 0).numpy()
        turns = [np.rot90(c, k) for c in (crop, crop[:, ::-1]) for k in range(4)]
        places = [file[:, left : left + 32] for left in range(0, 17, 2)]
        assert any(np.array_equal(turn, place) for turn in turns for place in places)


def test_crops_are_turned_and_mirrored_every_way(tmp_path):
    ramp = np.zeros((32, 32, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(32)[None, :] * 8
    ramp[..., 1] = np.arange(32)[:, None] * 8
    (tmp_path / "photos").mkdir()
    Image.fromarray(ramp).save(tmp_path / "photos" / "ramp.png")
    hr, _ = opened(tmp_path / "photos", tmp_path).batch(64, 32, seed=0, step=0)
    corners = {
        str([item[:2, row, column].gt(0.5).tolist() for row, column in ((0, 0), (0, -1), (-1, 0))]) for item in hr
    }
    assert len(corners) == 8


def test_every_photograph_is_seen_and_every_place_of_it(folder, tmp_path):
    data = opened(folder, tmp_path)
    hr, _ = data.batch(200, 32, seed=0, step=0)
    assert len({item.flatten().sort()[0].sum().item() for item in hr}) > 50


# --- a function of (seed, step) ---------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step_alone(folder, tmp_path):
    data = opened(folder, tmp_path)
    expected = data.batch(4, 16, seed=3, step=7)
    data.batch(4, 16, seed=3, step=8)
    np.random.rand(3)  # noqa: NPY002
    torch.rand(3)
    again = data.batch(4, 16, seed=3, step=7)
    cached = opened(folder, tmp_path).batch(4, 16, seed=3, step=7)
    elsewhere = Photographs(folder, tmp_path / "another cache", scale=2).batch(4, 16, seed=3, step=7)
    for came in (again, cached, elsewhere):
        assert all(torch.equal(one, two) for one, two in zip(came, expected, strict=True))


@pytest.mark.parametrize("other", [{"seed": 4, "step": 7}, {"seed": 3, "step": 8}, {"seed": 7, "step": 3}], ids=str)
def test_other_seeds_and_steps_give_other_crops(folder, tmp_path, other):
    data = opened(folder, tmp_path)
    assert not torch.equal(data.batch(4, 16, seed=3, step=7)[0], data.batch(4, 16, **other)[0])


def test_batches_leave_global_generators_alone(folder, tmp_path):
    data = opened(folder, tmp_path)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    data.batch(4, 16, seed=0, step=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


# --- the cache --------------------------------------------------------------------------------------------------------


def test_photographs_are_decoded_once(folder, tmp_path):
    opened(folder, tmp_path)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert {p.suffix for p in files} == {".u8", ".json"}
    opened(folder, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == files


def test_a_cache_without_its_index_does_not_exist(folder, tmp_path):
    expected = opened(folder, tmp_path).batch(2, 16, seed=0, step=0)
    for p in (tmp_path / "cache").iterdir():
        p.unlink() if p.suffix == ".json" else p.write_bytes(b"half of it")
    came = opened(folder, tmp_path).batch(2, 16, seed=0, step=0)
    assert torch.equal(came[0], expected[0])


def test_new_photographs_and_other_scales_are_decoded_anew(folder, tmp_path):
    opened(folder, tmp_path)
    photograph(48, 48, seed=9).save(folder / "new.png")
    assert "new.png" in {e.name for e in opened(folder, tmp_path).training}
    assert opened(folder, tmp_path, scale=4).batch(1, 16, seed=0, step=0)[1].shape[-1] == 4


# --- what is left out -------------------------------------------------------------------------------------------------


def flat(folder, colours, size=(32, 32)):
    folder.mkdir()
    for k, colour in enumerate(colours):
        Image.new("RGB", size, (colour, colour, colour)).save(folder / f"{k:02d}.png")
    return folder


def test_held_out_photographs_are_never_in_training(tmp_path):
    colours = [20 * k for k in range(10)]
    data = opened(flat(tmp_path / "photos", colours), tmp_path, validation=3, pyramid=(1.0, 0.5))
    held, training = ({e.name for e in entries} for entries in (data.held_out, data.training))
    assert len(held) == 3
    assert len(training) == 7
    assert not held & training
    seen = {False: set(), True: set()}
    for held_out in seen:
        for step in range(20):
            hr, _ = data.batch(8, 16, seed=0, step=step, held_out=held_out)
            seen[held_out] |= {round(value) for value in (hr.mean(dim=(1, 2, 3)) * 255).tolist()}
    assert not seen[False] & seen[True]
    assert len(seen[False]) == 7
    assert len(seen[True]) == 3


def test_held_out_photographs_are_spread_over_the_names(tmp_path):
    data = opened(flat(tmp_path / "photos", range(12)), tmp_path, validation=3)
    assert sorted({e.name for e in data.held_out}) == ["00.png", "04.png", "08.png"]


@pytest.mark.parametrize(
    ("images", "validation"),
    [
        (1, 4),
        (2, 2),
        (3, 4),
        (3, 1),
        (5, 4),
        (7, 6),
    ],
)
def test_holding_out_leaves_something_to_train_on(tmp_path, images, validation):
    data = opened(flat(tmp_path / "photos", range(images)), tmp_path, validation=validation)
    assert data.training
    assert len(data.training) + len(data.held_out) == images
    assert len(data.held_out) <= validation


def corrupt_png(path):
    """A PNG whose pixels do not match their checksum."""
    photograph(48, 48).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT")
    content[start + 20 : start + 60] = bytes(40)
    path.write_bytes(content)


def truncated_jpeg(path):
    photograph(48, 48).save(path)
    path.write_bytes(path.read_bytes()[:400])


def renamed_text(path):
    path.write_text("no image")


def empty(path):
    path.write_bytes(b"")


def bomb(path):
    """A header that promises 60000 x 60000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "damage"),
    [("a.png", corrupt_png), ("a.jpg", truncated_jpeg), ("a.png", renamed_text), ("a.webp", empty), ("a.png", bomb)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_file_is_skipped_and_listed(folder, tmp_path, name, damage):
    damage(folder / name)
    data = opened(folder, tmp_path)
    assert len(data.training) == 3
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith(f"{name}: ")
    assert opened(folder, tmp_path).skipped == data.skipped  # also when it comes from the cache
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_other_files_are_not_looked_at(folder, tmp_path):
    (folder / "notes.txt").write_text("not an image")
    assert opened(folder, tmp_path).skipped == []


def test_photographs_in_folders_below_are_found(folder, tmp_path):
    photographs(folder / "more" / "still more", [(40, 40)])
    names = {e.name for e in opened(folder, tmp_path).training}
    assert len(names) == 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    (tmp_path / "photos").mkdir()
    photograph(32, 32).convert(mode).save(tmp_path / "photos" / "a.tiff")
    assert opened(tmp_path / "photos", tmp_path).batch(1, 32, seed=0, step=0)[0].shape == (1, 3, 32, 32)


def test_a_photograph_too_small_for_anything_is_skipped_and_listed(folder, tmp_path):
    photograph(2, 40).save(folder / "thin.png")
    data = opened(folder, tmp_path)
    assert len(data.training) == 3
    assert data.skipped == ["thin.png: 40x2 is too small"]


def test_photographs_smaller_than_the_crop_are_not_drawn(tmp_path):
    folder = flat(tmp_path / "photos", [10, 20])
    Image.new("RGB", (64, 64), (200, 200, 200)).save(folder / "large.png")
    hr, _ = opened(folder, tmp_path).batch(32, 48, seed=0, step=0)
    assert torch.allclose(hr, torch.tensor(200 / 255))


def test_a_crop_larger_than_every_photograph_is_refused_with_its_number(folder, tmp_path):
    with pytest.raises(ImageError, match="at least 96 pixels, the crop of this stage"):
        opened(folder, tmp_path).batch(4, 96, seed=0, step=0)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ImageError, match=r"No images in .*photos.*\.png"):
        opened(tmp_path / "photos", tmp_path)


def test_a_folder_of_damaged_images_is_refused_with_an_example(tmp_path):
    (tmp_path / "photos").mkdir()
    renamed_text(tmp_path / "photos" / "a.png")
    with pytest.raises(ImageError, match=r"None of the 1 files.*a\.png"):
        opened(tmp_path / "photos", tmp_path)


def test_the_pyramid_holds_every_photograph_at_every_size(tmp_path):
    folder = photographs(tmp_path / "photos", [(64, 96)])
    sizes = {(e.height, e.width) for e in opened(folder, tmp_path, pyramid=(1.0, 0.5)).training}
    assert sizes == {(64, 96), (32, 48)}
