"""Workflows from strangers: values out of every range and of every type, wires to nowhere, graphs that are none.

Whatever is sent, the answer is a refusal that names the node, a picture, or a sentence of ours; and the next good
prompt makes its picture.
"""

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
from client import RunError
from hypothesis import given
from hypothesis import strategies as st
from record_golden import GOLDEN
from saved_workflows import QUICK
from small_flows import USED_BY
from talk import graph, loader, newest, picture, upscale

import flowcore
from flowcore.batch.record import RecordFile

SCHEMAS = json.loads(GOLDEN.read_text())
# By its end: the host loads the pack under a name of its own.
OURS = {"FlowError", "ProvenanceError", *(kind.__name__ for kind in flowcore.FlowError.__subclasses__())}
LONGEST = 20.0  # seconds for a prompt
BETWEEN = 20  # bad prompts between two good ones

# --- good prompts: one for every node, made of its schema -------------------------------------------------------------

EYES = {"left_eye": "4.5, 3.5", "right_eye": "7.5, 3.5"}
TRAINED = {"folder": "photos", "recipe": "quick.toml", "name": "hostile", "start": "nothing", "minutes": 0.0}
VALUES = {  # where the defaults are none, or take long
    "FlowcoreLoadRecipe": {"image": "made.png"},
    "FlowcoreLoadLatents": {"file": "kept.safetensors"},
    "FlowcoreSaveLatents": {"filename_prefix": "l/x"},
    "FlowcoreColorHints": {"points": "3, 4, #5a8fc8", "radius": 2},
    "FlowcoreAlignFace": EYES,
    "FlowcorePasteFace": {"face": "aligned.0", "place": "aligned.1"},
    "FlowcoreColorize": {"hint_steps": 1},
    "FlowcoreInterpolate": {"frames": 3},
    "FlowcoreUpscale": {"samples": 2},
    "FlowcoreAudit": {"image": "many.0"},
    "FlowcoreTemperatureCurve": {"levels": 1},
    "FlowcoreTrain": TRAINED,
    "FlowcoreFolder": {"folder": "photos", "subfolder": "hostile"},
}
WIRES = {"IMAGE": "image.0", "IMAGE,VIDEO": "image.0"}
WIRES |= {"MASK": "mask.0", "FLOW_MODEL": "model.0", "FLOW_LATENTS": "z.0", "FLOW_HINTS": "hints.0"}


def good_prompt(kind):
    """A node with all of its inputs, on small pictures and small flows."""
    wired = {i["name"]: WIRES.get(i["type"], i.get("default")) for i in SCHEMAS[kind]["inputs"]}
    values = {name: value for name, value in wired.items() if value is not None}
    if "images" in values:  # enlarged samples
        values["images"] = "many.0"
    model = USED_BY.get(kind, "small-glow")
    encode = "FlowcoreEncodeColor" if model == "small-color" else "FlowcoreEncode"
    show = {} if SCHEMAS[kind]["output_node"] else {"show": ("PreviewAny", {"source": "node.0"})}
    return graph(
        image=picture(fill="photo", height=8, width=12),
        many=picture(fill="photo", height=16, width=24, batch=2),
        mask=("ImageToMask", {"image": "image.0", "channel": "red"}),
        model=loader(f"{model}.safetensors"),
        z=(encode, {"image": "image.0", "model": "model.0"}),
        hints=("FlowcoreColorHints", {"image": "image.0", "points": "1, 1, #c04020"}),
        aligned=("FlowcoreAlignFace", {"image": "image.0", "size": 8} | EYES),
        node=(kind, values | VALUES.get(kind, {})),
        **show,
    )


# --- bad values -------------------------------------------------------------------------------------------------------

DEEP: Any = "deep"
for _ in range(300):
    DEEP = [DEEP]

NUMBERS = [-1, 0, 2**31, 2**63, -(2**63), 2**64, 10**6, 10**400, 1e308, -1.0, 0.5, 1e-320, -0.0]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "\n", "a" * 100_000, "\0", "a\0b", "\ud800", "\U0001f98a", "مرحبا\u202e", "${HOME}", "{{7*7}}", "."]
TEXTS += ["<script>alert(1)</script>", "../../escaped", "/etc/passwd", "~nobody\0", "%year%/%date:yyyy%", "C:\\x"]
TEXTS += ["CON", "a/" * 2000, "x/../..", "..", "/", "nan", "1e999, 1e999", "-inf, nan", "9" * 5000, "0-999999999"]
TEXTS += ["0-2," * 5000, "[" * 5000, "[[1e999, NaN, 3]]", "[[" + "9" * 400 + ", 1, 2]]", '{"a": 1}', "1, 1, #gg"]
TEXTS += ["1, 1, #fff\n" * 500]
TEXTS += ["#" + "f" * 5000, "5", "0.5", "true", "None", "kept.safetensors", "kept.safetensors [output]", "quick.toml"]
KINDS = [None, True, False, {}, {"a": 1}, {"__value__": [1, 2]}, {"__value__": None}, {"__value__": {"a": []}}]
KINDS += [[], [1], [1, 2, 3], [[1], 0], DEEP, {"__value__": DEEP}, [None, None], [{}, 0]]
ANYTHING = NUMBERS + TEXTS + KINDS


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
        kind, values = (entry.get(key) if isinstance(entry, dict) else None for key in ("class_type", "inputs"))
        if not isinstance(kind, str) or kind not in SCHEMAS or not isinstance(values, dict):
            continue  # no node any more
        described = draw(st.sampled_from(SCHEMAS[kind]["inputs"]))
        key = described["name"]
        match draw(st.sampled_from(WRONG)):
            case "fitting":
                values[key] = draw(st.sampled_from(FITTING.get(described["type"], ANYTHING)))
            case "value":
                values[key] = draw(st.sampled_from(ANYTHING))
            case "text":
                values[key] = draw(st.text(max_size=40) | st.text("0123456789.,-; #abcdef\n[]", max_size=40))
            case "wire":
                source = draw(st.sampled_from([*workflow, *workflow, *workflow, "nowhere", "", 0, 1.5]))
                values[key] = [source, draw(st.sampled_from([0, 0, 0, 1, 99, -1, "0", 0.5, True, 2**70]))]
            case "gone":
                values.pop(key, None)
            case "extra":
                values[draw(st.sampled_from(EXTRA))] = draw(st.sampled_from(ANYTHING))
            case "shape":
                change = draw(st.sampled_from(SHAPES + UNREAD if name == "node" else SHAPES))
                workflow[name] = entry | change if isinstance(change, dict) else change
    return workflow


WRONG = ["fitting"] * 12 + ["value"] * 5 + ["text", "text", "wire", "wire", "gone", "extra", "shape"]
# What no schema knows. No wires: to an output that there is not, they end the queue's thread of 0.30.0, with any node.
EXTRA = ["zzz", "cls", "self", "", "a.b", "\0"]
SHAPES = [None, [], 5, "FlowcoreSample", {"inputs": {}}, {"_meta": None}]
SHAPES += [{"class_type": kind} for kind in (*SCHEMAS, "Nothing", "", None, 5, [], {})]
UNREAD = [{"inputs": []}, {"inputs": None}]


# --- what may come of them --------------------------------------------------------------------------------------------


def answer(host, workflow):
    """Send a prompt; the kind of the answer, which must be a good one, and what was said.

    Kinds are refused, done, told (a sentence of ours), and the host's own (it fell over, without a line of ours).
    """
    started = time.monotonic()
    kind, said = "done", ""
    try:
        host.run(workflow, timeout=LONGEST)
    except RunError as error:
        kind, said = _kind(error), str(error)
    except urllib.error.HTTPError as error:
        kind, said = "the host's own", f"HTTP {error.code}"
    except TimeoutError:
        host.cancel()
        raise
    assert host.server.alive(), "the server has died"
    assert time.monotonic() - started < LONGEST + 1
    return kind, said


def _kind(error):
    """What a refusal or a failure is, or an AssertionError if it is none that may be."""
    detail, said = error.detail, str(error)
    if "exception_type" not in detail:
        assert said.strip() not in ("", "refused"), detail
        errors = [e for node in detail.get("node_errors", {}).values() for e in node["errors"]]
        broken = [e["extra_info"] for e in errors if e["type"].startswith("exception_during")]
        # Hosts may follow a ring of wires until the stack is full, wherever it is then.
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
        ours = end.split(":")[0].split(".")[-1] in OURS | {"InterruptProcessingException"}
        fine = ours or CHAINED.match(text[found.end() :]) or not _in_pack(stack)
        assert fine, f"on the console:\n{stack}{end[:500]}"


@pytest.fixture
def good(host, flows, photo, folder_of_photos):
    """Good prompts of all nodes, all of which run."""
    models, given = host.server.base / "models" / "flows", host.server.base / "input"
    (models / "quick.toml").write_text(QUICK)
    (data,) = host.pictures(host.run_from_canvas(upscale(photo=photo, model_name=flows["small-srflow"], seed=40)))
    (given / "made.png").write_bytes(data)
    RecordFile(host.server.base / "user" / "flowcore" / "record.sqlite")
    made = {kind: good_prompt(kind) for kind in SCHEMAS if kind != "FlowcoreColorMemory"}  # it needs a real backbone
    saved = host.outputs(made["FlowcoreSaveLatents"])["node"]["latents"][0]
    kept = given / "kept.safetensors"
    kept.write_bytes((host.server.base / "output" / saved["subfolder"] / saved["filename"]).read_bytes())
    yield made
    kept.unlink()


def witness(host, photo):
    """What to call between bad prompts: a good one, which always makes the same picture."""

    def made():
        return np.asarray(host.images(upscale(photo=photo, seed=11))[0])

    first = made()

    def look():
        assert np.array_equal(made(), first)
        _blame(host.server.console())

    return look


def test_the_good_prompts_are_good(host, good):
    for name, workflow in good.items():
        assert answer(host, workflow) == ("done", ""), name


@pytest.mark.fuzz
@newest
def test_every_malformed_prompt_gets_an_answer(host, good, photo):
    look, count = witness(host, photo), itertools.count(1)

    @cases.cases(40, 750)
    @given(st.data())
    def tell(data):
        workflow = data.draw(prompts(good))
        kind, _ = answer(host, workflow)
        cases.tried("prompts")
        cases.tried(f"prompts: {kind}")
        if next(count) % BETWEEN == 0:
            look()

    tell()
    look()


@newest
def test_nan_is_refused_by_every_float_input(host, good):
    """The host lets NaN pass: it is neither below a minimum nor above a maximum."""
    missing = {(node, i["name"]) for node, info in SCHEMAS.items() for i in info["inputs"] if i["type"] == "FLOAT"}
    for workflow in good.values():
        for name, entry in workflow.items():
            for kind, key in [pair for pair in missing if pair[0] == entry["class_type"]]:
                spoilt = copy.deepcopy(workflow)
                spoilt[name]["inputs"][key] = math.nan
                got, said = answer(host, spoilt)
                assert got == "told", (kind, key)
                assert f"{key} must be a finite number; got nan" in said
                missing.remove((kind, key))
    assert not missing


def test_results_beyond_memory_are_refused_before_the_work(host, flows, photo):
    """All of it is within its range, and together it is too much: 256 pictures of 4096x4096 are 51 GB."""
    model = loader(flows["free-glow"])
    common = {"model": "model.0", "temperature": 0.7, "seed": 1}
    many = ("FlowcoreSample", common | {"samples": 256, "width": 4096, "height": 4096})
    one = ("FlowcoreSample", common | {"samples": 8, "width": 512, "height": 512})
    walk = ("FlowcoreInterpolate", {"a": "one.1", "b": "one.1", "frames": 512, "mode": "linear", "loop": True})
    again = ("FlowcoreDecode", {"latents": "walk.0", "model": "model.0"})
    save = ("SaveImage", {"images": "made.0", "filename_prefix": "much"})
    for nodes in ({"made": many}, {"one": one, "walk": walk, "made": again}):
        kind, said = answer(host, graph(model=model, **nodes, save=save))
        assert kind == "told"
        assert re.search(r"need \d+\.\d GB of memory, but only \d+\.\d GB is free", said)


SAMPLE = b'{"prompt": {"1": {"class_type": "FlowcoreSample", "inputs": '
BODIES = [b"", b"[]", b"null", b"{}", b"nothing", b"\xff\xfe"]
BODIES += [b'{"prompt": null}', b'{"prompt": []}', b'{"prompt": {}}', b'{"prompt": "FlowcoreSample"}']
BODIES += [SAMPLE + b"[" * 100_000 + b"]" * 100_000 + b"}}}", SAMPLE + b'{"seed": ' + b"9" * 100_000 + b"}}}}"]
BODIES += [b'{"prompt": {"1": {"class_type": "' + b"F" * 1_000_000 + b'", "inputs": {}}}}']


def test_malformed_requests_do_no_harm(host, good, photo):
    """Most of these are the host's to answer: that ours goes on is what counts."""
    look = witness(host, photo)
    for body in BODIES:
        with pytest.raises(urllib.error.HTTPError) as refused:
            host.post("/prompt", body)
        assert refused.value.code in (400, 500)
    look()
