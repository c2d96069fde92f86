"""flowcore: normalizing flows for artists. What ComfyUI imports.

The imports are inside `comfy_entrypoint`, which the host calls: tools that import the repository root without a host
still work. There is no NODE_CLASS_MAPPINGS: with it, even empty, the host would never call the entry point.
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


# A host without V3 nodes never calls the entry point, so the message must come from here; without a host there is none.
if "folder_paths" in sys.modules and _is_too_old():
    logging.getLogger("flowcore").error(TOO_OLD)


async def comfy_entrypoint() -> Any:
    """Return the host's ComfyExtension with our nodes.

    Raises:
        ImportError: If the host has no V3 nodes.
        Exception: Whatever stopped the import; logged with its traceback, because the host prints one line only.
    """
    if _is_too_old():
        raise ImportError(TOO_OLD)
    try:
        from .nodes import extension

        return extension()
    except Exception:
        logging.getLogger("flowcore").exception("flowcore could not be loaded")
        raise
