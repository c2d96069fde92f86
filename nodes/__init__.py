"""The nodes of the pack: every node class in the modules of `MODULES`, in this order."""

import os
from functools import partial

from . import (
    analysis,
    color,
    faces,
    files,
    latents,
    loaders,
    numbers,
    retouching,
    sampling,
    saving,
    tracing,
    training,
    upscaling,
)
from .host.compat import Extension, on_prompt
from .host.memory import free_kept
from .host.paths import register_folders
from .host.routes import list_templates, on_free_request, post, serve_input_pictures
from .live import LIVE_RUNS, ROUTE
from .node import FlowNode
from .picking import PROVENANCE_LOG, PickingNode

MODULES = (loaders, upscaling, sampling, latents, analysis, tracing, color, faces, files, saving, training, retouching)
NODES = [
    node
    for module in MODULES
    for node in vars(module).values()
    if isinstance(node, type) and issubclass(node, FlowNode) and node.__module__ == module.__name__
]
NO_TRAINING = "FLOWCORE_NO_TRAINING"  # environment variable that removes Flow Train, if it is not empty


def extension() -> Extension:
    """Register everything except our nodes with the host, and return the extension that lists those."""
    register_folders()
    upscaling.register_srflow()
    recording = {node.__name__ for node in NODES if issubclass(node, PickingNode) and node.RECORDS}
    on_prompt(partial(PROVENANCE_LOG.annotate_prompt, kinds=recording))
    post(ROUTE, LIVE_RUNS.answer)
    by_name = {node.__name__: node for node in NODES}
    post(numbers.ROUTE, partial(numbers.answer, nodes=by_name), "application/json")
    serve_input_pictures(files.is_batch, files.preview)
    on_free_request(free_kept)
    list_templates((files.WORKFLOWS / "order.txt").read_text(encoding="utf-8").splitlines())
    hidden = {training.FlowcoreTrain} if os.environ.get(NO_TRAINING) else set[type[FlowNode]]()
    return Extension([node for node in NODES if node not in hidden])
