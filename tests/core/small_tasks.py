"""Tasks on small random flows, with the words of the advice that each gives where memory runs out."""

from builders import random_image as noise
from small_flows import flow

import flowcore
from flowcore import colorize_video, encode_colors, score
from flowcore.tasks.hints import hints_from_points

GRAY, CLIP, COLORS = noise(1, 1, 24, 32), noise(3, 1, 24, 32), noise(2, 3, 24, 32)
SMALL, LARGE = noise(1, 3, 10, 12), noise(2, 3, 12, 16)
HINTS = hints_from_points([(5, 5, "#c04020"), (20, 9, "#2040c0")], (24, 32), radius=4)


def latents(name, count=2):
    made = flow(name)
    return [noise(count, *shape, seed=k) for k, shape in enumerate(made.latent_shapes(*made.image_size))]


def glow_task(task, *arguments):
    return lambda **options: task(flow("small-glow"), *arguments, **options)


def color_task(task, *arguments, **own):
    return lambda **options: task(flow("small-color"), *arguments, **own, **options)


# Name to the task, and the words of its advice.
ENLARGED = {"samples": 2, "seed": 3}
DIGITS = {"labels": 1, "styles": {"bold": 1.0}, "snapped": True}
TASKS = {
    "upscale": (
        lambda **options: flowcore.upscale(flow("small-srflow"), SMALL, **ENLARGED, **options),
        ("tile", "samples", "smaller image"),
    ),
    "colorize": (color_task(flowcore.colorize, GRAY, samples=2, temperature=0.5), ("working_size", "samples")),
    "hints": (color_task(flowcore.colorize, GRAY, samples=2, hints=HINTS, hint_steps=2), ("working_size", "samples")),
    "colorize a clip": (color_task(colorize_video, CLIP, carry=0.5), ("working_size",)),
    "encode colors": (color_task(encode_colors, COLORS), ("working_size",)),
    "sample": (glow_task(flowcore.sample, 3), ("size", "samples")),
    "digits": (lambda **options: flowcore.sample(flow("small-digits"), 3, **DIGITS, **options), ("size", "samples")),
    "encode": (glow_task(flowcore.encode, LARGE), ("size",)),
    "decode": (glow_task(flowcore.decode, latents("small-glow")), ("size",)),
    "score": (glow_task(score, LARGE), ("samples", "smaller")),
}


def tensors(made):
    if isinstance(made, flowcore.Score):
        return [made.bits_per_dim, made.map, made.per_level]
    return list(made) if isinstance(made, (tuple, list)) else [made]
