"""Flow Train over the API: a folder becomes a model that loads, a cancelled run goes on, nothing is overwritten."""

import pytest
import torch
from client import RunError
from PIL import Image
from talk import WORKFLOWS, graph, loader, newest, opened, options, refusal, report, shows

from flowcore.models.model_file import read_header
from flowcore.training.recipe import RECIPES as INCLUDED

pytestmark = newest

RECIPE = """
name = "tiny"
architecture = "glow"
seed = 3
validation = 1
ema = 0.9
precision = "float32"
checkpoint_every = {every}
init_batch = 8
evaluate = 8
model = {{levels = 2, steps = 2, hidden = 8, image_size = 16}}
stages = [{{name = "flow", objective = "likelihood", steps = {steps}, batch = 4, crop = 16, {rate}}}]
"""
# "as it is" is trained within a second, "long" until somebody cancels, "one" changes next to nothing, "wild" too much.
RECIPES = {
    "as-it-is": {"steps": 12, "every": 4, "rate": "learning_rate = 1e-3, warmup = 2"},
    "long": {"steps": 10**6, "every": 10**6, "rate": "learning_rate = 1e-3, warmup = 2"},
    "one": {"steps": 1, "every": 1, "rate": "learning_rate = 1e-9, warmup = 2"},
    "wild": {"steps": 12, "every": 12, "rate": "learning_rate = 3.0, warmup = 1"},
}


@pytest.fixture
def photos(host):
    """Six small photographs in the input folder, one of them in a sub-folder."""
    folder = host.server.base / "input" / "tiny-photos"
    (folder / "more").mkdir(parents=True, exist_ok=True)
    photo = Image.open(WORKFLOWS / "photo.png").convert("RGB")
    for k in range(6):
        place = folder / "more" if k == 5 else folder
        if not (place / f"{k}.png").exists():
            photo.crop((24 * k, 20, 24 * k + 40, 68)).save(place / f"{k}.png")
    return "tiny-photos"


@pytest.fixture
def recipes(host):
    for name, values in RECIPES.items():
        (host.server.base / "models" / "flows" / f"{name}.toml").write_text(RECIPE.format(**values))


def training(name, **values):
    made = {"folder": "tiny-photos", "recipe": "as-it-is.toml", "name": name, "minutes": 0.0} | values
    return graph(
        train=("FlowcoreTrain", made),
        sheet=report("train.1"),
        curve=report("train.2"),
        **shows(info="train.3"),
        sample=("FlowcoreSample", {"model": "train.0", "samples": 2, "temperature": 0.7, "seed": 1}),
        report=report("sample.0"),
    )


def model(host, name):
    return host.server.base / "models" / "flows" / f"{name}.safetensors"


def run(host, name):
    return host.server.base / "output" / "flowcore-runs" / name


def cancelled(host, workflow):
    """Cancel a run when the server tells of its first step; which one that was."""
    told = []

    def look(event):
        if isinstance(event, dict) and event["type"] == "progress" and event["data"]["node"] == "train":
            told.append(event["data"]["value"])
            host.cancel()

    try:
        with pytest.raises(RunError, match="cancelled"):
            host.run(workflow, look, timeout=60)
    finally:
        host.cancel()
    return told[0]


def refused(host, workflow, *words):
    """Expect the server to refuse a workflow before it runs, on the node that trains."""
    with pytest.raises(RunError) as error:
        host.run(workflow)
    (node,) = error.value.detail["node_errors"].values()
    assert node["class_type"] == "FlowcoreTrain"
    for word in words:
        assert word in str(error.value)


def step_of(path):
    return torch.load(path, map_location="cpu", weights_only=True)["progress"]["step"]


def test_a_folder_becomes_a_model_that_loads(host, photos, recipes):
    events = []
    outputs = host.run(training("first"), events.append)["outputs"]
    ui = outputs["train"]
    assert (ui["steps"], ui["stage"]) == ([4, 8, 12], ["flow"] * 3)
    assert all(0 < loss < 20 for loss in ui["loss"])
    assert ui["loss"][-1] < ui["loss"][0]
    assert (ui["path"], ui["run"]) == ([str(model(host, "first"))], [str(run(host, "first"))])
    assert ui["minutes"][0] >= 0
    assert "12 of 12 steps" in ui["text"][0]
    assert read_header(model(host, "first")).provenance["licence"] == "unspecified"  # as its recipe says
    assert (outputs["info"]["text"], ui["flowcore_notes"]) == (ui["text"], [])
    # The last sample sheet, where the history says it is and on the wire: 6 temperatures and the originals, 8 rows.
    (shown,) = ui["images"]
    sheet = opened(host.view(**shown))
    assert shown["filename"] == "000012.png"
    assert outputs["sheet"]["shape"] == [1, sheet.height, sheet.width, 3] == [1, 8 * 16, 7 * 16, 3]
    assert outputs["curve"]["shape"] == [1, 480, 960, 3]
    assert outputs["report"]["shape"] == [2, 16, 16, 3]
    # Where the loader finds it, after what it listed before; the same weights as the run's.
    info = host.info("FlowcoreLoadModel")
    assert "first.safetensors" in options(info, "model_name")
    loaded = graph(model=loader("first.safetensors"), **shows(show="model.1"))
    assert "trained by flowcore, recipe tiny" in host.outputs(loaded)["show"]["text"][0]
    assert model(host, "first").read_bytes() == (run(host, "first") / "model.safetensors").read_bytes()
    assert not list(model(host, "first").parent.glob(".*"))
    # While it ran: the bar to its end, sheets in it, and the loss in words.
    told = [e["data"] for e in events if isinstance(e, dict) and e["type"] == "progress"]
    bar = [data["value"] for data in told if data["node"] == "train"]
    assert bar == sorted(bar)
    assert bar[-1] == 12
    words = [e["data"]["text"] for e in events if isinstance(e, dict) and e["type"] == "flowcore.text"]
    assert any("8/12 bits/dim" in text for text in words)
    assert any(e[:4] in (b"\0\0\0\x01", b"\0\0\0\x04") for e in events if isinstance(e, bytes))


def test_a_dropped_picture_is_all_that_is_trained_on(host, photos, recipes):
    """And not the whole input folder, in which it lies; the node says so."""
    base = host.server.base / "input"
    (base / "dropped.png").write_bytes((base / photos / "0.png").read_bytes())

    def text(name, picture):
        example = ("FlowcoreExample", {"picture": picture})
        return host.outputs(training(name, folder="example.2"), example=example)["train"]["text"][0]

    assert f"trained on: 1 image: {base.resolve() / 'dropped.png'}" in text("of-one", "dropped.png")
    said = host.server.console()
    assert 0 <= said.find("trains on 1 image: ") < said.find("1 photograph to train on")
    assert "trained on: 6 images" in text("of-more", "tiny-photos/0.png")


def test_a_finished_run_trains_again_only_on_request(host, photos, recipes):
    workflow = training("again")
    host.run(workflow)
    first = model(host, "again").read_bytes()
    log = run(host, "again") / "log.txt"
    lines = log.read_text()
    host.run(workflow)
    assert log.read_text() == lines  # found in the cache
    extra = host.server.base / "input" / photos / "extra.png"
    try:
        Image.new("RGB", (48, 40), (40, 90, 160)).save(extra)
        assert "nothing was trained" in host.outputs(workflow)["train"]["flowcore_notes"][0]
        assert model(host, "again").read_bytes() == first
        host.run(training("again", restart=True))
        assert model(host, "again").read_bytes() != first
    finally:
        extra.unlink()
    host.run(workflow)
    model(host, "again").unlink()  # and comes back from the run's folder, whatever is in the cache
    host.run(workflow)
    assert model(host, "again").exists()


def test_a_cancelled_run_keeps_its_checkpoint_and_goes_on_from_there(host, photos, recipes):
    workflow = training("stopped", recipe="long.toml")
    cancelled(host, workflow)
    stopped = step_of(run(host, "stopped") / "checkpoint.pt")
    assert stopped > 0
    assert read_header(model(host, "stopped")).provenance["steps"] == stopped  # what there is can be used
    host.run(graph(m=loader("stopped.safetensors"), **shows(p="m.1")))
    told = cancelled(host, workflow)
    assert told == stopped + 1
    assert f"resuming after step {stopped}\n" in (run(host, "stopped") / "log.txt").read_text()
    assert step_of(run(host, "stopped") / "checkpoint.pt") > stopped
    assert read_header(model(host, "stopped")).provenance["steps"] > stopped
    refusal(host, training("stopped"), "long.toml (now as-it-is.toml)", "set restart")
    # A new beginning that is cancelled does not take the place of what there was.
    kept = model(host, "stopped").read_bytes()
    cancelled(host, training("stopped", recipe="long.toml", restart=True))
    assert model(host, "stopped").read_bytes() == kept


def test_minutes_shorten_the_recipe_to_its_proper_end(host, photos, recipes):
    ui = host.outputs(training("short", recipe="long.toml", minutes=0.02))["train"]
    assert 0 < ui["steps"][-1] < 10**5
    assert ui["minutes"][0] < 0.3


def test_training_starts_from_a_model(host, photos, recipes):
    host.run(training("parent"))
    ui = host.outputs(training("child", recipe="one.toml", start="parent.safetensors"))["train"]
    assert "1 of 1 steps" in ui["text"][0]
    assert "As good as the start (validation_bits_per_dim" in ui["text"][0]
    refusal(host, training("mismatch", start="srflow-x4"), "srflow")
    with pytest.raises(RunError, match=r"nobody\.safetensors"):  # before it runs, by hosts that look into their lists
        host.run(training("nobody", start="nobody.safetensors"))


def test_a_start_that_training_made_worse_goes_on_under_its_own_name(host, photos, recipes):
    start = host.outputs(training("before"))["report"]["rows"]
    outputs = host.outputs(training("wilder", recipe="wild.toml", start="before.safetensors"))
    warning, facts = outputs["train"]["text"]
    assert outputs["train"]["flowcore_notes"] == [warning]
    assert warning.startswith("Worse than the start by ")
    assert "So the node outputs before.safetensors" in warning
    assert "\nmodel: before.safetensors, glow, unchanged" in facts
    assert f"the trained model is {run(host, 'wilder') / 'worse.safetensors'}. So" in warning
    assert outputs["info"]["text"] == [f"{warning}\n{facts}"]
    assert outputs["train"]["path"] == [str(model(host, "before"))]
    assert outputs["report"]["rows"] == start
    assert not model(host, "wilder").exists()


def test_a_foreign_model_file_is_not_overwritten(host, photos, recipes):
    model(host, "mine").write_bytes(b"precious")
    refusal(host, training("mine"), "mine.safetensors", "not overwritten", "another name")
    assert model(host, "mine").read_bytes() == b"precious"
    assert not (run(host, "mine") / "log.txt").exists()  # told at once, not after the training
    elsewhere = host.server.extra_flows / "theirs.safetensors"
    elsewhere.write_bytes(b"precious")
    try:
        refusal(host, training("theirs"), "theirs.safetensors", "Choose another name")
    finally:
        elsewhere.unlink()
    host.run(training("replaced"))
    model(host, "replaced").write_bytes(b"precious")
    refusal(host, training("replaced", restart=True), "not overwritten")
    assert model(host, "replaced").read_bytes() == b"precious"


def test_invalid_values_are_refused_before_the_run_and_folders_without_images_before_the_training(
    host, photos, recipes
):
    empty = host.server.base / "input" / "empty"
    empty.mkdir(exist_ok=True)
    (empty / "notes.txt").write_text("no picture")
    (host.server.base / "models" / "flows" / "broken.toml").write_text('[[stages]]\nname = "x"\n')
    for values, words in (
        ({"folder": "nowhere"}, ["'nowhere' does not exist", "input folder"]),
        ({"folder": " "}, ["give the folder of your images"]),
        ({"folder": "empty/notes.txt"}, ["is neither a folder nor a picture"]),
        ({"folder": "../output"}, ["contains ComfyUI's output folder"]),
        ({"recipe": "nothing.toml"}, ["there is no 'nothing.toml'", "srflow-x4"]),
        ({"recipe": "broken.toml"}, ["broken.toml", "lacks architecture"]),
        ({"minutes": -1.0}, ["min"]),
        *(
            ({"name": name}, ["cannot be the name of a file"])
            for name in ("", "../x", "a/b", "a\\b", ".x", "x.", "nul")
        ),
    ):
        refused(host, training(**{"name": "refused"} | values), *words)
        assert not run(host, "refused").exists()
    refusal(host, training("refused", folder="empty"), "No images in", ".jpg")  # it looks into folders when it runs
    refusal(host, training("refused", recipe="mnist-styles"), "Expected the four files of MNIST")
    assert not model(host, "refused").exists()


def test_shipped_recipes_come_first(host, recipes):
    info = host.info("FlowcoreTrain")
    listed, brought = options(info, "recipe"), sorted(path.stem for path in INCLUDED.glob("*.toml"))
    assert listed[: len(brought)] == brought
    assert {f"{name}.toml" for name in RECIPES} <= set(listed[len(brought) :])
    assert options(info, "start")[0] == "nothing"


def test_an_absolute_folder_and_a_name_with_its_suffix_after_a_refusal(host, photos, recipes):
    folder = host.server.base / "input" / photos
    refusal(host, training("abs", recipe="glow-photos"), "64 pixels")  # nothing was begun, so nothing is in the way
    ui = host.outputs(training("abs.safetensors", folder=f' "{folder}" '))["train"]
    assert ui["path"] == [str(model(host, "abs"))]
