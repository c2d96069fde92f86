"""flowcore: normalizing flows for artists. What ComfyUI imports.

The imports are inside `comfy_entrypoint`, which the host calls, so that tools can import the repository root without a
host. There is no NODE_CLASS_MAPPINGS, because with it, even empty, the host would never call the entry point.
"""

import logging
import re
import sys
from pathlib import Path
from typing import Any

WEB_DIRECTORY = "./web"

MINIMUM = (0, 20, 0)  # of ComfyUI
TOO_OLD = "flowcore needs ComfyUI >= 0.20.0; this one is older, so flowcore's nodes are missing. Update ComfyUI."


def _is_too_old() -> bool:
    try:
        from comfyui_version import __version__ as version
    except ModuleNotFoundError:
        return True
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < MINIMUM


def _check_version() -> None:
    """Report a `flowcore` of another version, from pip or another pack, which Python finds before this pack's."""
    import flowcore

    ours = re.search(r'^version = "(.+)"', Path(__file__).with_name("pyproject.toml").read_text("utf-8"), re.MULTILINE)
    version = getattr(flowcore, "__version__", "an unknown version")
    if ours and version != ours[1]:
        logging.getLogger("flowcore").error(
            "ComfyUI uses the flowcore in %s, %s, instead of the one in this pack, %s. Nodes may fail until they are "
            "the same: update that one, or remove it (pip uninstall flowcore).",
            flowcore.__file__,
            version,
            ours[1],
        )


# Old hosts never call the entry point, so the message must come from here. Without a host, there is none.
if "folder_paths" in sys.modules and _is_too_old():
    logging.getLogger("flowcore").error(TOO_OLD)


async def comfy_entrypoint() -> Any:
    """Return the host's ComfyExtension with our nodes.

    Raises:
        ImportError: If the host is too old.
        Exception: Whatever stopped the import; logged with its traceback, because the host prints only one line.
    """
    if _is_too_old():
        raise ImportError(TOO_OLD)
    try:
        _check_version()
        from .nodes import extension

        return extension()
    except Exception:
        logging.getLogger("flowcore").exception("flowcore could not be loaded")
        raise
