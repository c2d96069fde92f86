"""Flow Upscale over the API: what it draws, what it refuses, and that it stops when asked."""

from __future__ import annotations

import io
import json
import time

import comfyui
import numpy as np
import pytest
from client import RunError
from PIL import Image
from talk import HERE, WORKFLOWS, Host, graph, newer, probe, upscale

from flowcore.checkpoints import catalog, read_header

ONE = 1.001 / 255  # the last bit of a picture


def array(image):
    return np.asarray(image, dtype=np.float64) / 255


def test_the_api_workflow_gives_sharp_pictures_of_the_photograph(host, photo):
    pictures = host.images(upscale(photo=photo, samples=2, temperature=0.8, seed=3))
    small = Image.open(host.server.base / "input" / photo)
    assert [picture.size for picture in pictures] == [(96, 64)] * 2
    for picture in pictures:
        assert picture.mode == "RGB"
        # The picture fits the small one it was made from ...
        back = array(picture.resize(small.size, Image.Resampling.BICUBIC))
        assert np.sqrt(np.mean((back - array(small)) ** 2)) < 0.03
        # ... and holds detail that an ordinary enlargement does not.
        soft = array(small.resize(picture.size, Image.Resampling.BICUBIC))
        assert np.abs(np.diff(array(picture), axis=1)).mean() > np.abs(np.diff(soft, axis=1)).mean()
        # SaveImage puts the recipe into the file.
        assert json.loads(picture.text["prompt"])["upscale"]["inputs"]["seed"] == 3
    assert np.abs(array(pictures[0]) - array(pictures[1])).mean() > 1 / 255


def test_the_history_names_the_files_and_the_model(host, photo):
    host.forget()
    # The second run finds the model in the host's cache; newer hosts repeat what it said.
    for seed in (17, 18) if newer(host.version, "0.19.0") else (17,):
        entry = host.run(upscale(photo=photo, samples=2, seed=seed))
        assert entry["status"]["status_str"] == "success"
        assert len(entry["outputs"]["save"]["images"]) == 2
        model = entry["outputs"]["model"]
        assert model["architecture"] == ["srflow"]
        assert model["scale"] == [4]
        assert model["licence"][0]
        assert model["use"] == ["enlarges clean photographs 4x"]
        assert model["text"][0].startswith("use: enlarges clean photographs 4x\n")
        assert "scale: 4" in model["text"][0]


def test_a_seed_is_a_picture_and_does_not_matter_without_temperature(host, photo):
    def draw(seed, **values):
        return [array(picture) for picture in host.images(upscale(photo=photo, seed=seed, **values))]

    (first,) = draw(5)
    host.forget()  # or it would answer from its cache
    (again,) = draw(5)
    (other,) = draw(6)
    both = draw(5, samples=2)
    assert np.array_equal(first, again)
    assert np.array_equal(draw(1, temperature=0.0), draw(2, temperature=0.0))
    assert np.abs(first - other).mean() > 1 / 255
    assert np.abs(both[0] - first).max() <= ONE
    assert np.abs(both[1] - other).max() <= ONE


def test_the_tile_size_does_not_change_the_picture(host):
    photo = host.put("wide.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((100, 30, 170, 70)))
    whole, tiled = (array(host.images(upscale(photo=photo, seed=5, tile=tile))[0]) for tile in (4096, 32))
    assert np.abs(tiled - whole).max() <= ONE


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_changes_the_picture_only_slightly(host, photo, precision):
    wide, narrow = (array(host.images(upscale(photo=photo, precision=p))[0]) for p in ("float32", precision))
    assert np.abs(wide - narrow).mean() < 0.02


def test_samples_of_the_first_image_come_first(host):
    one, two = (rows(host, probe(batch=batch, samples=2, seed=4)) for batch in (1, 2))
    assert (one.shape, two.shape) == ((2, 24, 32, 3), (4, 24, 32, 3))
    assert np.abs(two - np.concatenate([one, one])).max() <= ONE


def rows(host, workflow):
    facts = host.run(workflow)["outputs"]["save"]
    return np.array(facts["rows"]).reshape(facts["shape"])


# ---------------------------------------------------------------------------------------------------------------------
# painted temperature


def painted(**inputs):
    """A workflow whose mask is white on the left half."""
    halves = {"destination": "black.0", "source": "white.0", "x": 0, "y": 0, "operation": "add"}
    return graph(
        probe(fill="photo", height=8, width=48, mask=["mask", 0], **inputs),
        black=("SolidMask", {"value": 0.0, "width": 96, "height": 20}),
        white=("SolidMask", {"value": 1.0, "width": 48, "height": 20}),
        mask=("MaskComposite", halves),
    )


def test_temperature_holds_in_the_mask_and_outside_elsewhere(host):
    size = {"fill": "photo", "height": 8, "width": 48}
    both = rows(host, painted(temperature=0.9, outside=0.0, seed=3))
    lively, calm = (rows(host, probe(temperature=tau, seed=3, **size)) for tau in (0.9, 0.0))
    left, right = (slice(None), slice(None), slice(0, 64)), (slice(None), slice(None), slice(128, None))
    assert np.abs(both - lively)[left].max() < 2 / 255
    assert np.abs(both - calm)[right].max() < 2 / 255
    assert np.abs(both - calm)[left].mean() > 1 / 255
    # Per level, the mask paints every level.
    levels = rows(host, painted(temperatures="0.9, 0.9", temperature=0.1, outside=0.0, seed=3))
    assert np.abs(levels - both).max() < 1e-5
    assert "could not write the provenance" not in host.server.console()


def test_a_slider_that_nobody_moved_follows_the_models_file(host, photo):
    """And the prompt of a workflow from before there was calm_edges, which states a temperature, stays as it was."""
    config = read_header(catalog.path("srflow-x4")).config
    tau, calm = config["temperature"], config["calm_edges"]
    assert calm > 0

    def draw(**inputs):
        workflow = upscale(photo=photo, seed=3, **inputs)
        if "calm_edges" not in inputs:
            del workflow["upscale"]["inputs"]["calm_edges"]
        entry = host.run(workflow)
        (picture,) = (Image.open(io.BytesIO(data)) for data in host.pictures(entry))
        return array(picture), entry["outputs"]["upscale"]

    own, told = draw(temperature=-0.1)
    assert (told["temperature"], told["calm_edges"]) == ([tau], [calm])
    assert np.array_equal(own, draw(temperature=tau, calm_edges=calm)[0])
    assert np.array_equal(own, draw(temperature=-0.1, calm_edges=-0.1)[0])
    stated, told = draw(temperature=tau)
    assert (told["temperature"], told["calm_edges"]) == ([tau], [0])
    assert np.array_equal(stated, draw(temperature=tau, calm_edges=0.0)[0])
    assert np.array_equal(stated, draw(temperature=tau, calm_edges=-0.1)[0])
    assert np.abs(stated - own).max() > 4 / 255
    per_level = draw(temperatures=f"{tau}, {tau}", temperature=-0.1)[0]  # stated as well
    assert np.abs(per_level - stated).max() <= ONE


def test_temperatures_per_level_replace_temperature(host):
    whole, same, fine = (
        rows(host, probe(fill="photo", temperature=0.8, temperatures=text, seed=3))
        for text in ("", "0.8, 0.8", "0.8, 0")
    )
    assert np.abs(whole - same).max() < 1e-5
    assert np.abs(whole - fine).max() > 0.01
    with pytest.raises(RunError, match="2 levels of latents; got 3"):
        host.run(probe(temperatures="1, 1, 1"))
    with pytest.raises(RunError, match="one number per level"):
        host.run(probe(temperatures="warm"))


def test_a_black_mask_gets_a_note_and_a_wrong_one_is_refused(host, photo):
    workflow = upscale(photo=photo, temperature=0.9, mask=["photo", 1])  # of a picture without alpha: nothing painted
    assert "mask is black" in host.run(workflow)["outputs"]["upscale"]["text"][0]
    workflow = painted()
    workflow["photo"]["inputs"]["batch"] = 2
    many, mask = workflow["photo"]["inputs"] | {"batch": 3}, {"image": "many.0", "channel": "red"}
    workflow = graph(workflow, many=("FlowcoreTestImage", many), mask=("ImageToMask", mask))
    with pytest.raises(RunError, match=r"MASK of shape \(1 or 2, height, width\); got \(3, 8, 48\)"):
        host.run(workflow)
    workflow["many"]["inputs"] |= {"batch": 2, "fill": "nan"}
    with pytest.raises(RunError, match="mask holds values"):
        host.run(workflow)


# ---------------------------------------------------------------------------------------------------------------------
# size, consistency, before and after


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ({"factor": 2.5}, [1, 15, 20, 3]),
        ({"factor": 6}, [1, 36, 48, 3]),
        ({"longest_side": 37}, [1, 28, 37, 3]),
        ({"longest_side": 37, "factor": 2}, [1, 28, 37, 3]),
        ({"longest_side": 1}, [1, 1, 1, 3]),
        ({"factor": 0.01, "channels": 4}, [1, 1, 1, 4]),
        ({"factor": 3, "channels": 4}, [1, 18, 24, 4]),
    ],
)
def test_any_size_can_be_asked_for(host, inputs, shape):
    entry = host.run(probe(fill="photo" if "channels" not in inputs else "gradient", **inputs))
    assert entry["outputs"]["save"]["shape"] == shape
    said = " ".join(entry["outputs"]["upscale"]["text"])
    assert ("ordinary resize" in said) == (max(shape[1:3]) > 32)


def test_huge_pictures_ask_for_their_longest_side(host):
    with pytest.raises(RunError, match=r"20800x20800 pixels, 433 megapixels\. Set longest_side"):
        host.run(probe(height=1300, width=1300, factor=16))


def test_large_pictures_are_announced(host, flows):
    small = {"height": 64, "width": 64, "fill": "photo", "model_name": flows["small-srflow"], "factor": 16}
    host.run(probe(**small, samples=15))
    assert "Flow Upscale: 15 pictures" not in host.server.console()  # 15.7 megapixels
    host.run(probe(**small, samples=16))
    assert (
        "Flow Upscale: 16 pictures of up to 1024x1024, 17 megapixels in all, will take about" in host.server.console()
    )


def test_gray_pictures_stay_gray_and_the_node_says_so(host, photo):
    small = Image.open(host.server.base / "input" / photo).convert("L").convert("RGB")
    (picture,) = host.images(upscale(photo=host.put("gray.png", small), temperature=0.8))
    red, green, blue = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)
    entry = host.run(upscale(photo="gray.png", temperature=0.8, seed=99))
    assert "The image is gray" in " ".join(entry["outputs"]["upscale"]["text"])
    one = host.run(probe(channels=1, fill="gradient", samples=2))
    assert one["outputs"]["save"]["shape"] == [2, 24, 32, 3]


def test_a_matched_picture_is_consistent_and_the_number_says_so(host):
    def number(**inputs):
        workflow = probe(fill="photo", height=16, width=16, temperature=0.9, samples=2, **inputs)
        outputs = host.run(graph(workflow, show=("PreviewAny", {"source": "upscale.1"})))["outputs"]
        assert float(outputs["show"]["text"][0]) == outputs["upscale"]["consistency"][0]
        return outputs["upscale"]["consistency"][0]

    plain, matched, sized = number(), number(match_source=True), number(match_source=True, longest_side=71)
    assert 30 < plain < 60
    assert 60 <= matched <= 100
    assert 60 <= sized <= 100


def test_a_result_beyond_memory_is_refused_before_the_work(host):
    with pytest.raises(RunError, match="GB of memory"):
        host.run(probe(batch=64, samples=64, longest_side=16384))


def test_out_of_memory_halves_the_tile_with_a_note(host):
    photo = host.put("square.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((100, 30, 164, 94)))
    workflow = upscale(photo=photo, seed=9, model=["little", 0])
    # first: afterwards the encoding of the whole image is in the node's store
    entry = host.run(graph(workflow, little=("FlowcoreTestSmallMemory", {"model": "model.0", "pixels": 3500})))
    said = " ".join(entry["outputs"]["upscale"]["text"])
    assert "Out of memory" in said
    assert "tiles of 32" in said
    (tiled,) = (Image.open(io.BytesIO(data)) for data in host.pictures(entry))
    (whole,) = host.images(upscale(photo=photo, seed=9))
    assert np.abs(array(tiled) - array(whole)).max() <= ONE


def test_overflow_is_repaired_and_reported(host):
    """Noise at the hot end of the slider: before the guard, black and glaring blocks."""
    entry = host.run(probe(fill="noise3", height=24, width=24, temperature=1.5))
    assert "overflow" in entry["outputs"]["upscale"]["text"][0]
    facts = entry["outputs"]["save"]
    assert facts["shape"] == [1, 96, 96, 3]
    assert 0 <= facts["range"][0] <= facts["range"][1] <= 1
    calm = host.run(probe(temperature=0.8))["outputs"]
    assert calm["save"]["shape"] == [1, 24, 32, 3]
    assert "overflow" not in "".join(calm.get("upscale", {}).get("text", []))


def test_results_have_the_dtype_in_which_the_host_passes_images(tmp_path):
    tree = comfyui.tree()
    if not newer(comfyui.version(tree), "0.18.0"):
        pytest.skip("this host always passes float32")
    with comfyui.running(tree, tmp_path, packs=(HERE / "probe",), flags=("--fp16-intermediates",)) as server:
        facts = Host(server).run(probe(dtype="float16"))["outputs"]["save"]
        assert facts["dtype"] == ["float16"]


def test_the_condition_store_is_bounded_and_freed_with_the_models(host):
    def store(*images, seed=0):
        made = [probe(fill=f"noise{k}", height=16, width=16, seed=seed) for k in images]
        workflow = graph(*made, store=("FlowcoreTestStore", {"after": "upscale.0"} if made else {}))
        return host.run(workflow)["outputs"]["store"]

    host.forget()
    facts = [store(k, seed=k) for k in range(7)]
    assert [fact["count"] for fact in facts] == [[1], [2], [3], [4], [4], [4], [4]]
    assert facts[-1]["bytes"] == facts[3]["bytes"] <= facts[-1]["budget"]
    assert store(6, seed=99)["bytes"] == facts[-1]["bytes"]  # another seed needs nothing new
    host.forget()
    deadline = time.time() + 10
    while time.time() < deadline and store()["count"] != [0]:
        time.sleep(0.2)
    assert store()["bytes"] == [0]


def test_what_is_kept_of_images_goes_when_no_workflow_uses_the_model_any_more(host):
    """The host drops such a model without a word, and its button frees what is loaded only."""
    alone = graph(store=("FlowcoreTestStore", {}))
    made = graph(probe(fill="noise1", height=16, width=16), store=("FlowcoreTestStore", {"after": "upscale.0"}))
    assert host.run(made)["outputs"]["store"]["count"][0] > 0
    deadline = time.time() + 30
    while time.time() < deadline and host.run(alone)["outputs"]["store"]["count"] != [0]:
        time.sleep(0.2)
    facts = host.run(alone)["outputs"]["store"]
    assert (facts["count"], facts["bytes"], facts["plans"]) == ([0], [0], [0])
