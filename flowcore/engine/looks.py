"""Looks: named ways to enlarge one picture, from the likeliest enlargement to the liveliest."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Name: TypeAlias = Literal["faithful", "natural", "crisp", "lively"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look changes of the options that are left open."""

    temperature: float = 1.0  # times the model's default
    sharpness: float = 0.0  # see ``images.edges.sharpen_edges``
    guide_strength: float = 0.0  # share of the model's own guide, if it has one, unless the model's default is larger


looks: Mapping[Name, Look] = MappingProxyType(
    {
        "faithful": Look(temperature=0.0),
        "natural": Look(),
        "crisp": Look(sharpness=1.0, guide_strength=0.95),  # below 1: seeds differ, and can be found again
        "lively": Look(temperature=4 / 3, sharpness=0.7, guide_strength=0.5),  # without it, texture becomes a mesh
    }
)
"""The looks by name, see the option ``look`` of ``upscale``. All differ in how they are drawn, none in the seed.

>>> flow, small = flowcore.load("srflow-x4"), torch.rand(1, 3, 12, 16)
>>> {name: flowcore.upscale(flow, small, look=name, seed=1).shape[-1] for name in flowcore.looks}
{'faithful': 64, 'natural': 64, 'crisp': 64, 'lively': 64}
"""
