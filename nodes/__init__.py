"""The nodes of the pack, in the order of the menu."""

from .load import FlowcoreLoadModel
from .upscale import FlowcoreUpscale

NODES = [FlowcoreLoadModel, FlowcoreUpscale]
