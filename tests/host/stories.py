"""`make workflows`: from the stories in API format, their twins for the canvas and their thumbnails.

A story is written once, as `workflows/api/NAME.json`. Its twin `workflows/TITLE.json` is laid out from it and from
the schema of a real ComfyUI, and its thumbnail, a `.jpg` of the same name, is what it makes. The template browser knows
the names of the files only, and searches them: `TITLES` holds the words that people look for.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import comfyui
from client import Client
from PIL import Image, ImageSequence

WORKFLOWS = comfyui.ROOT / "workflows"
CONTROLLED = "fixed"  # what a seed does after a run
COLUMN, GAP, BELOW = 344, 40, 60  # pixels: width of a node, between columns, and between nodes
MAIN, NARROW, LOWER = 460, 374, 70  # width of a node with a gallery, and in a story of several ones, which are lower
MUCH_LOWER, LOWEST = {"old-scan": 150}, 1145  # of wide pictures; where the last node ends at the latest
THUMBNAIL = 640

# Story to the name of its file, in the order of the template browser: see workflows/order.txt.
TITLES = {
    "upscale": "Enlarge a photo - upscale",
    "old-scan": "Restore an old photo - scratches",
    "strokes": "Colorize with brush strokes",
    "clean-up": "Clean noise and JPEG blocks",
    "night": "Brighten a dark photo",
    "faces": "Faces in a group photo",
    "steady-clip": "Upscale a video without flicker",
    "verify": "Which picture is this - trace",
    "temperatures": "Experiment - sample faces",
    "morph-faces": "Experiment - morph faces",
    "digits": "Experiment - styles of digits",
    "retouched": "Experiment - retouched spot",
    "latent-normalisation": "Experiment - remove dither",
    "train": "Experiment - train an upscaler",
    "painted": "Experiment - painted temperature",
    "palette-transfer": "Experiment - colors of other photos",
}
# What is said of a node besides its display name: a key of `flowcore.stories` in locales/*/main.json.
NAMED = {
    "palette-transfer": {"photo": "monochrome", "reference": "colors"},
    "steady-clip": {"clip": "film"},
    "verify": {"photo": "edited", "small": "small_photograph", "enlarged": "enlargement"},
    "old-scan": {
        "model": "model_photographs",
        "color_model": "model_colors",
        "paint": "missed",
        "save_gray": "black_and_white",
        "save": "in_color",
        "save_large": "enlarged",
    },
    "faces": {
        "body_model": "model_photographs",
        "model": "model_faces",
        "body": "enlarge_photograph",
        "upscale": "enlarge_faces",
    },
}
# Stories that would be wider or higher than the canvas with a column for every step: their columns, from top to bottom.
COLUMNS = {
    "old-scan": (
        "photo model color_model",
        "find paint",
        "marked repair",
        "clean save_gray",
        "color save",
        "upscale save_large",
    ),
    "palette-transfer": ("photo reference", "remember model", "color", "save"),
    "digits": ("model style", "sample", "decode large", "save"),
    "faces": ("photo model body_model", "align", "body", "upscale", "paste save"),
    "verify": ("photo small", "model enlarged", "verify audit", "both", "save map"),
}
# What the frontend's App mode asks for: node to its widgets. What the story saves is shown beside them.
APP: dict[str, dict[str, tuple[str, ...]]] = {
    "upscale": {"photo": ("picture",), "model": ("model_name",), "upscale": ("look", "factor", "seed")},
    "clean-up": {"photo": ("picture",), "clean": ("strength",)},
    "night": {"photo": ("picture",), "light": ("exposure",)},
    "old-scan": {
        "photo": ("picture",),
        "find": ("sensitivity",),
        "paint": ("flowcore_brush",),
        "color": ("seed",),
    },
    "painted": {"photo": ("picture",), "paint": ("flowcore_brush", "ground"), "upscale": ("temperature", "seed")},
    "strokes": {"photo": ("picture",), "paint": ("flowcore_brush",), "color": ("temperature", "seed", "samples")},
    "palette-transfer": {"photo": ("picture",), "reference": ("picture",), "color": ("seed",)},
    "steady-clip": {"film": ("picture",), "upscale": ("temperature", "seed", "steadiness")},
    "temperatures": {"grid": ("temperatures", "seed", "seeds")},
    "digits": {"sample": ("labels", "temperature", "seed"), "style": ("bold", "wide", "slanted", "messy")},
    "retouched": {"photos": ("picture",), "score": ("seed",)},
    "latent-normalisation": {"photo": ("picture",), "harmonize": ("strength", "per")},
    "train": {"photos": ("picture",), "train": ("recipe", "start", "name", "minutes")},
    "faces": {"photo": ("picture",), "align": ("flowcore_eyes",), "upscale": ("temperature", "seed", "samples")},
    "morph-faces": {"portraits": ("picture",), "morph": ("frames", "mode")},
    "verify": {"photo": ("picture",), "verify": ("seed",)},
}
# Stories whose thumbnail is the picture that they start from beside the first that they make.
SOURCES = {"latent-normalisation": "pictures/poor.png", "faces": "pictures/group.png", "palette-transfer": "alps.jpg"}
SOURCES |= {"clean-up": "pictures/noisy.jpg", "night": "pictures/dark.jpg", "old-scan": "pictures/scratched.jpg"}
SOURCES |= {"upscale": "photo.png", "painted": "photo.png", "strokes": "house.jpg"}
# What part of both is shown, where all of it would look alike: its side, as a share of the shorter one, and its place.
PARTS = dict.fromkeys(("upscale", "painted", "latent-normalisation"), (0.5, 0.5, 0.5))
PARTS |= {"clean-up": (0.6, 0.1, 0.3)}
# Stories of films that are also run with other values, whose frames stand above.
CONTRASTS = {"steady-clip": {"upscale": {"steadiness": 0.0}}}
EXAMPLE = ("FlowcoreExample", {"picture": "photograph"})  # what stands on the canvas for a photograph of a script
WORDS = json.loads((comfyui.ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["flowcore"]["stories"]


def canvas_file(name: str, suffix: str = ".json") -> Path:
    """Return the file of a story for the canvas, or of its thumbnail."""
    return WORKFLOWS / f"{TITLES[name]}{suffix}"


def on_canvas(api: dict[str, Any]) -> dict[str, Any]:
    """Replace the photographs that a script is to give by one that comes with the pack."""
    example = {"class_type": EXAMPLE[0], "inputs": EXAMPLE[1], "_meta": {"title": "Flow Example"}}
    return {key: example if node["class_type"] == "LoadImage" else node for key, node in api.items()}


def to_canvas(name: str, api: dict[str, Any], every: dict[str, Any]) -> dict[str, Any]:
    """Lay a story in API format, with the value of every widget, out as the frontend saves it.

    `every` is `/object_info` of a host.
    """
    api = on_canvas(api)
    numbers = {key: k + 1 for k, key in enumerate(api)}
    nodes: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    left, order = 40, 0
    for column in columns(name, api):
        top, wide = 100, COLUMN
        for key in column:
            node, info = api[key], every[api[key]["class_type"]]
            shown, values, folded = slots(node, info)
            width, height = size(node, info, shown, folded)
            if width == MAIN and len(columns(name, api)) > 4:
                width, height = NARROW, height - MUCH_LOWER.get(name, LOWER)
            height = min(height, LOWEST - top)
            outputs = zip(info["output_name"], info["output"], strict=True)
            title = WORDS[NAMED[name][key]] if key in NAMED.get(name, {}) else node["_meta"]["title"]
            made = placed(numbers[key], node["class_type"], (left, top), (width, height), order)
            made["inputs"] = shown
            made["outputs"] = [{"name": label, "type": kind, "links": None} for label, kind in outputs]
            if title != info["display_name"]:  # which the frontend translates
                made["title"] = title
            words = {"flowcore_words": NAMED[name][key]} if key in NAMED.get(name, {}) else {}
            ours = node["class_type"].startswith("Flowcore")
            pack = {"cnr_id": "flowcore", "ver": "0.1.0"} if ours else {"cnr_id": "comfy-core", "ver": "0.30.0"}
            made["properties"] = words | pack | {"Node name for S&R": node["class_type"]}
            nodes.append(made | {"widgets_values": values})
            top, wide, order = top + height + BELOW, max(wide, width), order + 1
        left += wide + GAP
    nodes.sort(key=lambda node: node["id"])
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
    note = placed(
        len(nodes) + 1, "MarkdownNote", (40, -50), (COLUMN + MAIN + GAP, 90), 0
    )  # for people, above the story
    note |= {"inputs": [], "outputs": [], "title": WORDS["note"]}
    note |= {"color": "#2a2a2e", "bgcolor": "#1c1c1f"}  # the frontend's own is ochre, under gray
    nodes.append(note | {"properties": {"flowcore_words": name}, "widgets_values": [WORDS[name]]})
    made = {"revision": 0}  # no id: every time that it is opened, it is a workflow of its own
    made |= {"last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links}
    made |= {"groups": [], "config": {}, "extra": {"linearData": app(name, api, numbers, every)}}
    return made | {"version": 0.4}


def columns(name: str, api: dict[str, Any]) -> list[list[str]]:
    """Put the nodes of a story into columns: stated ones, or by how far they are from the start, loaders below."""
    if name in COLUMNS:
        return [column.split() for column in COLUMNS[name]]
    depth: dict[str, int] = {}
    for _ in api:
        for key, node in api.items():
            sources = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
            depth[key] = 1 + max((depth.get(source, 0) for source in sources), default=-1)
    loaders = [key for key, node in api.items() if node["class_type"] == "FlowcoreLoadModel"]
    for key in loaders:
        used = [depth[user] for user, node in api.items() if [key, 0] in node["inputs"].values()]
        depth[key] = min(used, default=1) - 1  # beside what uses it: no wire runs behind a node
    every = sorted(api, key=lambda key: key in loaders)
    return [[key for key in every if depth[key] == place] for place in range(max(depth.values()) + 1)]


def size(node: dict[str, Any], info: dict[str, Any], shown: list[Any], folded: int) -> tuple[int, int]:
    """Return width and height of a node with so many inputs, of which some are folded, and with what it shows."""
    kind, height = node["class_type"], 60 + 26 * (len(shown) - folded) + TALLER.get(node["class_type"], 0)
    if not kind.startswith("Flowcore"):
        return MAIN if kind == "PreviewAny" else COLUMN, height  # a table
    if any(slot["name"] == "pick" for slot in shown):
        return MAIN, height + AREA
    says = "unique_id" in info["input"].get("hidden", {}) and "STRING" in info["output"]
    return COLUMN, height + TEXT * says


def placed(number: int, kind: str, pos: tuple[int, int], size: tuple[int, int], order: int) -> dict[str, Any]:
    """Begin a node of the canvas."""
    where = {"id": number, "type": kind, "pos": list(pos), "size": list(size)}
    return where | {"flags": {}, "order": order, "mode": 0}


def app(name: str, api: dict[str, Any], numbers: dict[str, int], every: dict[str, Any]) -> dict[str, Any]:
    """Say what App mode shows of a story: pairs of a node and a widget, and the nodes whose pictures are the result."""
    hosts = {key: node for key, node in api.items() if not node["class_type"].startswith("Flowcore")}  # not a gallery
    saving = [key for key, node in hosts.items() if {"images", "video"} & node["inputs"].keys()]
    return {
        "inputs": [[numbers[key], widget] for key, widgets in APP[name].items() for widget in widgets],
        "outputs": [numbers[key] for key in saving if every[api[key]["class_type"]]["output_node"]],
    }


WIDGETS = ("COMBO", "COMFY_DYNAMICCOMBO_V3", "INT", "FLOAT", "STRING", "BOOLEAN", "COLOR")
AREA, TEXT = 460, 130  # pixels of what a node shows of its runs, with pictures and without: web/js/canvas.js
# Pixels that the pictures of a node take, besides its inputs.
TALLER = {"FlowcoreExample": 280, "PreviewAny": 160, "FlowcoreTrain": 150, "FlowcoreAlignFace": 280}
TALLER |= {
    "FlowcoreEncode": 340,
    "FlowcoreDecode": 230,
    "FlowcoreShrink": 220,
    "FlowcoreColorMemory": 110,
    "FlowcoreFindScratches": 350,
    "FlowcoreAudit": 370,
    "FlowcoreMatchSource": 350,
}
TALLER |= dict.fromkeys(("SaveImage", "SaveAnimatedWEBP", "SaveVideo", "PreviewImage"), 260)
TALLER |= dict.fromkeys(("FlowcorePaintHints", "FlowcorePaintTemperature"), 420)


def slots(node: dict[str, Any], info: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any], int]:
    """Build a node's inputs as the canvas has them and the values of its widgets in order, and count what is folded."""
    shown: list[dict[str, Any]] = []
    values: list[Any] = []
    folded = 0
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            properties = rest[0] if rest else {}
            label = "COMBO" if isinstance(kind, list) else kind
            slot: dict[str, Any] = {"name": name, "type": label}
            folded += properties.get("advanced", False)
            if label in WIDGETS and not properties.get("forceInput"):
                slot["widget"] = {"name": name}
                value = node["inputs"].get(name, properties.get("default"))
                values.append(properties.get("default") if isinstance(value, list) else value)
                if properties.get("control_after_generate"):
                    values.append(CONTROLLED)
            shown.append({**slot, "link": None})
            if properties.get("image_upload"):
                shown.append({"name": "upload", "type": "IMAGEUPLOAD", "widget": {"name": "upload"}, "link": None})
                values.append("image")
    return shown, values, folded


def opened(data: bytes) -> Image.Image:
    """Open a picture, or a video as an animated picture."""
    if data[4:8] == b"ftyp":
        import av  # comes with the host

        with av.open(io.BytesIO(data)) as video:
            first, *frames = [frame.to_image() for frame in video.decode(video=0)]
        first.save(buffer := io.BytesIO(), "WEBP", lossless=True, save_all=True, append_images=frames)
        data = buffer.getvalue()
    return Image.open(io.BytesIO(data))


def thumbnail(pictures: list[Image.Image], columns: int = 0) -> Image.Image:
    """Put what a story made into one picture: of a film four frames, of many pictures the first ten, in a grid."""
    frames: list[Image.Image] = []
    for picture in pictures:
        film = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        frames += film if len(film) == 1 else [film[k * (len(film) // 2) // 3] for k in range(4)]
    frames = frames[:10]
    width, height = (max(frame.size[axis] for frame in frames) for axis in (0, 1))
    one_row = len(frames) <= 4 and width < 1.4 * height
    columns = columns or (len(frames) if one_row else max(1, round((1.6 * len(frames) * height / width) ** 0.5)))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (width + 4) - 4, rows * (height + 4) - 4), "white")
    for k, frame in enumerate(frames):
        sheet.paste(frame, (k % columns * (width + 4), k // columns * (height + 4)))
    return sheet


def beside(before: Image.Image, after: Image.Image, part: tuple[float, float, float] | None) -> Image.Image:
    """Put a picture as it was beside what was made of it, all or a part; pixels of enlarged ones are squares."""
    pictures = [before.resize(after.size, Image.Resampling.NEAREST), after]
    if part:
        share, *place = part
        side = round(share * min(after.size))
        left, top = (round(at * (whole - side)) for at, whole in zip(place, after.size, strict=True))
        pictures = [picture.crop((left, top, left + side, top + side)) for picture in pictures]
    if before.size == after.size:
        scale = max(1.0, THUMBNAIL / (2 * max(pictures[0].size)))
        size = [round(scale * side) for side in pictures[0].size]
        pictures = [picture.resize((size[0], size[1]), Image.Resampling.BICUBIC) for picture in pictures]
    return thumbnail(pictures, columns=2)


def strips(films: list[Image.Image]) -> Image.Image:
    """Put a row of each film into one picture: the middles of its first four frames."""
    side, gap = 144, 4
    sheet = Image.new("RGB", (4 * (side + gap) - gap, len(films) * (side + gap) - gap), "white")
    for row, film in enumerate(films):
        for column, frame in zip(range(4), ImageSequence.Iterator(film), strict=False):
            left, top = (frame.width - side) // 2, (frame.height - side) // 2
            middle = frame.convert("RGB").crop((left, top, left + side, top + side))
            sheet.paste(middle, (column * (side + gap), row * (side + gap)))
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
    names = options.names or sorted(p.stem for p in (WORKFLOWS / "api").glob("*.json"))
    with (
        tempfile.TemporaryDirectory(prefix="flowcore-stories-") as base,
        comfyui.running(comfyui.tree(), Path(base)) as server,
    ):
        client = Client(server.url)
        every = client.get_json("/object_info")
        for name in names:
            api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
            canvas_file(name).write_text(json.dumps(to_canvas(name, api, every), indent=2) + "\n")
            sys.stdout.write(f"{canvas_file(name).name}\n")
            if options.layout_only:
                continue
            done = client.run(on_canvas(api))
            pictures = [opened(data) for data in client.pictures(done)]
            if name in CONTRASTS:
                for key, values in CONTRASTS[name].items():
                    api[key]["inputs"] |= values
                done = client.run(on_canvas(api))
                pictures = [*(opened(data) for data in client.pictures(done)), *pictures]
            sheet = strips(pictures) if name in CONTRASTS else thumbnail(pictures)
            if name in SOURCES:
                before = Image.open(WORKFLOWS / SOURCES[name]).convert("RGB")
                sheet = beside(before, pictures[0].convert("RGB"), PARTS.get(name))
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                sheet.save(options.keep / f"{name}.png")
            bounded(sheet).save(canvas_file(name, ".jpg"), quality=88)
            sys.stdout.write(f"{canvas_file(name, '.jpg').name}\n")


if __name__ == "__main__":
    main()
