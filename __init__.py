"""flowcore: normalizing flows for artists. The door that ComfyUI opens.

Nothing of ours is imported here: the host looks for `comfy_entrypoint` and calls it, so the pack costs nothing until
then, and tools that import the repository root without a host do not fall over. There is no NODE_CLASS_MAPPINGS: with
it, even empty, the host would never call the entry point.
"""

import logging
from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Return the extension that lists our nodes.

    Returns:
        The host's ComfyExtension.

    Raises:
        Exception: Whatever stopped the import; logged with its traceback first, because the host prints one line only.
    """
    try:
        from .nodes import NODES
        from .nodes.host import Extension

        return Extension(NODES)
    except Exception:
        logging.getLogger("flowcore").exception("flowcore could not be loaded")
        raise
