"""Tiny flows of every kind that encodes and decodes whole images, of 8x12 pixels, for the tests of generating."""

import torch
from builders import build_tiny, random_image

LABELED = ["glow of classes", "digits"]
KINDS = {
    "glow": ("glow", {"image_size": (8, 12)}),
    "any size": ("glow", {"steps": 1, "mixing": "conv"}),
    "glow of classes": ("glow", {"classes": 3, "image_size": (8, 12)}),
    "realnvp": ("realnvp", {"hidden": 8}),
    "ffjord": ("ffjord", {}),
    "residual_flow": ("residual_flow", {}),
    "digits": ("class_conditional", {"steps": 3, "hidden": 16, "styles": ("bold", "wide")}),
    "srflow": ("srflow", {"scale": 2, "levels": 2}),
}


def make(kind):
    """A flow whose parameters are all random."""
    architecture, fields = KINDS[kind]
    flow = build_tiny(architecture, seed=3, perturb=0.05, **fields)
    if kind == "digits":
        with torch.no_grad():
            flow.style_directions.copy_(0.1 * torch.randn(flow.style_directions.shape))
    return flow


def images(n=2, channels=3, height=8, width=12, seed=0, dtype=torch.float32):
    return random_image(n, channels, height, width, seed=seed).to(dtype)


def condition(flow, n):
    """A condition of n images of 8x12, for models of each kind."""
    dtype = next(flow.parameters()).dtype
    if flow.capabilities.source == "low_resolution":
        return flow.encode_condition(images(n, 3, 4, 6, seed=5, dtype=dtype))
    if flow.classes:
        return flow.encode_condition(torch.eye(flow.classes, dtype=dtype)[torch.arange(n) % flow.classes])
    return None


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance
