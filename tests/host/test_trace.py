"""Flow Trace: pictures whose metadata is gone are found in a record, with their seed, and others are not."""

import pytest
from PIL import Image, ImageOps
from talk import WORKFLOWS, graph, loader, newest, opened, refusal, shows

from flowcore.cli.main import main


def tracing(name, record=""):
    """A workflow that looks up a file of the input folder."""
    trace = ("FlowcoreTrace", {"image": "photo.0", "record": record})
    photo = ("LoadImage", {"image": name})
    return graph(photo=photo, trace=trace, **shows(origin="trace.0", seed="trace.1"))


@pytest.fixture
def shore(host):
    """The name of a photograph in the server's input folder; 84 wide, 80 high."""
    return host.put("shore.png", Image.open(WORKFLOWS / "photo.png").convert("RGB").crop((60, 40, 144, 120)))


@newest
def test_a_picture_of_a_batch_is_traced_on_the_canvas(host, flows, shore, tmp_path):
    model, record = (host.server.base / "models" / "flows" / flows["small-srflow"]), "batch.sqlite"
    options = ["--samples", 2, "--seed", 30, "--temperature", 0.9, "--device", "cpu", "--model", model]
    options += ["-o", tmp_path / "out", "--record", host.server.base / "user" / "flowcore" / record]
    assert main([*map(str, ("upscale", host.server.base / "input" / shore, *options))]) == 0
    (made,) = (tmp_path / "out").glob("*_seed31.png")
    host.put("bare.jpg", ImageOps.mirror(Image.open(made).convert("RGB")))
    outputs = host.outputs(tracing("bare.jpg", record))
    told = outputs["trace"]
    assert (told["seed"], outputs["seed"]["text"]) == ([31], ["31"])
    assert told["z"][0] > 6
    assert told["text"][0].startswith(f"Made by {flows['small-srflow']} from shore.png with seed 31 (z ")
    assert outputs["origin"]["text"] == told["text"][:1]
    assert "mirrored" in told["text"][2]
    assert str(tmp_path) not in str(outputs)
    told = host.outputs(tracing(shore, record))["trace"]
    assert (told["text"][0], told["seed"]) == ("Not in this record, or changed too much since.", [-1])


@newest
def test_without_a_record_it_is_said_how_one_begins(host, shore):
    (host.server.base / "user" / "flowcore" / "record.sqlite").unlink(missing_ok=True)
    refusal(host, tracing(shore), "Nothing is recorded yet. Switch on record in Save Flow Picture")
    refusal(host, tracing(shore, "none.sqlite"), "record: there is no 'none.sqlite' in the folder flowcore")
    refusal(host, tracing(shore, "../../escaped"), "leads out of the folder")


@newest
@pytest.mark.parametrize("sharpened", [False, True])
def test_what_save_flow_picture_has_recorded_is_traced_though_it_was_sharpened_before(host, flows, shore, sharpened):
    (host.server.base / "user" / "flowcore" / "record.sqlite").unlink(missing_ok=True)
    upscale = {"image": "photo.0", "model": "model.0", "temperature": 0.9, "seed": 30, "samples": 2}
    sharpen = {"image": "upscale.0", "sharpen_radius": 1, "sigma": 1.0, "alpha": 0.2}
    save = {"images": "sharpen.0" if sharpened else "upscale.0", "record": True}
    save |= {"filename_prefix": "kept/t", "format": "png", "bits": "8", "source": ""}
    workflow = graph(
        photo=("LoadImage", {"image": shore}),
        model=loader(flows["small-srflow"]),
        upscale=("FlowcoreUpscale", upscale),
        sharpen=("ImageSharpen", sharpen),
        save=("FlowcoreSave", save),
    )
    entry = host.run(workflow)
    assert entry["outputs"]["save"]["text"] == []
    host.put("bare.png", opened(host.pictures(entry)[-1]))
    told = host.outputs(tracing("bare.png"))["trace"]
    assert told["seed"] == [31]
    assert told["text"][0].startswith(f"Made by {flows['small-srflow']} from shore.png with seed 31 (z ")


@newest
def test_pictures_without_a_known_seed_are_saved_and_not_recorded(host, shore):
    save = {"images": "photo.0", "filename_prefix": "kept/t", "format": "png", "bits": "8", "source": ""}
    save |= {"record": True}
    outputs = host.outputs(graph(photo=("LoadImage", {"image": shore}), save=("FlowcoreSave", save)))
    assert "not in the record: 1." in outputs["save"]["text"][0]
    (host.server.base / "user" / "flowcore" / "record.sqlite").unlink()
