"""flowcore: normalizing flows for artists. The door that ComfyUI opens.

Nothing of ours is imported here: the host looks for `comfy_entrypoint` and calls it, so the pack costs nothing until
then, and tools that import the repository root without a host do not fall over. There is no NODE_CLASS_MAPPINGS: with
it, even empty, the host would never call the entry point.
"""

import importlib.util
import logging
import sys
from typing import Any

WEB_DIRECTORY = "./web"

TOO_OLD = (
    "flowcore needs ComfyUI >= 0.20.0; this one has no V3 nodes (comfy_api.v0_0_2), so flowcore's are missing. "
    "Update ComfyUI."
)


def _is_too_old() -> bool:
    try:
        return importlib.util.find_spec("comfy_api.v0_0_2") is None
    except ModuleNotFoundError:  # not even comfy_api
        return True


# A host without V3 nodes never calls the entry point, so this is the only place to say so. Without a host: not a word.
if "folder_paths" in sys.modules and _is_too_old():
    logging.getLogger("flowcore").error(TOO_OLD)


async def comfy_entrypoint() -> Any:
    """Return the extension that lists our nodes.

    Returns:
        The host's ComfyExtension.

    Raises:
        ImportError: The host has no V3 nodes.
        Exception: Whatever stopped the import; logged with its traceback first, because the host prints one line only.
    """
    if _is_too_old():
        raise ImportError(TOO_OLD)
    try:
        from .nodes import NODES, REPLACEMENTS
        from .nodes.host import Extension

        return Extension(NODES, REPLACEMENTS)
    except Exception:
        logging.getLogger("flowcore").exception("flowcore could not be loaded")
        raise
