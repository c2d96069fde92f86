"""How the tests talk to a server: workflows as small variations of the shipped one, outputs as pictures and facts."""

import io
import json
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfyui
import numpy as np
import pytest
import torch
from client import Client, RunError
from PIL import Image

HERE = Path(__file__).parent
WORKFLOWS = comfyui.ROOT / "workflows"
SUITING = "upscaler that suits the picture"  # in Load Flow Model
# Where the servers look for a certificate and its key, below their folders; tests put them there.
CREDENTIALS = {"FLOWCORE_CERTIFICATES": "secrets-chain.pem", "FLOWCORE_KEY": "secrets-key.pem"}
# Of a test whose facts do not depend on the version of the host. In every version all nodes and stories run, and
# test_reliability.py compares what comes of them.
newest = pytest.mark.parametrize("server", list(comfyui.trees())[:1], indirect=True)


class Host(Client):
    """What the tests say to a server, in their own words."""

    def __init__(self, server: comfyui.Server) -> None:
        super().__init__(server.url)
        self.server = server
        self.version = self.get_json("/system_stats")["system"]["comfyui_version"]

    def outputs(self, workflow: dict[str, Any] | None = None, /, **nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        """Run a workflow, with more nodes if any are given, and return what its nodes say."""
        return self.run(graph(workflow, **nodes))["outputs"]

    def images(self, workflow: dict[str, Any]) -> list[Image.Image]:
        return [opened(data) for data in self.pictures(self.run(workflow))]

    def run_from_canvas(self, workflow: dict[str, Any], canvas: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run a workflow as the frontend does, with the canvas beside it, and return its entry in the history."""
        return self.run(workflow, extra_pnginfo={"workflow": {"nodes": []}} if canvas is None else canvas)

    def info(self, node: str) -> dict[str, Any]:
        return self.get_json(f"/object_info/{node}")[node]

    def forget(self) -> None:
        """Make the server forget models and results: before it runs the next workflow, or right after that one."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        for _ in range(2):
            self.outputs(nothing=("PreviewAny", {"source": "nothing"}))

    def put(self, name: str, image: Image.Image) -> str:
        image.save(self.server.base / "input" / name)
        return name


# A plug-in that is loaded before this pack, and one that is loaded after it: name to the folder of its pack.
PLUG_INS = {"early_flow": "a-plug-in", "late_flow": "z-plug-in"}
PLUG_IN = """
import sys
from pathlib import Path
import flowcore, folder_paths
from . import NAME
when = "after" if any(name.endswith("PACK") for name in sys.modules) else "before"
flow = NAME.NAME(NAME.SmallFlowConfig(image_size=8))
flowcore.save(flow, Path(folder_paths.models_dir, "flows", "NAME.safetensors"), provenance={"source": when})
NODE_CLASS_MAPPINGS = {}
"""


def plug_ins(folder: Path) -> Iterator[Path]:
    """Write the plug-in of docs/plug-ins.md as two packs, which each save a model where the host looks."""
    text = (comfyui.ROOT / "docs" / "plug-ins.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name, pack in PLUG_INS.items():
        (folder / pack).mkdir()
        (folder / pack / f"{name}.py").write_text(code.replace("small_flow", name).replace("small-flow", name))
        start = PLUG_IN.replace("NAME", name).replace("PACK", comfyui.PACK_NAME)
        (folder / pack / "__init__.py").write_text(start)
        yield folder / pack


def newer(version: str, than: str) -> bool:
    return [int(x) for x in version.split(".")[:3]] >= [int(x) for x in than.split(".")]


def until(check: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until something holds, at most so long; what the last check returned."""
    deadline = time.monotonic() + seconds
    while not (held := check()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def array(image: Image.Image) -> np.ndarray:
    """Return a picture as (H, W, C) in [0, 1]."""
    return np.asarray(image, dtype=np.float64) / 255


def upscale(photo: str | None = None, model_name: str | None = None, **inputs: Any) -> dict[str, Any]:
    """Return the shipped API workflow, one sample, with other values: of Flow Upscale, the photograph, the model."""
    workflow = json.loads((WORKFLOWS / "api" / "upscale.json").read_text())
    workflow["photo"]["inputs"] |= {"image": photo} if photo else {}
    workflow["model"]["inputs"] |= {"model_name": model_name or "srflow-x4"}
    workflow["upscale"]["inputs"] |= {"samples": 1, "look": "natural"} | inputs
    return workflow


def probe(**inputs: Any) -> dict[str, Any]:
    """Return a workflow that upscales an image of the probe pack and reports on the result."""
    kind, made = picture(height=6, width=8)
    workflow = upscale(**{name: value for name, value in inputs.items() if name not in made})
    workflow["photo"] = {"class_type": kind, "inputs": {name: inputs.get(name, value) for name, value in made.items()}}
    return graph(workflow, save=report("upscale.0"))


def loader(name: str) -> tuple[str, dict[str, Any]]:
    """Load a model, for `graph`."""
    return "FlowcoreLoadModel", {"model_name": name}


def report(wire: str) -> tuple[str, dict[str, Any]]:
    """Report on an image, for `graph`."""
    return "FlowcoreTestReport", {"image": wire}


def shows(**wires: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """A node of the host per wire, which puts its value into the history; for `graph`."""
    return {name: ("PreviewAny", {"source": wire}) for name, wire in wires.items()}


def graph(workflow: dict[str, Any] | None = None, /, **nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Add nodes to a workflow, if any: id to class and inputs; an input `"id.0"` is the wire from an output."""
    every = (workflow or {}) | {name: {"class_type": kind, "inputs": values} for name, (kind, values) in nodes.items()}

    def wired(value: Any) -> Any:
        found = re.fullmatch(r"(\w+)\.(\d)", value) if isinstance(value, str) else None
        return [found[1], int(found[2])] if found and found[1] in every else value

    return {
        name: node | {"inputs": {key: wired(value) for key, value in node["inputs"].items()}}
        for name, node in every.items()
    }


def picture(**facts: Any) -> tuple[str, dict[str, Any]]:
    """An image of the probe pack, for `graph`: a color gradient unless it says otherwise."""
    made = {"batch": 1, "height": 12, "width": 16, "channels": 3, "fill": "gradient", "dtype": "float32"}
    return "FlowcoreTestImage", made | facts


def inputs(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """All inputs of a node in the order of its schema: (name, type or options, properties)."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            yield name, kind, (rest[0] if rest else {})


def noise(*shape: int, number: int = 0) -> torch.Tensor:
    """Make what the probe pack makes of `fill="noise"`, as (B, C, H, W)."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(number)
    made = torch.randint(0, 256, (batch, height, width, channels), generator=generator) / 255
    return made.permute(0, 3, 1, 2)


def pixels(report: dict[str, Any]) -> torch.Tensor:
    """Return the images of a report of the probe pack as (B, C, H, W)."""
    return torch.tensor(report["rows"]).reshape(report["shape"]).permute(0, 3, 1, 2)


def refusal(host: Host, workflow: dict[str, Any], *words: str) -> None:
    """Run a workflow that one of our errors must stop, with these words in it."""
    with pytest.raises(RunError) as refused:
        host.run(workflow)
    kind = refused.value.detail["exception_type"]
    assert kind.startswith("flowcore."), kind  # no accident in the depths, and no path of the server
    assert kind.endswith("Error")
    for word in words:
        assert word in str(refused.value)


def examples(host: Host) -> dict[str, list[str]]:
    """Return the files of every picture of Flow Example, as the page gets them."""
    return host.info("FlowcoreExample")["input"]["required"]["picture"][1]["flowcore_files"]


def options(info: dict[str, Any], name: str) -> list[Any]:
    """Return the options of an input, as either form of schema has them."""
    kind, properties = next((kind, properties) for label, kind, properties in inputs(info) if label == name)
    return kind if isinstance(kind, list) else properties["options"]


def ask(host, body, path="/flowcore/live", **headers):
    """Post a question; status and body of the answer."""
    try:
        return 200, host.post(path, body, **headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def live(host, run, at=(0.5, 0.5), number=0, **values):
    """Ask for a picture until no run is in the way."""

    def answered():
        status, body = ask(host, {"run": run, "values": values, "number": number, "at": at})
        return None if status == 409 else (status, body)

    status, body = until(answered, 30)
    assert status == 200, body
    return np.asarray(opened(body))


def recipes(data):
    return json.loads(opened(data).text["flowcore"])


def piece(number, quality=None):
    """A piece of the sample photograph, of 48x32 pixels; with a quality, as its JPEG file shows it."""
    with Image.open(WORKFLOWS / "photo.png") as photo:
        cut = photo.convert("RGB").crop((60 + 20 * number, 40, 108 + 20 * number, 72))
    if quality is None:
        return cut
    cut.save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
