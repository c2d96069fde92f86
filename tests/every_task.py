"""Every task on small random flows, for tests that run them on other devices and compare with the CPU."""

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch
from builders import TINY, build_hcflow, build_tiny
from builders import random_image as noise
from small_flows import flow as small_flow
from torch import Tensor

import flowcore
from flowcore import ranked, restore, score, shrink
from flowcore.engine.compiled import drop_compiled
from flowcore.flows.latents import attribute_direction
from flowcore.flows.likelihood import with_probes
from flowcore.models import ARCHITECTURES
from flowcore.tasks.hints import hints_from_points
from flowcore.tasks.ranking import diversity_map
from flowcore.tasks.sample import normalize_image_latents
from flowcore.tasks.styles import apply_style

Result = Tensor | Iterable[Tensor]


BUILDERS: dict[str, Callable[[], flowcore.Flow]] = {
    **{name: partial(build_tiny, name, seed=3, perturb=0.05) for name in ARCHITECTURES},
    "llflow": partial(build_tiny, "llflow", perturb=0.02),
    "hcflow": build_hcflow,
    "rescaling": partial(build_hcflow, rescaling=True, temperature=0.05),  # at 1 it overflows
}


class Place:
    """A device, with flows on it, and where the images and latents are that tasks are given."""

    def __init__(self, device: str | torch.device, inputs: str | torch.device) -> None:
        self.device, self.inputs = torch.device(device), torch.device(inputs)
        self._flows: dict[str, flowcore.Flow] = {}

    def flow(self, name: str) -> flowcore.Flow:
        """A flow of ``small_flows``, or of an architecture, on the device."""
        if name not in self._flows:
            made = BUILDERS[name]() if name in BUILDERS else copy.deepcopy(small_flow(name))
            self._flows[name] = made.requires_grad_(False).to(self.device)
        return self._flows[name]

    def image(self, batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
        """A random image, where inputs are."""
        return noise(batch, channels, height, width, seed=seed).to(self.inputs)


def _latents(place: Place, name: str) -> list[Tensor]:
    flow = place.flow(name)
    return [0.7 * place.image(2, *shape, seed=k) for k, shape in enumerate(flow.latent_shapes(*flow.image_size))]


def _round_trip(place: Place) -> list[Tensor]:
    flow, image = place.flow("small-glow"), place.image(2, 3, 12, 16)
    latents = flowcore.encode(flow, image)
    return [*latents, flowcore.decode(flow, latents)]


def _interpolated(place: Place) -> Tensor:
    flow = place.flow("small-glow")
    a, b = (flowcore.encode(flow, place.image(1, 3, 12, 16, seed=seed)) for seed in (1, 2))
    return torch.cat(
        [flowcore.decode(flow, flowcore.interpolate(a, b, 0.3, mode=m)).cpu() for m in ("linear", "slerp", "norm")]
    )


def _scored(place: Place, name: str, **options: object) -> list[Tensor]:
    flow = place.flow(name)
    made = score(flow, place.image(2, flow.channels, *(flow.image_size or (12, 16))), samples=2, **options)
    return [made.bits_per_dim, made.map, made.per_level]


def _hinted(place: Place) -> Tensor:
    hints = hints_from_points([(5, 5, "#c04020"), (20, 9, "#2040c0")], (24, 32), radius=4)
    return flowcore.colorize(place.flow("small-color"), place.image(1, 1, 24, 32), hints=hints, hint_steps=3, seed=4)


def _colors(place: Place) -> list[Tensor]:
    flow, image = place.flow("small-color"), place.image(2, 3, 24, 32)
    latents = flowcore.encode_colors(flow, image)
    moved = flowcore.transfer_palette(flow, place.image(1, 1, 24, 32), image[:1])
    return [*latents, flowcore.decode_colors(flow, latents, image), moved, flowcore.apply_chroma(image, moved)]


def _upscaled(place: Place) -> list[Tensor]:
    flow, image = place.flow("small-srflow"), place.image(1, 3, 10, 13)
    covered = torch.cat([image, place.image(1, 1, 10, 13, seed=9)], dim=1)
    pictures = flowcore.upscale(flow, covered, samples=2, seed=3, match_source=True)
    tiled = flowcore.upscale(flow, place.image(1, 3, 40, 36), seed=3, tile=32, longest_side=60)
    return [pictures, tiled, flowcore.temperature_grid(flow, image, [0.0, 0.8], seeds=2), diversity_map(pictures)]


def _others(place: Place) -> list[Tensor]:
    """What only some architectures do."""
    brighter = flowcore.brighten(place.flow("llflow"), place.image(1, 3, 16, 24), temperature=0.5, seed=3)
    small = shrink(place.flow("rescaling"), place.image(1, 3, 16, 24))
    restored = restore(place.flow("rescaling"), small, seed=3)
    return [brighter, small, restored, flowcore.upscale(place.flow("hcflow"), small, seed=3, temperature=0.05)]


def _ranked(place: Place) -> list[Tensor]:
    flow, image = place.flow("small-srflow"), place.image(1, 3, 12, 12)
    pictures = flowcore.upscale(flow, image, samples=3, seed=3)
    color, gray = place.flow("small-color"), place.image(1, 1, 24, 32)
    colorings = flowcore.colorize(color, gray, samples=3, seed=3)
    scores = [ranked(pictures, image)[0], ranked(pictures, image, "likelihood", flow)[0]]
    return [*scores, ranked(colorings, gray, "consensus")[0], ranked(colorings, gray, "likelihood", color)[0]]


def _directions(place: Place) -> list[Tensor]:
    flow = place.flow("small-glow")
    sides = ([flowcore.encode(flow, place.image(2, 3, 12, 16, seed=seed))] for seed in (1, 5))
    digits = place.flow("small-digits")
    z = [place.image(2, *shape).to(place.device) for shape in digits.latent_shapes(8, 12)]
    return [*attribute_direction(*sides), *apply_style(digits, z, {"bold": 1.0})]


def _sampled_digits(place: Place) -> Tensor:
    return flowcore.sample(place.flow("small-digits"), 3, labels=[0, 1, 2], styles={"bold": 1.0}, snapped=True)


def sides(flow: flowcore.Flow) -> tuple[int, int]:
    """Height and width of a small image that a flow takes."""
    height, width = flow.image_size or (16, 24)
    return tuple(-(-side // flow.size_multiple) * flow.size_multiple for side in (height, width))


def source_of(flow: flowcore.Flow, batch: int) -> Tensor | None:
    """What the condition of an image of these sides is encoded from, on the CPU; None for unconditional flows."""
    height, width = sides(flow)
    if flow.capabilities.source == "low_light":
        return noise(batch, 3, height, width)
    if flow.capabilities.source == "low_resolution":
        return noise(batch, 3, height // flow.condition_scale, width // flow.condition_scale)
    if flow.capabilities.source == "luma":
        return noise(batch, 1, 4 * height, 4 * width)
    return torch.eye(flow.classes)[torch.arange(batch) % flow.classes] if flow.classes else None


def _plain_flows(place: Place) -> list[Tensor]:
    """The readable flows, there and back, without a compiled flow."""
    made: list[Tensor] = []
    for name in TINY:
        flow = place.flow(name)
        source = source_of(flow, 2)
        cond = None if source is None else flow.encode_condition(source.to(place.device))
        image = noise(2, flow.channels, *sides(flow), seed=7).to(place.device)
        if flow.estimated:
            cond = with_probes(flow, image.shape, 3)
        with torch.no_grad():
            latents, logdet = flow(image, cond)
            made += [logdet, flow.inverse(latents, cond)]
    return made


TASKS: dict[str, Callable[[Place], Result]] = {
    "upscale": _upscaled,
    "rank": _ranked,
    "brighten and rescale": _others,
    "colorize": lambda p: flowcore.colorize(p.flow("small-color"), p.image(1, 1, 24, 32), samples=2, temperature=0.5),
    "colors of pictures": _colors,
    "spread hints": _hinted,
    "video": lambda p: flowcore.colorize_video(p.flow("small-color"), p.image(3, 1, 24, 32), carry=0.5),
    "steady video": lambda p: flowcore.upscale_video(p.flow("small-srflow"), p.image(2, 3, 12, 16), temperature=0.3),
    "sample": lambda p: flowcore.sample(p.flow("small-glow"), 3, seed=5),
    "sample digits": _sampled_digits,
    "sample ffjord": lambda p: flowcore.sample(p.flow("ffjord"), 2, size=(8, 12), seed=5),
    "sample residual flow": lambda p: flowcore.sample(p.flow("residual_flow"), 2, size=(8, 12), seed=5),
    "score residual flow": lambda p: _scored(p, "residual_flow", probes=2),
    "score ffjord": lambda p: _scored(p, "ffjord", probes=2),
    "sample realnvp": lambda p: flowcore.sample(p.flow("realnvp"), 2, size=(8, 12), seed=5),
    "encode and decode": _round_trip,
    "decode": lambda p: flowcore.decode(p.flow("small-glow"), _latents(p, "small-glow")),
    "interpolate": _interpolated,
    "harmonize": lambda p: normalize_image_latents(p.flow("small-srflow"), p.image(2, 3, 20, 24)),
    "score": lambda p: _scored(p, "small-glow"),
    "directions": _directions,
    "plain flows": _plain_flows,
}


def run(name: str, place: Place) -> list[Tensor]:
    """The results of a task, on the CPU; no compiled flow of an earlier call is used."""
    drop_compiled()
    made = TASKS[name](place)
    return [t.cpu() for t in ([made] if isinstance(made, Tensor) else made)]


def largest_difference(made: list[Tensor], expected: list[Tensor]) -> float:
    """Of two results, which must have the same shapes."""
    assert [t.shape for t in made] == [t.shape for t in expected]
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(made, expected, strict=True))
