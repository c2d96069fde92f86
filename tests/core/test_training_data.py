"""Training data: aligned pairs, a function of (seed, step), and no photograph where it must not be."""

import hashlib
import json
import os
import re
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import PurePath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import png
from PIL import Image, ImageFile

from flowcore import FlowError, ImageError
from flowcore.images.color import NEUTRAL, luma, palette_from_chroma, split
from flowcore.images.folders import folder_stamp
from flowcore.images.opening import refuse_truncated
from flowcore.images.resize import downsample
from flowcore.training import image_sources
from flowcore.training.data import ColorPhotographs, Photographs, open_data
from flowcore.training.image_sources import find_images
from flowcore.training.recipe import held_out_names, parse_recipe, read_recipe

from .photographs import open_photographs as opened
from .photographs import photograph, photographs, recipe_of_photographs


@pytest.fixture
def folder(tmp_path):
    return photographs(tmp_path / "photos", [(48, 64), (56, 40), (40, 48)])


@pytest.mark.parametrize("scale", [2, 4])
def test_lr_crops_are_shrunk_hr_crops(folder, tmp_path, scale):
    """Away from the crop's border, where only the whole image knows what comes next; to half a step of 8 bits."""
    crop = 32
    hr, lr = opened(folder, tmp_path, scale=scale).batch(16, crop, seed=1, step=0)
    assert (hr.shape, lr.shape) == ((16, 3, crop, crop), (16, 3, crop // scale, crop // scale))
    inner = slice(2, -2)
    difference = (downsample(hr, scale) - lr)[..., inner, inner].abs().max()
    assert difference <= 0.5 / 255 + 1e-6
    assert hr.std() > 0.1  # of something, not of a constant
    hr, lr = opened(photographs(tmp_path / "one", [(32, 32)]), tmp_path, scale=scale).batch(1, 32, seed=0, step=0)
    whole = (downsample(hr, scale).clamp(0, 1) * 255).round() / 255
    assert torch.allclose(lr, whole, atol=1e-6)


def test_pixels_equal_the_files_in_eight_bits(tmp_path):
    """Every place of the file is seen, turned and mirrored every way."""
    folder = photographs(tmp_path / "photos", [(32, 48)])
    file = np.asarray(Image.open(next(folder.iterdir())))
    hr, lr = opened(folder, tmp_path).batch(400, 32, seed=0, step=0)
    for tensor in (hr, lr):
        assert tensor.dtype == torch.float32
        assert 0 <= tensor.min() < tensor.max() <= 1
        assert torch.allclose(tensor * 255, (tensor * 255).round(), atol=1e-4)
    places = [file[:, left : left + 32] for left in range(0, 17, 2)]
    ways = {np.rot90(p, k).tobytes() for place in places for p in (place, place[:, ::-1]) for k in range(4)}
    assert {x.numpy().tobytes() for x in (hr * 255).round().byte().permute(0, 2, 3, 1)} == ways


def upscaling(folder, cache):
    return Photographs(folder, cache, recipe_of_photographs(2, validation=1, degradation="realistic"))


def coloring(folder, cache):
    return colors(folder, cache, palettes=0.5)


@pytest.mark.parametrize("make", [upscaling, coloring])
def test_batches_depend_on_seed_and_step_alone_also_in_threads(folder, tmp_path, make):
    def batches(data, seed=3, step=7):
        return [*data.batch(4, 32, seed, step), *data.batch(4, 32, seed, step, held_out=True)]

    data = make(folder, tmp_path / "cache")
    expected = batches(data)
    batches(data, step=8)
    np.random.rand(3)  # noqa: NPY002
    torch.rand(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for again in (data, make(folder, tmp_path / "cache"), make(folder, tmp_path / "another cache")):
        assert all(torch.equal(one, two) for one, two in zip(batches(again), expected, strict=True))
    for other in ((4, 7), (3, 8), (7, 3)):
        assert not torch.equal(batches(data, *other)[0], expected[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    fresh, expected = make(folder, tmp_path / "cache"), [data.batch(4, 32, 0, step) for step in range(10)]
    with ThreadPoolExecutor(4) as pool:
        for found, batch in zip(pool.map(lambda step: fresh.batch(4, 32, 0, step), range(10)), expected, strict=True):
            assert all(torch.equal(one, two) for one, two in zip(found, batch, strict=True))


def test_photographs_are_decoded_once_per_file_and_scale(folder, tmp_path):
    opened(folder, tmp_path)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert {p.suffix for p in files} == {".u8", ".json"}
    opened(folder, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == files
    photograph(48, 48, seed=9).save(folder / "new.png")
    assert "new.png" in {e.name for e in opened(folder, tmp_path).training}
    assert opened(folder, tmp_path, scale=4).batch(1, 16, seed=0, step=0)[1].shape[-1] == 4
    (tmp_path / "file").write_text("where the cache would be")
    with pytest.raises(FlowError, match="save"):
        Photographs(folder, tmp_path / "file", recipe_of_photographs(2))


def test_the_cache_of_one_folder_keeps_its_name_and_its_order(folder, tmp_path):
    """Runs that were started with an earlier version find their pixels."""
    photographs(folder / "b", [(40, 40)])
    opened(folder, tmp_path, pyramid=(1.0, 0.5))
    files = sorted(p for p in folder.rglob("*.png"))
    described = [[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    key = hashlib.sha256(json.dumps([described, 2, [1.0, 0.5]]).encode()).hexdigest()[:16]
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {f"{key}.u8", f"{key}.json"}
    rows = json.loads((tmp_path / "cache" / f"{key}.json").read_text())["entries"]
    assert [(name, factor) for name, *_, factor in rows] == [(d[0], f) for d in described for f in (1.0, 0.5)]
    offset = 0
    for _, height, width, start, _ in rows:
        assert start == offset
        offset += 3 * height * width * 5 // 4  # HR, and LR of a quarter as many pixels
    opened([folder], tmp_path, pyramid=(1.0, 0.5))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_cache_is_rebuilt(folder, tmp_path):
    """Pixels or index cut short or gone, and an index of another kind."""
    expected = opened(folder, tmp_path).batch(2, 16, seed=0, step=0)[0]
    pixels, index = (next((tmp_path / "cache").glob(f"*.{ending}")) for ending in ("u8", "json"))
    whole, rows = pixels.read_bytes(), index.read_bytes()
    for left in ((whole[:-1], rows), (None, rows), (whole, rows[:50]), (whole, b"[]"), (b"half of it", None)):
        for file, content in zip((pixels, index), left, strict=True):
            file.unlink() if content is None else file.write_bytes(content)
        assert torch.equal(opened(folder, tmp_path).batch(2, 16, seed=0, step=0)[0], expected)


def test_a_decode_that_is_stopped_leaves_nothing_and_does_not_disturb_another(folder, tmp_path):
    seen = []

    def stop(done, total, preview=None):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    others = []

    def meanwhile(done, total, preview=None):  # another process begins and is stopped, and one does all of it
        if done == 2:
            with pytest.raises(KeyboardInterrupt):
                opened(folder, tmp_path, progress=stop)
            others.append(opened(folder, tmp_path))

    with pytest.raises(KeyboardInterrupt):
        opened(folder, tmp_path, progress=stop)
    assert seen == [(1, 3), (2, 3)]
    assert list((tmp_path / "cache").iterdir()) == []
    data = opened(folder, tmp_path, progress=meanwhile)
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".json", ".u8"]
    alone, _ = Photographs(folder, tmp_path / "another cache", recipe_of_photographs(2)).batch(4, 32, 0, 0)
    assert all(torch.equal(each.batch(4, 32, 0, 0)[0], alone) for each in (data, *others))


@pytest.mark.parametrize(("budget", "most"), [(2**25, None), (3 * 32 * 32, 3)])
def test_images_in_memory_are_bounded_and_come_in_the_order_of_the_files(tmp_path, monkeypatch, budget, most):
    folder = flat(tmp_path / "photos", range(12))
    monkeypatch.setattr(image_sources, "MAX_PIXELS_IN_FLIGHT", budget)
    monkeypatch.setattr(image_sources, "SMALL_IMAGE", 0)
    monkeypatch.setattr(image_sources.os, "cpu_count", lambda: 4)
    made, taken, lock, waiting = 0, 0, threading.Lock(), []

    def make(_):
        nonlocal made
        with lock:
            made += 1
            waiting.append(made - taken)
        time.sleep(0.005)

    names = []
    for picture, *_ in image_sources.decode_each(find_images(folder), make):
        names.append(picture.name)
        with lock:
            taken += 1
        time.sleep(0.01)  # the consumer is slower than the decoder
    assert made == taken == 12
    assert names == sorted(names)
    # one may be submitted while the one just taken is not yet counted
    assert 1 < max(waiting) <= 8 + 1 if most is None else max(waiting) <= most + 1


def test_several_folders_are_one_set_of_photographs(tmp_path):
    a = flat(tmp_path / "a" / "photos", [10, 20])
    b = flat(tmp_path / "b" / "photos", [110, 120, 130])
    data = opened([a, b], tmp_path, validation=2)
    names = {f"{k}-photos/0{n}.png" for k, n in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2))}
    assert {e.name for e in data.training + data.held_out} == names
    assert {e.name for e in data.held_out} == {"1-photos/00.png", "2-photos/00.png"}
    levels = set((data.batch(64, 16, 0, 0)[0].amax((1, 2, 3)) * 255).round().tolist())
    assert levels == {20, 120, 130}
    other = opened([b, a], tmp_path)
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 2
    assert len(other.training) == 5


def test_a_photograph_in_two_of_the_folders_counts_once(folder, tmp_path):
    """It would be trained on and held out at the same time."""
    photographs(folder / "more", [(40, 40), (44, 44)])
    (tmp_path / "link").symlink_to(folder / "more")
    for folders in ([folder, folder / "more"], [folder / "more", folder], [folder, tmp_path / "link"], [folder] * 2):
        found = find_images(folders)
        assert len(found) == len({p.name for p in found}) == 5


def test_missing_and_empty_folders_are_refused(folder, tmp_path):
    with pytest.raises(ImageError, match="folder"):
        find_images([])
    with pytest.raises(ImageError, match="nowhere"):
        find_images([folder, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty"):
        find_images([folder, tmp_path / "empty"])


@pytest.fixture
def archive(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for k, file in enumerate(sorted(folder.iterdir())):
            out.write(file, f"train/{'cats' if k else 'dogs'}/{file.name}")
        photograph(40, 40, seed=8).save(tmp_path / "other.png")
        out.write(tmp_path / "other.png", "test/cats/other.png")
        out.writestr("train/notes.txt", "no image")
        out.writestr("__MACOSX/train/cats/._photo1.png", "of the Finder's")
    return tmp_path / "set.zip"


def test_photographs_in_an_archive_are_those_of_the_folder(folder, archive, tmp_path):
    before = set(tmp_path.rglob("*"))
    data = opened(archive / "train", tmp_path)
    new = set(tmp_path.rglob("*")) - before
    assert {p.suffix for p in new} == {"", ".u8", ".json"}  # nothing was unpacked
    assert [e.name for e in data.training] == ["cats/photo1.png", "cats/photo2.png", "dogs/photo0.png"]
    assert data.skipped == []
    plain = opened(folder, tmp_path)
    files = {e.name: plain.cache.images(e) for e in plain.training}
    for entry in data.training:
        for one, two in zip(data.cache.images(entry), files[entry.name.split("/")[1]], strict=True):
            assert np.array_equal(one, two)


def test_the_folder_within_an_archive_is_chosen_by_its_path(archive, tmp_path):
    assert len(find_images(archive)) == 4
    assert [p.name for p in find_images(archive / "train" / "dogs")] == ["photo0.png"]
    both = find_images([archive / "test", archive / "train"])
    assert [p.name for p in both][:2] == ["1-test/cats/other.png", "2-train/cats/photo1.png"]
    assert len(find_images([archive, archive / "train"])) == 4
    with pytest.raises(ImageError, match="which holds __MACOSX, test, train"):
        find_images(archive / "tra")
    archive.write_text("no archive")
    with pytest.raises(ImageError, match="damaged"):
        find_images(archive / "train")
    photographs(tmp_path / "photos.zip" / "a", [(40, 40)])
    assert [p.name for p in find_images(tmp_path / "photos.zip")] == ["a/photo0.png"]  # a folder of that name


def test_damaged_and_huge_members_are_skipped_and_listed(archive, tmp_path, monkeypatch):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened_archive:
        info = opened_archive.getinfo("train/cats/photo1.png")
        sizes = {i.filename: i.file_size for i in opened_archive.infolist()}
    content[info.header_offset + 200] ^= 255
    archive.write_bytes(content)
    monkeypatch.setattr(image_sources, "MAX_MEMBER_BYTES", sizes["train/dogs/photo0.png"] - 1)
    data = opened(archive / "train", tmp_path)
    assert [e.name for e in data.training] == ["cats/photo2.png"]
    assert data.skipped[0].startswith("cats/photo1.png: ")
    assert data.skipped[1].startswith(f"dogs/photo0.png: it unpacks to {sizes['train/dogs/photo0.png']} bytes")


def flat(folder, colors, size=(32, 32)):
    folder.mkdir(parents=True)
    for k, color in enumerate(colors):
        Image.new("RGB", size, (color, color, color)).save(folder / f"{k:02d}.png")
    return folder


def test_held_out_images_are_spread_over_the_names_and_half_at_most(tmp_path):
    for count, held, names in ((1, 4, []), (3, 4, [0]), (7, 6, [0, 2, 5]), (6, 12, [0, 2, 4]), (12, 3, [0, 4, 8])):
        data = opened(flat(tmp_path / f"{count}", range(count)), tmp_path, validation=held, pyramid=(1.0, 0.5))
        held_out, training = ({e.name for e in entries} for entries in (data.held_out, data.training))
        assert sorted(held_out) == [f"{k:02d}.png" for k in names]
        assert not held_out & training
        assert len(held_out | training) == count


def test_listed_names_and_no_others_are_held_out(tmp_path):
    folder = flat(tmp_path / "photos", range(4))
    flat(folder / "more", range(2))

    def listing(*names):
        (tmp_path / "list.txt").write_text("\n".join(names))
        return {"validation": 3, "held_out": str(tmp_path / "list.txt")}

    data = opened(folder, tmp_path, pyramid=(1.0, 0.5), **listing("01.png", "missing.png"))
    assert [(e.name, e.factor) for e in data.held_out] == [
        (name, factor) for name in ("01.png", "more/01.png") for factor in (1.0, 0.5)
    ]
    assert {e.name for e in data.training} == {"00.png", "02.png", "03.png", "more/00.png"}
    unlisted = opened(folder, tmp_path, **listing("missing.png", "1.png"))
    assert len(unlisted.held_out) == 3  # none of them exists: by number
    with pytest.raises(ImageError, match="list"):
        opened(folder / "more", tmp_path, **listing("00.png", "01.png"))


@pytest.mark.parametrize("recipe", ["srflow-x4", "color-photos", "glow-photos"])
def test_a_recipe_with_the_standard_list_never_trains_on_it(tmp_path, recipe):
    listed = sorted(held_out_names("standard"))
    assert len(listed) > 100
    assert all(len(PurePath(name).parts) == 1 and PurePath(name).suffix for name in listed)
    folders = [tmp_path / "photos", tmp_path / "photos-large"]
    for folder, names in zip(folders, (listed[::40], listed[1::40]), strict=True):
        folder.mkdir()
        for k, name in enumerate([*names, "a.png", "b.jpg"]):
            level = 200 if k < len(names) else 50
            image = Image.new("RGB", (64, 64), (level, level, level))
            image.paste((level, level, level - 9), (0, 0, 32, 64))  # a colorizer leaves out what has no color
            image.save(folder / name)
    text = re.sub(r"(?m)^(held_out|pyramid|short_sides|enlarge) = .*\n", "", read_recipe(recipe).text)
    data = open_data(parse_recipe('held_out = "standard"\n' + text), folders, tmp_path / "cache")
    assert {PurePath(e.name).name for e in data.held_out} == {*listed[::40], *listed[1::40]}
    assert {PurePath(e.name).name for e in data.training} == {"a.png", "b.jpg"}
    for step in range(20):
        assert Photographs.batch(data, 8, 32, 0, step)[0].max() * 255 < 60
        assert Photographs.batch(data, 8, 32, 0, step, held_out=True)[0].min() * 255 > 190


def cut_jpeg(path):
    photograph(48, 48).save(path)
    path.write_bytes(path.read_bytes()[:-300])


def bomb(path):
    """A header that promises 60000 x 60000 pixels."""
    path.write_bytes(png(60000, 60000, 8, 2, b""))


def test_a_file_that_cannot_be_used_is_skipped_and_listed(folder, tmp_path):
    """Others are in test_one_reader.py."""
    photograph(2, 40).save(folder / "a.png")
    data = opened(folder, tmp_path)
    assert len(data.training) == 3
    (skipped,) = data.skipped
    assert skipped.startswith("a.png: 40x2 is too small")
    assert opened(folder, tmp_path).skipped == data.skipped  # also from the cache
    assert not list((tmp_path / "cache").glob("*.partial"))
    for file in folder.glob("photo*"):
        file.unlink()
    with pytest.raises(ImageError, match=r"a\.png"):
        opened(folder, tmp_path)


def test_pillows_settings_do_not_matter(folder, tmp_path, monkeypatch):
    cut_jpeg(folder / "a.jpg")
    bomb(folder / "b.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    filters = warnings.filters
    skipped = opened(folder, tmp_path, progress=lambda *_: filters is warnings.filters or 1 / 0).skipped  # all threads'
    assert re.match(r"a\.jpg: .*truncated", skipped[0])
    assert skipped[1] == "b.png: 60000x60000 are more than 178956970 pixels"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_last_reader_of_several_restores_pillows_setting(monkeypatch):
    """They need not leave in the order in which they came."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    first, second = ExitStack(), ExitStack()
    with ThreadPoolExecutor(1) as other_thread:
        first.enter_context(refuse_truncated())
        other_thread.submit(second.enter_context, refuse_truncated()).result()
        first.close()
        assert ImageFile.LOAD_TRUNCATED_IMAGES  # here, but not where the other reader is
        assert not other_thread.submit(bool, ImageFile.LOAD_TRUNCATED_IMAGES).result()
        other_thread.submit(second.close).result()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_short_sides_are_the_sizes_at_which_every_photograph_is_used(tmp_path):
    folder = photographs(tmp_path / "photos", [(64, 96), (80, 60), (36, 30)])

    def sizes(**options):
        entries = opened(folder, tmp_path, scale=1, **options).training
        for entry in entries:
            with Image.open(folder / entry.name) as file:  # a photograph is drawn by its own area, at any size alike
                area = entry.height * entry.width / entry.factor**2
                assert area == pytest.approx(file.width * file.height, rel=0.04)
        return [sorted((e.height, e.width) for e in entries if e.name == f"photo{k}.png") for k in range(3)]

    pyramid = {"pyramid": (1.0, 0.5)}
    assert sizes(**pyramid)[0] == [(32, 48), (64, 96)]
    by_side = [[(24, 36), (40, 60)], [(32, 24), (53, 40)], [(29, 24), (36, 30)]]
    assert sizes(short_sides=(24, 40), **pyramid) == by_side  # the last is not enlarged
    assert sizes(short_sides=(75,), enlarge=1.5) == [[(75, 112)], [(100, 75)], [(54, 45)]]


def test_every_photograph_is_equally_likely_where_a_recipe_says_so(tmp_path):
    """However large it is, and in however many sizes it exists."""
    folder = photographs(tmp_path / "photos", [(160, 160), (40, 40)])
    data = opened(folder, tmp_path, scale=1, short_sides=(32, 64), sampling="photograph")
    entries, probabilities = data._candidates(32, False)
    assert [min(e.height, e.width) for e in entries] == [32, 64, 32, 40]
    assert probabilities.tolist() == [0.25] * 4
    entries, probabilities = data._candidates(48, False)  # smaller ones than the crop are not drawn
    assert ([min(e.height, e.width) for e in entries], probabilities.tolist()) == ([64], [1.0])


def test_photographs_without_color_are_left_out_of_colors(tmp_path):
    folder = photographs(tmp_path / "photos", [(40, 48), (48, 40), (40, 40)])
    with Image.open(folder / "photo1.png") as file:
        gray = np.asarray(file.convert("L"), dtype=np.float64)[..., None]
    sepia = Image.fromarray((gray * [1, 0.97, 0.92]).round().astype(np.uint8))
    sepia.save(folder / "photo1.png")
    with pytest.raises(ImageError, match="color"):
        colors(flat(tmp_path / "gray", [10, 20]), tmp_path / "cache").leave_out_gray()
    data = open_data(read_recipe("color-photos"), folder, tmp_path / "cache")
    names = {entry.name for entry in (*data.training, *data.held_out)}
    assert names == {"photo0.png", "photo2.png"}
    assert data.skipped == ["photo1.png: has no color"]


def test_photographs_of_a_short_side_are_the_shrunk_files_in_a_cache_of_their_own(tmp_path):
    folder = photographs(tmp_path / "photos", [(64, 64)])
    for options in ({}, {"pyramid": (32.0,)}, {"short_sides": (24, 32)}):
        opened(folder, tmp_path, scale=1, **options)
    data = opened(folder, tmp_path, scale=1, short_sides=(32,), turn=False)
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 4
    with Image.open(folder / "photo0.png") as file:
        expected = np.asarray(file.resize((32, 32), Image.Resampling.BICUBIC))
    came, _ = data.batch(1, 32, seed=0, step=0)
    pixels = (came[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert any(np.array_equal(pixels, one) for one in (expected, expected[:, ::-1]))


def colors(folder, cache, **shares):
    data = ColorPhotographs(folder, cache, recipe_of_photographs(1, validation=1, turn=False))
    vars(data).update(shares)
    return data


def rectangle(mask):
    """Rows and columns of the smallest box around what is true."""
    rows, columns = (mask.any(1 - axis).nonzero()[:, 0] for axis in (0, 1))
    return slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)


def test_held_out_colors_are_the_photographs_own_without_hints(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"")
    data = colors(folder, tmp_path / "cache", hinted=1.0, palettes=1.0)
    x, source = data.batch(4, 32, seed=3, step=7, held_out=True)
    rgb, _ = Photographs.batch(data, 4, 32, seed=3, step=7, held_out=True)
    assert (x.shape, source.shape) == ((4, 2, 8, 8), (4, 8, 32, 32))
    y, chroma = split(rgb)
    assert torch.allclose(source[:, :1], y, atol=1e-6)
    means = chroma.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
    assert torch.allclose(x, means + 128 / 255, atol=1e-6)
    assert source[:, 1:].abs().max() == 0
    assert (x - NEUTRAL).abs().max() > 0.05  # in color, too
    assert [len(data.training), len(data.held_out), len(data.skipped)] == [2, 1, 1]  # the same split as for photographs
    assert data.fitting(40, held_out=True) == data.held_out


def test_training_colors_vary_in_saturation_and_white_balance_alone(folder, tmp_path):
    """Each item's chroma is one line over its photograph's: the same slope for Cb and Cr, an offset for each."""
    data = colors(folder, tmp_path / "cache")
    x, source = data.batch(64, 32, seed=3, step=7)
    rgb, _ = Photographs.batch(data, 64, 32, seed=3, step=7)
    own = F.avg_pool2d(split(rgb.contiguous())[1], 4)
    came, own = ((c - c.mean((2, 3), keepdim=True)).flatten(1).double() for c in (x, own))
    slope = (came * own).sum(1, keepdim=True) / own.square().sum(1, keepdim=True)
    assert torch.allclose(came, slope * own, atol=1e-5)
    assert 0.8 <= float(slope.min()) < 0.9
    assert 1.1 < float(slope.max()) <= 1.2
    offset = (x - NEUTRAL).mean((2, 3)) - slope.float() * F.avg_pool2d(split(rgb.contiguous())[1], 32)[..., 0, 0]
    assert 0.004 < float(offset.std()) < 0.012
    assert offset.abs().max() < 0.04
    assert offset.mean().abs() < 0.003  # to no side
    # luma varies, too, and is still that of its crop
    y, own = source[:, 0].flatten(1), luma(rgb).flatten(1)
    assert (y - own).abs().amax(1).median() > 0.005
    together = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(y, own, strict=True)]
    assert np.median(together) > 0.97  # grain and colors that left the cube apart
    assert min(together) > 0.5


def test_training_luma_varies_in_exposure_contrast_and_grain_and_stays_within_0_and_1(tmp_path):
    """On photographs of one gray each, which have no structure of their own."""
    data = colors(flat(tmp_path / "photos", [0, 100, 255, 200]), tmp_path / "cache")
    y = torch.cat([data.batch(100, 16, seed=0, step=step)[1][:, 0] for step in range(4)])
    assert 0 <= y.min() < y.max() <= 1
    inside = y[(y.amin((1, 2)) > 0) & (y.amax((1, 2)) < 1)]
    grain = inside.std((1, 2))
    assert 0.25 < float((grain > 1e-5).float().mean()) < 0.42  # a third
    assert grain.max() < 0.06
    assert len(inside.mean((1, 2)).unique()) > 100
    # the photographs themselves are held out
    y = data.batch(20, 16, seed=0, step=0, held_out=True)[1][:, 0]
    assert y.std((1, 2)).max() < 1e-6
    assert len((y.mean((1, 2)) * 255).round().unique()) == 1


def test_hints_are_squares_of_the_crops_own_colors(folder, tmp_path):
    data = colors(folder, tmp_path / "cache", hinted=1.0)
    x, source = data.batch(64, 40, seed=5, step=2)
    hints = source[:, 1:4, ::4, ::4]  # a number a block of 4x4
    assert torch.equal(hints.repeat_interleave(4, 2).repeat_interleave(4, 3), source[:, 1:4])
    assert set(hints[:, 0].unique().tolist()) == {0.0, 1.0}
    assert (hints[:, 1:] * (1 - hints[:, :1])).abs().max() == 0  # no colors but where it is covered
    chroma, single, sides = x - NEUTRAL, 0, set()
    for item, own in zip(hints, chroma, strict=True):
        covered = item[0] == 1
        assert covered.any()
        wanted = item[1:, covered].T.unique(dim=0)
        assert 1 <= len(wanted) <= 16
        for color in wanted:
            box = rectangle((item[1:] == color[:, None, None]).all(0) & covered)
            assert all(part.stop - part.start <= 6 for part in box)
        if len(wanted) == 1:
            box = rectangle(covered)
            assert covered[box].all()
            assert torch.allclose(wanted[0], own[:, box[0], box[1]].mean((1, 2)), atol=1e-6)
            assert len({part.stop - part.start for part in box}) == 1  # a square
            sides.add(box[0].stop - box[0].start)
            single += 1
    assert 5 < single < 40  # a quarter of them
    assert len(sides) > 2


def test_a_palette_is_that_of_the_whole_crop_in_constant_planes(folder, tmp_path):
    x, source = colors(folder, tmp_path / "cache", palettes=1.0).batch(8, 32, seed=5, step=2)
    planes = source[:, 4:]
    assert torch.equal(planes, planes[:, :, :1, :1].expand_as(planes))
    assert torch.allclose(planes[:, :, 0, 0], palette_from_chroma(x - NEUTRAL), atol=1e-6)
    assert torch.equal(planes[:, 0, 0, 0], torch.ones(8))
    assert torch.allclose(planes[:, 1:3, 0, 0], (x - NEUTRAL).mean((2, 3)), atol=1e-6)


def test_some_crops_have_hints_and_some_a_palette(folder, tmp_path):
    def parts(**options):
        data = colors(folder, tmp_path / "cache", **options)
        source = torch.cat([data.batch(100, 16, seed=0, step=step)[1] for step in range(4)])
        return source[:, 1].amax((1, 2)), source[:, 4, 0, 0]

    hinted, palettes = parts()
    assert 0.42 < float(hinted.mean()) < 0.58
    assert 0.05 < float(palettes.mean()) < 0.15
    assert 0 < float((hinted * palettes).mean()) < 0.15  # chosen independently
    for part in (0.0, 1.0):
        hinted, palettes = parts(hinted=part, palettes=part)
        assert set(hinted.tolist()) == set(palettes.tolist()) == {part}


def test_squares_of_hints_fit_into_the_smallest_crops(folder, tmp_path):
    data = colors(folder, tmp_path / "cache", hinted=1.0)
    for crop in (4, 8, 16):
        assert (data.batch(40, crop, seed=0, step=0)[1][:, 1].amax((1, 2)) == 1).all()


def test_the_stamp_of_a_folder_changes_with_its_files_without_reading_them(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "0.png").write_bytes(b"")
    asked, ask = [], os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *_, **options: asked.append(PurePath(path).name) or ask(path, **options)
    )
    before = folder_stamp(tmp_path)
    assert before == folder_stamp(tmp_path)
    assert "0.png" not in asked
    os.utime(tmp_path / "a" / "b", ns=(0, 0))  # as a new file does
    stamps = [before, folder_stamp(tmp_path)]
    (tmp_path / "a" / "linked").symlink_to(flat(tmp_path.with_name("elsewhere"), [9]))
    stamps.append(folder_stamp(tmp_path))
    flat(tmp_path.with_name("elsewhere") / "deeper", [9])
    assert len({*stamps, folder_stamp(tmp_path)}) == 4
