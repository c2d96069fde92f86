"""The nodes that choose among samples, over the API: what they make, what they say, what they refuse."""

from __future__ import annotations

import io

import numpy as np
import pytest
from client import RunError
from PIL import Image
from talk import graph, newer, picture


def array(image):
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def enlarged(flows, samples=3, **more):
    """A picture of the probe pack, and enlargements of it."""
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.8, "seed": 5, "samples": samples} | more
    return {
        "image": picture(fill="photo", height=8, width=12),
        "model": ("FlowcoreLoadModel", {"model_name": flows["small-srflow"]}),
        "up": ("FlowcoreUpscale", asked),
    }


def shows(**wires):
    """A node of the host per wire, which puts its value into the history."""
    return {name: ("PreviewAny", {"source": wire}) for name, wire in wires.items()}


def report(wire):
    return "FlowcoreTestReport", {"image": wire}


def refused(host, workflow, words):
    with pytest.raises(RunError, match=words):
        host.run(graph(**workflow))


# ---------------------------------------------------------------------------------------------------------------------
# Flow Temperature Grid


def grid(flows, **more):
    asked = {"image": "image.0", "model": "model.0", "temperatures": "0, 0.8", "seed": 5, "seeds": 3}
    return enlarged(flows) | {"grid": ("FlowcoreTemperatureGrid", asked | more)}


def test_the_grid_is_every_temperature_with_every_seed(host, flows):
    reports = shows(taus="grid.2", seeds="grid.3") | {"show": report("grid.1"), "single": report("up.0")}
    outputs = host.run(graph(**grid(flows), **reports))["outputs"]
    assert (outputs["grid"]["temperatures"], outputs["grid"]["seeds"]) == ([0, 0.8], [5, 6, 7])
    assert [float(x) for x in outputs["taus"]["text"]] == [0, 0, 0, 0.8, 0.8, 0.8]
    assert [int(x) for x in outputs["seeds"]["text"]] == [5, 6, 7] * 2
    assert outputs["show"]["shape"] == [6, 16, 24, 3]
    rows = np.array(outputs["show"]["rows"])
    assert np.array_equal(rows[0], rows[1])  # at temperature 0 seeds make no difference
    assert np.array_equal(rows[0], rows[2])
    assert np.abs(rows[3:] - np.array(outputs["single"]["rows"])).max() < 1e-4


def test_each_image_has_a_labeled_sheet_and_seeds_wrap_around(host, flows):
    workflow = grid(flows, seed=2**64 - 1) | {"image": picture(fill="photo", height=8, width=12, batch=2)}
    save = ("SaveImage", {"images": "grid.0", "filename_prefix": "sheet"})
    entry = host.run(graph(**workflow, many=report("grid.1"), save=save))
    assert entry["outputs"]["grid"]["seeds"] == [2**64 - 1, 0, 1]
    assert entry["outputs"]["many"]["shape"] == [12, 16, 24, 3]
    sheet, _ = (Image.open(io.BytesIO(data)) for data in host.pictures(entry))
    values = array(sheet)
    assert sheet.width > 2 * 48
    assert sheet.height > 3 * 16
    dark = (values < 0.5).all(2)
    assert dark[:12].any()  # labels above
    assert dark[20:, :20].any()  # and on the left
    assert (values[:, -3:] > 0.98).all()  # no label runs out of the sheet
    assert (values[-3:] > 0.98).all()


@pytest.mark.parametrize("temperatures", ["", "warm", "0.5, -1", "nan", ", ".join(["0.5"] * 65)])
def test_invalid_temperatures_of_a_grid_raise_a_readable_error(host, flows, temperatures):
    refused(host, grid(flows, temperatures=temperatures) | {"show": report("grid.0")}, r"(?i)temperature")


# ---------------------------------------------------------------------------------------------------------------------
# Flow Temperature Curve


def curve(**inputs):
    asked = {"fine": 0.2, "coarse": 1.0, "levels": 3} | inputs
    return graph(curve=("FlowcoreTemperatureCurve", asked), **shows(text="curve.0"))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "0.2, 0.6, 1"),
        ({"levels": 1}, "0.2"),
        ({"fine": 1.0, "coarse": 0.0, "levels": 2}, "1, 0"),
        ({"curve": {"points": [[0, 0], [0.5, 1], [1, 1]], "interpolation": "linear"}}, "0.2, 1, 1"),
        ({"curve": {"points": [[0, 1], [1, 0]], "interpolation": "linear"}}, "1, 0.6, 0.2"),
        ({"curve": {"__value__": [[0, 0.5], [1, 0.5]]}}, "0.6, 0.6, 0.6"),  # a list, as the canvas sends it
    ],
)
def test_a_curve_leads_from_fine_to_coarse(host, inputs, text):
    if "curve" in inputs and not newer(host.version, "0.16.0"):
        pytest.skip("this host has no curves")
    assert host.run(curve(**inputs))["outputs"]["text"]["text"] == [text]


@pytest.mark.parametrize("value", ["up", 7, {"points": "x"}, {"points": [[0, "high"]]}, {}, {"points": [[0, 1e9]]}])
def test_invalid_curves_raise_a_readable_error(host, value):
    if not newer(host.version, "0.16.0"):
        pytest.skip("this host has no curves")
    with pytest.raises(RunError, match="curve must"):
        host.run(curve(curve=value))


def test_a_curve_goes_into_the_upscaler(host, flows):
    drawn, typed = (enlarged(flows, temperatures=text) | {"show": report("up.0")} for text in ("curve.0", "0.3"))
    drawn["curve"] = ("FlowcoreTemperatureCurve", {"fine": 0.3, "coarse": 0.7, "levels": 1})
    rows = [host.run(graph(**workflow))["outputs"]["show"]["rows"] for workflow in (drawn, typed)]
    assert rows[0] == rows[1]
    drawn["curve"][1]["levels"] = 5
    refused(host, drawn, "1 levels of latents; got 5")


# ---------------------------------------------------------------------------------------------------------------------
# Flow Diversity Map


def test_the_map_is_bright_where_samples_differ(host, flows):
    halves = {"destination": "black.0", "source": "white.0", "x": 0, "y": 0, "operation": "add"}  # white on the left
    workflow = enlarged(flows, samples=4, mask="mask.0", outside=0.0, temperature=1.0) | {
        "mask": ("MaskComposite", halves),
        "black": ("SolidMask", {"value": 0.0, "width": 64, "height": 16}),
        "white": ("SolidMask", {"value": 1.0, "width": 32, "height": 16}),
        "image": picture(fill="photo", height=12, width=48),
        "map": ("FlowcoreDiversityMap", {"images": "up.0", "samples": 0, "gain": 4.0}),
        "show": report("map.0"),
        "as_image": ("MaskToImage", {"mask": "map.1"}),
        "masked": report("as_image.0"),
    }
    outputs = host.run(graph(**workflow))["outputs"]
    ui, shown, masked = (outputs[name] for name in ("map", "show", "masked"))
    assert shown["shape"] == [1, 24, 96, 3]
    mask = np.array(masked["rows"]).reshape(24, 96, 3)[..., 0]
    assert mask[:, :28].mean() > 0.2
    assert mask[:, 68:].max() < 0.02
    brightness = np.array(shown["rows"]).reshape(24, 96, 3).sum(2)
    assert brightness[:, :28].mean() > 5 * brightness[:, 68:].mean()
    assert 0 < ui["mean"][0] < 255
    assert "average" in ui["text"][0]


def test_maps_of_a_batch_and_their_gain(host, flows):
    def shown(samples, gain):
        workflow = enlarged(flows, samples=2) | {
            "map": ("FlowcoreDiversityMap", {"images": "up.0", "samples": samples, "gain": gain}),
            "show": report("map.0"),
        }
        workflow["image"] = picture(fill="photo", height=6, width=8, batch=2)
        outputs = host.run(graph(**workflow))["outputs"]
        return outputs["map"], outputs["show"]

    two, bright = shown(2, 1.0)
    assert bright["shape"] == [2, 12, 16, 3]
    assert two["each"][0] == pytest.approx(two["each"][1])  # twice the same image
    none, dark = shown(2, 0.0)
    assert none["mean"] == two["mean"]
    assert dark["range"][1] < bright["range"][1]
    assert shown(0, 1.0)[1]["shape"][0] == 1


@pytest.mark.parametrize(("made", "samples"), [(1, 0), (3, 2), (3, 1), (2, 4)])
def test_too_few_samples_for_a_map_raise_a_readable_error(host, flows, made, samples):
    workflow = enlarged(flows, samples=made)
    workflow["map"] = ("FlowcoreDiversityMap", {"images": "up.0", "samples": samples, "gain": 1.0})
    refused(host, workflow | {"show": report("map.0")}, "at least 2 samples")


# ---------------------------------------------------------------------------------------------------------------------
# Flow Best Of


def best(flows, samples=4, batch=1, **more):
    workflow = enlarged(flows, samples=samples)
    workflow["image"] = picture(fill="photo", height=8, width=12, batch=batch)
    asked = {"images": "up.0", "source": "image.0", "by": "consistency", "keep": 2} | more
    return workflow | {"best": ("FlowcoreBestOf", asked), "all": report("up.0"), "show": report("best.0")}


@pytest.mark.parametrize("by", ["consistency", "likelihood"])
def test_the_best_come_first_with_their_scores_and_numbers(host, flows, by):
    workflow = best(flows, by=by, model="model.0") | shows(scores="best.1", order="best.2")
    outputs = host.run(graph(**workflow))["outputs"]
    every, order = outputs["best"]["scores"], outputs["best"]["order"]
    sign = -1 if by == "consistency" else 1
    assert len(every) == 4
    assert order == sorted(range(4), key=lambda k: sign * every[k])[:2]
    assert [float(x) for x in outputs["scores"]["text"]] == pytest.approx([every[k] for k in order])
    assert [int(x) for x in outputs["order"]["text"]] == order
    rows = outputs["all"]["rows"]
    assert outputs["show"]["rows"] == [rows[k] for k in order]
    if by == "consistency":
        assert max(every) <= 100


def test_every_source_has_its_own_best(host, flows):
    outputs = host.run(graph(**best(flows, samples=3, batch=2, keep=64)))["outputs"]
    order = outputs["best"]["order"]
    assert sorted(order[:3]) == [0, 1, 2]
    assert sorted(order[3:]) == [3, 4, 5]
    assert outputs["show"]["shape"] == [6, 16, 24, 3]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"by": "likelihood"}, "likelihood needs the model"),
        ({"by": "likelihood", "model": "other.0"}, "got a glow model"),
        ({"by": "likelihood", "model": "model.0", "source": "small.0"}, "2 times as large"),
        ({"source": "three.0"}, "4 images for 3 sources"),
    ],
)
def test_invalid_rankings_raise_a_readable_error(host, flows, more, words):
    others = {
        "other": ("FlowcoreLoadModel", {"model_name": flows["small-glow"]}),
        "small": picture(fill="photo", height=4, width=6),
        "three": picture(fill="photo", height=8, width=12, batch=3),
    }
    refused(host, best(flows, **more) | others, words)


def best_coloring(flows, **more):
    asked = {"images": "color.0", "source": "image.0", "by": "consensus", "keep": 2} | more
    coloring = {"image": "image.0", "model": "model.0", "temperature": 0.9, "seed": 5, "samples": 4}
    return {
        "image": picture(fill="photo", height=16, width=24, batch=2),
        "model": ("FlowcoreLoadModel", {"model_name": flows["small-color"]}),
        "color": ("FlowcoreColorize", coloring),
        "best": ("FlowcoreBestOf", asked),
        "all": report("color.0"),
        "show": report("best.0"),
    }


@pytest.mark.parametrize("by", ["consensus", "likelihood"])
def test_the_most_plausible_colorings_come_first(host, flows, by):
    outputs = host.run(graph(**best_coloring(flows, by=by, model="model.0")))["outputs"]
    every, order = outputs["best"]["scores"], outputs["best"]["order"]
    assert len(every) == 8
    assert order == [k for start in (0, 4) for k in sorted(range(start, start + 4), key=lambda k: every[k])[:2]]
    assert outputs["show"]["rows"] == [outputs["all"]["rows"][k] for k in order]
    assert len(set(every[:4])) == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [({"by": "likelihood"}, "needs the model"), ({"source": "small.0"}, "own size")],
)
def test_invalid_choices_of_colorings_raise_a_readable_error(host, flows, more, words):
    workflow = best_coloring(flows, **more) | {"small": picture(fill="photo", height=8, width=12, batch=2)}
    refused(host, workflow, words)


def test_colorings_sorted_by_consistency_get_a_note(host, flows):
    outputs = host.run(graph(**best_coloring(flows, by="consistency")))["outputs"]
    assert "Choose consensus for colorings" in " ".join(outputs["best"]["text"])


# ---------------------------------------------------------------------------------------------------------------------
# Flow Match Source


@pytest.mark.parametrize("size", [(32, 48), (27, 50), (8, 12)])
def test_matched_images_are_their_source_again(host, size):
    """Of any upscaler: here the host's own, which shifts colors a little."""
    height, width = size
    scale = {"upscale_method": "nearest-exact", "width": width, "height": height, "crop": "disabled"}
    workflow = graph(
        image=picture(fill="photo", height=8, width=12),
        up=("ImageScale", {"image": "image.0"} | scale),
        match=("FlowcoreMatchSource", {"images": "up.0", "source": "image.0"}),
        show=report("match.0"),
        **shows(number="match.1"),
    )
    outputs = host.run(workflow)["outputs"]
    assert outputs["show"]["shape"] == [1, *size, 3]
    assert outputs["match"]["consistency"][0] >= 60
    assert outputs["match"]["before"][0] <= outputs["match"]["consistency"][0]
    assert float(outputs["number"]["text"][0]) == outputs["match"]["consistency"][0]


def test_images_that_cannot_be_matched_get_a_note_or_a_readable_error(host):
    workflow = graph(
        image=picture(fill="photo", height=8, width=12),
        noise=picture(fill="noise", height=4, width=4),
        big=picture(fill="noise1", height=8, width=8),
        match=("FlowcoreMatchSource", {"images": "big.0", "source": "noise.0"}),
        show=report("match.0"),
    )
    assert "dB" in " ".join(host.run(workflow)["outputs"]["match"]["text"])
    workflow["match"]["inputs"] = {"images": ["noise", 0], "source": ["image", 0]}
    with pytest.raises(RunError, match="at least as large as the source; got 4x4 for a source of 12x8"):
        host.run(workflow)
