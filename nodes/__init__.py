"""The nodes of the pack: every node class in a module of this list, in the order of the menu."""

from functools import partial

from . import analysis, color, faces, files, latents, light, loaders, painting, repair, sampling, training, upscaling
from .host.compat import Extension, on_prompt
from .host.memory import free_kept
from .host.paths import register_model_folder
from .host.routes import post, show_as_inputs, when_asked_to_free
from .live import LIVE, ROUTE
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode

MENUS = (loaders, upscaling, sampling, latents, analysis, color, light, faces, files, training, painting, repair)
NODES = [
    node
    for menu in MENUS
    for node in vars(menu).values()
    if isinstance(node, type) and issubclass(node, FlowNode) and node.__module__ == menu.__name__
]


def extension() -> Extension:
    """Register what we have besides nodes with the host, at its start, and return what lists our nodes."""
    register_model_folder()
    upscaling.register_srflow()
    recording = {node.__name__ for node in NODES if issubclass(node, PickingNode) and node.RECORDS}
    on_prompt(partial(PROVENANCE_LOG.read_prompt, kinds=recording))
    post(ROUTE, LIVE.prepare)
    show_as_inputs(loaders.is_batch, loaders.preview)
    when_asked_to_free(free_kept)
    return Extension(NODES)
