"""The numbers that sliders show while they follow the model are those that a run uses, for the picture that it gets."""

import json

import pytest
from talk import SUITING, ask, graph, loader, newest, picture, piece, recipes

import flowcore

pytestmark = newest
CLEAN, DAMAGED = "srflow-x4", "srflow-x4-photo"
FROM_MODEL = -0.1
SHOWN = ("temperature", "calm_edges", "guide_strength", "calm_faces")


def numbers(host, node="FlowcoreUpscale", values=(), **more):
    status, body = ask(host, {"node": node, "values": dict(values)} | more, "/flowcore/numbers")
    assert status == 200, body
    return json.loads(body)


def used(host, photo, model, node="FlowcoreUpscale", /, **values):
    """What the file of a picture says that was used."""
    story = graph(
        photo=photo,
        model=loader(model),
        node=(node, {"image": "photo.0", "model": "model.0", "temperature": FROM_MODEL, "seed": 2} | values),
        save=("SaveImage", {"images": "node.0", "filename_prefix": "numbers"}),
    )
    (data,) = host.pictures(host.run_from_canvas(story))
    (entry,) = recipes(data)
    return entry["settings"] | {"temperature": entry["temperature"]}


@pytest.fixture
def pieces(host):
    """Two pictures of the input folder, by name: a clean one, and one with blocks."""
    names = {CLEAN: "numbers-clean.png", DAMAGED: "numbers-blocks.png"}
    for name, quality in zip(names.values(), (None, 50), strict=True):
        piece(0, quality).save(host.server.base / "input" / name)
    yield names
    for name in names.values():
        (host.server.base / "input" / name).unlink()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"boldness": 0.9, "look": "crisp"},
        {"look": "lively"},
        {"temperature": 0.9, "calm_edges": 0.1},
        {"temperatures": "0.4, 0.8"},
    ],
)
def test_an_upscaler_that_the_picture_chooses_uses_what_was_shown(host, pieces, values):
    for name in pieces.values():
        shown = numbers(host, values=values, model=SUITING, picture=name)
        made = used(host, ("LoadImage", {"image": name}), SUITING, **values)
        followed = [each for each in SHOWN if each not in values]
        followed = followed[1:] if "temperatures" in values else followed  # the first has no effect then
        assert {each: shown[each] for each in followed} == {each: made[each] for each in followed}
        assert shown["factor"] == 4


def test_a_jpeg_is_guided_and_a_clean_picture_less(host, pieces):
    clean, damaged = (numbers(host, model=SUITING, picture=name) for name in pieces.values())
    assert clean["guide_strength"] != damaged["guide_strength"] > 0


def test_a_colorizer_uses_what_was_shown_and_leaves_the_colors_of_a_photograph(host, flows):
    model = flows["small-color"]
    shown = numbers(host, "FlowcoreColorize", model=model)
    made = used(host, picture(height=24, width=32), model, "FlowcoreColorize")
    names = {name for name in shown if name in made} - {"samples"}
    assert {"temperature", "detail", "coherence", "saturation"} <= names
    assert {name: shown[name] for name in names} == {name: made[name] for name in names}
    assert numbers(host, "FlowcoreColorize", model=model, wired=["reference"])["saturation"] == 1


def test_without_a_known_picture_only_what_both_models_share_is_shown_until_a_run_says_which(host):
    alone = [numbers(host, model=model) for model in (CLEAN, DAMAGED)]
    shared = numbers(host, model=SUITING)
    assert shared == {name: value for name, value in alone[0].items() if alone[1].get(name) == value} != alone[0]
    assert numbers(host, model=SUITING, models=[DAMAGED]) == alone[1]
    assert numbers(host, models=[DAMAGED]) == alone[1]  # of Load Flow Recipe
    assert numbers(host) == {}


def test_a_run_names_its_models(host, pieces):
    for model, name in pieces.items():
        story = graph(
            photo=("LoadImage", {"image": name}),
            model=loader(SUITING),
            node=("FlowcoreUpscale", {"image": "photo.0", "model": "model.0", "temperature": 0, "seed": 1}),
        )
        assert host.outputs(story)["node"]["flowcore_models"] == [model]


def test_numbers_in_which_looks_or_a_wire_differ_are_left_out(host):
    one = numbers(host, model=CLEAN)
    every = numbers(host, model=CLEAN, values={"look": "all looks"})
    assert {"temperature", "boldness", "sharpness"} & every.keys() == set()
    assert every["calm_edges"] == one["calm_edges"]
    wired = numbers(host, model=DAMAGED, wired=["temperature"])
    assert {"boldness", "guide_strength"} & wired.keys() == set()


@pytest.mark.parametrize(("look", "boldness"), [("faithful", 0), ("natural", 0.5), ("lively", 2 / 3)])
def test_faithful_to_bold_shows_the_temperature_of_a_look(host, look, boldness):
    flow = flowcore.load(CLEAN)
    usual, boldest = flow.recommended.temperature, flow.recommended.boldest_temperature
    above = (flowcore.looks[look].temperature - 1) * usual / (boldest - usual)
    expected = min(1, 0.5 + above / 2) if above > 0 else boldness
    assert numbers(host, model=CLEAN, values={"look": look})["boldness"] == pytest.approx(expected, abs=1e-4)


def test_malformed_questions_are_refused_and_odd_ones_answered(host):
    for body in (
        None,
        3,
        {},
        {"node": "FlowcoreUpscale"},
        {"node": "LoadImage", "values": {}},
        {"node": [], "values": {}},
    ):
        assert ask(host, body if isinstance(body, dict) else json.dumps(body).encode(), "/flowcore/numbers")[0] == 400
    for value in ("0.3", [1], 1e999, None):
        body = json.dumps({"node": "FlowcoreUpscale", "values": {"temperature": value}, "model": CLEAN}).encode()
        assert ask(host, body, "/flowcore/numbers")[0] == 400
    assert numbers(host, model="../../etc/passwd", picture="../../etc/passwd") == {}
    assert numbers(host, model=3, models=[None, {}]) == {}
    assert numbers(host, model=SUITING, picture="../../etc/passwd") == numbers(host, model=SUITING)
