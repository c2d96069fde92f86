"""The nodes of the pack: every node class in a module of this list, in the order of the menu."""

from functools import partial

from . import analysis, color, faces, folders, latents, light, loaders, painting, sampling, saving, training, upscaling
from .host.compat import Extension, on_prompt
from .host.memory import free_kept
from .host.routes import post, show_as_inputs, when_asked_to_free
from .live import LIVE, ROUTE
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode
from .upscaling import register_srflow

NODES = [
    node
    for menu in (
        loaders,
        upscaling,
        sampling,
        latents,
        analysis,
        color,
        light,
        faces,
        folders,
        saving,
        training,
        painting,
    )
    for node in vars(menu).values()
    if isinstance(node, type) and issubclass(node, FlowNode) and node.__module__ == menu.__name__
]


def extension() -> Extension:
    """Return what the host asks for: our nodes, and the hooks that run once at its start."""
    recording = {node.__name__ for node in NODES if issubclass(node, PickingNode) and node.RECORDS}
    read_prompt = partial(PROVENANCE_LOG.read_prompt, kinds=recording)
    routes = [
        lambda: post(ROUTE, LIVE.prepare),
        lambda: show_as_inputs(loaders.is_batch, loaders.preview),
        lambda: when_asked_to_free(free_kept),
    ]
    on_start = [register_srflow, lambda: on_prompt(read_prompt), *routes]
    return Extension(NODES, on_start)
