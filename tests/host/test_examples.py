"""Flow Example and the nodes of the stories: what they give on a fresh host."""

from __future__ import annotations

import comfyui
import pytest
import torch
from small_flows import flow
from talk import examples, graph, options, picture, pixels, refusal

from flowcore.tasks.harmonize import harmonize

FILES = comfyui.ROOT / "workflows"
LANDSCAPES = "three landscapes"
# Number, height and width of the pictures.
SIZES = {
    "photograph": (1, 124, 188),
    "painted photograph": (1, 124, 188),
    "second photograph": (1, 256, 256),
    LANDSCAPES: (3, 256, 256),
    "black-and-white people": (1, 720, 864),
    "black-and-white mountains": (1, 363, 768),
    "black-and-white house": (1, 492, 640),
    "black-and-white film": (16, 192, 336),
    "small face": (1, 66, 49),
    "ten photographs": (10, 240, 240),
    "photographs, two odd ones": (6, 128, 128),
    "original and retouched": (2, 256, 256),
    "pasted piece": (1, 256, 256),
    "few colors": (1, 256, 256),
    "four portraits": (4, 128, 128),
    "two portraits": (2, 128, 128),
    "bad JPEG": (1, 128, 192),
}


def test_every_example_is_listed_with_files_that_the_host_serves(host):
    info = host.get_json("/object_info/FlowcoreExample")["FlowcoreExample"]
    assert options(info, "picture") == [*SIZES]
    files = examples(host)
    assert [*files] == [*SIZES]
    sources = (FILES / "pictures" / "SOURCES.tsv").read_text()
    for name in {name for names in files.values() for name in names}:
        served = host.get(f"/api/workflow_templates/{comfyui.PACK_NAME}/{name}")
        assert served == (FILES / name).read_bytes()
        assert not name.startswith("pictures/") or name.removeprefix("pictures/") in sources


@pytest.mark.parametrize("name", SIZES)
def test_examples_are_pictures(host, name):
    outputs = host.run(
        graph(
            example=("FlowcoreExample", {"picture": name}),
            size=("GetImageSize", {"image": "example.0"}),
            number=("PreviewAny", {"source": "size.2"}),
            height=("PreviewAny", {"source": "size.1"}),
            width=("PreviewAny", {"source": "size.0"}),
            masked=("MaskToImage", {"mask": "example.1"}),
            small=(
                "ImageScale",
                {"image": "masked.0", "upscale_method": "area", "width": 4, "height": 4, "crop": "disabled"},
            ),
            report=("FlowcoreTestReport", {"image": "small.0"}),
            folder=("PreviewAny", {"source": "example.2"}),
        )
    )["outputs"]
    assert [outputs[side]["text"] for side in ("number", "height", "width")] == [[str(side)] for side in SIZES[name]]
    assert (pixels(outputs["report"]).max() > 0) == (name == "painted photograph")
    (folder,) = outputs["folder"]["text"]
    assert (FILES / examples(host)[name][0]).parent.samefile(folder)


def test_a_morph_goes_through_all_pictures_and_back(host, flows):
    made = host.run(
        graph(
            model=("FlowcoreLoadModel", {"model_name": flows["free-glow"]}),
            three=picture(fill="noise", batch=3, height=16, width=16),
            morph=(
                "FlowcoreMorph",
                {"images": "three.0", "model": "model.0", "frames": 3, "loop": True, "fit": "crop"},
            ),
            report=("FlowcoreTestReport", {"image": "morph.0"}),
            before=("FlowcoreTestReport", {"image": "three.0"}),
        )
    )["outputs"]
    film, three = pixels(made["report"]), pixels(made["before"])
    assert len(film) == 6
    torch.testing.assert_close(film[::2], three, atol=2e-3, rtol=0)


def test_harmonize_is_the_task(host, flows):
    made = host.run(
        graph(
            model=("FlowcoreLoadModel", {"model_name": flows["small-srflow"]}),
            image=picture(fill="noise", height=16, width=24),
            harmonize=("FlowcoreHarmonize", {"image": "image.0", "model": "model.0", "strength": 0.5}),
            report=("FlowcoreTestReport", {"image": "harmonize.0"}),
            before=("FlowcoreTestReport", {"image": "image.0"}),
        )
    )["outputs"]
    wanted = harmonize(flow("small-srflow"), pixels(made["before"]), strength=0.5, notify=print)
    torch.testing.assert_close(pixels(made["report"]), wanted, atol=2e-3, rtol=0)


def sampling(**inputs):
    drawn = {"model": "model.0", "seed": 7, "labels": "3"}
    return graph(
        model=("FlowcoreLoadModel", {"model_name": "mnist-styles"}),
        grid=("FlowcoreSampleGrid", drawn | {"temperatures": "0, 1", "seeds": 2} | inputs),
        sample=("FlowcoreSample", drawn | {"samples": 2, "temperature": 1.0}),
        report=("FlowcoreTestReport", {"image": "grid.1"}),
        single=("FlowcoreTestReport", {"image": "sample.0"}),
        sheet=("PreviewImage", {"images": "grid.0"}),
    )


def test_a_sample_grid_holds_the_seeds_at_every_temperature(host):
    outputs = host.run(sampling())["outputs"]
    grid = pixels(outputs["report"])
    assert len(grid) == 4
    assert torch.equal(grid[0], grid[1])  # at 0 all seeds are alike
    assert not torch.equal(grid[2], grid[3])
    assert torch.equal(grid[2:], pixels(outputs["single"]))
    assert outputs["grid"]["seeds"] == [7, 8]
    refusal(host, sampling(temperatures=""), "temperatures takes 1 to 64 numbers")


def test_a_reference_gives_its_colors_as_its_latents_do(host, flows):
    nodes = graph(
        model=("FlowcoreLoadModel", {"model_name": flows["small-color"]}),
        image=picture(fill="photo", height=16, width=24),
        other=picture(fill="noise", batch=2, height=16, width=24),
        encoded=("FlowcoreEncodeColor", {"image": "other.0", "model": "model.0"}),
    )
    wanted = {"image": "image.0", "model": "model.0", "temperature": 0.5, "seed": 3}
    outputs = host.run(
        graph(
            nodes,
            one=("FlowcoreColorize", wanted | {"reference": "other.0"}),
            two=("FlowcoreColorize", wanted | {"latents": "encoded.0"}),
            report=("FlowcoreTestReport", {"image": "one.0"}),
            same=("FlowcoreTestReport", {"image": "two.0"}),
        )
    )["outputs"]
    assert len(pixels(outputs["report"])) == 2
    assert torch.equal(pixels(outputs["report"]), pixels(outputs["same"]))


def test_a_face_is_pasted_into_the_enlarged_picture(host):
    eyes = {"left_eye": "19, 16", "right_eye": "28, 16"}  # a face of 38 pixels
    outputs = host.run(
        graph(
            image=picture(fill="gradient", height=40, width=48),
            align=("FlowcoreAlignFace", {"image": "image.0", "size": 76} | eyes),
            paste=("FlowcorePasteFace", {"image": "image.0", "face": "align.0", "place": "align.1", "enlarge": True}),
            report=("FlowcoreTestReport", {"image": "paste.0"}),
        )
    )["outputs"]
    assert outputs["report"]["shape"][1:3] == [80, 96]
