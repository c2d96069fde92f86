"""Picking: one of several pictures goes on alone, as a click or a script asks, and nothing is made anew."""

import numpy as np
import pytest
from PIL import Image
from small_flows import USED_BY
from talk import graph, loader, newest, opened, picture, recipes, refusal, report, shows, upscale

from flowcore.models.model_file import reconfigure

DRAWN = {"image": "image.0", "temperature": 0.9, "seed": 5, "samples": 3}
ASKED = {
    "FlowcoreUpscale": DRAWN | {"temperature": 0.8},
    "FlowcoreTemperatureGrid": {"image": "image.0", "temperatures": "0.3, 0.8", "seed": 5, "seeds": 2},
    "FlowcoreColorize": DRAWN,
    "FlowcoreBrighten": DRAWN,
    "FlowcoreRestore": {"small": "image.0", "temperature": 0.9, "seed": 5, "samples": 3},
    "FlowcoreSample": {"temperature": 0.7, "seed": 5, "samples": 3},
}
IMAGES = {"FlowcoreTemperatureGrid": 1}  # the output with the pictures, if not the first


def several(flows, kind, **more):
    return graph(
        image=picture(fill="photo", height=8, width=12),
        model=loader(flows[USED_BY.get(kind, "small-glow")]),
        node=(kind, {"model": "model.0"} | ASKED[kind] | more),
        show=report(f"node.{IMAGES.get(kind, 0)}"),
    )


def followed(host, workflow):
    """Run a workflow; its outputs, and how many previews came meanwhile: the host sends each of them."""
    events = []
    outputs = host.run(workflow, events.append)["outputs"]
    return outputs, sum(isinstance(event, bytes) and event[:4] == b"\0\0\0\1" for event in events)


@pytest.mark.parametrize("kind", ASKED)
def test_the_picked_one_goes_on_alone_and_nothing_is_made_anew(host, flows, kind):
    every, previews = followed(host, several(flows, kind))
    count = every["show"]["shape"][0]
    assert count > 2
    made = count + (kind != "FlowcoreSample")  # the pictures, and before them what they are made of
    assert previews == made
    rows = every["show"]["rows"]
    for number in (1, count):
        one, previews = followed(host, several(flows, kind, pick=number))
        assert one["show"]["rows"] == [rows[number - 1]]
        assert one["node"]["flowcore_gallery"] == every["node"]["flowcore_gallery"]  # all stay to choose from
        assert previews == 0
    again, previews = followed(host, several(flows, kind, pick=0))
    assert again["show"]["rows"] == rows
    assert previews == 0
    _, previews = followed(host, several(flows, kind, pick=1, seed=6))
    assert previews == made
    refusal(host, several(flows, kind, pick=count + 1), f"pick is {count + 1}", f"1 to {count}")


def test_frames_are_numbered_and_a_script_may_still_pick_one(host, flows):
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.5, "seed": 5, "steadiness": 0}
    film = graph(
        image=picture(fill="photo", batch=3, height=8, width=12),
        model=loader(flows["small-srflow"]),
        video=("FlowcoreUpscaleVideo", asked),
        colors=("FlowcoreColorize", ASKED["FlowcoreColorize"] | {"model": "color.0", "frames": "video", "samples": 1}),
        color=loader(flows["small-color"]),
        show=report("video.0"),
    )
    every = host.outputs(film)
    for node in ("video", "colors"):
        shown = every[node]["flowcore_gallery"]
        assert [(entry["frame"], entry["number"], "seed" in entry) for entry in shown] == [
            (number, number, False) for number in (1, 2, 3)
        ]
    film["video"]["inputs"]["pick"] = 2
    assert host.outputs(film)["show"]["rows"] == every["show"]["rows"][1:2]


def test_pictures_that_fill_the_memory_are_not_kept_and_a_pick_makes_them_anew(host, flows):
    def believe(free):
        return host.outputs(kept=("FlowcoreTestFree", {"number": free}))["kept"]["bytes"][0]

    workflow = several(flows, "FlowcoreUpscale", seed=71)
    try:
        believe(10_000)
        every, previews = followed(host, workflow)
        assert believe(10**10) == 0
        one, again = followed(host, several(flows, "FlowcoreUpscale", seed=71, pick=2))
        assert one["show"]["rows"] == every["show"]["rows"][1:2]
        assert again == previews > 0
        assert believe(10**10) > 0
    finally:
        believe(0)


@newest
def test_what_a_file_states_anew_makes_new_pictures(host, flows):
    """The weights are the same, and so are all widgets: they follow the file."""
    for kind, stated in (
        *((f"Flowcore{kind}", {"temperature": 0.2}) for kind in ("Upscale", "TemperatureGrid", "Restore")),
        *(("FlowcoreColorize", stated) for stated in ({"saturation": 3}, {"coherence": 1})),
    ):
        file = host.server.base / "models" / "flows" / flows[USED_BY[kind]]
        asked = {"temperatures": "-0.1, 0.8"} if kind == "FlowcoreTemperatureGrid" else {"temperature": -0.1}
        before, content = host.outputs(several(flows, kind, **asked)), file.read_bytes()
        try:
            reconfigure(file, file, stated)
            after = host.outputs(several(flows, kind, **asked))
        finally:
            file.write_bytes(content)
        assert after["show"]["rows"] != before["show"]["rows"], (kind, stated)
        assert host.outputs(several(flows, kind, **asked))["show"]["rows"] == before["show"]["rows"]


def test_a_node_with_a_gallery_runs_alone(host, flows):
    alone = several(flows, "FlowcoreUpscale")
    del alone["show"]
    assert len(host.outputs(alone)["node"]["flowcore_gallery"]) > 2


def test_the_canvas_gets_what_a_run_was_sent_with(host, flows):
    """Of the node and all before it, so that a pick of this run brings it back; scripts get none of it."""
    workflow = several(flows, "FlowcoreUpscale", seed=81, pick=2)
    (sent,) = host.run_from_canvas(workflow)["outputs"]["node"]["flowcore_sent"]
    assert set(sent) == {"node", "image", "model"}
    node = {name: value for name, value in workflow["node"]["inputs"].items() if not isinstance(value, list)}
    assert sent["node"] == {"class_type": "FlowcoreUpscale", "inputs": {k: v for k, v in node.items() if k != "pick"}}
    assert sent["model"]["inputs"] == workflow["model"]["inputs"]
    assert "flowcore_sent" not in host.outputs(several(flows, "FlowcoreUpscale", seed=81))["node"]


def test_what_belongs_to_the_picked_one_goes_on_with_it(host, flows):
    outputs = host.outputs(several(flows, "FlowcoreTemperatureGrid", pick=3), **shows(tau="node.2", seed="node.3"))
    assert (outputs["tau"]["text"], outputs["seed"]["text"]) == (["0.8"], ["5"])
    entry = outputs["node"]["flowcore_gallery"][2]
    assert (entry["temperature"], entry["seed"], entry["number"], entry["rows"]) == (0.8, 5, 3, 2)

    sample = several(flows, "FlowcoreSample", pick=2)
    decode = ("FlowcoreDecode", {"latents": "node.1", "model": "model.0"})
    outputs = host.outputs(sample, decode=decode, decoded=report("decode.0"))
    assert outputs["decoded"]["shape"] == outputs["show"]["shape"]
    assert np.abs(np.array(outputs["decoded"]["rows"]) - np.array(outputs["show"]["rows"])).max() < 0.2  # not snapped

    numbers = []
    for pick in (0, 1, 2, 3):
        upscale = graph(several(flows, "FlowcoreUpscale", pick=pick), **shows(number="node.1"))
        numbers.append(float(host.outputs(upscale)["number"]["text"][0]))
    assert numbers[0] == min(numbers[1:])
    assert len(set(numbers[1:])) == 3


def test_a_saved_pick_says_its_seed(host, flows):
    save = ("SaveImage", {"images": "node.0", "filename_prefix": "pick"})
    workflow = graph(several(flows, "FlowcoreUpscale", pick=2), save=save)
    (data,) = host.pictures(host.run_from_canvas(workflow))
    (entry,) = recipes(data)
    assert (entry["seed"], entry["samples"], len(entry["pictures"])) == (5, 3, 3)
    alone = graph(several(flows, "FlowcoreUpscale", seed=6, samples=1), save=save)
    (other,) = host.pictures(host.run(alone))
    assert np.array_equal(*map(np.asarray, map(opened, (data, other))))


def test_the_best_are_named_by_the_seeds_that_made_them(host, flows):
    asked = {"images": "node.0", "source": "image.0", "by": "consistency", "keep": 2}
    workflow = graph(several(flows, "FlowcoreUpscale"), best=("FlowcoreBestOf", asked), kept=report("best.0"))
    outputs = host.outputs(workflow)
    seeds = [5 + number for number in outputs["best"]["order"]]
    entries = outputs["best"]["flowcore_gallery"]
    assert [entry["seed"] for entry in entries] == seeds
    level, best, _, *lines = outputs["best"]["text"]
    assert lines == [f"seed {seed}: {entry['score']} dB" for seed, entry in zip(seeds, entries, strict=True)]
    assert best == "The 2 best of 3, by consistency."
    assert level.startswith("The samples are level: their consistency differs by")
    workflow["best"]["inputs"]["pick"] = 2
    assert host.outputs(workflow)["kept"]["rows"] == outputs["kept"]["rows"][1:]
    # Of pictures of another node nothing is known but their numbers.
    workflow["best"]["inputs"] |= {"images": "noise.0", "pick": 0}
    outputs = host.outputs(workflow, noise=picture(fill="noise", batch=3, height=16, width=24))["best"]
    assert [entry["image"] for entry in outputs["flowcore_gallery"]] == outputs["order"]
    assert outputs["text"][2].startswith(f"image {outputs['order'][0]}: ")


def test_the_canvas_gets_all_pixels_and_the_source_and_scripts_get_no_files(host, flows):
    plain = several(flows, "FlowcoreUpscale", seed=61)
    assert not {"full", "source"} & set(host.outputs(plain)["node"]["flowcore_gallery"][0])
    workflow = several(flows, "FlowcoreUpscale", seed=62)
    outputs = host.run_from_canvas(workflow)["outputs"]
    rows = np.array(outputs["show"]["rows"]).reshape(outputs["show"]["shape"])
    for made, entry in zip(rows, outputs["node"]["flowcore_gallery"], strict=True):
        assert np.abs(np.asarray(opened(host.view(**entry["full"])), float) - 255 * made).max() <= 1
        assert np.asarray(opened(host.view(**entry["source"]))).shape == (8, 12, 3)


def test_freed_memory_is_free_of_pictures_also_of_a_model_that_was_offloaded_before(host, flows):
    for seed in (71, 72):
        previews = []
        for pick in (0, 1, 2):
            previews.append(followed(host, several(flows, "FlowcoreSample", seed=seed, pick=pick))[1])
            if seed == 72:
                host.run(graph(offload=("FlowcoreTestOffload", {})))
            if pick == 1:
                host.forget()
        assert previews == [3, 0, 3]


def test_large_pictures_are_shrunk(host):
    host.put("wide.png", Image.new("RGB", (700, 90), (200, 100, 50)))
    outputs = host.outputs(
        photo=("LoadImage", {"image": "wide.png"}),
        model=loader("color-photos"),
        color=("FlowcoreColorize", {"image": "photo.0", "model": "model.0", "temperature": 0.9, "seed": 3}),
        show=("PreviewImage", {"images": "color.0"}),
    )
    (entry,) = outputs["color"]["flowcore_gallery"]
    assert entry["seed"] == 3
    assert opened(host.view(**{key: entry[key] for key in ("filename", "subfolder", "type")})).size == (256, 33)


def test_a_gallery_that_cannot_be_saved_does_not_fail_the_run(host, photo):
    folder = host.server.base / "temp" / "flowcore"
    moved = folder.with_name("aside")
    host.forget()
    if folder.exists():
        folder.rename(moved)
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("no folder")
    try:
        outputs = host.outputs(upscale(photo=photo, seed=91))
    finally:
        folder.unlink()
        if moved.exists():
            moved.rename(folder)
    assert outputs["upscale"]["flowcore_gallery"] == []
    assert outputs["save"]["images"]
    assert "The gallery on the node is not shown" in host.server.console()
