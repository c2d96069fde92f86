"""`make demo`: a photograph upscaled in a real ComfyUI, over its HTTP API, with what came out side by side."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import comfyui
from PIL import Image, ImageDraw, ImageFont

WORKFLOWS = comfyui.ROOT / "workflows"
OUTPUT = comfyui.ROOT / "output"
PHOTO = WORKFLOWS / "photo.png"

OWN = -0.1  # what Flow Upscale calls the model's own temperature

# (temperature, seed). The first three appear in the side-by-side picture.
SAMPLES = [(0.0, 1), (OWN, 1), (OWN, 2), (OWN, 3)]

sys.path.insert(0, str(WORKFLOWS / "api"))
from client import Client, ProgressLine, RunError  # noqa: E402 (it lives beside the workflows, for people to copy)


def main() -> None:
    """Run the demo."""
    OUTPUT.mkdir(exist_ok=True)
    say("starting ComfyUI 0.30.0 without a window ...")
    with (
        tempfile.TemporaryDirectory(prefix="flowcore-demo-") as base,
        comfyui.running(comfyui.tree(), Path(base)) as server,
    ):
        pictures = [enlarge(Client(server.url), temperature, seed) for temperature, seed in SAMPLES]
    say("server stopped")

    photo = Image.open(PHOTO).convert("RGB")
    bicubic = photo.resize(pictures[0].size, Image.Resampling.BICUBIC)
    panels = {"bicubic": bicubic}
    for (temperature, seed), picture in zip(SAMPLES, pictures, strict=True):
        panels[f"{named(temperature)}, seed {seed}"] = picture
        path = OUTPUT / f"upscale-{named(temperature).replace(' ', '-')}-seed{seed}.png"
        picture.save(path)
        say(f"saved {path}")
    path = OUTPUT / "side-by-side.png"
    side_by_side(dict(list(panels.items())[:4])).save(path)
    say(f"saved {path}")


def enlarge(client: Client, temperature: float, seed: int) -> Image.Image:
    """Upload the photograph, run the API workflow on it and fetch the picture."""
    workflow = json.loads((WORKFLOWS / "api" / "upscale.json").read_text())
    workflow["photo"]["inputs"]["image"] = client.upload(PHOTO, "flowcore-demo.png")
    workflow["upscale"]["inputs"] |= {"temperature": temperature, "seed": seed, "samples": 1}
    line = ProgressLine(f"{named(temperature)}, seed {seed}")
    entry = client.wait(client.queue(workflow), line)
    line.end()
    (data,) = client.pictures(entry)
    return Image.open(io.BytesIO(data)).convert("RGB")


def named(temperature: float) -> str:
    """Name a temperature."""
    return "default" if temperature == OWN else f"tau {temperature:g}"


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
        sheet.paste(
            picture.crop(detail).resize((width, height), Image.Resampling.NEAREST), (left, label + height + gap)
        )
    return sheet


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except (comfyui.HostError, RunError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
