"""The workflows that the browser tests open."""

import copy
import io

from PIL import Image
from saved_workflows import STORIES
from talk import graph

SUITING = "upscaler that suits the picture"
PHOTO, MODEL = ("LoadImage", {"image": "example.png"}), ("FlowcoreLoadModel", {"model_name": "srflow-x4"})
RED = io.BytesIO()
Image.new("RGB", (40, 30), (200, 30, 30)).save(RED, "PNG")
PICTURES = "() => [...document.querySelectorAll('.flowcore-gallery img')].filter(i => i.naturalWidth).length == 4"


def story(name):
    return copy.deepcopy(STORIES[name])


def positions(workflow):
    """Widget values of a saved workflow, by position."""
    ours = [node for node in workflow["nodes"] if node["type"].startswith("Flowcore")]
    return {node["id"]: node.get("widgets_values", []) for node in ours}  # newer frontends leave out an empty list


def counts(workflow):
    return {number: len(values) for number, values in positions(workflow).items()}


def saved_node(workflow, kind):
    (node,) = [node for node in workflow["nodes"] if node["type"] == kind]
    return node


def of_small_photo(name):
    """A shipped story of a photograph, with a small one."""
    workflow = story(name)
    photo = saved_node(workflow, "FlowcoreExample")
    del photo["outputs"][2]
    photo |= {"type": "LoadImage", "inputs": [], "widgets_values": ["example.png", "image"]}
    return workflow


def upscaling(control="randomize", temperature=0.8):
    """The shipped story with a small model's worth of work."""
    workflow = of_small_photo("upscale")
    values = saved_node(workflow, "FlowcoreUpscale")["widgets_values"]
    values[:4], values[-1] = [temperature, 40, control, 4], "natural"
    return workflow


def bad_jpeg():
    """The shipped story of enlarging, of a photograph with blocks."""
    workflow = story("upscale")
    saved_node(workflow, "FlowcoreExample")["widgets_values"][0] = "bad JPEG"
    return workflow


def digits(kind, values, **more):
    """A workflow in API format that ends in a preview of the node `last`."""
    return numbered(
        model=("FlowcoreLoadModel", {"model_name": "mnist-styles"}),
        last=(kind, values),
        preview=("PreviewImage", {"images": "last.0"}),
        **more,
    )


def numbered(**nodes):
    """A workflow in API format for the frontend, which takes numbers as ids."""
    made = graph(**nodes)
    numbers = {name: str(k + 1) for k, name in enumerate(made)}
    for node in made.values():
        wires = {key: value for key, value in node["inputs"].items() if isinstance(value, list)}
        node["inputs"] |= {key: [numbers[name], output] for key, (name, output) in wires.items()}
        node["_meta"] = {"title": node["class_type"]}
    return {numbers[name]: node for name, node in made.items()}
