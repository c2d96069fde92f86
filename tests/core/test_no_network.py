"""flowcore opens no connection, at import and at work."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import contextlib, importlib, pkgutil, socket, sys

class Refused(BaseException):  # which nothing that guards against errors swallows
    pass

def refuse(event, arguments):
    outside = event.split(".")[0] in ("socket", "urllib", "subprocess", "webbrowser") and event != "socket.gethostname"
    if outside or event in ("os.system", "os.exec", "os.posix_spawn", "os.fork"):
        raise Refused(f"flowcore has opened a connection: {event}")

sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except Refused:
    pass
else:
    raise SystemExit("a connection would not be noticed")

sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
state = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
import flowcore
slow = {"kornia", "torchvision", "matplotlib", "scipy"} & sys.modules.keys()
for module in pkgutil.walk_packages(flowcore.__path__, "flowcore."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert torch.equal(state[0], torch.get_rng_state())
assert state[1:] == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
host = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server"} & sys.modules.keys()
assert not slow | host, slow | host
from flowcore.cli.main import main
from flowcore.models import convert, save
from flowcore.models.latents_file import load_latents, save_latents
from flowcore.models.identity import model_sha256

picture = torch.rand(1, 3, 8, 8)
upscaler = flowcore.load("srflow-x4")
assert flowcore.upscale(upscaler, picture).shape == (1, 3, 32, 32)
colorizer = flowcore.load("color-photos")
assert flowcore.colorize(colorizer, picture[:, :1]).shape == (1, 3, 8, 8)
glow = flowcore.load("glow-photos")
assert flowcore.sample(glow, 1).shape == (1, 3, 64, 64)
assert flowcore.score(glow, torch.rand(1, 3, 64, 64)).bits_per_dim.shape == (1,)
latents = flowcore.encode(glow, torch.rand(1, 3, 64, 64))
save_latents("z.safetensors", latents, model=model_sha256(glow), architecture="glow")
assert torch.equal(load_latents("z.safetensors")[0][0], latents[0])
save(glow, "glow.safetensors")
flowcore.load("glow.safetensors")
torch.save({"a": torch.ones(3)}, "foreign.pth")
with contextlib.suppress(flowcore.CheckpointError):
    convert("foreign.pth")
assert main(["inspect", "glow.safetensors"]) == 0
print("all done")
"""


def test_no_connection_is_opened(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(ROOT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.rstrip().endswith("all done")
