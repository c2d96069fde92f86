"""The shipped workflows as both formats have them, and what each makes of a small photograph."""

import json
from unittest.mock import ANY

import comfyui
import numpy as np
from record_golden import NOTES
from stories import TITLES, canvas_file, opened
from talk import examples, inputs

STORIES = {name: json.loads(canvas_file(name).read_text()) for name in sorted(TITLES)}
CONTROL = ("fixed", "increment", "decrement", "randomize")


def widgets(info):
    """The widgets of a node in the order in which the frontend stores their values, hidden ones included."""
    for name, kind, properties in inputs(info):
        if isinstance(kind, list) or kind == "COMBO":
            yield name, kind if isinstance(kind, list) else properties["options"], properties
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            yield name, [option["key"] for option in properties["options"]], properties
        elif kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COLOR") and not properties.get("forceInput"):
            yield name, kind, properties
        if properties.get("control_after_generate"):
            yield None, list(CONTROL), {}
        if properties.get("image_upload"):
            yield None, ["image"], {}


def valued(node, info):
    """The widgets of a saved node: (name, kind, properties, value); those that it does not know yet have defaults."""
    named, saved = list(widgets(info)), node["widgets_values"]
    if not node["type"].startswith("Flowcore"):
        saved = saved[: len(named)]  # of a later host
    assert len(saved) <= len(named), node["type"]
    # Hidden ones have no name: what a seed does after a run, and the button of a picture.
    later = [properties.get("default") if name else "fixed" for name, _, properties in named[len(saved) :]]
    return [(*described, value) for described, value in zip(named, saved + later, strict=True)]


def to_api(workflow, every):
    """Turn a workflow from the frontend's format into that of the API, as the frontend does."""
    wires = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    api = {}
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            info = every[node["type"]]
            values = {name: value for name, _, _, value in valued(node, info) if name}
            linked = {i["name"]: wires[i["link"]] for i in node["inputs"] if i.get("link") is not None}
            title = {"title": node.get("title") or info["display_name"]}
            api[str(node["id"])] = {"class_type": node["type"], "inputs": values | linked, "_meta": title}
    return api


def known(api, every):
    """A workflow without the inputs of core nodes that only later hosts have."""
    for node in api.values():
        if not node["class_type"].startswith("Flowcore"):
            names = {name for name, _, _ in inputs(every[node["class_type"]])}
            node["inputs"] = {name: value for name, value in node["inputs"].items() if name in names}
    return api


def canonical(api):
    """A workflow with its node ids replaced by the nodes' types and titles."""
    kinds = {name: (node["class_type"], node["_meta"]["title"]) for name, node in api.items()}
    assert len(set(kinds.values())) == len(kinds)
    return {
        kinds[key]: {
            name: [kinds[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for key, node in api.items()
    }


def check_values(node_type, valued):
    """Check values against widgets: (name, kind or options, properties, value)."""
    for name, kind, properties, value in valued:
        place = f"{node_type}.{name}: {value!r}"
        if properties.get("image_upload"):
            assert isinstance(value, str), place
        elif isinstance(kind, list):
            assert value in kind, place
        elif kind in ("INT", "FLOAT"):
            assert isinstance(value, int | float), place
            assert not isinstance(value, bool), place
            assert kind == "FLOAT" or isinstance(value, int), place
            assert properties["min"] <= value <= properties["max"], place
        else:
            assert isinstance(value, {"STRING": str, "BOOLEAN": bool, "COLOR": str}[kind]), place


# What each story saves from a photograph of 24x16: number of pictures, and the size of the first.
RESULTS = {
    "upscale": (4, (96, 64)),
    "temperatures": (1, ANY),  # its labels are as wide as the font that Pillow brings
    "morph-faces": (1, (256, 256)),
    **dict.fromkeys(("latent-normalisation", "clean-up", "night"), (1, (24, 16))),
    **dict.fromkeys(("steady-clip", "painted"), (1, (96, 64))),
    "digits": (10, (112, 112)),
    "retouched": (2, (256, 256)),
    "old-scan": (3, ANY),
    "strokes": (2, (24, 16)),
    "palette-transfer": (3, (24, 16)),
    "train": (1, (224, 256)),  # the sheet of Flow Train; what Flow Sample makes is shown, not saved
    "verify": (1, (56, 16)),
    "faces": (4, (1280, 808)),
}
# The same of stories of earlier releases, and of earlier versions of a story.
EARLIER = {
    "photo": (4, (96, 64)),
    "grid": (1, ANY),
    "morph": (1, (256, 256)),
    "clip": (1, (24, 16)),
    "handwriting": (50, (112, 112)),
    "rank": (6, (64, 64)),
    **dict.fromkeys(("colourings", "old-scan"), (4, (24, 16))),
    "thumbnail": (1, (56, 16)),
    "second-opinion": (1, (200, 136)),
    "audit": (1, (776, 552)),
    "best-of": (2, (96, 64)),
    "smile": (4, (128, 64)),
}
# The story of training, with a recipe of as few pixels and steps as the photographs of the tests allow.
QUICK = """
name = "quick"
architecture = "glow"
validation = 1
precision = "float32"
checkpoint_every = 2
init_batch = 8
evaluate = 8
model = {levels = 2, steps = 1, hidden = 8, image_size = 32}
stages = [{name = "flow", objective = "likelihood", steps = 2, batch = 4, crop = 32}]
"""


def with_photo(host, workflow, photo):
    """Give a workflow a small photograph in place of every single one; batches stay as they are."""
    files = examples(host)
    for node in workflow.values():
        kind, values = node["class_type"], node["inputs"]
        if kind == "FlowcoreExample" and values["picture"].startswith(("group photograph", "office door")):
            continue  # small already: its eyes are where the story says, or another picture goes with it
        if kind == "LoadImage" or (kind == "FlowcoreExample" and len(files[values["picture"]]) == 1):
            node |= {"class_type": "LoadImage", "inputs": {"image": photo}}
    return workflow


def run_small(host, workflow, photo, folder_of_photos):
    """Run a story with small photographs and the quick recipe; the pictures, which show something."""
    for node in with_photo(host, workflow, photo).values():
        if node["class_type"] == "FlowcoreTrain":
            (host.server.base / "models" / "flows" / "quick.toml").write_text(QUICK)
            node["inputs"] |= {"folder": folder_of_photos, "recipe": "quick.toml", "start": "nothing", "restart": True}
    pictures = [opened(data) for data in host.pictures(host.run(workflow))]
    assert all(np.asarray(picture.convert("RGB")).std() > 5 for picture in pictures)
    return pictures


BLUEPRINTS = sorted((comfyui.ROOT / "subgraphs").glob("*.json"))
