"""Let all packs import this pack's `flowcore`. ComfyUI runs this file before it loads any pack.

The folder comes last, so that its `nodes/` does not hide ComfyUI's `nodes.py`, and a `flowcore` from pip comes first.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
