"""The nodes that choose among samples, over the API: what they make, what they say, what they refuse."""

import numpy as np
import pytest
from talk import array, graph, loader, newest, opened, picture, refusal, report, shows

pytestmark = newest
PHOTO = picture(fill="photo", height=8, width=12)


def enlarged(flows, samples=3, image=PHOTO, **more):
    asked = {"image": "image.0", "model": "model.0", "temperature": 0.8, "seed": 5, "samples": samples} | more
    return {"image": image, "model": loader(flows["small-srflow"]), "up": ("FlowcoreUpscale", asked)}


def grid(flows, **more):
    asked = {"image": "image.0", "model": "model.0", "temperatures": "0, 0.8", "seed": 5, "seeds": 3}
    return enlarged(flows) | {"grid": ("FlowcoreTemperatureGrid", asked | more)}


def test_the_grid_is_every_temperature_with_every_seed(host, flows):
    reports = shows(taus="grid.2", seeds="grid.3") | {"show": report("grid.1"), "single": report("up.0")}
    outputs = host.outputs(**grid(flows), **reports)
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
    sheet, _ = (array(opened(data).convert("RGB")) for data in host.pictures(entry))
    assert (sheet < 0.5).all(2)[:12].any()  # labels above


def test_invalid_temperatures_of_a_grid_raise_a_readable_error(host, flows):
    for text in ("", "warm", "0.5, -1", "nan", ", ".join(["0.5"] * 65)):
        refusal(host, graph(**grid(flows, temperatures=text), show=report("grid.0")), "emperature")


def curve(**inputs):
    asked = {"fine": 0.2, "coarse": 1.0, "levels": 3} | inputs
    return graph(curve=("FlowcoreTemperatureCurve", asked), **shows(text="curve.0"))


CURVES = [
    ({}, "0.2, 0.6, 1"),
    ({"levels": 1}, "0.2"),
    ({"fine": 1.0, "coarse": 0.0, "levels": 2}, "1, 0"),
    ({"curve": {"points": [[0, 0], [0.5, 1], [1, 1]], "interpolation": "linear"}}, "0.2, 1, 1"),
    ({"curve": {"points": [[0, 1], [1, 0]], "interpolation": "linear"}}, "1, 0.6, 0.2"),
    ({"curve": {"__value__": [[0, 0.5], [1, 0.5]]}}, "0.6, 0.6, 0.6"),  # a list, as the canvas sends it
]


def test_a_curve_leads_from_fine_to_coarse(host):
    for inputs, text in CURVES:
        assert host.outputs(curve(**inputs))["text"]["text"] == [text]
    for value in ("up", 7, {"points": "x"}, {"points": [[0, "high"]]}, {}, {"points": [[0, 1e9]]}):
        refusal(host, curve(curve=value), "curve must")


def test_a_curve_goes_into_the_upscaler(host, flows):
    drawn, typed = (enlarged(flows, temperatures=text) | {"show": report("up.0")} for text in ("curve.0", "0.3"))
    drawn["curve"] = ("FlowcoreTemperatureCurve", {"fine": 0.3, "coarse": 0.7, "levels": 1})
    rows = [host.outputs(**workflow)["show"]["rows"] for workflow in (drawn, typed)]
    assert rows[0] == rows[1]
    drawn["curve"][1]["levels"] = 5
    refusal(host, graph(**drawn), "1 levels of latents; got 5")


def mapped(flows, made, samples, gain=1.0, batch=1):
    workflow = enlarged(flows, samples=made, image=picture(fill="photo", height=6, width=8, batch=batch))
    asked = {"images": "up.0", "samples": samples, "gain": gain}
    shown = {"show": report("map.0"), "as_image": ("MaskToImage", {"mask": "map.1"}), "masked": report("as_image.0")}
    return graph(**workflow, map=("FlowcoreDiversityMap", asked), **shown)


def test_maps_of_a_batch_and_their_gain(host, flows):
    two, one, dark = (
        host.outputs(mapped(flows, 2, samples, gain, batch=2)) for samples, gain in ((2, 1.0), (0, 1.0), (2, 0.0))
    )
    assert (two["show"]["shape"], one["show"]["shape"]) == ([2, 12, 16, 3], [1, 12, 16, 3])
    assert two["masked"]["shape"] == [2, 12, 16, 3]
    assert two["masked"]["range"][1] > 0
    assert two["map"]["each"][0] == pytest.approx(two["map"]["each"][1])  # twice the same image
    assert dark["map"]["mean"] == two["map"]["mean"]
    assert dark["show"]["range"][1] < two["show"]["range"][1]
    assert 0 < two["map"]["mean"][0] < 255
    assert "average" in two["map"]["text"][0]


def best(flows, **more):
    workflow = enlarged(flows, samples=4, image=picture(fill="photo", height=8, width=12, batch=2))
    asked = {"images": "up.0", "source": "image.0", "by": "consistency", "keep": 2} | more
    return workflow | {"best": ("FlowcoreBestOf", asked), "all": report("up.0"), "show": report("best.0")}


def best_coloring(flows, **more):
    coloring = {"image": "image.0", "model": "model.0", "temperature": 0.9, "seed": 5, "samples": 4}
    return best(flows, **{"by": "consensus"} | more) | {
        "image": picture(fill="photo", height=16, width=24, batch=2),
        "model": loader(flows["small-color"]),
        "up": ("FlowcoreColorize", coloring),
    }


def test_the_best_of_every_source_come_first_with_their_scores_and_numbers(host, flows):
    for made, by, sign in (
        (best, "consistency", -1),
        (best, "likelihood", 1),
        (best_coloring, "consensus", 1),
        (best_coloring, "likelihood", 1),
    ):
        outputs = host.outputs(**made(flows, by=by, model="model.0"), **shows(scores="best.1", order="best.2"))
        every, order = outputs["best"]["scores"], outputs["best"]["order"]
        assert len(every) == 8
        assert len(set(every[:4])) == 4
        firsts = [sorted(range(first, first + 4), key=lambda k, x=every, s=sign: s * x[k])[:2] for first in (0, 4)]
        assert order == [k for first in firsts for k in first]
        assert [float(x) for x in outputs["scores"]["text"]] == pytest.approx([every[k] for k in order])
        assert [int(x) for x in outputs["order"]["text"]] == order
        assert outputs["show"]["rows"] == [outputs["all"]["rows"][k] for k in order]
        assert sign == 1 or max(every) <= 100


def test_a_ranking_of_colorings_as_enlargements_gets_a_note(host, flows):
    outputs = host.outputs(**best_coloring(flows, by="consistency"))
    assert "Choose consensus for colorings" in " ".join(outputs["best"]["text"])
    assert host.outputs(**best(flows, keep=64))["show"]["shape"] == [8, 16, 24, 3]
    refusal(host, graph(**best(flows, by="likelihood")), "likelihood needs the model")


def test_matched_images_are_their_source_again(host):
    """Of any upscaler: here the host's own, which shifts colors a little."""
    scale = {"upscale_method": "nearest-exact", "width": 50, "height": 27, "crop": "disabled"}
    outputs = host.outputs(
        image=PHOTO,
        up=("ImageScale", {"image": "image.0"} | scale),
        match=("FlowcoreMatchSource", {"images": "up.0", "source": "image.0"}),
        show=report("match.0"),
        **shows(number="match.1"),
    )
    assert outputs["show"]["shape"] == [1, 27, 50, 3]
    assert outputs["match"]["consistency"][0] >= 60
    assert outputs["match"]["before"][0] <= outputs["match"]["consistency"][0]
    assert float(outputs["number"]["text"][0]) == outputs["match"]["consistency"][0]
