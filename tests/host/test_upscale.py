"""Flow Upscale over the API: what it draws, what it refuses, and that it stops when asked."""

from functools import partial

import numpy as np
import pytest
import torch
from client import RunError
from PIL import Image
from talk import WORKFLOWS, array, graph, loader, newest, opened, pixels, probe, refusal, shows, until, upscale

import flowcore
from flowcore.flows.prior import masked_temperature
from flowcore.models import catalog
from flowcore.models.model_file import read_header

ONE = 1.001 / 255  # the last bit of a picture
WIDE = {"height": 20, "width": 50}
HALF = torch.zeros(1, 1, 60, 80)  # larger than the photograph, with its proportions
HALF[..., :40] = 1  # white on the left


def photograph(batch=1, height=6, width=8):
    """What the probe pack makes of `fill="photo"`, as (B, 3, H, W)."""
    piece = Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((0, 0, width, height))
    return torch.from_numpy(np.array(piece)).permute(2, 0, 1).expand(batch, -1, -1, -1) / 255


def masked(**inputs):
    """A workflow whose mask is HALF."""
    halves = {"destination": "black.0", "source": "white.0", "x": 0, "y": 0, "operation": "add"}
    return graph(
        probe(fill="photo", mask="mask.0", **inputs),
        black=("SolidMask", {"value": 0.0, "width": 80, "height": 60}),
        white=("SolidMask", {"value": 1.0, "width": 40, "height": 60}),
        mask=("MaskComposite", halves),
    )


@pytest.mark.parametrize(
    ("inputs", "options"),
    [  # of the node, and, where they are others, of the task
        ({"temperature": 0.8, "samples": 2, "batch": 2}, {}),
        ({"temperature": 0.8, "calm_edges": 0.5, "seed": 2**64 - 1}, {}),
        ({"temperature": 0.8, "precision": "bfloat16"}, {}),
        ({"temperature": 0.3, "temperatures": "0.8, 0"}, {"temperature": [0.8, 0.0]}),
        ({"temperature": 0.8, "tile": 32} | WIDE, {}),
        ({"temperature": 0.8, "factor": 2.5}, {}),
        ({"temperature": 0.8, "factor": 6}, {}),
        ({"temperature": 0.9, "longest_side": 71, "match_source": True}, {}),
        ({"temperature": 0.8, "guide": "photo.0", "guide_strength": 0.6}, {"guide": photograph()}),
        ({"temperature": 0.8, "guide": "photo.0"}, {"guide": photograph(), "guide_strength": None}),
        ({"temperature": 0.9, "outside": 0.1, "mask": HALF}, {"temperature": masked_temperature(HALF, 0.9, 0.1)}),
        (
            {"temperatures": "0.9, 0.2", "outside": 0.1, "mask": HALF},
            {"temperature": [masked_temperature(HALF, tau, 0.1) for tau in (0.9, 0.2)]},
        ),
    ],
    ids=str,
)
@newest
def test_every_widget_reaches_the_task(host, inputs, options):
    asked = {"seed": 5} | inputs
    drawn = masked if "mask" in asked else partial(probe, fill="photo")
    workflow = drawn(**{name: value for name, value in asked.items() if name != "mask"})
    outputs = host.outputs(workflow, **shows(number="upscale.1"))
    size = {name: asked.pop(name) for name in ("batch", "height", "width") if name in asked}
    asked = {name: value for name, value in asked.items() if name not in ("mask", "outside", "temperatures")} | options
    known = flowcore.upscale(flowcore.load("srflow-x4"), photograph(**size), **asked)
    made = pixels(outputs["save"])
    assert made.shape == known.shape
    assert (made - known).abs().max() <= ONE
    number = outputs["upscale"]["consistency"][0]
    assert float(outputs["number"]["text"][0]) == number
    assert number >= 60 or not asked.get("match_source")
    assert "could not record the provenance" not in host.server.console()
    resized = max(known.shape[2:]) > 4 * size.get("width", 8)
    assert ("ordinary resize" in " ".join(outputs["upscale"]["text"])) == resized


def test_the_history_names_the_files_and_the_model(host, photo):
    host.forget()
    for seed in (17, 18):  # the second run finds the model in the host's cache, which repeats what it said
        entry = host.run(upscale(photo=photo, samples=2, seed=seed))
        assert entry["status"]["status_str"] == "success"
        assert len(entry["outputs"]["save"]["images"]) == 2
        model = entry["outputs"]["model"]
        assert (model["architecture"], model["scale"]) == (["srflow"], [4])
        assert model["licence"][0]
        assert model["use"] == ["enlarges clean photographs 4x"]
        assert "text" not in model  # the page says what it is for


@newest
def test_a_slider_that_nobody_moved_follows_the_models_file(host, photo):
    """And the model's calm edges hold whatever the temperature, in prompts without the input, too."""
    config = read_header(catalog.path("srflow-x4")).config
    tau, calm = config["temperature"], config["calm_edges"]
    assert calm > 0

    def draw(**inputs):
        workflow = upscale(photo=photo, seed=3, **inputs)
        if "calm_edges" not in inputs:
            del workflow["upscale"]["inputs"]["calm_edges"]
        entry = host.run(workflow)
        (picture,) = map(opened, host.pictures(entry))
        return array(picture), entry["outputs"]["upscale"]

    own, told = draw(temperature=-0.1)
    assert (told["temperature"], told["calm_edges"]) == ([tau], [calm])
    assert np.array_equal(own, draw(temperature=tau, calm_edges=calm)[0])
    assert np.array_equal(own, draw(temperature=-0.1, calm_edges=-0.1)[0])
    stated, told = draw(temperature=tau)
    assert (told["temperature"], told["calm_edges"]) == ([tau], [calm])
    assert np.array_equal(stated, own)
    per_level = draw(temperatures=f"{tau}, {tau}", temperature=-0.1)[0]
    assert np.abs(per_level - own).max() <= ONE
    assert np.abs(draw(temperature=tau, calm_edges=0.0)[0] - own).max() > 2 / 255


@newest
def test_verify_says_what_a_crop_needs_and_takes_no_width_without_a_height(host):
    host.put("crop.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((0, 0, 130, 124)))
    host.put("larger.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").resize((140, 140)))

    def verifying(name, width=0):
        verify = {"image": "photo.0", "model": "model.0", "seed": 3, "mark": "", "width": width, "height": 0}
        nodes = {"photo": ("LoadImage", {"image": name}), "model": loader("srflow-x4")}
        return graph(**nodes, verify=("FlowcoreVerify", verify), **shows(z="verify.3"))

    for name, told in (("crop.png", False), ("larger.png", True)):  # 128 pixels at least
        said = host.outputs(verifying(name))["verify"]["text"]
        (text,) = [line for line in said if line.startswith("Not made by srflow-x4")]
        assert ("If it is a crop, connect source, or set width and height" in text) == told
    refusal(host, verifying("crop.png", width=64), "width", "64x0")


@newest
def test_faces_are_kept_calm_without_a_warning_alone_and_in_a_grid(host, flows):
    """In a grid at the model's temperature only: a number that is given goes without."""
    grid = {"image": "half.0", "model": "model.0", "temperatures": "-0.1", "seed": 3}
    told = host.outputs(
        upscale(model_name=flows["small-srflow"], image="half.0", calm_faces=0.5),
        photo=("FlowcoreExample", {"picture": "two portraits"}),
        half=("ImageScaleBy", {"image": "photo.0", "upscale_method": "area", "scale_by": 0.5}),
        grid=("FlowcoreTemperatureGrid", grid),
    )
    for node in ("upscale", "grid"):
        assert "2 faces are kept calm: less is invented there." in told[node]["text"]
    assert told["upscale"]["flowcore_notes"] == []


def test_a_black_mask_gets_a_note_and_a_wrong_one_is_refused(host, photo):
    workflow = upscale(photo=photo, temperature=0.9, mask=["photo", 1])  # of a picture without alpha: nothing painted
    assert "mask is black" in host.outputs(workflow)["upscale"]["text"][0]
    workflow = masked(batch=2)
    many, mask = workflow["photo"]["inputs"] | {"batch": 3}, {"image": "many.0", "channel": "red"}
    workflow = graph(workflow, many=("FlowcoreTestImage", many), mask=("ImageToMask", mask))
    refusal(host, workflow, "MASK of shape (1 or 2, height, width); got (3, 6, 8)")
    workflow["many"]["inputs"] |= {"batch": 2, "fill": "nan"}
    refusal(host, workflow, "mask contains values")


def test_results_that_are_too_large_are_refused_before_the_work(host):
    huge = "20800x20800 pixels, 433 megapixels. Without longest_side"
    refusal(host, probe(height=1300, width=1300, factor=16), huge)
    refusal(host, probe(batch=64, samples=64, longest_side=16384), "GB of memory")


def test_an_error_reaches_the_page_as_a_template_before_the_host_reports_it(host):
    events = []
    with pytest.raises(RunError, match="temperatures takes one number per level"):
        host.run(probe(temperatures="warm"), events.append)
    events = [event for event in events if isinstance(event, dict)]
    kinds = [event["type"] for event in events]
    own, reported = (events[kinds.index(kind)]["data"] for kind in ("flowcore.error", "execution_error"))
    assert kinds.index("flowcore.error") < kinds.index("execution_error")
    assert own["prompt_id"] == reported["prompt_id"]
    assert own["message"]["template"].startswith("{name} takes one number per level")
    assert own["message"]["values"] == {"name": {"argument": "temperatures"}, "text": "warm"}


def test_results_have_the_dtype_in_which_the_host_passes_images(host):
    try:
        host.outputs(half=("FlowcoreTestHalf", {"on": True}))
        assert host.outputs(probe(dtype="float16", seed=16))["save"]["dtype"] == ["float16"]
    finally:
        host.outputs(half=("FlowcoreTestHalf", {"on": False}))


def test_the_condition_store_is_bounded(host):
    def store(image, seed=0):
        made = probe(fill=f"noise{image}", height=16, width=16, seed=seed)
        return host.outputs(made, store=("FlowcoreTestStore", {"after": "upscale.0"}))["store"]

    host.forget()
    store(0)  # the model before may go no earlier than now, and all that is kept with it
    facts = [store(k, seed=k) for k in range(7)]
    assert [fact["count"] for fact in facts] == [[1], [2], [3], [4], [4], [4], [4]]
    assert facts[-1]["bytes"] == facts[3]["bytes"] <= facts[-1]["budget"]
    assert store(6, seed=99)["bytes"] == facts[-1]["bytes"]  # another seed needs nothing new


def test_what_is_kept_of_images_goes_when_no_workflow_uses_the_model_any_more(host):
    """The host drops such a model without a word, and its button frees what is loaded only."""
    alone = graph(store=("FlowcoreTestStore", {}))
    made = graph(probe(fill="noise1", height=16, width=16), store=("FlowcoreTestStore", {"after": "upscale.0"}))
    assert host.outputs(made)["store"]["count"][0] > 0
    assert until(lambda: host.outputs(alone)["store"]["count"] == [0], 30)
    facts = host.outputs(alone)["store"]
    assert (facts["bytes"], facts["compiled"]) == ([0], [0])
