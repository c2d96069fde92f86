"""The nodes between Encode and Decode over the API: the numbers are those of Python, and files come back."""

import shutil

import pytest
import torch
from latent_graphs import DIGITS, GLOW, encoding, explore, sampling, tensors, working
from small_flows import flow
from talk import graph, loader, newest, noise, options, picture, pixels, refusal, report

from flowcore.flows import latents as material
from flowcore.flows.prior import sample_latents
from flowcore.images.color import luma
from flowcore.models.identity import model_sha256
from flowcore.models.latents_file import load_latents, save_latents
from flowcore.tasks.sample import encode
from flowcore.tasks.styles import apply_style

pytestmark = newest


def drawn(count, seed, temperature=1.0, model="small-glow"):
    made = flow(model)
    return sample_latents(made.latent_shapes(*made.image_size), count, temperature, seed)


def walk(samples=(1, 1), model=GLOW, other=None, labels=("", ""), **values):
    asked = {"a": "one.1", "b": "two.1", "frames": 5, "mode": "slerp"} | values
    return working(WALK, model, other, samples, labels, **asked)


def levels(host, workflow):
    return tensors(host.outputs(workflow)["report"])


def same(ours, known, within=0.0):
    assert len(ours) == len(known)
    for z, expected in zip(ours, known, strict=True):
        assert z.shape == expected.shape
        assert (z - expected).abs().max() <= within


def test_frames_of_the_first_pair_come_first(host, flows):
    a, b = drawn(2, 10), drawn(2, 20)
    for count, items in ((2, [0, 1]), (1, [0, 0])):
        frames = levels(host, walk(samples=(count, 2), frames=3))
        same([z[[0, 3]] for z in frames], [z[items] for z in a])
        same([z[[2, 5]] for z in frames], b)


def test_frames_show_the_label_of_the_nearer_end(host, flows):
    outputs = host.outputs(walk(model=DIGITS, samples=(2, 2), labels=("0, 1", "2, 1"), frames=4))
    assert outputs["report"]["labels"] == [0, 0, 2, 2, 1, 1, 1, 1]
    assert "different labels" in outputs["node"]["text"][0]
    outputs = host.outputs(walk(model=DIGITS, labels=("1", "1"), frames=2))
    assert outputs["report"]["labels"] == [1, 1]
    assert "node" not in outputs


def test_small_images_fade_along_a_walk_of_an_upscaler(host, flows):
    encode = {"model": "model.0", "dequantize": "off"}
    outputs = host.outputs(
        model=loader(flows["small-srflow"]),
        first=picture(fill="noise", height=16, width=12),
        second=picture(fill="noise1", height=16, width=12),
        a=("FlowcoreEncode", encode | {"image": "first.0"}),
        b=("FlowcoreEncode", encode | {"image": "second.0"}),
        walk=("FlowcoreInterpolate", {"a": "a.0", "b": "b.0", "frames": 3, "mode": "linear"}),
        report=("FlowcoreTestLatents", {"latents": "walk.0"}),
        decode=("FlowcoreDecode", {"latents": "walk.0", "model": "model.0"}),
        images=report("decode.0"),
    )
    source, images = torch.tensor(outputs["report"]["source"]), pixels(outputs["images"])
    assert (source[1] - (source[0] + source[2]) / 2).abs().max() < 1e-6
    assert (images[0] - noise(1, 3, 16, 12)).abs().max() < 1e-4
    assert (images[2] - noise(1, 3, 16, 12, number=1)).abs().max() < 1e-4


MIX, VARY, NORMALIZE, SCALE = (f"Flowcore{name}Latents" for name in ("Mix", "Vary", "Normalize", "Scale"))
WALK = "FlowcoreInterpolate"
TWO = {"a": "one.1", "b": "two.1"}
ONE = {"latents": "one.1"}
MIXED = TWO | {"coarse": 0.3, "fine": 0.6}
VARIED = ONE | {"seed": 33, "strength": 0.3}
NORMALIZED = ONE | {"strength": 0.7, "window": 5}
OTHER = {"other": "other-glow.safetensors"}
DIFFER = [f"made with {GLOW}", "with other-glow.safetensors"]
WALKED = TWO | {"frames": 5, "mode": "slerp"}
AHEAD = ([0, 0], [0, 0.5], [0, 1], [0.5, 1], [1, 1])  # the deepest arrives before the finest sets out


def walked(*positions, **options):
    """A function that makes the frames of a walk at positions, or at one per level."""
    return lambda a, b: [
        torch.cat(level) for level in zip(*(material.interpolate(a, b, t, **options) for t in positions), strict=True)
    ]


@pytest.mark.parametrize(
    ("node", "values", "expected"),
    [
        *(
            (WALK, WALKED | {"mode": mode}, walked(0, 0.25, 0.5, 0.75, 1, mode=mode))
            for mode in ("slerp", "linear", "norm")
        ),
        (WALK, WALKED | {"frames": 3, "loop": True}, walked(0, 0.5, 1, 0.5)),
        (WALK, WALKED | {"coarse_first": 1.0}, walked(*AHEAD)),
        (WALK, WALKED | {"coarse_first": 0.5, "frames": 3}, walked([0, 0], [1 / 3, 2 / 3], [1, 1])),
        (MIX, MIXED, lambda a, b: material.mix_levels(a, b, weights=[0.6, 0.3])),
        (MIX, MIXED | {"levels": "0; 0.5"}, lambda a, b: material.mix_levels(a, b, weights=[0, 0.5])),
        (VARY, VARIED, lambda a, b: material.vary(a, 33, 0.3)),
        (VARY, VARIED | {"temperature": 0.5}, lambda a, b: material.vary(a, 33, 0.3, temperature=0.5)),
        *(
            (NORMALIZE, NORMALIZED | {"per": per}, lambda a, b, per=per: material.normalize(a, 0.7, per, window=5))
            for per in ("local", "channel")
        ),
        (SCALE, ONE | {"temperature": 0.5}, lambda a, b: [z / 2 for z in a]),
        (SCALE, ONE | {"temperature": 0.5, "temperatures": "1, 0"}, lambda a, b: [a[0], 0 * a[1]]),
    ],
)
def test_every_widget_reaches_the_task(host, flows, node, values, expected):
    same(levels(host, working(node, **values)), expected(drawn(1, 10), drawn(1, 20)), 1e-5)


def test_invalid_values_raise_a_readable_error(host, flows):
    for node, values, words in (
        (MIX, MIXED | {"levels": "all"}, ["levels takes one number per level", "`all`"]),
        (MIX, TWO | OTHER | {"coarse": 1.0, "fine": 0.0}, DIFFER),
        (WALK, TWO | OTHER | {"frames": 3, "mode": "slerp"}, DIFFER),
    ):
        refusal(host, working(node, **values), *words)


def test_a_single_level_is_coarse_and_fine_at_once(host, flows):
    a, b = drawn(1, 10, model="small-digits"), drawn(1, 20, model="small-digits")
    outputs = host.outputs(working(MIX, DIGITS, labels=("2", "1"), coarse=1.0, fine=0.0, **TWO))
    same(tensors(outputs["report"]), material.mix_levels(a, b, weights=0.5), 1e-6)
    assert outputs["report"]["labels"] == [2]
    assert "those of a are kept" in outputs["node"]["text"][0]


def restyled(name=DIGITS, other=None, samples=(2, 1), **values):
    asked = {"latents": "one.1", "model": "model.0", "bold": 0.0, "wide": 0.0, "slanted": 0.0, "messy": 0.0}
    return working("FlowcoreStyle", name, other, samples, ("1", "2"), **asked | values)


def test_styles_of_a_model_and_any_direction(host, flows):
    digits, z = flow("small-digits"), drawn(2, 10, model="small-digits")
    report = host.outputs(restyled(bold=1.5, wide=-0.5))["report"]
    same(tensors(report), apply_style(digits, z, {"bold": 1.5, "wide": -0.5}), 1e-6)
    assert report["labels"] == [1, 1]
    same(levels(host, restyled()), z)
    refusal(host, restyled(messy=0.1), "no style 'messy'", "bold, wide")
    same(levels(host, restyled(GLOW)), drawn(2, 10))
    known = material.add(apply_style(digits, z, {"bold": 1.0}), drawn(1, 20, model="small-digits"), -0.5)
    same(levels(host, restyled(bold=1.0, direction="two.1", strength=-0.5)), known, 1e-6)
    other = OTHER["other"]
    refusal(host, restyled(GLOW, other, direction="two.1"), GLOW, other)
    refusal(host, restyled(GLOW, other, model="other.0"), f"made with {GLOW}", f"connected model is {other}")


def directed(model=GLOW, plain=None, size=(12, 16), **values):
    sides = {"with_attribute": "plus.0", "without_attribute": "minus.0"}
    return graph(
        model=loader(model),
        plus=picture(fill="noise1", batch=3, height=size[0], width=size[1]),
        minus=plain or picture(fill="noise2", batch=2, height=size[0], width=size[1]),
        node=("FlowcoreAttributeDirection", {"model": "model.0"} | sides | values),
        report=("FlowcoreTestLatents", {"latents": "node.0"}),
    )


def test_the_direction_of_an_attribute(host, flows):
    sides = ([encode(flow("small-glow"), noise(n, 3, 12, 16, number=k))] for n, k in ((3, 1), (2, 2)))
    known = material.attribute_direction(*sides)
    same(levels(host, directed()), known, 1e-4)
    workflow = graph(  # the same images as a list of two batches
        directed(with_attribute="list.0"),
        rest=("ImageFromBatch", {"image": "plus.0", "batch_index": 1, "length": 2}),
        first=("ImageFromBatch", {"image": "plus.0", "batch_index": 0, "length": 1}),
        list=("FlowcoreTestImages", {"first": "first.0", "second": "rest.0"}),
    )
    same(levels(host, workflow), known, 1e-4)


def test_directions_of_labelled_models_and_of_upscalers(host, flows):
    digits = flow("small-digits")
    label = digits.encode_condition(torch.tensor([2]))
    images = (luma(noise(n, 3, 8, 12, number=k)) for n, k in ((3, 1), (2, 2)))
    known = material.attribute_direction(*([encode(digits, image, label)] for image in images))
    same(levels(host, directed(DIGITS, label=2, size=(8, 12))), known, 1e-4)
    refusal(host, directed("small-srflow.safetensors"), "models that make images from noise")


@pytest.fixture
def files(host):
    """The server's input/latents, emptied afterwards."""
    folder = host.server.base / "input" / "latents"
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def saving(prefix="latents/flowcore", **inputs):
    save = ("FlowcoreSaveLatents", {"latents": "sample.1", "filename_prefix": prefix})
    return graph(sampling(DIGITS, **inputs), save=save)


def loading(name, model=DIGITS):
    return graph(
        model=loader(model),
        load=("FlowcoreLoadLatents", {"file": name}),
        latents=("FlowcoreTestLatents", {"latents": "load.0"}),
        info=("PreviewAny", {"source": "load.1"}),
        decode=("FlowcoreDecode", {"latents": "load.0", "model": "model.0"}),
        again=report("decode.0"),
    )


def keep(path, latents, model="small-glow", **more):
    """Save latents as those of a small flow."""
    made = flow(model)
    save_latents(path, latents, model=model_sha256(made), architecture=made.architecture, **more)


def test_latents_come_back_from_a_file(host, flows, files):
    before = host.outputs(saving(labels="2, 1"))
    (record,) = before["save"]["latents"]
    assert (record["subfolder"], record["type"]) == ("latents", "output")
    path = host.server.base / "output" / "latents" / record["filename"]
    header = load_latents(path)[1]
    assert header.model_sha256 == model_sha256(flow("small-digits"))
    assert header.model_name == DIGITS
    # At once from the output folder, as the host's own loaders have it; and moved to where they are listed.
    for name in (f"latents/{record['filename']} [output]", "latents/mine.safetensors"):
        shutil.copyfile(path, files / "mine.safetensors")
        after = host.outputs(loading(name))
        assert after["latents"] == before["latents"]
        assert after["again"]["rows"] == before["again"]["rows"]
        assert f"model: {DIGITS}" in after["info"]["text"][0]
        assert "labels: 2, 1, 2" in after["info"]["text"][0]
    refusal(host, loading("latents/mine.safetensors", GLOW), f"made with {DIGITS}", f"connected model is {GLOW}")


def test_files_of_both_folders_are_listed_and_others_are_not(host, files):
    keep(files / "deep.safetensors", drawn(1, 1))
    flat = shutil.copyfile(files / "deep.safetensors", files.parent / "flat.safetensors")
    (files / "notes.txt").write_text("not offered")
    try:
        info = host.info("FlowcoreLoadLatents")
    finally:
        flat.unlink()
    assert options(info, "file") == ["flat.safetensors", "latents/deep.safetensors"]


def test_labels_that_are_wrong_or_missing_raise_a_readable_error(host, flows, files):
    good = drawn(2, 1, model="small-digits")
    keep(files / "labels.safetensors", good, "small-digits", extra={"labels": [1]})
    keep(files / "unlabelled.safetensors", good, "small-digits")
    refusal(host, loading("latents/labels.safetensors"), "labels do not match")
    refusal(host, loading("latents/unlabelled.safetensors"), "have no labels", "0 to 2")


def test_latents_of_an_upscaler_bring_their_small_image_along(host, flows, files):
    model, image = flows["small-srflow"], picture(fill="noise", height=16, width=12)
    kept = ("FlowcoreSaveLatents", {"latents": "encode.0", "filename_prefix": "latents/sr"})
    (record,) = host.outputs(encoding(model, image), save=kept)["save"]["latents"]
    again = loading(f"latents/{record['filename']} [output]", model)
    assert host.outputs(again)["again"]["shape"] == [1, 16, 12, 3]
    lost = load_latents(host.server.base / "output" / "latents" / record["filename"])[0]
    keep(files / "lost.safetensors", lost, "small-srflow")
    refusal(host, loading("latents/lost.safetensors", model), "without their small image", "source")


# --- the explorer -----------------------------------------------------------------------------------------------------


def test_a_place_is_a_walk_along_both_edges_and_between_them(host, flows):
    a, b, c, d = (drawn(1, seed) for seed in (10, 20, 30, 40))
    for x, y, corner in ((0, 0, a), (1, 0, b), (0, 1, c), (1, 1, d)):
        same(levels(host, explore(x=x, y=y)), corner)
    upper, lower = material.interpolate(a, b, 0.25), material.interpolate(c, d, 0.25)
    same(levels(host, explore(x=0.25, y=0.75)), material.interpolate(upper, lower, 0.75), 1e-6)
    middle = material.interpolate(material.interpolate(a, b, 0.5), material.interpolate(c, d, 0.5), 0.5)
    same(levels(host, explore()), middle, 1e-6)  # what the widgets say at first


def test_two_anchors_are_a_line_and_three_a_triangle(host, flows):
    a, b, c, d = (drawn(1, seed) for seed in (10, 20, 30, 40))
    for y in (0.0, 0.9):
        same(levels(host, explore("ab", x=0.3, y=y)), material.interpolate(a, b, 0.3), 1e-6)
    for third, latents in (("c", c), ("d", d)):
        same(levels(host, explore("ab" + third, x=0.3, y=1.0)), latents)
        expected = material.interpolate(material.interpolate(a, b, 0.3), latents, 0.4)
        same(levels(host, explore("ab" + third, x=0.3, y=0.4)), expected, 1e-6)


def test_labels_are_those_of_the_nearest_and_other_models_are_refused(host, flows):
    outputs = host.outputs(explore("ab", DIGITS, labels=("1", "2"), x=0.2))
    assert outputs["report"]["labels"] == [1]
    assert "that of the nearest is kept" in outputs["node"]["text"][0]
    assert host.outputs(explore("ab", DIGITS, labels=("1", "2"), x=0.8))["report"]["labels"] == [2]
    refusal(host, explore("ab", other="other-glow.safetensors"), "different models")
