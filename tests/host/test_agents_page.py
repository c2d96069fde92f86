"""The program of docs/agents.md runs against a real server."""

import os
import re
import subprocess
import sys

import comfyui
from PIL import Image

PAGE = comfyui.ROOT / "docs" / "agents.md"


def test_the_program_posts_a_story_and_saves_its_results(host, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    photo = Image.open(comfyui.ROOT / "workflows" / "photo.png").convert("RGB").crop((120, 40, 152, 64))
    photo.save(tmp_path / "photo.jpg")
    (tmp_path / "workflows").symlink_to(comfyui.ROOT / "workflows", target_is_directory=True)
    program = program.replace("http://127.0.0.1:8188", host.url)
    command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = [Image.open(path) for path in tmp_path.glob("*.png")]
    assert [result.size for result in results] == [(128, 96)] * 2
    assert "srflow-x4: too small to measure JPEG blocks or noise" in done.stdout
