"""`make demo`: a photograph upscaled in a real ComfyUI, over its HTTP API, with what came out side by side."""

import io
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import comfyui
from client import Client, RunError
from PIL import Image, ImageDraw, ImageFont

WORKFLOWS = comfyui.ROOT / "workflows"
OUTPUT = comfyui.ROOT / "output"
PHOTO = WORKFLOWS / "photo.png"

OWN = -0.1  # what Flow Upscale calls the model's own temperature

# (temperature, seed). The first three appear in the side-by-side picture.
SAMPLES = [(0.0, 1), (OWN, 1), (OWN, 2), (OWN, 3)]


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    say("starting ComfyUI 0.30.0 without a window ...")
    with (
        tempfile.TemporaryDirectory(prefix="flowcore-demo-") as base,
        comfyui.running(comfyui.tree(), Path(base)) as server,
    ):
        shutil.copy(PHOTO, server.base / "input")
        pictures = {named(*sample): enlarge(Client(server.url), *sample) for sample in SAMPLES}
    say("server stopped")

    photo = Image.open(PHOTO).convert("RGB")
    bicubic = photo.resize(next(iter(pictures.values())).size, Image.Resampling.BICUBIC)
    shown = dict(list({"bicubic": bicubic, **pictures}.items())[:4])
    files = {f"upscale-{name.replace(', seed ', '-seed')}": picture for name, picture in pictures.items()}
    for name, picture in {**files, "side-by-side": side_by_side(shown)}.items():
        file = OUTPUT / f"{name.replace(' ', '-')}.png"
        picture.save(file)
        say(f"saved {file}")


def enlarge(client: Client, temperature: float, seed: int) -> Image.Image:
    """Run the API workflow on the photograph, with its progress on one line of the console, and fetch the picture."""
    workflow, start = json.loads((WORKFLOWS / "api" / "upscale.json").read_text()), time.monotonic()
    workflow["photo"]["inputs"]["image"] = PHOTO.name
    workflow["upscale"]["inputs"] |= {"temperature": temperature, "seed": seed, "look": "natural"}

    def show(event: dict[str, Any] | bytes) -> None:
        if isinstance(event, dict) and event.get("type") == "progress":
            share = event["data"]["value"] / max(1, event["data"]["max"])
            say(f"\r{named(temperature, seed)}  [{'#' * round(20 * share):<20}] {100 * share:3.0f}%", end="")

    (data,) = client.pictures(client.run(workflow, show))
    say(f"\r{named(temperature, seed)}  done in {time.monotonic() - start:.1f} s".ljust(60))
    return Image.open(io.BytesIO(data)).convert("RGB")


def named(temperature: float, seed: int) -> str:
    return f"{'default' if temperature == OWN else f'tau {temperature:g}'}, seed {seed}"


def side_by_side(panels: dict[str, Image.Image]) -> Image.Image:
    """Put labeled pictures of one size beside each other, each with a detail at twice the size below."""
    width, height = next(iter(panels.values())).size
    label, gap = 40, 8
    detail = (width * 3 // 8, height // 8, width * 7 // 8, height * 5 // 8)
    sheet = Image.new("RGB", ((width + gap) * len(panels) - gap, label + 2 * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, picture) in enumerate(panels.items()):
        left = index * (width + gap)
        draw.text((left + 8, 6), name, fill="black", font=ImageFont.load_default(24))
        sheet.paste(picture, (left, label))
        larger = picture.crop(detail).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(larger, (left, label + height + gap))
    return sheet


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except (comfyui.HostError, RunError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
