"""Flow Example and the nodes of the stories: what they give on a fresh host."""

from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import comfyui
import numpy as np
import pytest
import torch
from client import RunError
from PIL import Image
from small_flows import flow
from talk import examples, graph, loader, newest, noise, opened, options, picture, pixels, report, shows

from flowcore.tasks.sample import normalize_image_latents

FILES = comfyui.ROOT / "workflows"
FILMS = {"black-and-white film": (16, 192, 336), "small film": (12, 72, 96)}


def test_every_example_is_listed_with_files_that_the_host_serves(host):
    info = host.info("FlowcoreExample")
    files = examples(host)
    assert options(info, "picture")[: len(files)] == [*files]  # files of the input folder follow
    sources = (FILES / "pictures" / "SOURCES.tsv").read_text()
    for name in {name for names in files.values() for name in names}:
        served = host.get(f"/api/workflow_templates/{comfyui.PACK_NAME}/{name}")
        assert served == (FILES / name).read_bytes()
        assert not name.startswith("pictures/") or name.removeprefix("pictures/") in sources


def test_examples_are_pictures(host):
    scale = {"image": "masked.0", "upscale_method": "area", "width": 4, "height": 4, "crop": "disabled"}
    for name, files in examples(host).items():
        with Image.open(FILES / files[0]) as first:
            sides = FILMS.get(name, (len(files), first.height, first.width))
        outputs = host.outputs(
            example=("FlowcoreExample", {"picture": name}),
            size=("GetImageSize", {"image": "example.0"}),
            masked=("MaskToImage", {"mask": "example.1"}),
            small=("ImageScale", scale),
            report=report("small.0"),
            **shows(number="size.2", height="size.1", width="size.0", folder="example.2"),
        )
        assert [outputs[side]["text"] for side in ("number", "height", "width")] == [[str(side)] for side in sides]
        assert (pixels(outputs["report"]).max() > 0) == (name == "painted photograph")
        (folder,) = outputs["folder"]["text"]
        assert (FILES / files[0]).parent.samefile(folder)


def test_a_picture_of_ones_own_is_taken_as_load_image_takes_it(host):
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8), "RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    noisy.save(host.server.base / "input" / "own.png", exif=turned)
    workflow = graph(
        own=("FlowcoreExample", {"picture": "own.png"}),
        image=report("own.0"),
        hidden=("MaskToImage", {"mask": "own.1"}),
        mask=report("hidden.0"),
        **shows(folder="own.2"),
    )
    outputs = host.outputs(workflow)
    upright = torch.tensor(np.array(noisy.transpose(Image.Transpose.ROTATE_270))).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels(outputs["image"])[0], upright[:3])
    torch.testing.assert_close(pixels(outputs["mask"])[0, 0], 1 - upright[3])
    assert (host.server.base / "input" / "own.png").samefile(outputs["folder"]["text"][0])  # not all that lies there
    assert "own.png" in options(host.info("FlowcoreExample"), "picture")

    noisy.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(host.server.base / "input" / "own.png")
    assert pixels(host.outputs(workflow)["image"]).shape == (1, 3, 6, 8)  # another file of that name
    workflow["own"]["inputs"]["picture"] = "../own.png"
    with pytest.raises(RunError, match=r"there is no file or folder of pictures '\.\./own\.png' in the input folder"):
        host.run(workflow)


def test_a_folder_of_ones_own_is_a_batch_or_a_list_where_sizes_differ(host):
    folder = host.server.base / "input" / "flowcore" / "holiday"
    folder.mkdir(parents=True)
    for k in range(3):
        Image.new("RGB", (8, 6), (60 * k, 0, 0)).save(folder / f"{k}.png")
    own = ("FlowcoreExample", {"picture": "flowcore/holiday"})
    workflow = graph(own=own, image=report("own.0"), **shows(folder="own.2"))
    outputs = host.outputs(workflow)
    batch = pixels(outputs["image"])
    assert batch.shape == (3, 3, 6, 8)
    assert (255 * batch[:, 0].mean((1, 2))).round().tolist() == [0, 60, 120]
    assert folder.samefile(outputs["folder"]["text"][0])
    assert "flowcore/holiday" in options(host.info("FlowcoreExample"), "picture")
    assert opened(host.view(type="input", subfolder="flowcore", filename="holiday")).size == (24, 6)

    Image.new("RGB", (4, 10), (255, 0, 0)).save(folder / "3.png")
    assert host.outputs(workflow)["image"]["shape"] == 3 * [1, 6, 8, 3] + [1, 10, 4, 3]


def test_an_animated_picture_is_all_of_its_frames_with_even_sides(host):
    first, *others = [Image.new("RGB", (9, 7), (60 * k, 0, 0)) for k in range(4)]
    for suffix in ("gif", "webp", "png"):
        options = {"lossless": True} if suffix == "webp" else {}
        first.save(host.server.base / "input" / f"moving.{suffix}", save_all=True, append_images=others, **options)
        workflow = graph(example=("FlowcoreExample", {"picture": f"moving.{suffix}"}), report=report("example.0"))
        outputs = host.outputs(workflow)
        assert outputs["example"]["text"] == [f"moving.{suffix}: 4 frames, each a picture"]
        assert outputs["example"]["flowcore_notes"] == []
        frames = pixels(outputs["report"])
        assert frames.shape == (4, 3, 6, 8)
        assert (255 * frames[:, 0].mean((1, 2))).round().tolist() == [0, 60, 120, 180]


def test_the_page_shows_examples_as_it_shows_files_of_the_input_folder(host):
    def seen(name, place="input"):
        return opened(host.view(filename=name, type=place)).size

    sizes = {"photograph": (188, 124), "four portraits": (256, 256), "ten photographs": (1200, 480)}
    sizes |= {name: (width, height) for name, (_, height, width) in FILMS.items()}  # of the first frame
    assert {name: seen(name) for name in sizes} == sizes
    host.put("plain.png", Image.new("RGB", (5, 4)))
    assert seen("plain.png") == (5, 4)
    with pytest.raises(HTTPError):
        seen("photograph", "output")


def test_examples_are_opened_outside_the_event_loop_and_stay_at_hand(host):
    def count():
        seen = host.outputs(opened=("FlowcoreTestOpened", {}))["opened"]
        return seen["in_loop"][0], seen["elsewhere"][0]

    view = partial(host.view, type="input")
    view(filename="ten photographs")
    in_loop, elsewhere = count()
    assert in_loop == 0
    assert elsewhere >= 10
    for k in range(40):  # more than are kept
        with pytest.raises(HTTPError):
            view(filename=f"nobody{k}.png")
    view(filename="ten photographs")
    assert count() == (0, elsewhere)


@newest
def test_a_folder_of_large_pictures_is_shown_in_little_memory_and_anew_when_one_was_replaced(host):
    status, folder = Path(f"/proc/{host.server.process.pid}"), host.server.base / "input" / "large"
    folder.mkdir()
    for k in range(24):
        Image.new("RGB", (2400, 1600), (10 * k, 0, 0)).save(folder / f"{k:02}.jpg")

    def shown():
        return opened(host.view(type="input", filename="large")).getpixel((5, 5))

    def megabytes(name):
        return int((status / "status").read_text().partition(f"{name}:")[2].split()[0]) / 1024

    if status.exists():  # on Linux
        (status / "clear_refs").write_text("5")  # the peak begins anew
        before = megabytes("VmRSS")
    assert max(shown()) < 5
    if status.exists():
        assert megabytes("VmHWM") - before < 100  # all in full are 276
    Image.new("RGB", (2400, 1600), (255, 0, 0)).save(folder / "00.jpg")
    assert shown()[0] > 250


def test_a_morph_goes_through_all_pictures_and_back(host, flows):
    asked = {"images": "three.0", "model": "model.0", "frames": 3, "loop": True, "fit": "crop"}
    workflow = graph(
        model=loader(flows["free-glow"]),
        three=picture(fill="noise", batch=3, height=16, width=16),
        morph=("FlowcoreMorph", asked),
        report=report("morph.0"),
    )
    film = pixels(host.outputs(workflow)["report"])
    assert len(film) == 6
    torch.testing.assert_close(film[::2], noise(3, 3, 16, 16), atol=2e-3, rtol=0)


def test_harmonize_is_the_task(host, flows):
    workflow = graph(
        model=loader(flows["small-srflow"]),
        image=picture(fill="noise", height=16, width=24),
        harmonize=("FlowcoreHarmonize", {"image": "image.0", "model": "model.0", "strength": 0.5}),
        report=report("harmonize.0"),
    )
    made = pixels(host.outputs(workflow)["report"])
    wanted = normalize_image_latents(flow("small-srflow"), noise(1, 3, 16, 24), strength=0.5, notify=print)
    torch.testing.assert_close(made, wanted, atol=2e-3, rtol=0)


@newest
def test_a_sample_grid_holds_the_seeds_at_every_temperature(host):
    drawn = {"model": "model.0", "seed": 7, "labels": "3"}
    workflow = graph(
        model=loader("mnist-styles"),
        grid=("FlowcoreSampleGrid", drawn | {"temperatures": "0, 1", "seeds": 2}),
        sample=("FlowcoreSample", drawn | {"samples": 2, "temperature": 1.0}),
        report=report("grid.1"),
        single=report("sample.0"),
        sheet=("PreviewImage", {"images": "grid.0"}),
    )
    outputs = host.outputs(workflow)
    grid = pixels(outputs["report"])
    assert len(grid) == 4
    assert torch.equal(grid[0], grid[1])  # at 0 all seeds are alike
    assert not torch.equal(grid[2], grid[3])
    assert torch.equal(grid[2:], pixels(outputs["single"]))
    assert outputs["grid"]["seeds"] == [7, 8]


def test_a_reference_gives_its_colors_as_its_latents_do(host, flows):
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.5, "seed": 3}
    outputs = host.outputs(
        model=loader(flows["small-color"]),
        image=picture(fill="photo", height=16, width=24),
        other=picture(fill="noise", batch=2, height=16, width=24),
        encoded=("FlowcoreEncodeColor", {"image": "other.0", "model": "model.0"}),
        one=("FlowcoreColorize", asked | {"reference": "other.0"}),
        two=("FlowcoreColorize", asked | {"latents": "encoded.0"}),
        report=report("one.0"),
        same=report("two.0"),
    )
    assert len(pixels(outputs["report"])) == 2
    assert torch.equal(pixels(outputs["report"]), pixels(outputs["same"]))
