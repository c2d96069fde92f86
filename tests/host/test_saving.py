"""Save Flow Picture: what a file held is in the files that were made of it."""

import json

import comfyui
import numpy as np
import pytest
import torch
from builders import png_chunk
from client import RunError
from PIL import ImageCms
from small_flows import flow
from talk import CREDENTIALS, graph, loader, noise, opened, picture, refusal

from flowcore.batch.credentials import EDITED, GENERATED, read_credentials, sign, signer_of
from flowcore.batch.job import JobSpec, Worker
from flowcore.cli.credentials import make_certificate
from flowcore.images import files
from flowcore.images.metadata import C2PA, Metadata

AUTHOR = 0x013B
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
METADATA = Metadata({AUTHOR: "a photographer"}, b"<x:xmpmeta/>", PROFILE, (240.0, 240.0))


def deep(channels=4):
    """A picture of 16 bits, of which 8 would lose the lower ones."""
    steps = torch.randint(0, 65536, (channels, 12, 16), generator=torch.Generator().manual_seed(1))
    steps[3:] = 2**15 + steps[3:] // 2  # of alpha: where hardly anything is seen, colors are continued
    return steps / 65535


def put(host, name, data):
    (host.server.base / "input" / name).write_bytes(data)
    return name


def saved(host, workflow, /, **canvas):
    """Run a workflow and return the names and the contents of the files that it has saved."""
    entry = host.run(workflow, extra_pnginfo=canvas)
    return [image["filename"] for image in entry["outputs"]["save"]["images"]], host.pictures(entry)


def saving(name, **asked):
    """A workflow that saves a file of the input folder as it is."""
    values = {"images": "photo.0", "filename_prefix": "kept/k", "format": "png", "bits": "source"}
    values |= {"source": "photo.3", "mask": "photo.1"} | asked
    return graph(photo=("FlowcoreExample", {"picture": name}), save=("FlowcoreSave", values))


def same_metadata(data):
    """Whether a file has the metadata of this module."""
    found = files.read(data, "a file").metadata
    kept = (found.exif.get(AUTHOR), found.xmp, found.icc, tuple(round(n) for n in found.dpi or ()))
    return kept == ("a photographer", METADATA.xmp, PROFILE, (240, 240))


def test_bits_alpha_and_metadata_of_an_enlarged_picture_are_those_of_the_command_line(host, flows):
    data = files.encode(deep(), METADATA, bits=16)
    put(host, "deep.png", data)
    asked = {"image": "photo.0", "model": "model.0", "temperature": 0.8, "seed": 5, "calm_edges": 0.0}
    workflow = graph(
        saving("deep.png", images="upscale.0"), model=loader(flows["small-srflow"]), upscale=("FlowcoreUpscale", asked)
    )
    (made,) = saved(host, workflow)[1]
    settings = {"temperature": 0.8, "calm_edges": 0.0}
    spec = JobSpec(command="upscale", model="m", scale=2, seed=5, samples=1, bits=None, settings=settings)
    ((wanted, _),) = Worker(spec, flow("small-srflow"))(data, "deep.png", notify=print)
    assert files.bits_per_channel(made) == 16
    assert same_metadata(made)
    pixels = files.read(made, "made").pixels
    assert pixels.shape == (1, 4, 24, 32)
    torch.testing.assert_close(pixels, files.read(wanted, "wanted").pixels, atol=2e-4, rtol=0)


def test_a_file_that_is_saved_as_it_is_keeps_everything(host):
    for format in ("png", "tiff", "webp"):
        bits = 16 if format in files.DEEP else 8
        original = deep() if bits == 16 else files.to_uint8(deep()) / 255
        data = files.encode(original, METADATA, format=format, bits=bits, quality=100)
        name = put(host, f"whole{files.SUFFIXES[format]}", data)
        (made,) = saved(host, saving(name, format=format, quality=100))[1]
        assert torch.equal(files.read(made, "made").pixels, files.read(files.encode(original, bits=bits), "a").pixels)
        assert files.bits_per_channel(made) == bits
        assert same_metadata(made)


def test_gray_files_stay_gray_with_their_profile(host):
    gray = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"RGB ", b"GRAY", 1)
    put(host, "gray.png", files.encode(deep(1), Metadata(icc=gray), bits=16))
    (made,) = saved(host, saving("gray.png"))[1]
    kept = files.read(made, "made")
    assert kept.gray
    assert kept.metadata.icc == gray
    assert torch.equal(kept.pixels[0, :1], deep(1))


def test_each_picture_has_the_metadata_of_its_own_source(host):
    for name, author in (("one.jpg", "one"), ("two.jpg", "two")):
        put(host, name, files.encode(deep(3), Metadata({AUTHOR: author}), format="jpeg"))
    values = {"images": "four.0", "filename_prefix": "kept/n%batch_num%", "format": "jpeg", "bits": "source"}
    four = picture(fill="noise", batch=4, height=6, width=8)
    workflow = graph(four=four, save=("FlowcoreSave", values | {"source": "one.jpg\ntwo.jpg"}))
    names, made = saved(host, workflow)
    assert names == [f"n{k}_00001_.jpg" for k in range(4)]
    assert [opened(data).getexif()[AUTHOR] for data in made] == ["one", "one", "two", "two"]
    workflow["save"]["inputs"]["source"] += "\none.jpg"
    refusal(host, workflow, "source names 3 files, but there are 4 pictures")


@pytest.mark.parametrize("bits", ["8", "16"])
def test_png_files_hold_workflow_and_provenance(host, flows, bits):
    drawn = {"model": "model.0", "samples": 3, "temperature": 0.7, "seed": 40}
    workflow = graph(
        model=loader(flows["small-digits"]),
        sample=("FlowcoreSample", drawn),
        save=("FlowcoreSave", {"images": "sample.0", "filename_prefix": "told", "format": "png", "bits": bits}),
    )
    canvas = {"nodes": [{"title": "\u2713"}]}
    *_, last = saved(host, workflow, workflow=canvas)[1]
    texts = opened(last).text
    assert json.loads(texts["workflow"]) == canvas
    assert json.loads(texts["prompt"]).keys() == workflow.keys()
    put(host, "told.png", last)
    told = host.outputs(
        recipe=("FlowcoreLoadRecipe", {"image": "told.png"}), show=("PreviewAny", {"source": "recipe.2"})
    )["recipe"]
    assert told["seed"] == [42]
    assert "was changed" not in told["text"][0]


def test_files_hold_no_path_of_the_server(host, flows):
    """The host writes the fingerprint of every node into the prompt that it saves."""
    put(host, "plain.png", files.encode(deep(3)))
    for model in ("srflow-x4", flows["small-srflow"]):
        upscaled = {"image": "photo.0", "model": "model.0", "samples": 1, "temperature": 0.5, "seed": 1}
        save = ("SaveImage", {"images": "upscale.0", "filename_prefix": "path"})
        photo = ("FlowcoreExample", {"picture": "plain.png"})
        nodes = {"photo": photo, "model": loader(model), "upscale": ("FlowcoreUpscale", upscaled), "save": save}
        (made,) = saved(host, graph(**nodes), workflow={})[1]
        assert json.loads(opened(made).text["prompt"])["model"]["is_changed"]
        for folder in (comfyui.ROOT, host.server.base):
            assert str(folder).encode() not in made


def test_dropped_content_credentials_are_named(host):
    plain = files.encode(deep(3))
    put(host, "signed.png", plain[:33] + png_chunk(b"caBX", C2PA) + plain[33:])
    entry = host.run(saving("signed.png"))
    (note,) = entry["outputs"]["save"]["text"]
    assert note == "signed.png: Its content credentials (C2PA) are not in results: they are signed for this very file."
    assert C2PA not in host.pictures(entry)[0]


def test_transparent_parts_are_named_however_the_graph_is_wired(host, flows):
    put(host, "cut-out.png", files.encode(deep()))
    put(host, "whole.png", files.encode(deep(3)))

    def run(loads, **mask):
        asked = {"image": "photo.0", "model": "model.0", "samples": 1, "temperature": 0.5, "seed": 1}
        save = {"images": "upscale.0", "filename_prefix": "kept/c", "format": "png", "bits": "8", **mask}
        nodes = {"photo": loads, "model": loader(flows["small-srflow"]), "upscale": ("FlowcoreUpscale", asked)}
        return host.run(graph(**nodes, save=("FlowcoreSave", save)))

    fact = "It has transparent parts. Save Flow Picture keeps them if their mask is connected to it."
    for kind, name in (("FlowcoreExample", "picture"), ("LoadImage", "image")):
        run((kind, {name: "cut-out.png"}), mask="photo.1")
        entry = run((kind, {name: "cut-out.png"}))
        cached = [data["nodes"] for said, data in entry["status"]["messages"] if said == "execution_cached"]
        told = entry["outputs"]["upscale"]
        assert "upscale" in cached[0]
        assert f"cut-out.png: {fact}" in told["text"][: told["text"].index("")]
        assert told["flowcore_notes"] == []
        told = run((kind, {name: "whole.png"}))["outputs"]["upscale"]
        assert "transparent" not in " ".join(told["text"])


def test_no_file_is_replaced(host):
    values = {"images": "two.0", "format": "png", "bits": "8"}
    for prefix in ("never/", "never/b%batch_num%", "never/%width%x%height%"):
        seen = set()
        for number in range(2):  # the host would begin anew where a prefix ends in a slash
            two = picture(fill=f"noise{number}", batch=2, height=6, width=8)
            names, made = saved(host, graph(two=two, save=("FlowcoreSave", values | {"filename_prefix": prefix})))
            assert not seen & set(names)
            seen |= set(names)
            for data, wanted in zip(made, noise(2, 3, 6, 8, number=number), strict=True):
                assert np.array_equal(np.asarray(opened(data)), (255 * wanted).round().permute(1, 2, 0))
        assert len(seen) == 4
    assert "8x6_00004_.png" in seen


def test_what_cannot_be_saved_is_refused_before_the_work(host):
    put(host, "clear.png", files.encode(deep()))
    for asked, said in (
        ({"source": "nobody.png"}, "source: there is no picture 'nobody.png' in the input folder"),
        ({"source": "../clear.png"}, "source: there is no picture"),
        ({"format": "jpeg", "bits": "16"}, "16 bits per channel go into PNG and TIFF"),
    ):
        with pytest.raises(RunError, match=said):
            host.queue(saving("clear.png", **asked))
    refusal(host, saving("clear.png", format="jpeg"), "alpha channel, which a JPEG file cannot hold")
    refusal(host, saving("clear.png", filename_prefix="../out"), "must stay inside the output folder")


@pytest.fixture
def signer(host):
    """What the server signs with, while the test runs."""
    content = make_certificate()
    paths = [host.server.base / file for file in CREDENTIALS.values()]
    for path, data in zip(paths, content, strict=True):
        path.write_bytes(data)
        path.chmod(0o600)
    yield signer_of(*content)
    for path in paths:
        path.unlink(missing_ok=True)


def signed(host, flows, **asked):
    """A workflow that enlarges a file of the input folder and signs the result."""
    upscaled = {"image": "photo.0", "model": "model.0", "samples": 2, "temperature": 0.8, "seed": 5}
    values = {"images": "upscale.0", "credentials": True} | asked
    nodes = {"model": loader(flows["small-srflow"]), "upscale": ("FlowcoreUpscale", upscaled)}
    return graph(saving("signed-source.jpg", **values), **nodes)


def credentials_of(tmp_path, data):
    """What a file says: its state, the last action, the recipe, and the manifests of its sources, too."""
    (tmp_path / "made").write_bytes(data)
    found = read_credentials(tmp_path / "made")
    said = {each["label"]: each["data"] for each in found.manifest["assertions"]}
    return found, said["c2pa.actions.v2"]["actions"][-1], said["flowcore.recipe"]["entries"]


@pytest.mark.parametrize("format", files.SUFFIXES)
def test_saved_pictures_are_signed_with_their_recipe_and_source(host, flows, signer, tmp_path, format):
    photo = sign(files.encode(deep(3), format="jpeg"), [{"node": "a camera"}], signer)
    put(host, "signed-source.jpg", photo)
    entry = host.run_from_canvas(signed(host, flows, format=format, mask=None))
    made = host.pictures(entry)
    assert entry["outputs"]["save"]["text"] == []  # it is not said that the credentials of the source go
    for seed, data in zip((5, 6), made, strict=True):
        found, action, (recipe,) = credentials_of(tmp_path, data)
        assert (found.state, len(found.manifests)) == ("Valid", 2)
        assert (action["action"], action["digitalSourceType"]) == ("c2pa.edited", EDITED)
        assert (recipe["node"], recipe["model"], recipe["seed"]) == ("FlowcoreUpscale", flows["small-srflow"], seed)
    key = signer.key.splitlines()[1:-1]
    said = [*made, json.dumps(entry).encode(), host.server.console().encode()]
    assert not [line for line in key for text in said if line in text]


def test_a_script_gets_the_nodes_signed_and_samples_are_generated(host, flows, signer, tmp_path):
    drawn = {"model": "model.0", "samples": 1, "temperature": 0.7, "seed": 40}
    save = {"images": "sample.0", "filename_prefix": "kept/s", "format": "webp", "bits": "8", "credentials": True}
    nodes = {"model": loader(flows["small-digits"]), "sample": ("FlowcoreSample", drawn)}
    (made,) = host.pictures(host.run(graph(**nodes, save=("FlowcoreSave", save))))
    _, action, recipe = credentials_of(tmp_path, made)
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", GENERATED)
    assert recipe == [{"node": "FlowcoreSample"}]


def test_what_cannot_be_signed_is_refused_and_not_saved(host, flows, signer):
    put(host, "signed-source.jpg", files.encode(deep(3), format="jpeg"))
    before = {*(host.server.base / "output").rglob("*")}
    refusal(host, saving("signed-source.jpg", credentials=True, mask=None), "Nothing says what made the picture")
    key = host.server.base / CREDENTIALS["FLOWCORE_KEY"]
    key.chmod(0o644)
    with pytest.raises(RunError, match=r"chmod 600 secrets-key\.pem"):
        host.queue(signed(host, flows))
    key.unlink()
    with pytest.raises(RunError, match=r"The key of the content credentials, secrets-key\.pem, cannot be read"):
        host.queue(signed(host, flows))
    assert {*(host.server.base / "output").rglob("*")} == before
