"""Let all packs import this pack's `flowcore`. ComfyUI runs this file before it loads any pack.

The folder comes last, so that its `nodes/` does not hide ComfyUI's `nodes.py`, and a `flowcore` from pip comes first.
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"  # torch is not imported yet: as flowcore/cli/main.py says
