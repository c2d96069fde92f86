"""`make workflows`: from the stories in API format, their twins for the canvas and their thumbnails.

A story is written once, as `workflows/api/NAME.json`. Its twin `workflows/NAME.json` is laid out from it and from the
schema of a real ComfyUI, and its thumbnail `workflows/NAME.jpg` is what it makes of the sample photograph there.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import comfyui
import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence

import flowcore

WORKFLOWS = comfyui.ROOT / "workflows"
PHOTO = WORKFLOWS / "photo.png"
DRAWN_BY_HAND = {"upscale"}  # its layout is older than this program; demo.py makes its thumbnail
CONTROLLED = "fixed"  # what a seed does after a run
COLUMN, GAP = 340, 60
THUMBNAIL = 640

# Which file of workflows/ a story loads for its thumbnail, by node; the others load the sample photograph.
PHOTOS = {
    "colourings": {"photo": "mill.jpg"},
    "strokes": {"photo": "house.jpg"},
    "palette-transfer": {"photo": "house.jpg"},
    "clip": {"photo": "alps.jpg"},
    "painted": {"photo": "painted.png"},
    "grid": {"photo": "photo.png"},
    "best-of": {"photo": "photo.png"},
}


def to_canvas(name: str, api: dict[str, Any], every: dict[str, Any]) -> dict[str, Any]:
    """Lay a story out for the canvas.

    Args:
        name: Of the story.
        api: It, in API format; every widget of every node has its value there.
        every: `/object_info` of a host.

    Returns:
        The workflow as the frontend saves it.
    """
    numbers = {key: k + 1 for k, key in enumerate(api)}
    depth: dict[str, int] = {}
    for _ in api:
        for key, node in api.items():
            sources = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
            depth[key] = 1 + max((depth.get(source, 0) for source in sources), default=-1)
    nodes: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    tops: dict[int, int] = {}
    for key, node in api.items():
        shown, values = slots(node, every[node["class_type"]])
        height = 60 + 26 * len(shown) + (220 if node["class_type"] in PICTURES else 0)
        top = tops.get(depth[key], 100)
        tops[depth[key]] = top + height + GAP
        ours = node["class_type"].startswith("Flowcore")
        nodes.append(
            {
                "id": numbers[key],
                "type": node["class_type"],
                "pos": [40 + depth[key] * (COLUMN + GAP), top],
                "size": [COLUMN, height],
                "flags": {},
                "order": sorted(api, key=lambda k: depth[k]).index(key),
                "mode": 0,
                "inputs": shown,
                "outputs": [
                    {"name": label, "type": kind, "links": None}
                    for label, kind in zip(
                        every[node["class_type"]]["output_name"], every[node["class_type"]]["output"], strict=True
                    )
                ],
                "title": node["_meta"]["title"],
                "properties": {
                    "cnr_id": "flowcore" if ours else "comfy-core",
                    "ver": "0.1.0" if ours else "0.30.0",
                    "Node name for S&R": node["class_type"],
                },
                "widgets_values": values,
            }
        )
    for key, node in api.items():
        target = nodes[numbers[key] - 1]
        for slot, shown in enumerate(target["inputs"]):
            value = node["inputs"].get(shown["name"])
            if isinstance(value, list):
                source, output = nodes[numbers[value[0]] - 1], value[1]
                kind = source["outputs"][output]["type"]
                links.append([len(links) + 1, source["id"], output, target["id"], slot, kind])
                shown["link"] = len(links)
                source["outputs"][output]["links"] = [*(source["outputs"][output]["links"] or []), len(links)]
    text = note_of(name)
    if text:
        nodes.append(note(len(nodes) + 1, text))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"flowcore/{name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


PICTURES = {
    "LoadImage",
    "SaveImage",
    "SaveAnimatedWEBP",
    "PreviewAny",
    "PreviewImage",
    "FlowcoreSample",
    "FlowcoreDecode",
    "FlowcoreColorize",
    "FlowcoreTrain",
    "FlowcoreUpscale",
}


def slots(node: dict[str, Any], info: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Build a node's inputs as the canvas shows them, and the values of its widgets in their order."""
    shown: list[dict[str, Any]] = []
    values: list[Any] = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            properties = rest[0] if rest else {}
            label = "COMBO" if isinstance(kind, list) else kind
            slot: dict[str, Any] = {"name": name, "type": label}
            if label in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN") and not properties.get("forceInput"):
                slot["widget"] = {"name": name}
                values.append(node["inputs"][name])
                if properties.get("control_after_generate"):
                    values.append(CONTROLLED)
            shown.append({**slot, "link": None})
            if properties.get("image_upload"):
                shown.append({"name": "upload", "type": "IMAGEUPLOAD", "widget": {"name": "upload"}, "link": None})
                values.append("image")
    return shown, values


def note_of(name: str) -> str | None:
    """Read the note for people from the canvas file of a story, where it is written."""
    path = WORKFLOWS / f"{name}.json"
    nodes = json.loads(path.read_text())["nodes"] if path.exists() else []
    return next((node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"), None)


def note(number: int, text: str) -> dict[str, Any]:
    """Build a note for people, above the story."""
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [40, -120],
        "size": [2 * COLUMN, 160],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "What this does",
        "properties": {},
        "widgets_values": [text],
    }


def prepare_inputs(base: Path) -> None:
    """Put the sample photograph where the stories look for theirs: alone, and with variations as folders."""
    photo = Image.open(PHOTO).convert("RGB")
    folder, many = base / "input" / "photos", base / "input" / "my-photos"
    for place in (folder, many):
        place.mkdir(parents=True, exist_ok=True)
    square = ImageOps.fit(photo, (128, 128))
    large = flowcore.upscale(flowcore.load("srflow-x4"), pixels(square), temperature=0.8, seed=1)[0]
    picture(large).save(base / "input" / "example.png")  # as sharp as photographs are, 512x512
    for k in range(25):  # as many views of it, to train on
        view = (k % 5 * 64, k // 5 * 64, k % 5 * 64 + 256, k // 5 * 64 + 256)
        picture(large).crop(view).save(many / f"{k}.png")
    square.save(folder / "photograph.png")
    square.rotate(180).save(folder / "upside-down.png")
    ImageOps.invert(square).save(folder / "negative.png")
    Image.effect_noise((128, 128), 120).convert("RGB").save(folder / "noise.png")
    Image.new("RGB", (128, 128), (70, 110, 160)).save(folder / "flat.png")


def pixels(image: Image.Image) -> torch.Tensor:
    """Make a batch of one of a picture: (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def picture(tensor: torch.Tensor) -> Image.Image:
    """Make a picture of (3, H, W) in [0, 1]."""
    return Image.fromarray((tensor * 255).round().byte().permute(1, 2, 0).numpy())


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """Put what a story made into one picture: of a film four frames, of many pictures the first ten, in a grid."""
    frames: list[Image.Image] = []
    for picture in pictures:
        film = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        frames += film if len(film) == 1 else [film[k * (len(film) // 2) // 3] for k in range(4)]
    frames = frames[:10]
    width, height = (max(frame.size[axis] for frame in frames) for axis in (0, 1))
    one_row = len(frames) <= 4 and width < 1.4 * height
    columns = len(frames) if one_row else max(1, round((1.6 * len(frames) * height / width) ** 0.5))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (width + 4) - 4, rows * (height + 4) - 4), "white")
    for k, frame in enumerate(frames):
        sheet.paste(frame, (k % columns * (width + 4), k // columns * (height + 4)))
    return sheet


def bounded(picture: Image.Image) -> Image.Image:
    """Bring a picture to a thumbnail's size, at least 200 pixels a side."""
    scale = THUMBNAIL / max(picture.size)
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), resample)
    sheet = Image.new("RGB", (max(200, small.width), max(200, small.height)), "white")
    sheet.paste(small, ((sheet.width - small.width) // 2, (sheet.height - small.height) // 2))
    return sheet


def main() -> None:
    """Write the twins, and, unless told otherwise, the thumbnails."""
    parser = argparse.ArgumentParser(description="Lay the stories out for the canvas, and run them for thumbnails.")
    parser.add_argument("names", nargs="*", help="stories; none for all")
    parser.add_argument("--layout-only", action="store_true", help="leave the thumbnails as they are")
    parser.add_argument("--keep", type=Path, help="also save what the stories make, in full, into this folder")
    options = parser.parse_args()
    sys.path.insert(0, str(WORKFLOWS / "api"))
    from client import Client

    names = options.names or sorted({p.stem for p in (WORKFLOWS / "api").glob("*.json")} - DRAWN_BY_HAND)
    with tempfile.TemporaryDirectory(prefix="flowcore-stories-") as base:
        prepare_inputs(Path(base))
        with comfyui.running(comfyui.tree(), Path(base)) as server:
            client = Client(server.url)
            every = client.get_json("/object_info")
            for name in names:
                api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
                canvas = to_canvas(name, api, every)
                (WORKFLOWS / f"{name}.json").write_text(json.dumps(canvas, indent=2) + "\n")
                sys.stdout.write(f"{name}.json\n")
                if options.layout_only:
                    continue
                for key, file in PHOTOS.get(name, {}).items():
                    api[key]["inputs"]["image"] = client.upload(WORKFLOWS / file, file)
                pictures = [Image.open(io.BytesIO(data)) for data in client.pictures(client.wait(client.queue(api)))]
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    thumbnail(pictures).save(options.keep / f"{name}.png")
                bounded(thumbnail(pictures)).save(WORKFLOWS / f"{name}.jpg", quality=88)
                sys.stdout.write(f"{name}.jpg\n")


if __name__ == "__main__":
    main()
