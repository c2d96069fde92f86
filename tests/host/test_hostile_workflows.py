"""Workflows from strangers: values out of every range and of every type, wires to nowhere, graphs that are none.

Whatever is sent, the answer is a refusal that names the node, a picture, or a sentence of ours; and the next good
prompt makes its picture.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import time
import urllib.error
from typing import Any

import cases
import comfyui
import numpy as np
import pytest
import test_workflows
from client import RunError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from record_golden import GOLDEN
from talk import WORKFLOWS, graph, picture, upscale

import flowcore

SCHEMAS = json.loads(GOLDEN.read_text())
# By its end: the host loads the pack under a name of its own.
OURS = {"FlowError", "ProvenanceError", *(kind.__name__ for kind in flowcore.FlowError.__subclasses__())}
LONGEST = 20.0  # seconds for a prompt
BETWEEN = 20  # bad prompts between two good ones

# ---------------------------------------------------------------------------------------------------------------------
# good prompts: the shipped ones, and a few nodes that these leave out, with small pictures and the small flows

SMALLER = {
    "upscale": {"samples": 2},
    "colourings": {"samples": 2, "hint_steps": 1},
    "palette-transfer": {"hint_steps": 1},
    "strokes": {"hint_steps": 1, "points": "3, 4, #5a8fc8", "radius": 2, "samples": 1},
    "temperatures": {"samples": 2},
    "handwriting": {"labels": "0-2", "samples": 2},
    "digits": {"samples": 3, "labels": "0-2", "slanted": 0.0, "messy": 0.0},
    "morph": {"frames": 3},
    "rank": {"samples": 1},
    "latent-normalisation": {},
    "train": {"folder": "photos", "recipe": "quick.toml", "name": "hostile", "start": "nothing", "minutes": 0.0},
}
MODELS = {
    "srflow-x4": "small-srflow",
    "color-photos": "small-color",
    "glow-photos": "small-glow",
    "mnist-styles": "small-digits",
}
PLACES = {"ImageScale": {"width": 24, "height": 16}}


def shipped(name, flows, photo):
    """A shipped workflow with small models and pictures."""
    workflow = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    for entry in workflow.values():
        values = entry["inputs"]
        values |= {key: value for key, value in SMALLER[name].items() if key in values}
        values |= {key: value for key, value in PLACES.get(entry["class_type"], {}).items() if key in values}
        if entry["class_type"] == "LoadImage":
            values["image"] = photo
        if entry["class_type"] == "FlowcoreLoadModel":
            values["model_name"] = flows[MODELS[values["model_name"]]]
        if entry["class_type"] == "ImageScaleBy":
            values["scale_by"] = 0.5
        if entry["class_type"] == "ImageCompositeMasked":
            values |= {"x": 1, "y": 1}
        if entry["class_type"] == "EmptyImage":
            values |= {"width": 4, "height": 3}
    return workflow


def stories(flows, photo):
    """All good prompts: name to prompt."""
    made = {name: shipped(name, flows, photo) for name in SMALLER}
    glow = ("FlowcoreLoadModel", {"model_name": flows["small-glow"]})
    encode = ("FlowcoreEncode", {"image": "image.0", "model": "model.0"})
    again = (
        "FlowcoreDecode",
        {"latents": "changed.0", "model": "model.0", "temperature": 1.0, "labels": "", "snap": False},
    )
    show = ("FlowcoreTestReport", {"image": "decode.0"})
    changes = {
        "mix": ("FlowcoreMixLatents", {"a": "z.0", "b": "z.0", "coarse": 1.0, "fine": 0.0, "levels": "0, 1"}),
        "vary": ("FlowcoreVaryLatents", {"latents": "z.0", "seed": 3, "strength": 0.2, "temperature": 1.0}),
        "scale": ("FlowcoreScaleLatents", {"latents": "z.0", "temperature": 0.5, "temperatures": "0.5, 1"}),
        "style": (
            "FlowcoreStyle",
            {"latents": "z.0", "model": "model.0", "bold": 0.0, "wide": 0.0, "slanted": 0.0, "messy": 0.0}
            | {"direction": "towards.0", "strength": 1.0},
        ),
    }
    towards = (
        "FlowcoreAttributeDirection",
        {"model": "model.0", "with_attribute": "image.0", "without_attribute": "image.0", "fit": "resize", "label": -1},
    )
    for name, change in changes.items():
        made[name] = graph(
            image=picture(), model=glow, z=encode, towards=towards, changed=change, decode=again, show=show
        )
    made["as an upscale model"] = graph(
        image=picture(),
        model=("FlowcoreLoadModel", {"model_name": flows["small-srflow"]}),
        baked=("FlowcoreAsUpscaleModel", {"model": "model.0", "temperature": 0.5, "seed": 1}),
        large=("ImageUpscaleWithModel", {"upscale_model": "baked.0", "image": "image.0"}),
        show=("FlowcoreTestReport", {"image": "large.0"}),
    )
    made["choose"] = graph(
        image=picture(fill="photo", height=6, width=8),
        model=("FlowcoreLoadModel", {"model_name": flows["small-srflow"]}),
        curve=("FlowcoreTemperatureCurve", {"fine": 0.6, "coarse": 0.9, "levels": 1}),
        mask=("ImageToMask", {"image": "image.0", "channel": "red"}),
        large=(
            "FlowcoreUpscale",
            {"image": "image.0", "model": "model.0", "temperature": 0.8, "seed": 1, "samples": 2, "mask": "mask.0"}
            | {"outside": 0.3, "temperatures": "curve.0", "factor": 0.0, "longest_side": 0, "match_source": True},
        ),
        grid=(
            "FlowcoreTemperatureGrid",
            {"image": "image.0", "model": "model.0", "temperatures": "0, 0.7", "seed": 1, "seeds": 2, "tile": 0},
        ),
        map=("FlowcoreDiversityMap", {"images": "large.0", "samples": 0, "gain": 1.0}),
        best=(
            "FlowcoreBestOf",
            {"images": "large.0", "source": "image.0", "model": "model.0", "by": "consistency", "keep": 1},
        ),
        matched=("FlowcoreMatchSource", {"images": "best.0", "source": "image.0"}),
        show=("FlowcoreTestReport", {"image": "matched.0"}),
        sheet=("FlowcoreTestReport", {"image": "grid.0"}),
        heat=("FlowcoreTestReport", {"image": "map.0"}),
    )
    made["explore"] = graph(
        image=picture(),
        model=glow,
        z=encode,
        changed=("FlowcoreLatentExplorer", {"a": "z.0", "b": "z.0", "c": "z.0", "d": "z.0", "x": 0.5, "y": 0.5}),
        decode=again,
        show=show,
    )
    made["keep"] = graph(
        image=picture(),
        model=glow,
        z=encode,
        save=("FlowcoreSaveLatents", {"latents": "z.0", "filename_prefix": "l/x"}),
    )
    made["load"] = graph(
        model=glow,
        changed=("FlowcoreLoadLatents", {"file": "kept.safetensors"}),
        decode=again,
        show=show,
        words=("PreviewAny", {"source": "changed.1"}),
    )
    return made


# ---------------------------------------------------------------------------------------------------------------------
# bad values

DEEP: Any = "deep"
for _ in range(300):
    DEEP = [DEEP]

NUMBERS = [-1, 0, 2**31, 2**63, -(2**63), 2**64, 10**6, 10**400, 1e308, -1.0, 0.5, 1e-320, -0.0]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "\n", "a" * 100_000, "\0", "a\0b", "\ud800", "\U0001f98a", "مرحبا\u202e", "${HOME}", "{{7*7}}"]
TEXTS += [
    "<script>alert(1)</script>",
    "../../escaped",
    "/etc/passwd",
    "~nobody\0",
    "%year%/%date:yyyy%",
    "C:\\x",
    "CON",
]
TEXTS += [
    "a/" * 2000,
    "x/../..",
    ".",
    "..",
    "/",
    "nan",
    "1e999, 1e999",
    "-inf, nan",
    "9" * 5000,
    "0-999999999",
    "0-2," * 5000,
]
TEXTS += ["[" * 5000, "[[1e999, NaN, 3]]", "[[" + "9" * 400 + ", 1, 2]]", '{"a": 1}', "1, 1, #fff\n" * 500, "1, 1, #gg"]
TEXTS += ["#" + "f" * 5000, "5", "0.5", "true", "None", "kept.safetensors", "kept.safetensors [output]", "quick.toml"]
KINDS = [None, True, False, {}, {"a": 1}, {"__value__": [1, 2]}, {"__value__": None}, {"__value__": {"a": []}}]
KINDS += [[], [1], [1, 2, 3], [[1], 0], DEEP, {"__value__": DEEP}, [None, None], [{}, 0]]
VALUES = NUMBERS + TEXTS + KINDS


@st.composite
def wires(draw, workflow):
    """Wires that lead somewhere else, or nowhere."""
    source = draw(st.sampled_from([*workflow, *workflow, *workflow, "nowhere", "", 0, 1.5]))
    return [source, draw(st.sampled_from([0, 0, 0, 1, 99, -1, "0", 0.5, True, 2**70]))]


# Of its own type, and wrong nevertheless; the others are mostly refused before they reach a node.
FITTING = {
    "STRING": TEXTS,
    "COMBO": ["", "Compress", "nothing", *KINDS],
    "FLOAT": [math.nan, "nan", "-inf", 1e-320, -0.0, True, "0.5", 1.0, 0.0],
    "INT": ["7", 7.9, True, 1, 0, 2**64 - 1, 2**63, 5, " 3 "],
    "BOOLEAN": ["false", [], {}, 2, math.nan, None],
}


@st.composite
def prompts(draw, good):
    """A good prompt with one to three things wrong."""
    workflow = copy.deepcopy(good[draw(st.sampled_from(sorted(good)))])
    ours = [name for name, entry in workflow.items() if entry["class_type"] in SCHEMAS]
    for name in draw(st.lists(st.sampled_from(ours), min_size=1, max_size=3)):
        entry = workflow[name]
        kind = entry.get("class_type") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in SCHEMAS or not isinstance(entry["inputs"], dict):
            continue  # no node any more
        described = draw(st.sampled_from(SCHEMAS[kind]["inputs"]))
        key, values = described["name"], entry["inputs"]
        match draw(
            st.sampled_from(
                ["fitting"] * 12 + ["value"] * 5 + ["text", "text", "wire", "wire", "gone", "extra", "shape"]
            )
        ):
            case "fitting" if described["type"] in FITTING:
                values[key] = draw(st.sampled_from(FITTING[described["type"]]))
            case "value" | "fitting":
                values[key] = draw(st.sampled_from(VALUES))
            case "text":
                values[key] = draw(st.text(max_size=40) | st.text("0123456789.,-; #abcdef\n[]", max_size=40))
            case "wire":
                values[key] = draw(wires(workflow))
            case "gone":
                values.pop(key, None)
            case "extra":
                values[draw(st.sampled_from(EXTRA))] = draw(st.sampled_from(VALUES))
            case "shape":
                change = draw(st.sampled_from(SHAPES))
                workflow[name] = entry | change if isinstance(change, dict) else change
    return workflow


# What no schema knows. No wires: to an output that there is not, they end the queue's thread of 0.30.0, with any node.
EXTRA = ["zzz", "cls", "self", "", "a.b", "\0"]
SHAPES = [None, [], 5, "FlowcoreSample", {"inputs": {}}, {"inputs": []}, {"inputs": None}, {"_meta": None}]
SHAPES += [{"class_type": kind} for kind in (*SCHEMAS, "Nothing", "", None, 5, [], {})]


# ---------------------------------------------------------------------------------------------------------------------
# what may come of them


def answer(host, workflow, within=LONGEST):
    """Send a prompt, and fail unless the answer is a good one.

    Returns:
        The kind of answer and what was said: refused, done, told (a sentence of ours), or the host's own (it fell
        over, and no line of ours had a part in it).
    """
    read, started = host.server.log.stat().st_size, time.monotonic()
    kind, said = "done", ""
    try:
        host.wait(host.queue(workflow), timeout=within)
    except RunError as error:
        kind, said = _kind(error), str(error)
    except urllib.error.HTTPError as error:
        kind, said = "the host's own", f"HTTP {error.code}"
    except TimeoutError:
        host.cancel()
        kind = "late"
    took = time.monotonic() - started
    assert host.server.alive(), "the server has died"
    assert kind != "late", f"not done after {within} s"
    assert took < within + 1
    with host.server.log.open(errors="replace") as log:
        log.seek(read)
        _blame(log.read())
    return kind, said


def _kind(error):
    """What a refusal or a failure is, or an AssertionError if it is none that may be."""
    detail, said = error.detail, str(error)
    if "exception_type" not in detail:
        assert said.strip() not in ("", "refused"), detail
        errors = [e for node in detail.get("node_errors", {}).values() for e in node["errors"]]
        broken = [e["extra_info"] for e in errors if e["type"].startswith("exception_during")]
        # 0.3.75 follows a ring of wires until the stack is full, wherever it is then.
        fell = [e for e in broken if _in_pack("".join(e["traceback"])) and e["exception_type"] != "RecursionError"]
        assert not fell, fell
        return "refused"
    where = "".join(detail.get("traceback", []))
    ours = detail["node_type"] in SCHEMAS and detail["exception_type"].split(".")[-1] in OURS
    assert ours or not _in_pack(where), f"{detail['node_type']}: {detail['exception_type']}: {said[:300]}\n{where}"
    assert not ours or re.search(r"[.!?]$", said.rstrip()), f"no sentence: {said}"
    return "told" if ours else "the host's own"


def _in_pack(text):
    return f"{comfyui.PACK_NAME}/" in text or "/flowcore/" in text


TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n((?:[ \t].*\n|\n)+)(\S.*)", re.MULTILINE)
CHAINED = re.compile(r"\s+(The above exception was|During handling of the above)")


def _blame(text):
    """Fail where a traceback runs through the pack, and does not end in a sentence of ours."""
    for found in TRACEBACK.finditer(text):
        stack, end = found.groups()
        name = end.split(":")[0].split(".")[-1]
        well = name in OURS | {"InterruptProcessingException"} or CHAINED.match(text[found.end() :])
        assert well or not _in_pack(stack), f"on the console:\n{stack}{end[:500]}"


def listing(base):
    """What lies in a server's folder, but for what it may write."""
    free = ("output/", "temp/", "console.log", "models/flows/", "user/")
    found = {}
    for path in base.rglob("*"):
        name = path.relative_to(base).as_posix()
        if not path.is_symlink() and path.is_file() and not name.startswith(free) and "custom_nodes/" not in name:
            found[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


@pytest.fixture
def good(host, flows, photo, folder_of_photos):
    """Good prompts, all of which run."""
    host.put("photos.png", Image.open(WORKFLOWS / "photo.png"))
    (host.server.base / "models" / "flows" / "quick.toml").write_text(test_workflows.QUICK)
    made = stories(flows, photo)
    keep = host.run(made["keep"])["outputs"]["save"]["latents"][0]
    kept = host.server.base / "output" / keep["subfolder"] / keep["filename"]
    offered = host.server.base / "input" / "kept.safetensors"
    offered.write_bytes(kept.read_bytes())
    yield made
    offered.unlink()


class Witness:
    """A good prompt that goes between the bad ones, and always makes the same picture."""

    def __init__(self, host, photo):
        self.host, self.workflow = host, upscale(photo=photo, seed=11)
        self.count = itertools.count(1)
        self.first = self.picture()
        self.before = listing(host.server.base)

    def picture(self):
        (image,) = self.host.images(self.workflow)
        return np.asarray(image)

    def look(self, now=False):
        if now or next(self.count) % BETWEEN == 0:
            assert np.array_equal(self.picture(), self.first)
            assert listing(self.host.server.base) == self.before


def test_the_good_prompts_are_good(host, good):
    for name, workflow in good.items():
        assert answer(host, workflow) == ("done", ""), name


@pytest.mark.fuzz
def test_every_malformed_prompt_gets_an_answer(host, good, photo):
    witness = Witness(host, photo)

    @cases.cases(40, 750)
    @given(st.data())
    def tell(data):
        workflow = data.draw(prompts(good))
        kind, _ = answer(host, workflow)
        cases.tried("prompts")
        cases.tried(f"prompts: {kind}")
        witness.look()

    tell()
    witness.look(now=True)


FLOATS = [
    (node, described["name"])
    for node, info in SCHEMAS.items()
    for described in info["inputs"]
    if described["type"] == "FLOAT"
]


def test_nan_is_refused_by_every_float_input(host, good):
    """The host lets NaN pass: it is neither below a minimum nor above a maximum."""
    missing = set(FLOATS)
    for workflow in good.values():
        for name, entry in workflow.items():
            for kind, key in [pair for pair in FLOATS if pair in missing and pair[0] == entry["class_type"]]:
                spoilt = copy.deepcopy(workflow)
                spoilt[name]["inputs"][key] = math.nan
                got, said = answer(host, spoilt)
                assert got == "told", (kind, key)
                assert f"{key} must be a finite number; got nan" in said
                missing.remove((kind, key))
    assert not missing


def test_results_beyond_memory_are_refused_before_the_work(host, flows, photo):
    """All of it is within its range, and together it is too much: 256 pictures of 4096x4096 are 51 GB."""
    model = ("FlowcoreLoadModel", {"model_name": flows["free-glow"]})
    common = {"model": "model.0", "temperature": 0.7, "seed": 1}
    many = ("FlowcoreSample", common | {"samples": 256, "width": 4096, "height": 4096})
    one = ("FlowcoreSample", common | {"samples": 8, "width": 512, "height": 512})
    walk = ("FlowcoreInterpolate", {"a": "one.1", "b": "one.1", "frames": 512, "mode": "linear", "loop": True})
    again = ("FlowcoreDecode", {"latents": "walk.0", "model": "model.0"})
    save = ("SaveImage", {"images": "made.0", "filename_prefix": "much"})
    for workflow in (
        graph(model=model, made=many, save=save),
        graph(model=model, one=one, walk=walk, made=again, save=save),
    ):
        kind, said = answer(host, workflow)
        assert kind == "told"
        assert re.search(r"need \d+\.\d GB of memory, and \d+\.\d GB are free", said)


BODIES = [
    b"",
    b"[]",
    b"null",
    b"{}",
    b"nothing",
    b"\xff\xfe",
    b'{"prompt": null}',
    b'{"prompt": []}',
    b'{"prompt": {}}',
    b'{"prompt": "FlowcoreSample"}',
    b'{"prompt": {"1": {"class_type": "FlowcoreSample", "inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}",
    b'{"prompt": {"1": {"class_type": "FlowcoreSample", "inputs": {"seed": ' + b"9" * 100_000 + b"}}}}",
    b'{"prompt": {"1": {"class_type": "' + b"F" * 1_000_000 + b'", "inputs": {}}}}',
]


def test_malformed_requests_do_no_harm(host, good, photo):
    """Most of these are the host's to answer: that ours goes on is what counts."""
    witness = Witness(host, photo)
    for body in BODIES:
        with pytest.raises(urllib.error.HTTPError) as refused:
            host.post("/prompt", body)
        assert refused.value.code in (400, 500)
    witness.look(now=True)
    _blame(host.server.console())
