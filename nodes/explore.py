"""Explore: a place between up to four images, chosen on a pad."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..flowcore import latents as material
from .host import Notes, io, make
from .latents import between
from .sockets import FlowLatents, Latents, checked, together


class FlowcoreLatentExplorer(io.ComfyNode):
    """One image out of the square between two to four others."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node. Saved workflows hold widget values by position: append, never reorder."""
        return make(
            io.Schema,
            node_id="FlowcoreLatentExplorer",
            display_name="Flow Latent Explorer",
            category="flowcore/latents",
            description="Finds an image between two, three or four others: drag the point on the pad, or set x and y. "
            "Every place between them is an image that the model knows how to make.",
            search_aliases=["latent explorer", "2d pad", "xy pad", "morph", "blend four", "interpolate latents"],
            inputs=[
                _anchor("a", "The image at the top left (x 0, y 0)."),
                _anchor("b", "The image at the top right (x 1, y 0); made with the same model, at the same size."),
                _anchor("c", "The image at the bottom left (x 0, y 1). Without d it is the whole lower edge.", True),
                _anchor("d", "The image at the bottom right (x 1, y 1). Without c it is the whole lower edge.", True),
                _place("x", "From left (0) to right (1): from a to b, and from c to d."),
                _place("y", "From top (0) to bottom (1): from a and b to c and d. Without c and d it does nothing."),
            ],
            outputs=[
                make(
                    FlowLatents.Output,
                    "explored",
                    display_name="latents",
                    tooltip="The latents of that place, for Flow Decode. In a corner they are exactly the image's.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, a: Any, b: Any, c: Any = None, d: Any = None, x: float = 0.5, y: float = 0.5) -> Any:
        """Walk along the upper and the lower edge, then from one to the other."""
        notes, told = Notes("Flow Latent Explorer", cls.hidden.unique_id), list[str]()
        found = _walk(*together(a, b), x, told)
        lower = [checked(anchor) for anchor in (c, d) if anchor is not None]
        if lower:
            edge = _walk(*together(*lower), x, told) if len(lower) == 2 else lower[0]
            found = _walk(*together(found, edge), y, told)
        if told:
            notes("The images show different labels: that of the nearest is kept. Flow Decode can be told others.")
        return io.NodeOutput(found, ui=notes.ui)


def _walk(a: Latents, b: Latents, t: float, told: list[str]) -> Latents:
    """Take one place of the walk between two; 0 and 1 give the ends bit for bit."""
    labels, source = between(a, b, [t], told.append)
    return dataclasses.replace(a, levels=material.interpolate(a.levels, b.levels, t), labels=labels, source=source)


def _anchor(name: str, tooltip: str, optional: bool = False) -> Any:
    return make(FlowLatents.Input, name, optional=optional, tooltip=tooltip)


def _place(name: str, tooltip: str) -> Any:
    return make(
        io.Float.Input,
        name,
        default=0.5,
        min=0.0,
        max=1.0,
        step=0.001,
        optional=True,
        display_mode=io.NumberDisplay.slider,
        tooltip=tooltip,
    )
