"""Live pictures: the route gives what a run would give, to pages of the server only, and never beside a run."""

import concurrent.futures
import itertools
import shutil

import numpy as np
import pytest
from latent_graphs import DIGITS, explore, working
from talk import SUITING, ask, graph, live, loader, newest, picture, report


def shown(workflow):
    """The workflow, with a picture of what its node makes."""
    return graph(
        workflow,
        decode=("FlowcoreDecode", {"latents": "node.0", "model": "model.0", "snap": True}),
        save=("SaveImage", {"images": "decode.0", "filename_prefix": "live"}),
    )


def styled(**values):
    asked = {"latents": "one.1", "model": "model.0", "bold": 0, "wide": 0, "slanted": 0, "messy": 0} | values
    return working("FlowcoreStyle", DIGITS, samples=(4, 1), labels=("0-2", ""), **asked)


def ran(host, workflow):
    """Run a workflow; the name under which its pictures are asked for."""
    (name,) = host.outputs(workflow)["node"]["flowcore_live"]
    return name


PLACES = itertools.count()


def explored(host):
    """Run the explorer anew, with values that no run had before, and look at a picture of it."""
    run = ran(host, explore(x=next(PLACES) / 1000))
    live(host, run)
    return run


def test_the_explorer_shows_what_a_run_would_give(host, flows):
    run = ran(host, explore(x=0.5, y=0.5))
    for x, y in ((0, 0), (1, 0.3), (0.25, 0.75)):
        (whole,) = host.images(shown(explore(x=x, y=y)))
        assert np.array_equal(live(host, run, x=x, y=y), np.asarray(whole.convert("RGB")))
    assert np.array_equal(live(host, run, x=0.25), live(host, run, x=0.25, y=0.5))  # what is not asked for stays


def test_styles_show_what_a_run_would_give_all_items_in_one_picture(host, flows):
    run = ran(host, styled())
    before, moved = live(host, run), live(host, run, bold=2.5, wide=-1)
    assert not np.array_equal(before, moved)
    digits = [np.asarray(each.convert("RGB")) for each in host.images(shown(styled(bold=2.5, wide=-1)))]
    assert len(digits) == 4
    rows = [np.concatenate(digits[:2], 1), np.concatenate(digits[2:], 1)]
    assert np.array_equal(moved, np.concatenate(rows))


@newest
@pytest.mark.parametrize(
    ("kind", "model", "moved"),
    [
        ("FlowcoreBrighten", "brighten-photos", {"exposure": -1.5}),
        ("FlowcoreColorize", "color-photos", {"vivid": 1.6, "cast": 0.2}),
        ("FlowcoreUpscale", SUITING, {"temperature": 0.9, "calm_edges": 0.1}),
    ],
)
def test_the_second_sample_is_seen_with_other_numbers_as_a_run_would_give_it(host, kind, model, moved):
    asked = {"image": "photo.0", "model": "model.0", "temperature": 0.4, "seed": 4, "samples": 2}
    photo = picture(height=24, width=32, fill="noise")
    story = graph(photo=photo, model=loader(model), node=(kind, asked))
    (run,) = host.run_from_canvas(story)["outputs"]["node"]["flowcore_live"]
    story["node"]["inputs"] |= moved
    story = graph(story, save=("SaveImage", {"images": "node.0", "filename_prefix": "live"}))
    whole = np.asarray(host.images(story)[1].convert("RGB"), dtype=int)
    assert np.abs(whole - live(host, run, number=1, **moved)).max() <= 1


@newest
def test_of_a_large_picture_a_detail_is_enlarged_where_it_is_looked_at(host):
    up = ("FlowcoreUpscale", {"image": "photo.0", "model": "model.0", "temperature": 0, "seed": 4, "factor": 2})
    story = graph(photo=picture(height=80, width=100), model=loader("srflow-x4"), node=up)
    (run,) = host.run_from_canvas(story)["outputs"]["node"]["flowcore_live"]
    shown = live(host, run, at=[0.9, 0.5], temperature=0.5)
    assert shown.shape == (160, 200, 4)
    rows, columns = np.nonzero(shown[..., 3])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 127, 104, 199)


def test_a_run_goes_first_and_gives_what_it_would_have(host, flows):
    run = explored(host)
    sampling = graph(
        model=loader("glow-photos"),
        many=("FlowcoreSample", {"model": "model.0", "samples": 8, "temperature": 0.7, "seed": 9}),
        digest=("FlowcoreTestDigest", {"image": "many.0"}),
    )
    posted = host.queue(sampling)
    answers = []
    while host.get_json(f"/history/{posted}") == {}:
        answers.append(ask(host, {"run": run, "values": {"x": 0.4}})[0])
    assert answers.count(409) > 3
    assert set(answers[:-2]) <= {409}
    disturbed = host.wait(posted)["outputs"]["digest"]["bits"]
    host.forget()
    assert host.outputs(sampling)["digest"]["bits"] == disturbed


def test_the_next_question_stops_the_one_before(host):
    workflow = explore("ab", "glow-photos")
    run = ran(host, workflow)
    live(host, run)
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(ask, host, {"run": run, "values": {"x": k / 12}}) for k in range(12)]
        statuses = [each.result()[0] for each in asked]
    assert set(statuses) == {200, 409}
    assert live(host, run, x=0.5).shape == (64, 64, 3)


@newest
def test_another_loader_of_the_model_may_go(host, flows):
    models = host.server.base / "models" / "flows"
    shutil.copy(models / flows["small-glow"], models / "twin.safetensors")
    workflow = explore("ab", x=next(PLACES) / 1000)
    run = ran(host, workflow)
    twin = ("FlowcoreSample", {"model": "twin.0", "samples": 1, "temperature": 1.0, "seed": 5})
    host.outputs(workflow, twin=loader("twin.safetensors"), also=twin, show=report("also.0"))
    host.outputs(workflow)  # the host drops what this does not need
    live(host, run, x=0.5)


@newest
def test_a_run_counts_all_its_pictures_and_is_not_kept_beyond_the_bound(host, flows):
    def bound(number):
        return host.outputs(kept=("FlowcoreTestLive", {"number": number}))["kept"]

    def upscaled(seed):
        """Run with a guide of 48x64 pixels; bytes of the live pictures' inputs, or nothing if it has none."""
        asked = {"image": "photo.0", "model": "model.0", "temperature": 0.5, "seed": seed, "guide": "guide.0"}
        story = graph(
            photo=picture(height=24, width=32),
            guide=picture(height=48, width=64),
            model=loader(flows["small-srflow"]),
            node=("FlowcoreUpscale", asked),
        )
        return host.run_from_canvas(story)["outputs"]["node"].get("flowcore_live")

    each = 4 * 3 * (24 * 32 + 48 * 64)
    host.forget()
    try:
        assert upscaled(1)
        assert bound(each - 1)["bytes"] == [each]
        assert not upscaled(2)
        bound(2 * each)
        for seed in (3, 4, 5):
            assert upscaled(seed)
        kept = bound(0)
        assert (kept["count"], kept["bytes"]) == ([2], [2 * each])
    finally:
        bound(0)


@newest
def test_no_model_is_loaded_for_a_picture_of_a_run_that_was_freed_or_is_old(host, flows):
    for offloaded in (False, True):
        run = explored(host)
        if offloaded:
            host.run(graph(offload=("FlowcoreTestOffload", {})))
        host.forget()
        first = explored(host)  # the model is there again
        assert ask(host, {"run": run, "values": {"x": 0.3}})[0] == 404
    for _ in range(16):  # newer runs push out older ones
        explored(host)
    assert ask(host, {"run": first, "values": {}})[0] == 404


def test_large_pictures_are_not_shown(host, flows):
    sizes = {"width": 272, "height": 256}
    workflow = explore("ab", flows["free-glow"])
    for node in workflow.values():
        if node["class_type"] == "FlowcoreSample":
            node["inputs"] |= sizes
    assert host.outputs(workflow)["node"]["flowcore_live"] == []


def test_nonsense_is_refused(host, flows):
    run = explored(host)
    for body, status in (
        *((body, 400) for body in (b"", b"{", b"[" * 4000, b"\xff\xfe", b"5", [], {"run": run})),
        ({"run": [run], "values": {}}, 400),
        *(({"run": run, "values": values}, 400) for values in ([0.5], {"x": 0.5, "z": 1}, {"a": 1})),
        *(({"run": run, "values": {"x": x}}, 422) for x in ("0.5", float("nan"), 1e300, None, [[]])),
        *(({"run": other, "values": {}}, 404) for other in ("0123456789abcdef", "../../etc/passwd")),
        ({"run": run, "values": {"x": 0.5}, "more": "y" * 5000}, 413),
    ):
        assert ask(host, body)[0] == status, body
        assert "Traceback" not in host.server.console()[-500:]
        live(host, run)


def test_other_pages_are_refused_and_nothing_is_written(host, flows):
    body = {"run": explored(host), "values": {"x": 0.1}}

    def files():
        return {path for name in ("input", "output", "temp", "models") for path in (host.server.base / name).rglob("*")}

    before = files()
    ours = {"Origin": host.url, "Sec-Fetch-Site": "same-origin"}
    for path in ("/flowcore/live", "/api/flowcore/live"):
        assert ask(host, body, path, **ours)[0] == 200
        assert ask(host, body, path, Origin="http://example.com")[0] == 403
        assert ask(host, body, path, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert ask(host, body, path, **{"Sec-Fetch-Site": "same-site"})[0] == 403  # another port of this machine
    assert files() == before
